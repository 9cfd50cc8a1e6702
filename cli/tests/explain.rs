//! `kfc explain`, `kfc tune --calibrate` and `kfc doctor` on a parity case: totals that add up, work that is counted right,
//! a page that needs nothing, predictions that a calibration makes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use serde_json::Value;
use std::ffi::OsString;
use std::path::Path;

/// Runs `arguments` with a cache of its own; returns the JSON object that it prints.
fn object(cache: &Path, arguments: &[OsString]) -> Value {
    let output = command().arg("--json").args(arguments).env("XDG_CACHE_HOME", cache).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn sum(items: &Value, field: &str) -> f64 {
    items.as_array().unwrap().iter().map(|i| i[field].as_f64().unwrap_or(0.0)).sum()
}

fn near(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-6 * b.abs(), "{a} is not {b}");
}

/// Elements of a type as it is printed, and its extents.
fn dims(ty: &Value) -> Vec<f64> {
    let text = ty.as_str().unwrap();
    let inside = text.split_once('[').unwrap().1.trim_end_matches(']');
    inside.split(',').map(|d| d.parse().unwrap()).collect()
}

#[test]
fn a_job_is_explained_before_it_runs() {
    let folder = Folder::new();
    let e = object(folder.path(), &args!["explain", case("llama").join("config.toml")]);
    assert!(e["measured"].is_null() && e["note"].as_str().unwrap().contains("not calibrated"));
    assert_eq!(e["limits"]["measured"], false);
    for totals in ["phases", "parts"] {
        near(sum(&e[totals], "predicted_ms"), e["predicted_ms"].as_f64().unwrap());
        near(sum(&e[totals], "flops"), sum(&e["kernels"], "flops"));
        assert_eq!(sum(&e[totals], "launches"), sum(&e["kernels"], "launches"));
    }
    let account: u64 = e["account"].as_object().unwrap().values().map(|v| v.as_u64().unwrap()).sum();
    assert_eq!(e["predicted_peak_bytes"], account);

    let kernels = e["kernels"].as_array().unwrap();
    let mut linears = 0;
    for k in kernels.iter().filter(|k| k["op"] == "linear") {
        let (x, w) = (dims(&k["inputs"][0]), dims(&k["inputs"][1]));
        let rows: f64 = x[..x.len() - 1].iter().product();
        near(k["flops"].as_f64().unwrap(), 2.0 * rows * w[0] * w[1] * k["launches"].as_f64().unwrap());
        linears += 1;
    }
    assert!(linears > 0);
    assert!(kernels.iter().all(|k| !k["why"].as_array().unwrap().is_empty()));

    for plan in e["plans"].as_array().unwrap() {
        let timeline: Vec<u64> =
            plan["timeline_bytes"].as_array().unwrap().iter().map(|b| b.as_u64().unwrap()).collect();
        assert_eq!(timeline.len() as u64, plan["launches"].as_u64().unwrap());
        let peak = timeline.iter().max().unwrap();
        // What the planner found, from the other side.
        assert_eq!(plan["live_bytes"], *peak, "{}", plan["name"]);
        assert_eq!(plan["peak"]["bytes"], *peak);
        assert_eq!(sum(&plan["peak"]["living"], "bytes"), *peak as f64);
        assert!(plan["arena_bytes"].as_u64().unwrap() >= *peak);
    }
    assert!(sum(&e["plans"][0]["saved"], "bytes") > 0.0);
}

/// Steps of some milliseconds: on a machine that is busy with other tests a step may wait for the thread that makes batches to
/// be given a core, which says nothing of how fast batches are made.
#[test]
fn batches_are_made_ahead() {
    let (folder, config) = (Folder::new(), case("llama").join("config.toml"));
    let share = |i: i32| {
        let run = folder.join(&format!("run{i}"));
        succeeds(&args!["train", config, "--out", run, "--set", "train.steps=20", "--set", "train.batch=32"]);
        let measured = object(&folder.join("cache"), &args!["explain", run])["measured"].take();
        measured["host_ms"]["waiting for data"].as_f64().unwrap() / measured["step_ms"].as_f64().unwrap()
    };
    assert!((0..6).map(share).any(|waited| waited <= 0.05), "steps wait for data");
}

#[test]
fn a_run_is_attributed_and_a_calibration_is_used() {
    let (folder, case) = (Folder::new(), case("llama"));
    let (run, config, cache) = (folder.join("run"), case.join("config.toml"), folder.join("cache"));
    succeeds(&args!["train", config, "--out", run, "--set", "train.steps=20"]);
    let rough = object(&cache, &args!["explain", run]);
    let measured = &rough["measured"];
    assert_eq!((measured["steps"].as_u64(), measured["warmup_steps"].as_u64()), (Some(18), Some(2)));
    let attributed = measured["attributed"].as_f64().unwrap();
    assert!((0.95..=1.0 + 1e-9).contains(&attributed), "{attributed}");
    near(sum(&rough["kernels"], "measured_ms"), measured["kernel_ms"].as_f64().unwrap());
    near(sum(&rough["parts"], "measured_ms"), measured["kernel_ms"].as_f64().unwrap());
    assert!(rough["kernels"].as_array().unwrap().iter().all(|k| k["source"] == "roofline"));
    assert!(rough["kernels"].as_array().unwrap().iter().all(|k| k["roofline"].is_null()));
    let tuned = object(&cache, &args!["tune", config, "--calibrate", "--seconds", "1"]);
    assert!(tuned["steps"].as_u64().unwrap() >= 5 && tuned["kernels"].as_u64().unwrap() > 20);
    let check = &tuned["check"];
    assert!(check["steps"].as_u64().unwrap() >= 5, "{tuned}");
    for error in ["median_error", "weighted_median_error", "scaled_median_error"] {
        // How large it is tells of the machine, busy with other tests; not that there is one.
        assert!(check[error].as_f64().unwrap() > 0.0, "{tuned}");
    }
    assert!(Path::new(tuned["file"].as_str().unwrap()).starts_with(&cache));
    for target in [&run, &config] {
        let exact = object(&cache, &args!["explain", target]);
        assert!(exact["kernels"].as_array().unwrap().iter().all(|k| k["source"] == "calibrated"));
        assert_eq!(exact["limits"]["measured"], true);
    }
    // The same operations at other shapes are scaled from what was timed.
    let other = object(&cache, &args!["explain", config, "--set", "train.batch=3"]);
    let sources: Vec<&str> =
        other["kernels"].as_array().unwrap().iter().map(|k| k["source"].as_str().unwrap()).collect();
    assert!(sources.contains(&"scaled") && !sources.contains(&"roofline"), "{sources:?}");

    // A damaged cache is no error, only no calibration.
    std::fs::write(tuned["file"].as_str().unwrap(), "{\"cpu\":").unwrap();
    assert_eq!(object(&cache, &args!["explain", run])["limits"]["measured"], false);
}

#[test]
fn steps_that_wait_for_data_are_explained_as_such() {
    let (folder, case) = (Folder::new(), case("llama"));
    let run = folder.join("run");
    succeeds(&args!["train", case.join("config.toml"), "--out", run, "--set", "train.steps=5"]);
    // As if the loader had taken as long again as all else.
    let path = run.join("profile.json");
    let mut profile: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let wall = profile["measured"]["wall_ns"].as_u64().unwrap();
    let (host, waited) = (&profile["measured"]["host"], "waiting for data");
    let mut host: Vec<(String, u64)> = serde_json::from_value(host.clone()).unwrap();
    host.iter_mut().filter(|(what, _)| what == waited).for_each(|(_, ns)| *ns = wall);
    profile["measured"]["host"] = serde_json::to_value(host).unwrap();
    profile["measured"]["wall_ns"] = (2 * wall).into();
    std::fs::write(&path, profile.to_string()).unwrap();
    let text = succeeds(&args!["explain", run]);
    let line = text.lines().find(|l| l.starts_with(waited)).unwrap();
    assert!(line.ends_with("50.0 %"), "{line}");
}

#[test]
fn the_page_needs_nothing_and_escapes_what_it_shows() {
    let (folder, case) = (Folder::new(), case("llama"));
    let (run, page) = (folder.join("a<b>&c"), folder.join("page.html"));
    succeeds(&args!["train", case.join("config.toml"), "--out", run]);
    let text = succeeds(&args!["explain", run, "--html", page]);
    for part in ["attributed", "by phase", "by part", "alive at the peak", "linear_cross_entropy_kd_fused: "]
    {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    let page = std::fs::read_to_string(page).unwrap();
    for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link", "NaN", "inf\""]
    {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("a&lt;b&gt;&amp;c") && !page.contains("a<b>"));
    // A timeline and an arena of the micro-batch plan (the update's is too small to show), and the roofline.
    assert_eq!(page.matches("<svg").count(), 3);
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
}

#[test]
fn wrong_targets_are_errors_of_the_input() {
    let folder = Folder::new();
    fails(2, &args!["explain", folder.path()], &["is no run directory"]);
    std::fs::write(folder.join("config.toml"), "").unwrap();
    fails(2, &args!["explain", folder.path()], &["no profile.json", "config.toml"]);
    std::fs::write(folder.join("profile.json"), "{\"format\": 2}").unwrap();
    fails(2, &args!["explain", folder.path()], &["profile.json", "damaged"]);
    fails(2, &args!["explain", folder.path(), "--set", "train.steps=1"], &["--set"]);
    let output = kfc(&args!["tune"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("CONFIG.toml"));
}

#[test]
fn the_doctor_looks_at_the_machine_and_the_job() {
    let (folder, config) = (Folder::new(), case("llama").join("config.toml"));
    let output = command().args(["doctor", "--json"]).current_dir(folder.path()).output().unwrap();
    let d: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(d["cores"].as_u64().unwrap() > 0 && d["job"].is_null(), "{d}");
    assert!(d["disks"][0]["write_bytes_per_s"].as_f64().unwrap() > 0.0, "{d}");
    assert!(folder.names().is_empty(), "{:?}", folder.names());

    let d = object(folder.path(), &args!["doctor", config]);
    assert_eq!((d["job"]["fits"].as_bool(), d["gpu"]["usable"].as_bool()), (Some(true), Some(false)));
    let tight = object(folder.path(), &args!["doctor", config, "--set", "train.mem_budget=1MiB"]);
    assert_eq!(
        (tight["job"]["fits"].as_bool(), &tight["job"]["limited_by"]),
        (Some(false), &"train.mem_budget".into())
    );
    let advice = tight["job"]["advice"].to_string();
    assert!(advice.contains("train.mem_budget") && advice.contains("kfc teach"), "{advice}");
    // The smallest budget that the doctor names is one that a plan keeps to; what is below is refused.
    let named = advice.split("train.mem_budget = \\\"").nth(1).unwrap();
    let smallest: u64 = named.split("MiB").next().unwrap().parse().unwrap();
    let explained = |mib: u64| {
        let set = format!("train.mem_budget={mib}MiB");
        command().arg("explain").arg(&config).args(["--set", &set]).output().unwrap().status.code()
    };
    // Processes differ by some pages before their first step.
    assert_eq!((explained(smallest + 1), explained(smallest - 2)), (Some(0), Some(2)), "{advice}");
    let text = succeeds(&args!["doctor", config]);
    assert!(text.contains("the job fits: ") && text.contains("features"), "{text}");
}

#[test]
fn a_smaller_batch_is_advised_where_it_helps() {
    let (folder, config) = (Folder::new(), case("llama_plain").join("config.toml"));
    let peak = |batch: usize| {
        let set = format!("train.batch={batch}");
        let e = object(folder.path(), &args!["explain", config, "--set", set]);
        e["predicted_peak_bytes"].as_u64().unwrap()
    };
    let (small, large) = (peak(16), peak(512));
    assert!(small < large);
    let budget = format!("train.mem_budget={}", (small + large) / 2);
    let set = ["train.batch=512", "train.recompute=\"none\"", &budget]
        .map(|s| ["--set".into(), OsString::from(s)])
        .concat();
    let d = object(folder.path(), &[&args!["doctor", config][..], &set].concat());
    assert!(d["job"]["fits"] == false, "{d}");
    assert!(d["job"]["advice"].to_string().contains("train.batch = "), "{d}");
}
