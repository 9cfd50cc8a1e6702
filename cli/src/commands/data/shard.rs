//! `kfc data shard`

use crate::args::{Global, ShardArgs};
use crate::config::format_bytes;
use crate::error::Outcome;
use crate::output;
use crate::progress::Progress;
use crate::stop;
use kfc_runtime::RunError;
use kfc_runtime::counted;
use kfc_runtime::data::shards::{Limit, Manifest, Pattern, RowSource, ShardConfig, format_of, write_shards};
use kfc_runtime::data::{Format, OnError, Tokenizer};
use serde_json::json;
use std::time::Instant;

/// Parts in which progress is counted.
const PARTS: usize = 1000;

/// Runs `kfc data shard`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &ShardArgs, global: &Global) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let pattern = Pattern::parse(&args.out).map_err(RunError::from)?;
    let tokenizer = args.tokenizer.as_deref().map(Tokenizer::load).transpose().map_err(RunError::from)?;
    let first = pattern.name(0).unwrap_or_default();
    let format = format_of(&first, tokenizer.as_ref())?;
    let read_as = args.format.as_deref().map(Format::parse).transpose().map_err(RunError::from)?;
    let source = RowSource::open(&args.inputs, read_as)?;
    let limit = match (args.rows, args.size) {
        (Some(rows), _) => Limit::Rows(rows as u64),
        (None, Some(bytes)) => Limit::Bytes(bytes),
        (None, None) => Limit::Even,
    };
    let on_error = if args.skip_bad { OnError::Skip } else { OnError::Stop };
    let config = ShardConfig { pattern, limit, format, on_error, resume: args.resume };
    let mut progress = Progress::new("‰", 0, PARTS, global);
    let made = write_shards(&source, &config, stop::flag(), &mut |done, manifest| {
        progress.update((done * PARTS as f64) as usize, &format!("{} rows in whole shards", manifest.rows()));
    });
    progress.finish();
    report(&made?, &config, &source, started.elapsed().as_secs_f64(), global)?;
    Ok(Outcome::Done)
}

fn report(
    made: &Manifest,
    config: &ShardConfig<'_>,
    source: &RowSource,
    seconds: f64,
    global: &Global,
) -> anyhow::Result<()> {
    let pattern = config.pattern.of(made.shards.len());
    let manifest = config.pattern.manifest();
    if global.json {
        let mut line = made.to_json();
        line["pattern"] = json!(pattern);
        line["manifest"] = json!(manifest);
        line["bytes_in"] = json!(source.bytes());
        line["seconds"] = json!(seconds);
        return Ok(output::json_line(&line)?);
    }
    let name = pattern.map_or_else(|| manifest.display().to_string(), |p| p.display().to_string());
    let tokens = if made.tokens > 0 { format!(", {} tokens", made.tokens) } else { String::new() };
    let mut text = format!(
        "wrote {name}: {}{tokens} in {}, {}; {:.1} s, {}/s",
        counted(made.rows() as usize, "row"),
        counted(made.shards.len(), "shard"),
        format_bytes(made.bytes()),
        seconds,
        format_bytes((source.bytes() as f64 / seconds.max(1e-3)) as u64)
    );
    if made.skipped > 0 {
        text += &format!("\n{} rows skipped, first: {}", made.skipped, made.skipped_examples.join("; "));
    }
    text += &format!("\nmanifest  {}", manifest.display());
    Ok(output::stdout_line(&text)?)
}
