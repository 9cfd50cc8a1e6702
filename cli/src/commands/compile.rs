//! `kfc compile`

use crate::args::{CompileArgs, Global};
use crate::error::Outcome;

/// Runs `kfc compile`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &CompileArgs, global: &Global) -> anyhow::Result<Outcome> {
    crate::config::load(&args.config, &args.set)?;
    anyhow::bail!("kfc compile is not in this build ({args:?}, {global:?})")
}
