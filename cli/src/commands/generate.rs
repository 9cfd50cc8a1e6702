//! `kfc generate`

use crate::args::{GenerateArgs, Global};
use crate::error::Outcome;

/// Runs `kfc generate`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &GenerateArgs, global: &Global) -> anyhow::Result<Outcome> {
    anyhow::bail!("kfc generate is not in this build ({args:?}, {global:?})")
}
