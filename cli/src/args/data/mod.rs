//! `kfc data`: one file a subcommand, and the arguments that all have.

mod augment;
mod clean;
mod filter;
mod rows;
mod shard;

pub use augment::AugmentArgs;
pub use clean::CleanArgs;
pub use filter::{FilterArgs, Judge, Keep};
pub use rows::RowArgs;
pub use shard::ShardArgs;

use super::{all, count, flag, path, required, usage_error};
use clap::builder::PathBufValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

/// A subcommand of `kfc data` with its arguments.
#[derive(Clone, Debug, PartialEq)]
pub enum DataArgs {
    /// `kfc data clean`
    Clean(CleanArgs),
    /// `kfc data filter`
    Filter(FilterArgs),
    /// `kfc data augment`
    Augment(AugmentArgs),
    /// `kfc data shard`
    Shard(ShardArgs),
}

const EXAMPLES: &str = "\
Examples:
  kfc data clean pages/ rows.jsonl --out clean.jsonl
  kfc data filter clean.jsonl --model quality-bert --out good.jsonl
  kfc data augment clean.jsonl --aliases terms.tsv --out more.jsonl
  kfc data shard clean.jsonl --out 'shards/{000..009}.tar'

Each reads files, folders or quoted patterns as a stream. All but shard write knowledge rows, one a line:
{\"knowledge_id\": ..., \"text\": ..., \"metadata\": {\"source\": ..., \"domain\": ...}}, and OUT.report.json.";

/// What is read: one or more.
fn inputs(help: &'static str) -> Arg {
    Arg::new("inputs")
        .value_name("IN")
        .action(ArgAction::Append)
        .required(true)
        .num_args(1..)
        .value_parser(PathBufValueParser::new())
        .help(help)
}

pub(super) fn command() -> Command {
    Command::new("data")
        .about("Make knowledge rows: clean text, and say it in other ways")
        .after_help(EXAMPLES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand(clean::command())
        .subcommand(filter::command())
        .subcommand(augment::command())
        .subcommand(shard::command())
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<DataArgs, clap::Error> {
    match matches.subcommand() {
        Some(("clean", sub)) => Ok(DataArgs::Clean(clean::from_matches(sub)?)),
        Some(("filter", sub)) => Ok(DataArgs::Filter(filter::from_matches(sub)?)),
        Some(("augment", sub)) => Ok(DataArgs::Augment(augment::from_matches(sub)?)),
        Some(("shard", sub)) => Ok(DataArgs::Shard(shard::from_matches(sub)?)),
        _ => Err(usage_error("a command is missing; `kfc data --help` lists them")),
    }
}
