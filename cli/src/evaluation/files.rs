//! The files of a report.
//!
//! `report.json` and `report.html`; `rows/TASK.jsonl` with what came of every row, `rows/TASK.before.jsonl` of the model
//! that is compared with, and `attacks/TASK.jsonl` with every attacked row.

use super::page;
use super::report::{Report, TaskReport};
use crate::error::InputResult;
use crate::run_dir::write_atomically;
use kfc_runtime::eval::{Evaluation, RowResult};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Makes the folders, before hours of work whose results would have no place.
///
/// # Errors
/// If a folder cannot be made.
pub(crate) fn prepare(folder: &Path) -> anyhow::Result<()> {
    for part in ["rows", "attacks"] {
        let path = folder.join(part);
        std::fs::create_dir_all(&path)
            .map_err(|reason| {
                anyhow::anyhow!("--out: cannot create {}: {reason}; name another folder", path.display())
            })
            .or_bad_input()?;
    }
    Ok(())
}

/// Writes everything below `folder`, which is [`prepare`]d.
///
/// # Errors
/// If a file cannot be written.
pub(crate) fn write(report: &Report, folder: &Path) -> anyhow::Result<()> {
    for task in &report.tasks {
        let name = file_name(&task.task.name);
        let rows = |e: &Evaluation| lines(e.rows.iter().map(|row| row_json(e, row)));
        if !task.measured.evaluation.rows.is_empty() {
            let path = folder.join("rows").join(format!("{name}.jsonl"));
            write_atomically(&path, rows(&task.measured.evaluation).as_bytes())?;
        }
        if let Some(comparison) = &task.comparison {
            let path = folder.join("rows").join(format!("{name}.before.jsonl"));
            write_atomically(&path, rows(&comparison.before).as_bytes())?;
        }
        if !task.measured.attacks.is_empty() {
            let path = folder.join("attacks").join(format!("{name}.jsonl"));
            write_atomically(&path, attacks(task).as_bytes())?;
        }
    }
    let json = format!("{:#}\n", report.to_json());
    write_atomically(&folder.join("report.json"), json.as_bytes())?;
    write_atomically(&folder.join("report.html"), page::render(report).as_bytes())
}

/// A name without what folders are made of.
fn file_name(task: &str) -> String {
    task.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect()
}

fn lines(values: impl Iterator<Item = Value>) -> String {
    values.map(|value| format!("{value}\n")).collect()
}

/// A row with its number for each estimate: the value where it has one of its own, null where nothing is below the line.
fn row_json(evaluation: &Evaluation, row: &RowResult) -> Value {
    let mut out = Map::new();
    out.insert("row".into(), json!(row.row));
    if let Some(correct) = row.correct {
        out.insert("correct".into(), json!(correct));
    }
    for (estimate, part) in evaluation.estimates.iter().zip(&row.parts) {
        out.insert(estimate.name.into(), json!(kfc_runtime::eval::stats::value(&[*part], estimate.form)));
    }
    out.extend(row.detail.clone());
    Value::Object(out)
}

fn attacks(task: &TaskReport) -> String {
    lines(task.measured.attacks.iter().flat_map(|attack| {
        attack.attacked.iter().map(|row| {
            let fell = row.fell.as_ref();
            json!({
                "row": row.row, "perturbation": attack.kind.name(), "queries": row.queries, "fell": fell.is_some(),
                "question": fell.map(|(question, _)| question),
                "answer": fell.and_then(|(_, result)| result.detail.get("answer")),
                "right": fell.and_then(|(_, result)| result.detail.get("right")),
            })
        })
    }))
}
