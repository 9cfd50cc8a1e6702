//! Every primitive on the CPU against the interpreter.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{check, check_uniform, run_cpu};
use kfc_graph::interp::uniform_block;
use kfc_graph::{CmpOp, DType, Op, Prim, TensorType};

const FLOATS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

fn t(dtype: DType, dims: &[usize]) -> TensorType {
    TensorType::new(dtype, dims)
}

#[test]
fn pointwise() {
    // Several blocks and tasks, and a rest.
    for dims in [&[3, 5][..], &[1], &[7, 5001]] {
        for x in FLOATS {
            let one = [t(x, dims)];
            let two = [t(x, dims), t(x, dims)];
            for p in [Prim::Neg, Prim::Exp, Prim::Sigmoid, Prim::Erf] {
                check_uniform(&Op::Prim(p), &one, -3.0, 3.0);
            }
            for p in [Prim::Log, Prim::Sqrt] {
                check_uniform(&Op::Prim(p), &one, 0.1, 9.0);
            }
            for p in [Prim::Add, Prim::Sub, Prim::Mul, Prim::Max] {
                check_uniform(&Op::Prim(p), &two, -2.0, 2.0);
            }
            check_uniform(&Op::Prim(Prim::Div), &two, 0.5, 2.0);
            for c in [CmpOp::Eq, CmpOp::Lt, CmpOp::Le] {
                check_uniform(&Op::Prim(Prim::Compare(c)), &two, -2.0, 2.0);
            }
            check_uniform(&Op::Prim(Prim::Select), &[t(DType::I32, dims), t(x, dims), t(x, dims)], -1.0, 2.0);
            for to in DType::ALL {
                check_uniform(&Op::Prim(Prim::Cast(to)), &one, -5.0, 5.0);
            }
        }
    }
}

#[test]
fn pointwise_on_integers() {
    let two = [t(DType::I32, &[3, 400]), t(DType::I32, &[3, 400])];
    for p in [Prim::Add, Prim::Sub, Prim::Mul, Prim::Max] {
        check_uniform(&Op::Prim(p), &two, -9.0, 10.0);
    }
    for c in [CmpOp::Eq, CmpOp::Lt, CmpOp::Le] {
        check_uniform(&Op::Prim(Prim::Compare(c)), &two, -3.0, 3.0);
    }
    check_uniform(&Op::Prim(Prim::Div), &two, 1.0, 50.0);
    check_uniform(&Op::Prim(Prim::Select), &[two[0].clone(), two[0].clone(), two[1].clone()], -2.0, 2.0);
    for to in DType::ALL {
        check_uniform(&Op::Prim(Prim::Cast(to)), &two[..1], -100.0, 100.0);
    }
}

#[test]
fn a_comparison_of_equals() {
    let ty = [t(DType::F32, &[4]), t(DType::F32, &[4])];
    let data = [vec![1.0, 2.0, -0.0, 5.0], vec![1.0, 3.0, 0.0, 4.0]];
    for c in [CmpOp::Eq, CmpOp::Lt, CmpOp::Le] {
        check("equals", &Op::Prim(Prim::Compare(c)), &ty, &data);
    }
}

#[test]
fn transposes_by_squares() {
    // Whole squares and parts of them, and axes that are too short for any.
    for dims in [[3, 37, 10, 65], [2, 7, 96, 8], [40, 1, 3, 33]] {
        for x in [DType::F32, DType::Bf16] {
            let perms = (0..256).map(|i| [i / 64, i / 16 % 4, i / 4 % 4, i % 4]);
            for perm in perms.filter(|p| (0..4).all(|axis| p.contains(&axis))) {
                check_uniform(&Op::Prim(Prim::Transpose { perm: perm.to_vec() }), &[t(x, &dims)], -9.0, 9.0);
            }
        }
    }
}

#[test]
fn transposes_of_nothing() {
    for dims in [[0, 40, 40], [40, 0, 40], [40, 40, 0]] {
        for perm in [[0, 2, 1], [2, 1, 0], [1, 2, 0]] {
            check_uniform(
                &Op::Prim(Prim::Transpose { perm: perm.to_vec() }),
                &[t(DType::Bf16, &dims)],
                -9.0,
                9.0,
            );
        }
    }
}

#[test]
fn movement() {
    for x in DType::ALL {
        let a = [t(x, &[3, 4, 5, 6])];
        check_uniform(&Op::Prim(Prim::Reshape { dims: vec![12, 30] }), &a, -9.0, 9.0);
        for perm in [[0, 2, 1, 3], [3, 2, 1, 0], [0, 1, 3, 2], [2, 3, 0, 1], [0, 1, 2, 3]] {
            check_uniform(&Op::Prim(Prim::Transpose { perm: perm.to_vec() }), &a, -9.0, 9.0);
        }
        for axis in 0..4 {
            check_uniform(&Op::Prim(Prim::Slice { axis, start: 1, end: 3 }), &a, -9.0, 9.0);
            check_uniform(&Op::Prim(Prim::Pad { axis, lo: 2, hi: 1 }), &a, -9.0, 9.0);
            let mut other = a[0].clone();
            other.dims[axis] = 2;
            let parts = [a[0].clone(), other, a[0].clone()];
            check_uniform(&Op::Prim(Prim::Concat { axis }), &parts, -9.0, 9.0);
        }
        for from in [[1, 4, 1, 6], [3, 1, 5, 1], [1, 1, 1, 1], [3, 4, 5, 1]] {
            check_uniform(&Op::Prim(Prim::Broadcast { dims: vec![3, 4, 5, 6] }), &[t(x, &from)], -9.0, 9.0);
        }
    }
    check_uniform(&Op::Prim(Prim::Transpose { perm: vec![1, 0] }), &[t(DType::F32, &[300, 517])], -9.0, 9.0);
    check_uniform(&Op::Prim(Prim::Broadcast { dims: vec![200_000] }), &[t(DType::Bf16, &[1])], -9.0, 9.0);
}

#[test]
fn fills() {
    for x in DType::ALL {
        check_uniform(&Op::Prim(Prim::Const { ty: t(x, &[70_000]), value: -2.5 }), &[], 0.0, 1.0);
    }
    for axis in 0..3 {
        check_uniform(&Op::Prim(Prim::Iota { dims: vec![3, 4, 5], axis }), &[], 0.0, 1.0);
    }
}

#[test]
fn random_numbers_are_those_of_the_interpreter() {
    let op = Op::Prim(Prim::Random { dims: vec![3, 40_001], stream: 5 });
    check("random", &op, &[t(DType::I32, &[2])], &[vec![123.0, -7.0]]);
    let seed = [123i32, -7].map(i32::to_le_bytes).concat();
    let bytes = run_cpu(&op, &[t(DType::I32, &[2])], &[seed]).remove(0);
    let got: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    for (i, eight) in got.chunks(8).enumerate() {
        assert_eq!(eight, &uniform_block([123, -7i32 as u32], 5, i as u64)[..eight.len()]);
    }
}

#[test]
fn reductions() {
    for x in FLOATS {
        for axes in [
            vec![0],
            vec![1],
            vec![2],
            vec![3],
            vec![0, 1],
            vec![2, 3],
            vec![0, 2],
            vec![1, 3],
            vec![0, 1, 2, 3],
        ] {
            let a = [t(x, &[3, 4, 5, 70])];
            check_uniform(&Op::Prim(Prim::ReduceSum { axes: axes.clone() }), &a, -1.0, 2.0);
            check_uniform(&Op::Prim(Prim::ReduceMax { axes }), &a, -1.0, 2.0);
        }
    }
    // Partial sums, and many rows of columns.
    for (dims, axes) in [(&[300_001][..], vec![0]), (&[2, 150_000], vec![1]), (&[3000, 130], vec![0])] {
        let a = [t(DType::F32, dims)];
        check_uniform(&Op::Prim(Prim::ReduceSum { axes: axes.clone() }), &a, -1.0, 2.0);
        check_uniform(&Op::Prim(Prim::ReduceMax { axes }), &a, -1.0, 2.0);
    }
}

#[test]
fn matrix_products() {
    let dtypes = [
        (DType::F32, DType::F32, DType::F32),
        (DType::Bf16, DType::Bf16, DType::F32),
        (DType::Bf16, DType::Bf16, DType::Bf16),
        (DType::F16, DType::F32, DType::F16),
        (DType::F32, DType::Bf16, DType::F32),
    ];
    for (a, b, out) in dtypes {
        for (m, k, n) in [(1, 1, 1), (5, 7, 3), (65, 600, 33), (130, 70, 530), (300, 17, 290), (1, 1100, 40)]
        {
            for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
                let pair = |t: bool, r, c| if t { [c, r] } else { [r, c] };
                let types = [t(a, &pair(ta, m, k)), t(b, &pair(tb, k, n))];
                check_uniform(&Op::Prim(Prim::MatMul { ta, tb, out }), &types, -1.0, 1.0);
            }
        }
    }
    let types = [t(DType::F32, &[2, 3, 20, 30]), t(DType::F32, &[2, 3, 10, 30])];
    check_uniform(&Op::Prim(Prim::MatMul { ta: false, tb: true, out: DType::F32 }), &types, -1.0, 1.0);
}

#[test]
fn gather_and_scatter() {
    for x in FLOATS {
        check_uniform(&Op::Prim(Prim::Gather), &[t(x, &[9, 300]), t(DType::I32, &[2, 50])], 0.0, 9.0);
        let types = [t(DType::I32, &[2, 50]), t(x, &[2, 50, 300])];
        check_uniform(&Op::Prim(Prim::ScatterAdd { rows: 9 }), &types, 0.0, 9.0);
    }
}

#[test]
fn the_same_at_lower_levels() {
    common::levels::at_lower_levels("the_same_at_lower_levels");
}
