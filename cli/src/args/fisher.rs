//! `kfc fisher`

use clap::{ArgMatches, Command};
use std::path::PathBuf;

/// Arguments of `kfc fisher`.
#[derive(Clone, Debug, PartialEq)]
pub struct FisherArgs {
    /// The job whose model and data are used.
    pub config: PathBuf,
    /// `key=value` overrides, in order.
    pub set: Vec<String>,
    /// File that gets the Fisher diagonals.
    pub out: PathBuf,
    /// Only the first N rows.
    pub rows: Option<usize>,
}

const EXAMPLES: &str = "\
Example:
  kfc fisher job.toml --set data.train=old.jsonl --out fisher.safetensors --rows 2000

Squared gradients of single rows, averaged, of what `ewc.mode` penalises: the data should be what must not be forgotten.";

pub(super) fn command() -> Command {
    Command::new("fisher")
        .about("Measure which parameters matter: Fisher diagonals for [ewc]")
        .after_help(EXAMPLES)
        .arg(super::config().required(true))
        .arg(super::set())
        .arg(super::path("out", "FILE", "Safetensors file to write").required(true))
        .arg(super::count("rows", "Only the first N rows [default: all]"))
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<FisherArgs, clap::Error> {
    Ok(FisherArgs {
        config: super::required(matches, "config")?,
        set: super::all(matches, "set"),
        out: super::required(matches, "out")?,
        rows: matches.get_one("rows").copied(),
    })
}
