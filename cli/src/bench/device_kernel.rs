//! One kernel of a GPU alone, timed beside its limit and beside an edited one; and the list of them.

use super::Place;
use super::sampled::{Sampled, Samples, time};
use crate::args::{BenchArgs, Global, KernelArgs};
use crate::config;
use crate::error::Outcome;
use crate::output;
use kfc_kernels::compile::Backend;
use kfc_kernels::tile::lower::{Lowered, lower};
use kfc_runtime::device::cuda::{self, Gpu};
use kfc_runtime::models::Model;
use kfc_runtime::train::{data, setup};
use kfc_runtime::triton::Python;
use serde_json::{Value, json};
use std::time::Duration;

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
    let (file, folder) = (kernel.file.as_deref(), args.kernels.as_deref());
    let alone = cuda::alone(&gpu, &lowered, name, file, folder, &Python::of_job(job))?;
    let timed = Timed::of(&alone, kernel, &work(&gpu, &lowered, name), global.quiet)?;
    if global.json {
        let object = |t: &Sampled| t.json(alone.limit());
        let edited = timed.edited.as_ref().map(|(t, speedup)| {
            let mut value = object(t);
            value["check"] = json!(alone.said);
            value["speedup"] = json!(speedup);
            value
        });
        output::json_line(&json!({
            "kernel": name, "device": gpu.info.name, "built_in": object(&timed.built_in), "edited": edited,
            "limit_us": alone.limit() * 1e-3, "bytes": alone.bytes, "flops": alone.flops,
            "copy_bytes_per_s": alone.bandwidth, "peak_flops_per_s": alone.peak,
        }))?;
        return Ok(Outcome::Done);
    }
    output::write_stdout(&output::table(&rows(name, &timed, &alone, &lowered)))?;
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
        time(alone.limit())
    ))?;
    if let (Some((_, speedup)), Some(said)) = (&timed.edited, &alone.said) {
        output::stdout_line(&format!("edited {said}; {speedup:.2} x the built-in's speed, in turns"))?;
    }
    Ok(Outcome::Done)
}

/// What makes another kernel of it: runs are compared where this is the same.
fn work(gpu: &Gpu, lowered: &Lowered, name: &str) -> String {
    let kernel = lowered.kernels.iter().find(|k| k.name == name);
    let buffers = kernel.iter().flat_map(|k| &k.program.params);
    let buffers: Vec<String> = buffers.map(|p| format!("{} {} {}", p.name, p.elem.name(), p.len)).collect();
    format!("{}\n{name}\n{}", gpu.info.name, buffers.join("\n"))
}

/// Times of kfc's own kernel and of the edited one.
struct Timed {
    built_in: Sampled,
    /// And the speed of it over the built-in's.
    edited: Option<(Sampled, f64)>,
}

impl Timed {
    fn of(alone: &cuda::Alone, kernel: &KernelArgs, work: &str, is_quiet: bool) -> anyhow::Result<Timed> {
        let name = kernel.name.as_deref().unwrap_or_default();
        let built_in = Samples::of(name, work, kernel, is_quiet)?
            .take(alone.one(false)?, &mut |n| alone.run(false, n))?;
        let Some(file) = &kernel.file else { return Ok(Timed { built_in, edited: None }) };
        let work = format!("{work}\n{}", std::path::absolute(file)?.display());
        let samples = Samples::of(&format!("{name}.edited"), &work, kernel, is_quiet)?;
        // The built-in one runs beside each sample, so that neither has the better clock.
        let (mut turns, mut all) = (0, [Duration::ZERO; 2]);
        let edited = samples.take(alone.one(true)?, &mut |n| {
            turns += 1;
            let mut edited = Duration::ZERO;
            for is_edited in if turns % 2 == 0 { [false, true] } else { [true, false] } {
                let time = alone.run(is_edited, n)?;
                all[usize::from(is_edited)] += time;
                if is_edited {
                    edited = time;
                }
            }
            Ok(edited)
        })?;
        let speedup = all[0].as_secs_f64() / all[1].as_secs_f64();
        Ok(Timed { built_in, edited: Some((edited, speedup)) })
    }
}

/// The times, a column for each kernel.
fn rows(name: &str, timed: &Timed, alone: &cuda::Alone, lowered: &Lowered) -> Vec<Vec<String>> {
    let all: Vec<&Sampled> =
        std::iter::once(&timed.built_in).chain(timed.edited.as_ref().map(|(t, _)| t)).collect();
    let row = |what: &str, cell: &dyn Fn(&Sampled) -> String| {
        std::iter::once(what.to_string()).chain(all.iter().map(|t| cell(t))).collect::<Vec<_>>()
    };
    let mut rows =
        vec![[name, "built-in", "edited"].iter().take(1 + all.len()).map(ToString::to_string).collect()];
    rows.push(row("time", &Sampled::time_told));
    rows.push(row("median", &|t| time(t.median)));
    rows.push(row("launches timed", &|t| t.runs.to_string()));
    rows.push(row("rates", &|t| t.rates_told(alone.flops as f64, alone.bytes as f64)));
    rows.push(row("of limit", &|t| format!("{:.0} %", alone.limit() / t.time.value * 100.0)));
    rows.push(row("change", &Sampled::change_told));
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
