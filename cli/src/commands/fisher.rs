//! `kfc fisher`

use crate::args::{FisherArgs, Global};
use crate::config;
use crate::error::Outcome;
use crate::output;
use crate::progress::Progress;
use kfc_runtime::fisher::write_fisher;
use kfc_runtime::models::Model;
use kfc_runtime::train::data;
use serde_json::json;

/// Runs `kfc fisher`. Every document is a sample of its own, whatever `data.packing` says.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &FisherArgs, global: &Global) -> anyhow::Result<Outcome> {
    let mut job = config::load(&args.config, &args.set)?;
    job.data.packing = false;
    job.distill = None;
    let model = Model::open(&job.model.path, job.model.dtype, job.model.init, job.train.seed)?;
    let rows = data::load_rows(&job, &model.config)?;
    drop(model);
    let total = args.rows.unwrap_or(rows.len()).min(rows.len());
    let mut progress = Progress::new("row", 0, total, global);
    let summary = write_fisher(&job, &rows, args.rows, &args.out, &mut |done, _| progress.update(done, ""))?;
    progress.finish();
    if global.json {
        output::json_line(&json!({
            "out": output::shown(&args.out), "rows": summary.rows, "tensors": summary.tensors, "elements": summary.elements,
            "ce": summary.ce, "mode": summary.mode.name(),
        }))?;
    } else {
        output::stdout_line(&format!(
            "wrote {}: Fisher diagonal of {} tensors ({} mode, {} elements) over {} rows, mean cross-entropy {:.4}",
            args.out.display(),
            summary.tensors,
            summary.mode.name(),
            summary.elements,
            summary.rows,
            summary.ce
        ))?;
    }
    Ok(Outcome::Done)
}
