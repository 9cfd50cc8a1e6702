//! `kfc data clean`

use super::rows::{self, RowArgs};
use super::{count, required};
use clap::{ArgMatches, Command};

/// Arguments of `kfc data clean`.
#[derive(Clone, Debug, PartialEq)]
pub struct CleanArgs {
    /// What is read, and where rows go.
    pub rows: RowArgs,
    /// Fewest letters, digits and ideographs of a row.
    pub min_chars: usize,
}

const EXAMPLES: &str = "\
Examples:
  kfc data clean pages/ 'crawl/*.jsonl' --out clean.jsonl";

pub(super) fn command() -> Command {
    rows::add(
        Command::new("clean")
            .about("Clean text: leave out what is too short and what is there twice")
            .after_help(EXAMPLES)
            .arg(count("min-chars", "Fewest letters, digits and ideographs of a row").default_value("20")),
    )
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<CleanArgs, clap::Error> {
    Ok(CleanArgs { rows: rows::from_matches(matches)?, min_chars: required(matches, "min-chars")? })
}
