//! What fusing products with their epilogues saves in training steps, and that their memory is as planned.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::llama::{Job, TINY, large, train};
use kfc_graph::budget::Frontier;
use kfc_graph::cost::{Rates, node_cost};
use kfc_graph::memory::{self, Facts};
use kfc_graph::schedule::schedule;
use kfc_graph::{Cost, DType, Graph, Node, Op, TensorType};
use kfc_kernels::compile::{Backend, CompileOptions, Recompute, compile_with, frontier};
use kfc_kernels::plan::Plan;
use kfc_kernels::tile::programs::emit;
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// A plan for tile programs, and the graph before and behind the last pass.
fn compiled(graph: &Graph, recompute: Recompute) -> (Plan, Graph, Graph) {
    let options = CompileOptions { backend: Backend::Tile, recompute, ..CompileOptions::default() };
    let mut seen: Vec<(String, Graph)> = vec![];
    let plan =
        compile_with(graph, &options, &mut |name, g| seen.push((name.into(), g.clone()))).unwrap().plan;
    let (name, after) = seen.pop().unwrap();
    assert_eq!(name, "11-fuse-products");
    (plan, seen.pop().unwrap().1, after)
}

fn cost(graph: &Graph) -> Cost {
    graph
        .nodes()
        .iter()
        .map(|n| node_cost(graph, n))
        .fold(Cost::default(), |a, b| Cost { flops: a.flops + b.flops, bytes: a.bytes + b.bytes })
}

/// Bytes that a fused node moves less than its operations one by one; those of a group were one already.
fn saved(graph: &Graph, node: &Node) -> Option<(String, u64)> {
    let Op::Fused(f) = &node.op else { return None };
    let body = f.body();
    let names: Vec<&str> = body.nodes().iter().map(|n| n.op.name()).collect();
    let model = graph.scope(node).split('.').next().unwrap().to_string();
    let is_inner = |n: &&Node| {
        matches!(n.op, Op::Prim(_)) && body.outputs().iter().all(|o| !n.outputs.contains(&o.value))
    };
    let inner: usize = body.nodes().iter().filter(is_inner).map(|n| 2 * body.ty(n.outputs[0]).bytes()).sum();
    let bytes = cost(body).bytes - f.cost().bytes - inner as u64;
    Some((format!("{model} {}: {}", node.phase.name(), names.join(" + ")), bytes))
}

/// The arena of a graph for tile programs.
fn arena(graph: &Graph) -> usize {
    let known: Mutex<HashMap<String, Facts>> = Mutex::default();
    let facts = |graph: &Graph, node: &Node| {
        let of = |ids: &[kfc_graph::ValueId]| {
            ids.iter().map(|v| graph.ty(*v).clone()).collect::<Vec<TensorType>>()
        };
        let (inputs, outputs) = (of(&node.inputs), of(&node.outputs));
        let key = format!("{:?} {inputs:?}", node.op);
        *known.lock().unwrap().entry(key).or_insert_with(|| {
            let e = emit(&node.op, &inputs, &outputs).unwrap();
            Facts { inplace: e.updates, may_inplace: e.may_share, workspace: e.workspace_bytes() }
        })
    };
    memory::plan(graph, &schedule(graph), &facts).arena_bytes
}

#[test]
fn a_step_of_eight_billion_weights_moves_less() {
    let job = Job { dtype: DType::Bf16, lora: true, teacher: true, batch: 2, seq: 2048 };
    let graph = train(large(32), job);
    let (plan, before, after) = compiled(&graph, Recompute::Off);
    let (apart, together) = (cost(&before), cost(&after));
    assert_eq!(apart.flops, together.flops);
    let mut kinds: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for (kind, bytes) in after.nodes().iter().filter_map(|n| saved(&after, n)) {
        let entry = kinds.entry(kind).or_default();
        *entry = (entry.0 + 1, entry.1 + bytes);
    }
    kinds.iter().for_each(|(kind, (n, bytes))| println!("{:7.2} GiB {n:3} {kind}", *bytes as f64 / GIB));
    println!("{:.1} of {:.1} GiB", (apart.bytes - together.bytes) as f64 / GIB, apart.bytes as f64 / GIB);
    println!("arena {:.3} GiB, apart {:.3}", plan.arena_bytes as f64 / GIB, arena(&before) as f64 / GIB);
    assert_eq!(arena(&after), plan.arena_bytes);
    // In each layer of both models: two residuals, rotated queries and keys, the gated activation; in the student's backward
    // pass the gate's gradient and two sums of gradients,
    // of which the first layer, whose input nothing trained makes, has one.
    let count: usize = kinds.values().map(|k| k.0).sum();
    assert_eq!(count, 32 * (5 + 5 + 3) - 1);
    assert_eq!(kinds.values().map(|k| k.1).sum::<u64>(), apart.bytes - together.bytes);
}

#[test]
fn what_is_planned_within_a_budget_is_what_is_made() {
    for teacher in [false, true] {
        let job = Job { dtype: DType::Bf16, lora: true, teacher, batch: 2, seq: 64 };
        let graph = train(TINY, job);
        let all: Frontier = frontier(&graph, Backend::Tile, &Rates::default().seconds_of()).unwrap();
        assert!(all.choices.len() > 1);
        for choice in &all.choices {
            let (plan, _, _) = compiled(&graph, Recompute::Values(choice.dropped.clone(), usize::MAX));
            assert_eq!(plan.arena_bytes, choice.arena_bytes, "{}", choice.name);
            let chosen = all.within(choice.arena_bytes).unwrap();
            let (plan, _, _) = compiled(&graph, Recompute::WithinBudget(choice.arena_bytes));
            assert_eq!(plan.arena_bytes, chosen.arena_bytes, "{}", choice.name);
        }
    }
}
