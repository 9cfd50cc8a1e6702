//! `kfc explain`

use super::Device;
use clap::{Arg, ArgMatches, Command};
use std::path::PathBuf;

/// Arguments of `kfc explain`.
#[derive(Clone, Debug, PartialEq)]
pub struct ExplainArgs {
    /// A job, or the folder of a run.
    pub target: PathBuf,
    /// `key=value` overrides, in order.
    pub set: Vec<String>,
    /// Where the job is to run.
    pub device: Device,
    /// Page to write.
    pub html: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  kfc explain job.toml                        predicted, before anything runs
  kfc explain job.toml --device cuda          the same for the first GPU
  kfc explain runs/job                        measured in that run, beside the prediction
  kfc explain runs/job --html explain.html    with the memory timeline, the arena and the roofline drawn

Predictions are rough until `kfc tune job.toml --calibrate` has measured this machine, and with --device cuda the GPU: before
that, its limits are computed from the clocks that its driver tells.";

pub(super) fn command() -> Command {
    let parser = clap::builder::PathBufValueParser::new();
    Command::new("explain")
        .about("Say where time and memory of a step go, and why")
        .after_help(EXAMPLES)
        .arg(
            Arg::new("target")
                .value_name("CONFIG.toml|RUN_DIR")
                .value_parser(parser)
                .required(true)
                .help("A job's configuration, or the folder of a run"),
        )
        .arg(super::set())
        .arg(super::device())
        .arg(super::path("html", "FILE", "Also write one self-contained page"))
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<ExplainArgs, clap::Error> {
    Ok(ExplainArgs {
        target: super::required(matches, "target")?,
        set: super::all(matches, "set"),
        device: super::required(matches, "device")?,
        html: matches.get_one("html").cloned(),
    })
}
