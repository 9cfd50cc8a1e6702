//! `kfc tune CONFIG`: tries how the job's kernels may cut their work.

use super::{object, told, trainer};
use crate::args::{Global, TuneArgs};
use crate::config;
use crate::error::Outcome;
use crate::output;
use crate::progress::Progress;
use crate::stop;
use kfc_runtime::calibration::Calibration;
use kfc_runtime::profile::Machine;
use kfc_runtime::tuning::{self, Status, Tuning};
use std::path::Path;
use std::time::Duration;

/// How long is searched unless told otherwise.
const SECONDS: u64 = 60;

/// Share of that time in which kernels are timed afterwards, as they run now.
const CALIBRATE: f64 = 0.15;

/// Runs the search, checks that no bit changed, keeps what was found, and times the kernels again for predictions.
///
/// # Errors
/// If the job is wrong or fails, or a choice changes a loss. That nothing can be kept is told, and no error.
pub(super) fn run(path: &Path, args: &TuneArgs, global: &Global) -> anyhow::Result<Outcome> {
    let job = config::load(path, &args.set)?;
    let machine = Machine::this();
    let mut tuning = match args.fresh {
        true => Tuning::empty(machine.clone()),
        false => Tuning::load(&machine),
    };
    let mut calibration = Calibration::empty(machine);
    calibration.measure_rates()?;
    let seconds = args.seconds.unwrap_or(SECONDS);
    let mut progress = Progress::new("second", 0, seconds as usize, global);
    let mut tell = |s: Status| {
        let message = format!("{}  {} of {} kernels settled", s.part, s.kernels[1], s.kernels[0]);
        progress.update(s.elapsed.as_secs().min(seconds) as usize, &message);
    };
    let budget = Duration::from_secs(seconds);
    let report = tuning::search(
        &mut trainer(&job)?,
        &mut tuning,
        calibration.rates(),
        budget,
        stop::flag(),
        &mut tell,
    )?;
    progress.finish();
    let mut fresh = trainer(&job)?;
    tuning::verify(&mut fresh, &tuning, &report.losses)?;
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
        output::json_line(&object(&report, file.as_ref()))?;
        return Ok(Outcome::Done);
    }
    output::write_stdout(&told(&report, "kernels"))?;
    if let Some(file) = file {
        output::stdout_line(&format!("kept in {}", file.display()))?;
    }
    Ok(Outcome::Done)
}
