//! `kfc doctor`

use super::Device;
use clap::{ArgMatches, Command};
use std::path::PathBuf;

/// Arguments of `kfc doctor`.
#[derive(Clone, Debug, PartialEq)]
pub struct DoctorArgs {
    /// A job to check against this machine.
    pub config: Option<PathBuf>,
    /// `key=value` overrides, in order.
    pub set: Vec<String>,
    /// Where the job is to run.
    pub device: Device,
}

const EXAMPLES: &str = "\
Examples:
  kfc doctor             what this machine has
  kfc doctor job.toml    and whether the job fits, what limits it, what to change
  kfc doctor job.toml --device cuda    whether it fits the first GPU

With KFC_ISA=LEVEL in the environment, every command keeps to that level of instructions; `kfc doctor` lists those of
this CPU. Last bits of results differ from level to level.";

pub(super) fn command() -> Command {
    Command::new("doctor")
        .about("Look at this machine, and whether a job fits it")
        .after_help(EXAMPLES)
        .arg(super::config())
        .arg(super::set())
        .arg(super::device())
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<DoctorArgs, clap::Error> {
    let (config, device) = (matches.get_one("config").cloned(), super::required(matches, "device")?);
    if config.is_none() && device != Device::Cpu {
        return Err(super::usage_error("--device says where a job is to run: name its CONFIG.toml, too"));
    }
    Ok(DoctorArgs { config, set: super::all(matches, "set"), device })
}
