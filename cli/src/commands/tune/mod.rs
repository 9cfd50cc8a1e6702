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
use kfc_runtime::train::{Trainer, Ways, data};

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

/// A job's trainer, as `kfc train` has it before its first step, decided otherwise than by an earlier search; nothing is
/// written.
///
/// # Errors
/// If the job is wrong or does not fit, or the device is missing or its kernels cannot be had.
pub(crate) fn trainer_in(device: &Device, job: &JobConfig, ways: &Ways) -> anyhow::Result<Trainer> {
    Ok(Trainer::in_ways(device, job, loader(job)?, ways)?)
}

/// The rows of a job.
fn loader(job: &JobConfig) -> anyhow::Result<Loader> {
    let model = Model::open(&job.model.path, job.model.dtype, job.model.init, job.train.seed)?;
    let rows = data::load(job, &model.config)?;
    Ok(data::loader(job, rows)?)
}
