//! `kfc eval`

use crate::args::{EvalArgs, Global};
use crate::error::Outcome;

/// Runs `kfc eval`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &EvalArgs, global: &Global) -> anyhow::Result<Outcome> {
    anyhow::bail!("kfc eval is not in this build ({args:?}, {global:?})")
}
