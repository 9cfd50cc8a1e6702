//! A choice of how a kernel cuts its work never changes a bit of its results.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{encode, run_copied, run_cpu};
use kfc_graph::{Attrs, Composite, DType, Op, Prim, SampleInput, TensorType};
use kfc_kernels::cpu;
use kfc_kernels::cpu::choice::{self, Also, Choice, candidates};
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

/// What an operation may choose.
fn all_choices(op: &Op, types: &[TensorType]) -> Vec<Choice> {
    let kernel = cpu::build(op, types, &op.infer(types).unwrap()).unwrap();
    let also = Also { transposed: kernel.transposed().is_some(), chunk: kernel.chunk() };
    candidates(op.name(), rows(types), 3, also)
}

/// Every candidate on one and on three threads; returns how many there were.
fn check(op: &Op, types: &[TensorType]) -> usize {
    check_on(op, types, &operands(types))
}

fn check_on(op: &Op, types: &[TensorType], data: &[Vec<u8>]) -> usize {
    let expected = run_cpu(op, types, data);
    let all = all_choices(op, types);
    assert_eq!(all[0], Choice::BUILT_IN);
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for &choice in &all {
            let run = || choice::with(choice, || run_copied(op, types, data, choice.transposed));
            let found = pool.install(run);
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
fn products_across_the_rows_of_a_weight() {
    for x in FLOATS {
        for (m, k, n) in [(1, 70, 1), (3, 300, 65), (5, 64, 48), (40, 1100, 333), (130, 2048, 300)] {
            let types = tensors(x, &[&[m, k], &[k, n]]);
            check(&Op::Prim(Prim::MatMul { ta: false, tb: false, out: x }), &types);
        }
    }
}

/// A head that learns from labels and from a teacher's logits, with its operands.
fn head(x: DType, tokens: usize, need_dw: bool) -> (Op, Vec<TensorType>, Vec<Vec<u8>>) {
    let attrs = Attrs::new()
        .with("kd", "logits")
        .with("temperature", 2.0)
        .with("divergence", "forward_kl")
        .with("need_dw", need_dw);
    let (h, w, ht, wt) = ([1, tokens, 32], [1024, 32], [1, tokens, 48], [1024, 48]);
    let weights = TensorType::new(DType::F32, [1, tokens]);
    let scalar = TensorType::new(DType::F32, [1]);
    let labels = TensorType::new(DType::I32, [1, tokens]);
    let mut types = vec![scalar.clone(), scalar];
    types.extend(tensors(x, &[&h, &w]));
    types.extend([labels.clone(), weights.clone()]);
    types.extend(tensors(x, &[&ht, &wt]));
    types.push(weights);
    let mut data = operands(&types);
    let of_tokens: Vec<f64> = (0..tokens).map(|i| (i * 37 % 1024) as f64).collect();
    data[4] = encode(&labels, &of_tokens);
    (op("linear_cross_entropy_kd_fused", &attrs), types, data)
}

/// Chunks of any length, the last of one token, and the weight read from a copy.
#[test]
fn heads_with_a_frozen_weight() {
    for x in FLOATS {
        for tokens in [65, 300] {
            let (op, types, data) = head(x, tokens, false);
            let count = check_on(&op, &types, &data);
            assert_eq!(count, if tokens < 128 { 33 } else { 37 });
        }
    }
}

/// A trained weight's gradient is a sum over chunks: others would change its bits. So none is offered, and one that a file or
/// `--choice` names all the same leaves everything as it is.
#[test]
fn heads_with_a_trained_weight_keep_their_chunks() {
    for x in FLOATS {
        let (op, types, data) = head(x, 300, true);
        assert!(all_choices(&op, &types).iter().all(|c| c.chunk.is_none()));
        check_on(&op, &types, &data);
        let expected = run_cpu(&op, &types, &data);
        for tokens in choice::chunks() {
            let choice = Choice { chunk: Some(tokens), ..Choice::BUILT_IN };
            assert!(choice::with(choice, || run_cpu(&op, &types, &data)) == expected, "{x:?}: {tokens}");
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
            for choice in all_choices(&op, &types) {
                let run = || choice::with(choice, || run_copied(&op, &types, &data, choice.transposed));
                let found = pool.install(run);
                assert!(found == expected, "{}: {}", def.name(), choice.name());
            }
        }
    }
}

#[test]
fn the_same_at_lower_levels() {
    common::levels::at_lower_levels("the_same_at_lower_levels");
}
