//! `kfc tune --calibrate`: measures this machine, and the kernels of a job where they run.

use super::trainer_in;
use crate::args::{Global, TuneArgs};
use crate::config;
use crate::error::Outcome;
use crate::output;
use kfc_runtime::calibration::{Calibration, Check};
use kfc_runtime::device::Device;
use kfc_runtime::device::cuda::Gpu;
use kfc_runtime::profile::Machine;
use kfc_runtime::train::Ways;
use serde_json::json;
use std::time::Duration;

/// How long a job's steps are timed unless told otherwise.
const SECONDS: u64 = 10;

/// Median error from which times are not worth much.
const QUIET: f64 = 0.1;

/// Runs `kfc tune --calibrate`.
///
/// # Errors
/// If the job is wrong or fails. That the times cannot be kept is told, and no error.
pub(super) fn run(args: &TuneArgs, global: &Global) -> anyhow::Result<Outcome> {
    let device = args.device.plain();
    let mut calibration = match &device {
        Device::Cpu => {
            let mut calibration = Calibration::empty(Machine::this());
            calibration.measure_rates()?;
            calibration
        }
        Device::Cuda { index, .. } => Calibration::of_device(&Gpu::open(*index)?)?,
    };
    let (steps, check) = match &args.config {
        None => (0, None),
        Some(path) => {
            let job = config::load(path, &args.set)?;
            let budget = Duration::from_secs(args.seconds.unwrap_or(SECONDS));
            let steps = calibration.measure_job(&mut trainer_in(&device, &job, &Ways::default())?, budget)?;
            // The steps of another trainer were not used: what they show holds for runs.
            (
                steps,
                Some(calibration.check_job(&mut trainer_in(&device, &job, &Ways::default())?, budget / 2)?),
            )
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
            "check": check.map(|c| json!({
                "steps": c.steps, "median_error": c.errors.median, "weighted_median_error": c.errors.weighted,
                "scaled_median_error": calibration.scaled_error(),
            })),
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
    if let Some(c) = check {
        output::write_stdout(&checked(&calibration, c))?;
    }
    if check.is_some_and(|c| c.errors.median > QUIET) {
        output::stderr_line(
            "note      times changed while they were taken; run this again when the machine is idle",
        );
    }
    if let Some(file) = file {
        output::stdout_line(&format!("kept in {}", file.display()))?;
    }
    Ok(Outcome::Done)
}

/// What predictions are worth: where a kernel was timed, and where others of its operation were.
fn checked(calibration: &Calibration, check: Check) -> String {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let mut text = format!(
        "predicted times against {} other steps: median error {} ({} weighted by time)\n",
        check.steps,
        percent(check.errors.median),
        percent(check.errors.weighted)
    );
    if let Some(error) = calibration.scaled_error() {
        text.push_str(&format!(
            "each kernel from others of its operation: median error {}\n",
            percent(error)
        ));
    }
    text
}
