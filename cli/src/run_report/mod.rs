//! `report.html` of a run, made from what lies in its directory: figures, gates, samples before and after, curves, memory
//! over time, kernels, configuration. Whatever is not there is left out.

mod gates;
pub(crate) mod samples;

pub(crate) use gates::adopt;

use crate::explain::{Explanation, draw, text};
use crate::progress::Summary;
use crate::report::{self, Chart, Table};
use crate::run_dir::{RunDir, write_atomically};
use kfc_runtime::calibration::Calibration;
use kfc_runtime::profile::Profile;
use kfc_runtime::tuning::Tuning;
use serde_json::Value;
use std::path::Path;

/// Kernels on the page; `kfc explain` has them all.
const KERNELS: usize = 12;

/// Writes the page, whole or not at all.
///
/// # Errors
/// If a file of the run is damaged, or the page cannot be written.
pub(crate) fn write(run: &RunDir) -> anyhow::Result<()> {
    let title = run.path().file_name().map_or("run".into(), |n| n.to_string_lossy().into_owned());
    let rows = if run.metrics().is_file() { report::read_metrics(&run.metrics())? } else { Vec::new() };
    let mut html = report::head(&format!("kfc: {title}"));
    report::push_summary(&mut html, &figures(run, &rows)?);
    for table in gates::tables(&run.evaluations())? {
        report::push_table(&mut html, &table);
    }
    html.push_str(&samples::section(&samples::read(&run.samples())?));
    let charts: Vec<Chart> = report::run_charts(&rows);
    report::push_charts(&mut html, &charts);
    if run.profile().is_file() {
        let profile = Profile::read(&run.profile()).map_err(kfc_runtime::RunError::from)?;
        push_profile(&mut html, &profile);
    }
    report::push_config(&mut html, &std::fs::read_to_string(run.config())?);
    html.push_str(report::TAIL);
    write_atomically(&run.report(), html.as_bytes())
}

/// What the run came to; while it has not ended, what its last step says.
fn figures(run: &RunDir, rows: &[Value]) -> anyhow::Result<Vec<(String, String)>> {
    if let Some(summary) = read_json(&run.summary())?.as_ref().and_then(Summary::from_json) {
        return Ok(summary.rows());
    }
    let last = |key: &str| rows.last().and_then(|r| r.get(key)).map(Value::to_string);
    let mut figures = vec![("state".to_string(), "has not ended".to_string())];
    figures.extend(["step", "loss"].into_iter().filter_map(|key| Some((key.to_string(), last(key)?))));
    Ok(figures)
}

/// A JSON file that may not be there.
fn read_json(path: &Path) -> anyhow::Result<Option<Value>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path)?;
    let json = serde_json::from_str(&text).map_err(|e| {
        crate::error::input_error(format!("{}: {e}; remove it, or put it right", path.display()))
    })?;
    Ok(Some(json))
}

/// Memory over time of the plan with the largest arena, and the slowest kernels.
fn push_profile(html: &mut String, profile: &Profile) {
    let calibration = Calibration::load(&profile.machine);
    let tuning = Tuning::load(&profile.machine);
    let e = Explanation::new(profile, &calibration, &tuning);
    let largest = profile.plans.iter().zip(&e.memory).max_by_key(|(plan, _)| plan.arena_bytes);
    if let Some((plan, memory)) = largest.filter(|(plan, _)| !plan.blocks.is_empty()) {
        html.push_str(&draw::timeline(&e, plan, memory));
    }
    let mut rows = text::kernel_rows(&e, KERNELS);
    let columns = rows.remove(0);
    let shown = rows.len();
    let note = format!(
        "The {shown} slowest of {} kernels; times are those of a step, the roofline is what this machine can do.",
        e.kernels.len()
    );
    report::push_table(html, &Table { title: "Kernels".into(), note, columns, rows });
}
