//! Kernels that a user edited: emitted, changed, refused or used, timed. There is no device: the driver is the stand-in of
//! cli/tests/cuda.rs, which runs what it is given on the CPU.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::standin::{self, Standin};
use common::{World, command, json, names, series};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

const JOB: &str = "[model]\npath = 'student'\ndtype = 'f32'\n[lora]\nr = 4\n[data]\ntrain = ['rows.jsonl']\nseq_len = 16\n\
                   [train]\nsteps = 4\nbatch = 2\nlr = 0.01\nwarmup_steps = 0\nschedule = 'constant'\nsave_every = 2\nkeep = 9\n";

/// The kernel that is edited: one that every step has, without products.
const KERNEL: &str = "rms_norm";

fn said(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn succeeds(command: &mut Command) -> String {
    let (code, stdout, stderr) = said(command);
    assert_eq!(code, Some(0), "{command:?}: {stderr}");
    stdout
}

/// Runs a command that must end with exit code 2 and one line with all `parts`.
fn refused(command: &mut Command, parts: &[&str]) {
    let (code, _, message) = said(command);
    assert_eq!(code, Some(2), "{command:?}: {message}");
    assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

struct Bench {
    world: World,
    job: PathBuf,
}

impl Bench {
    /// A job and its kernels in `plan`.
    fn new(target: &str, job: &str) -> Bench {
        let world = World::new();
        let job = world.job(job);
        let bench = Bench { world, job };
        succeeds(&mut bench.compile(target, "plan", &[]));
        bench
    }

    fn command(&self) -> Command {
        let mut c = command();
        c.env("KFC_NVRTC", standin::nvrtc().unwrap()).env("XDG_CACHE_HOME", self.world.join("cache"));
        c
    }

    fn compile(&self, target: &str, out: &str, edits: &[String]) -> Command {
        let mut c = self.command();
        c.arg("compile").arg(&self.job).args(["--target", target, "--emit"]).arg(self.world.join(out));
        for edit in edits {
            c.args(["--kernel", edit]);
        }
        c
    }

    /// Writes an edited kernel; returns the argument that names it.
    fn edit(&self, file: &str, text: &str) -> String {
        let path = self.world.join(file);
        std::fs::write(&path, text).unwrap();
        format!("{KERNEL}={}", path.display())
    }

    fn emitted(&self, ending: &str) -> String {
        std::fs::read_to_string(self.world.join("plan/kernels").join(KERNEL).with_extension(ending)).unwrap()
    }

    fn train(&self, out: &str, edits: &[&str]) -> Command {
        let mut c = self.command();
        c.arg("train").arg(&self.job).arg("--out").arg(self.world.join(out));
        c.args(["--device", "cuda", "--kernels"]).arg(self.world.join("plan"));
        for edit in edits {
            c.args(["--kernel", edit]);
        }
        c
    }
}

/// The text with its first occurrence of `from` replaced, which must be there.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?} is not in:\n{text}");
    text.replacen(from, to, 1)
}

fn adapter(world: &World, run: &str) -> Vec<u8> {
    std::fs::read(world.join(run).join("adapter/adapter_model.safetensors")).unwrap()
}

/// Statements at the end of the kernel's body.
fn with_end(text: &str, before: &str, end: &str) -> String {
    let at = text.rfind('}').unwrap();
    let kernel = text.find("extern \"C\"").unwrap();
    format!("{}{before}\n{}{end}\n}}\n", &text[..kernel], &text[kernel..at])
}

#[test]
fn edited_kernels_are_compared_and_used() {
    if standin::missing().is_some() {
        return;
    }
    let bench = Bench::new("cuda:sm_90a", JOB);
    let text = bench.emitted("cu");
    let world = &bench.world;
    headers_say_what_is_computed(&text);
    // The loops over registers are not unrolled: another binary, the same arithmetic.
    let right = bench.edit("right.cu", &text.replace("#pragma unroll\n", "#pragma unroll 1\n"));
    let wrong = bench.edit("wrong.cu", &replaced(&text, "1e-5f", "1e-2f"));
    let global = "#ifdef KFC_HOST\nstatic unsigned calls;\n#else\n__device__ unsigned calls;\n#endif\n";
    let first = "blockIdx.x == 0 && threadIdx.x == 0";
    let drifts = format!("    if ({first}) y_ptr[0] *= 1.0f + 1e-7f * (float)(++calls & 7);");
    let drifts = bench.edit("drifts.cu", &with_end(&text, global, &drifts));
    let (_, length) = about(world).into_iter().find(|(name, _)| name == "y").unwrap();
    let beyond = format!("    if ({first}) y_ptr[{length}] = 0.0f;");
    let beyond = bench.edit("beyond.cu", &with_end(&text, "", &beyond));
    let changes = format!("    if ({first}) ((float *)x_ptr)[3] = 7.0f;");
    let changes = bench.edit("changes.cu", &with_end(&text, "", &changes));
    // The stand-in must know their binaries.
    let all = [&right, &wrong, &drifts, &beyond, &changes];
    let emitted = |(i, edit): (usize, &&String)| {
        let out = format!("edited-{i}");
        succeeds(&mut bench.compile("cuda:sm_90a", &out, std::slice::from_ref(edit)));
        world.join(&out).join("kernels").join(KERNEL)
    };
    let files: Vec<PathBuf> = all.iter().enumerate().map(emitted).collect();
    let standin = Standin::with(world.join("standin"), &world.join("plan"), &files);
    let on = |c: &mut Command| {
        standin.on(c, "");
    };
    let train = |out: &str, edits: &[&str]| {
        let mut c = bench.train(out, edits);
        on(&mut c);
        c
    };

    succeeds(&mut train("original", &[]));
    let c = train("right", &[&right]);
    let quiet: Vec<_> = c.get_args().filter(|a| *a != "--quiet").map(ToOwned::to_owned).collect();
    let mut loud = Command::new(c.get_program());
    loud.args(quiet).envs(c.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let (code, _, notes) = said(&mut loud);
    assert_eq!(code, Some(0), "{notes}");
    assert!(
        notes.contains("agrees with the original on all") && notes.contains("twice in all bits"),
        "{notes}"
    );
    assert_eq!(series(&world.join("right"), "loss"), series(&world.join("original"), "loss"));
    assert_eq!(adapter(world, "right"), adapter(world, "original"));
    drop(c);
    // From a folder with an edited kernel in it, which is compared too.
    let mut c = bench.command();
    c.arg("train").arg(&bench.job).arg("--out").arg(world.join("shipped")).args([
        "--device",
        "cuda",
        "--kernels",
    ]);
    c.arg(world.join("edited-0"));
    on(&mut c);
    succeeds(&mut c);
    assert_eq!(adapter(world, "shipped"), adapter(world, "original"));
    let mut c = bench.command();
    c.arg("train").arg(&bench.job).arg("--out").arg(world.join("none")).args([
        "--device",
        "cuda",
        "--kernels",
    ]);
    c.arg(world.join("edited-1"));
    on(&mut c);
    refused(&mut c, &["--kernels", "rms_norm (wrong.cu)", "it does not compute what rms_norm means: y["]);

    refused(
        &mut train("none", &[&wrong]),
        &["wrong.cu", "does not compute", "y[0] is", "instead of", "tolerance"],
    );
    refused(&mut train("none", &[&drifts]), &["drifts.cu", "two runs leave different bits, first in y[0]"]);
    refused(&mut train("none", &[&beyond]), &["beyond.cu", "writes behind the end of a buffer"]);
    refused(&mut train("none", &[&changes]), &["changes.cu", "it changes x[3], which it may only read"]);
    assert!(!world.join("none").exists());
    what_is_no_such_kernel_is_refused(&bench, &text, &train);
    a_run_keeps_its_kernels(&bench, &right, &wrong, &train);
    one_is_timed_alone(&bench, &right, &wrong, &standin);
}

/// Parameters of the kernel: names and numbers of elements.
fn about(world: &World) -> Vec<(String, u64)> {
    let about = json(&world.join("plan/kernels").join(KERNEL).with_extension("json"));
    let parameter = |p: &Value| (p["name"].as_str().unwrap().to_string(), p["elements"].as_u64().unwrap());
    about["parameters"].as_array().unwrap().iter().map(parameter).collect()
}

fn headers_say_what_is_computed(text: &str) {
    let header: Vec<&str> = text.lines().take_while(|l| l.starts_with("//")).collect();
    let header = header.join("\n");
    for part in [
        "// rms_norm: ",
        "rms_norm {eps=1e-5}",
        "x_ptr",
        "operand 0: f32[",
        "result 0: f32[",
        "// kfc: kernel=rms_norm grid=",
        "threads=",
        "shared=0",
        "kfc bench --job job.toml --device cuda --kernel rms_norm=kernels/rms_norm.cu",
        "kfc train job.toml --device cuda --kernel rms_norm=kernels/rms_norm.cu",
    ] {
        assert!(header.contains(part), "{part:?} is not in:\n{header}");
    }
}

fn what_is_no_such_kernel_is_refused(bench: &Bench, text: &str, train: &dyn Fn(&str, &[&str]) -> Command) {
    let edit = |file: &str, text: &str| bench.edit(file, text);
    let fewer = text.find("__launch_bounds__").map(|at| {
        let list = at + text[at..].find("rms_norm(").unwrap() + "rms_norm(".len();
        let comma = list + text[list..].find(',').unwrap();
        format!("{}{}", &text[..list], &text[comma + 1..])
    });
    let fewer = edit("fewer.cu", &fewer.unwrap());
    refused(&mut train("none", &[&fewer]), &["fewer.cu", "parameters, its launch gives"]);
    let renamed = edit("renamed.cu", &text.replace("rms_norm(", "my_norm("));
    refused(&mut train("none", &[&renamed]), &["it has no kernel rms_norm: keep the function's name"]);
    let broken = edit("broken.cu", &with_end(text, "", "    nonsense;"));
    refused(&mut train("none", &[&broken]), &["broken.cu", "does not compile for sm_90a", "nonsense"]);
    let spills = "    float many[512]; for (int i = 0; i < 512; ++i) many[i] = x_ptr[i % 7] * i;\n\
                  \x20   for (int i = 0; i < 512; ++i) y_ptr[0] += many[(i * 37 + (int)many[i]) % 512];";
    let other = edit("other.cu", &text.replace("kernel=rms_norm", "kernel=adamw"));
    refused(&mut train("none", &[&other]), &["it is the kernel adamw"]);
    let settings = edit("settings.cu", &text.replace("threads=", "treads="));
    refused(&mut train("none", &[&settings]), &["the word `treads="]);
    refused(&mut train("none", &["rms_nrom=a.cu"]), &["the plan has no kernel of this name", "rms_norm"]);
    refused(&mut train("none", &["rms_norm=/nowhere/a.cu"]), &["/nowhere/a.cu"]);
    let (code, _, message) = said(&mut train("none", &["rms_norm=a.txt"]));
    assert!(code == Some(2) && message.contains("must end in .cu (CUDA C++) or .py (Triton)"), "{message}");
    let twice = edit("twice.cu", text);
    refused(&mut train("none", &[&twice, &twice]), &["there is --kernel rms_norm=", "already"]);
    let spills = edit("spills.cu", &with_end(text, "", spills));
    refused(&mut train("none", &[&spills]), &["spills.cu", "bytes of registers and arrays in memory"]);
    let mut cpu = bench.command();
    cpu.arg("train").arg(&bench.job).args(["--kernel", &twice]);
    let (code, _, message) = said(&mut cpu);
    assert!(
        code == Some(2) && message.contains("--kernel NAME=FILE is for GPUs: use --device cuda"),
        "{message}"
    );
}

/// A run that goes on takes the kernels that it began with, and no others.
fn a_run_keeps_its_kernels(
    bench: &Bench,
    right: &str,
    wrong: &str,
    train: &dyn Fn(&str, &[&str]) -> Command,
) {
    let run = bench.world.join("right");
    assert_eq!(names(&run.join("kernels")), ["rms_norm.cu"]);
    std::fs::remove_dir_all(run.join("adapter")).unwrap();
    std::fs::remove_dir_all(run.join("checkpoint-4")).unwrap();
    refused(train("right", &[wrong]).arg("--resume"), &["this run was begun with", "rms_norm.cu"]);
    refused(train("original", &[right]).arg("--resume"), &["this run was begun without it"]);
    // Its own file is used, not the one that it came from.
    std::fs::remove_file(bench.world.join("right.cu")).unwrap();
    succeeds(train("right", &[]).arg("--resume"));
    assert_eq!(adapter(&bench.world, "right"), adapter(&bench.world, "original"));
    std::fs::copy(run.join("kernels/rms_norm.cu"), bench.world.join("right.cu")).unwrap();
}

/// Every kernel of the step, roughly.
fn each_is_timed_alone(kernels: &[&str], command: &(dyn Fn(&str) -> Command + Sync)) {
    let one = |kernel: &&str| {
        let timed: Value = serde_json::from_str(&succeeds(&mut command(kernel))).unwrap();
        let number = |at: &str| timed.pointer(at).and_then(Value::as_f64).unwrap_or(f64::NAN);
        let ordered = ["low", "value", "high"].map(|k| number(&format!("/built_in/time_us/{k}")));
        assert!(0.0 < ordered[0] && ordered.is_sorted(), "{timed}");
        let positive = ["/built_in/median_us", "/built_in/runs", "/limit_us", "/bytes", "/copy_bytes_per_s"];
        assert!(positive.iter().all(|at| number(at) > 0.0), "{timed}");
        assert!(number("/built_in/of_limit") > 0.0 && timed["kernel"] == **kernel, "{timed}");
        assert!(timed["edited"].is_null() && timed["built_in"]["change"].is_null(), "{timed}");
    };
    std::thread::scope(|s| {
        let chunks = kernels.chunks(kernels.len().div_ceil(2));
        chunks.for_each(|some| _ = s.spawn(move || some.iter().for_each(one)));
    });
}

fn one_is_timed_alone(bench: &Bench, right: &str, wrong: &str, standin: &Standin) {
    let run = |arguments: &[&str], folder: &Path| {
        let mut c = bench.command();
        c.current_dir(folder).args(["bench", "--job", "job.toml", "--device", "cuda"]).args(arguments);
        standin.on(&mut c, "");
        c
    };
    let plan = bench.world.join("plan");
    let list: Value = serde_json::from_str(&succeeds(&mut run(&["--list", "--json"], &plan))).unwrap();
    let kernels: Vec<&str> =
        list["kernels"].as_array().unwrap().iter().map(|k| k["kernel"].as_str().unwrap()).collect();
    let emitted: Vec<String> = names(&plan.join("kernels"));
    assert_eq!(kernels.len(), emitted.iter().filter(|n| n.ends_with(".cu")).count(), "{kernels:?}");
    assert!(kernels.iter().all(|k| emitted.contains(&format!("{k}.cu"))), "{kernels:?}");
    each_is_timed_alone(&kernels, &|kernel| {
        let mut c = run(&["--kernel", kernel, "--json", "--seconds", "0.02"], &plan);
        standin.on(&mut c, "total=67108864");
        c
    });
    let timed: Value =
        serde_json::from_str(&succeeds(&mut run(&["--kernel", right, "--json"], &plan))).unwrap();
    let us = |v: &Value| v["median_us"].as_f64().unwrap();
    assert!(
        us(&timed["built_in"]) > 0.0 && us(&timed["edited"]) > 0.0 && timed["limit_us"].as_f64() > Some(0.0)
    );
    assert_eq!(timed["device"], "Stand-in");
    let bytes: u64 = about(&bench.world).iter().map(|(_, n)| 4 * n).sum();
    assert_eq!((timed["bytes"].as_u64(), timed["flops"].as_u64()), (Some(bytes), Some(0)), "{timed}");
    // Each sample of the edited one has one of kfc's own beside it.
    assert!(timed["edited"]["speedup"].as_f64().unwrap() > 0.0, "{timed}");
    assert!(timed["edited"]["time_us"]["low"].as_f64() <= timed["edited"]["time_us"]["high"].as_f64());
    // The command of an emitted file's header, word for word.
    let text = bench.emitted("cu");
    let line = text.lines().find_map(|l| l.split_once("kfc bench ")).expect("a command").1;
    let mut c = bench.command();
    c.current_dir(&plan).arg("bench").args(line.split_whitespace());
    let table = succeeds(standin.on(&mut c, ""));
    for part in
        ["built-in", "edited", "median", "of limit", "rms_norm {eps", "copied on this device just now"]
    {
        assert!(table.contains(part), "{part:?} is not in:\n{table}");
    }
    refused(&mut run(&["--kernel", wrong], &plan), &["wrong.cu", "does not compute what rms_norm means"]);
    refused(&mut run(&["--kernel", "rms_nrm"], &plan), &["no kernel of this name"]);
    let mut cpu = bench.command();
    cpu.args(["bench", "tiny", "--kernel", right]);
    let (code, _, message) = said(&mut cpu);
    assert!(code == Some(2) && message.contains("is for GPUs: use --device cuda"), "{message}");
}

/// Without a device: Triton's interpreter, which must not compute with the bits of bf16.
#[test]
fn triton_kernels_are_compared_without_a_device() {
    if standin::missing().is_some() {
        return;
    }
    let world = World::new();
    let job = world.job(&JOB.replace("f32", "bf16"));
    let bench = Bench { world, job };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let python = root.join(".gpu-toolchain/bin/python");
    let compile = |out: &str, edits: &[String]| {
        let mut c = bench.compile("triton:sm_90", out, edits);
        c.arg("--python").arg(&python);
        c
    };
    succeeds(&mut compile("plan", &[]));
    let text = bench.emitted("py");
    let line = text.lines().find(|l| l.starts_with("# kfc: ")).unwrap();
    assert!(line.contains("kernel=rms_norm grid=") && line.ends_with("num_stages=3"), "{line}");
    // Other warps, and a factor on the other side.
    let warps = line.split_whitespace().find(|w| w.starts_with("num_warps=")).unwrap();
    let other = if warps == "num_warps=2" { "num_warps=4" } else { "num_warps=2" };
    let right = bench.edit("right.py", &replaced(&text, warps, other));
    let summary = succeeds(compile("right", std::slice::from_ref(&right)).arg("--json"));
    let summary: Value = serde_json::from_str(&summary).unwrap();
    let check = summary["edited"][0]["check"].as_str().unwrap();
    assert!(check.contains("agrees with the original on Triton's interpreter"), "{check}");
    let about = json(&bench.world.join("right/kernels/rms_norm.json"));
    assert_eq!(
        (about["edited"].as_str(), about["warps"].as_u64()),
        (Some("right.py"), Some(if other.ends_with('2') { 2 } else { 4 }))
    );
    let original = json(&bench.world.join("plan/kernels/rms_norm.json"));
    assert_eq!(about["source_hash"], original["source_hash"]);
    let wrong = bench.edit("wrong.py", &replaced(&text, "full([], 1e-5", "full([], 1e-2"));
    refused(&mut compile("wrong", &[wrong]), &["wrong.py", "does not compute what rms_norm means: "]);
    let fewer = bench.edit("fewer.py", &replaced(&text, "def rms_norm(x_ptr, ", "def rms_norm("));
    refused(&mut compile("fewer", &[fewer]), &["fewer.py", "parameters, its launch gives"]);
    let nonsense = bench.edit("nonsense.py", &text.replace("tl.load", "tl.laod"));
    refused(&mut compile("nonsense", &[nonsense]), &["nonsense.py", "laod"]);
    let cuda = bench.edit("kernel.cu", "");
    refused(&mut compile("cuda", &[cuda]), &["kernel.cu"]);
}
