//! Every kernel that a training step of `small` launches, alone, and its share of what this machine can do.
//!
//! Ends with a table and, where no filter left kernels out, with `benches/results/kernels-….json` and `roofline-….svg`.
#![allow(clippy::expect_used)]

use criterion::{BenchmarkId, Criterion};
use kfc::Place;
use kfc::output::table;
use kfc::report::roofline::{Dot, Roofline};
use kfc_benches::limits::{Bound, Work, bench, limits, milliseconds};
use kfc_benches::operands::Alone;
use kfc_benches::temp::TempFolder;
use kfc_benches::workloads::SMALL;
use kfc_graph::DType;
use kfc_kernels::compile::Backend;
use kfc_kernels::plan::{Plan, Step};
use kfc_runtime::profile::{Kind, Machine, PlanProfile};
use kfc_runtime::train::setup;
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// A kernel of a plan.
struct Kernel<'a> {
    plan: &'a Plan,
    step: &'a Step,
    kind: Kind,
    /// Launches of a training step.
    launches: usize,
    place: Place,
    /// Seconds of its fastest run, if it was measured.
    best: Option<f64>,
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .configure_from_args();
    for dtype in [DType::Bf16, DType::F32] {
        measure(&mut criterion, dtype);
    }
    criterion.final_summary();
}

fn measure(criterion: &mut Criterion, dtype: DType) {
    let folder = TempFolder::new(&format!("kernels-{dtype}")).expect("a temporary folder");
    SMALL.write(folder.path(), dtype).expect("files");
    let job = SMALL.job(folder.path(), dtype);
    let plans = setup::compile(&job, SMALL.seq, Backend::Cpu, &mut |_, _, _| ()).expect("plans").plans;
    let mut kernels: Vec<Kernel<'_>> = plans.iter().flat_map(kernels_of).collect();
    let mut group = criterion.benchmark_group(format!("kernels small {dtype}"));
    for (i, k) in kernels.iter_mut().enumerate() {
        let mut alone = None;
        let (plan, step) = (k.plan, k.step);
        k.best = bench(&mut group, BenchmarkId::from_parameter(k.name(i)), k.work(), || {
            alone.get_or_insert_with(|| Alone::new(plan, step).expect("a kernel")).run();
        });
    }
    group.finish();
    report(&kernels, dtype);
}

/// The different kernels of a plan, in order of their first launch.
fn kernels_of(plan: &Plan) -> Vec<Kernel<'_>> {
    let profile = PlanProfile::of(plan, 1);
    let mut kernels: Vec<Kernel<'_>> = Vec::new();
    for (launch, step) in profile.launches.iter().zip(&plan.steps) {
        let kind = &profile.kinds[launch.kind];
        match kernels.get_mut(launch.kind) {
            Some(known) => known.launches += 1,
            None => kernels.push(Kernel {
                plan,
                step,
                kind: kind.clone(),
                launches: 1,
                place: Place::of(&kind.op, &launch.scope, launch.phase),
                best: None,
            }),
        }
    }
    kernels
}

impl Kernel<'_> {
    fn work(&self) -> Work {
        Work::of(self.kind.cost, if self.kind.is_16_bit() { DType::Bf16 } else { DType::F32 })
    }

    /// The largest operands, and the first result.
    fn shapes(&self) -> String {
        let mut types: Vec<_> = self.step.input_types.iter().collect();
        types.sort_by_key(|t| std::cmp::Reverse(t.bytes()));
        let shown: Vec<String> = types
            .iter()
            .take(2)
            .copied()
            .chain(self.step.output_types.first())
            .map(ToString::to_string)
            .collect();
        shown.join(" ")
    }

    fn name(&self, number: usize) -> String {
        format!("{number:03} {} {}", self.kind.op, self.shapes())
    }
}

/// The table of what was measured; files if that is everything.
fn report(kernels: &[Kernel<'_>], dtype: DType) {
    let limits = &limits().all;
    let mut measured: Vec<(&Kernel<'_>, f64)> = kernels.iter().filter_map(|k| Some((k, k.best?))).collect();
    if measured.is_empty() {
        return;
    }
    let in_step = |(k, best): &(&Kernel<'_>, f64)| best * k.launches as f64;
    measured.sort_by(|a, b| in_step(b).total_cmp(&in_step(a)));
    let whole: f64 = measured.iter().map(in_step).sum();
    let least: f64 = measured.iter().map(|(k, _)| k.work().least(limits).0 * k.launches as f64).sum();
    let head = ["kernel", "shapes", "time", "× a step", "share", "GFLOP/s", "GB/s", "bound by", "% of limit"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for (k, best) in &measured {
        let (floor, bound) = k.work().least(limits);
        rows.push(vec![
            k.kind.op.clone(),
            k.shapes(),
            milliseconds(*best),
            k.launches.to_string(),
            format!("{:.1} %", in_step(&(*k, *best)) / whole * 100.0),
            format!("{:.1}", k.kind.cost.flops as f64 / best * 1e-9),
            format!("{:.1}", k.kind.cost.bytes as f64 / best * 1e-9),
            bound.name().into(),
            format!("{:.0}", floor / best * 100.0),
        ]);
    }
    println!("\nsmall {dtype}, {} kernels\n{}", measured.len(), table(&rows));
    println!(
        "all launches of a step, one after the other: {}; at the limits: {} ({:.0} %)\n{}",
        milliseconds(whole),
        milliseconds(least),
        least / whole * 100.0,
        kfc_benches::limits::limits().describe()
    );
    if measured.len() == kernels.len() {
        write_files(&measured, whole, dtype);
    }
}

fn write_files(measured: &[(&Kernel<'_>, f64)], whole: f64, dtype: DType) {
    let (limits, machine) = (&limits().all, Machine::this());
    let dots = measured.iter().map(|(k, best)| Dot {
        label: format!("{} {}", k.kind.op, k.shapes()),
        colour: k.place.part.colour(),
        pale: k.place.teacher,
        flops: (k.kind.cost.flops * k.launches as u64) as f64,
        bytes: (k.kind.cost.bytes * k.launches as u64) as f64,
        seconds: best * k.launches as f64,
        whole,
    });
    let drawing = Roofline {
        roofs: vec![("f32".into(), limits.flops_f32), ("bf16".into(), limits.flops_bf16)],
        bytes_per_s: limits.copy_bytes,
        dots: dots.collect(),
    };
    let mut legend: Vec<(String, usize)> =
        measured.iter().map(|(k, _)| (k.place.part.name().to_string(), k.place.part.colour())).collect();
    legend.sort_by_key(|(_, colour)| *colour);
    legend.dedup_by_key(|(_, colour)| *colour);
    let title = format!("Kernels of a training step of small, {dtype}");
    let note = format!(
        "{}, {} threads. Each kernel alone, operands from memory; the area of a circle is its share of the step; pale: the teacher's.",
        machine.cpu, machine.threads
    );
    let kernels: Vec<_> = measured
        .iter()
        .map(|(k, best)| {
            let (least, bound) = k.work().least(limits);
            json!({
                "op": k.kind.op, "attrs": k.kind.attrs, "inputs": k.kind.inputs, "outputs": k.kind.outputs,
                "launches": k.launches, "flops": k.kind.cost.flops, "bytes": k.kind.cost.bytes,
                "us": (best * 1e9).round() / 1e3, "share_of_limit": (least / best * 1e3).round() / 1e3,
                "bound": if bound == Bound::Arithmetic { "arithmetic" } else { "memory" },
            })
        })
        .collect();
    let file = json!({
        "workload": "small", "dtype": dtype.name(), "cpu": machine.cpu, "threads": machine.threads,
        "limits": {"flops_f32": limits.flops_f32, "flops_bf16": limits.flops_bf16, "copy_bytes_per_s": limits.copy_bytes},
        "kernels": kernels,
    });
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    std::fs::create_dir_all(&folder).expect("a folder");
    let text = serde_json::to_string_pretty(&file).expect("JSON") + "\n";
    std::fs::write(folder.join(format!("kernels-small-{dtype}.json")), text).expect("a file");
    if let Some(svg) = drawing.page(&title, &note, &legend) {
        std::fs::write(folder.join(format!("roofline-small-{dtype}.svg")), svg).expect("a file");
    }
}
