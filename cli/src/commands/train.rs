//! `kfc train`

use crate::args::{Global, TrainArgs};
use crate::config;
use crate::error::{Outcome, input_error};
use crate::output;
use crate::run_dir::RunDir;

/// Runs `kfc train`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &TrainArgs, global: &Global) -> anyhow::Result<Outcome> {
    if args.help_config {
        output::write_stdout(&config::reference_text())?;
        return Ok(Outcome::Done);
    }
    let Some(path) = &args.config else {
        return Err(input_error("give the path of a configuration"));
    };
    let mut job = config::load(path, &args.set)?;
    job.train.mem_budget = args.mem_budget.or(job.train.mem_budget);
    let run_dir = RunDir::check(&args.run_dir(), args.resume)?;
    anyhow::bail!("kfc train is not in this build ({job:?}, {}, {global:?})", run_dir.path().display())
}
