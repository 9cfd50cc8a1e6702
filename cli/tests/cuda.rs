//! Training on a CUDA device, without one: the driver is a stand-in that runs the kernels on the CPU, as late as a device
//! may (kernels/tests/cuda/driver.cc). What it cannot show is said in docs/gpu.md.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::standin::{self, Standin};
use common::{World, command, json, metrics, names, series};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A job with everything that a step may have: LoRA with dropout, a teacher, aligned features, EWC, accumulation.
const JOB: &str = "[model]\npath = 'student'\ndtype = 'f32'\n[lora]\nr = 4\n[distill]\nteacher = 'teacher'\n\
                   general = ['general.jsonl']\n[ewc]\nlambda = 10.0\nmode = 'adapter'\nfisher = 'fisher.safetensors'\n\
                   [data]\ntrain = ['rows.jsonl']\nseq_len = 16\n[train]\nsteps = 6\nbatch = 2\naccumulation = 2\nlr = 0.01\n\
                   warmup_steps = 0\nschedule = 'constant'\nsave_every = 3\n";

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

#[test]
fn a_run_is_that_of_the_cpu() {
    if standin::missing().is_some() {
        return;
    }
    let bench = Bench::new("f32");
    succeeds(&mut bench.train("cpu"));
    succeeds(&mut bench.on_device("gpu", ""));
    for field in ["loss", "ce", "kd", "ewc", "grad_norm", "accuracy"] {
        let (cpu, gpu) = (series(&bench.world.join("cpu"), field), series(&bench.world.join("gpu"), field));
        for (step, (c, g)) in cpu.iter().zip(&gpu).enumerate() {
            assert!((c - g).abs() <= 1e-4 * c.abs().max(1e-2), "{field} of step {}: {c}, {g}", step + 1);
        }
    }
}
