//! A choice of how a kernel cuts its work never changes a bit of its results.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{encode, run_cpu};
use kfc_graph::{Attrs, Composite, DType, Op, SampleInput, TensorType};
use kfc_kernels::cpu::choice::{self, Choice, candidates};
use kfc_ops::samples::fill;

const FLOATS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

fn op(name: &str, attrs: &Attrs) -> Op {
    Op::Composite(Composite { def: kfc_ops::registry().get(name).unwrap(), attrs: attrs.clone() })
}

fn tensors(dtype: DType, dims: &[&[usize]]) -> Vec<TensorType> {
    dims.iter().map(|d| TensorType::new(dtype, *d)).collect()
}

fn operands(types: &[TensorType]) -> Vec<Vec<u8>> {
    let content = SampleInput::Uniform(-1.0, 1.0);
    types.iter().enumerate().map(|(i, t)| encode(t, &fill(t, &content, i as u64))).collect()
}

fn rows(types: &[TensorType]) -> usize {
    types.iter().filter(|t| t.dims.len() > 1).map(TensorType::rows).min().unwrap_or(0)
}

/// Every candidate on one and on three threads; returns how many there were.
fn check(op: &Op, types: &[TensorType]) -> usize {
    let data = operands(types);
    let expected = run_cpu(op, types, &data);
    let all = candidates(op.name(), rows(types), 3);
    assert_eq!(all[0], Choice::BUILT_IN);
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for &choice in &all {
            let found = pool.install(|| choice::with(choice, || run_cpu(op, types, &data)));
            assert!(found == expected, "{} {types:?}: {} on {threads} threads", op.name(), choice.name());
        }
    }
    all.len()
}

#[test]
fn products_of_any_type_and_size() {
    for x in FLOATS {
        for (m, k, n) in [(5, 64, 48), (16, 256, 1000), (70, 1100, 333), (130, 2048, 300), (300, 700, 65)] {
            let types = tensors(x, &[&[m, k], &[n, k], &[n]]);
            let count = check(&op("linear", &Attrs::new().with("bias", false)), &types[..2]);
            assert!(count > 6, "{count}");
            check(&op("linear", &Attrs::new().with("bias", true)), &types);
        }
    }
}

#[test]
fn adapters_with_and_without_dropout() {
    for x in FLOATS {
        for (m, i, o, r, dropout) in
            [(32, 256, 688, 16, 0.0), (130, 1030, 333, 5, 0.0), (40, 300, 130, 8, 0.3)]
        {
            let attrs = Attrs::new()
                .with("scale", 2.0)
                .with("dropout", dropout)
                .with("stream", 3usize)
                .with("bias", false)
                .with("need_dx", true);
            let mut types = tensors(x, &[&[m, i], &[o, i]]);
            types.extend(tensors(DType::F32, &[&[r, i], &[o, r]]));
            let mut back = [tensors(x, &[&[m, o]]), types.clone(), tensors(DType::F32, &[&[m, r]])].concat();
            if dropout > 0.0 {
                let seed = TensorType::new(DType::I32, [2]);
                types.push(seed.clone());
                back.push(seed);
            }
            check(&op("lora_linear", &attrs), &types);
            check(&op("lora_linear_bwd", &attrs), &back);
        }
    }
}

#[test]
fn samples_of_every_operation() {
    for def in kfc_ops::registry().iter() {
        for sample in def.samples() {
            let op = Op::Composite(Composite { def, attrs: sample.attrs.clone() });
            let types: Vec<TensorType> = sample.inputs.iter().map(|(t, _)| t.clone()).collect();
            let contents = sample.inputs.iter().enumerate();
            let data: Vec<Vec<u8>> =
                contents.map(|(i, (t, content))| encode(t, &fill(t, content, i as u64))).collect();
            let expected = run_cpu(&op, &types, &data);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
            for choice in candidates(op.name(), rows(&types), 3) {
                let found = pool.install(|| choice::with(choice, || run_cpu(&op, &types, &data)));
                assert!(found == expected, "{}: {}", def.name(), choice.name());
            }
        }
    }
}

#[test]
fn the_same_at_lower_levels() {
    common::levels::at_lower_levels("the_same_at_lower_levels");
}
