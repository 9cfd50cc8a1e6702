//! Values made again in the backward pass change no bit of any result.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::exec::{run_apart, run_plan};
use common::llama::{Job, TINY, contents, train};
use kfc_graph::cost::Rates;
use kfc_graph::interp::{self, Tensor};
use kfc_graph::passes::recompute::{Cut, Policy, dropped, run};
use kfc_graph::{DType, Graph, Op, Phase, ValueId, passes};
use kfc_kernels::KernelError;
use kfc_kernels::compile::{Backend, CompileOptions, Recompute, compile, compile_with, frontier};

const SEQ: usize = 6;

fn jobs() -> Vec<Job> {
    let job = |dtype, lora, teacher| Job { dtype, lora, teacher, batch: 2, seq: SEQ };
    vec![job(DType::F32, true, true), job(DType::Bf16, true, false), job(DType::F32, false, false)]
}

fn policies() -> Vec<Policy> {
    vec![
        Policy::AttentionOnly,
        Policy::EveryLayer,
        Policy::EveryK(2),
        Policy::EveryK(3),
        Policy::FirstLayers(1),
    ]
}

fn optimised(graph: &Graph) -> Graph {
    passes::optimise(graph, &kfc_ops::registry(), &|_, _| true, &mut |_, _| ()).unwrap()
}

#[test]
fn the_interpreter_gives_the_same_bits() {
    for job in jobs() {
        let graph = optimised(&train(TINY, job));
        let data = contents(&graph, TINY, SEQ);
        let inputs: Vec<Tensor> = graph
            .inputs()
            .iter()
            .zip(data)
            .map(|(i, d)| Tensor::new(graph.ty(i.value).dims.clone(), d))
            .collect();
        let bits = |g: &Graph| -> Vec<Vec<u64>> {
            let results = interp::run(g, &inputs).unwrap();
            results.into_iter().map(|t| t.data.into_iter().map(f64::to_bits).collect()).collect()
        };
        let (before, cut) = (bits(&graph), Cut::new(&graph));
        assert!(before.iter().flatten().any(|b| f64::from_bits(*b) != 0.0));
        for policy in policies() {
            let new = run(&graph, &cut, &dropped(&graph, &cut, &policy));
            let copies = new.nodes().iter().filter(|n| n.phase == Phase::Recompute).count();
            assert!(copies > 0, "{} makes nothing again", policy.name());
            assert_eq!(bits(&new), before, "{}", policy.name());
        }
    }
}

#[test]
fn plans_give_the_same_bytes() {
    for job in jobs() {
        let graph = train(TINY, job);
        let data = contents(&graph, TINY, SEQ);
        let expected = run_apart(&optimised(&graph), &data);
        let plain = compile(&graph, &mut |_, _| ()).unwrap();
        assert!(run_plan(&plain, &data) == expected, "sharing memory changes a result");
        let mut choices: Vec<Recompute> = policies().into_iter().map(Recompute::Named).collect();
        let points = frontier(&graph, Backend::Cpu, &Rates::default().seconds_of()).unwrap().choices;
        choices.extend(points.iter().step_by(7).map(|c| Recompute::WithinBudget(c.arena_bytes)));
        choices.extend(points.iter().step_by(9).map(|c| Recompute::Values(c.dropped.clone(), c.arena_bytes)));
        for recompute in choices {
            let what = format!("{recompute:?}");
            let options = CompileOptions { recompute, ..CompileOptions::default() };
            let plan = compile_with(&graph, &options, &mut |_, _| ()).unwrap().plan;
            assert!(run_plan(&plan, &data) == expected, "{what} changes a result");
        }
    }
}

#[test]
fn budgets_are_kept_or_refused() {
    let graph = train(TINY, jobs()[0]);
    let all = frontier(&graph, Backend::Cpu, &Rates::default().seconds_of()).unwrap();
    let compiled = |bytes| {
        let options =
            CompileOptions { recompute: Recompute::WithinBudget(bytes), ..CompileOptions::default() };
        compile_with(&graph, &options, &mut |_, _| ())
    };
    for choice in all.choices.iter().filter(|c| c.extra_seconds > all.free_seconds).step_by(5) {
        let plan = compiled(choice.arena_bytes).unwrap().plan;
        assert_eq!(plan.arena_bytes, choice.arena_bytes);
        let again = plan.decisions.iter().filter(|d| d.recomputed).count();
        assert!(again >= choice.dropped.len());
        let steps = plan.steps.iter().filter(|s| s.phase == Phase::Recompute).count();
        assert_eq!(steps > 0, again > 0);
    }
    let smallest = all.choices.last().unwrap().arena_bytes;
    let error = compiled(smallest - 1).unwrap_err();
    assert!(matches!(&error, KernelError::Budget(e) if e.smallest == smallest), "{error}");
    assert!(error.to_string().contains(&smallest.to_string()));
}

#[test]
fn named_values_are_made_again_where_they_are_saved_and_fit() {
    let graph = train(TINY, jobs()[0]);
    let all = frontier(&graph, Backend::Cpu, &Rates::default().seconds_of()).unwrap();
    let compiled = |recompute| {
        let options = CompileOptions { recompute, ..CompileOptions::default() };
        compile_with(&graph, &options, &mut |_, _| ()).unwrap().plan
    };
    for choice in all.choices.iter().step_by(5) {
        let plan = compiled(Recompute::Values(choice.dropped.clone(), choice.arena_bytes));
        assert_eq!(plan.arena_bytes, choice.arena_bytes);
        let again = plan.decisions.iter().filter(|d| d.recomputed).count();
        assert!(again >= choice.dropped.len());
    }
    // A byte too much, and values that nobody saves: what the planner takes.
    let (first, last) = (&all.choices[0], all.choices.last().unwrap());
    let strange = [ValueId(0), ValueId(4_000_000)].into();
    for (values, bytes) in [(first.dropped.clone(), first.arena_bytes - 1), (strange, last.arena_bytes)] {
        let [tried, planned] =
            [Recompute::Values(values, bytes), Recompute::WithinBudget(bytes)].map(compiled);
        assert!(tried.arena_bytes <= bytes);
        assert_eq!((tried.arena_bytes, tried.decisions), (planned.arena_bytes, planned.decisions));
    }
}

/// Attention and matrix products are worth more memory than what is pointwise.
#[test]
fn cheap_values_go_first() {
    let graph = optimised(&train(
        common::llama::large(2),
        Job { dtype: DType::Bf16, lora: true, teacher: false, batch: 1, seq: 1024 },
    ));
    let all = frontier(&graph, Backend::Cpu, &Rates::default().seconds_of()).unwrap();
    let first = all.choices.iter().find(|c| !c.dropped.is_empty()).unwrap();
    for v in &first.dropped {
        let kfc_graph::Def::Node(id, _) = graph.def(*v) else { panic!("an input is dropped") };
        let op = &graph.node(id).op;
        assert!(matches!(op.name(), "swiglu" | "rms_norm" | "add"), "{} goes first", op.name());
        assert!(!matches!(op, Op::Prim(kfc_graph::Prim::MatMul { .. })));
    }
}

#[test]
fn the_same_at_lower_levels() {
    common::levels::at_lower_levels("the_same_at_lower_levels");
}
