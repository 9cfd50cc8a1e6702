//! `kfc tune`

use clap::{Arg, ArgMatches, Command};
use std::path::PathBuf;

/// Arguments of `kfc tune`.
#[derive(Clone, Debug, PartialEq)]
pub struct TuneArgs {
    /// The job whose kernels are timed; only the machine's rates without it.
    pub config: Option<PathBuf>,
    /// `key=value` overrides, in order.
    pub set: Vec<String>,
    /// Seconds to spend on timing.
    pub seconds: u64,
}

const EXAMPLES: &str = "\
Examples:
  kfc tune --calibrate             how fast this machine multiplies and streams
  kfc tune job.toml --calibrate    and how long each kernel of the job takes in its place

What is measured is kept in $XDG_CACHE_HOME/kfc (or ~/.cache/kfc), for this CPU, level of instructions and number of
threads, and makes the predictions of `kfc explain` exact; budgets are planned with it, too. The job is run for some
steps, and then for half as many to tell how far off predictions are; nothing of them is kept.";

fn seconds(text: &str) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(seconds @ 1..=3600) => Ok(seconds),
        _ => Err("give seconds from 1 to 3600".into()),
    }
}

pub(super) fn command() -> Command {
    Command::new("tune")
        .about("Measure how fast this machine runs a job's kernels")
        .after_help(EXAMPLES)
        .arg(super::config())
        .arg(super::set())
        .arg(super::flag("calibrate", "Time kernels and keep the times for predictions").required(true))
        .arg(
            Arg::new("seconds")
                .long("seconds")
                .value_name("N")
                .value_parser(seconds)
                .default_value("10")
                .help("How long to time the job's steps"),
        )
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<TuneArgs, clap::Error> {
    Ok(TuneArgs {
        config: matches.get_one("config").cloned(),
        set: super::all(matches, "set"),
        seconds: super::required(matches, "seconds")?,
    })
}
