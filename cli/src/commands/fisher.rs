//! `kfc fisher`

use crate::args::{FisherArgs, Global};
use crate::error::Outcome;

/// Runs `kfc fisher`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &FisherArgs, global: &Global) -> anyhow::Result<Outcome> {
    crate::config::load(&args.config, &args.set)?;
    anyhow::bail!("kfc fisher is not in this build ({args:?}, {global:?})")
}
