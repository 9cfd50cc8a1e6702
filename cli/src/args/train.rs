//! `kfc train`

use super::Device;
use clap::{ArgMatches, Command};
use kfc_runtime::edited::Edit;
use std::path::{Path, PathBuf};

/// Arguments of `kfc train`.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainArgs {
    /// The job; without one, the built-in demo.
    pub config: Option<PathBuf>,
    /// `key=value` overrides, in order.
    pub set: Vec<String>,
    /// The run directory, if given; see [`TrainArgs::run_dir`].
    pub out: Option<PathBuf>,
    /// Go on from the newest checkpoint of the run directory.
    pub resume: bool,
    /// Where to run.
    pub device: Device,
    /// Folder that a GPU's kernels come from.
    pub kernels: Option<PathBuf>,
    /// Files of kernels that are used instead of those.
    pub edits: Vec<Edit>,
    /// Replaces `train.mem_budget`.
    pub mem_budget: Option<u64>,
    /// Only print the reference of the configuration.
    pub help_config: bool,
}

impl TrainArgs {
    /// `--out`, or else `runs/` and the name of the configuration (`runs/demo` without one).
    pub fn run_dir(&self) -> PathBuf {
        match (&self.out, &self.config) {
            (Some(out), _) => out.clone(),
            (None, Some(config)) => Path::new("runs").join(config.file_stem().unwrap_or("job".as_ref())),
            (None, None) => Path::new("runs").join("demo"),
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  kfc train                              the built-in demo, in runs/demo
  kfc train job.toml                     a job, in runs/job
  kfc train job.toml --out runs/b --set train.lr=1e-4 --set lora.r=32
  kfc train job.toml --mem-budget 8GiB   under a memory budget
  kfc train job.toml --device cuda       on the first NVIDIA GPU
  kfc train job.toml --device cuda --kernel adamw=adamw.cu   with a kernel of your own, checked first
  kfc train job.toml --resume            go on after an interruption
  kfc train --help-config                every key of a configuration

The run directory gets config.toml (resolved), metrics.jsonl, adapter/, checkpoint-N/ and report.html.";

pub(super) fn command() -> Command {
    Command::new("train")
        .about("Train: run a job, or the built-in demo")
        .after_help(EXAMPLES)
        .arg(super::config().help("The job's configuration [default: the built-in demo]"))
        .arg(super::set())
        .arg(super::path("out", "DIR", "The run directory [default: runs/NAME-OF-CONFIG]"))
        .arg(super::flag("resume", "Go on from the newest checkpoint in the run directory"))
        .arg(super::device())
        .arg(super::kernels())
        .arg(super::edits())
        .arg(super::mem_budget())
        .arg(super::flag("help-config", "Print the reference of the configuration and stop"))
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<TrainArgs, clap::Error> {
    let device = super::required(matches, "device")?;
    Ok(TrainArgs {
        config: matches.get_one("config").cloned(),
        set: super::all(matches, "set"),
        out: matches.get_one("out").cloned(),
        resume: matches.get_flag("resume"),
        device,
        kernels: super::kernels_of(matches, device)?,
        edits: super::edits_of(matches, device != Device::Cpu, "--device cuda")?,
        mem_budget: matches.get_one("mem-budget").copied(),
        help_config: matches.get_flag("help-config"),
    })
}
