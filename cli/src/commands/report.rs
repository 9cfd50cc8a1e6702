//! `kfc report`: a run's page, with what came after the run.

use crate::args::{Global, ReportArgs};
use crate::config;
use crate::error::{Outcome, input_error};
use crate::output;
use crate::run_dir::RunDir;
use crate::run_report::{self, samples};
use std::path::PathBuf;

/// Runs `kfc report`.
///
/// # Errors
/// If the input is wrong or the page cannot be written.
pub fn run(args: &ReportArgs, global: &Global) -> anyhow::Result<Outcome> {
    let run = RunDir::open(&args.run_dir)?;
    for folder in &args.eval {
        run_report::adopt(&run, folder)?;
    }
    if !args.prompt.is_empty() {
        let job = config::load(&run.config(), &[])?;
        samples::take(&job, &run, &trained(&run)?, &args.prompt, args.max_new_tokens)?;
    }
    run_report::write(&run)?;
    if global.json {
        output::json_line(&serde_json::json!({ "report": output::shown(&run.report()) }))?;
    } else {
        output::stdout_line(&run.report().display().to_string())?;
    }
    Ok(Outcome::Done)
}

/// What the run trained: an adapter or a model folder.
fn trained(run: &RunDir) -> anyhow::Result<PathBuf> {
    let found = [run.adapter(), run.path().join("model")].into_iter().find(|p| p.is_dir());
    found.ok_or_else(|| {
        input_error(format!(
            "{} has neither adapter nor model: the run has not ended, so there is nothing to ask after it",
            run.path().display()
        ))
    })
}
