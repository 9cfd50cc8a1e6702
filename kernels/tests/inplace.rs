//! Kernels that may write a result over an operand give the same bits when they do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Aligned, encode, run_cpu};
use kfc_graph::{Attrs, Composite, DType, Op, Prim, SampleInput, TensorType};
use kfc_kernels::cpu::{self, Buf, Call};
use kfc_ops::samples::fill;

/// Runs with the results of `pairs` over their operands.
fn run_aliased(op: &Op, types: &[TensorType], data: &[Vec<u8>], pairs: &[(usize, usize)]) -> Vec<Vec<u8>> {
    let outputs = op.infer(types).unwrap();
    let kernel = cpu::build(op, types, &outputs).unwrap();
    let mut ins: Vec<Aligned> = data.iter().map(|d| Aligned::new(d.len(), 0)).collect();
    ins.iter_mut().zip(data).for_each(|(a, d)| a.slice().copy_from_slice(d));
    let mut outs: Vec<Aligned> = outputs.iter().map(|t| Aligned::new(t.bytes(), 0xff)).collect();
    let mut workspace = Aligned::new(kernel.workspace_bytes(), 0xff);
    let inputs: Vec<Buf> = ins.iter_mut().map(Aligned::buf).collect();
    let mut results: Vec<Buf> = outs.iter_mut().map(Aligned::buf).collect();
    pairs.iter().for_each(|&(i, j)| results[j] = inputs[i]);
    // SAFETY: buffers have the sizes of their types; those that are one buffer are allowed to be.
    unsafe {
        kernel.run(&Call { inputs: &inputs, outputs: &results, workspace: workspace.buf(), transposed: None })
    };
    // SAFETY: the buffers are live and the kernel is done.
    results.iter().map(|b| unsafe { std::slice::from_raw_parts(b.ptr, b.bytes) }.to_vec()).collect()
}

/// Every set of pairs with one operand a result and one result an operand.
fn choices(pairs: &[(usize, usize)]) -> Vec<Vec<(usize, usize)>> {
    let mut sets: Vec<Vec<(usize, usize)>> = vec![vec![]];
    for &(i, j) in pairs {
        let free = |s: &&Vec<(usize, usize)>| s.iter().all(|&(a, b)| a != i && b != j);
        let more: Vec<_> = sets.iter().filter(free).map(|s| [&s[..], &[(i, j)]].concat()).collect();
        sets.extend(more);
    }
    sets.split_off(1)
}

/// Checks every choice of pairs; returns how many there were.
fn check(op: &Op, types: &[TensorType], data: &[Vec<f64>]) -> usize {
    let bytes: Vec<Vec<u8>> = types.iter().zip(data).map(|(t, d)| encode(t, d)).collect();
    let apart = run_cpu(op, types, &bytes);
    let kernel = cpu::build(op, types, &op.infer(types).unwrap()).unwrap();
    let sets = choices(kernel.may_inplace());
    for pairs in &sets {
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let got = pool.install(|| run_aliased(op, types, &bytes, pairs));
            assert_eq!(got, apart, "{} with {pairs:?} in place", op.name());
        }
    }
    sets.len()
}

fn uniform(types: &[TensorType]) -> Vec<Vec<f64>> {
    let fill = |(i, t): (usize, &TensorType)| match t.dtype {
        DType::I32 => fill(t, &SampleInput::Integers(0, 9), i as u64),
        _ => fill(t, &SampleInput::Uniform(0.1, 2.0), i as u64),
    };
    types.iter().enumerate().map(fill).collect()
}

#[test]
fn samples_in_place() {
    let mut names = std::collections::BTreeSet::new();
    for def in kfc_ops::registry().iter() {
        for sample in def.samples() {
            let op = Op::Composite(Composite { def, attrs: sample.attrs.clone() });
            let types: Vec<TensorType> = sample.inputs.iter().map(|(t, _)| t.clone()).collect();
            let data: Vec<_> =
                sample.inputs.iter().enumerate().map(|(i, (t, c))| fill(t, c, i as u64)).collect();
            if check(&op, &types, &data) > 0 {
                names.insert(def.name());
            }
        }
    }
    assert_eq!(
        names.into_iter().collect::<Vec<_>>(),
        ["layer_norm", "rms_norm_bwd", "rope", "swiglu", "swiglu_bwd"]
    );
}

/// Long enough for several blocks and tasks.
#[test]
fn long_operands_in_place() {
    for x in [DType::F32, DType::Bf16, DType::F16] {
        let rows = |n: usize| TensorType::new(x, [3, 300, n]);
        let vector = |n: usize| TensorType::new(x, [n]);
        let f = |dims: &[usize]| TensorType::new(DType::F32, dims);
        let composite = |name: &str, attrs| {
            Op::Composite(Composite { def: kfc_ops::registry().get(name).unwrap(), attrs })
        };
        for p in [Prim::Neg, Prim::Exp, Prim::Log, Prim::Sqrt, Prim::Sigmoid, Prim::Erf] {
            assert_eq!(check(&Op::Prim(p), &[rows(70)], &uniform(&[rows(70)])), 1);
        }
        for p in [Prim::Add, Prim::Sub, Prim::Mul, Prim::Div, Prim::Max] {
            let types = [rows(70), rows(70)];
            assert_eq!(check(&Op::Prim(p), &types, &uniform(&types)), 2);
        }
        let types = [rows(70), rows(70), rows(70)];
        assert_eq!(check(&composite("swiglu", Attrs::new()), &types[..2], &uniform(&types[..2])), 2);
        assert_eq!(check(&composite("swiglu_bwd", Attrs::new()), &types, &uniform(&types)), 7);
        for need_dw in [false, true] {
            let types = [rows(70), rows(70), vector(70), f(&[3, 300, 1])];
            let op = composite("rms_norm_bwd", Attrs::new().with("need_dw", need_dw));
            assert_eq!(check(&op, &types, &uniform(&types)), 1);
        }
        let types = [rows(64), f(&[10, 8]), f(&[10, 8]), TensorType::new(DType::I32, [3, 300])];
        let op = composite("rope", Attrs::new().with("head_dim", 16usize).with("inverse", true));
        assert_eq!(check(&op, &types, &uniform(&types)), 1);
    }
}

#[test]
fn the_same_at_lower_levels() {
    common::levels::at_lower_levels("the_same_at_lower_levels");
}
