//! `kfc teach`

use crate::args::{Global, TeachArgs};
use crate::config;
use crate::error::Outcome;
use crate::output;
use crate::progress::Progress;
use kfc_runtime::config::Streaming;
use kfc_runtime::models::Model;
use kfc_runtime::teach::write_cache;
use kfc_runtime::train::data;

/// Runs `kfc teach`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &TeachArgs, global: &Global) -> anyhow::Result<Outcome> {
    let mut job = config::load(&args.config, &args.set)?;
    // Answers are kept by the number of their row.
    job.data.streaming = Streaming::Off;
    let student = Model::open(&job.model.path, job.model.dtype, job.model.init, job.train.seed)?;
    let rows = data::load(&job, &student.config)?;
    let total = rows.len().unwrap_or_default() + rows.general.as_ref().map_or(0, |g| g.len());
    let loader = data::loader(&job, rows)?;
    let mut progress = Progress::new("row", 0, total, global);
    let made =
        write_cache(&job, &student.config, &loader, &args.out, &mut |done, _| progress.update(done, ""))?;
    progress.finish();
    if global.json {
        let mut line = made.to_json();
        line["out"] = serde_json::json!(args.out);
        output::json_line(&line)?;
    } else {
        output::stdout_line(&format!(
            "wrote {}: the {} likeliest of {} tokens at each position of {} rows",
            args.out.display(),
            made.k,
            made.vocab,
            made.rows + made.general_rows
        ))?;
    }
    Ok(Outcome::Done)
}
