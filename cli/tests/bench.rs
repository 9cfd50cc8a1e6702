//! `kfc bench`: the keys that other tools' step benchmarks print, and a prediction that holds.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Folder, fails, succeeds};
use serde_json::Value;
use std::path::Path;

#[test]
fn tiny_prints_the_keys_of_its_peers() {
    let stdout = succeeds(&["bench", "tiny", "--dtype", "f32", "--json"].map(Into::into));
    let line: Value = serde_json::from_str(&stdout).unwrap();
    let number = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key}: {line}"));
    assert_eq!((line["workload"].as_str(), line["dtype"].as_str()), (Some("tiny"), Some("f32")));
    assert!(number("tokens_per_s") > 0.0 && number("step_ms") > 0.0);
    let (peak, predicted) = (number("peak_bytes"), number("predicted_peak_bytes"));
    assert!(
        (peak - predicted).abs() <= 0.02 * peak + f64::from(16 << 20),
        "{predicted} predicted, {peak} measured"
    );
    assert!(number("first_step_ms") > 0.0 && number("cold_start_ms") > number("first_step_ms"));
    let losses: Vec<f64> = line["losses"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect();
    assert_eq!(losses.len(), 7);
    assert!(losses.windows(2).all(|w| w[1] <= w[0]), "the same rows every step: {losses:?}");
}

#[test]
fn what_is_kept_trains_as_it_did() {
    let dir = Folder::new();
    let work = dir.join("work");
    let bench = |keep: &Path| args!["bench", "tiny", "--dtype", "f32", "--json", "--keep", keep];
    let line: Value = serde_json::from_str(&succeeds(&bench(&work))).unwrap();
    for file in
        ["student/config.json", "teacher/config.json", "rows.safetensors", "snapshot/adapter_config.json"]
    {
        assert!(work.join(file).is_file(), "{file}");
    }
    // Again into the same folder.
    let again: Value = serde_json::from_str(&succeeds(&bench(&work))).unwrap();
    assert_eq!(line["losses"], again["losses"]);
    // As any job.
    let run = dir.join("run");
    succeeds(&args!["train", work.join("job.toml"), "--out", run]);
    let trained: Vec<f64> = std::fs::read_to_string(run.join("metrics.jsonl"))
        .unwrap()
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap()["loss"].as_f64().unwrap())
        .collect();
    let benched: Vec<f64> = line["losses"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect();
    assert_eq!(trained.len(), benched.len());
    assert!(trained.iter().zip(&benched).all(|(a, b)| (a - b).abs() < 1e-6), "{trained:?} {benched:?}");
    // Not over other people's files.
    let other = dir.join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("notes.txt"), "mine").unwrap();
    fails(2, &bench(&other), &["--keep", "other files"]);
    assert_eq!(common::names(&other), ["notes.txt"]);
}

#[test]
fn generation_is_timed_in_two_parts() {
    let stdout = succeeds(&args!["bench", "tiny", "--generate", "--prompt", "70", "--new", "5", "--json"]);
    let line: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((line["prompt"].as_u64(), line["new"].as_u64()), (Some(70), Some(5)));
    for rate in ["prefill_tokens_per_s", "decode_tokens_per_s"] {
        assert!(line[rate].as_f64().unwrap() > 0.0, "{line}");
    }
    let tokens = line["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), 5);
    assert!(tokens.iter().all(|t| t.as_u64().unwrap() < 8192), "{line}");
    let output = common::kfc(&args!["bench", "tiny", "--prompt", "8"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--generate"));
}
