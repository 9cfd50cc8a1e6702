//! `kfc rollback`: what a run trained, as it was before the run.
//!
//! A run writes `snapshot/` before its first step: an adapter folder, or a model folder for full fine-tuning. Rolling
//! back copies it to a new folder; neither the run nor the snapshot is changed.

use crate::args::{Global, RollbackArgs};
use crate::error::{Outcome, input_error};
use crate::output;
use crate::run_dir::RunDir;
use kfc_runtime::counted;
use kfc_runtime::{RunError, files};

/// Copies the snapshot of a run to `--out`, which must not exist and appears complete or not at all.
///
/// # Errors
/// If there is no run, no snapshot, or already an output; or if copying fails, and then nothing is left behind.
pub fn run(args: &RollbackArgs, global: &Global) -> anyhow::Result<Outcome> {
    let snapshot = RunDir::open(&args.run_dir)?.snapshot();
    if !snapshot.is_dir() {
        return Err(input_error(format!(
            "{} has no snapshot: the run was stopped before its first step, so there is nothing to undo",
            args.run_dir.display()
        )));
    }
    let out = &args.out;
    if out.symlink_metadata().is_ok() {
        return Err(input_error(format!(
            "{} exists already; choose another folder with --out DIR",
            out.display()
        )));
    }
    files::snapshot(&snapshot, out).map_err(RunError::from)?;
    let copied = files::list_files(out).map_err(RunError::from)?.len();
    if global.json {
        output::json_line(&serde_json::json!({ "out": output::shown(out), "files": copied }))?;
    } else {
        output::stdout_line(&format!("restored {} to {}", counted(copied, "file"), out.display()))?;
    }
    Ok(Outcome::Done)
}
