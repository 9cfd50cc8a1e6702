//! Gates of evaluations that belong to a run: kept in its `eval` folder, one file an evaluation.

use super::read_json;
use crate::error::input_error;
use crate::report::Table;
use crate::run_dir::{RunDir, write_atomically};
use kfc_runtime::files;
use serde_json::Value;
use std::path::Path;

/// The file of an evaluation's folder that is read.
const REPORT: &str = "report.json";

/// Takes the evaluation that `kfc eval --out` wrote into the run's folder, under the name of its own folder.
///
/// # Errors
/// If there is none, or it is damaged.
pub(crate) fn adopt(run: &RunDir, folder: &Path) -> anyhow::Result<()> {
    let path = folder.join(REPORT);
    let Some(json) = read_json(&path)? else {
        return Err(input_error(format!(
            "{} holds no {REPORT}; give a folder that `kfc eval --out DIR` wrote",
            folder.display()
        )));
    };
    rows(&json, &path)?;
    let name = folder.file_name().map_or("evaluation".into(), |n| n.to_string_lossy().into_owned());
    std::fs::create_dir_all(run.evaluations())?;
    write_atomically(&run.evaluations().join(format!("{name}.json")), json.to_string().as_bytes())
}

/// A table of gates for each evaluation in the folder.
///
/// # Errors
/// If a file is damaged.
pub(super) fn tables(folder: &Path) -> anyhow::Result<Vec<Table>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut tables = Vec::new();
    for path in files::list_files(folder).map_err(kfc_runtime::RunError::from)? {
        let path = folder.join(path);
        let Some(json) = read_json(&path)? else { continue };
        let name = path.file_stem().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        tables.push(Table {
            title: format!("Gates of {name}"),
            note: "What the evaluation asked for and what was measured.".into(),
            columns: ["gate", "measured", "outcome"].map(String::from).to_vec(),
            rows: rows(&json, &path)?,
        });
    }
    Ok(tables)
}

/// The gates of a report: what was asked, what was measured, what became of it.
fn rows(json: &Value, path: &Path) -> anyhow::Result<Vec<Vec<String>>> {
    let row = |gate: &Value| {
        let asked = gate.get("gate")?.as_str()?.to_owned();
        let value = gate.get("value").and_then(Value::as_f64);
        let outcome = match gate.get("passed").and_then(Value::as_bool) {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "not measured",
        };
        Some(vec![asked, value.map_or("-".into(), |v| format!("{v:.4}")), outcome.into()])
    };
    let rows = json.get("gates").and_then(Value::as_array).and_then(|gates| gates.iter().map(row).collect());
    rows.ok_or_else(|| input_error(format!("{}: is no report of `kfc eval`; remove it", path.display())))
}
