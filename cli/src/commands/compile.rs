//! `kfc compile`: the job's graphs after every pass, and the plans, written to a folder.

use crate::args::{CompileArgs, Global, Target};
use crate::config::{self, format_bytes};
use crate::error::{Outcome, input_error};
use crate::output;
use kfc_graph::{Graph, text};
use kfc_kernels::compile::compile;
use kfc_runtime::files::{AtomicDir, write_json};
use kfc_runtime::models::Model;
use kfc_runtime::train::{data, setup};
use serde_json::json;
use std::path::Path;

/// Runs `kfc compile`. The folder gets `ir/NN-pass.kir` of the micro-batch graph and `ir/update/NN-pass.kir` of the update
/// graph, and `plan.json` with both plans.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &CompileArgs, global: &Global) -> anyhow::Result<Outcome> {
    let Target::Cpu = args.target;
    let job = config::load(&args.config, &args.set)?;
    if args.emit.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(input_error(format!(
            "{} is not empty; choose another folder with --emit DIR",
            args.emit.display()
        )));
    }
    let model = Model::open(&job.model.path, job.model.dtype, job.model.init, job.train.seed)?;
    let rows = data::load(&job, &model.config)?;
    let graphs = setup::graphs(&job, rows.rows.seq_len())?;

    let folder = AtomicDir::create(&args.emit)?;
    let mut plans = Vec::new();
    let mut table = vec![["graph", "steps", "arena", "live"].map(String::from).to_vec()];
    for (graph, ir) in [(&graphs.train.graph, "ir"), (&graphs.update, "ir/update")] {
        let ir = folder.path().join(ir);
        std::fs::create_dir_all(&ir)?;
        let mut written = write_graph(&ir.join("00-built.kir"), graph);
        let plan = compile(graph, &mut |pass, graph| {
            if written.is_ok() {
                written = write_graph(&ir.join(format!("{pass}.kir")), graph);
            }
        })?;
        written?;
        let bytes = |b: usize| format_bytes(b as u64);
        let cells = [
            plan.name.clone(),
            plan.steps.len().to_string(),
            bytes(plan.arena_bytes),
            bytes(plan.live_bytes),
        ];
        table.push(cells.to_vec());
        plans.push(plan.to_json());
    }
    write_json(&folder.path().join("plan.json"), &json!({"target": "cpu", "plans": plans}))?;
    folder.commit()?;
    if global.json {
        output::json_line(&json!({"emit": args.emit, "plans": plans.iter().map(|p| json!({
            "name": p["name"], "steps": p["steps"].as_array().map_or(0, Vec::len), "arena_bytes": p["arena_bytes"],
            "live_bytes": p["live_bytes"],
        })).collect::<Vec<_>>()}))?;
    } else {
        output::write_stdout(&output::table(&table))?;
        output::stdout_line(&format!("wrote {}", args.emit.display()))?;
    }
    Ok(Outcome::Done)
}

fn write_graph(path: &Path, graph: &Graph) -> std::io::Result<()> {
    std::fs::write(path, text::print(graph))
}
