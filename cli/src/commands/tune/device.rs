//! `kfc tune CONFIG --device cuda`: tries how the job's kernels may be made for a GPU.

use super::loader;
use super::search::{PLANS, Planned, left, tried};
use crate::args::{Global, TuneArgs};
use crate::config;
use crate::error::Outcome;
use crate::output;
use crate::progress::Progress;
use crate::stop;
use kfc_kernels::tile::{Choice, Choices};
use kfc_runtime::RunError;
use kfc_runtime::calibration::Calibration;
use kfc_runtime::counted;
use kfc_runtime::device::Device;
use kfc_runtime::device::cuda::Gpu;
use kfc_runtime::train::{Trainer, Ways};
use kfc_runtime::triton::Python;
use kfc_runtime::tuning::device::{self, DeviceTuning, Heads, Settings};
use kfc_runtime::tuning::{Report, Status};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

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
    let (mut tuning, replaced) = DeviceTuning::of_earlier_searches(&machine, args.fresh)?;
    if let Some(why) = replaced {
        output::stderr_line(&format!("note      {why}; another file takes its place"));
    }
    let seconds = args.seconds.unwrap_or(SECONDS);
    let mut progress = Progress::new("second", 0, seconds as usize, global);
    let (start, budget) = (Instant::now(), Duration::from_secs(seconds));
    let mut tell =
        |part: &str| progress.update((start.elapsed().as_secs() as usize).min(seconds as usize), part);
    let mut calibration = Calibration::of_device(&gpu)?;
    let made = |choices: Choices, ways: &Ways| -> Result<Trainer, RunError> {
        let loader =
            loader(&job).map_err(|e| e.downcast().unwrap_or_else(|e| RunError::Failed(format!("{e:#}"))))?;
        Trainer::with_choices(&device, &job, loader, choices, ways)
    };
    let mut make = |ways: &Ways| made(Choices::default(), ways);
    let known = |key: &str| tuning.plan(key).cloned();
    let plan = Planned::of(&job, &device, &known, &mut make, budget.mul_f64(PLANS), &mut tell)?;
    if let Some((key, entry)) = plan.found() {
        tuning.insert_plan(key, entry);
    }
    let takes_other_bits = args.allow_other_bits;
    let settings = || Settings {
        tilings: args.tilings,
        takes_other_bits,
        python: Python::of_job(&job),
        budget: budget.saturating_sub(start.elapsed()),
        stop: stop::flag(),
    };
    let mut trainer = make(&plan.ways())?;
    let heads = device::search_heads(&mut trainer, &mut tuning, &settings(), &mut tell)?;
    if heads.steps > 0 || !heads.changed.is_empty() {
        drop(trainer);
        trainer = made(tuning.heads(), &plan.ways())?;
    }
    let settings = settings();
    let (mut report, no_triton) = device::search(&mut trainer, &mut tuning, settings, &mut |s: Status| {
        tell(&format!("{}  {} of {} kernels settled", s.part, s.kernels[1], s.kernels[0]));
    })?;
    progress.finish();
    report.steps += heads.steps;
    report.settled &= heads.settled;
    if !heads.losses.is_empty() {
        // As built in, heads too.
        report.losses.clone_from(&heads.losses);
    }
    if let Some(why) = no_triton {
        output::stderr_line(&format!("note      kernels in Triton are not tried: {why}"));
    }
    // One job at a time in the device's memory.
    drop(trainer);
    let mut fresh = Trainer::with_choices(&device, &job, loader(&job)?, tuning.choices(), &plan.ways())?;
    device::verify(&mut fresh, &report.losses)?;
    let other_bits = fresh.other_bits().len();
    let saved = tuning.save();
    if let Err(error) = &saved {
        output::stderr_line(&format!("note      what was found is not kept: {error}"));
    }
    let file = saved.ok();
    let is_stopped = stop::flag().load(Ordering::SeqCst);
    if !is_stopped {
        calibration.measure_job(&mut fresh, budget.mul_f64(CALIBRATE))?;
        if let Err(error) = calibration.save() {
            output::stderr_line(&format!("note      the times of kernels are not kept: {error}"));
        }
    }
    if global.json {
        output::json_line(&json!({
            "steps": report.steps, "kernels": report.kernels, "with_choices": report.with_choices, "changed": report.changed,
            "settled": report.settled, "built_in_ms": report.step_ms.map(|ms| ms[0]),
            "tuned_ms": report.step_ms.map(|ms| ms[1]), "other_bits": other_bits, "heads": heads_json(&heads),
            "plan": plan.json(), "file": file,
        }))?;
        return Ok(Outcome::Done);
    }
    output::write_stdout(&told(&report, other_bits, is_stopped))?;
    output::write_stdout(&heads_told(&heads))?;
    output::stdout_line(&plan.told())?;
    if let Some(file) = file {
        output::stdout_line(&format!("kept in {}", file.display()))?;
    }
    Ok(Outcome::Done)
}

fn heads_json(heads: &Heads) -> Value {
    let one = |(key, choice, ms): &(String, Choice, Option<[f64; 2]>)| {
        json!({
            "key": key, "choice": choice.to_string(), "built_in_ms": ms.map(|ms| ms[0]), "tuned_ms": ms.map(|ms| ms[1]),
        })
    };
    heads.changed.iter().map(one).collect()
}

/// What was found for heads, a line each.
fn heads_told(heads: &Heads) -> String {
    let one = |(key, choice, ms): &(String, Choice, Option<[f64; 2]>)| {
        let tokens = |c: Choice| c.chunk.unwrap_or_default();
        let gain = ms.map_or("as an earlier search found".into(), |[before, after]| {
            format!("{before:.2} -> {after:.2} ms in kernels a step")
        });
        format!(
            "logits of {} tokens at once, {} as built in: {gain}\n",
            tokens(*choice),
            tokens(Choice::builtin(key))
        )
    };
    heads.changed.iter().map(one).collect()
}

/// The result in words.
fn told(report: &Report, other_bits: usize, is_stopped: bool) -> String {
    let mut text = tried(report);
    match report.step_ms {
        Some([before, after]) => text.push_str(&format!(
            "made in another way: {}, {before:.2} -> {after:.2} ms in kernels a step, {:.1} % faster; {}\n",
            counted(report.changed, "kernel"),
            (before / after - 1.0) * 100.0,
            match other_bits {
                0 => "same bits".into(),
                n => format!("{n} of them with other bits"),
            }
        )),
        None => text.push_str("nothing is faster than the built-in kernels by more than the noise\n"),
    }
    text + left(report, is_stopped)
}
