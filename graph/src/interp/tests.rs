//! Each primitive against values worked out by hand.

use super::*;
use crate::graph::InputKind;
use crate::prim::CmpOp;
use crate::{Builder, Op};

/// Applies one primitive to inputs of these types.
fn apply(prim: Prim, inputs: &[(DType, &[usize], &[f64])]) -> Result<Tensor> {
    let mut g = Graph::new("t");
    let values: Vec<ValueId> = inputs
        .iter()
        .enumerate()
        .map(|(i, (dtype, dims, _))| {
            g.add_input(i.to_string(), InputKind::Data, TensorType::new(*dtype, *dims))
        })
        .collect();
    let out = Builder::new(&mut g).op(Op::Prim(prim), &values)?;
    g.add_output("y", out[0], None);
    let tensors: Vec<Tensor> = inputs.iter().map(|(_, dims, data)| Tensor::new(*dims, *data)).collect();
    Ok(run(&g, &tensors)?.remove(0))
}

const F: DType = DType::F32;
const I: DType = DType::I32;

#[test]
fn pointwise() {
    let x: (DType, &[usize], &[f64]) = (F, &[3], &[-1.0, 0.0, 2.0]);
    let y: (DType, &[usize], &[f64]) = (F, &[3], &[2.0, 0.0, -4.0]);
    assert_eq!(apply(Prim::Neg, &[x]).unwrap().data, [1.0, 0.0, -2.0]);
    assert_eq!(apply(Prim::Add, &[x, y]).unwrap().data, [1.0, 0.0, -2.0]);
    assert_eq!(apply(Prim::Sub, &[x, y]).unwrap().data, [-3.0, 0.0, 6.0]);
    assert_eq!(apply(Prim::Mul, &[x, y]).unwrap().data, [-2.0, 0.0, -8.0]);
    assert_eq!(apply(Prim::Max, &[x, y]).unwrap().data, [2.0, 0.0, 2.0]);
    assert_eq!(apply(Prim::Compare(CmpOp::Eq), &[x, y]).unwrap().data, [0.0, 1.0, 0.0]);
    assert_eq!(apply(Prim::Compare(CmpOp::Lt), &[x, y]).unwrap().data, [1.0, 0.0, 0.0]);
    assert_eq!(apply(Prim::Compare(CmpOp::Le), &[x, y]).unwrap().data, [1.0, 1.0, 0.0]);
    assert_eq!(apply(Prim::Exp, &[x]).unwrap().data[2], 2f64.exp());
    assert_eq!(apply(Prim::Sigmoid, &[(F, &[2], &[-800.0, 800.0])]).unwrap().data, [0.0, 1.0]);
    assert_eq!(apply(Prim::Select, &[(I, &[3], &[1.0, 0.0, 5.0]), x, y]).unwrap().data, [-1.0, 0.0, 2.0]);
}

#[test]
fn integers_are_exact_wrap_and_truncate() {
    let a: (DType, &[usize], &[f64]) = (I, &[2], &[2147483647.0, -7.0]);
    let b: (DType, &[usize], &[f64]) = (I, &[2], &[1.0, 2.0]);
    assert_eq!(apply(Prim::Add, &[a, b]).unwrap().data, [-2147483648.0, -5.0]);
    assert_eq!(apply(Prim::Div, &[a, b]).unwrap().data, [2147483647.0, -3.0]);
    assert_eq!(
        apply(Prim::Cast(I), &[(F, &[3], &[1.9, -1.9, 1e30])]).unwrap().data,
        [1.0, -1.0, 2147483647.0]
    );
    let error = apply(Prim::Div, &[a, (I, &[2], &[1.0, 0.0])]).unwrap_err();
    assert!(error.to_string().contains("integer division by zero"), "{error}");
}

#[test]
fn movement() {
    let x: (DType, &[usize], &[f64]) = (F, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let t = apply(Prim::Transpose { perm: vec![1, 0] }, &[x]).unwrap();
    assert_eq!((t.dims, t.data), (vec![3, 2], vec![1.0, 4.0, 2.0, 5.0, 3.0, 6.0]));
    let cube: Vec<f64> = (0..24).map(f64::from).collect();
    let t = apply(Prim::Transpose { perm: vec![2, 0, 1] }, &[(F, &[2, 3, 4], &cube)]).unwrap();
    assert_eq!(t.dims, [4, 2, 3]);
    assert_eq!(t.data[..7], [0.0, 4.0, 8.0, 12.0, 16.0, 20.0, 1.0]);
    assert_eq!(apply(Prim::Slice { axis: 1, start: 1, end: 3 }, &[x]).unwrap().data, [2.0, 3.0, 5.0, 6.0]);
    let p = apply(Prim::Pad { axis: 1, lo: 1, hi: 1 }, &[(F, &[2, 1], &[7.0, 8.0])]).unwrap();
    assert_eq!(p.data, [0.0, 7.0, 0.0, 0.0, 8.0, 0.0]);
    let c = apply(Prim::Concat { axis: 1 }, &[x, (F, &[2, 1], &[7.0, 8.0])]).unwrap();
    assert_eq!(c.data, [1.0, 2.0, 3.0, 7.0, 4.0, 5.0, 6.0, 8.0]);
    let b = apply(Prim::Broadcast { dims: vec![2, 2] }, &[(F, &[2, 1], &[7.0, 8.0])]).unwrap();
    assert_eq!(b.data, [7.0, 7.0, 8.0, 8.0]);
    assert_eq!(
        apply(Prim::Iota { dims: vec![2, 3], axis: 1 }, &[]).unwrap().data,
        [0.0, 1.0, 2.0, 0.0, 1.0, 2.0]
    );
}

#[test]
fn reductions_keep_axes() {
    let x: (DType, &[usize], &[f64]) = (F, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let s = apply(Prim::ReduceSum { axes: vec![0] }, &[x]).unwrap();
    assert_eq!((s.dims, s.data), (vec![1, 3], vec![5.0, 7.0, 9.0]));
    let m = apply(Prim::ReduceMax { axes: vec![1] }, &[x]).unwrap();
    assert_eq!((m.dims, m.data), (vec![2, 1], vec![3.0, 6.0]));
    assert_eq!(apply(Prim::ReduceSum { axes: vec![0, 1] }, &[x]).unwrap().data, [21.0]);
}

#[test]
fn matmul_in_every_storage_order() {
    // a = [[1,2,3],[4,5,6]], b = [[1,0],[2,1],[0,3]]: a·b = [[5,11],[14,23]].
    let (a, at) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    let (b, bt) = ([1.0, 0.0, 2.0, 1.0, 0.0, 3.0], [1.0, 2.0, 0.0, 0.0, 1.0, 3.0]);
    for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
        let a: (DType, &[usize], &[f64]) = if ta { (F, &[3, 2], &at) } else { (F, &[2, 3], &a) };
        let b: (DType, &[usize], &[f64]) = if tb { (F, &[2, 3], &bt) } else { (F, &[3, 2], &b) };
        let c = apply(Prim::MatMul { ta, tb, out: F }, &[a, b]).unwrap();
        assert_eq!(c.data, [5.0, 11.0, 14.0, 23.0], "ta={ta} tb={tb}");
    }
    let batched = apply(
        Prim::MatMul { ta: false, tb: false, out: F },
        &[(F, &[2, 1, 2], &[1.0, 2.0, 3.0, 4.0]), (F, &[2, 2, 1], &[1.0, 1.0, 10.0, 1.0])],
    );
    assert_eq!(batched.unwrap().data, [3.0, 34.0]);
}

#[test]
fn tables() {
    let table: (DType, &[usize], &[f64]) = (F, &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let g = apply(Prim::Gather, &[table, (I, &[2, 1], &[2.0, 0.0])]).unwrap();
    assert_eq!((g.dims, g.data), (vec![2, 1, 2], vec![5.0, 6.0, 1.0, 2.0]));
    let s =
        apply(Prim::ScatterAdd { rows: 2 }, &[(I, &[3], &[1.0, 1.0, 0.0]), (F, &[3, 1], &[1.0, 2.0, 4.0])]);
    assert_eq!(s.unwrap().data, [4.0, 3.0]);
    for id in [-1.0, 3.0] {
        let error = apply(Prim::Gather, &[table, (I, &[1], &[id])]).unwrap_err();
        assert!(error.to_string().contains("outside a table of 3 rows"), "{error}");
    }
}

#[test]
fn random_follows_the_element_rule() {
    let r = apply(Prim::Random { dims: vec![2, 9], stream: 7 }, &[(I, &[2], &[5.0, -1.0])]).unwrap();
    for (i, &u) in r.data.iter().enumerate() {
        let word = philox4x32([(i / 8) as u32, 0, 7, 0], [5, u32::MAX])[i / 2 % 4];
        assert_eq!(u, f64::from((word >> (16 * (i % 2))) as u16) / 65_536.0);
    }
}

#[test]
fn inputs_must_fit() {
    let mut g = Graph::new("t");
    let x = g.add_input("x", InputKind::Data, TensorType::new(F, [2]));
    g.add_output("y", x, None);
    let error = run(&g, &[Tensor::scalar(1.0)]).unwrap_err();
    assert_eq!(error.to_string(), "interpreter: input \"x\" is f32[2], given was [1] with 1 elements");
    assert_eq!(run(&g, &[]).unwrap_err().to_string(), "interpreter: graph t has 1 inputs, 0 were given");
}
