//! Encoders: parity with transformers on the cases of `encoder/make_cases.py`, and `kfc data filter` from outside.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use kfc_graph::DType;
use kfc_runtime::encoder::{Classifier, Long, Texts};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const CASES: [&str; 3] = ["bert_one", "bert_three", "roberta"];

fn encoder_case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/encoder/cases").join(name)
}

/// Texts, tokens and logits of a case.
fn expected(name: &str) -> (Vec<String>, Vec<Vec<i32>>, Vec<Vec<f64>>) {
    let all = json(&encoder_case(name).join("expected.json"));
    let part = |key: &str| all[key].clone();
    (
        serde_json::from_value(part("texts")).unwrap(),
        serde_json::from_value(part("tokens")).unwrap(),
        serde_json::from_value(part("logits")).unwrap(),
    )
}

/// The largest difference, relative to the largest logit.
fn difference(got: &[Vec<f32>], want: &[Vec<f64>]) -> f64 {
    let largest = want.iter().flatten().fold(0.0, |m: f64, x| m.max(x.abs()));
    let pairs = got.iter().flatten().zip(want.iter().flatten());
    assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), want.iter().map(Vec::len).collect::<Vec<_>>());
    pairs.map(|(a, b)| (f64::from(*a) - b).abs() / largest).fold(0.0, f64::max)
}

#[test]
fn tokens_are_those_of_the_tokenizer() {
    for name in CASES {
        let (texts, tokens, _) = expected(name);
        let encoder = Texts::open(&encoder_case(name).join("model")).unwrap();
        let longest = tokens.iter().map(Vec::len).max().unwrap();
        for (i, (text, want)) in texts.iter().zip(&tokens).enumerate() {
            let (pieces, long) = encoder.encode(text, longest, Long::Truncate).unwrap();
            assert_eq!((&pieces[..], long), (&[want.clone()][..], i + 1 == texts.len()), "{name}: {text}");
            // In windows every token is read, between the special ones.
            let (windows, _) = encoder.encode(text, longest, Long::Windows).unwrap();
            assert_eq!(windows[0], *want, "{name}: {text}");
            assert_eq!(windows.len() > 1, long);
            assert!(windows.iter().all(|w| w.len() <= longest && w[0] == want[0] && w.last() == want.last()));
        }
    }
}

#[test]
fn logits_agree_with_transformers() {
    for name in CASES {
        let (_, tokens, want) = expected(name);
        let model = encoder_case(name).join("model");
        let mut f32 = Classifier::open(&model, None, None).unwrap();
        assert_eq!(f32.dtype, DType::F32);
        let together = f32.classify(&tokens, &mut |_| ()).unwrap();
        let error = difference(&together, &want);
        assert!(error < 1e-5, "{name}: {error:e}");
        // Company and place of a text change its logits by rounding at most.
        let mut reversed: Vec<_> = tokens.iter().rev().cloned().collect();
        reversed.extend(tokens.clone());
        let again = f32.classify(&reversed, &mut |_| ()).unwrap();
        let turned: Vec<Vec<f32>> = again[..tokens.len()].iter().rev().cloned().collect();
        for again in [&turned[..], &again[tokens.len()..]] {
            let error = difference(again, &want);
            assert!(error < 1e-5, "{name} in other company: {error:e}");
        }

        let mut bf16 = Classifier::open(&model, Some(DType::Bf16), None).unwrap();
        let error = difference(&bf16.classify(&tokens, &mut |_| ()).unwrap(), &want);
        assert!(error > 1e-5 && error < 5e-2, "{name} in bf16: {error:e}");
    }
}

#[test]
fn no_batch_needs_more_memory_than_is_said() {
    for name in CASES {
        let mut model = Classifier::open(&encoder_case(name).join("model"), None, None).unwrap();
        let said = model.arena_bytes();
        for length in 1..=model.longest() {
            let texts: Vec<Vec<i32>> = (0..200).map(|i| vec![i % 40; length]).collect();
            model.classify(&texts, &mut |_| ()).unwrap();
        }
        assert_eq!(model.arena_bytes(), said, "{name}");
    }
}

/// Rows with the texts of a case, `copies` times, and one that is no row.
fn rows(folder: &Folder, name: &str, copies: usize) -> PathBuf {
    let (texts, _, _) = expected(name);
    let line =
        |i: usize, text: &String| format!("{}\n", json!({"text": text, "knowledge_id": format!("k{i}")}));
    let mut lines: String =
        texts.iter().cycle().take(texts.len() * copies).enumerate().map(|(i, t)| line(i, t)).collect();
    lines.push_str("{\"title\": 1}\n");
    let path = folder.join("rows.jsonl");
    std::fs::write(&path, lines).unwrap();
    path
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn rows_under_the_threshold_go() {
    let folder = Folder::new();
    let (_, _, logits) = expected("bert_one");
    let (input, out, dropped) =
        (rows(&folder, "bert_one", 1), folder.join("out.jsonl"), folder.join("dropped.jsonl"));
    let model = encoder_case("bert_one").join("model");
    let report = succeeds(&args![
        "data",
        "filter",
        input,
        "--model",
        model,
        "--threshold",
        "0.2",
        "--out",
        out,
        "--dropped",
        dropped,
        "--json"
    ]);
    let scores: Vec<f64> = logits.iter().map(|l| 1.0 / (1.0 + (-l[0]).exp())).collect();
    let kept = lines(&out);
    let good: Vec<usize> = (0..scores.len()).filter(|&i| scores[i] >= 0.2).collect();
    assert!(!good.is_empty() && good.len() < scores.len());
    assert_eq!(kept.len(), good.len());
    for (row, i) in kept.iter().zip(good) {
        assert_eq!(row["knowledge_id"], format!("k{i}"));
        assert!((row["metadata"]["quality"].as_f64().unwrap() - scores[i]).abs() < 2e-6, "{row}");
        assert_eq!(row["metadata"]["source"], "rows.jsonl");
    }
    let report: Value = serde_json::from_str(report.trim()).unwrap();
    let low = scores.len() - kept.len();
    assert_eq!(report["dropped"], json!({"low_score": low, "no_text": 1}));
    assert_eq!(report["counts"]["texts cut to what the model reads"], 1);
    assert_eq!(report["settings"]["score"], "sigmoid");
    let why = lines(&dropped);
    assert!(
        why.iter().any(|row| row["reason"] == "low_score"
            && row["detail"].as_str().unwrap().ends_with("of at least 0.2"))
    );
}

#[test]
fn labels_shares_and_windows() {
    let folder = Folder::new();
    let (_, _, logits) = expected("bert_three");
    let model = encoder_case("bert_three").join("model");
    let input = rows(&folder, "bert_three", 1);
    let run = |name: &str, more: &[&str]| {
        let out = folder.join(name);
        let mut arguments = args!["data", "filter", input, "--model", model, "--out", out].to_vec();
        arguments.extend(more.iter().map(std::ffi::OsString::from));
        succeeds(&arguments);
        lines(&out)
    };
    let softmax = |l: &[f64], i: usize| l[i].exp() / l.iter().map(|x| x.exp()).sum::<f64>();
    let all = run("good.jsonl", &["--label", "good", "--threshold", "0"]);
    for (row, l) in all.iter().zip(&logits) {
        assert!((row["metadata"]["quality"].as_f64().unwrap() - softmax(l, 2)).abs() < 2e-6, "{row}");
    }
    // The best half by the logit of the first label.
    let half = run("half.jsonl", &["--label", "0", "--score", "raw", "--keep-share", "0.5"]);
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b][0].total_cmp(&logits[a][0]));
    let mut best = order[..3].to_vec();
    best.sort_unstable();
    let ids: Vec<String> = best.iter().map(|i| format!("k{i}")).collect();
    assert_eq!(half.iter().map(|r| r["knowledge_id"].as_str().unwrap()).collect::<Vec<_>>(), ids);
    // Windows change the score of the long text, and of no other.
    let windows = run("windows.jsonl", &["--label", "good", "--threshold", "0", "--long", "windows"]);
    let differing: Vec<usize> = (0..all.len()).filter(|&i| all[i] != windows[i]).collect();
    assert_eq!(differing, [all.len() - 1]);
}

/// Bytes do not depend on threads; what was interrupted goes on to the same bytes.
#[test]
fn results_are_the_same_whatever_happens() {
    let folder = Folder::new();
    let model = encoder_case("roberta").join("model");
    let input = rows(&folder, "roberta", 200);
    let filter = |out: &Path, more: &[&str]| {
        let mut arguments =
            args!["data", "filter", input, "--model", model, "--threshold", "0.85", "--out", out].to_vec();
        arguments.extend(more.iter().map(std::ffi::OsString::from));
        arguments
    };
    let [one, two, cut] = ["one.jsonl", "two.jsonl", "cut.jsonl"].map(|name| folder.join(name));
    succeeds(&filter(&one, &["--threads", "1"]));
    succeeds(&filter(&two, &["--threads", "3"]));
    let bytes = |path: &Path| std::fs::read(path).unwrap();
    assert_eq!(bytes(&one), bytes(&two));
    assert!(lines(&one).len() > 100 && lines(&one).len() < 1200);

    // Killed at some moment; where it had finished before, there is nothing to resume.
    let mut child = command().args(filter(&cut, &[])).spawn().unwrap();
    let state = folder.join("cut.jsonl.partial/state.json");
    while !state.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    std::thread::sleep(std::time::Duration::from_millis(30));
    let _ = child.kill();
    let _ = child.wait();
    if state.exists() {
        fails(2, &filter(&cut, &["--resume", "--long", "windows"]), &["long", "same settings"]);
        succeeds(&filter(&cut, &["--resume"]));
    }
    assert_eq!(bytes(&one), bytes(&cut));
}

#[test]
fn perplexity_of_a_language_model() {
    let folder = Folder::new();
    let model = case("llama_plain").join("student");
    let config = json(&model.join("config.json"));
    assert!(config["eos_token_id"].is_u64());
    let vocabulary = config["vocab_size"].as_u64().unwrap();
    // A word a token: `w5` is token 5.
    let lm = folder.join("lm");
    std::fs::create_dir(&lm).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(model.join(name), lm.join(name)).unwrap();
    }
    let vocab: serde_json::Map<String, Value> =
        (0..vocabulary).map(|i| (format!("w{i}"), i.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null, "decoder": null,
        "truncation": null, "padding": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    });
    std::fs::write(lm.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let texts: Vec<Vec<u64>> =
        (0..9).map(|i| (0..3 + 5 * i).map(|j| (i * 31 + j * j * 7) % vocabulary).collect()).collect();
    let words = |t: &[u64]| t.iter().map(|i| format!("w{i}")).collect::<Vec<_>>().join(" ");
    let input: String = texts.iter().map(|t| format!("{}\n", json!({"text": words(t)}))).collect();
    let (rows, out) = (folder.join("rows.jsonl"), folder.join("out.jsonl"));
    std::fs::write(&rows, &input).unwrap();
    succeeds(&args!["data", "filter", rows, "--perplexity", lm, "--max-perplexity", "1e9", "--out", out]);
    let found: Vec<f64> = lines(&out).iter().map(|r| r["metadata"]["perplexity"].as_f64().unwrap()).collect();
    assert_eq!(found.len(), texts.len());

    // What `kfc eval` says of one text alone.
    for (i, text) in texts.iter().enumerate().step_by(4) {
        let alone = folder.join("alone.jsonl");
        std::fs::write(&alone, format!("{}\n", json!({"text": words(text)}))).unwrap();
        let said = succeeds(&args!["eval", "--model", lm, "--task", "ppl", "--data", alone, "--json"]);
        let said: Value = serde_json::from_str(said.trim()).unwrap();
        let ppl = said["metrics"]["ppl"].as_f64().unwrap();
        assert!((found[i] - ppl).abs() < 1e-4 * ppl, "{i}: {} by the filter, {ppl} by eval", found[i]);
    }

    // Without an end of text, a text of one token predicts nothing.
    let mut endless = config.clone();
    endless["eos_token_id"] = Value::Null;
    std::fs::write(lm.join("config.json"), endless.to_string()).unwrap();
    let (word, none) = (folder.join("word.jsonl"), folder.join("none.jsonl"));
    std::fs::write(&word, "{\"text\": \"w1\"}\n").unwrap();
    let report = succeeds(&args![
        "data",
        "filter",
        word,
        "--perplexity",
        lm,
        "--max-perplexity",
        "1e9",
        "--out",
        none,
        "--json"
    ]);
    let report: Value = serde_json::from_str(report.trim()).unwrap();
    assert_eq!(report["dropped"], json!({"not_scored": 1}));
    std::fs::write(lm.join("config.json"), config.to_string()).unwrap();

    // A limit between the third and the fourth of them.
    let mut sorted = found.clone();
    sorted.sort_by(f64::total_cmp);
    let limit = ((sorted[2] + sorted[3]) / 2.0).to_string();
    let few = folder.join("few.jsonl");
    succeeds(&args!["data", "filter", rows, "--perplexity", lm, "--max-perplexity", limit, "--out", few]);
    assert_eq!(lines(&few).len(), 3);
    // Windows score every token too, with less before it.
    let short = folder.join("short.jsonl");
    succeeds(&args![
        "data",
        "filter",
        rows,
        "--perplexity",
        lm,
        "--keep-share",
        "1",
        "--seq-len",
        "8",
        "--long",
        "windows",
        "--out",
        short
    ]);
    assert_eq!(lines(&short)[0], lines(&out)[0]);
    assert_ne!(lines(&short)[8], lines(&out)[8]);
}

#[test]
fn wrong_use_says_what_to_do() {
    let folder = Folder::new();
    let input = rows(&folder, "bert_one", 1);
    let out = folder.join("out.jsonl");
    let (one, three) = (encoder_case("bert_one").join("model"), encoder_case("bert_three").join("model"));
    let filter = |model: &Path, more: &[&str], parts: &[&str]| {
        let mut arguments = args!["data", "filter", input, "--model", model, "--out", out].to_vec();
        arguments.extend(more.iter().map(std::ffi::OsString::from));
        fails(2, &arguments, parts);
        assert!(!out.exists());
    };
    filter(
        &case("llama_plain").join("student"),
        &[],
        &["architecture `llama` is not supported", "bert, roberta"],
    );
    filter(&folder.join("nowhere"), &[], &["nowhere", "no such folder"]);
    filter(&one, &["--threshold", "1.5"], &["--threshold 1.5 is out of range", "from 0 to 1"]);
    filter(&one, &["--score", "raw"], &["--threshold"]);
    filter(&three, &[], &["--label", "`bad`, `plain`, `good`"]);
    filter(&three, &["--label", "best"], &["no label `best`"]);
    filter(&one, &["--seq-len", "2"], &["no room for text", "special tokens"]);

    // Copies of a model, each broken in one way.
    let broken = |name: &str, change: &dyn Fn(&mut Value), leave_out: &str| {
        let copy = folder.join(name);
        std::fs::create_dir(&copy).unwrap();
        let mut config = json(&one.join("config.json"));
        change(&mut config);
        std::fs::write(copy.join("config.json"), config.to_string()).unwrap();
        for file in ["model.safetensors", "tokenizer.json"].into_iter().filter(|file| *file != leave_out) {
            std::fs::copy(one.join(file), copy.join(file)).unwrap();
        }
        copy
    };
    let activation = broken("activation", &|c| c["hidden_act"] = "mish".into(), "");
    filter(&activation, &[], &["hidden_act `mish` is not supported", "gelu"]);
    let headless = broken("headless", &|c| c["architectures"] = json!(["BertModel"]), "");
    filter(&headless, &[], &["`BertModel`", "ForSequenceClassification"]);
    let deeper = broken("deeper", &|c| c["num_hidden_layers"] = 3.into(), "");
    filter(&deeper, &[], &["bert.encoder.layer.2.attention.self.query.weight"]);
    let mute = broken("mute", &|_| (), "tokenizer.json");
    filter(&mute, &[], &["neither tokenizer.json nor vocab.txt"]);
    let fewer = broken("fewer", &|c| c["vocab_size"] = 20.into(), "");
    filter(&fewer, &[], &["embeddings.word_embeddings.weight", "shape"]);

    let lm = case("llama_plain").join("student");
    let plain = args!["data", "filter", input, "--perplexity", lm, "--out", out].to_vec();
    fails(2, &plain, &["--max-perplexity"]);
    fails(2, &[plain.clone(), args!["--keep-share", "1.5"].to_vec()].concat(), &["--keep-share 1.5"]);
    fails(2, &[plain, args!["--max-perplexity", "0.5"].to_vec()].concat(), &["no perplexity is below 1"]);
}
