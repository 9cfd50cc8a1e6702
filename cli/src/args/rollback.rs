//! `kfc rollback`

use clap::{ArgMatches, Command};
use std::path::PathBuf;

/// Arguments of `kfc rollback`.
#[derive(Clone, Debug, PartialEq)]
pub struct RollbackArgs {
    /// The run whose injection is undone.
    pub run_dir: PathBuf,
    /// Folder that gets what was there before.
    pub out: PathBuf,
}

const EXAMPLES: &str = "\
Example:
  kfc rollback runs/job --out before

Copies the snapshot that the run took before its first step; the run itself is left as it is.";

pub(super) fn command() -> Command {
    Command::new("rollback")
        .about("Restore what a run trained to its state before the run")
        .after_help(EXAMPLES)
        .arg(super::run_dir())
        .arg(super::path("out", "DIR", "Folder to write").required(true))
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<RollbackArgs, clap::Error> {
    Ok(RollbackArgs { run_dir: super::required(matches, "run")?, out: super::required(matches, "out")? })
}
