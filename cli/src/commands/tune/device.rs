//! `kfc tune CONFIG --device cuda`: tries how the job's kernels may be made for a GPU.

use super::loader;
use crate::args::{Global, TuneArgs};
use crate::config;
use crate::error::Outcome;
use crate::output;
use crate::progress::Progress;
use crate::stop;
use kfc_kernels::tile::Choices;
use kfc_runtime::calibration::Calibration;
use kfc_runtime::device::Device;
use kfc_runtime::device::cuda::Gpu;
use kfc_runtime::train::Trainer;
use kfc_runtime::tuning::device::{self, DeviceTuning, Settings};
use kfc_runtime::tuning::{Report, Status};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// How long is searched unless told otherwise.
const SECONDS: u64 = 60;

/// Share of that time in which kernels are timed afterwards, as they run now.
const CALIBRATE: f64 = 0.15;

/// Runs the search, checks that no bit of a loss changed, keeps what was found, and times the kernels again for predictions.
///
/// # Errors
/// If the job is wrong or fails, or a kernel breaks the device. That nothing can be kept is told, and no error.
pub(super) fn run(path: &Path, args: &TuneArgs, global: &Global) -> anyhow::Result<Outcome> {
    let job = config::load(path, &args.set)?;
    let device = args.device.plain();
    let Device::Cuda { index, .. } = &device else { return super::search::run(path, args, global) };
    let gpu = Gpu::open(*index)?;
    let machine = gpu.info.machine();
    let mut tuning = match args.fresh {
        true => DeviceTuning::fresh(&machine),
        false => DeviceTuning::load(&machine),
    };
    let seconds = args.seconds.unwrap_or(SECONDS);
    let mut progress = Progress::new("second", 0, seconds as usize, global);
    let mut tell = |s: Status| {
        let message = format!("{}  {} of {} kernels settled", s.part, s.kernels[1], s.kernels[0]);
        progress.update(s.elapsed.as_secs().min(seconds) as usize, &message);
    };
    let budget = Duration::from_secs(seconds);
    let mut calibration = Calibration::of_device(&gpu)?;
    let takes_other_bits = args.allow_other_bits;
    let settings = Settings { tilings: args.tilings, takes_other_bits, budget, stop: stop::flag() };
    let mut trainer = Trainer::with_choices(&device, &job, loader(&job)?, Choices::default())?;
    let (report, no_triton) = device::search(&mut trainer, &mut tuning, settings, &mut tell)?;
    progress.finish();
    if let Some(why) = no_triton {
        output::stderr_line(&format!("note      kernels in Triton are not tried: {why}"));
    }
    // One job at a time in the device's memory.
    drop(trainer);
    let mut fresh = Trainer::with_choices(&device, &job, loader(&job)?, tuning.choices())?;
    device::verify(&mut fresh, &report.losses, &tuning)?;
    let other_bits = fresh.other_bits().len();
    let saved = tuning.save();
    if let Err(error) = &saved {
        output::stderr_line(&format!("note      what was found is not kept: {error}"));
    }
    let file = saved.ok();
    calibration.measure_job(&mut fresh, budget.mul_f64(CALIBRATE))?;
    if let Err(error) = calibration.save() {
        output::stderr_line(&format!("note      the times of kernels are not kept: {error}"));
    }
    if global.json {
        output::json_line(&json!({
            "steps": report.steps, "kernels": report.kernels, "with_choices": report.with_choices, "changed": report.changed,
            "settled": report.settled, "built_in_ms": report.step_ms.map(|ms| ms[0]),
            "tuned_ms": report.step_ms.map(|ms| ms[1]), "other_bits": other_bits, "file": file,
        }))?;
        return Ok(Outcome::Done);
    }
    output::write_stdout(&told(&report, other_bits))?;
    if let Some(file) = file {
        output::stdout_line(&format!("kept in {}", file.display()))?;
    }
    Ok(Outcome::Done)
}

/// The result in words.
fn told(report: &Report, other_bits: usize) -> String {
    let Report { steps, kernels, with_choices, changed, .. } = report;
    let mut text = format!("{kernels} kernels, {with_choices} of them with choices; {steps} steps taken\n");
    match report.step_ms {
        Some([before, after]) => text.push_str(&format!(
            "{changed} kernels are made in another way: {before:.2} -> {after:.2} ms in kernels a step, {:.1} % faster; {}\n",
            (before / after - 1.0) * 100.0,
            match other_bits {
                0 => "same bits".into(),
                n => format!("{n} of them with other bits"),
            }
        )),
        None => text.push_str("nothing is faster than the built-in kernels by more than the noise\n"),
    }
    if !report.settled {
        text.push_str("the time was up before all was tried; run this again to go on\n");
    }
    text
}
