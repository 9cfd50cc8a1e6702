//! Training with lower levels of instructions: the same losses but for rounding.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use kfc_kernels::cpu::simd;
use std::path::Path;

/// Losses and gradient norms of a run at a level.
fn train(world: &World, job: &Path, level: &str) -> Vec<f64> {
    let run = world.join(level);
    let output =
        command().args(args!["train", job, "--out", run]).env(simd::VARIABLE, level).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{level}: {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(json(&run.join("profile.json"))["machine"]["isa"], level);
    [series(&run, "loss"), series(&run, "grad_norm")].concat()
}

/// Trains with dropout, a teacher and an aligned layer.
fn levels_agree(dtype: &str, tolerance: f64) {
    let world = World::new();
    let job = world.job(&format!(
        "[model]\npath = \"student\"\ndtype = {dtype:?}\n[lora]\nr = 4\nalpha = 8\ndropout = 0.1\n\
         [distill]\nteacher = \"teacher\"\ngeneral = [\"general.jsonl\"]\n\
         [[distill.features]]\nstudent_layer = 1\nteacher_layer = 2\n\
         [data]\ntrain = [\"rows.jsonl\"]\nseq_len = 32\n\
         [train]\nsteps = 8\nbatch = 4\naccumulation = 2\nlr = 1e-2\nwarmup_steps = 2\n"
    ));
    let mut levels = simd::available();
    let best = train(&world, &job, levels.pop().unwrap().name());
    assert!(best[7] < 0.9 * best[0], "nothing is learnt: {best:?}");
    for level in levels {
        let values = train(&world, &job, level.name());
        let error = values.iter().zip(&best).map(|(v, b)| ((v - b) / b).abs()).fold(0.0, f64::max);
        assert!(error < tolerance, "{level:?}, {dtype}: off by {error:.1e}\n{values:?}\n{best:?}");
    }
}

#[test]
fn in_f32() {
    levels_agree("f32", 1e-5);
}

#[test]
fn in_bf16() {
    // One rounding to bf16 is 4e-3; in f32, above, kernels of all levels agree far closer.
    levels_agree("bf16", 1e-2);
}
