//! `kfc tune --device cuda` on a stand-in for the driver (kernels/tests/cuda/driver.cc) that runs kernels on the CPU. It knows
//! only kernels that it was built with: each test first lets NVRTC compile what is wanted into a cache, which fails to load
//! there, and then builds a stand-in of all that is in the cache.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::standin::{self, Standin};
use common::{World, json};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const JOB: &str = "[model]\npath = 'student'\ndtype = 'f32'\n[lora]\nr = 4\ntargets = ['q_proj']\n[data]\ntrain = ['rows.jsonl']\nseq_len = 16\n\
                   [train]\nsteps = 4\nbatch = 2\nlr = 0.01\nsave_every = 2\nkeep = 9\n\
                   recompute = 'none'\n";

/// What is made again in the backward pass is open then.
const OPEN: [&str; 2] = ["--set", "train.recompute=\"auto\""];

/// A small device: one multiprocessor, 64 MiB of memory.
const SMALL: &str = "processors=1 free=67108864";

/// A job, and a cache of kernels compiled for it.
struct Place {
    world: World,
    job: PathBuf,
}

impl Place {
    /// The job's own kernels are in the cache, in both languages.
    fn new() -> Place {
        let world = World::new();
        let place = Place { job: world.job(JOB), world };
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for (target, folder) in [("cuda:sm_90a", "plan"), ("triton:sm_90", "triton")] {
            let mut c = place.kfc("compile");
            c.arg(&place.job).args(["--target", target, "--emit"]).arg(place.world.join(folder));
            object(c.env("KFC_PYTHON", root.join(".gpu-toolchain/bin/python")));
        }
        place
    }

    fn kfc(&self, name: &str) -> Command {
        let mut c = self.plain(name);
        c.args(["--quiet", "--json"]);
        c
    }

    /// A command that talks to people.
    fn plain(&self, name: &str) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_kfc"));
        c.arg(name).env("XDG_CACHE_HOME", self.world.join("cache")).env_remove("KFC_TUNING");
        // Triton's kernels come from the cache.
        c.env("KFC_NVRTC", standin::nvrtc().unwrap()).env("KFC_PYTHON", "/nowhere");
        c
    }

    /// A driver that knows what is in the cache.
    fn standin(&self) -> Standin {
        let [folder, emitted] = ["standin", "emitted"].map(|n| self.world.join(n));
        let standin = Standin::of_cache(folder, &self.world.join("cache"), &emitted);
        standin.know_instead(&self.world.join("plan"), &self.world.join("triton"), 2);
        standin
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a command that succeeds prints last.
fn object(c: &mut Command) -> Value {
    let output = c.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{c:?}: {}", said(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().last().map_or(Value::Null, |line| serde_json::from_str(line).unwrap())
}

/// Binaries that were loaded since this was asked last.
fn loaded(standin: &Standin) -> BTreeSet<String> {
    let log = standin.log();
    log.iter().filter_map(|l| l.strip_prefix("load ")).map(String::from).collect()
}

/// A job whose tilings are searched for, and a file for what is found.
struct Search {
    place: Place,
    standin: Standin,
    file: PathBuf,
}

impl Search {
    fn command(&self, name: &str, settings: &str) -> Command {
        let mut c = self.place.kfc(name);
        c.arg(&self.place.job).args(["--device", "cuda"]).env("KFC_TUNING", &self.file);
        self.standin.on(&mut c, &format!("{SMALL} simulated=1 {settings}"));
        c
    }

    /// A short search among few tilings.
    fn tune(&self, settings: &str, seconds: &str) -> Command {
        let mut c = self.command("tune", settings);
        c.args(["--seconds", seconds, "--tilings", "3"]);
        c
    }

    /// Runs the job with this tuning.
    fn run(&self, out: &str, tuning: &Path, settings: &str) -> Command {
        let mut c = self.command("train", settings);
        c.arg("--out").arg(self.place.world.join(out)).env("KFC_TUNING", tuning);
        c
    }

    fn adapter(&self, out: &str) -> Vec<u8> {
        std::fs::read(self.place.world.join(out).join("adapter/adapter_model.safetensors")).unwrap()
    }

    /// Runs the job; returns its adapter.
    fn train(&self, out: &str, tuning: &Path) -> Vec<u8> {
        object(&mut self.run(out, tuning, ""));
        self.adapter(out)
    }

    fn kept(&self) -> Value {
        serde_json::from_slice(&std::fs::read(&self.file).unwrap()).unwrap()
    }

    /// All that was tried and is out for this reason: the kernels.
    fn out(&self, why: &str) -> Vec<String> {
        let kept = self.kept();
        let kernels = kept["kernels"].as_object().unwrap().iter();
        let is_out = |t: &Value| t["out"].as_str().is_some_and(|o| o.contains(why));
        kernels
            .flat_map(|(name, p)| {
                p["tried"].as_array().unwrap().iter().filter(|t| is_out(t)).map(|_| name.clone())
            })
            .collect()
    }
}

/// `kfc tune --calibrate`. Returns a driver that knows the kernels of the job and those that rates are measured with.
fn a_device_is_measured_and_a_jobs_kernels_are_timed(place: &Place) -> Standin {
    let calibrate = || {
        let mut c = place.kfc("tune");
        c.args(["--calibrate", "--device", "cuda", "--seconds", "1"]);
        c
    };
    // What the stand-in does not know is told by name.
    let empty = Standin::empty(place.world.join("empty"));
    let output = empty.on(&mut calibrate(), SMALL).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("matmul of f32[") && said(&output).contains("cannot be loaded"),
        "{}",
        said(&output)
    );

    let standin = place.standin();
    let rates = object(standin.on(&mut calibrate(), SMALL));
    assert!(
        ["flops_f32", "flops_16", "bytes_per_s"].iter().all(|r| rates[r].as_f64().unwrap() > 0.0),
        "{rates}"
    );
    let timed = object(standin.on(calibrate().arg(&place.job), SMALL));
    assert!(timed["kernels"].as_u64().unwrap() > 10 && timed["steps"].as_u64().unwrap() >= 7, "{timed}");
    assert!(timed["check"]["median_error"].as_f64().unwrap() < 10.0, "{timed}");
    let explain = |settings: &str| {
        object(standin.on(place.kfc("explain").arg(&place.job).args(["--device", "cuda"]), settings))
    };
    let explained = explain(SMALL);
    assert_eq!(
        (&explained["limits"]["from"], &explained["limits"]["measured"]),
        (&"measured".into(), &true.into())
    );
    assert!(explained["limits"]["flops_16"].as_f64().unwrap() >= rates["flops_16"].as_f64().unwrap());
    let kernels = explained["kernels"].as_array().unwrap();
    assert!(kernels.iter().all(|k| k["source"] == "calibrated" && k["predicted_ms"].as_f64().unwrap() > 0.0));
    // Another device is another one.
    assert_eq!(explain("processors=2")["limits"]["from"], "stated");
    // The times of the CPU are others.
    assert_eq!(object(place.kfc("explain").arg(&place.job))["limits"]["from"], "guessed");
    standin
}

#[test]
fn a_device_is_measured_and_tuned() {
    if standin::missing().is_some() {
        return;
    }
    let place = Place::new();
    let standin = a_device_is_measured_and_a_jobs_kernels_are_timed(&place);
    let file = place.world.join("found.json");
    let mut s = Search { place, standin, file };

    // Kernels that the device does not load are out, one by one.
    object(&mut s.tune("", "15"));
    assert!(!s.out("cannot be loaded").is_empty());
    loaded(&s.standin);

    // Those that it loads take turns; a kernel takes as long as its binary's hash says.
    s.standin = s.place.standin();
    what_a_killed_search_found_leads(&s);
    let report = object(s.tune("", "20").args(OPEN));
    let plan = &report["plan"];
    assert!(plan["tried"].as_array().unwrap().len() > 1 || plan["untimed"].is_string(), "{plan}");
    assert!(
        report["changed"].as_u64().unwrap() > 0 && report["with_choices"].as_u64().unwrap() > 2,
        "{report}"
    );
    assert!(report["tuned_ms"].as_f64().unwrap() < report["built_in_ms"].as_f64().unwrap(), "{report}");
    assert_eq!(Path::new(report["file"].as_str().unwrap()), s.file);
    let tried = loaded(&s.standin);

    // The run uses what was found, with the same bits.
    let off = s.train("off", Path::new("off"));
    let built_in = loaded(&s.standin);
    assert!(s.train("tuned", &s.file) == off);
    let tuned = loaded(&s.standin);
    let untried: Vec<&String> = tuned.difference(&tried).collect();
    assert!(tuned != built_in && untried.is_empty(), "{untried:?} of {tuned:?}: {report}");

    let in_triton = slowest_in_triton(&s.kept());

    // What is explained is what is used, and says so.
    let explained = object(&mut s.command("explain", ""));
    let kernels = explained["kernels"].as_array().unwrap();
    let tilings: Vec<&Value> =
        kernels.iter().filter(|k| !k["choices"].is_null()).map(|k| &k["choices"]).collect();
    assert!(!tilings.is_empty(), "{explained}");
    let with_runners_up =
        |t: &&&Value| t.as_object().unwrap().values().any(|p| p["tried"].as_array().unwrap().len() > 1);
    assert!(tilings.iter().filter(with_runners_up).count() > 0);
    let mut c = s.place.plain("explain");
    c.arg(&s.place.job).args(["--device", "cuda"]).env("KFC_TUNING", &s.file);
    let output = s.standin.on(&mut c, SMALL).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("how kernels are made") && text.contains(" warps, "), "{text}");

    without_python_kernels_are_as_built_in(&s, &off);
    heads_take_fewer_tokens(&s, &off);
    what_is_made_again_is_as_found(&s, &off);

    // Of another kernel in Triton.
    let other = if in_triton.starts_with("linear ") { "attention/2" } else { "linear/2" };
    what_is_not_the_same_is_told_apart(&s, &in_triton, other, &off);
    what_breaks_the_device_is_not_tried_again(&s, other);
}

/// A search that is killed has kept the kernels that it was done with: runs go on as before, and another search goes on from
/// there.
fn what_a_killed_search_found_leads(s: &Search) {
    let before = s.kept();
    let mut child =
        s.tune("", "60").arg("--fresh").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    let leads = |kept: &Value| -> Vec<(String, Value)> {
        let kernels = kept["kernels"].as_object().unwrap().iter();
        let leading = kernels.filter(|(_, k)| k["leads"].is_string() && k["settled"] == true);
        leading.map(|(key, k)| (key.clone(), k.clone())).collect()
    };
    while s.kept() == before || leads(&s.kept()).is_empty() {
        assert!(child.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(100));
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().code(), None);
    let killed = s.kept();
    // What is chosen is shown by the run: it loads what one without a tuning loads.
    loaded(&s.standin);
    let run = |out: &str, tuning: &Path| {
        s.train(out, tuning);
        loaded(&s.standin)
    };
    assert_eq!(run("killed", &s.file), run("never tuned", Path::new("off")));

    object(s.tune("", "8").args(OPEN));
    let after = s.kept();
    for (key, entry) in leads(&killed) {
        // It was not tried again, but compared in whole steps.
        let ns = |e: &Value| {
            e["tried"].as_array().unwrap().iter().map(|t| t["ns"].to_string()).collect::<BTreeSet<_>>()
        };
        let now = &after["kernels"][&key];
        assert_eq!(ns(now), ns(&entry), "{key}: {entry} and then {now}");
        let taken = now["choice"] == entry["leads"] && now["leads"].is_null();
        assert!(taken || !s.out("the whole step is not faster").is_empty(), "{key}: {entry} and then {now}");
    }
}

/// Kernels that were found faster in Triton, and are not in the cache, run in CUDA C++ where there is no Python; the run says
/// so, and its bits are the same.
fn without_python_kernels_are_as_built_in(s: &Search, off: &[u8]) {
    let cache = s.place.world.join("cache without Triton");
    common::copy(&s.place.world.join("cache"), &cache);
    for file in std::fs::read_dir(cache.join("kfc/kernels")).unwrap().map(|e| e.unwrap().path()) {
        let is_triton = |f: &Path| json(f)["key"].as_str().unwrap().starts_with("triton ");
        if file.extension().is_some_and(|e| e == "json") && is_triton(&file) {
            std::fs::remove_file(file).unwrap();
        }
    }
    let mut c = s.place.plain("train");
    c.arg(&s.place.job).args(["--device", "cuda", "--set", "kernels.python=/no/python", "--out"]);
    c.arg(s.place.world.join("no python")).env("KFC_TUNING", &s.file).env("XDG_CACHE_HOME", cache);
    c.env_remove("KFC_PYTHON");
    let output = s.standin.on(&mut c, &format!("{SMALL} simulated=1")).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    for part in
        ["found faster in Triton", "CUDA C++ as built in: /no/python (kernels.python): cannot be started"]
    {
        assert!(said(&output).contains(part), "{part}: {}", said(&output));
    }
    assert!(s.adapter("no python") == off);
}

/// Where logits of all 32 tokens at once take long, those of 16 do in turn: found, shown and run, with the same bits in the same
/// memory. A search goes on where it ended.
fn heads_take_fewer_tokens(s: &Search, off: &[u8]) {
    let binary = std::fs::read(s.place.world.join("plan/kernels/head_logits.cubin")).unwrap();
    let slow = format!("slow={}", standin::hash(&binary));
    let file = s.place.world.join("heads.json");
    let with = |mut c: Command| object(c.env("KFC_TUNING", &file));
    let report = with(s.tune(&slow, "10"));
    let heads = &report["heads"];
    assert_eq!(heads[0]["choice"], "chunk 16", "{report}");
    assert!(heads[0]["tuned_ms"].as_f64().unwrap() < heads[0]["built_in_ms"].as_f64().unwrap(), "{report}");
    let again = with(s.tune(&slow, "3"));
    assert_eq!(
        (&again["heads"][0]["choice"], &again["heads"][0]["tuned_ms"]),
        (&"chunk 16".into(), &Value::Null)
    );

    let explained = with(s.command("explain", &slow));
    let key = heads[0]["key"].as_str().unwrap();
    let kernels = explained["kernels"].as_array().unwrap();
    let shown = kernels.iter().map(|k| &k["choices"][key]).find(|k| !k.is_null()).unwrap();
    assert_eq!(
        (&shown["choice"], shown["tried"].as_array().unwrap().len()),
        (&"chunk 16".into(), 2),
        "{shown}"
    );
    s.standin.log();
    object(&mut s.run("heads", &file, &slow));
    let peak = explained["predicted_peak_bytes"].as_u64().unwrap();
    let log = s.standin.log();
    assert!(log.contains(&format!("allocate {peak}")) && s.adapter("heads") == off);
    assert!(!log.contains(&format!("load {}", standin::hash(&binary))));

    // Some other number of tokens is no choice.
    let mut kept = json(&file);
    kept["kernels"][key]["choice"] = "chunk 24".into();
    std::fs::write(&file, kept.to_string()).unwrap();
    assert!(
        with(s.command("explain", &slow))["kernels"]
            .as_array()
            .unwrap()
            .iter()
            .all(|k| k["choices"].is_null())
    );
}

/// A run makes again what the file says, in the memory that was predicted, with the same bits. The file's entry is one of the
/// CPU: the graph is the same.
fn what_is_made_again_is_as_found(s: &Search, off: &[u8]) {
    let on_cpu = s.place.world.join("cpu.json");
    let mut c = s.place.kfc("tune");
    let report = object(c.arg(&s.place.job).args(OPEN).args(["--seconds", "12"]).env("KFC_TUNING", &on_cpu));
    let tried = report["plan"]["tried"].as_array().unwrap();
    let least = (1..tried.len()).min_by_key(|i| tried[*i]["arena_bytes"].as_u64()).unwrap();
    let mut plans = json(&on_cpu)["plans"].clone();
    plans.as_object_mut().unwrap().values_mut().for_each(|p| p["choice"] = least.into());
    let (before, mut kept) = (s.kept(), s.kept());
    kept["plans"] = plans;
    std::fs::write(&s.file, kept.to_string()).unwrap();

    let explain = |tuning: &Path| object(s.command("explain", "").args(OPEN).env("KFC_TUNING", tuning));
    let (planned, found) = (explain(Path::new("off")), explain(&s.file));
    let peak = |e: &Value| e["predicted_peak_bytes"].as_u64().unwrap();
    assert!(peak(&found) < peak(&planned) && found["plan"]["choice"] == least, "{found}");
    s.standin.log();
    object(s.run("again", &s.file, "").args(OPEN));
    assert!(s.standin.log().contains(&format!("allocate {}", peak(&found))));
    assert!(s.adapter("again") == off);
    std::fs::write(&s.file, before.to_string()).unwrap();
}

/// The key of the slowest kernel that is chosen in Triton: one of those that are tried early.
fn slowest_in_triton(kept: &Value) -> String {
    let kernels = kept["kernels"].as_object().unwrap().iter();
    // Sums for reports alone leave the adapter as it is.
    let reaches_adapter =
        |key: &str| !["head_total", "penalised_norm", "group"].iter().any(|p| key.starts_with(p));
    let chosen = kernels
        .filter(|(key, e)| reaches_adapter(key) && e["choice"].as_str().unwrap().starts_with("Triton"));
    let ns = |e: &Value| e["tried"][0]["ns"].as_f64().unwrap();
    let slowest = chosen.max_by(|a, b| ns(a.1).total_cmp(&ns(b.1)));
    slowest.unwrap_or_else(|| panic!("nothing is chosen in Triton: {kept}")).0.clone()
}

/// A kernel that writes nothing is out. One with other bits within rounding is timed, and used only if that is allowed; then
/// the run says so, and is not resumed with other kernels.
fn what_is_not_the_same_is_told_apart(s: &Search, key: &str, idle: &str, off: &[u8]) {
    let nudged = format!("nudged={}/2", key.split(' ').next().unwrap());
    let report = object(s.tune(&format!("{nudged} idle={idle}"), "15").arg("--fresh"));
    assert!(!s.out("wrong results").is_empty());
    assert!(s.out("--allow-other-bits would let it win").iter().any(|k| k == key), "{key}: {}", s.kept());
    let entry = || s.kept()["kernels"][key].clone();
    assert_eq!((&entry()["other_bits"], &report["other_bits"]), (&false.into(), &0.into()), "{report}");
    let report = object(s.tune(&nudged, "8").arg("--allow-other-bits"));
    assert_eq!((&entry()["other_bits"], report["other_bits"] != 0), (&true.into(), true), "{report}");

    object(&mut s.run("nudged", &s.file, &nudged));
    let adapter = s.adapter("nudged");
    assert!(adapter != off);
    let run = s.place.world.join("nudged");
    for made in ["adapter", "checkpoint-4"] {
        std::fs::remove_dir_all(run.join(made)).unwrap();
    }
    let output = s.run("nudged", Path::new("off"), &nudged).arg("--resume").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    for part in ["--allow-other-bits: ", "was Triton", "is as built in now", "KFC_TUNING"] {
        assert!(said(&output).contains(part), "{part}: {}", said(&output));
    }
    let mut c = s.place.plain("train");
    c.arg(&s.place.job).args(["--device", "cuda", "--resume", "--out"]).arg(&run).env("KFC_TUNING", &s.file);
    let output = s.standin.on(&mut c, &format!("{SMALL} {nudged}")).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("tuned with --allow-other-bits"), "{}", said(&output));
    assert!(s.adapter("nudged") == adapter);

    let explained = object(&mut s.command("explain", ""));
    let kernels = explained["kernels"].as_array().unwrap();
    assert!(kernels.iter().any(|k| k["choices"][key]["other_bits"] == true), "{explained}");
}

/// Kernels of one name break one after the other; each breaks once.
fn what_breaks_the_device_is_not_tried_again(s: &Search, kernel: &str) {
    let settings = format!("faulty={kernel}");
    // What ran when a search was killed counts as broken from then on, also with --fresh.
    let before = s.out("while it ran").len();
    let mut broken = 0;
    loop {
        let mut tune = s.tune(&settings, "10");
        if broken == 0 {
            tune.arg("--fresh");
        }
        let output = tune.output().unwrap();
        if output.status.code() == Some(0) {
            break;
        }
        let message = said(&output);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains("written down"), "{message}");
        assert!(message.contains("illegal memory access"), "{message}");
        broken += 1;
        assert!(broken < 5, "{message}");
    }
    assert!(broken > 0);
    assert_eq!(s.out("while it ran").len(), before + broken);
}
