//! One kernel of a GPU alone, timed beside its limit and beside an edited one; and the list of them.

use super::Place;
use crate::args::{BenchArgs, Global, KernelArgs};
use crate::config;
use crate::error::Outcome;
use crate::output;
use kfc_kernels::compile::Backend;
use kfc_kernels::tile::lower::{Lowered, lower};
use kfc_runtime::alone::Times;
use kfc_runtime::device::cuda::{self, Gpu};
use kfc_runtime::models::Model;
use kfc_runtime::train::{data, setup};
use serde_json::{Value, json};
use std::time::Duration;

/// How long a kernel is timed.
const BUDGET: Duration = Duration::from_secs(2);

/// Runs `kfc bench --kernel` and `--list` for a GPU. Only timing needs one.
///
/// # Errors
/// If the job is wrong, there is no kernel of that name, or the edited one is wrong.
pub fn run(args: &BenchArgs, kernel: &KernelArgs, index: usize, global: &Global) -> anyhow::Result<Outcome> {
    let place;
    let job = match &kernel.job {
        Some(path) => &config::load(path, &[])?,
        None => {
            let mut of_workload = Place::of(&args.workload, args.dtype, args.keep.as_deref())?;
            of_workload.job.train.mem_budget = args.mem_budget;
            place = of_workload;
            &place.job
        }
    };
    let model = Model::open(&job.model.path, job.model.dtype, job.model.init, job.train.seed)?;
    let seq = data::load(job, &model.config)?.seq_len();
    let compiled = setup::compile(job, seq, Backend::Tile, &mut |_, _, _| ())?;
    let lowered = lower(&compiled.plans)?;
    let Some(name) = &kernel.name else { return list(&lowered, global) };
    let gpu = Gpu::open(index)?;
    let alone = cuda::time(&gpu, &lowered, name, kernel.file.as_deref(), args.kernels.as_deref(), BUDGET)?;
    if global.json {
        let times = |t: &Times| json!({"median_us": t.median * 1e-3, "best_us": t.best * 1e-3, "p90_us": t.most * 1e-3, "runs": t.runs});
        let edited = alone.edited.as_ref().map(|(t, said)| {
            let mut value = times(t);
            value["check"] = json!(said);
            value["speedup"] = json!(alone.built_in.median / t.median);
            value
        });
        output::json_line(&json!({
            "kernel": name, "device": gpu.info.name, "built_in": times(&alone.built_in), "edited": edited,
            "limit_us": alone.limit() * 1e-3, "bytes": alone.bytes, "flops": alone.flops,
            "copy_bytes_per_s": alone.bandwidth, "peak_flops_per_s": alone.peak,
        }))?;
        return Ok(Outcome::Done);
    }
    output::write_stdout(&output::table(&rows(name, &alone, &lowered)))?;
    let bandwidth = format!("{:.0} GB/s, copied on this device just now", alone.bandwidth * 1e-9);
    let peak = match alone.peak {
        Some(peak) => {
            format!("{:.0} TFLOP/s, stated for {} at its highest clock", peak * 1e-12, gpu.info.name)
        }
        None => format!("not known for {}", gpu.info.name),
    };
    let amount = format!(
        "{:.3} MB in buffers, {:.3} GFLOP in products",
        alone.bytes as f64 * 1e-6,
        alone.flops as f64 * 1e-9
    );
    let of = if alone.is_limited_by_products() { "products" } else { "memory" };
    output::stdout_line(&format!(
        "limit {} by {of}: {amount}; memory {bandwidth}; products {peak}",
        us(alone.limit())
    ))?;
    if let Some((times, said)) = &alone.edited {
        output::stdout_line(&format!(
            "edited {said}; {:.2} x the built-in's speed",
            alone.built_in.median / times.median
        ))?;
    }
    Ok(Outcome::Done)
}

fn us(ns: f64) -> String {
    format!("{:.2} µs", ns * 1e-3)
}

/// The times, a column for each kernel.
fn rows(name: &str, alone: &cuda::Alone, lowered: &Lowered) -> Vec<Vec<String>> {
    let all: Vec<&Times> =
        std::iter::once(&alone.built_in).chain(alone.edited.as_ref().map(|(t, _)| t)).collect();
    let row = |what: &str, cell: &dyn Fn(&Times) -> String| {
        std::iter::once(what.to_string()).chain(all.iter().map(|t| cell(t))).collect::<Vec<_>>()
    };
    let mut rows =
        vec![[name, "built-in", "edited"].iter().take(1 + all.len()).map(ToString::to_string).collect()];
    rows.push(row("median", &|t| us(t.median)));
    rows.push(row("fastest", &|t| us(t.best)));
    rows.push(row("9 of 10 below", &|t| us(t.most)));
    rows.push(row("launches timed", &|t| t.runs.to_string()));
    rows.push(row("of limit", &|t| format!("{:.0} %", alone.limit() / t.median * 100.0)));
    if let Some(k) = lowered.kernels.iter().position(|k| k.name == name) {
        let mut part =
            vec!["part of".to_string(), lowered.origins[k].operation.first().cloned().unwrap_or_default()];
        part.resize(1 + all.len(), String::new());
        rows.push(part);
    }
    rows
}

/// All kernels, in order of their first launch.
fn list(lowered: &Lowered, global: &Global) -> anyhow::Result<Outcome> {
    let all = || lowered.kernels.iter().zip(&lowered.origins);
    if global.json {
        let kernels: Vec<Value> = all()
            .map(|(k, o)| {
                let buffers: Vec<Value> = (k.program.params.iter().zip(&o.operands))
                    .map(|(p, of)| json!({"name": p.name, "type": p.elem.name(), "elements": p.len, "access": p.access.name(), "of": of}))
                    .collect();
                json!({
                    "kernel": k.name, "launches": k.launches, "grid": k.program.grid, "warps": k.program.warps,
                    "operation": o.operation, "buffers": buffers,
                })
            })
            .collect();
        output::json_line(&json!({"kernels": kernels}))?;
        return Ok(Outcome::Done);
    }
    let mut rows = vec![["kernel", "launches", "blocks", "operation"].map(String::from).to_vec()];
    for (k, o) in all() {
        let operation = o.operation.first().and_then(|l| l.split(' ').next()).unwrap_or_default().to_string();
        rows.push(vec![k.name.clone(), k.launches.to_string(), k.program.programs().to_string(), operation]);
    }
    output::write_stdout(&output::table(&rows))?;
    Ok(Outcome::Done)
}
