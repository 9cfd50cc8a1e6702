//! Charts of `metrics.jsonl`.

use super::{Chart, Series, Unit};
use crate::error::InputResult;
use anyhow::Context;
use serde_json::Value;
use std::path::Path;

/// Reads a `metrics.jsonl`: one object a step.
///
/// # Errors
/// If the file cannot be read, or a line is no JSON (the line is named). A last line without a line break is what an
/// interrupted run leaves and is ignored if it does not parse.
pub fn read_metrics(path: &Path) -> anyhow::Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string()).or_bad_input()?;
    let mut rows = Vec::new();
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        match serde_json::from_str(line) {
            Ok(row) => rows.push(row),
            Err(_) if !line.ends_with('\n') => {}
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("{}:{}", path.display(), index + 1))
                    .or_bad_input();
            }
        }
    }
    Ok(rows)
}

/// The curve of `key` over the steps; rows without it are left out.
fn series(rows: &[Value], key: &str, name: &str) -> Series {
    let point = |row: &Value| Some((row.get("step")?.as_f64()?, row.get(key)?.as_f64()?));
    Series { name: name.to_owned(), points: rows.iter().filter_map(point).collect() }
}

fn chart(title: &str, unit: Unit, smooth: bool, series: Vec<Series>) -> Chart {
    let series = series.into_iter().filter(|series| !series.points.is_empty()).collect();
    Chart { title: title.to_owned(), x_label: "step".to_owned(), unit, smooth, series }
}

/// The charts of one run: the loss, its terms, learning rate, gradient norm, speed and memory. Those that the rows have
/// nothing for are left out.
pub fn run_charts(rows: &[Value]) -> Vec<Chart> {
    // EWC's sum is of another size than the terms that are means over tokens, and would flatten them.
    let terms = [("ce", "cross-entropy"), ("kd", "distillation"), ("feat", "features")];
    let charts = vec![
        chart("Loss", Unit::Number, true, vec![series(rows, "loss", "loss")]),
        chart(
            "Terms, unweighted",
            Unit::Number,
            true,
            terms.map(|(key, name)| series(rows, key, name)).into(),
        ),
        chart("EWC penalty, unweighted", Unit::Number, false, vec![series(rows, "ewc", "EWC")]),
        chart("Accuracy on labelled tokens", Unit::Number, true, vec![series(rows, "accuracy", "accuracy")]),
        chart("Learning rate", Unit::Number, false, vec![series(rows, "lr", "lr")]),
        chart("Gradient norm before clipping", Unit::Number, true, vec![series(rows, "grad_norm", "norm")]),
        chart("Tokens a second", Unit::Number, true, vec![series(rows, "tokens_per_s", "tokens/s")]),
        chart("Peak memory", Unit::Bytes, false, vec![series(rows, "peak_bytes", "peak")]),
    ];
    charts.into_iter().filter(|chart| !chart.series.is_empty()).collect()
}

/// The charts of several runs over each other: names with their rows.
pub fn comparison_charts(runs: &[(String, Vec<Value>)]) -> Vec<Chart> {
    let all = |key: &str| runs.iter().map(|(name, rows)| series(rows, key, name)).collect();
    let charts = vec![
        chart("Loss", Unit::Number, true, all("loss")),
        chart("Cross-entropy", Unit::Number, true, all("ce")),
        chart("Gradient norm before clipping", Unit::Number, true, all("grad_norm")),
        chart("Tokens a second", Unit::Number, true, all("tokens_per_s")),
    ];
    charts.into_iter().filter(|chart| !chart.series.is_empty()).collect()
}
