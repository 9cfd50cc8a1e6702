//! `kfc logits`

use crate::args::{Global, LogitsArgs};
use crate::error::Outcome;
use crate::output;
use crate::progress::Progress;
use kfc_runtime::inference::Served;
use kfc_runtime::logits::write_logits;
use serde_json::json;

/// Runs `kfc logits`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &LogitsArgs, global: &Global) -> anyhow::Result<Outcome> {
    let served = Served::open(&args.model, args.adapter.as_deref(), args.dtype)?;
    let mut progress: Option<Progress> = None;
    let dims = write_logits(&served, &args.tokens, &args.out, &mut |done, total| {
        progress.get_or_insert_with(|| Progress::new("row", 0, total, global)).update(done, "");
    })?;
    if let Some(progress) = progress {
        progress.finish();
    }
    if global.json {
        output::json_line(&json!({"out": output::shown(&args.out), "shape": dims}))?;
    } else {
        let [n, t, v] = dims;
        output::stdout_line(&format!("wrote {}: logits f32 [{n},{t},{v}]", args.out.display()))?;
    }
    Ok(Outcome::Done)
}
