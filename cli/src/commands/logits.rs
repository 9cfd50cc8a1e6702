//! `kfc logits`

use crate::args::{Global, LogitsArgs};
use crate::error::Outcome;

/// Runs `kfc logits`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &LogitsArgs, global: &Global) -> anyhow::Result<Outcome> {
    anyhow::bail!("kfc logits is not in this build ({args:?}, {global:?})")
}
