//! From a graph to a plan: passes, kernels, schedule, memory. Nodes of the built graph a second.
#![allow(clippy::expect_used)]

use criterion::{BenchmarkId, Criterion, Throughput};
use kfc_benches::workloads::Shape;
use kfc_graph::{DType, Graph};
use kfc_kernels::compile::compile;
use kfc_ops::model::{LoraSpec, ModelConfig, resolve_targets};
use kfc_ops::step::train::{TrainSpec, train_graph};

fn main() {
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let mut group = criterion.benchmark_group("planner");
    for layers in [2, 12, 32] {
        let graph = graph(layers);
        group.throughput(Throughput::Elements(graph.nodes().len() as u64));
        group.bench_function(BenchmarkId::new("layers", layers), |b| {
            b.iter(|| compile(&graph, &mut |_, _| ()).expect("a plan"));
        });
    }
    group.finish();
    criterion.final_summary();
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
    };
    train_graph(&spec).expect("a graph").graph
}
