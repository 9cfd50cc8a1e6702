//! `kfc doctor`

use clap::{ArgMatches, Command};
use std::path::PathBuf;

/// Arguments of `kfc doctor`.
#[derive(Clone, Debug, PartialEq)]
pub struct DoctorArgs {
    /// A job to check against this machine.
    pub config: Option<PathBuf>,
    /// `key=value` overrides, in order.
    pub set: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  kfc doctor             what this machine has
  kfc doctor job.toml    and whether the job fits, what limits it, what to change

With KFC_ISA=LEVEL in the environment, every command keeps to that level of instructions; `kfc doctor` lists those of
this CPU. Last bits of results differ from level to level.";

pub(super) fn command() -> Command {
    Command::new("doctor")
        .about("Look at this machine, and whether a job fits it")
        .after_help(EXAMPLES)
        .arg(super::config())
        .arg(super::set())
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<DoctorArgs, clap::Error> {
    Ok(DoctorArgs { config: matches.get_one("config").cloned(), set: super::all(matches, "set") })
}
