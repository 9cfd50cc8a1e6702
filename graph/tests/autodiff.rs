//! Gradients against central differences on the f64 interpreter.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Rng, defs};
use kfc_graph::autodiff::backward;
use kfc_graph::interp::{Tensor, run, run_values};
use kfc_graph::verify::verify;
use kfc_graph::*;

const F: DType = DType::F32;

fn f32(dims: &[usize]) -> TensorType {
    TensorType::new(F, dims)
}

/// Checks the gradient of `Σ weight·f(inputs)` for every float input; `weight` is random.
fn check(inputs: &[(TensorType, Tensor)], f: impl Fn(&mut Builder<'_>, &[ValueId]) -> Vec<ValueId>) {
    let mut g = Graph::new("t");
    let x: Vec<ValueId> = inputs
        .iter()
        .enumerate()
        .map(|(i, (ty, _))| g.add_input(i.to_string(), InputKind::Weight, ty.clone()))
        .collect();
    let results = f(&mut Builder::new(&mut g), &x);
    let mut tensors: Vec<Tensor> = inputs.iter().map(|(_, t)| t.clone()).collect();
    let mut rng = Rng(99);
    let mut seeds = vec![];
    let mut weights = vec![];
    for (i, &y) in results.iter().enumerate().filter(|(_, y)| g.ty(**y).dtype.is_float()).collect::<Vec<_>>()
    {
        let ty = g.ty(y).clone();
        let w = rng.uniform(&ty.dims, 0.5, 1.5);
        seeds.push((y, g.add_input(format!("w{i}"), InputKind::Data, ty)));
        tensors.push(w.clone());
        weights.push((y, w));
    }
    let wrt: Vec<ValueId> = x.iter().copied().filter(|&v| g.ty(v).dtype.is_float()).collect();
    let grads = backward(&mut g, &seeds, &wrt).unwrap();
    verify(&g).unwrap();

    let loss = |tensors: &[Tensor]| -> f64 {
        let values: Vec<ValueId> = weights.iter().map(|(y, _)| *y).collect();
        let ys = run_values(&g, tensors, &values).unwrap();
        ys.iter().zip(&weights).flat_map(|(y, (_, w))| y.data.iter().zip(&w.data)).map(|(y, w)| y * w).sum()
    };
    for (&v, grad) in wrt.iter().zip(grads) {
        let i = x.iter().position(|&u| u == v).unwrap();
        let grad = run_values(&g, &tensors, &[grad.expect("a gradient")]).unwrap().remove(0);
        assert_eq!(grad.dims, tensors[i].dims);
        for k in 0..grad.data.len() {
            let at = tensors[i].data[k];
            let mut side = |d: f64| {
                tensors[i].data[k] = at + d;
                let l = loss(&tensors);
                tensors[i].data[k] = at;
                l
            };
            let slope = (side(1e-5) - side(-1e-5)) / 2e-5;
            let error = (slope - grad.data[k]).abs() / slope.abs().max(1.0);
            assert!(error < 1e-7, "input {i} element {k}: {slope} by differences, {}", grad.data[k]);
        }
    }
}

fn random(dims: &[usize], lo: f64, hi: f64) -> (TensorType, Tensor) {
    (f32(dims), Rng(dims.iter().sum::<usize>() as u64 + 7).uniform(dims, lo, hi))
}

fn ids(dims: &[usize], data: &[f64]) -> (TensorType, Tensor) {
    (TensorType::new(DType::I32, dims), Tensor::new(dims, data))
}

fn check_prim(prim: Prim, inputs: &[(TensorType, Tensor)]) {
    check(inputs, |b, x| vec![b.prim(prim.clone(), x).unwrap()]);
}

#[test]
fn pointwise() {
    let x = random(&[2, 3], 0.3, 2.0);
    let y = (x.0.clone(), Rng(1).uniform(&[2, 3], 0.4, 2.0));
    for prim in
        [Prim::Neg, Prim::Exp, Prim::Log, Prim::Sqrt, Prim::Sigmoid, Prim::Erf, Prim::Cast(DType::Bf16)]
    {
        check_prim(prim, std::slice::from_ref(&x));
    }
    for prim in [Prim::Add, Prim::Sub, Prim::Mul, Prim::Div, Prim::Max] {
        check_prim(prim, &[x.clone(), y.clone()]);
    }
    check_prim(Prim::Select, &[ids(&[2, 3], &[1.0, 0.0, 0.0, 2.0, 1.0, 0.0]), x.clone(), y.clone()]);
    check(&[x], |b, x| vec![b.mul(x[0], x[0]).unwrap()]);
}

#[test]
fn movement_and_reductions() {
    let x = random(&[2, 3, 4], -1.0, 1.0);
    let one = std::slice::from_ref(&x);
    check_prim(Prim::Reshape { dims: vec![6, 4] }, one);
    check_prim(Prim::Transpose { perm: vec![2, 0, 1] }, one);
    check_prim(Prim::Slice { axis: 1, start: 1, end: 3 }, one);
    check_prim(Prim::Pad { axis: 2, lo: 1, hi: 2 }, one);
    check_prim(Prim::ReduceSum { axes: vec![0, 2] }, one);
    check_prim(Prim::ReduceMax { axes: vec![1] }, one);
    check_prim(Prim::ReduceMax { axes: vec![0, 1, 2] }, one);
    check_prim(Prim::Broadcast { dims: vec![2, 5, 4] }, &[random(&[2, 1, 4], -1.0, 1.0)]);
    check_prim(Prim::Concat { axis: 1 }, &[x.clone(), random(&[2, 2, 4], -1.0, 1.0), x]);
}

#[test]
fn products_and_tables() {
    for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
        let a = random(if ta { &[2, 4, 3] } else { &[2, 3, 4] }, -1.0, 1.0);
        let b = random(if tb { &[2, 5, 4] } else { &[2, 4, 5] }, -1.0, 1.0);
        check_prim(Prim::MatMul { ta, tb, out: F }, &[a.clone(), b.clone()]);
        // The same between computed values, whose gradients keep their own type.
        check(&[a, b], |g, x| {
            let (a, b) = (g.exp(x[0]).unwrap(), g.exp(x[1]).unwrap());
            vec![g.matmul(a, b, ta, tb, DType::Bf16).unwrap()]
        });
    }
    let rows = ids(&[2, 2], &[3.0, 0.0, 3.0, 1.0]);
    check_prim(Prim::Gather, &[random(&[4, 3], -1.0, 1.0), rows.clone()]);
    check_prim(Prim::ScatterAdd { rows: 4 }, &[rows, random(&[2, 2, 3], -1.0, 1.0)]);
}

#[test]
fn composites_explicit_and_through_their_decomposition() {
    let x = random(&[2, 3], -1.0, 1.0);
    let y = (x.0.clone(), Rng(5).uniform(&[2, 3], -1.0, 1.0));
    for name in ["gate", "gate_explicit", "nested"] {
        let def = defs().get(name).unwrap();
        check(&[x.clone(), y.clone()], |b, v| b.composite(def, Attrs::new().with("scale", 1.5), v).unwrap());
    }
}

#[test]
fn mixed_types_sum_in_f32_and_results_are_cast() {
    // A bf16 table used as a gather (f32 gradient) and by a multiplication (bf16 gradient).
    let table = TensorType::new(DType::Bf16, [4, 3]);
    let data = Rng(2).uniform(&[4, 3], 0.5, 1.0);
    check(&[(table, data), ids(&[2], &[1.0, 3.0])], |b, x| {
        let square = b.mul(x[0], x[0]).unwrap();
        let rows = b.prim(Prim::Gather, &[square, x[1]]).unwrap();
        let again = b.prim(Prim::Gather, &[x[0], x[1]]).unwrap();
        let all = b.exp(x[0]).unwrap();
        vec![b.mul(rows, again).unwrap(), all]
    });
}

#[test]
fn frozen_paths_cause_no_work() {
    let mut g = Graph::new("t");
    let x = g.add_input("x", InputKind::Data, f32(&[2, 2]));
    let frozen = g.add_input("frozen", InputKind::Weight, f32(&[2, 2]));
    let a = g.add_input("a", InputKind::State, f32(&[2, 2]));
    let unused = g.add_input("unused", InputKind::State, f32(&[2, 2]));
    let mut b = Builder::new(&mut g);
    b.set_scope("early");
    let h = b.matmul(x, frozen, false, true, F).unwrap();
    b.set_scope("late");
    let y = b.matmul(h, a, false, true, F).unwrap();
    let seed = b.full_like(y, 1.0).unwrap();
    let before = g.nodes().len();
    let grads = backward(&mut g, &[(y, seed)], &[a, unused]).unwrap();
    assert!(grads[0].is_some() && grads[1].is_none());
    let added = &g.nodes()[before..];
    assert_eq!(added.len(), 1, "only the product that makes the gradient of a");
    assert_eq!((added[0].phase, g.scope(&added[0])), (Phase::Backward, "late"));
}

#[test]
fn an_operation_without_gradient_is_named() {
    let mut g = Graph::new("t");
    let x = g.add_input("x", InputKind::State, f32(&[2]));
    let def = defs().get("no_gradient").unwrap();
    let y = Builder::new(&mut g).composite(def, Attrs::new(), &[x]).unwrap()[0];
    let seed = Builder::new(&mut g).full_like(y, 1.0).unwrap();
    let error = backward(&mut g.clone(), &[(y, seed)], &[x]).unwrap_err().to_string();
    assert_eq!(error, "no gradient: %1 = no_gradient: this operation has no gradient");
    assert_eq!(backward(&mut g, &[(y, seed)], &[]).unwrap(), []);
}

#[test]
fn a_seed_must_fit_its_value() {
    let mut g = Graph::new("t");
    let x = g.add_input("x", InputKind::State, f32(&[2]));
    let y = Builder::new(&mut g).exp(x).unwrap();
    let seed = Builder::new(&mut g).scalar(1.0).unwrap();
    let error = backward(&mut g, &[(y, seed)], &[x]).unwrap_err().to_string();
    assert!(error.contains("the gradient of a f32[2] is a f32[1]"), "{error}");
    assert!(run(&g, &[Tensor::full(&[2], 1.0)]).is_ok());
}
