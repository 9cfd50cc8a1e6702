//! What must hold for any graph.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{check_order, check_plan, defs, inplace, random_graph, random_inputs, workspace};
use kfc_graph::interp::{Tensor, run};
use kfc_graph::memory::{Options, plan};
use kfc_graph::passes::optimise;
use kfc_graph::schedule::schedule;
use kfc_graph::text::{parse, print};
use kfc_graph::verify::verify;
use kfc_graph::{Builder, DType, Graph, InputKind, TensorType};
use proptest::prelude::*;

/// Equal as numbers: the one thing a pass may change is the sign of a zero. NaN equals itself.
fn same(a: &[Tensor], b: &[Tensor]) -> bool {
    let equal = |(x, y): (&f64, &f64)| x == y || (x.is_nan() && y.is_nan());
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| a.dims == b.dims && a.data.iter().zip(&b.data).all(equal))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn passes_keep_results(seed: u64, size in 1usize..60) {
        let g = random_graph(seed, size);
        verify(&g).unwrap();
        let inputs = random_inputs(&g, seed);
        let before = run(&g, &inputs).unwrap();
        for claimed in [&["gate", "accumulate"][..], &[]] {
            let mut seen = vec![];
            let claims = |c: &kfc_graph::Composite, _: &[TensorType]| claimed.contains(&c.def.name());
            let new = optimise(&g, &defs(), &claims, &mut |name, g| {
                seen.push(name.to_string());
                let after = run(g, &inputs).unwrap();
                assert!(same(&before, &after), "{name} changed the results:\n{}", print(g));
            }).unwrap();
            prop_assert_eq!(seen.len(), 8);
            let left = new.nodes().iter().filter_map(|n| match &n.op {
                kfc_graph::Op::Composite(c) => Some(c.def.name()),
                kfc_graph::Op::Prim(_) => None,
            });
            let unclaimed: Vec<_> = left.filter(|name| !claimed.contains(name)).collect();
            prop_assert_eq!(unclaimed, Vec::<&str>::new());
        }
    }

    #[test]
    fn text_round_trips(seed: u64, size in 1usize..60) {
        let g = random_graph(seed, size);
        let text = print(&g);
        let read = parse(&text, &defs()).unwrap();
        verify(&read).unwrap();
        prop_assert_eq!(print(&read), text);
        prop_assert_eq!(read.value_count(), g.value_count());
    }

    #[test]
    fn plans_are_safe(seed: u64, size in 1usize..80) {
        let g = random_graph(seed, size);
        let order = schedule(&g);
        check_order(&g, &order);
        let program: Vec<_> = g.node_ids().collect();
        let options = Options { inplace: &inplace, workspace: &workspace };
        for order in [order, program] {
            check_plan(&g, &order, &plan(&g, &order, &options));
            check_plan(&g, &order, &plan(&g, &order, &Options::default()));
        }
    }
}

/// A long chain of layers whose activations live until a backward pass.
fn deep(layers: usize) -> Graph {
    let mut g = Graph::new("deep");
    let ty = TensorType::new(DType::F32, [4, 4]);
    let x = g.add_input("x", InputKind::Data, ty.clone());
    let w = g.add_input("w", InputKind::State, ty);
    let mut b = Builder::new(&mut g);
    let mut kept = vec![x];
    for i in 0..layers {
        b.set_scope(&format!("layers.{}", i / 100));
        let last = kept[i];
        let y = b.mul(last, w).unwrap();
        kept.push(b.sigmoid(y).unwrap());
    }
    let mut grad = b.full_like(w, 0.5).unwrap();
    for &y in kept.iter().rev() {
        let d = b.mul(grad, y).unwrap();
        grad = b.add(grad, d).unwrap();
    }
    let new = b.add(w, grad).unwrap();
    g.add_output("w", new, Some(w));
    g
}

#[test]
fn large_graphs_take_seconds_at_most() {
    let g = deep(25_000);
    assert!(g.nodes().len() > 100_000);
    let start = std::time::Instant::now();
    let g = optimise(&g, &defs(), &|_, _| false, &mut |_, _| ()).unwrap();
    let order = schedule(&g);
    let plan = plan(&g, &order, &Options::default());
    assert!(plan.arena_bytes >= plan.lower_bound && plan.lower_bound > 25_000 * 64);
    assert!(parse(&print(&g), &defs()).is_ok());
    // Far above what it takes, far below what anything quadratic would.
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}
