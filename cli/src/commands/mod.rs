//! What each subcommand does, one file each: `run(arguments, global) -> outcome`.

pub mod bench;
pub mod compile;
pub mod completions;
pub mod data;
pub mod doctor;
pub mod eval;
pub mod explain;
pub mod fisher;
pub mod generate;
pub mod inspect;
pub mod logits;
pub mod merge;
pub mod report;
pub mod rollback;
pub mod teach;
pub mod tokenizer;
pub mod train;
pub mod tune;

use crate::args::{Global, Invocation};
use crate::error::Outcome;

/// Runs `invocation`.
///
/// # Errors
/// Whatever the command failed with; [`crate::error::exit_code`] tells the user's errors from others.
pub fn run(invocation: &Invocation, global: &Global) -> anyhow::Result<Outcome> {
    match invocation {
        Invocation::Train(args) => train::run(args, global),
        Invocation::Eval(args) => eval::run(args, global),
        Invocation::Logits(args) => logits::run(args, global),
        Invocation::Fisher(args) => fisher::run(args, global),
        Invocation::Teach(args) => teach::run(args, global),
        Invocation::Merge(args) => merge::run(args, global),
        Invocation::Generate(args) => generate::run(args, global),
        Invocation::Inspect(args) => inspect::run(args, global),
        Invocation::Compile(args) => compile::run(args, global),
        Invocation::Explain(args) => explain::run(args, global),
        Invocation::Tune(args) => tune::run(args, global),
        Invocation::Doctor(args) => doctor::run(args, global),
        Invocation::Report(args) => report::run(args, global),
        Invocation::Rollback(args) => rollback::run(args, global),
        Invocation::Bench(args) => bench::run(args, global),
        Invocation::Tokenizer(args) => tokenizer::run(args, global),
        Invocation::Data(args) => data::run(args, global),
        Invocation::Completions(args) => completions::run(args),
    }
}
