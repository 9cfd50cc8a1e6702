//! `kfc merge`

use crate::args::{Global, MergeArgs};
use crate::error::Outcome;

/// Runs `kfc merge`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &MergeArgs, global: &Global) -> anyhow::Result<Outcome> {
    anyhow::bail!("kfc merge is not in this build ({args:?}, {global:?})")
}
