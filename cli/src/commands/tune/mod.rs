//! `kfc tune`: how a job's kernels run fastest on this machine, and how fast the machine is.

mod calibrate;
mod device;
mod search;

use crate::args::{self, Global, TuneArgs};
use crate::error::Outcome;
use kfc_runtime::config::JobConfig;
use kfc_runtime::data::Loader;
use kfc_runtime::device::Device;
use kfc_runtime::models::Model;
use kfc_runtime::train::{Trainer, data};
use kfc_runtime::tuning::Report;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Runs `kfc tune`.
///
/// # Errors
/// If the job is wrong or fails.
pub fn run(args: &TuneArgs, global: &Global) -> anyhow::Result<Outcome> {
    match &args.config {
        Some(config) if !args.calibrate && args.device == args::Device::Cpu => {
            search::run(config, args, global)
        }
        Some(config) if !args.calibrate => device::run(config, args, global),
        _ => calibrate::run(args, global),
    }
}

/// A trainer at the first step of a job, whose steps nobody keeps.
///
/// # Errors
/// If the job is wrong or does not fit.
pub(crate) fn trainer(job: &JobConfig) -> anyhow::Result<Trainer> {
    trainer_on(&Device::Cpu, job)
}

/// [`trainer`] on a device.
///
/// # Errors
/// As [`trainer`]; and if the device is missing or its kernels cannot be had.
pub(super) fn trainer_on(device: &Device, job: &JobConfig) -> anyhow::Result<Trainer> {
    Ok(Trainer::on(device, job, loader(job)?)?)
}

/// The rows of a job.
fn loader(job: &JobConfig) -> anyhow::Result<Loader> {
    let model = Model::open(&job.model.path, job.model.dtype, job.model.init, job.train.seed)?;
    let rows = data::load(job, &model.config)?;
    Ok(data::loader(job, rows)?)
}

/// What came of a search, as an object.
fn object(report: &Report, file: Option<&PathBuf>) -> Value {
    json!({
        "steps": report.steps, "kernels": report.kernels, "with_choices": report.with_choices, "changed": report.changed,
        "settled": report.settled, "built_in_ms": report.step_ms.map(|ms| ms[0]),
        "tuned_ms": report.step_ms.map(|ms| ms[1]), "file": file,
    })
}

/// What came of a search, in words; `units` are what has choices.
fn told(report: &Report, units: &str) -> String {
    let Report { steps, kernels, with_choices, changed, .. } = report;
    let mut text = format!("{kernels} {units}, {with_choices} of them with choices; {steps} steps taken\n");
    match report.step_ms {
        Some([before, after]) => text.push_str(&format!(
            "{changed} {units} run in another way: {before:.2} -> {after:.2} ms in kernels a step, {:.1} % faster; same bits\n",
            (before / after - 1.0) * 100.0
        )),
        None => text.push_str("nothing is faster than the built-in choices by more than the noise\n"),
    }
    if !report.settled {
        text.push_str("the time was up before all was tried; run this again to go on\n");
    }
    text
}
