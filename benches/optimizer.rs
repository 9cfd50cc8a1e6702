//! The end of a step (penalty, gradient norm, clipping, AdamW) beside a plain copy:
//! `cargo bench -p kfc-benches --bench optimizer`. Bytes are those of two passes: one that reads what the gradient is made
//! of, for its norm, and one that reads it again with the moments and writes parameters and moments.
#![allow(clippy::expect_used)]

use kfc_benches::bandwidth::{self, Bandwidth, Prepared};
use kfc_benches::workloads::SMALL;
use kfc_graph::{Attrs, Builder, DType, Graph, InputKind, TensorType};
use kfc_ops::step::TrainedParam;
use kfc_ops::step::update::{EwcSpec, EwcTerm, UpdateSpec, update_graph};
use std::collections::BTreeSet;

fn main() {
    let mut criterion = bandwidth::criterion();
    let mut b = Bandwidth::new(&mut criterion).expect("threads");
    let sets = [("adapters of small", adapters()), ("one of 16M", vec![param(0, &[4096, 4096])])];
    for (name, params) in &sets {
        for fisher in [None, Some(DType::F32), Some(DType::Bf16)] {
            let elements: usize = params.iter().map(TrainedParam::elements).sum();
            let penalty = fisher.map_or(0, |f| 4 + f.size());
            let bytes = elements * (4 + 28 + 2 * penalty + if fisher.is_some() { 4 } else { 0 });
            let name = format!("{name}, {}", fisher.map_or("no penalty".into(), |f| format!("fisher {f}")));
            let mut prepared = None;
            b.measure("optimizer", &name, bytes as u64, &mut || {
                prepared.get_or_insert_with(|| update(params, fisher)).run();
            });
        }
    }
    for fisher in [DType::F32, DType::Bf16] {
        let (graph, bytes) = delta(fisher);
        let mut prepared = None;
        b.measure("optimizer", &format!("change of small, fisher {fisher}"), bytes, &mut || {
            prepared.get_or_insert_with(|| bandwidth::bound(&graph, 1e-3).expect("a plan")).run();
        });
    }
    b.finish();
}

/// The penalty on the merged change of the adapters of `small` and its gradient; bytes are those of the Fisher diagonal.
fn delta(fisher: DType) -> (Graph, u64) {
    let mut graph = Graph::new("delta");
    let mut bytes = 0;
    let weight = graph.add_input("weight", InputKind::Data, TensorType::scalar());
    for (i, sides) in adapters().chunks(2).enumerate() {
        let input = |g: &mut Graph, name: &str, dtype, dims: &[usize]| {
            g.add_input(format!("{name}.{i}"), InputKind::Weight, TensorType::new(dtype, dims))
        };
        let (a, o) = (&sides[0].dims, sides[1].dims[0]);
        let (va, vb) =
            (input(&mut graph, "a", DType::F32, a), input(&mut graph, "b", DType::F32, &sides[1].dims));
        let f = input(&mut graph, "fisher", fisher, &[o, a[1]]);
        bytes += graph.ty(f).bytes() as u64;
        let attrs = Attrs::new().with("scale", 2.0);
        let results = Builder::new(&mut graph)
            .composite(&kfc_ops::ewc_delta::EWC_DELTA_BWD, attrs, &[weight, va, vb, f])
            .expect("operands that fit");
        results.iter().enumerate().for_each(|(j, &v)| graph.add_output(format!("{i}.{j}"), v, None));
    }
    (graph, bytes)
}

/// The adapters of the student of `small`, rank 16 on every linear layer.
fn adapters() -> Vec<TrainedParam> {
    let (h, f, kv) = (
        SMALL.student.hidden,
        SMALL.student.intermediate,
        SMALL.student.hidden / SMALL.student.heads * SMALL.student.kv_heads,
    );
    let modules = [(h, h), (h, kv), (h, kv), (h, h), (h, f), (h, f), (f, h)];
    let sides = modules.iter().flat_map(|&(i, o)| [vec![16, i], vec![o, 16]]);
    let dims: Vec<Vec<usize>> = sides.collect();
    let all = (0..SMALL.student.layers).flat_map(|_| dims.clone());
    all.enumerate().map(|(i, dims)| param(i, &dims)).collect()
}

fn param(i: usize, dims: &[usize]) -> TrainedParam {
    TrainedParam { name: format!("lora.{i}"), dims: dims.to_vec(), decay: true }
}

fn update(params: &[TrainedParam], fisher: Option<DType>) -> Prepared {
    let terms: Vec<(EwcTerm, DType)> = fisher
        .iter()
        .flat_map(|&f| params.iter().map(move |p| (EwcTerm::Param(p.name.clone()), f)))
        .collect();
    let spec = UpdateSpec {
        params,
        betas: (0.9, 0.95),
        eps: 1e-8,
        weight_decay: 0.01,
        max_grad_norm: 1.0,
        ewc: fisher.map(|_| EwcSpec { lambda: 1e-3, terms: &terms }),
        lr_scaled: &BTreeSet::new(),
        cast: None,
    };
    let graph = update_graph(&spec).expect("an update");
    bandwidth::bound(&graph, 1e-3).expect("a plan")
}
