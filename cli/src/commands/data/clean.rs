//! `kfc data clean`

use crate::args::{CleanArgs, Global};
use crate::data::clean::Clean;
use crate::data::job;
use crate::error::Outcome;

/// Runs `kfc data clean`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &CleanArgs, global: &Global) -> anyhow::Result<Outcome> {
    let inputs = args.rows.inputs()?;
    let job = args.rows.job("data clean", args.settings.to_json());
    let mut clean = Clean::new(args.settings.clone(), args.rows.fields.clone());
    job::run(&job, &inputs, &mut clean, global)?;
    Ok(Outcome::Done)
}
