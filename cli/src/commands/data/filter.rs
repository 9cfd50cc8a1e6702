//! `kfc data filter`

use crate::args::{FilterArgs, Global};
use crate::data::filter::Filter;
use crate::data::job;
use crate::error::Outcome;
use crate::output;

/// Runs `kfc data filter`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &FilterArgs, global: &Global) -> anyhow::Result<Outcome> {
    let inputs = args.rows.inputs()?;
    let mut filter = Filter::open(args)?;
    if !global.quiet {
        output::stderr_line(&filter.describe());
    }
    let mut job = args.rows.job("data filter", filter.settings());
    job.block_rows = crate::data::filter::BLOCK_ROWS;
    job::run(&job, &inputs, &mut filter, global)?;
    Ok(Outcome::Done)
}
