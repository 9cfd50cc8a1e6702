//! From a graph to a plan: passes, kernels, schedule, memory. Nodes of the built graph a second; then how good plans are:
//! the arena against the most bytes alive at once, which no arena can be smaller than, and how long budgets take.
#![allow(clippy::expect_used)]

use criterion::{BenchmarkId, Criterion, Throughput};
use kfc_benches::workloads::Shape;
use kfc_graph::cost::Rates;
use kfc_graph::{DType, Graph};
use kfc_kernels::compile::{Backend, CompileOptions, Recompute, compile, compile_with, frontier};
use kfc_ops::model::{LoraSpec, ModelConfig, resolve_targets};
use kfc_ops::step::train::{Embedded, TrainSpec, train_graph};
use std::time::Instant;

const LAYERS: [usize; 3] = [2, 12, 32];
/// Seconds that a plan within a budget may take.
const LIMIT: f64 = 10.0;

fn main() {
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let mut group = criterion.benchmark_group("planner");
    for layers in LAYERS {
        let graph = graph(layers);
        group.throughput(Throughput::Elements(graph.nodes().len() as u64));
        group.bench_function(BenchmarkId::new("layers", layers), |b| {
            b.iter(|| compile(&graph, &mut |_, _| ()).expect("a plan"));
        });
    }
    group.finish();
    criterion.final_summary();
    let names = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    if names.into_iter().all(|name| "planner/quality".contains(&name)) {
        quality();
    }
}

/// Arenas of full keep and of the tightest budget that can be, and the time of planning both.
fn quality() {
    println!(
        "\n{:<8}{:<14}{:>12}{:>14}{:>8}{:>12}",
        "layers", "kept", "arena MiB", "lower bound", "ratio", "seconds"
    );
    let mut slowest = 0.0f64;
    for layers in LAYERS {
        let graph = graph(layers);
        let tightest =
            frontier(&graph, Backend::Cpu, &Rates::default().seconds_of()).expect("choices").choices;
        let tightest = tightest.last().expect("a choice").arena_bytes;
        for (name, recompute) in
            [("everything", Recompute::Off), ("the least", Recompute::WithinBudget(tightest))]
        {
            let options = CompileOptions { recompute, ..CompileOptions::default() };
            let start = Instant::now();
            let plan = compile_with(&graph, &options, &mut |_, _| ()).expect("a plan").plan;
            let seconds = start.elapsed().as_secs_f64();
            slowest = slowest.max(seconds);
            let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
            println!(
                "{layers:<8}{name:<14}{:>12.1}{:>14.1}{:>8.4}{seconds:>12.3}",
                mib(plan.arena_bytes),
                mib(plan.live_bytes),
                plan.arena_bytes as f64 / plan.live_bytes as f64
            );
        }
    }
    let verdict = if slowest <= LIMIT { "yes" } else { "no" };
    println!(
        "planned within {LIMIT} s, also 32 layers with 4,096 tokens: {verdict} ({slowest:.2} s at most)"
    );
}

/// A LoRA training step of a llama with the layers of the 8B model, and `layers` of them.
fn graph(layers: usize) -> Graph {
    let shape = Shape { hidden: 4096, layers, heads: 32, kv_heads: 8, intermediate: 14336 };
    let student = ModelConfig::from_json(&shape.config(128_256)).expect("a model");
    let modules = resolve_targets(&student, None).expect("modules");
    let lora = LoraSpec { r: 16, scale: 2.0, dropout: 0.1, modules };
    let spec = TrainSpec {
        student: &student,
        dtype: DType::Bf16,
        lora: Some(&lora),
        batch: 2,
        seq: 2048,
        distill: None,
        embedded: Embedded::default(),
    };
    train_graph(&spec).expect("a graph").graph
}
