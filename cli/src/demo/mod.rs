//! The built-in demo.

use crate::args::{Global, TrainArgs};
use crate::error::Outcome;

/// Runs the demo.
///
/// # Errors
/// If a stage fails.
pub fn run(_: &TrainArgs, _: &Global) -> anyhow::Result<Outcome> {
    Err(crate::error::input_error("give the path of a configuration"))
}
