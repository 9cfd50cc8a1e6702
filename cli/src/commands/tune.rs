//! `kfc tune --calibrate`: measures this machine, and the kernels of a job where they run.

use crate::args::{Global, TuneArgs};
use crate::config;
use crate::error::Outcome;
use crate::output;
use kfc_runtime::calibration::Calibration;
use kfc_runtime::models::Model;
use kfc_runtime::profile::Machine;
use kfc_runtime::train::{Trainer, data};
use serde_json::json;
use std::time::Duration;

/// Runs `kfc tune`.
///
/// # Errors
/// If the job is wrong or fails. That the times cannot be kept is told, and no error.
pub fn run(args: &TuneArgs, global: &Global) -> anyhow::Result<Outcome> {
    let mut calibration = Calibration::empty(Machine::this());
    let steps = match &args.config {
        None => {
            calibration.measure_rates()?;
            0
        }
        Some(path) => {
            let job = config::load(path, &args.set)?;
            let model = Model::open(&job.model.path, job.model.dtype, job.model.init, job.train.seed)?;
            let rows = data::load(&job, &model.config)?;
            let mut trainer = Trainer::new(&job, data::loader(&job, rows)?)?;
            calibration.measure_job(&mut trainer, Duration::from_secs(args.seconds))?
        }
    };
    let saved = calibration.save();
    if let Err(error) = &saved {
        output::stderr_line(&format!("note      the calibration is not kept: {error}"));
    }
    let file = saved.ok();
    let rates = calibration.rates();
    if global.json {
        output::json_line(&json!({
            "flops_f32": rates.flops_f32, "flops_16": rates.flops_16, "bytes_per_s": rates.bytes,
            "kernels": calibration.kernels(), "steps": steps, "file": file,
        }))?;
        return Ok(Outcome::Done);
    }
    let mut rows = [
        ["f32 products".to_string(), format!("{:.0} GFLOP/s", rates.flops_f32 * 1e-9)],
        ["bf16 products".to_string(), format!("{:.0} GFLOP/s", rates.flops_16 * 1e-9)],
        ["long sums, read plus write".to_string(), format!("{:.1} GB/s", rates.bytes * 1e-9)],
    ]
    .map(|r| r.to_vec())
    .to_vec();
    if steps > 0 {
        rows.push(vec!["kernels timed".into(), format!("{} over {steps} steps", calibration.kernels())]);
    }
    output::write_stdout(&output::table(&rows))?;
    if let Some(file) = file {
        output::stdout_line(&format!("kept in {}", file.display()))?;
    }
    Ok(Outcome::Done)
}
