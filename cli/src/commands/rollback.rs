//! `kfc rollback`: what a run trained, as it was before the run.
//!
//! A run writes `snapshot/` before its first step: an adapter folder, or a model folder for full fine-tuning. Rolling
//! back copies it to a new folder; neither the run nor the snapshot is changed.

use crate::args::{Global, RollbackArgs};
use crate::error::{Outcome, input_error};
use crate::output;
use crate::run_dir::{self, RunDir};
use anyhow::Context;
use std::path::Path;

/// Copies the snapshot of a run to `--out`, which must not exist: a folder beside it is filled first and renamed.
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
    let temporary = run_dir::sibling(out);
    let copied = copy_folder(&snapshot, &temporary).and_then(|files| {
        std::fs::rename(&temporary, out).with_context(|| format!("{} cannot be made", out.display()))?;
        Ok(files)
    });
    match copied {
        Ok(files) => {
            if global.json {
                output::json_line(&serde_json::json!({ "out": out, "files": files }))?;
            } else {
                output::stdout_line(&format!("restored {files} files to {}", out.display()))?;
            }
            Ok(Outcome::Done)
        }
        Err(error) => {
            let _ = std::fs::remove_dir_all(&temporary);
            Err(error)
        }
    }
}

/// Copies the plain files of `from` and its subfolders into a new folder `to`; returns how many.
fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<usize> {
    std::fs::create_dir_all(to).with_context(|| format!("{} cannot be made", to.display()))?;
    let mut files = 0;
    for entry in std::fs::read_dir(from).with_context(|| format!("{} cannot be read", from.display()))? {
        let entry = entry.with_context(|| format!("{} cannot be read", from.display()))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            files += copy_folder(&source, &target)?;
        } else {
            std::fs::copy(&source, &target)
                .with_context(|| format!("{} cannot be copied to {}", source.display(), target.display()))?;
            files += 1;
        }
    }
    Ok(files)
}
