//! `kfc teach`

use crate::args::{Global, TeachArgs};
use crate::error::Outcome;

/// Runs `kfc teach`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &TeachArgs, global: &Global) -> anyhow::Result<Outcome> {
    crate::config::load(&args.config, &args.set)?;
    anyhow::bail!("kfc teach is not in this build ({args:?}, {global:?})")
}
