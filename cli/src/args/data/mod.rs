//! `kfc data`: one file a subcommand, and the arguments that all have.

mod clean;
mod rows;

pub use clean::CleanArgs;
pub use rows::RowArgs;

use super::{all, count, flag, path, required, usage_error};
use clap::{ArgMatches, Command};

/// A subcommand of `kfc data` with its arguments.
#[derive(Clone, Debug, PartialEq)]
pub enum DataArgs {
    /// `kfc data clean`
    Clean(CleanArgs),
}

const EXAMPLES: &str = "\
Examples:
  kfc data clean pages/ rows.jsonl --out clean.jsonl
  kfc data clean --help

Each reads files, folders or quoted patterns as a stream and writes knowledge rows, one a line:
{\"knowledge_id\": ..., \"text\": ..., \"metadata\": {\"source\": ..., \"domain\": ...}}, and OUT.report.json.";

pub(super) fn command() -> Command {
    Command::new("data")
        .about("Make knowledge rows: clean and prepare text for training")
        .after_help(EXAMPLES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand(clean::command())
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<DataArgs, clap::Error> {
    match matches.subcommand() {
        Some(("clean", sub)) => Ok(DataArgs::Clean(clean::from_matches(sub)?)),
        _ => Err(usage_error("a command is missing; `kfc data --help` lists them")),
    }
}
