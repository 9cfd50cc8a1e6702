//! What must hold for any graph.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{check_order, check_plan, defs, facts, no_facts, random_graph, random_inputs, random_training};
use kfc_graph::budget::{Choice, Frontier};
use kfc_graph::cost::Rates;
use kfc_graph::interp::{Tensor, run};
use kfc_graph::memory::plan;
use kfc_graph::passes::{optimise, recompute};
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
            prop_assert_eq!(seen.len(), 9);
            let left = new.nodes().iter().filter_map(|n| match &n.op {
                kfc_graph::Op::Composite(c) => Some(c.def.name()),
                kfc_graph::Op::Prim(_) | kfc_graph::Op::Group(_) | kfc_graph::Op::Fused(_) => None,
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
        for order in [order, program] {
            check_plan(&g, &order, &plan(&g, &order, &facts));
            check_plan(&g, &order, &plan(&g, &order, &no_facts));
        }
    }

    #[test]
    fn recompute_keeps_results(seed: u64, size in 1usize..60, keep: u64) {
        for g in [random_graph(seed, size), random_training(seed, size)] {
            let cut = recompute::Cut::new(&g);
            let mut rng = common::Rng(keep);
            let dropped = cut.saved().iter().copied().filter(|_| rng.below(3) > 0).collect();
            let new = recompute::run(&g, &cut, &dropped);
            verify(&new).unwrap();
            let inputs = random_inputs(&g, seed);
            let (a, b) = (run(&g, &inputs).unwrap(), run(&new, &inputs).unwrap());
            let bits = |t: &[Tensor]| t.iter().flat_map(|t| t.data.clone()).map(f64::to_bits).collect::<Vec<_>>();
            prop_assert_eq!(bits(&a), bits(&b));
            let order = schedule(&new);
            check_order(&new, &order);
            check_plan(&new, &order, &plan(&new, &order, &facts));
        }
    }

    #[test]
    fn budgets_are_monotone(seed: u64, size in 10usize..60) {
        let g = random_training(seed, size);
        let frontier = Frontier::new(&g, &|g| g, &facts, &Rates::default().seconds_of());
        let cut = recompute::Cut::new(&g);
        let (fast, small) = (frontier.choices.first().unwrap(), frontier.choices.last().unwrap());
        prop_assert!(frontier.within(usize::MAX).unwrap().extra_seconds <= frontier.free_seconds);
        let mut last: Option<(usize, f64)> = None;
        for budget in (0..=fast.arena_bytes + 64).rev().step_by(64) {
            let Ok(choice) = frontier.within(budget) else {
                prop_assert!(budget < small.arena_bytes);
                prop_assert_eq!(frontier.within(budget).unwrap_err().smallest, small.arena_bytes);
                break;
            };
            prop_assert!(choice.arena_bytes <= budget);
            if let Some((bytes, seconds)) = last {
                prop_assert!(choice.arena_bytes <= bytes && choice.extra_seconds >= seconds);
            }
            last = Some((choice.arena_bytes, choice.extra_seconds));
            let named = frontier.named.iter().filter(|n| n.arena_bytes <= budget);
            let limit = |n: &Choice| n.extra_seconds.max(frontier.free_seconds);
            named.for_each(|n| assert!(choice.extra_seconds <= limit(n), "{} is faster", n.name));
        }
        for choice in &frontier.choices {
            let new = recompute::run(&g, &cut, &choice.dropped);
            prop_assert_eq!(plan(&new, &schedule(&new), &facts).arena_bytes, choice.arena_bytes);
        }
    }
}

#[test]
fn without_a_backward_pass_there_is_one_choice() {
    let text = "graph g {\n %0: f32[4] = data \"x\"\n %1: f32[4] = exp(%0) @forward \"layers.0\"\n \
                %2: f32[4] = neg(%1) @forward \"layers.1\"\n output \"y\" = %2\n}\n";
    let frontier =
        Frontier::new(&parse(text, &defs()).unwrap(), &|g| g, &facts, &Rates::default().seconds_of());
    assert_eq!(frontier.choices.len(), 1);
    assert_eq!((frontier.choices[0].name.as_str(), frontier.choices[0].extra_seconds), ("none", 0.0));
    assert_eq!(frontier.within(64).unwrap_err().smallest, frontier.choices[0].arena_bytes);
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
    let plan = plan(&g, &order, &no_facts);
    // What the forward pass keeps for the backward pass; the last layers are read by the first backward group.
    assert!(plan.arena_bytes >= plan.lower_bound && plan.lower_bound > 24_900 * 64);
    assert!(parse(&print(&g), &defs()).is_ok());
    // Far above what it takes, far below what anything quadratic would.
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}
