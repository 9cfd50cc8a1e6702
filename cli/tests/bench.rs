//! `kfc bench`: the keys that other tools' step benchmarks print, and a prediction that holds.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::succeeds;
use serde_json::Value;

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
    let losses: Vec<f64> = line["losses"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect();
    assert_eq!(losses.len(), 7);
    assert!(losses.windows(2).all(|w| w[1] <= w[0]), "the same rows every step: {losses:?}");
}
