//! `lora_linear` and its gradient. The factors of the adapter are `f32`; where a result is of a 16-bit type, the adapter's
//! part of it is multiplied in that type, as one product of greater depth with the base weight's.

use super::epilogue::Epilogue;
use super::philox::Dropout;
use super::products::{Axis, Depth, Matrix, add_bias, extent, result_tile, sum_products};
use super::sums::column_sums;
use super::{EmitError, Emitted, Kernel, Operation};
use crate::tile::ir::{Access, Elem, Var};
use crate::tile::{Buffer, Builder};

/// Tokens whose products one program adds up for the gradients of an adapter.
const RUN: usize = 1024;

/// Extents, and what is done to x.
pub(super) struct Lora {
    rows: usize,
    inputs: usize,
    outputs: usize,
    pub(super) rank: usize,
    pub(super) scale: f32,
    elem: Elem,
    dropout: Option<Dropout>,
}

impl Lora {
    /// `x` is the position of x among the operands; w, a and b follow.
    pub(super) fn new(o: &Operation<'_>, x: usize) -> Result<Lora, EmitError> {
        Ok(Lora {
            rows: o.inputs[x].rows(),
            inputs: o.inputs[x].last(),
            outputs: o.inputs[x + 1].dims[0],
            rank: o.inputs[x + 2].dims[0],
            scale: o.attrs.f64("scale")? as f32,
            elem: o.inputs[x].dtype.into(),
            dropout: Dropout::new(o.attrs)?,
        })
    }

    /// The seed's parameter, the last operand, if elements are dropped.
    fn seed(&self, k: &mut Kernel, o: &Operation<'_>) -> Option<(Dropout, Buffer)> {
        self.dropout.map(|d| (d, k.input(o, o.inputs.len() - 1, "seed")))
    }
}

/// Elements of x as `f32` after dropout.
fn dropped(b: &mut Builder, x: Matrix, seed: Option<(Dropout, Buffer)>, i: Axis, j: Axis) -> Var {
    let (index, mask) = x.place(b, i, j);
    let value = b.load_float(x.buffer, index, mask);
    match seed {
        Some((dropout, seed)) => {
            let factor = dropout.factor(b, seed, index);
            b.mul(value, factor)
        }
        None => value,
    }
}

/// Launches: s, then y and what is done to it.
pub(super) fn lora_linear(o: &Operation<'_>, epilogue: Epilogue<'_>) -> Result<Emitted, EmitError> {
    let l = Lora::new(o, 0)?;
    Ok(Emitted { launches: vec![down(o, &l)?, up(o, &l, epilogue)?], ..Emitted::default() })
}

/// `s = dropout(x)·aᵀ`.
pub(super) fn down(o: &Operation<'_>, l: &Lora) -> Result<super::Launch, EmitError> {
    let tiled = o.tiled("lora_down", l.rows, l.rank, l.inputs, Elem::F32);
    let t = tiled.tiling;
    let mut k = Kernel::product(tiled, "A tile of s = dropout(x) · aᵀ", 1);
    let (x, a) = (k.input(o, 0, "x"), k.input(o, 2, "a"));
    let seed = l.seed(&mut k, o);
    let s = k.output(o, 1, "s");
    let b = &mut k.b;
    let (row, column) = result_tile(b, t, l.rows, l.rank);
    let (x, a) = (Matrix::rows(x, l.inputs), Matrix::rows(a, l.inputs).transposed());
    let zero = b.full(0.0, &[t.m, t.n]);
    let depth = Depth::all(b, l.inputs, t.k);
    let value =
        sum_products(b, &depth, Elem::F32, zero, |b, k| (dropped(b, x, seed, row, k), a.load(b, k, column)));
    Matrix::rows(s, l.rank).store(b, row, column, value);
    k.finish()
}

/// `y = x·wᵀ + scale · s·bᵀ (+ bias)`.
fn up(o: &Operation<'_>, l: &Lora, epilogue: Epilogue<'_>) -> Result<super::Launch, EmitError> {
    let tiled = o.tiled(&epilogue.name("lora_linear"), l.rows, l.outputs, l.inputs, l.elem);
    let t = tiled.tiling;
    let doc = "A tile of y = x · wᵀ + scale · s · bᵀ (+ bias): the rank continues the depth of the product";
    let mut k = Kernel::product(tiled, &epilogue.doc(doc), 1);
    let (x, w, lora_b) = (k.input(o, 0, "x"), k.input(o, 1, "w"), k.input(o, 3, "b"));
    let bias = if o.attrs.bool("bias")? { Some(k.input(o, 4, "bias")) } else { None };
    let s = k.bind(o.result(1), 0, "s", Elem::F32, l.rows * l.rank, Access::Read);
    let y = epilogue.bind(&mut k, o, 0, "y");
    let b = &mut k.b;
    let (row, column) = result_tile(b, t, l.rows, l.outputs);
    let (x, w) = (Matrix::rows(x, l.inputs), Matrix::rows(w, l.inputs).transposed());
    let zero = b.full(0.0, &[t.m, t.n]);
    let depth = Depth::all(b, l.inputs, t.k);
    let base = sum_products(b, &depth, l.elem, zero, |b, k| (x.load(b, row, k), w.load(b, k, column)));
    let (s, lora_b) = (Matrix::rows(s, l.rank), Matrix::rows(lora_b, l.rank).transposed());
    let scale = b.float(l.scale);
    let depth = Depth::all(b, l.rank, extent(l.rank, 32));
    let mut value = sum_products(b, &depth, l.elem, base, |b, k| {
        let s = s.load(b, row, k);
        (b.mul(s, scale), lora_b.load(b, k, column))
    });
    if let Some(bias) = bias {
        value = add_bias(b, bias, column, value);
    }
    y.write(b, (row, column), l.outputs, value)?;
    k.finish()
}

/// Launches: ds into workspace 0, da and db (in two stages if there are many tokens), dx and what is done to it.
pub(super) fn lora_linear_bwd(o: &Operation<'_>, epilogue: Epilogue<'_>) -> Result<Emitted, EmitError> {
    let l = Lora::new(o, 1)?;
    let need_dx = o.attrs.bool("need_dx")?;
    let mut e = Emitted { workspaces: vec![(Elem::F32, l.rows * l.rank)], ..Emitted::default() };
    let first = ds(o, &l, &e)?;
    e.launches.push(first);
    adapter_gradient(o, &l, &mut e, Factor::A, usize::from(need_dx))?;
    adapter_gradient(o, &l, &mut e, Factor::B, usize::from(need_dx) + 1)?;
    if need_dx {
        let last = dx(o, &l, &e, epilogue)?;
        e.launches.push(last);
    }
    Ok(e)
}

/// `ds = scale · dy·b`.
fn ds(o: &Operation<'_>, l: &Lora, e: &Emitted) -> Result<super::Launch, EmitError> {
    let tiled = o.tiled("lora_ds", l.rows, l.rank, l.outputs, Elem::F32);
    let t = tiled.tiling;
    let mut k = Kernel::product(tiled, "A tile of ds = scale · dy · b", 1);
    let (dy, lora_b) = (k.input(o, 0, "dy"), k.input(o, 4, "b"));
    let ds = k.work(e, 0, "ds", Access::Write);
    let b = &mut k.b;
    let (row, column) = result_tile(b, t, l.rows, l.rank);
    let (dy, lora_b) = (Matrix::rows(dy, l.outputs), Matrix::rows(lora_b, l.rank));
    let zero = b.full(0.0, &[t.m, t.n]);
    let depth = Depth::all(b, l.outputs, t.k);
    let sum =
        sum_products(b, &depth, Elem::F32, zero, |b, k| (dy.load(b, row, k), lora_b.load(b, k, column)));
    let scale = b.float(l.scale);
    let value = b.mul(sum, scale);
    Matrix::rows(ds, l.rank).store(b, row, column, value);
    k.finish()
}

/// A factor of an adapter.
#[derive(Clone, Copy, PartialEq)]
enum Factor {
    A,
    B,
}

/// Adds the launches of `da = dsᵀ·dropout(x)` or `db = scale · dyᵀ·s`, result `j`: sums over runs of tokens, then over these.
fn adapter_gradient(
    o: &Operation<'_>,
    l: &Lora,
    e: &mut Emitted,
    which: Factor,
    j: usize,
) -> Result<(), EmitError> {
    let runs = l.rows.div_ceil(RUN);
    let (name, doc, m, n) = match which {
        Factor::A => ("lora_da", "A tile of dsᵀ · dropout(x) over a run of tokens", l.rank, l.inputs),
        Factor::B => ("lora_db", "A tile of scale · dyᵀ · s over a run of tokens", l.outputs, l.rank),
    };
    let tiled = o.tiled(name, m, n, l.rows, Elem::F32);
    let t = tiled.tiling;
    let mut k = Kernel::product(tiled, doc, runs);
    let (left, right, seed) = match which {
        Factor::A => {
            let (ds, x) = (k.work(e, 0, "ds", Access::Read), k.input(o, 1, "x"));
            (ds, x, l.seed(&mut k, o))
        }
        Factor::B => (k.input(o, 0, "dy"), k.input(o, 5, "s"), None),
    };
    let out = if runs == 1 {
        k.output(o, j, "sum")
    } else {
        e.workspaces.push((Elem::F32, runs * m * n));
        k.work(e, e.workspaces.len() - 1, "partial", Access::Write)
    };
    let b = &mut k.b;
    let (row, column) = result_tile(b, t, m, n);
    let run = b.program_id(2);
    let zero = b.full(0.0, &[t.m, t.n]);
    let depth = Depth::run(b, run, RUN, l.rows, t.k);
    let (left, right) = (Matrix::rows(left, m).transposed(), Matrix::rows(right, n));
    let mut value = sum_products(b, &depth, Elem::F32, zero, |b, k| {
        (left.load(b, row, k), dropped(b, right, seed, k, column))
    });
    if which == Factor::B {
        let scale = b.float(l.scale);
        value = b.mul(value, scale);
    }
    let base = b.times(run, m * n);
    Matrix { base: Some(base), ..Matrix::rows(out, n) }.store(b, row, column, value);
    e.launches.push(k.finish()?);
    if runs > 1 {
        let last = column_sums(&format!("{name}_sum"), o, e, e.workspaces.len() - 1, runs, m * n, j)?;
        e.launches.push(last);
    }
    Ok(())
}

/// `dx = dy·w + dropout'(ds·a)`.
fn dx(o: &Operation<'_>, l: &Lora, e: &Emitted, epilogue: Epilogue<'_>) -> Result<super::Launch, EmitError> {
    let tiled = o.tiled(&epilogue.name("lora_dx"), l.rows, l.inputs, l.outputs, l.elem);
    let t = tiled.tiling;
    let doc = "A tile of dx = dy · w + ds · a, the second part where the adapter's input was kept";
    let mut k = Kernel::product(tiled, &epilogue.doc(doc), 1);
    let (dy, w, a) = (k.input(o, 0, "dy"), k.input(o, 2, "w"), k.input(o, 3, "a"));
    let seed = l.seed(&mut k, o);
    let ds = k.work(e, 0, "ds", Access::Read);
    let dx = epilogue.bind(&mut k, o, 0, "dx");
    let b = &mut k.b;
    let (row, column) = result_tile(b, t, l.rows, l.inputs);
    let zero = b.full(0.0, &[t.m, t.n]);
    let (ds, a) = (Matrix::rows(ds, l.rank), Matrix::rows(a, l.inputs));
    let depth = Depth::all(b, l.rank, extent(l.rank, 32));
    let mut start = sum_products(b, &depth, l.elem, zero, |b, k| (ds.load(b, row, k), a.load(b, k, column)));
    if let Some((dropout, seed)) = seed {
        // Elements of dx stand where those of x do.
        let (index, _) = Matrix::rows(a.buffer, l.inputs).place(b, row, column);
        let factor = dropout.factor(b, seed, index);
        start = b.mul(start, factor);
    }
    let (dy, w) = (Matrix::rows(dy, l.outputs), Matrix::rows(w, l.inputs));
    let depth = Depth::all(b, l.outputs, t.k);
    let value = sum_products(b, &depth, l.elem, start, |b, k| (dy.load(b, row, k), w.load(b, k, column)));
    dx.write(b, (row, column), l.inputs, value)?;
    k.finish()
}
