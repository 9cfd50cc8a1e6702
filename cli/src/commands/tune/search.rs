//! `kfc tune CONFIG`: tries how the job's kernels may cut their work, and what is made again in the backward pass.

use super::trainer_in;
use crate::args::{Global, TuneArgs};
use crate::commands::explain;
use crate::config::{self, format_bytes};
use crate::error::Outcome;
use crate::explain::tuned;
use crate::output;
use crate::progress::Progress;
use crate::stop;
use kfc_runtime::RunError;
use kfc_runtime::calibration::Calibration;
use kfc_runtime::config::{JobConfig, RecomputePolicy};
use kfc_runtime::counted;
use kfc_runtime::device::Device;
use kfc_runtime::exec::Copies;
use kfc_runtime::profile::Machine;
use kfc_runtime::train::setup::{self, Target};
use kfc_runtime::train::{Recomputed, Ways};
use kfc_runtime::tuning::{self, Make, PlanEntry, Plans, Report, Status, Tuning};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long is searched unless told otherwise.
const SECONDS: u64 = 60;

/// Share of that time in which plans are timed that make different values again.
pub(super) const PLANS: f64 = 0.3;

/// Share of that time in which what was found is checked together, if another plan is part of it.
const PROVE: f64 = 0.15;

/// Share of that time in which kernels are timed afterwards, as they run now.
const CALIBRATE: f64 = 0.15;

/// Runs the search, checks that no bit changed, keeps what was found, and times the kernels again for predictions.
///
/// # Errors
/// If the job is wrong or fails, a choice changes a loss, or there is no place to keep anything.
pub(super) fn run(path: &Path, args: &TuneArgs, global: &Global) -> anyhow::Result<Outcome> {
    let job = config::load(path, &args.set)?;
    let machine = Machine::this();
    let (known, replaced) = Tuning::of_earlier_searches(&machine)?;
    if let Some(why) = replaced {
        output::stderr_line(&format!("note      {why}; another file takes its place"));
    }
    let mut tuning = if args.fresh { known.forget() } else { known };
    let stop = stop::flag();
    let mut calibration = Calibration::empty(machine);
    calibration.measure_rates()?;
    let seconds = args.seconds.unwrap_or(SECONDS);
    let (start, budget) = (Instant::now(), Duration::from_secs(seconds));
    let mut progress = Progress::new("second", 0, seconds as usize, global);
    let mut tell =
        |part: &str| progress.update((start.elapsed().as_secs() as usize).min(seconds as usize), part);
    let mut make = |ways: &Ways| {
        trainer_in(&Device::Cpu, &job, ways)
            .map_err(|e| e.downcast().unwrap_or_else(|e| RunError::Failed(format!("{e:#}"))))
    };
    let mut plan = Planned::of(
        &job,
        &Device::Cpu,
        &|key| tuning.plan(key).cloned(),
        &mut make,
        budget.mul_f64(PLANS),
        &mut tell,
    )?;
    if let Some((key, entry)) = plan.found() {
        tuning.insert_plan(key, entry);
    }
    let share = if plan.is_to_prove() { 1.0 - PROVE } else { 1.0 };
    let report = tuning::search(
        &mut make(&plan.ways())?,
        &mut tuning,
        calibration.rates(),
        budget.mul_f64(share).saturating_sub(start.elapsed()),
        stop,
        &mut |s: Status| tell(&format!("{}  {} of {} kernels settled", s.part, s.kernels[1], s.kernels[0])),
    )?;
    let mut fresh = make(&plan.ways())?;
    tuning::verify(&mut fresh, &tuning, &report.losses)?;
    if plan.is_to_prove() && !stop.load(Ordering::SeqCst) {
        drop(fresh);
        // Kernels have won already, whatever becomes of the plan. That they cannot be kept is told in the end.
        let _ = tuning.save();
        plan.prove(&tuning, &mut make, budget.mul_f64(PROVE), &mut tell)?;
        fresh = make(&plan.ways())?;
        tuning::verify(&mut fresh, &tuning, &report.losses)?;
    }
    progress.finish();
    if let Some((key, entry)) = plan.found() {
        tuning.insert_plan(key, entry);
    }
    let saved = tuning.save();
    if let Err(error) = &saved {
        output::stderr_line(&format!("note      what was found is not kept: {error}"));
    }
    let file = saved.ok();
    if !stop.load(Ordering::SeqCst) {
        calibration.measure_job(&mut fresh, budget.mul_f64(CALIBRATE))?;
        if let Err(error) = calibration.save() {
            output::stderr_line(&format!("note      the times of kernels are not kept: {error}"));
        }
    }
    if global.json {
        output::json_line(&json!({
            "steps": report.steps, "kernels": report.kernels, "with_choices": report.with_choices, "changed": report.changed,
            "settled": report.settled, "built_in_ms": report.step_ms.map(|ms| ms[0]),
            "tuned_ms": report.step_ms.map(|ms| ms[1]), "transposed_bytes": report.transposed_bytes, "plan": plan.json(),
            "file": file,
        }))?;
        return Ok(Outcome::Done);
    }
    output::write_stdout(&told(&report, stop.load(Ordering::SeqCst)))?;
    output::stdout_line(&plan.told())?;
    if let Some(file) = file {
        output::stdout_line(&format!("kept in {}", file.display()))?;
    }
    Ok(Outcome::Done)
}

/// What a job makes again in the backward pass.
pub(super) struct Planned {
    /// What a tuning knows it by; none where the job itself says what is made again.
    key: Option<String>,
    /// What was found, now or earlier.
    entry: Option<PlanEntry>,
    /// Why nothing was timed.
    untimed: Option<String>,
    /// Whether it was found now.
    is_new: bool,
    /// Milliseconds of a step with nothing and with all that was found.
    together: Option<[f64; 2]>,
}

impl Planned {
    /// Times plans, unless that was done or is not for the planner to choose.
    ///
    /// # Errors
    /// If the job is wrong, or a step fails.
    pub(super) fn of(
        job: &JobConfig,
        device: &Device,
        known: &dyn Fn(&str) -> Option<PlanEntry>,
        make: &mut Make<'_>,
        time: Duration,
        tell: &mut dyn FnMut(&str),
    ) -> anyhow::Result<Planned> {
        let mut plan = Planned { key: None, entry: None, untimed: None, is_new: false, together: None };
        if job.train.recompute != RecomputePolicy::Auto {
            plan.untimed = Some("train.recompute says what is made again".into());
            return Ok(plan);
        }
        let (seq, before) = explain::rows(job)?;
        let key = setup::plan_key(job, seq)?;
        plan.entry = known(&key);
        plan.key = Some(key);
        if plan.entry.is_none() {
            let budgets = setup::budgets(job, seq, &Target::of(device, before)?)?;
            match tuning::recompute(&budgets, job.train.mem_budget, make, time, stop::flag(), tell)? {
                Plans::Timed(mut entry) => {
                    if *device != Device::Cpu {
                        // There plans and kernels are not compared together.
                        entry.adopt();
                    }
                    (plan.entry, plan.is_new) = (Some(entry), true);
                }
                Plans::Untimed(why) => plan.untimed = Some(why),
            }
        }
        Ok(plan)
    }

    /// How the job runs while kernels are tried.
    pub(super) fn ways(&self) -> Ways {
        let recomputed = self.entry.as_ref().map_or(Recomputed::Planned, PlanEntry::leading);
        Ways { copies: Copies::All, recomputed }
    }

    /// Whether a plan leads that has not been compared together with the choices of kernels, also if an earlier search ended
    /// before that.
    fn is_to_prove(&self) -> bool {
        self.entry.as_ref().is_some_and(|e| e.leads.is_some())
    }

    /// Stays with the planner's choice if all that was found is not faster than nothing of it.
    fn prove(
        &mut self,
        tuning: &Tuning,
        make: &mut Make<'_>,
        time: Duration,
        tell: &mut dyn FnMut(&str),
    ) -> anyhow::Result<()> {
        if let Some(entry) = &mut self.entry {
            self.together = tuning::prove(entry, tuning, make, time, stop::flag(), tell)?;
            self.is_new = true;
        }
        Ok(())
    }

    /// What is to be kept of it, and what it is known by.
    pub(super) fn found(&self) -> Option<(String, PlanEntry)> {
        self.key.clone().zip(self.entry.clone()).filter(|_| self.is_new)
    }

    pub(super) fn json(&self) -> Value {
        let mut value =
            self.entry.as_ref().map_or_else(|| json!({"choice": null, "tried": []}), tuned::plan_json);
        value["untimed"] = json!(self.untimed);
        value["together_ms"] = json!(self.together);
        value
    }

    pub(super) fn told(&self) -> String {
        let head = "made again in the backward pass";
        let Some(entry) = &self.entry else {
            return format!(
                "{head}: what the planner chooses; other plans were not timed: {}",
                self.untimed.as_deref().unwrap_or_default()
            );
        };
        let others = entry.tried.len() - 1;
        if entry.leads.is_some() {
            return format!(
                "{head}: what the planner chooses; one of {others} other plans is faster and has yet to be compared together \
                 with all that was found"
            );
        }
        let Some(plan) = entry.chosen() else {
            return format!(
                "{head}: what the planner chooses; none of {others} other plans is faster by more than the noise"
            );
        };
        let (before, after) = (&entry.tried[0], plan.ms);
        format!(
            "{head}: {} (predicted peak {}), {:.2} -> {after:.2} ms a step against what the planner chooses ({}); {others} \
             other plans timed",
            tuned::plan_name(plan),
            format_bytes(plan.peak),
            before.ms,
            format_bytes(before.peak),
        )
    }
}

/// The result in words.
fn told(report: &Report, is_stopped: bool) -> String {
    let mut text = tried(report);
    match report.step_ms {
        Some([before, after]) => text.push_str(&format!(
            "in another way: {}, {before:.2} -> {after:.2} ms a step, {:.1} % faster; same bits\n",
            counted(report.changed, "kernel"),
            (before / after - 1.0) * 100.0
        )),
        None => text.push_str("nothing is faster than the built-in choices by more than the noise\n"),
    }
    if report.transposed_bytes > 0 {
        let size = format_bytes(report.transposed_bytes);
        text.push_str(&format!("{size} of memory for transposed copies of frozen weights\n"));
    }
    text + left(report, is_stopped)
}

/// What was tried, a line.
pub(super) fn tried(report: &Report) -> String {
    let Report { steps, kernels, with_choices, .. } = report;
    let [kernels, steps] = [counted(*kernels, "kernel"), counted(*steps, "step")];
    format!("{kernels}, {with_choices} of them with choices; {steps} taken\n")
}

/// A line if something is left to try.
pub(super) fn left(report: &Report, is_stopped: bool) -> &'static str {
    match (report.settled, is_stopped) {
        (true, _) => "",
        (false, true) => "stopped before all was tried; run this again to go on\n",
        (false, false) => "the time was up before all was tried; run this again to go on\n",
    }
}
