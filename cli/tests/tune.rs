//! `kfc tune` on a parity case: what it finds is kept, shown, used and changes no bit; `kfc bench --kernel`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Runs `arguments` with this file of choices, or with `off`, and a cache beside it; returns what it prints.
fn with(tuning: &Path, arguments: &[OsString]) -> String {
    with_cache(
        &Path::new(env!("CARGO_TARGET_TMPDIR")).join(tuning).with_extension("cache"),
        tuning,
        arguments,
    )
}

/// The same with this cache, and so with what was calibrated there.
fn with_cache(cache: &Path, tuning: &Path, arguments: &[OsString]) -> String {
    let mut command = command();
    let output =
        command.args(arguments).env("KFC_TUNING", tuning).env("XDG_CACHE_HOME", cache).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn object(tuning: &Path, arguments: &[OsString]) -> Value {
    serde_json::from_str(&with(tuning, &[&args!["--json"], arguments].concat())).unwrap()
}

#[test]
fn choices_are_kept_shown_used_and_change_no_bit() {
    let folder = Folder::new();
    let config = case("llama").join("config.toml");
    let file = folder.join("found.json");
    let report = object(&file, &args!["tune", config, "--seconds", "2"]);
    assert!(
        report["steps"].as_u64().unwrap() > 3 && report["with_choices"].as_u64().unwrap() > 5,
        "{report}"
    );
    assert_eq!(Path::new(report["file"].as_str().unwrap()), file);
    let kept: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let kernels = kept["kernels"].as_object().unwrap();
    assert_eq!(kernels.len() as u64, report["with_choices"].as_u64().unwrap());
    assert!(kernels.values().all(|k| k["tried"].as_array().unwrap().len() > 1));

    let explained = object(&file, &args!["explain", config]);
    let tuned = explained["kernels"].as_array().unwrap().iter().filter(|k| !k["tuned"].is_null());
    assert!(tuned.count() >= kernels.len());
    assert!(with(&file, &args!["explain", config]).contains("runners-up"));

    // Every kernel in the most unusual way that it has, and not at all.
    let mut all = kept.clone();
    for k in all["kernels"].as_object_mut().unwrap().values_mut() {
        let has_products = k["tried"].as_array().unwrap().iter().any(|t| t["choice"] == "turned");
        k["choice"] = if has_products { "turned, tile 32x256, 1 thread" } else { "1 thread" }.into();
    }
    std::fs::write(&file, all.to_string()).unwrap();
    let run = |name: &str, tuning: &Path| {
        let out = folder.join(name);
        with(tuning, &args!["train", config, "--set", "train.steps=4", "--out", out]);
        std::fs::read(out.join("adapter/adapter_model.safetensors")).unwrap()
    };
    let built_in = run("built-in", Path::new("off"));
    assert!(run("tuned", &file) == built_in);

    // A damaged file is none.
    std::fs::write(&file, "{\"format\": 1,").unwrap();
    assert!(run("damaged", &file) == built_in);
    assert!(!with(&file, &args!["explain", config]).contains("runners-up"));
}

/// Starts a search of a minute.
fn start(file: &Path, config: &Path) -> Child {
    let mut c = std::process::Command::new(env!("CARGO_BIN_EXE_kfc"));
    c.args(["--quiet", "--json", "tune"]).arg(config).args([
        "--seconds",
        "60",
        "--set",
        "train.recompute=\"none\"",
    ]);
    c.env("KFC_TUNING", file).env("XDG_CACHE_HOME", file.with_extension("cache"));
    c.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What is kept by now; waits for the first of it.
fn first_kept(file: &Path, child: &mut Child) -> Value {
    let start = Instant::now();
    while !file.exists() {
        assert!(child.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// What a file says of each choice that was tried and is out: kernel, choice, median and number of times.
fn out_after_trial(kept: &Value) -> Vec<String> {
    let kernels = kept["kernels"].as_object().unwrap().iter();
    let tried = kernels.flat_map(|(name, k)| k["tried"].as_array().unwrap().iter().map(move |t| (name, t)));
    let out = tried.filter(|(_, t)| !t["out"].is_null() && t["samples"] != 0);
    out.map(|(name, t)| format!("{name} {} {} {}", t["choice"], t["ns"], t["samples"])).collect()
}

#[test]
fn a_search_that_is_killed_keeps_what_it_found_and_the_next_one_goes_on() {
    let folder = Folder::new();
    let config = case("llama").join("config.toml");
    let file = folder.join("found.json");
    let mut child = start(&file, &config);
    let kept = first_kept(&file, &mut child);
    // SIGKILL: nothing of it runs any more.
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().code(), None);
    let is_open = |k: &Value| k["choice"] == "built-in" && k["settled"] == false;
    assert!(kept["kernels"].as_object().unwrap().values().all(is_open), "{kept}");
    // It may have written once more meanwhile, and then whole.
    let kept: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let out = out_after_trial(&kept);
    assert!(out.len() > 10, "{kept}");
    std::fs::write(folder.join("found.json.tmp-4000000-0"), "left").unwrap();

    with(&file, &args!["tune", config, "--seconds", "2", "--set", "train.recompute=\"none\""]);
    let after = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let after: BTreeSet<String> = out_after_trial(&after).into_iter().collect();
    assert!(out.iter().all(|o| after.contains(o)), "{out:?} and then {after:?}");
    assert!(!folder.join("found.json.tmp-4000000-0").exists());
}

#[test]
fn searches_beside_each_other_keep_what_each_found() {
    let folder = Folder::new();
    let file = folder.join("found.json");
    let configs = ["llama", "qwen2_yarn_jsd_tied"].map(|name| case(name).join("config.toml"));
    let tune = |config: &Path| {
        let mut c = std::process::Command::new(env!("CARGO_BIN_EXE_kfc"));
        c.args(["--quiet", "--json", "tune"]).arg(config).args(["--seconds", "2"]);
        c.env("KFC_TUNING", &file).env("XDG_CACHE_HOME", folder.join("cache"));
        c.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let both = configs.each_ref().map(|config| tune(config));
    for child in both {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for config in &configs {
        let explained = object(&file, &args!["explain", config]);
        let tuned = explained["kernels"].as_array().unwrap().iter().filter(|k| !k["tuned"].is_null());
        assert!(tuned.count() > 5, "{config:?}: {explained}");
    }
}

#[test]
fn a_search_in_vain_is_refused_before_it_begins() {
    let folder = Folder::new();
    let config = case("llama").join("config.toml");
    let damaged = folder.join("damaged.json");
    std::fs::write(&damaged, "{\"format\": 1,").unwrap();
    let no_folder = damaged.join("found.json");
    for (tuning, said) in [
        (Path::new("off"), &["KFC_TUNING is off"][..]),
        (&no_folder, &["cannot create", "damaged.json"]),
        (&damaged, &["damaged.json", "not valid JSON", "name another file"]),
        (&folder.join("."), &["KFC_TUNING names it"]),
    ] {
        let mut c = std::process::Command::new(env!("CARGO_BIN_EXE_kfc"));
        let output = c.arg("tune").arg(&config).env("KFC_TUNING", tuning).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            matches!(output.status.code(), Some(1 | 2)) && output.stdout.is_empty(),
            "{tuning:?}: {stderr}"
        );
        assert!(
            said.iter().all(|s| stderr.contains(s)) && stderr.starts_with("error: "),
            "{tuning:?}: {stderr}"
        );
    }
    assert_eq!(std::fs::read(&damaged).unwrap(), b"{\"format\": 1,");
    // The cache is kfc's own: what is damaged there is replaced, which a note says.
    let cache = folder.join("cache");
    let tune = || {
        let mut c = std::process::Command::new(env!("CARGO_BIN_EXE_kfc"));
        // A variable that is empty is as good as none.
        c.args(["tune"])
            .arg(&config)
            .args(["--seconds", "1"])
            .env("KFC_TUNING", "")
            .env("XDG_CACHE_HOME", &cache);
        let output = c.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (told, said) = tune();
    assert!(!said.contains("takes its place"), "{said}");
    let file = Path::new(told.lines().last().unwrap().strip_prefix("kept in ").unwrap());
    std::fs::write(file, "{").unwrap();
    let (_, said) = tune();
    assert!(said.contains("not valid JSON") && said.contains("takes its place"), "{said}");
    assert!(serde_json::from_slice::<Value>(&std::fs::read(file).unwrap()).is_ok());
}

#[test]
fn a_budget_that_is_too_small_is_refused_as_by_a_run() {
    let config = case("llama").join("config.toml");
    let budget = args!["--set", "train.mem_budget=\"1MiB\""];
    let folder = Folder::new();
    let said = |arguments: &[OsString]| {
        let mut c = command();
        let output =
            c.args(arguments).args(&budget).env("KFC_TUNING", folder.join("found.json")).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stderr).unwrap()
    };
    for arguments in [&args!["tune", config][..], &args!["train", config, "--out", folder.join("run")]] {
        let stderr = said(arguments);
        assert!(
            stderr.contains("train.mem_budget: 1 MiB is too small; the smallest that this job runs in"),
            "{stderr}"
        );
    }
}

#[test]
fn copies_of_weights_are_accounted_for_and_change_no_bit() {
    let folder = Folder::new();
    let config = case("llama").join("config.toml");
    let file = folder.join("found.json");
    with(&file, &args!["tune", config, "--seconds", "1"]);
    let mut kept: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let mut count = 0;
    for k in kept["kernels"].as_object_mut().unwrap().values_mut() {
        let has_copy = k["tried"].as_array().unwrap().iter().any(|t| t["choice"] == "transposed");
        count += usize::from(has_copy);
        k["choice"] = if has_copy { "transposed" } else { "built-in" }.into();
    }
    assert!(count > 2, "{kept}");
    std::fs::write(&file, kept.to_string()).unwrap();
    let run = |name: &str, tuning: &Path| {
        let out = folder.join(name);
        with(tuning, &args!["train", config, "--set", "train.steps=3", "--out", out]);
        let profile: Value =
            serde_json::from_slice(&std::fs::read(out.join("profile.json")).unwrap()).unwrap();
        let items = profile["account"].as_array().unwrap();
        let copies =
            items.iter().find(|i| i[0] == "transposed weights").map_or(0, |i| i[1].as_u64().unwrap());
        (std::fs::read(out.join("adapter/adapter_model.safetensors")).unwrap(), copies)
    };
    let (built_in, none) = run("built-in", Path::new("off"));
    let (tuned, copies) = run("tuned", &file);
    assert!(tuned == built_in && none == 0 && copies > 0, "{none} {copies}");
    let explained = object(&file, &args!["explain", config]);
    assert_eq!(explained["account"]["transposed weights"], copies);
}

#[test]
fn plans_are_timed_and_what_was_found_runs_and_changes_no_bit() {
    let folder = Folder::new();
    let config = case("llama").join("config.toml");
    let (file, off) = (folder.join("found.json"), Path::new("off"));
    let report = object(&file, &args!["tune", config, "--seconds", "12"]);
    let tried = report["plan"]["tried"].as_array().unwrap();
    assert!(tried.len() > 1 && tried.iter().all(|t| t["ms"].as_f64().unwrap() > 0.0), "{report}");
    assert!(with(&file, &args!["explain", config]).contains("what is made again"));
    // The one that takes the least memory is chosen, whatever it takes in time.
    let least = (1..tried.len()).min_by_key(|i| tried[*i]["arena_bytes"].as_u64()).unwrap();
    let mut kept: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    kept["kernels"] = serde_json::json!({});
    kept["plans"].as_object_mut().unwrap().values_mut().for_each(|p| p["choice"] = least.into());
    std::fs::write(&file, kept.to_string()).unwrap();
    // As timed in the search: with other times the planner chooses otherwise.
    let arena = |tuning: &Path| {
        let text = with_cache(&file.with_extension("cache"), tuning, &args!["--json", "explain", config]);
        serde_json::from_str::<Value>(&text).unwrap()["plans"][0]["arena_bytes"].clone()
    };
    assert_eq!(arena(&file), tried[least]["arena_bytes"]);
    assert_ne!(arena(&file), arena(off));
    let shown = with(&file, &args!["explain", config]);
    assert!(shown.contains("  chosen") && !shown.contains("cannot be used"), "{shown}");
    let run = |name: &str, tuning: &Path| {
        let out = folder.join(name);
        with(tuning, &args!["train", config, "--set", "train.steps=3", "--out", out]);
        std::fs::read(out.join("adapter/adapter_model.safetensors")).unwrap()
    };
    let built_in = run("built-in", off);
    assert!(built_in == run("tuned", &file));
    // A run that goes on is planned as tuned, too, and goes on with the same bits.
    let half = folder.join("half");
    let train = |tuning: &Path, more: &[&str]| {
        let more: Vec<OsString> = more.iter().map(OsString::from).collect();
        let half = args!["--out", half, "--set", "train.save_every=1", "--set", "train.keep=9"];
        with(tuning, &[&args!["train", config, "--set", "train.steps=3"], &half[..], &more].concat())
    };
    train(off, &[]);
    std::fs::remove_dir_all(half.join("adapter")).unwrap();
    ["checkpoint-2", "checkpoint-3"].iter().for_each(|c| std::fs::remove_dir_all(half.join(c)).unwrap());
    train(&file, &["--resume"]);
    assert!(built_in == std::fs::read(half.join("adapter/adapter_model.safetensors")).unwrap());
    // Another budget is another job.
    let more = object(&file, &args!["explain", config, "--set", "train.mem_budget=\"2GiB\""]);
    assert!(more["plan"].is_null(), "{}", more["plan"]);
    // Values that the graph does not save are no plan.
    kept["plans"].as_object_mut().unwrap().values_mut().for_each(|p| {
        p["tried"][least]["values"] = serde_json::json!([0, 4_000_000]);
    });
    std::fs::write(&file, kept.to_string()).unwrap();
    assert_eq!(arena(&file), arena(off));
    let shown = with(&file, &args!["explain", config]);
    assert!(shown.contains("chosen, but it cannot be used now"), "{shown}");
}

#[test]
fn a_file_of_another_machine_is_named_and_neither_used_nor_overwritten() {
    let folder = Folder::new();
    let config = case("llama").join("config.toml");
    let file = folder.join("found.json");
    with(&file, &args!["tune", config, "--seconds", "1"]);
    let mut kept: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    kept["cpu"] = "another one".into();
    std::fs::write(&file, kept.to_string()).unwrap();
    let run = |arguments: &[OsString]| {
        let mut speaking = std::process::Command::new(env!("CARGO_BIN_EXE_kfc"));
        let output = speaking.args(arguments).env("KFC_TUNING", &file).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let out = folder.join("run");
    for arguments in [
        &args!["explain", config][..],
        &args!["train", config, "--set", "train.steps=1", "--out", out],
        &args!["bench", "--job", config, "--list"],
    ] {
        let (code, said) = run(arguments);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("found with cpu \"another one\"") && said.contains("found.json"), "{said}");
    }
    let (code, said) = run(&args!["tune", config, "--seconds", "1"]);
    assert!(code == Some(2) && said.contains("name another file"), "{code:?} {said}");
    assert_eq!(std::fs::read(&file).unwrap(), kept.to_string().into_bytes());
}

/// Runs `arguments` with samples of kernels in `folder`. What is printed has to be one JSON object and nothing else.
fn timed(folder: &Folder, arguments: &[OsString]) -> Value {
    let mut command = command();
    command.args(["bench", "--json"]).args(arguments).env("KFC_TUNING", "off");
    let output = command.env("CRITERION_HOME", folder.join("samples")).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_kernel_is_timed_alone_and_named_by_the_list() {
    let folder = Folder::new();
    let (config, off) = (case("llama").join("config.toml"), Path::new("off"));
    let list = object(off, &args!["bench", "--job", config, "--list"]);
    let kernels = list["kernels"].as_array().unwrap();
    let named = |name: &str| kernels.iter().find(|k| k["kernel"] == name);
    let linear = named("lora_linear.1").unwrap();
    for choice in ["built-in", "turned, tile 64x512, 1 thread"] {
        let arguments = args!["--job", config, "--kernel", "lora_linear.1", "--choice", choice];
        let timed = timed(&folder, &arguments);
        assert_eq!((&timed["choice"], &timed["signature"]), (&choice.into(), &linear["signature"]));
        let number = |at: &str| timed.pointer(at).and_then(Value::as_f64).unwrap();
        let [low, value, high] = ["low", "value", "high"].map(|k| number(&format!("/time_us/{k}")));
        assert!(0.0 < low && low <= value && value <= high, "{timed}");
        assert!(
            number("/median_us") > 0.0 && number("/runs") >= 10.0 && number("/limit_us") > 0.0,
            "{timed}"
        );
        assert!((number("/of_limit") - number("/limit_us") / value).abs() < 1e-9, "{timed}");
        // There is no earlier run of this kernel and choice.
        assert!(timed["change"].is_null(), "{timed}");
    }
    for (name, message) in [("lora_linear", "lora_linear.1"), ("warp.9", "--list")] {
        fails(2, &args!["bench", "--job", config, "--kernel", name], &["--kernel", name, message]);
    }
    let wrong = kfc(&args!["bench", "--kernel", "linear.1", "--choice", "faster"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("64x512"));
    fails(2, &args!["bench", "--job", folder.join("none.toml"), "--list"], &["none.toml"]);
}

#[test]
fn a_kernel_is_compared_with_its_last_run_or_a_baseline() {
    let folder = Folder::new();
    let config = case("llama").join("config.toml");
    let kernel = args!["--job", config, "--kernel", "rms_norm.1"];
    let run = |more: &[&str]| {
        let more: Vec<OsString> = more.iter().map(OsString::from).collect();
        timed(&folder, &[&kernel[..], &more].concat())
    };
    let missing = [&args!["bench"][..], &kernel, &args!["--baseline", "before"]].concat();
    fails(2, &missing, &["--baseline before", "--save-baseline before"]);
    assert!(run(&["--save-baseline", "before"])["change"].is_null());
    // That was kept as a baseline and is no last run.
    assert!(run(&[])["change"].is_null());
    let last = run(&[]);
    assert_eq!(last["change"]["against"], "the last run", "{last}");
    // What is kept is what later runs are compared with: a baseline of half the time makes this run slower.
    let samples = std::fs::read_dir(folder.join("samples")).unwrap().next().unwrap().unwrap().path();
    let path = samples.join("before/sample.json");
    let mut sample: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for time in sample["times"].as_array_mut().unwrap() {
        *time = (time.as_f64().unwrap() / 8.0).into();
    }
    std::fs::write(&path, sample.to_string()).unwrap();
    let before = run(&["--baseline", "before"]);
    assert_eq!(before["change"]["against"], "baseline before", "{before}");
    assert_eq!(before["change"]["verdict"], "slower", "{before}");
    let wrong = kfc(&args!["bench", "--kernel", "linear.1", "--baseline", "../x"]);
    assert_eq!(wrong.status.code(), Some(2));
}
