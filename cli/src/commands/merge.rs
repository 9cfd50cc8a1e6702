//! `kfc merge`

use crate::args::{Global, MergeArgs};
use crate::error::Outcome;
use crate::output;
use kfc_runtime::merge::merge;
use serde_json::json;

/// Runs `kfc merge`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &MergeArgs, global: &Global) -> anyhow::Result<Outcome> {
    let merged = merge(&args.model, &args.adapter, &args.out)?;
    if global.json {
        output::json_line(&json!({"out": output::shown(&args.out), "merged": merged}))?;
    } else {
        output::stdout_line(&format!(
            "wrote {}: the adapter merged into {merged} weights",
            args.out.display()
        ))?;
    }
    Ok(Outcome::Done)
}
