//! `kfc data augment`

use crate::args::{AugmentArgs, Global};
use crate::data::augment::replace::Replacer;
use crate::data::augment::table::{Replacements, read_aliases, read_graph};
use crate::data::augment::{Augment, Methods, clauses};
use crate::data::job;
use crate::error::{Outcome, input_error};
use kfc_runtime::files::hash_file;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Rows between two states where every row takes a while.
const SLOW_BLOCK: usize = 64;

/// Runs `kfc data augment`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &AugmentArgs, global: &Global) -> anyhow::Result<Outcome> {
    let inputs = args.rows.inputs()?;
    let methods = Methods {
        entities: entities(args)?,
        clauses: clauses(args)?,
        translation: args.steps.clone(),
        workers: args.workers,
        timeout: args.timeout,
    };
    let mut job = args.rows.job("data augment", settings(args)?);
    if !args.steps.is_empty() {
        job.block_rows = SLOW_BLOCK.max(4 * args.workers);
    }
    let mut augment = Augment::new(methods, args.settings.clone(), args.rows.fields.clone());
    job::run(&job, &inputs, &mut augment, global)?;
    Ok(Outcome::Done)
}

fn entities(args: &AugmentArgs) -> anyhow::Result<Option<Replacer>> {
    let mut all = Replacements::new();
    for path in &args.aliases {
        read_aliases(path, args.both_ways, &mut all)?;
    }
    if let Some(path) = &args.graph {
        read_graph(path, &args.relations, args.both_ways, &mut all)?;
    }
    if args.aliases.is_empty() && args.graph.is_none() {
        return Ok(None);
    }
    if all.is_empty() {
        return Err(input_error("the tables hold no entity that something else may stand for"));
    }
    Replacer::new(all, args.ignore_case, true).map(Some)
}

fn clauses(args: &AugmentArgs) -> anyhow::Result<Option<Replacer>> {
    let mut all = Replacements::new();
    for path in &args.parses {
        clauses::read_parses(path, &mut all)?;
    }
    if args.parses.is_empty() {
        return Ok(None);
    }
    if all.is_empty() {
        return Err(input_error(
            "no sentence of the parses has a clause that can move; --clauses would make no row",
        ));
    }
    Replacer::new(all, false, true).map(Some)
}

/// What the result depends on; files by their content.
fn settings(args: &AugmentArgs) -> anyhow::Result<Value> {
    let file = |path: &PathBuf| -> anyhow::Result<Value> {
        let content = hash_file(path)?;
        Ok(
            json!({"path": path.to_string_lossy(), "bytes": content.bytes, "xxh64": format!("{:016x}", content.hash)}),
        )
    };
    let files = |paths: &[PathBuf]| paths.iter().map(file).collect::<anyhow::Result<Vec<Value>>>();
    Ok(json!({
        "aliases": files(&args.aliases)?,
        "graph": args.graph.as_ref().map(file).transpose()?,
        "relations": args.relations,
        "both_ways": args.both_ways,
        "ignore_case": args.ignore_case,
        "clauses": files(&args.parses)?,
        "translate": args.translate,
        "variants": args.settings.variants,
        "share": args.settings.share,
        "seed": args.settings.seed,
        "keep_originals": args.settings.keep_originals,
    }))
}
