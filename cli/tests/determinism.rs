//! The same bits for any number of threads, any repetition, and any interruption.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime};

/// Everything that a run leaves and that time does not change: every file of the run by name, `metrics.jsonl` without
/// timings; not the report, the summary and the profile, which have timings in them (the profile only if the last start took
/// a step).
fn outcome(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    gather(run, "", &mut files);
    files.remove("report.html").unwrap();
    files.remove("summary.json").unwrap();
    files.remove("profile.json");
    let mut lines = metrics(run);
    for line in &mut lines {
        let line = line.as_object_mut().unwrap();
        for timing in ["step_ms", "tokens_per_s", "peak_bytes"] {
            line.remove(timing).unwrap();
        }
    }
    files.insert("metrics.jsonl".into(), Value::from(lines).to_string().into_bytes());
    files
}

fn gather(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for name in names(folder) {
        let (path, name) = (folder.join(&name), format!("{prefix}{name}"));
        if path.is_dir() {
            gather(&path, &format!("{name}/"), files);
        } else {
            files.insert(name, std::fs::read(path).unwrap());
        }
    }
}

/// Names the first file that differs.
fn assert_same(what: &str, got: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>) {
    assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    for (name, bytes) in expected {
        assert!(got[name] == *bytes, "{what}: {name} differs");
    }
}

/// Every feature at once: packing, shuffling, dropout, a teacher with general rows and an aligned layer, a penalty.
fn adapter_job(world: &World, dtype: &str, steps: usize, every: usize) -> PathBuf {
    let text = format!(
        "[model]\npath = \"student\"\ndtype = {dtype:?}\n[lora]\nr = 4\nalpha = 8\ndropout = 0.1\n\
         [distill]\nteacher = \"teacher\"\ngeneral = [\"general.jsonl\"]\n\
         [[distill.features]]\nstudent_layer = 1\nteacher_layer = 2\n\
         [ewc]\nlambda = 10\nfisher = \"fisher.safetensors\"\n\
         [data]\ntrain = [\"rows.jsonl\"]\nseq_len = 32\n\
         [train]\nsteps = {steps}\nbatch = 4\naccumulation = 2\nlr = 1e-2\nwarmup_steps = 2\nsave_every = {every}\n"
    );
    let job = world.job(&text);
    if !world.join("fisher.safetensors").exists() {
        succeeds(&args!["fisher", job, "--out", world.join("fisher.safetensors")]);
    }
    job
}

/// Every weight in bf16 beside its f32 master.
fn full_job(world: &World, steps: usize, every: usize) -> PathBuf {
    world.job(&format!(
        "[model]\npath = \"student\"\ndtype = \"bf16\"\n[data]\ntrain = [\"rows.jsonl\"]\nseq_len = 32\n\
         [train]\nsteps = {steps}\nbatch = 2\naccumulation = 1\nlr = 1e-3\nwarmup_steps = 2\nsave_every = {every}\n"
    ))
}

/// Rows streamed from archives, several blocks of them.
fn streamed_job(world: &World, steps: usize, every: usize) -> PathBuf {
    let rows = std::fs::read_to_string(world.join("rows.jsonl")).unwrap();
    let many = rows.repeat((600 << 10) / rows.len());
    std::fs::write(world.join("many.jsonl"), many).unwrap();
    let shards = world.join("{0..3}.tar");
    succeeds(&args!["data", "shard", world.join("many.jsonl"), "--out", shards]);
    world.job(&format!(
        "[model]\npath = \"student\"\n[lora]\nr = 4\n\
         [data]\ntrain = [\"{{0..3}}.tar\"]\nseq_len = 32\nstreaming = \"on\"\n\
         [train]\nsteps = {steps}\nbatch = 16\naccumulation = 2\nlr = 1e-2\nwarmup_steps = 2\nsave_every = {every}\n"
    ))
}

fn runs_of_any_width_are_the_same(world: &World, job: &Path) {
    let run = |threads: &str, name: &str| {
        let run = world.join(name);
        succeeds(&args!["train", job, "--out", run, "--threads", threads]);
        outcome(&run)
    };
    let one = run("1", "one");
    for (threads, name) in [("2", "two"), ("3", "three"), ("7", "seven"), ("1", "again")] {
        assert_same(&format!("{threads} threads"), &run(threads, name), &one);
    }
}

#[test]
fn threads_do_not_matter_in_f32() {
    let world = World::new();
    runs_of_any_width_are_the_same(&world, &adapter_job(&world, "f32", 12, 5));
}

#[test]
fn threads_do_not_matter_in_bf16() {
    let world = World::new();
    runs_of_any_width_are_the_same(&world, &adapter_job(&world, "bf16", 12, 5));
}

#[test]
fn threads_do_not_matter_for_full_fine_tuning() {
    let world = World::new();
    runs_of_any_width_are_the_same(&world, &full_job(&world, 12, 5));
}

/// Wide enough that every kernel is split over threads.
#[test]
fn threads_do_not_matter_for_a_wider_model() {
    let world = World::new();
    let path = world.join("student/config.json");
    let mut config = json(&path);
    for (key, value) in [
        ("hidden_size", 160),
        ("intermediate_size", 416),
        ("num_attention_heads", 5),
        ("num_key_value_heads", 5),
        ("head_dim", 32),
        ("vocab_size", 1031),
    ] {
        config[key] = value.into();
    }
    std::fs::write(&path, config.to_string()).unwrap();
    for lora in ["", "[lora]\nr = 8\n"] {
        let job = world.job(&format!(
            "[model]\npath = \"student\"\ninit = \"random\"\ndtype = \"bf16\"\n{lora}\
             [data]\ntrain = [\"rows.jsonl\"]\nseq_len = 96\n\
             [train]\nsteps = 3\nbatch = 2\naccumulation = 2\nlr = 1e-3\nwarmup_steps = 0\n"
        ));
        runs_of_any_width_are_the_same(&world, &job);
        for run in ["one", "two", "three", "seven", "again"] {
            std::fs::remove_dir_all(world.join(run)).unwrap();
        }
    }
}

/// The Fisher diagonal, teacher caches, logits and merged models too.
#[test]
fn threads_do_not_matter_for_the_other_commands() {
    let world = World::new();
    let job = adapter_job(&world, "f32", 4, 5);
    let run = world.join("run");
    succeeds(&args!["train", job, "--out", run]);
    let tokens = case("llama").join("tokens.safetensors");
    let mut first: Option<BTreeMap<String, Vec<u8>>> = None;
    for threads in ["1", "2", "3"] {
        let out = world.join(threads);
        let more = args!["--threads", threads];
        let with = |arguments: &[std::ffi::OsString]| {
            succeeds(&[arguments, &more[..]].concat());
        };
        with(&args!["fisher", job, "--out", out.join("fisher.safetensors")]);
        with(&args!["teach", job, "--out", out.join("cache")]);
        let (model, adapter) = (world.join("student"), run.join("adapter"));
        with(&args!["merge", "--model", model, "--adapter", adapter, "--out", out.join("merged")]);
        let logits = out.join("logits.safetensors");
        with(&args!["logits", "--model", model, "--adapter", adapter, "--tokens", tokens, "--out", logits]);
        let mut files = BTreeMap::new();
        gather(&out, "", &mut files);
        match &first {
            Some(first) => assert_same(threads, &files, first),
            None => first = Some(files),
        }
    }
}

fn start(job: &Path, run: &Path, resume: bool) -> Child {
    let mut command = command();
    command.arg("train").arg(job).arg("--out").arg(run);
    if resume {
        command.arg("--resume");
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for a run that has to succeed.
fn finish(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A pause drawn anew in every run of the tests; what it was shows in the output of a failure.
fn pause(from: u64, to: u64) -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let pause = Duration::from_millis(from + u64::from(now.subsec_micros()) % (to - from));
    println!("pause {pause:?}");
    pause
}

/// Kills runs at random moments, also while they resume and while they save, and lets the last one finish.
fn kills_leave_no_trace(world: &World, job: &Path) {
    let (whole, killed) = (world.join("whole"), world.join("killed"));
    finish(start(job, &whole, false));
    for _ in 0..6 {
        let mut child = start(job, &killed, killed.join("config.toml").exists());
        std::thread::sleep(pause(20, 300));
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        // Either it was killed, or it was done before; an error is neither.
        assert!(output.status.code().is_none_or(|c| c == 0), "{}", String::from_utf8_lossy(&output.stderr));
    }
    finish(start(job, &killed, killed.join("config.toml").exists()));
    assert_same("killed", &outcome(&killed), &outcome(&whole));
}

#[test]
fn killed_adapter_runs_resume_bit_for_bit() {
    let world = World::new();
    let job = adapter_job(&world, "f32", 120, 7);
    kills_leave_no_trace(&world, &job);
}

#[test]
fn killed_full_runs_resume_bit_for_bit() {
    let world = World::new();
    let job = full_job(&world, 150, 8);
    kills_leave_no_trace(&world, &job);
}

#[test]
fn killed_streamed_runs_resume_bit_for_bit() {
    let world = World::new();
    let job = streamed_job(&world, 120, 7);
    kills_leave_no_trace(&world, &job);
}

#[test]
fn workers_and_threads_do_not_matter_for_streamed_rows() {
    let world = World::new();
    let job = streamed_job(&world, 60, 25);
    let run = |workers: &str, threads: &str| {
        let run = world.join(&format!("run-{workers}-{threads}"));
        let set = |key: &str, value: &str| format!("data.{key}={value}");
        let (workers, prefetch) = (set("workers", workers), set("prefetch", threads));
        succeeds(&args![
            "train",
            job,
            "--out",
            run,
            "--threads",
            threads,
            "--set",
            workers,
            "--set",
            prefetch
        ]);
        let mut files = outcome(&run);
        files.remove("config.toml").unwrap();
        files
    };
    let one = run("1", "1");
    for (workers, threads) in [("8", "2"), ("3", "4")] {
        assert_same(&format!("{workers} workers"), &run(workers, threads), &one);
    }
}

/// An interrupt ends the run after its step, with a checkpoint, and counts as success.
#[cfg(unix)]
#[test]
fn an_interrupted_run_saves_and_resumes_bit_for_bit() {
    let world = World::new();
    let job = adapter_job(&world, "bf16", 500, 50);
    let (whole, stopped) = (world.join("whole"), world.join("stopped"));
    finish(start(&job, &whole, false));
    for signal in ["INT", "TERM"] {
        let child = start(&job, &stopped, stopped.join("config.toml").exists());
        let seen =
            || std::fs::read_to_string(stopped.join("metrics.jsonl")).map_or(0, |text| text.lines().count());
        let before = seen();
        while seen() < before + 20 {
            std::thread::sleep(Duration::from_millis(2));
        }
        let pid = child.id().to_string();
        assert!(
            std::process::Command::new("sh")
                .args(["-c", &format!("kill -{signal} {pid}")])
                .status()
                .unwrap()
                .success()
        );
        let output = child.wait_with_output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{message}");
        assert!(message.contains("stopping after this step"), "{message}");
        let steps = seen();
        assert!(steps < 500, "the run was over before the signal came");
        assert!(
            stopped.join(format!("checkpoint-{steps}/state.safetensors")).exists(),
            "{:?}",
            names(&stopped)
        );
        assert!(!stopped.join("adapter").exists());
    }
    finish(start(&job, &stopped, true));
    assert_same("stopped", &outcome(&stopped), &outcome(&whole));
    // Resuming what is done changes nothing.
    let done = succeeds(&args!["train", job, "--out", stopped, "--resume"]);
    assert!(done.contains("500 of 500") && !done.contains("final loss   0.0000"), "{done}");
    assert_same("resumed when done", &outcome(&stopped), &outcome(&whole));
}
