//! `kfc explain`: where time and memory of a step go. Of a run, from its `profile.json`; of a job, by planning its step
//! without loading a weight.

use crate::args::{Device, ExplainArgs, Global};
use crate::config;
use crate::error::{Outcome, input_error};
use crate::explain::{Explanation, json, page, text};
use crate::output;
use crate::run_dir::{RunDir, write_atomically};
use kfc_runtime::calibration::Calibration;
use kfc_runtime::config::JobConfig;
use kfc_runtime::memory::{self, Held};
use kfc_runtime::models::Model;
use kfc_runtime::profile::Profile;
use kfc_runtime::train::data;
use kfc_runtime::train::setup::{self, Target};
use kfc_runtime::tuning::Tuning;
use kfc_runtime::tuning::device::DeviceTuning;

/// Runs `kfc explain`.
///
/// # Errors
/// If the input is wrong or the page cannot be written.
pub fn run(args: &ExplainArgs, global: &Global) -> anyhow::Result<Outcome> {
    let mut key = None;
    let profile = if args.target.is_dir() {
        if !args.set.is_empty() {
            return Err(input_error("--set is for a configuration; a run is explained as it ran"));
        }
        if args.device != Device::Cpu {
            return Err(input_error("--device is for a configuration; a run is explained where it ran"));
        }
        of_run(&RunDir::open(&args.target)?)?
    } else {
        let job = config::load(&args.target, &args.set)?;
        let (seq, before) = rows(&job)?;
        key = Some(setup::plan_key(&job, seq)?);
        setup::predict(&job, seq, &Target::of(&args.device.plain(), before)?)?
    };
    let calibration = Calibration::load(&profile.machine).with_stated(profile.stated);
    let tuning = Tuning::load(&profile.machine);
    let unused = match profile.machine.is_gpu() {
        true => DeviceTuning::unused(&profile.machine),
        false => Tuning::unused(&profile.machine),
    };
    if let Some(note) = unused {
        output::stderr_line(&format!("note      {note}"));
    }
    let mut explanation = Explanation::new(&profile, &calibration, &tuning);
    let on_gpu = profile.machine.is_gpu().then(|| DeviceTuning::load(&profile.machine));
    explanation.plan = key.and_then(|key| match &on_gpu {
        Some(on_gpu) => on_gpu.plan(&key),
        None => tuning.plan(&key),
    });
    if let Some(path) = &args.html {
        let title = format!("kfc explain {}", args.target.display());
        write_atomically(path, page::render(&explanation, &title).as_bytes())?;
    }
    if global.json {
        output::json_line(&json::object(&explanation))?;
    } else {
        output::write_stdout(&text::render(&explanation))?;
    }
    Ok(Outcome::Done)
}

fn of_run(run: &RunDir) -> anyhow::Result<Profile> {
    if !run.profile().is_file() {
        return Err(input_error(format!(
            "{} has no profile.json, which a run writes when it ends; explain its {} instead",
            run.path().display(),
            run.config().display()
        )));
    }
    Ok(Profile::read(&run.profile()).map_err(kfc_runtime::RunError::from)?)
}

/// Tokens of a row of the job's data, and what is held with the rows in memory.
///
/// # Errors
/// If the model or the rows cannot be read.
pub fn rows(job: &JobConfig) -> anyhow::Result<(usize, Held)> {
    let model = Model::open(&job.model.path, job.model.dtype, job.model.init, job.train.seed)?;
    let rows = data::load(job, &model.config)?;
    memory::release_unused();
    let mut before = Held::now();
    before.data += rows.to_come();
    Ok((data::loader(job, rows)?.seq_len(), before))
}
