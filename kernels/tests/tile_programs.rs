//! Every tile program against the interpreter of graphs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/programs.rs"]
mod programs;
#[path = "common/tile_cases.rs"]
mod tile_cases;

mod common;

use kfc_kernels::tile::programs::NAMES;
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
