//! `kfc compile`: the job's graphs after every pass, the plans and the kernels of a GPU, written to a folder.

mod kernels;

use crate::args::{CompileArgs, Global, Target};
use crate::config::{self, format_bytes};
use crate::error::{Outcome, input_error};
use crate::output;
use kfc_graph::{Graph, text};
use kfc_kernels::compile::Backend;
use kfc_kernels::plan::Plan;
use kfc_kernels::tile::lower::lower;
use kfc_runtime::files::{AtomicDir, FileError, write_json};
use kfc_runtime::models::Model;
use kfc_runtime::train::{data, setup};
use kfc_runtime::triton::Python;
use serde_json::json;
use std::path::Path;

/// Runs `kfc compile`. The folder gets `ir/NN-pass.kir` of the micro-batch graph and `ir/update/NN-pass.kir` of the update
/// graph, and `plan.json` with both plans; for a GPU also `kernels/NAME.cu` (or `.py`), `NAME.cubin` and `NAME.json`,
/// launches in `plan.json`, and the job with all its keys as `job.toml`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &CompileArgs, global: &Global) -> anyhow::Result<Outcome> {
    let (backend, target) = match args.target {
        Target::Cpu => (Backend::Cpu, "cpu".to_string()),
        Target::Cuda(arch) => (Backend::Tile, format!("cuda:{arch}")),
        Target::Triton(arch) => (Backend::Tile, format!("triton:sm_{arch}")),
    };
    let mut job = config::load(&args.config, &args.set)?;
    job.train.mem_budget = args.mem_budget.or(job.train.mem_budget);
    if args.emit.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(input_error(format!(
            "{} is not empty; choose another folder with --emit DIR",
            args.emit.display()
        )));
    }
    let model = Model::open(&job.model.path, job.model.dtype, job.model.init, job.train.seed)?;
    let rows = data::load(&job, &model.config)?;
    let folder = AtomicDir::create(&args.emit)?;
    let mut written = Ok(());
    let compiled = setup::compile(&job, rows.seq_len(), backend, &mut |name, pass, graph| {
        if written.is_ok() {
            written = write_graph(folder.path(), name, pass, graph);
        }
    })?;
    written?;
    let mut table = vec![["graph", "steps", "arena", "live"].map(String::from).to_vec()];
    for plan in &compiled.plans {
        let bytes = |b: usize| format_bytes(b as u64);
        let cells = [
            plan.name.clone(),
            plan.steps.len().to_string(),
            bytes(plan.arena_bytes),
            bytes(plan.live_bytes),
        ];
        table.push(cells.to_vec());
    }
    let mut summary = json!({"emit": output::shown(&args.emit)});
    let plans: Vec<_> = match args.target {
        Target::Cpu => compiled.plans.iter().map(Plan::to_json).collect(),
        Target::Cuda(_) | Target::Triton(_) => {
            let lowered = lower(&compiled.plans)?;
            let named = Python { on_command_line: args.python.clone(), ..Python::of_job(&job) };
            let into = folder.path().join("kernels");
            let (text, edited) = kernels::write(args, &lowered, &named, &into, global)?;
            summary["kernels"] = json!(lowered.kernels.len());
            if !edited.is_empty() {
                summary["edited"] =
                    edited.into_iter().map(|(name, said)| json!({"kernel": name, "check": said})).collect();
            }
            // What the commands in the kernels' headers name.
            write_file(&folder.path().join("job.toml"), config::to_toml(&job))?;
            table.push(["kernels".into(), text, String::new(), String::new()].to_vec());
            compiled.plans.iter().enumerate().map(|(i, plan)| lowered.plan_json(plan, i)).collect()
        }
    };
    write_json(
        &folder.path().join("plan.json"),
        &json!({
            "target": target, "memory": compiled.account.to_json(), "plans": plans,
        }),
    )?;
    folder.commit()?;
    if global.json {
        summary["plans"] = plans
            .iter()
            .map(|p| {
                json!({
                    "name": p["name"], "steps": p["steps"].as_array().map_or(0, Vec::len),
                    "arena_bytes": p["arena_bytes"], "live_bytes": p["live_bytes"],
                })
            })
            .collect();
        output::json_line(&summary)?;
    } else {
        output::write_stdout(&output::table(&table))?;
        output::stdout_line(&format!("wrote {}", args.emit.display()))?;
    }
    Ok(Outcome::Done)
}

/// The micro-batch graph goes to `ir/`, the update graph to `ir/update/`.
fn write_graph(folder: &Path, name: &str, pass: &str, graph: &Graph) -> Result<(), FileError> {
    let ir = if name == "train" { folder.join("ir") } else { folder.join("ir").join(name) };
    std::fs::create_dir_all(&ir).map_err(|e| FileError::io("create", &ir, e))?;
    write_file(&ir.join(format!("{pass}.kir")), text::print(graph))
}

/// Writes a file of a folder that is not in its place yet.
fn write_file(path: &Path, bytes: impl AsRef<[u8]>) -> Result<(), FileError> {
    std::fs::write(path, bytes).map_err(|e| FileError::io("write", path, e))
}
