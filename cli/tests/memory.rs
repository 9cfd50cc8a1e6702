//! The memory budget as a contract, on a model whose activations are most of what a run holds: predicted and measured peak
//! agree, no budget is exceeded, a smaller budget never gives a larger peak, the smallest that the refusal names works,
//! and none of it changes a bit of the result.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Folder, fails, succeeds};
use serde_json::Value;
use std::ffi::OsString;
use std::path::Path;

/// Predicted and measured peak may differ by this share and these bytes.
const SHARE: f64 = 0.02;
const SLACK: f64 = (16u64 << 20) as f64;

/// What is trained.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Lora,
    Full,
    Distilled,
    /// LoRA on a model of many narrow layers.
    Deep,
}

/// A llama of four layers (deep: 160) and 2,048 tokens a step: about 60 MiB of activations, 5 MiB of the rest.
fn write_job(dir: &Path, kind: Kind) {
    let [layers, hidden, intermediate] = if kind == Kind::Deep { [160, 32, 64] } else { [4, 128, 352] };
    write_model(dir, 256, layers, [hidden, intermediate]);
    write_tokens(&dir.join("tokens.safetensors"), 16, 128, 256);
    let method = match kind {
        Kind::Lora => "[lora]\nr = 8\ndropout = 0.1\n\n",
        Kind::Full => "",
        Kind::Deep => "[lora]\nr = 4\n\n",
        Kind::Distilled => "[lora]\nr = 8\n\n[distill]\nteacher = \"teacher\"\n\n",
    };
    let job = "[model]\npath = \"model\"\ninit = \"random\"\n\nMETHOD\
               [data]\ntrain = [\"tokens.safetensors\"]\nshuffle = false\n\n\
               [train]\nsteps = 3\nbatch = 16\naccumulation = 1\nlr = 1e-2\nwarmup_steps = 0\n";
    std::fs::write(dir.join("job.toml"), job.replace("METHOD", method)).unwrap();
    if kind == Kind::Distilled {
        let teacher = "[model]\npath = \"model\"\ninit = \"random\"\n\n[data]\ntrain = [\"tokens.safetensors\"]\n\n\
                       [train]\nsteps = 1\nbatch = 2\naccumulation = 1\nseed = 5\nwarmup_steps = 0\n";
        std::fs::write(dir.join("teacher.toml"), teacher).unwrap();
        let out = dir.join("teacher-run");
        succeeds(&["train".into(), dir.join("teacher.toml").into(), "--out".into(), out.clone().into()]);
        std::fs::rename(out.join("model"), dir.join("teacher")).unwrap();
    }
}

/// Runs the job; gives predicted and measured peak.
fn peaks(dir: &Path, out: &Path, more: &[&str]) -> (f64, f64) {
    let mut arguments =
        args!["train", dir.join("job.toml"), "--out", out, "--json", "--threads", "2"].to_vec();
    arguments.extend(more.iter().map(OsString::from));
    let stdout = succeeds(&arguments);
    let summary: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    let bytes = |key: &str| summary[key].as_f64().unwrap();
    (bytes("predicted_peak_bytes"), bytes("peak_bytes"))
}

/// The same, and the bytes of what was trained.
fn run(dir: &Path, name: &str, more: &[&str]) -> (f64, f64, Vec<u8>) {
    let out = dir.join(name);
    let (predicted, measured) = peaks(dir, &out, more);
    let made = ["adapter/adapter_model.safetensors", "model/model.safetensors"];
    let made = made.iter().find_map(|f| std::fs::read(out.join(f)).ok()).unwrap();
    std::fs::remove_dir_all(out).unwrap();
    (predicted, measured, made)
}

/// No more is measured than predicted, and not much less.
fn stays_below(predicted: f64, measured: f64) {
    assert!(measured <= predicted, "{predicted} predicted, {measured} measured");
    assert!(predicted - measured <= SHARE * measured + SLACK, "{predicted} predicted, {measured} measured");
}

#[test]
fn a_budget_holds_with_lora() {
    a_budget_holds_and_changes_no_bit(Kind::Lora);
}

#[test]
fn a_budget_holds_in_full_fine_tuning() {
    a_budget_holds_and_changes_no_bit(Kind::Full);
}

#[test]
fn a_budget_holds_with_a_teacher() {
    a_budget_holds_and_changes_no_bit(Kind::Distilled);
}

fn a_budget_holds_and_changes_no_bit(kind: Kind) {
    let dir = Folder::new();
    write_job(dir.path(), kind);
    let (predicted, measured, adapter) = run(dir.path(), "free", &[]);
    let message = fails(
        2,
        &command_line(dir.path(), "refused", "1MiB"),
        &["train.mem_budget", "1 MiB is too small", "smallest that this job runs in is", "activations"],
    );
    let smallest: u64 =
        message.split("runs in is ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(!dir.path().join("refused").exists());
    let largest = (predicted as u64) >> 20;
    assert!(smallest + 20 < largest, "nothing to recompute: {smallest} to {largest} MiB");

    let mut last = f64::INFINITY;
    for i in 0..10 {
        // From unlimited down to the least feasible; a MiB of air, since the program's own share varies between runs.
        let budget = largest + 4 - (largest + 3 - smallest) * i / 9;
        let (p, m, bytes) = run(dir.path(), &format!("b{i}"), &["--mem-budget", &format!("{budget}MiB")]);
        assert!(bytes == adapter, "{budget} MiB: another result");
        assert!(p <= (budget << 20) as f64, "{budget} MiB: {p} predicted");
        assert!((p - m).abs() <= SHARE * m + SLACK, "{budget} MiB: {p} predicted, {m} measured");
        assert!(m <= (budget << 20) as f64, "{budget} MiB: {m} measured");
        assert!(m <= last + (2 << 20) as f64, "{budget} MiB: {m} measured, {last} with more");
        last = m;
    }
    assert!(
        (predicted - measured).abs() <= SHARE * measured + SLACK,
        "{predicted} predicted, {measured} measured"
    );
}

/// Plans of many launches take memory, too, and so does what is written when the run ends: neither comes on top.
#[test]
fn a_deep_model_stays_below_its_prediction() {
    let dir = Folder::new();
    write_job(dir.path(), Kind::Deep);
    let (predicted, measured, _) = run(dir.path(), "deep", &["--set", "train.batch=2"]);
    stays_below(predicted, measured);
}

/// A model whose vocabulary is most of it, its job in full fine-tuning, and token rows.
fn write_wide(dir: &Path, rows: usize, seq: usize) {
    write_model(dir, 32768, 1, [256, 64]);
    write_tokens(&dir.join("tokens.safetensors"), rows, seq, 32768);
    let job = "[model]\npath = \"model\"\ninit = \"random\"\n\n[data]\ntrain = [\"tokens.safetensors\"]\n\n\
               [train]\nsteps = 1\nbatch = 1\naccumulation = 1\nwarmup_steps = 0\n";
    std::fs::write(dir.join("job.toml"), job).unwrap();
}

/// The configuration of a llama with these widths, hidden and of its MLP.
fn write_model(dir: &Path, vocabulary: usize, layers: usize, [hidden, intermediate]: [usize; 2]) {
    std::fs::create_dir_all(dir.join("model")).unwrap();
    let config = serde_json::json!({
        "model_type": "llama", "hidden_act": "silu", "vocab_size": vocabulary, "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "initializer_range": 0.05,
    });
    std::fs::write(dir.join("model/config.json"), config.to_string()).unwrap();
}

fn write_tokens(path: &Path, rows: usize, seq: usize, vocab: i32) {
    let ids = (0..(rows * seq) as i32).map(|i| (i.wrapping_mul(7919) >> 3).rem_euclid(vocab));
    let bytes: Vec<u8> = ids.flat_map(i32::to_le_bytes).collect();
    let view =
        safetensors::tensor::TensorView::new(safetensors::Dtype::I32, vec![rows, seq], &bytes).unwrap();
    std::fs::write(path, safetensors::serialize([("input_ids", view)], None).unwrap()).unwrap();
}

/// What is read once and copied, a checkpoint's state (96 MiB) or weights that are converted (32 MiB), is not held beside the copy.
#[test]
fn what_is_read_once_is_not_held() {
    let dir = Folder::new();
    write_wide(dir.path(), 16, 32);
    let peaks = |out: &Path, more: &[&str]| {
        let (predicted, measured) = peaks(dir.path(), out, more);
        stays_below(predicted, measured);
    };
    let out = dir.join("full");
    peaks(&out, &[]);
    peaks(&out, &["--resume", "--set", "train.steps=2"]);
    let path = format!("model.path={:?}", out.join("model"));
    let pretrained = ["--set", &path, "--set", "model.init=pretrained", "--set", "lora.r=4"];
    peaks(&dir.join("same"), &pretrained);
    peaks(&dir.join("other"), &[&pretrained[..], &["--set", "model.dtype=bf16"]].concat());
}

/// A file of tokens (64 MiB) goes while its rows, which take twice as much, come.
#[test]
fn a_file_of_rows_is_not_held_beside_them() {
    let dir = Folder::new();
    write_job(dir.path(), Kind::Lora);
    write_tokens(&dir.join("tokens.safetensors"), 32768, 512, 256);
    let more = ["--set", "train.batch=1", "--set", "train.steps=1", "--set", "data.streaming=off"];
    let (predicted, measured, _) = run(dir.path(), "rows", &more);
    stays_below(predicted, measured);
}

/// Answers of a teacher are read row by row: of a cache of 32 MiB that a run goes through, it holds a batch.
#[test]
fn a_cache_is_not_held() {
    let dir = Folder::new();
    write_job(dir.path(), Kind::Distilled);
    write_tokens(&dir.join("tokens.safetensors"), 4096, 16, 256);
    let (job, cache) = (dir.join("job.toml"), dir.join("cache"));
    succeeds(&args!["teach", job, "--out", cache]);
    let cached = format!("distill.teacher={cache:?}");
    let more = ["--set", &cached, "--set", "train.batch=512", "--set", "train.steps=8"];
    let (predicted, measured, _) = run(dir.path(), "cached", &more);
    stays_below(predicted, measured);
}

#[test]
fn named_policies_change_no_bit() {
    let dir = Folder::new();
    write_job(dir.path(), Kind::Lora);
    let (_, free, adapter) = run(dir.path(), "none", &["--set", "train.recompute=none"]);
    for policy in ["layer", "attention", "2"] {
        let (_, peak, bytes) = run(dir.path(), policy, &["--set", &format!("train.recompute={policy}")]);
        assert!(bytes == adapter, "{policy}: another result");
        assert!(peak < free, "{policy}: {peak} bytes, {free} without");
    }
}

fn command_line(dir: &Path, out: &str, budget: &str) -> Vec<OsString> {
    let mut a: Vec<OsString> =
        vec!["train".into(), dir.join("job.toml").into(), "--out".into(), dir.join(out).into()];
    a.extend(["--mem-budget", budget].map(OsString::from));
    a
}
