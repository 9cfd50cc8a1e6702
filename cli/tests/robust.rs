//! Wrong input, full disks, damaged files and numbers out of range: one clear error, and nothing half-written.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use safetensors::tensor::Dtype;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

const WEIGHT: &str = "model.layers.0.mlp.up_proj.weight";

/// A copy of a parity case whose files a test may spoil.
struct Copy {
    folder: Folder,
}

impl Copy {
    fn of(name: &str) -> Copy {
        let folder = Folder::new();
        copy(&case(name), &folder.join("case"));
        Copy { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join("case").join(name)
    }

    fn out(&self) -> PathBuf {
        self.folder.join("out")
    }

    fn arguments(&self, sets: &[&str]) -> Vec<OsString> {
        let mut arguments = args!["train", self.path("config.toml"), "--out", self.out()].to_vec();
        for set in sets {
            arguments.extend(args!["--set", set]);
        }
        arguments
    }

    /// Training must be refused, and leave nothing.
    fn refuses(&self, sets: &[&str], parts: &[&str]) {
        self.refuses_to(&self.arguments(sets), parts);
    }

    /// A command must be refused, and leave nothing.
    fn refuses_to(&self, arguments: &[OsString], parts: &[&str]) {
        fails(2, arguments, parts);
        assert_eq!(self.folder.names(), ["case"], "something was left");
    }

    fn trains(&self, sets: &[&str]) -> PathBuf {
        let _ = std::fs::remove_dir_all(self.out());
        succeeds(&self.arguments(sets));
        self.out()
    }
}

#[test]
fn missing_and_truncated_shards() {
    let c = Copy::of("gqa_llama3_rslora");
    let shard = c.path("teacher/model-00002-of-00003.safetensors");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::remove_file(&shard).unwrap();
    c.refuses(&[], &["model-00002-of-00003.safetensors", "missing", "model.safetensors.index.json"]);
    for keep in [bytes.len() - 1, 3000, 9, 0] {
        std::fs::write(&shard, &bytes[..keep]).unwrap();
        c.refuses(&[], &["model-00002-of-00003.safetensors"]);
    }
    std::fs::write(&shard, &bytes).unwrap();
    c.trains(&["train.steps=1"]);
}

#[test]
fn weights_of_a_wrong_type_or_shape() {
    let c = Copy::of("llama");
    let file = c.path("student/model.safetensors");
    let good = std::fs::read(&file).unwrap();
    edit(&file, WEIGHT, |t| t.1 = Dtype::I32);
    c.refuses(&[], &["student/model.safetensors", WEIGHT, "I32", "BF16"]);
    std::fs::write(&file, &good).unwrap();
    edit(&file, WEIGHT, |t| t.2.reverse());
    c.refuses(&[], &["student/model.safetensors", WEIGHT, "[32, 48]", "[48, 32]"]);
    std::fs::write(&file, &good).unwrap();
    edit(&file, WEIGHT, |t| t.0 = "model.other".into());
    c.refuses(&[], &["student", WEIGHT]);
}

/// Every command names the tensor and its file, and writes nothing.
#[test]
fn weights_that_are_not_numbers() {
    let c = Copy::of("llama");
    let file = c.path("student/model.safetensors");
    let (config, out, model) = (c.path("config.toml"), c.out(), c.path("student"));
    for value in [f32::NAN, f32::INFINITY] {
        edit(&file, WEIGHT, |t| t.3[40..44].copy_from_slice(&value.to_le_bytes()));
        let parts = &["student/model.safetensors", WEIGHT, "not finite", "[0, 10]"];
        c.refuses(&[], parts);
        c.refuses_to(&args!["fisher", config, "--out", out], parts);
        let tokens = c.path("tokens.safetensors");
        c.refuses_to(&args!["logits", "--model", model, "--tokens", tokens, "--out", out], parts);
        let teacher = format!("distill.teacher={}", model.display());
        c.refuses_to(&args!["teach", config, "--out", out, "--set", teacher], parts);
    }
}

/// Trap: a teacher that is NaN must not be taken for a bad student.
#[test]
fn a_teacher_that_is_not_a_number() {
    let c = Copy::of("llama");
    edit(&c.path("teacher/model.safetensors"), "lm_head.weight", |t| {
        t.3[..4].copy_from_slice(&f32::NAN.to_le_bytes())
    });
    c.refuses(&[], &["teacher/model.safetensors", "lm_head.weight", "[0, 0]"]);
}

#[test]
fn settings_that_do_not_fit_the_model() {
    let c = Copy::of("llama");
    // `query_key_value`, which a published recipe names, is no module of these models.
    c.refuses(
        &["lora.init=default", "lora.targets=[\"query_key_value\"]"],
        &[
            "lora.targets",
            "`query_key_value`",
            "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
        ],
    );
    c.refuses(&["train.step=3"], &["--set train.step=3", "unknown key", "did you mean `steps`"]);
    c.refuses(
        &["distill.features.0.student_layer=3"],
        &["distill.features[0].student_layer", "3", "1 to 2", "student"],
    );
    c.refuses(
        &["distill.features.0.teacher_layer=9"],
        &["distill.features[0].teacher_layer", "9", "1 to 3", "teacher"],
    );
    c.refuses(
        &["train.mem_budget=1MiB"],
        &["train.mem_budget", "1 MiB is too small", "smallest that this job runs in is", "lower train.batch"],
    );
    let data = case("llama_small_teacher_vocab").join("tokens.safetensors");
    c.refuses(
        &[&format!("data.train={}", data.display())],
        &["tokens.safetensors", "input_ids[0, 6] is 67", "vocabulary of 67"],
    );
    c.refuses(&["data.train=nothing.jsonl"], &["nothing.jsonl"]);
}

#[test]
fn models_that_are_not_supported() {
    let c = Copy::of("llama");
    let path = c.path("student/config.json");
    let good = std::fs::read_to_string(&path).unwrap();
    let spoilt = |from: &str, to: &str| std::fs::write(&path, good.replace(from, to)).unwrap();
    spoilt("\"llama\"", "\"mamba\"");
    c.refuses(&[], &["config.json", "`mamba` is not supported", "llama, qwen2"]);
    spoilt("\"rope_type\": \"default\"", "\"rope_type\": \"longrope\"");
    c.refuses(&[], &["config.json", "`longrope` is not supported", "yarn"]);
    spoilt("\"rms_norm_eps\": ", "\"rms_norm_eps\": -");
    c.refuses(&[], &["config.json", "`rms_norm_eps`", "is negative"]);
    spoilt("{", "");
    c.refuses(&[], &["config.json"]);
    std::fs::remove_file(&path).unwrap();
    c.refuses(&[], &["student", "config.json"]);
}

#[test]
fn an_adapter_of_another_model() {
    let c = Copy::of("llama");
    let other = case("gqa_llama3_rslora");
    let init = format!("lora.init={}", other.join("adapter").display());
    c.refuses(&[&init], &["adapter", "k_proj", "[24, 32]", "[32, 32]", "is it an adapter of another model?"]);
    let (model, out) = (c.path("student"), c.out());
    c.refuses_to(
        &args!["merge", "--model", model, "--adapter", other.join("adapter"), "--out", out],
        &["is it an adapter of another model?"],
    );
    c.refuses_to(
        &args!["merge", "--model", model, "--adapter", c.path("teacher"), "--out", out],
        &["adapter_config.json"],
    );
}

/// Trap: a penalty that silently is nothing (Avalanche #1099) starts with a Fisher file that does not fit.
#[test]
fn fisher_files_that_do_not_fit() {
    let c = Copy::of("llama");
    let name = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight";
    let (file, good) = (c.path("fisher.safetensors"), std::fs::read(c.path("fisher.safetensors")).unwrap());
    for (value, shown) in [(-1.0f32, "-1"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        edit(&file, name, |t| t.3[8..12].copy_from_slice(&value.to_le_bytes()));
        c.refuses(&[], &["fisher.safetensors", name, &format!("has {shown} at element 2")]);
    }
    std::fs::write(&file, &good).unwrap();
    edit(&file, name, |t| t.0 = "other".into());
    c.refuses(&[], &["fisher.safetensors", "has no Fisher diagonal", name, "make it with `kfc fisher`"]);
    std::fs::write(&file, &good).unwrap();
    edit(&file, name, |t| t.2.reverse());
    c.refuses(&[], &["fisher.safetensors", name, "[32, 4]", "make it with `kfc fisher`"]);
    std::fs::remove_file(&file).unwrap();
    c.refuses(&[], &["fisher.safetensors"]);
}

#[test]
fn places_that_cannot_be_read_or_written() {
    let c = Copy::of("llama");
    fails(2, &args!["train", c.path(""), "--out", c.out()], &["directory"]);
    fails(2, &args!["train", c.path("none.toml"), "--out", c.out()], &["none.toml", "no such file"]);
    let file = c.path("tokens.safetensors");
    fails(2, &args!["train", c.path("config.toml"), "--out", file], &["tokens.safetensors", "--out"]);
    fails(2, &args!["train", c.path("config.toml"), "--out", c.path("student")], &["not empty", "--resume"]);
    if cfg!(target_os = "linux") {
        fails(
            1,
            &args!["train", c.path("config.toml"), "--out", "/proc/none/run"],
            &["/proc/none/run", "cannot"],
        );
    }
    // Found out before the work, not after it.
    let below = c.path("config.toml").join("report");
    let eval = args!["eval", "--model", c.path("student"), "--task", "ppl", "--data", file, "--out", below];
    fails(2, &eval, &["--out", "config.toml/report", "name another folder"]);
    fails(1, &args!["fisher", c.path("config.toml"), "--out", below], &["config.toml"]);
    let merge = args![
        "merge",
        "--model",
        c.path("student"),
        "--adapter",
        c.path("adapter"),
        "--out",
        c.path("teacher")
    ];
    fails(2, &merge, &["teacher", "not empty"]);
    assert_eq!(c.folder.names(), ["case"]);
    assert_eq!(
        tensors(&case("llama").join("teacher/model.safetensors")),
        tensors(&c.path("teacher/model.safetensors"))
    );
}

/// A limit on file sizes acts like a full disk at a point of our choosing. Whatever is left can be resumed.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk() {
    let c = Copy::of("llama");
    let limited = |blocks: usize, arguments: &[OsString]| {
        let mut command = std::process::Command::new("sh");
        command.args([
            "-c",
            &format!("ulimit -f {blocks}; exec \"$@\""),
            "sh",
            env!("CARGO_BIN_EXE_kfc"),
            "-q",
        ]);
        let output = command.args(arguments).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(
            message.starts_with("error: disk full while writing") && message.contains("Free space"),
            "{message}"
        );
        message
    };
    let (model, adapter, out) = (c.path("student"), c.path("adapter"), c.out());
    let merge = args!["merge", "--model", model, "--adapter", adapter, "--out", out];
    assert!(limited(20, &merge).contains("model.safetensors"));
    let tokens = c.path("tokens.safetensors");
    limited(20, &args!["logits", "--model", model, "--tokens", tokens, "--out", out]);
    let config = c.path("config.toml");
    limited(10, &args!["fisher", config, "--out", out]);
    limited(10, &args!["teach", config, "--out", out]);
    assert_eq!(c.folder.names(), ["case"], "something was left");
    // A checkpoint that does not fit: what was complete before stays, and no temporary.
    assert!(limited(60, &c.arguments(&[])).contains("checkpoint-6"));
    assert_eq!(names(&c.out()), ["config.toml", "metrics.jsonl", "snapshot"]);
    succeeds(&args!["train", config, "--out", out, "--resume"]);
    let whole = c.folder.join("whole");
    succeeds(&args!["train", config, "--out", whole]);
    let adapter = |run: &Path| std::fs::read(run.join("adapter/adapter_model.safetensors")).unwrap();
    assert!(adapter(&c.out()) == adapter(&whole));
}

/// JSON holds no other text than UTF-8; paths may.
#[cfg(target_os = "linux")]
#[test]
fn a_run_directory_whose_name_is_not_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let c = Copy::of("llama_plain");
    let out = c.folder.path().join(std::ffi::OsStr::from_bytes(b"run-\xff"));
    succeeds(&args!["train", c.path("config.toml"), "--out", out, "--set", "train.steps=1", "--json"]);
    assert!(out.join("adapter").is_dir() && out.join("summary.json").is_file());
    succeeds(&args!["report", out, "--json"]);
    succeeds(&args!["rollback", out, "--out", out.join("before"), "--json"]);
}

#[test]
fn rows_that_cannot_be_used() {
    let world = World::new();
    let job = world.job(
        "[model]\npath = \"student\"\n[lora]\n[data]\ntrain = [\"rows.jsonl\"]\nseq_len = 8\nlong_rows = \"error\"\n\
         [train]\nsteps = 1\nwarmup_steps = 0\n",
    );
    let out = world.join("out");
    let base = args!["train", job, "--out", out];
    fails(2, &base, &["rows.jsonl:3", "tokens do not fit data.seq_len = 8", "data.long_rows"]);
    std::fs::write(world.join("rows.jsonl"), "").unwrap();
    fails(2, &base, &["no usable rows", "rows.jsonl"]);
    std::fs::write(world.join("rows.jsonl"), "{\"text\": \"w1 w2\"}\n{\"txt\": 1}\n").unwrap();
    fails(2, &base, &["rows.jsonl:2"]);
    // A model without a tokenizer.
    std::fs::remove_file(world.join("student/tokenizer.json")).unwrap();
    fails(2, &base, &["data.tokenizer", "tokenizer.json"]);
    assert!(!out.exists());
}

/// Trap: teacher and student of unequal vocabularies (TRL #2215, #3028, #4562). Other words are refused; more words are
/// said aloud.
#[test]
fn teachers_of_another_vocabulary() {
    let world = World::new();
    let job = world.job(
        "[model]\npath = \"student\"\n[lora]\n[distill]\nteacher = \"teacher\"\n[data]\ntrain = [\"rows.jsonl\"]\nseq_len = 32\n\
         [train]\nsteps = 1\nwarmup_steps = 0\n",
    );
    let out = world.join("out");
    let words: Vec<String> = (0..61).map(|i| if i == 9 { "other".into() } else { format!("w{i}") }).collect();
    kfc_runtime::data::save_word_level(&world.join("teacher"), &words).unwrap();
    let parts = &["distill.teacher", "another tokenizer", "token 12 is", "\"w9\"", "\"other\""];
    fails(2, &args!["train", job, "--out", out], parts);
    fails(2, &args!["teach", job, "--out", out], parts);
    assert!(!out.exists());

    let config = case("gqa_linear_padded_teacher").join("config.toml");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kfc"));
    let output = output_of(command.args(args!["train", config, "--out", out]));
    assert!(
        output.contains("student and teacher have 73 and 88 tokens: distillation compares the first 73"),
        "{output}"
    );
}

/// Standard error of a command that must succeed.
fn output_of(command: &mut std::process::Command) -> String {
    let output = command.output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{message}");
    message
}

#[test]
fn resuming_with_something_else_is_refused() {
    let c = Copy::of("llama");
    let run = c.trains(&["train.steps=4", "train.save_every=2"]);
    let config = std::fs::read(run.join("config.toml")).unwrap();
    let metrics = std::fs::read(run.join("metrics.jsonl")).unwrap();
    let refused = |sets: &[&str], parts: &[&str]| {
        let arguments = [c.arguments(sets), args!["--resume"].to_vec()].concat();
        fails(2, &arguments, parts);
        assert!(std::fs::read(run.join("config.toml")).unwrap() == config, "the configuration was replaced");
        assert!(std::fs::read(run.join("metrics.jsonl")).unwrap() == metrics);
    };
    refused(&["train.seed=77"], &["checkpoint-4", "another train.seed", "start a new run"]);
    let rows = vec![vec![5, 6, 7, 8, 9]; 8];
    write_tokens(&c.path("rows.safetensors"), &rows, &rows);
    let data = format!("data.train={}", c.path("rows.safetensors").display());
    refused(&[&data], &["checkpoint-4", "training rows"]);
    refused(&["lora.init=default", "lora.r=3", "ewc.lambda=0", "ewc.fisher=x"], &[]);
    refused(&["train.batch=1"], &["not that of the checkpoint"]);
    fails(
        2,
        &args!["train", c.path("config.toml"), "--out", c.folder.join("none"), "--resume"],
        &["no run to resume"],
    );
}

/// What is allowed to change is said aloud, and a run that has ended stays as it is.
#[test]
fn resuming_tells_what_changed_and_leaves_what_is_done() {
    let c = Copy::of("llama");
    let resume = |sets: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kfc"));
        output_of(command.args(c.arguments(sets)).arg("--resume"))
    };
    let run = c.trains(&["train.steps=2"]);
    let all = || {
        ["summary.json", "profile.json", "config.toml", "report.html"]
            .map(|f| std::fs::read(run.join(f)).unwrap())
    };
    let before = all();
    assert!(resume(&["train.steps=2"]).contains("all steps of this run were taken before"));
    assert!(all() == before, "a run that was done was written again");
    let notes = resume(&["train.steps=4", "train.lr=1e-5"]);
    assert!(notes.contains("changed since this run began: train.lr: 1e-5, was "), "{notes}");
    assert!(notes.contains("changed since this run began: train.steps: 4, was 2"), "{notes}");
    let summary = json(&run.join("summary.json"));
    let tokens: u64 = metrics(&run).iter().map(|m| m["tokens"].as_u64().unwrap()).sum();
    assert_eq!((summary["steps"].as_u64(), summary["tokens"].as_u64()), (Some(4), Some(tokens)));
}

/// Of processes that start in one folder together, one trains, and the others say so and touch nothing.
#[cfg(unix)]
#[test]
fn a_run_directory_has_one_owner() {
    let c = Copy::of("llama");
    let start = |resume: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kfc"));
        command.arg("-q").args(c.arguments(&["train.steps=100", "train.save_every=1"])).args(resume);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let first = start(&[]);
    while !c.out().join("checkpoint-1").exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let second = start(&["--resume"]).wait_with_output().unwrap();
    let message = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(2), "{message}");
    assert!(message.contains("another kfc trains in") && message.contains("--out DIR"), "{message}");
    let first = first.wait_with_output().unwrap();
    assert_eq!(first.status.code(), Some(0), "{}", String::from_utf8_lossy(&first.stderr));
    assert_eq!(metrics(&c.out()).len(), 100);
    assert_eq!(start(&["--resume"]).wait().unwrap().code(), Some(0), "it is free again");
}

/// A damaged newest checkpoint is told and passed over; the older one leads to the same end.
#[test]
fn damaged_checkpoints() {
    let c = Copy::of("llama");
    let sets = &["train.steps=6", "train.save_every=2"];
    let run = c.trains(sets);
    let end = std::fs::read(run.join("adapter/adapter_model.safetensors")).unwrap();
    for file in
        ["state.safetensors", "trainer_state.json", "manifest.json", "adapter/adapter_model.safetensors"]
    {
        let path = run.join("checkpoint-6").join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        std::fs::write(&path, bytes).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kfc"));
        let notes = output_of(command.args(c.arguments(sets)).arg("--resume"));
        assert!(
            notes.contains("checkpoint-6") && notes.contains("is damaged and not used"),
            "{file}: {notes}"
        );
        assert!(notes.contains("resumed from") && notes.contains("checkpoint-4"), "{notes}");
        assert!(std::fs::read(run.join("adapter/adapter_model.safetensors")).unwrap() == end, "{file}");
    }
}

/// Trap: an overflow of f16 is skipped, counted and reported, and the dynamic scale goes down until steps succeed.
#[test]
fn overflows_are_skipped_and_counted() {
    let c = Copy::of("llama_plain");
    // Logits of hundreds: scaled by 65536, the gradients of the last hidden states leave the range of f16.
    edit(&c.path("student/model.safetensors"), "model.norm.weight", |t| {
        for b in t.3.as_chunks_mut::<4>().0 {
            *b = (f32::from_le_bytes(*b) * 1000.0).to_le_bytes();
        }
    });
    let sets = ["model.dtype=f16", "train.loss_scale=dynamic", "train.steps=30", "train.warmup_steps=0"];
    let run = c.trains(&sets);
    let steps = metrics(&run);
    let skipped: Vec<bool> = steps.iter().map(|m| m["skipped"].as_bool().unwrap_or(false)).collect();
    assert!(skipped[0] && !skipped[29], "{skipped:?}");
    let mut scale = 65536.0;
    for (m, skipped) in steps.iter().zip(&skipped) {
        assert_eq!(m["loss_scale"].as_f64().unwrap_or(1.0), scale, "{m}");
        if *skipped {
            scale /= 2.0;
        }
    }
    let count = skipped.iter().filter(|s| **s).count();
    let again = output_of(
        std::process::Command::new(env!("CARGO_BIN_EXE_kfc")).args(c.arguments(&sets)).arg("--resume"),
    );
    assert!(!again.contains("error"), "{again}");
    assert!(
        tensors(&run.join("adapter/adapter_model.safetensors"))
            .values()
            .flat_map(|t| &t.values)
            .all(|v| v.is_finite())
    );
    let state = json(&run.join("checkpoint-30/trainer_state.json"));
    assert_eq!(state["loss_scale"]["skipped"].as_u64(), Some(count as u64));
    assert_eq!(state["updates"].as_u64(), Some(30 - count as u64));
}

/// A result that nothing was trained into, or that training left when it diverged, is none.
#[test]
fn runs_that_came_to_nothing_fail() {
    let c = Copy::of("llama_plain");
    let fails_with = |sets: &[&str], parts: &[&str]| {
        let _ = std::fs::remove_dir_all(c.out());
        fails(1, &c.arguments(sets), parts);
        assert!(!c.out().join("adapter").exists(), "{sets:?}");
    };
    let never = ["model.dtype=f16", "train.loss_scale=1e38", "train.steps=2", "train.warmup_steps=0"];
    fails_with(&never, &["not finite in any of the 2 steps", "nothing was trained", "lower train.lr"]);
    let away = ["train.lr=1e30", "train.steps=8", "train.warmup_steps=0", "train.max_grad_norm=0"];
    fails_with(&away, &["the run diverged", "no result is written", "lower train.lr"]);
}

/// What the machine cannot hold is refused before the system has to end the process.
#[test]
fn jobs_larger_than_the_machine() {
    let c = Copy::of("llama_plain");
    c.refuses(
        &["train.accumulation=1048576", "train.batch=1048576"],
        &["memory: the run would hold", "this machine has", "batches in use and built ahead", "kfc doctor"],
    );
}

/// Trap: accumulation changes the loss where rows have unequal numbers of labels (transformers #35203, #37766).
#[test]
fn accumulation_does_not_change_the_loss() {
    let c = Copy::of("llama");
    let run = |batch: usize, accumulation: usize| {
        let sets = [format!("train.batch={batch}"), format!("train.accumulation={accumulation}")];
        let run = c.trains(&sets.each_ref().map(String::as_str));
        (series(&run, "loss"), series(&run, "grad_norm"))
    };
    let whole = run(4, 1);
    for parts in [run(2, 2), run(1, 4)] {
        for (got, want) in parts.0.iter().zip(&whole.0).chain(parts.1.iter().zip(&whole.1)) {
            assert!((got - want).abs() < 2e-6 * want.abs(), "{got} {want}");
        }
    }
}

#[test]
fn a_batch_larger_than_the_data() {
    let c = Copy::of("llama");
    let large = c.trains(&["train.batch=50", "train.accumulation=2"]);
    let large = series(&large, "loss");
    // An epoch is one step of all eight rows.
    let exact = c.trains(&["train.batch=8", "train.accumulation=1"]);
    for (a, b) in large.iter().zip(series(&exact, "loss")) {
        assert!((a - b).abs() < 2e-6 * b, "{a} {b}");
    }
}

/// Traps: a frozen head that still pays for its gradient (Liger #1441, TRL #7076), and adapters whose gradients vanish
/// (PEFT #137, #1142): what is trained changes, and only that has moments.
#[test]
fn what_is_frozen_has_no_state() {
    let c = Copy::of("llama_plain");
    let run = c.trains(&["train.steps=2", "train.warmup_steps=0"]);
    let state = tensors(&run.join("checkpoint-2/state.safetensors"));
    let start = tensors(&c.path("adapter/adapter_model.safetensors"));
    assert_eq!(state.len(), 3 * start.len(), "a parameter and two moments each: {:?}", state.keys());
    let end = tensors(&run.join("adapter/adapter_model.safetensors"));
    for (name, before) in &start {
        assert!(name.contains("lora_") && end[name] != *before, "{name}");
    }
}

/// Trap: a budget that is not kept, and a peak that is not monotone (pytorch #197838, #197871).
#[test]
fn what_fits_a_budget_stays_below_it() {
    let c = Copy::of("llama");
    let budget = 256u64 << 20;
    let run = c.trains(&["train.mem_budget=256MiB"]);
    let peaks = series(&run, "peak_bytes");
    assert!(peaks.iter().all(|p| *p > 0.0 && *p <= budget as f64), "{peaks:?}");
}
