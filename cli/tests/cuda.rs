//! Training on a CUDA device, without one: the driver is a stand-in that runs the kernels on the CPU, as late as a device
//! may (kernels/tests/cuda/driver.cc). What it cannot show is said in docs/gpu.md.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::standin::{self, Standin};
use common::{World, command, json, names, series};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A job with everything that a step may have: LoRA with dropout, a teacher, aligned features, EWC, accumulation, tables that
/// stay in their files.
const JOB: &str = "[model]\npath = 'student'\ndtype = 'f32'\n[lora]\nr = 4\n[distill]\nteacher = 'teacher'\n\
                   general = ['general.jsonl']\n[ewc]\nlambda = 10.0\nmode = 'adapter'\nfisher = 'fisher.safetensors'\n\
                   [data]\ntrain = ['rows.jsonl']\nseq_len = 16\n[train]\nsteps = 6\nbatch = 2\naccumulation = 2\nlr = 0.01\n\
                   warmup_steps = 0\nschedule = 'constant'\nsave_every = 3\nembeddings = 'file'\n";

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{command:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must fail with `code` and one line of message.
fn fails(command: &mut Command, code: i32, parts: &[&str]) {
    let output = command.output().unwrap();
    let message = text(&output);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {message}");
    assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

/// A job, its kernels in `plan`, and a driver that runs them.
struct Bench {
    world: World,
    job: PathBuf,
    standin: Standin,
}

impl Bench {
    fn new(dtype: &str) -> Bench {
        let world = World::new();
        let job = world.job(&JOB.replace("f32", dtype));
        succeeds(command().arg("fisher").arg(&job).arg("--out").arg(world.join("fisher.safetensors")));
        compile(&world, &job, "cuda:sm_90a", "plan");
        let standin = Standin::new(world.join("standin"), &world.join("plan"));
        Bench { world, job, standin }
    }

    fn train(&self, out: &str) -> Command {
        let mut c = command();
        c.arg("train").arg(&self.job).arg("--out").arg(self.world.join(out));
        c.env("XDG_CACHE_HOME", self.world.join("cache")).env_remove("KFC_NVRTC");
        c
    }

    /// On the device, with the kernels of `plan`.
    fn on_device(&self, out: &str, settings: &str) -> Command {
        let mut c = self.train(out);
        c.args(["--device", "cuda", "--kernels"]).arg(self.world.join("plan"));
        self.standin.on(&mut c, settings);
        c
    }
}

fn compile(world: &World, job: &Path, target: &str, out: &str) {
    let mut c = command();
    c.arg("compile").arg(job).args(["--target", target, "--emit"]).arg(world.join(out));
    c.env("KFC_NVRTC", standin::nvrtc().unwrap()).env("XDG_CACHE_HOME", world.join("cache"));
    succeeds(&mut c);
}

fn adapter(world: &World, run: &str) -> Vec<u8> {
    std::fs::read(world.join(run).join("adapter/adapter_model.safetensors")).unwrap()
}

/// Two series agree within `tolerance`, relative to the larger of the expected value and `floor`.
fn assert_series(bench: &Bench, field: &str, tolerance: f64, floor: f64) {
    let (cpu, gpu) = (series(&bench.world.join("cpu"), field), series(&bench.world.join("gpu"), field));
    assert_eq!(cpu.len(), gpu.len());
    for (step, (c, g)) in cpu.iter().zip(&gpu).enumerate() {
        assert!((c - g).abs() <= tolerance * c.abs().max(floor), "{field} of step {}: {c}, {g}", step + 1);
    }
}

#[test]
fn a_run_is_that_of_the_cpu() {
    if standin::missing().is_some() {
        return;
    }
    let bench = Bench::new("f32");
    succeeds(&mut bench.train("cpu"));
    let said = succeeds(bench.on_device("gpu", "").arg("--json"));
    for field in ["loss", "ce", "kd", "ewc", "grad_norm", "accuracy"] {
        assert_series(&bench, field, 1e-4, 1e-2);
    }
    memory_is_what_was_predicted(&bench, &said);
    a_budget_is_kept(&bench, &said);
    bits_are_the_same_each_time(&bench);
    a_stopped_run_goes_on(&bench);
    faults_name_kernel_and_step(&bench);
    a_device_that_does_not_do_is_refused(&bench);
    kernels_of_another_job_are_refused(&bench);
    compiled_kernels_are_kept(&bench);
    a_run_is_explained(&bench);
    a_job_is_explained_as_it_will_run(&bench, &said);
}

/// One allocation, of the size that was predicted; everything is given back; the plans run as graphs after their first runs.
fn memory_is_what_was_predicted(bench: &Bench, said: &str) {
    let log = bench.standin.log();
    let allocated: Vec<&String> = log.iter().filter(|l| l.starts_with("allocate")).collect();
    let summary: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(allocated, [&format!("allocate {}", summary["predicted_peak_bytes"])], "{summary}");
    assert_eq!(summary["peak_bytes"], summary["predicted_peak_bytes"]);
    assert_eq!(log.last().unwrap(), "left 0 0 0");
    // Three runs of each plan are timed launch by launch, and three more when times are reset after two steps; the others are
    // graphs. Six steps are 4 + 8 runs of the one and 2 + 4 of the other.
    assert_eq!(log.iter().filter(|l| l.starts_with("graph")).count(), (4 - 3) + (8 - 3) + (4 - 3));
}

/// The budget is that of the device: what was predicted is enough, a byte less is not.
fn a_budget_is_kept(bench: &Bench, said: &str) {
    let summary: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let bytes = summary["predicted_peak_bytes"].as_u64().unwrap();
    let budget = |bytes: u64| format!("train.mem_budget=\"{bytes}B\"");
    let off = "train.recompute=\"none\"";
    succeeds(bench.on_device("enough", "").args(["--set", off, "--set", &budget(bytes)]));
    let small = &["train.mem_budget", "too small", "the smallest that this job runs in"];
    fails(bench.on_device("small", "").args(["--set", off, "--set", &budget(bytes - 1)]), 2, small);
}

/// Warps in the other order, and everything again: not a bit is different.
fn bits_are_the_same_each_time(bench: &Bench) {
    succeeds(&mut bench.on_device("again", "order=1"));
    assert_eq!(adapter(&bench.world, "again"), adapter(&bench.world, "gpu"));
    assert_eq!(series(&bench.world.join("again"), "loss"), series(&bench.world.join("gpu"), "loss"));
}

fn a_stopped_run_goes_on(bench: &Bench) {
    succeeds(bench.on_device("halves", "").args(["--set", "train.keep=9"]));
    let run = bench.world.join("halves");
    std::fs::remove_dir_all(run.join("adapter")).unwrap();
    std::fs::remove_dir_all(run.join("checkpoint-6")).unwrap();
    succeeds(bench.on_device("halves", "").args(["--set", "train.keep=9", "--resume"]));
    assert_eq!(adapter(&bench.world, "halves"), adapter(&bench.world, "gpu"));
    assert_eq!(series(&run, "loss"), series(&bench.world.join("gpu"), "loss"));
}

fn faults_name_kernel_and_step(bench: &Bench) {
    // In the first run of the plan, one launch at a time.
    let entry = &json(&bench.world.join("plan/kernels/adamw.json"))["function"];
    let entry = entry.as_str().unwrap();
    fails(
        &mut bench.on_device("fault", &format!("fault={entry}:1")),
        1,
        &["kernel adamw", "in step 1", "illegal memory"],
    );
    // Later all run at once: only the plan is known, unless each is waited for.
    let kernels = bench.world.join("plan/kernels");
    let all = names(&kernels).into_iter().filter(|n| n.ends_with(".json")).map(|n| json(&kernels.join(n)));
    let launches: u64 = all.filter(|k| k["function"] == entry).map(|k| k["launches"].as_u64().unwrap()).sum();
    let late = format!("fault={entry}:{}", 5 * launches + 1);
    fails(&mut bench.on_device("late", &late), 1, &["plan `update`", "in step 6", "KFC_CUDA_SYNC=1"]);
    fails(bench.on_device("sync", &late).env("KFC_CUDA_SYNC", "1"), 1, &["kernel adamw", "in step 6"]);
}

fn a_device_that_does_not_do_is_refused(bench: &Bench) {
    let on = |settings: &str, code: i32, parts: &[&str]| {
        fails(&mut bench.on_device("none", settings), code, parts);
        assert!(!bench.world.join("none").exists());
    };
    on("free=100000", 1, &["out of memory on cuda:0", "the plan needs", "0 MiB of 4096 MiB are free"]);
    on("alloc=2", 1, &["out of memory on cuda:0", "of 4096 MiB are free"]);
    on("capability=80", 2, &["its kernels are for cuda:sm_90a, the device needs cuda:sm_80 or triton:sm_80"]);
    on("capability=75", 1, &["compute capability 7.5", "8.x, 9.0 and 10.0"]);
    on("parameters=1", 1, &["its binary takes", "its launch gives"]);
    let cubin = bench.world.join("plan/kernels/adamw.cubin");
    let kept = std::fs::read(&cubin).unwrap();
    std::fs::write(&cubin, "no binary").unwrap();
    on("", 1, &["kernel adamw", "cannot be loaded", "image is invalid"]);
    std::fs::write(&cubin, kept).unwrap();
    let about = cubin.with_extension("json");
    let kept = std::fs::read_to_string(&about).unwrap();
    let larger = kept.replace("\"dynamic_shared_bytes\": 0", "\"dynamic_shared_bytes\": 150000");
    assert_ne!(larger, kept);
    std::fs::write(&about, larger).unwrap();
    on("shared=101376", 1, &["kernel adamw: it needs 150000 bytes of shared memory", "use another device"]);
    std::fs::write(&about, kept).unwrap();
}

fn kernels_of_another_job_are_refused(bench: &Bench) {
    let other = ["--set", "data.seq_len=32"];
    fails(bench.on_device("other", "").args(other), 2, &["there is no kernel", "compile this job again"]);
    let mut nowhere = bench.train("other");
    nowhere.args(["--device", "cuda", "--kernels", "/nowhere"]);
    fails(
        bench.standin.on(&mut nowhere, ""),
        2,
        &["--kernels /nowhere", "kfc compile JOB.toml --target cuda:sm_90a"],
    );
}

/// Without `--kernels` NVRTC compiles them, once. It does not give the same bytes each time (docs/gpu.md): the device that
/// runs them is made for what is in the cache.
fn compiled_kernels_are_kept(bench: &Bench) {
    let cache = bench.world.join("fresh");
    let run = |out: &str, nvrtc: &Path, device: &Standin| {
        let mut c = bench.train(out);
        c.args(["--device", "cuda:0"]).env("KFC_NVRTC", nvrtc).env("XDG_CACHE_HOME", &cache);
        device.on(&mut c, "");
        c
    };
    let nowhere = Path::new("/nowhere");
    fails(&mut run("made", nowhere, &bench.standin), 2, &["NVRTC", "pip install"]);
    let knows_none = Standin::empty(bench.world.join("knows-none"));
    let nvrtc = standin::nvrtc().unwrap();
    let refused = run("made", &nvrtc, &knows_none).output().unwrap();
    assert!(
        refused.status.code() == Some(1) && text(&refused).contains("cannot be loaded"),
        "{}",
        text(&refused)
    );
    let device = Standin::of_cache(bench.world.join("cached"), &cache, &bench.world.join("sources"));
    succeeds(&mut run("kept", nowhere, &device));
    assert_eq!(adapter(&bench.world, "kept"), adapter(&bench.world, "gpu"));
    // A damaged one is not used.
    let kernels = cache.join("kfc/kernels");
    let cubin = names(&kernels).into_iter().find(|n| n.ends_with(".cubin")).unwrap();
    std::fs::write(kernels.join(cubin), "no binary").unwrap();
    fails(&mut run("damaged", nowhere, &device), 2, &["NVRTC"]);
}

fn a_run_is_explained(bench: &Bench) {
    let said = succeeds(command().arg("explain").arg(bench.world.join("gpu")).arg("--json"));
    let all: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    assert_eq!(all["machine"]["cpu"], "Stand-in", "{all}");
    assert_eq!(all["machine"]["isa"], "sm_90a");
    let profile = json(&bench.world.join("gpu/profile.json"));
    let launches =
        profile["plans"].as_array().unwrap().iter().flat_map(|p| p["launches"].as_array().unwrap());
    assert!(launches.clone().all(|l| l[4].as_u64().unwrap() > 0), "{profile}");
}

/// What is predicted without running is what the run allocated; limits are those of the device's clocks.
fn a_job_is_explained_as_it_will_run(bench: &Bench, said: &str) {
    let summary: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let explain = |settings: &str, command: &str| -> serde_json::Value {
        let mut c = common::command();
        c.arg(command).arg(&bench.job).args(["--device", "cuda", "--json"]);
        c.env("XDG_CACHE_HOME", bench.world.join("cache"));
        serde_json::from_str(&succeeds(bench.standin.on(&mut c, settings))).unwrap()
    };
    let job = explain("", "explain");
    assert_eq!(job["predicted_peak_bytes"], summary["predicted_peak_bytes"]);
    assert_eq!((&job["machine"]["cpu"], &job["machine"]["isa"]), (&"Stand-in".into(), &"sm_90a".into()));
    assert_eq!(job["limits"]["from"], "stated");
    assert_eq!(job["limits"]["flops_16"].as_f64().unwrap(), 2.0 * 2048.0 * 132.0 * 1.98e9);
    assert_eq!(job["limits"]["bytes_per_s"].as_f64().unwrap(), 2.619e9 * 2.0 * 640.0);
    assert_eq!(explain("clock=0", "explain")["limits"]["from"], "guessed");
    let run = succeeds(common::command().arg("explain").arg(bench.world.join("gpu")).arg("--json"));
    let run: serde_json::Value = serde_json::from_str(&run).unwrap();
    assert_eq!(run["limits"], job["limits"]);
    assert!(run["kernels"].as_array().unwrap().len() == job["kernels"].as_array().unwrap().len());

    let fits = &explain("", "doctor")["job"];
    assert_eq!((&fits["fits"], fits["limit_bytes"].as_u64().unwrap()), (&true.into(), 1 << 32), "{fits}");
    assert_eq!(fits["predicted_peak_bytes"], summary["predicted_peak_bytes"]);
    let small = &explain("free=100000", "doctor")["job"];
    assert_eq!((&small["fits"], &small["limited_by"]), (&false.into(), &"the device's free memory".into()));

    let mut wrong = common::command();
    wrong.arg("explain").arg(bench.world.join("gpu")).args(["--device", "cuda"]);
    fails(&mut wrong, 2, &["a run is explained where it ran"]);
    fails(common::command().args(["doctor", "--device", "cuda"]), 2, &["name its CONFIG.toml"]);
}

#[test]
fn bf16_and_kernels_of_triton() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    if standin::missing().is_some() {
        return;
    }
    let bench = Bench::new("bf16");
    succeeds(&mut bench.train("cpu"));
    succeeds(&mut bench.on_device("gpu", ""));
    for field in ["loss", "ce", "kd"] {
        assert_series(&bench, field, 2e-2, 1e-2);
    }
    // Triton's binaries have other launches and two more parameters; the stand-in computes the same for them.
    let python = root.join(".gpu-toolchain/bin/python");
    let mut c = command();
    c.arg("compile")
        .arg(&bench.job)
        .args(["--target", "triton:sm_90", "--emit"])
        .arg(bench.world.join("triton"));
    succeeds(c.arg("--python").arg(python).env("XDG_CACHE_HOME", bench.world.join("cache")));
    let sources = names(&bench.world.join("plan/kernels"));
    let kernels: Vec<String> =
        sources.iter().filter_map(|n| n.strip_suffix(".cu").map(String::from)).collect();
    bench.standin.know(&bench.world.join("triton"), &kernels, 2);
    let mut c = bench.train("through-triton");
    c.args(["--device", "cuda", "--kernels"]).arg(bench.world.join("triton"));
    succeeds(bench.standin.on(&mut c, ""));
    assert_eq!(adapter(&bench.world, "through-triton"), adapter(&bench.world, "gpu"));
}

#[test]
fn without_a_usable_driver_it_says_so() {
    let world = World::new();
    let job =
        world.job("[model]\npath = 'student'\n[lora]\n[data]\ntrain = ['rows.jsonl']\n[train]\nsteps = 1\n");
    let train = |device: &str| {
        let mut c = command();
        c.arg("train").arg(&job).arg("--out").arg(world.join("run")).args(["--device", device]);
        c
    };
    if kfc_runtime::device::cuda::start().is_err() {
        fails(&mut train("cuda"), 1, &["no NVIDIA driver", "580", "--device cpu"]);
    }
    if standin::missing().is_some() {
        return;
    }
    let standin = Standin::empty(world.join("standin"));
    let on = |device: &str, settings: &str, code: i32, parts: &[&str]| {
        fails(standin.on(&mut train(device), settings), code, parts);
    };
    on("cuda", "version=12040", 1, &["supports CUDA 12.4", "13.0", "driver 580"]);
    on("cuda", "devices=0", 2, &["no device cuda:0: there is none"]);
    on("cuda:3", "devices=2", 2, &["no device cuda:3: there are cuda:0 to cuda:1"]);
    on("cuda", "init=999", 1, &["does not start", "error 999"]);
    assert!(!world.join("run").exists());
    let said = succeeds(standin.on(command().args(["doctor", "--json"]), "devices=2"));
    let gpu = &serde_json::from_str::<serde_json::Value>(&said).unwrap()["gpu"];
    assert_eq!((&gpu["usable"], gpu["cuda"].as_array().unwrap().len()), (&true.into(), 2), "{gpu}");
}
