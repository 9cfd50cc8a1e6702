//! `kfc compile`

use clap::{Arg, ArgMatches, Command};
use std::path::PathBuf;

/// What the plan is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The CPU.
    Cpu,
}

/// Arguments of `kfc compile`.
#[derive(Clone, Debug, PartialEq)]
pub struct CompileArgs {
    /// The job.
    pub config: PathBuf,
    /// `key=value` overrides, in order.
    pub set: Vec<String>,
    /// What for.
    pub target: Target,
    /// Folder that gets the IR after every pass and the plan.
    pub emit: PathBuf,
    /// Replaces `train.mem_budget`.
    pub mem_budget: Option<u64>,
}

const EXAMPLES: &str = "\
Example:
  kfc compile job.toml --emit plan

Writes plan/ir/NN-pass.kir (the IR after every pass) and plan/plan.json.";

fn target(text: &str) -> Result<Target, String> {
    match text {
        "cpu" => Ok(Target::Cpu),
        _ => Err("this build compiles for the CPU only; use --target cpu".into()),
    }
}

pub(super) fn command() -> Command {
    Command::new("compile")
        .about("Compile a job without running it, and write every stage")
        .after_help(EXAMPLES)
        .arg(super::config().required(true))
        .arg(super::set())
        .arg(
            Arg::new("target")
                .long("target")
                .value_name("TARGET")
                .value_parser(target)
                .default_value("cpu")
                .help("What to compile for: cpu"),
        )
        .arg(super::path("emit", "DIR", "Folder to write").required(true))
        .arg(super::mem_budget())
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<CompileArgs, clap::Error> {
    Ok(CompileArgs {
        config: super::required(matches, "config")?,
        set: super::all(matches, "set"),
        target: super::required(matches, "target")?,
        emit: super::required(matches, "emit")?,
        mem_budget: matches.get_one("mem-budget").copied(),
    })
}
