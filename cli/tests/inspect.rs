//! `kfc inspect`: parity with transformers' attention weights and captum's input x gradient (`parity/make_inspect.py`), the
//! page in a browser, and what it refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::browser::{chromium, figure, visit};
use common::*;
use serde_json::Value;
use std::ffi::OsString;
use std::path::Path;

/// Allowed difference from float64 models, of the largest magnitude.
const TOLERANCE: f64 = 2e-5;

fn inspect(model: &Path, more: &[OsString]) -> Value {
    let mut arguments = args!["--json", "inspect", "--model", model].to_vec();
    arguments.extend_from_slice(more);
    serde_json::from_str(&succeeds(&arguments)).unwrap()
}

fn numbers(value: &Value, key: &str) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|t| t[key].as_f64().unwrap() as f32).collect()
}

fn close(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let error = relative(got, expected);
    assert!(error < TOLERANCE, "{what}: off by {error:.1e}");
}

#[test]
fn what_is_shown_is_what_transformers_and_captum_compute() {
    for name in ["llama", "gqa_yarn_ewc_delta", "qwen2_yarn_jsd_tied"] {
        let case = case(name);
        let expected = tensors(&case.join("expected_inspect.safetensors"));
        let common = args!["--adapter", case.join("adapter"), "--tokens", case.join("tokens.safetensors")];
        let found = inspect(&case.join("student"), &common);
        assert_eq!(found["target"]["id"].as_f64().unwrap() as f32, expected["target"].values[0], "{name}");
        assert_eq!(found["target"]["rank"], 1, "{name}");
        close(name, &[found["target"]["logit"].as_f64().unwrap() as f32], &expected["logit"].values);
        close(name, &[found["cross_entropy"].as_f64().unwrap() as f32], &expected["loss"].values);
        close(name, &numbers(&found["tokens"], "attribution"), &expected["attribution.logit"].values);
        let of_loss = inspect(&case.join("student"), &[common.as_slice(), &args!["--loss"]].concat());
        close(name, &numbers(&of_loss["tokens"], "attribution"), &expected["attribution.loss"].values);

        for (i, layer) in found["attention"].as_array().unwrap().iter().enumerate() {
            let want = &expected[&format!("attention.{i}")];
            let seq = want.dims[1];
            let rows = layer.as_array().unwrap().iter().flat_map(|head| head.as_array().unwrap());
            let got: Vec<f32> = rows
                .flat_map(|row| {
                    let row = row.as_array().unwrap().iter().map(|w| w.as_f64().unwrap() as f32);
                    row.chain(std::iter::repeat(0.0)).take(seq)
                })
                .collect();
            close(name, &got, &want.values);
        }
    }
}

/// With the scale of the last norm held fixed a logit is a sum; the parts must add up to it.
#[test]
fn contributions_add_up_to_the_logit() {
    let case = case("llama");
    let rows = case.join("tokens.safetensors");
    for position in ["0", "7", "20"] {
        let found =
            inspect(&case.join("student"), &args!["--tokens", rows, "--row", "2", "--position", position]);
        let sum: f64 = numbers(&found["contributions"], "logit").iter().map(|v| f64::from(*v)).sum();
        let logit = found["target"]["logit"].as_f64().unwrap();
        assert!((sum - logit).abs() < 1e-4 * logit.abs().max(1.0), "{position}: {sum} against {logit}");
        assert_eq!(found["contributions"].as_array().unwrap().len(), 5);
        // What comes later cannot matter.
        let later = &numbers(&found["tokens"], "attribution")[position.parse::<usize>().unwrap() + 1..];
        assert!(later.iter().all(|v| *v == 0.0), "{later:?}");
    }
}

/// ‖s·B·A‖ from the merged weights, and a Fisher diagonal summed by hand.
#[test]
fn what_moved_and_where_fisher_is_large() {
    let (folder, case) = (Folder::new(), case("llama"));
    let (student, adapter) = (case.join("student"), case.join("adapter"));
    let merged = folder.join("merged");
    succeeds(&args!["merge", "--model", student, "--adapter", adapter, "--out", merged]);
    let fisher = case.join("fisher.safetensors");
    let found = inspect(&student, &args!["--adapter", adapter, "--fisher", fisher]);
    assert!(found.get("tokens").is_none() && found.get("attention").is_none());
    let [before, after] = [&student, &merged].map(|m| tensors(&m.join("model.safetensors")));
    let moved = found["moved"].as_array().unwrap();
    assert_eq!(moved.len(), 14);
    for m in moved {
        let name = format!("{}.weight", m["module"].as_str().unwrap());
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let (w, v) = (&before[&name].values, &after[&name].values);
        let change = norm(&mut w.iter().zip(v).map(|(a, b)| f64::from(*b) - f64::from(*a)));
        let weight = norm(&mut w.iter().map(|a| f64::from(*a)));
        close(&name, &[m["change"].as_f64().unwrap() as f32], &[change as f32]);
        close(&name, &[m["relative"].as_f64().unwrap() as f32], &[(change / weight) as f32]);
        let rank = m["effective_rank"].as_f64().unwrap();
        assert!((1.0..=4.0).contains(&rank), "{rank}");
    }
    let diagonal = tensors(&fisher);
    let total: f64 = diagonal.values().flat_map(|t| &t.values).map(|v| f64::from(*v)).sum();
    for t in found["fisher"].as_array().unwrap() {
        let want = &diagonal[t["name"].as_str().unwrap()];
        let sum: f64 = want.values.iter().map(|v| f64::from(*v)).sum();
        assert!((t["share"].as_f64().unwrap() - sum / total).abs() < 1e-9);
        let at: Vec<usize> =
            t["max_at"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect();
        assert_eq!(f64::from(want.values[at[0] * want.dims[1] + at[1]]), t["max"].as_f64().unwrap());
    }
}

#[test]
fn a_browser_shows_the_page() {
    let Some(browser) = chromium() else { return };
    let world = World::new();
    let (folder, page) = (Folder::new(), world.join("page.html"));
    let adapter = case("llama").join("adapter");
    let prompt = "w1 w2 w3 w5 w8 w13 w21 w34";
    let found = inspect(
        &world.join("student"),
        &args![
            "--adapter",
            adapter,
            "--prompt",
            prompt,
            "--fisher",
            case("llama").join("fisher.safetensors"),
            "--html",
            page
        ],
    );
    let tokens = found["tokens"].as_array().unwrap().len();
    let shown = visit(&browser, &folder, &page);
    assert!(shown.console.is_empty(), "{:?}", shown.console);
    assert!(shown.requests.is_empty(), "{:?}", shown.requests);
    // Written by the script: where the last token looks most, in the mean over the heads of the first layer.
    let reading = shown.dom.split("id=\"reading\"").nth(1).unwrap();
    assert!(
        reading[..reading.find("</output>").unwrap()].contains(&format!("{} “", tokens - 1)),
        "{reading}"
    );
    assert_eq!(shown.dom.matches("<button type=\"button\"").count(), tokens);
    assert_eq!(figure(&shown.dom, "Contributions").matches("class=\"bar\"").count(), 5);
    for heading in ["Tokens", "Attention", "Next token", "What the adapter moves", "Where Fisher is large"] {
        assert!(shown.dom.contains(&format!("<h2>{heading}</h2>")), "{heading}");
    }
    assert!(shown.picture.colours.len() > 200, "{} colours", shown.picture.colours.len());
}

#[test]
fn what_it_refuses() {
    let world = World::new();
    let (student, case) = (world.join("student"), case("llama"));
    let rows = case.join("tokens.safetensors");
    let refused = |more: &[OsString], parts: &[&str]| {
        let mut arguments = args!["inspect", "--model", student].to_vec();
        arguments.extend_from_slice(more);
        fails(2, &arguments, parts);
    };
    refused(&args!["--prompt", ""], &["--prompt has no tokens"]);
    refused(&args!["--prompt", "w1 w2 w3", "--max-tokens", "2"], &["3 tokens", "--max-tokens"]);
    refused(&args!["--prompt", "w1 w2", "--position", "2"], &["position 2", "2 tokens"]);
    refused(&args!["--prompt", "w1 w2", "--target", "w1 w2"], &["2 tokens", "must be one"]);
    refused(&args!["--prompt", "w1", "--loss"], &["--loss"]);
    refused(&args!["--tokens", rows, "--row", "8"], &["8 rows"]);
    let other = common::case("qwen2_yarn_jsd_tied");
    refused(&args!["--prompt", "w1", "--adapter", other.join("adapter")], &["adapter"]);
    let strange = world.join("fisher.safetensors");
    copy_file(&case.join("fisher.safetensors"), &strange);
    edit(&strange, "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight", |t| {
        t.0 = "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight".into();
    });
    refused(&args!["--fisher", strange], &["layers.9", "another model"]);
    // No text, no adapter, no Fisher; and a model without a tokenizer.
    for (arguments, part) in [
        (args!["inspect", "--model", student].to_vec(), "nothing to look at"),
        (
            args!["inspect", "--model", student, "--adapter", case.join("adapter"), "--loss"].to_vec(),
            "--loss",
        ),
        (args!["inspect", "--model", case.join("student"), "--prompt", "w1"].to_vec(), "tokenizer.json"),
    ] {
        let ended = kfc(&arguments);
        let message = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(ended.status.code() == Some(2) && message.contains(part), "{message}");
    }
}

fn copy_file(from: &Path, to: &Path) {
    std::fs::copy(from, to).unwrap();
}
