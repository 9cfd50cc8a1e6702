//! Parity with transformers, peft and torch: every number that `parity/make_cases.py` wrote, from the same files.
//!
//! Differences are measured against the largest expected magnitude of the tensor (or against the number itself). The
//! expected numbers come from float64 models, the program computes in f32.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Allowed difference of logits, gradients, Fisher diagonals and every term of the loss curve.
const TOLERANCE: f64 = 2e-5;

/// Runs `kfc logits` on the tokens of a case.
fn logits(folder: &Folder, case: &Path, model: &Path, adapter: Option<&Path>) -> Tensor {
    let out = folder.join("logits.safetensors");
    let mut arguments =
        args!["logits", "--model", model, "--tokens", case.join("tokens.safetensors"), "--out", out].to_vec();
    if let Some(adapter) = adapter {
        arguments.extend(args!["--adapter", adapter]);
    }
    succeeds(&arguments);
    tensors(&out).remove("logits").unwrap()
}

/// The adapter of a case, if it trains one.
fn adapter(case: &Path) -> Option<PathBuf> {
    Some(case.join("adapter")).filter(|path| path.exists())
}

/// The first rows, as many as `like` has.
fn first_rows(all: &Tensor, like: &Tensor) -> Tensor {
    Tensor { dims: like.dims.clone(), values: all.values[..like.values.len()].to_vec() }
}

fn logits_agree(name: &str) {
    let (folder, case) = (Folder::new(), case(name));
    let expected = tensors(&case.join("expected.safetensors"));
    let student = logits(&folder, &case, &case.join("student"), adapter(&case).as_deref());
    let want = &expected["logits.student"];
    assert_close("student", &first_rows(&student, want), want, TOLERANCE);
    if let Some(want) = expected.get("logits.teacher") {
        let teacher = logits(&folder, &case, &case.join("teacher"), None);
        assert_close("teacher", &first_rows(&teacher, want), want, TOLERANCE);
    }
}

/// Trap: a merged model that is not the adapter (PEFT #1388, #2502; tied embeddings #2777).
fn merged_equals_adapter(name: &str) {
    let (folder, case) = (Folder::new(), case(name));
    let Some(adapter) = adapter(&case) else { return };
    let merged = folder.join("merged");
    succeeds(&args!["merge", "--model", case.join("student"), "--adapter", adapter, "--out", merged]);
    let separate = logits(&folder, &case, &case.join("student"), Some(&adapter));
    assert_close("merged", &logits(&folder, &case, &merged, None), &separate, TOLERANCE);
    let config = |path: &Path| json(&path.join("config.json"));
    assert_eq!(config(&merged), config(&case.join("student")));
    // The same tensors: a tied head is not written a second time.
    let names = |path: &Path| tensors(&path.join("model.safetensors")).into_keys().collect::<Vec<_>>();
    assert_eq!(names(&merged), names(&case.join("student")));
}

/// Every gradient of the first step. With decay 0 and no clipping, AdamW's first moment after one step is
/// `(1 - beta1) g`.
fn gradients_agree(name: &str) {
    let (folder, case) = (Folder::new(), case(name));
    let run = folder.join("run");
    let config = case.join("config.toml");
    let mut arguments = args!["train", config, "--out", run].to_vec();
    for set in ["train.steps=1", "train.warmup_steps=0", "train.max_grad_norm=0"] {
        arguments.extend(args!["--set", set]);
    }
    succeeds(&arguments);
    let beta1 = json(&case.join("expected.json"))["hyper"]["betas"][0].as_f64().unwrap();
    let state = tensors(&run.join("checkpoint-1/state.safetensors"));
    let got: BTreeMap<String, Tensor> = state
        .into_iter()
        .filter_map(|(name, t)| {
            let values = t.values.iter().map(|m| (f64::from(*m) / (1.0 - beta1)) as f32).collect();
            Some((peft_name(name.strip_prefix("m.")?), Tensor { dims: t.dims, values }))
        })
        .collect();
    let expected = tensors(&case.join("expected.safetensors"));
    let expected: BTreeMap<&str, &Tensor> =
        expected.iter().filter_map(|(name, t)| Some((name.strip_prefix("grad.")?, t))).collect();
    // One projector is `projector.weight` there.
    let rename = |name: &str| match name {
        "projector.0.weight" if expected.contains_key("projector.weight") => "projector.weight".to_owned(),
        other => other.to_owned(),
    };
    let got: BTreeMap<String, Tensor> = got.into_iter().map(|(name, t)| (rename(&name), t)).collect();
    assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, want) in expected {
        assert_close(name, &got[name], want, TOLERANCE);
    }
}

fn peft_name(name: &str) -> String {
    match name.strip_prefix("lora.") {
        Some(rest) => format!("base_model.model.{rest}"),
        None => name.strip_prefix("student.").unwrap_or(name).to_owned(),
    }
}

/// Trap: the square of a batch's mean gradient is no Fisher diagonal (Avalanche #1224); the witness sums squares of
/// single rows.
fn fisher_agrees(name: &str) {
    let (folder, case) = (Folder::new(), case(name));
    let out = folder.join("fisher.safetensors");
    succeeds(&args!["fisher", case.join("config.toml"), "--out", out]);
    let (got, expected) = (tensors(&out), tensors(&case.join("expected_fisher.safetensors")));
    assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, want) in &expected {
        assert!(got[name].values.iter().all(|v| *v >= 0.0), "{name}");
        assert_close(name, &got[name], want, TOLERANCE);
    }
}

/// Trap: a penalty that is always 0 (Avalanche #1099); the curve has it at every step.
fn curve_agrees(name: &str) {
    let (folder, case) = (Folder::new(), case(name));
    let run = folder.join("run");
    succeeds(&args!["train", case.join("config.toml"), "--out", run]);
    let expected = json(&case.join("expected.json"));
    let (got, expected) = (metrics(&run), expected["curve"].as_array().unwrap());
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert_eq!(got["step"], expected["step"]);
        for (field, theirs) in [
            ("loss", "total"),
            ("ce", "ce"),
            ("kd", "kd"),
            ("feat", "feat"),
            ("ewc", "ewc"),
            ("lr", "lr"),
            ("grad_norm", "grad_norm"),
        ] {
            let (a, b) = (&got[field], &expected[theirs]);
            let (Some(x), Some(y)) = (a.as_f64(), b.as_f64()) else {
                assert!(a.is_null() && b.is_null(), "{field}: {a} where {b} is expected");
                continue;
            };
            assert!((x - y).abs() <= TOLERANCE * y.abs(), "step {}: {field} is {x}, not {y}", got["step"]);
        }
    }
}

macro_rules! cases {
    ($($case:ident)*) => {
        const CASES: &[&str] = &[$(stringify!($case)),*];
        $(mod $case {
            #[test]
            fn logits() { super::logits_agree(stringify!($case)); }
            #[test]
            fn merged() { super::merged_equals_adapter(stringify!($case)); }
            #[test]
            fn gradients() { super::gradients_agree(stringify!($case)); }
            #[test]
            fn fisher() { super::fisher_agrees(stringify!($case)); }
            #[test]
            fn curve() { super::curve_agrees(stringify!($case)); }
        })*
    };
}

cases! {
    gqa_linear_padded_teacher gqa_llama3_rslora gqa_yarn_ewc_delta llama llama_plain llama_small_teacher_vocab
    qwen2_full qwen2_reverse_kl qwen2_yarn_jsd_tied
}

#[test]
fn no_case_is_left_out() {
    assert_eq!(names(case("llama").parent().unwrap()), CASES);
}

/// With B = 0 the merged weight is the base weight, so the diagonal by merged weights is that of full fine-tuning.
#[test]
fn delta_fisher_of_a_fresh_adapter_is_that_of_the_weights() {
    for name in ["qwen2_yarn_jsd_tied", "gqa_llama3_rslora"] {
        let (folder, case) = (Folder::new(), case(name));
        let write = |name: &str, sections: &str| {
            let text = format!(
                "[model]\npath = {:?}\ndtype = \"f32\"\n{sections}\n[data]\ntrain = {:?}\n[train]\nsteps = 1\n",
                case.join("student"),
                case.join("tokens.safetensors"),
            );
            let (config, out) =
                (folder.join(&format!("{name}.toml")), folder.join(&format!("{name}.safetensors")));
            std::fs::write(&config, text).unwrap();
            succeeds(&args!["fisher", config, "--out", out]);
            tensors(&out)
        };
        // The file that a later run reads need not be there yet.
        let ewc = "[lora]\nr = 3\n[ewc]\nlambda = 1\nmode = \"delta\"\nfisher = \"later.safetensors\"";
        let (delta, weights) = (write("delta", ewc), write("weights", ""));
        assert_eq!(delta.len(), 14);
        for (name, got) in &delta {
            assert_close(name, got, &weights[name], 1e-6);
        }
    }
}

/// Runs a case with features off and more settings; returns its run folder.
fn train(folder: &Folder, name: &str, out: &str, sets: &[String]) -> PathBuf {
    let run = folder.join(out);
    let mut arguments = args!["train", case(name).join("config.toml"), "--out", run].to_vec();
    arguments.extend(args!["--set", "distill.features=[]"]);
    for set in sets {
        arguments.extend(args!["--set", set]);
    }
    succeeds(&arguments);
    run
}

/// Makes a cache of a case's teacher.
fn teach(folder: &Folder, name: &str, out: &str, sets: &[&str]) -> PathBuf {
    let cache = folder.join(out);
    let mut arguments = args!["teach", case(name).join("config.toml"), "--out", cache].to_vec();
    for set in sets {
        arguments.extend(args!["--set", set]);
    }
    succeeds(&arguments);
    cache
}

fn teacher(path: &Path) -> String {
    format!("distill.teacher={}", path.display())
}

/// Traps: no offline cache (TRL #2255, #3055), and padded vocabularies that mislead (TRL #2215, #3028, #4562): a cache
/// of every token trains like the teacher itself, whatever the divergence, also where the teacher has more tokens.
#[test]
fn a_full_cache_is_the_teacher() {
    for name in ["gqa_linear_padded_teacher", "qwen2_reverse_kl", "qwen2_yarn_jsd_tied", "qwen2_full"] {
        let folder = Folder::new();
        let cache = teach(&folder, name, "cache", &["distill.top_k=100000"]);
        let live = train(&folder, name, "live", &[]);
        let cached = train(&folder, name, "cached", &[teacher(&cache)]);
        for field in ["loss", "ce", "kd", "grad_norm"] {
            for (a, b) in series(&cached, field).iter().zip(series(&live, field)) {
                assert!(
                    (a - b).abs() <= 1e-5 * b,
                    "{name}: {field} is {a} with the cache, {b} with the teacher"
                );
            }
        }
        let trained = |run: &Path| {
            let adapter = run.join("adapter/adapter_model.safetensors");
            tensors(&if adapter.exists() { adapter } else { run.join("model/model.safetensors") })
        };
        for ((name, a), b) in trained(&cached).iter().zip(trained(&live).values()) {
            assert_close(name, a, b, 1e-3);
        }
    }
}

/// Fewer outcomes never tell more: lumping outcomes together cannot raise a divergence.
#[test]
fn a_small_cache_gives_a_smaller_divergence() {
    for name in ["gqa_linear_padded_teacher", "qwen2_reverse_kl", "qwen2_yarn_jsd_tied"] {
        let folder = Folder::new();
        let mut last = 0.0;
        for k in [1, 4, 16, 1000] {
            let top_k = format!("distill.top_k={k}");
            let cache = teach(&folder, name, &format!("cache-{k}"), &[&top_k]);
            let run = train(&folder, name, &format!("run-{k}"), &[teacher(&cache), "train.steps=1".into()]);
            let kd = series(&run, "kd")[0];
            assert!(kd.is_finite() && kd > last, "{name}: {kd} with the {k} likeliest, {last} with fewer");
            last = kd;
        }
    }
}

/// A cache is keyed by rows, so it must not serve others.
#[test]
fn a_cache_of_something_else_is_refused() {
    let (folder, name) = (Folder::new(), "qwen2_reverse_kl");
    let cache = teach(&folder, name, "cache", &[]);
    let config = case(name).join("config.toml");
    let run = folder.join("run");
    let base = args!["train", config, "--out", run, "--set", "distill.features=[]", "--set", teacher(&cache)];
    let refused = |sets: &[String], parts: &[&str]| {
        let mut arguments = base.to_vec();
        for set in sets {
            arguments.extend(args!["--set", set]);
        }
        fails(2, &arguments, parts);
        assert!(!run.exists());
    };
    let remake = "make it again with `kfc teach`";
    refused(&["distill.temperature=3".into()], &["distill.temperature 2, this job has 3", remake]);
    let rows = |name: &str, rows: &[Vec<i64>]| {
        let path = folder.join(name);
        write_tokens(&path, rows, rows);
        format!("data.train={}", path.display())
    };
    let of = |n: i64, t: i64, first: i64| {
        (0..n).map(|i| (0..t).map(|j| 3 + (first + i + j) % 50).collect()).collect::<Vec<_>>()
    };
    refused(&[rows("other", &of(12, 19, 1))], &["fingerprint", remake]);
    refused(&[rows("fewer", &of(11, 19, 0))], &["rows 12+0, this job has 11+0", remake]);
    refused(&[rows("longer", &of(12, 20, 0))], &["data.seq_len 19, this job has 20", remake]);
    refused(&["distill.features=[{student_layer=1,teacher_layer=1}]".into()], &["distill.features", "cache"]);
    fails(
        2,
        &args!["teach", config, "--out", folder.join("again"), "--set", teacher(&cache)],
        &["is a cache already"],
    );
    assert_eq!(folder.names(), ["cache", "fewer", "longer", "other"]);
    // A damaged cache.
    edit(&cache.join("top_lse.safetensors"), "top_lse", |t| {
        t.2 = vec![12, 18];
        t.3.truncate(12 * 18 * 4);
    });
    refused(&[], &["top_lse", "[12, 18]"]);
}

/// The teacher knows fewer tokens than the student: it runs beside it, but a cache could not tell the student's further
/// tokens from the rest.
#[test]
fn a_teacher_of_fewer_tokens() {
    let (folder, name) = (Folder::new(), "llama_small_teacher_vocab");
    let config = case(name).join("config.toml");
    let out = folder.join("cache");
    fails(
        2,
        &args!["teach", config, "--out", out],
        &["distill.teacher", "71 tokens, the student 83", "the teacher itself"],
    );
    // A token that the teacher has never seen.
    let rows = vec![vec![5, 6, 7, 80, 9]; 4];
    write_tokens(&folder.join("rows.safetensors"), &rows, &rows);
    let data = format!("data.train={}", folder.join("rows.safetensors").display());
    let run = folder.join("run");
    fails(2, &args!["train", config, "--out", run, "--set", data], &["71 tokens", "data.train has token 80"]);
    assert_eq!(folder.names(), ["rows.safetensors"]);
}
