//! `kfc teach`

use clap::{ArgMatches, Command};
use std::path::PathBuf;

/// Arguments of `kfc teach`.
#[derive(Clone, Debug, PartialEq)]
pub struct TeachArgs {
    /// The job whose teacher and data are used.
    pub config: PathBuf,
    /// `key=value` overrides, in order.
    pub set: Vec<String>,
    /// Folder that gets the cache.
    pub out: PathBuf,
}

const EXAMPLES: &str = "\
Example:
  kfc teach job.toml --out cache
  kfc train job.toml --set distill.teacher=cache

Keeps the `distill.top_k` likeliest tokens of each position, so that training needs no teacher in memory.";

pub(super) fn command() -> Command {
    Command::new("teach")
        .about("Run the teacher once and keep its answers for training")
        .after_help(EXAMPLES)
        .arg(super::config().required(true))
        .arg(super::set())
        .arg(super::path("out", "DIR", "Folder to write").required(true))
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<TeachArgs, clap::Error> {
    Ok(TeachArgs {
        config: super::required(matches, "config")?,
        set: super::all(matches, "set"),
        out: super::required(matches, "out")?,
    })
}
