//! Every tile program against the interpreter of graphs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/programs.rs"]
mod programs;
#[path = "common/tile_cases.rs"]
mod tile_cases;

mod common;

use kfc_kernels::tile::programs::NAMES;
use std::collections::BTreeSet;

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
fn every_composite_has_programs() {
    let all: BTreeSet<&str> = kfc_ops::registry().iter().map(|def| def.name()).collect();
    assert_eq!(all, NAMES.into_iter().collect());
}
