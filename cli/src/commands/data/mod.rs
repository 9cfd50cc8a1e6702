//! `kfc data`: one file a subcommand.

pub mod augment;
pub mod clean;
pub mod filter;
pub mod shard;

use crate::args::{DataArgs, Global};
use crate::error::Outcome;

/// Runs `kfc data`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &DataArgs, global: &Global) -> anyhow::Result<Outcome> {
    match args {
        DataArgs::Clean(args) => clean::run(args, global),
        DataArgs::Filter(args) => filter::run(args, global),
        DataArgs::Augment(args) => augment::run(args, global),
        DataArgs::Shard(args) => shard::run(args, global),
    }
}
