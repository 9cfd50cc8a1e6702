//! Every tile program against the interpreter of graphs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/programs.rs"]
mod programs;
#[path = "common/tile_cases.rs"]
mod tile_cases;

mod common;

use kfc_graph::{Composite, Op};
use kfc_kernels::tile::Tilings;
use kfc_kernels::tile::programs::{NAMES, Sizes};
use kfc_kernels::tile::trial::Trial;
use kfc_kernels::tile::triton;
use std::collections::{BTreeSet, HashSet};

fn check(cases: &[programs::Case]) -> usize {
    let mut launches = 0;
    cases.iter().for_each(|case| programs::check(case, &mut |_, _, _, _| launches += 1));
    launches
}

#[test]
fn samples_agree_with_the_interpreter() {
    assert!(check(&tile_cases::samples()) > 400);
}

#[test]
fn larger_operands_agree_with_the_interpreter() {
    assert!(check(&tile_cases::large()) > 100);
}

/// What a fused node's operations compute one after the other, each by its own programs.
fn one_by_one(case: &programs::Case) -> Vec<Vec<f64>> {
    let Op::Fused(f) = &case.op else { panic!("{} is not fused", case.label) };
    let body = f.body();
    let mut values: Vec<Vec<f64>> = vec![vec![]; body.value_count()];
    body.inputs().iter().zip(&case.data).for_each(|(i, data)| values[i.value.index()] = data.clone());
    for node in body.nodes() {
        let types = node.inputs.iter().map(|v| body.ty(*v).clone()).collect();
        let data = node.inputs.iter().map(|v| values[v.index()].clone()).collect();
        let part = programs::Case { op: node.op.clone(), types, data, ..case.clone() };
        let results = programs::run_cut(&part, &Tilings::new(), &mut |_, _, _, _| ());
        node.outputs.iter().zip(results).for_each(|(v, r)| values[v.index()] = r);
    }
    body.outputs().iter().map(|o| values[o.value.index()].clone()).collect()
}

#[test]
fn fused_operations_leave_the_bits_that_they_leave_one_by_one() {
    let mut cases = tile_cases::large();
    cases.retain(|case| matches!(case.op, Op::Fused(_)));
    assert!(cases.len() > 30, "{}", cases.len());
    for case in cases {
        let together = programs::run_cut(&case, &Tilings::new(), &mut |_, _, _, _| ());
        assert!(together == one_by_one(&case), "{}", case.label);
    }
}

/// Tokens that a head takes at once may be chosen: it is right with any number of them. Losses and the gradient of its input keep
/// their bits; so does that of a frozen weight, which there is none of. That of a trained one is a sum over chunks, and other chunks
/// do change it, which is why a search must not choose them unasked.
#[test]
fn heads_take_other_numbers_of_tokens_at_once() {
    let mut changed = BTreeSet::new();
    let mut count = 0;
    for case in tile_cases::large().into_iter().filter(|c| c.label.starts_with("chunks-")) {
        let Op::Composite(c) = &case.op else { panic!("{} is no head", case.label) };
        let frozen = Composite { attrs: c.attrs.clone().with("need_dw", false), ..c.clone() };
        for (op, is_trained) in [(case.op.clone(), true), (Op::Composite(frozen), false)] {
            let case = programs::Case { op, sizes: Sizes::default(), ..case.clone() };
            let built_in = programs::run_cut(&case, &Tilings::new(), &mut |_, _, _, _| ());
            let outputs = case.op.infer(&case.types).unwrap();
            for tokens in [32, 16] {
                let sizes = Sizes { chunk: Some(tokens), ..Sizes::default() };
                let other = programs::Case { sizes, ..case.clone() };
                check(std::slice::from_ref(&other));
                let results = programs::run_cut(&other, &Tilings::new(), &mut |_, _, _, _| ());
                for (j, (ty, (a, b))) in outputs.iter().zip(built_in.iter().zip(&results)).enumerate() {
                    let is_dw = is_trained && !c.def.name().ends_with("_kd") && j == outputs.len() - 1;
                    assert!(a == b || is_dw, "{}: result {j}, {ty}, of {tokens} tokens at once", case.label);
                    if a != b {
                        changed.insert(case.label.clone());
                    }
                    count += 1;
                }
            }
        }
    }
    assert!(count > 100 && changed.iter().any(|l| l.ends_with("fused")), "{count} {changed:?}");
}

#[test]
fn primitives_agree_with_the_interpreter() {
    assert!(check(&tile_cases::prims()) > 100);
}

#[test]
fn every_program_can_be_tried_alone() {
    let mut seen = HashSet::new();
    let (mut faults, mut tried) = (String::new(), 0);
    for case in [tile_cases::samples(), tile_cases::prims()].concat() {
        programs::check(&case, &mut |label, launch, _, _| {
            let p = &launch.program;
            if !seen.insert(triton::print(p)) {
                return;
            }
            let apart: Vec<usize> = (0..p.params.len()).collect();
            match Trial::new(p, &apart) {
                Ok(trial) => {
                    let before: Vec<Vec<u8>> = apart.iter().map(|&k| trial.bytes(k)).collect();
                    let compared = trial.compared(&|_, _| true);
                    let same = trial.compare(&before, &|_, _| true);
                    tried += 1;
                    // Most programs leave something else than what was there.
                    if compared == 0 || same.is_none() {
                        faults += &format!("{label}: {compared} compared, nothing differs\n");
                    }
                }
                Err(e) => faults += &format!("{label}: {e}\n"),
            }
        });
    }
    assert!(tried > 200 && faults.is_empty(), "{tried}\n{faults}");
}

#[test]
fn every_composite_has_programs() {
    let all: BTreeSet<&str> = kfc_ops::registry().iter().map(|def| def.name()).collect();
    assert_eq!(all, NAMES.into_iter().collect());
}
