//! `kfc eval` beside lm-evaluation-harness: the same model, the same questions, the same numbers. `lm_eval/make_case.py`
//! made the case with the real package (0.4.13); nothing of Python is needed here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Folder, succeeds};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn case() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lm_eval/case")
}

fn expected(task: &str) -> Value {
    let text = std::fs::read_to_string(case().join("expected.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()[task].clone()
}

/// The report's metrics of a task, and what it says of each row.
fn evaluate(task: &str, more: &[&str]) -> (Value, Vec<Value>) {
    let out = Folder::new();
    let (model, data) = (case().join("model"), case().join(format!("{task}.jsonl")));
    let arguments = [
        "eval",
        "--model",
        model.to_str().unwrap(),
        "--task",
        task,
        "--data",
        data.to_str().unwrap(),
        "--out",
        out.path().to_str().unwrap(),
        "--no-gate",
        "all",
        "--json",
        "--batch",
        "5",
    ];
    let arguments: Vec<std::ffi::OsString> = arguments.iter().chain(more).map(|a| a.into()).collect();
    let said = succeeds(&arguments);
    let report: Value = serde_json::from_str(&said).unwrap();
    let rows = std::fs::read_to_string(out.path().join(format!("rows/{task}.jsonl"))).unwrap();
    let rows = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (report["tasks"][0]["metrics"].clone(), rows)
}

fn same(ours: &Value, theirs: &Value) {
    let (ours, theirs) = (ours.as_f64().unwrap(), theirs.as_f64().unwrap());
    assert!((ours - theirs).abs() < 1e-12, "{ours} {theirs}");
}

#[test]
fn choices_have_its_likelihoods_and_accuracies() {
    for task in ["medqa", "choice"] {
        let expected = expected(task);
        let (metrics, rows) = evaluate(task, &[]);
        assert_eq!(rows.len(), 24);
        for (row, theirs) in rows.iter().zip(expected["rows"].as_array().unwrap()) {
            let (ours, theirs) = (row["loglikelihoods"].as_array().unwrap(), theirs.as_array().unwrap());
            assert_eq!(ours.len(), theirs.len());
            for (ours, theirs) in ours.iter().zip(theirs) {
                let (ours, theirs) = (ours.as_f64().unwrap(), theirs.as_f64().unwrap());
                assert!((ours - theirs).abs() < 1e-4, "{task}: {ours} {theirs}");
            }
        }
        same(&metrics["acc"], &expected["metrics"]["acc,none"]);
        same(&metrics["acc_norm"], &expected["metrics"]["acc_norm,none"]);
    }
}

#[test]
fn worked_answers_are_its_answers() {
    let expected = expected("gsm8k");
    let (metrics, rows) = evaluate("gsm8k", &["--shots", "2", "--max-new-tokens", "40"]);
    let answers: Vec<&Value> = rows.iter().map(|row| &row["answer"]).collect();
    assert_eq!(answers, expected["rows"].as_array().unwrap().iter().collect::<Vec<_>>());
    same(&metrics["strict_match"], &expected["metrics"]["exact_match,strict-match"]);
    same(&metrics["flexible_extract"], &expected["metrics"]["exact_match,flexible-extract"]);
}
