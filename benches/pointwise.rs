//! Operations that memory limits, out of cache, beside a plain copy: `cargo bench -p kfc-benches --bench pointwise`.
#![allow(clippy::expect_used)]

use kfc_benches::bandwidth::{self, Bandwidth};
use kfc_graph::{Attrs, Composite, DType, Op, Prim, SampleInput, TensorType};

/// Rows and columns: tensors of 64 MB in f32.
const ROWS: usize = 8192;
const WIDTH: usize = 2048;

fn main() {
    let mut criterion = bandwidth::criterion();
    let mut b = Bandwidth::new(&mut criterion).expect("threads");
    for dtype in [DType::F32, DType::Bf16] {
        for (name, op, operands) in cases(dtype) {
            // Operands are made when the first bench of the case runs: a filter leaves the others out.
            let mut prepared = None;
            let bytes = bandwidth::bytes(&op, &operands).expect("operands that fit");
            b.measure("pointwise", &format!("{name}/{dtype}"), bytes, &mut || {
                let p = prepared.get_or_insert_with(|| bandwidth::operation(&op, &operands).expect("a plan"));
                p.run();
            });
        }
    }
    b.finish();
}

type Case = (&'static str, Op, Vec<(TensorType, SampleInput)>);

fn cases(dtype: DType) -> Vec<Case> {
    let unit = SampleInput::Uniform(-1.0, 1.0);
    let of = |dtype, dims: &[usize]| (TensorType::new(dtype, dims), unit.clone());
    let ids = |n: i64, dims: &[usize]| (TensorType::new(DType::I32, dims), SampleInput::Integers(0, n));
    let x = || of(dtype, &[1, ROWS, WIDTH]);
    let f = |dims: &[usize]| of(DType::F32, dims);
    let norm = Attrs::new().with("eps", 1e-6);
    let no_dw = Attrs::new().with("need_dw", false);
    let dw = Attrs::new().with("need_dw", true);
    let rope = Attrs::new().with("head_dim", 128usize).with("inverse", false);
    let tables = || [f(&[4096, 64]), f(&[4096, 64]), ids(4096, &[1, ROWS])];
    let rstd = || f(&[1, ROWS, 1]);
    let other = if dtype == DType::F32 { DType::Bf16 } else { DType::F32 };
    vec![
        ("add", Op::Prim(Prim::Add), vec![x(), x()]),
        ("cast", Op::Prim(Prim::Cast(other)), vec![x()]),
        ("exp", Op::Prim(Prim::Exp), vec![x()]),
        ("log", Op::Prim(Prim::Log), vec![x()]),
        ("rms_norm", op("rms_norm", norm), vec![x(), of(dtype, &[WIDTH])]),
        ("rms_norm_bwd", op("rms_norm_bwd", no_dw), vec![x(), x(), of(dtype, &[WIDTH]), rstd()]),
        ("rms_norm_bwd with dw", op("rms_norm_bwd", dw), vec![x(), x(), of(dtype, &[WIDTH]), rstd()]),
        ("rope", op("rope", rope), [vec![x()], tables().into()].concat()),
        ("swiglu", op("swiglu", Attrs::new()), vec![x(), x()]),
        ("swiglu_bwd", op("swiglu_bwd", Attrs::new()), vec![x(), x(), x()]),
        (
            "embedding",
            op("embedding", Attrs::new()),
            vec![of(dtype, &[32_000, WIDTH]), ids(32_000, &[1, ROWS])],
        ),
        ("accumulate", op("accumulate", Attrs::new()), vec![f(&[ROWS, WIDTH]), of(dtype, &[ROWS, WIDTH])]),
        ("reduce_max rows", Op::Prim(Prim::ReduceMax { axes: vec![2] }), vec![x()]),
        ("reduce_sum rows", Op::Prim(Prim::ReduceSum { axes: vec![2] }), vec![x()]),
        ("transpose", Op::Prim(Prim::Transpose { perm: vec![0, 2, 1] }), vec![x()]),
    ]
}

fn op(name: &str, attrs: Attrs) -> Op {
    let def = kfc_ops::registry::registry().get(name).expect("a definition");
    Op::Composite(Composite { def, attrs })
}
