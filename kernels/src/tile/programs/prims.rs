//! Primitives. Pointwise ones compute each element from elements at the same place; movements copy elements from one order
//! to another; reductions are ordered.

use super::elementwise::{embedding, flat, one, tile};
use super::index::scatter_add;
use super::products::{Depth, Matrix, factors, result_tile, sum_products};
use super::{EmitError, Emitted, Kernel, Launch, Operation, philox, sums, warps, width};
use crate::tile::Builder;
use crate::tile::ir::{Binary, Compare, Elem, Fold, Unary, Var};
use kfc_graph::prim::CmpOp;
use kfc_graph::{DType, Prim};

/// Elements that a reduction takes at once.
const TILE: usize = 1024;

/// The programs of a primitive.
pub(super) fn emit(p: &Prim, o: &Operation<'_>) -> Result<Emitted, EmitError> {
    Ok(match p {
        Prim::Const { .. } | Prim::Iota { .. } | Prim::Random { .. } => fill(p, o)?,
        Prim::Neg | Prim::Exp | Prim::Log | Prim::Sqrt | Prim::Sigmoid | Prim::Erf => {
            Emitted { may_share: &[(0, 0)], ..pointwise(p, o)? }
        }
        Prim::Add | Prim::Sub | Prim::Mul | Prim::Div | Prim::Max => {
            Emitted { may_share: &[(0, 0), (1, 0)], ..pointwise(p, o)? }
        }
        Prim::Cast(_) | Prim::Compare(_) | Prim::Select => pointwise(p, o)?,
        Prim::Reshape { .. } => {
            let n = o.inputs[0].elements();
            copy("reshape", o, 0, &[n], (&[1], 0), (&[1], 0))?
        }
        Prim::Transpose { perm } => {
            let from = strides(&o.inputs[0].dims);
            let permuted: Vec<usize> = perm.iter().map(|&p| from[p]).collect();
            let (dims, to) = (&o.outputs[0].dims, strides(&o.outputs[0].dims));
            copy("transpose", o, 0, dims, (&permuted, 0), (&to, 0))?
        }
        Prim::Broadcast { dims } => {
            let from = strides(&o.inputs[0].dims);
            let from: Vec<usize> =
                from.iter().zip(&o.inputs[0].dims).map(|(&s, &d)| if d == 1 { 0 } else { s }).collect();
            copy("broadcast", o, 0, dims, (&from, 0), (&strides(dims), 0))?
        }
        Prim::Slice { axis, start, .. } => {
            let (dims, from) = (&o.outputs[0].dims, strides(&o.inputs[0].dims));
            copy("slice", o, 0, dims, (&from, start * from[*axis]), (&strides(dims), 0))?
        }
        Prim::Pad { axis, lo, .. } => {
            let (dims, to) = (&o.inputs[0].dims, strides(&o.outputs[0].dims));
            let part = copy("pad", o, 0, dims, (&strides(dims), 0), (&to, lo * to[*axis]))?;
            let zeros = constant("pad_zeros", o, 0.0)?;
            Emitted { launches: [zeros.launches, part.launches].concat(), ..Emitted::default() }
        }
        Prim::Concat { axis } => {
            let to = strides(&o.outputs[0].dims);
            let (mut e, mut at) = (Emitted::default(), 0);
            for (i, part) in o.inputs.iter().enumerate() {
                let from = strides(&part.dims);
                e.launches
                    .extend(copy("concat", o, i, &part.dims, (&from, 0), (&to, at * to[*axis]))?.launches);
                at += part.dims[*axis];
            }
            e
        }
        Prim::ReduceSum { .. } if o.outputs[0].elements() == 1 && o.outputs[0].dtype == DType::F32 => {
            sums::sum_elements(o)?
        }
        Prim::ReduceSum { axes } => reduce("reduce_sum", Fold::Sum, o, axes)?,
        Prim::ReduceMax { axes } => reduce("reduce_max", Fold::Max, o, axes)?,
        Prim::MatMul { ta, tb, .. } => matmul(o, *ta, *tb)?,
        Prim::Gather => embedding(o)?,
        Prim::ScatterAdd { .. } => scatter_add(o)?,
    })
}

/// Tensors made of nothing.
fn fill(p: &Prim, o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let n = o.outputs[0].elements();
    match p {
        Prim::Const { value, .. } => constant("fill", o, *value),
        Prim::Iota { dims, axis } => {
            let mut k = flat("iota", "Indices along an axis", n);
            let y = k.output(o, 0, "y");
            let b = &mut k.b;
            let (at, mask) = tile(b, n);
            let (inner, extent) = (b.int(strides(dims)[*axis]), b.int(dims[*axis]));
            let index = b.div(at, inner);
            let index = b.binary(Binary::Rem, index, extent);
            b.store(y, at, index, mask);
            one(k)
        }
        Prim::Random { stream, .. } => {
            let mut k = flat("random", "Uniform numbers by counter", n);
            let (seed, y) = (k.input(o, 0, "seed"), k.output(o, 0, "y"));
            let b = &mut k.b;
            let (at, mask) = tile(b, n);
            let value = philox::uniform(b, seed, *stream, at);
            b.store(y, at, value, mask);
            one(k)
        }
        other => Err(EmitError::Unclaimed(other.name().into())),
    }
}

/// Result 0 filled with one value.
fn constant(name: &str, o: &Operation<'_>, value: f64) -> Result<Emitted, EmitError> {
    let n = o.outputs[0].elements();
    let mut k = flat(name, "One value in every element", n);
    let y = k.output(o, 0, "y");
    let b = &mut k.b;
    let (at, mask) = tile(b, n);
    let value =
        if o.outputs[0].dtype == DType::I32 { b.integer(value as i32) } else { b.float(value as f32) };
    b.store(y, at, value, mask);
    one(k)
}

/// One pointwise primitive.
fn pointwise(p: &Prim, o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let n = o.outputs[0].elements();
    let mut k = flat(p.name(), "A pointwise operation", n);
    let buffers: Vec<_> =
        (0..o.inputs.len()).map(|i| k.input(o, i, ["a", "b", "c"].get(i).copied().unwrap_or("x"))).collect();
    let y = k.output(o, 0, "y");
    let b = &mut k.b;
    let (at, mask) = tile(b, n);
    let operands: Vec<Var> = buffers.into_iter().map(|x| b.load(x, at, mask)).collect();
    let value = apply(b, p, &operands)?;
    b.store(y, at, value, mask);
    one(k)
}

/// A pointwise primitive of tiles, in the type that it is computed in: floats as `f32`, integers as `i32`.
pub(super) fn apply(b: &mut Builder, p: &Prim, operands: &[Var]) -> Result<Var, EmitError> {
    let x: Vec<Var> = operands.iter().map(|&v| wide(b, v)).collect();
    Ok(match p {
        Prim::Neg => b.unary(Unary::Neg, x[0]),
        Prim::Exp => b.unary(Unary::Exp, x[0]),
        Prim::Log => b.unary(Unary::Log, x[0]),
        Prim::Sqrt => b.unary(Unary::Sqrt, x[0]),
        Prim::Sigmoid => b.unary(Unary::Sigmoid, x[0]),
        Prim::Erf => b.unary(Unary::Erf, x[0]),
        Prim::Cast(to) => b.cast(x[0], Elem::from(*to)),
        Prim::Add => b.add(x[0], x[1]),
        Prim::Sub => b.sub(x[0], x[1]),
        Prim::Mul => b.mul(x[0], x[1]),
        Prim::Div => b.div(x[0], x[1]),
        Prim::Max => b.binary(Binary::Max, x[0], x[1]),
        Prim::Compare(op) => {
            let op = match op {
                CmpOp::Eq => Compare::Eq,
                CmpOp::Lt => Compare::Lt,
                CmpOp::Le => Compare::Le,
            };
            let holds = b.compare(op, x[0], x[1]);
            let (yes, no) = (b.int(1), b.int(0));
            b.select(holds, yes, no)
        }
        Prim::Select => {
            let zero = b.int(0);
            let off = b.compare(Compare::Eq, x[0], zero);
            b.select(off, x[2], x[1])
        }
        other => return Err(EmitError::Unclaimed(other.name().into())),
    })
}

/// 16-bit floats as `f32`.
fn wide(b: &mut Builder, v: Var) -> Var {
    if b.ty(v).elem.is_float() { b.cast(v, Elem::F32) } else { v }
}

/// Row-major strides.
pub(super) fn strides(dims: &[usize]) -> Vec<usize> {
    let mut out = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        out[i - 1] = out[i] * dims[i];
    }
    out
}

/// Strides, and the element that they count from.
pub(super) type Order<'a> = (&'a [usize], usize);

/// `Σ index · strides` in each of some orders, for elements of a tensor of extents `dims` given by their row-major number.
pub(super) fn offsets(b: &mut Builder, number: Var, dims: &[usize], orders: &[Order<'_>]) -> Vec<Var> {
    let mut rest = number;
    let mut found: Vec<Option<Var>> = vec![None; orders.len()];
    let axes: Vec<usize> = (0..dims.len()).filter(|&a| dims[a] != 1).collect();
    for (i, &a) in axes.iter().enumerate().rev() {
        let index = if i == 0 {
            rest
        } else {
            let extent = b.int(dims[a]);
            let index = b.binary(Binary::Rem, rest, extent);
            rest = b.div(rest, extent);
            index
        };
        for (sum, (strides, _)) in found.iter_mut().zip(orders) {
            if strides[a] == 0 {
                continue;
            }
            let step = b.times(index, strides[a]);
            *sum = Some(match *sum {
                Some(sum) => b.add(sum, step),
                None => step,
            });
        }
    }
    let dims = b.ty(number).dims.clone();
    let mut results = Vec::new();
    for (sum, (_, first)) in found.into_iter().zip(orders) {
        let first = b.int(*first);
        results.push(match sum {
            Some(sum) => b.add(sum, first),
            None => b.splat(first, &dims),
        });
    }
    results
}

/// Copies the elements of a tensor of extents `dims` from operand `i` in one order to result 0 in another.
fn copy(
    name: &str,
    o: &Operation<'_>,
    i: usize,
    dims: &[usize],
    from: Order<'_>,
    to: Order<'_>,
) -> Result<Emitted, EmitError> {
    let n = dims.iter().product();
    let mut k = flat(name, "Elements copied to another order", n);
    let (x, y) = (k.input(o, i, "x"), k.output(o, 0, "y"));
    let b = &mut k.b;
    let (number, mask) = tile(b, n);
    let places = offsets(b, number, dims, &[from, to]);
    let value = b.load(x, places[0], mask);
    b.store(y, places[1], value, mask);
    one(k)
}

/// A reduction over `axes`. If the last axis is among them, a program reduces one element of the result; else each lane of a
/// program does.
fn reduce(name: &str, fold: Fold, o: &Operation<'_>, axes: &[usize]) -> Result<Emitted, EmitError> {
    let dims = &o.inputs[0].dims;
    let all = strides(dims);
    let pick = |reduced: bool, of: &[usize]| -> Vec<usize> {
        (0..dims.len()).filter(|a| axes.contains(a) == reduced).map(|a| of[a]).collect()
    };
    let (kept, kept_strides) = (pick(false, dims), pick(false, &all));
    let (gone, gone_strides) = (pick(true, dims), pick(true, &all));
    let (n, m) = (kept.iter().product::<usize>(), gone.iter().product::<usize>());
    let start = if fold == Fold::Sum { 0.0 } else { f32::NEG_INFINITY };
    let op = if fold == Fold::Sum { Binary::Add } else { Binary::Max };
    let launch: Result<Launch, EmitError> = if axes.contains(&(dims.len() - 1)) {
        let w = width(m, TILE);
        let mut k = Kernel::new(name, "A reduction: an element of the result a program", [n, 1, 1], warps(w));
        let (x, y) = (k.input(o, 0, "x"), k.output(o, 0, "y"));
        let b = &mut k.b;
        let (pid, range) = (b.program_id(0), b.range(w));
        let first = offsets(b, pid, &kept, &[(&kept_strides, 0)])[0];
        let (from, to, init) = (b.int(0), b.int(m), b.full(start, &[w]));
        let end = b.repeat(from, to, w, &[init], |b, at, now| {
            let number = b.add(range, at);
            let mask = (!m.is_multiple_of(w)).then(|| b.below(number, m));
            let place = offsets(b, number, &gone, &[(&gone_strides, 0)])[0];
            let index = b.add(place, first);
            let mut value = b.load_float(x, index, mask);
            if let Some(mask) = mask {
                let none = b.float(start);
                value = b.select(mask, value, none);
            }
            vec![b.binary(op, now[0], value)]
        });
        let value = b.reduce(fold, end[0], 0);
        b.store(y, pid, value, None);
        k.finish()
    } else {
        let w = width(n, 256);
        let mut k = Kernel::new(
            name,
            "A reduction: elements of the result side by side",
            [n.div_ceil(w), 1, 1],
            warps(w),
        );
        let (x, y) = (k.input(o, 0, "x"), k.output(o, 0, "y"));
        let b = &mut k.b;
        let (pid, range) = (b.program_id(0), b.range(w));
        let start_at = b.times(pid, w);
        let number = b.add(range, start_at);
        let mask = (!n.is_multiple_of(w)).then(|| b.below(number, n));
        let first = offsets(b, number, &kept, &[(&kept_strides, 0)])[0];
        let (from, to, init) = (b.int(0), b.int(m), b.full(start, &[w]));
        let end = b.repeat(from, to, 1, &[init], |b, at, now| {
            let place = offsets(b, at, &gone, &[(&gone_strides, 0)])[0];
            let index = b.add(first, place);
            let value = b.load_float(x, index, mask);
            vec![b.binary(op, now[0], value)]
        });
        b.store(y, number, end[0], mask);
        k.finish()
    };
    Ok(Emitted::one(launch?))
}

/// A product over the last two axes; leading axes are the grid's third.
fn matmul(o: &Operation<'_>, ta: bool, tb: bool) -> Result<Emitted, EmitError> {
    let (x, y) = (&o.inputs[0], &o.outputs[0]);
    let r = x.rank();
    let (m, n) = (y.dims[r - 2], y.dims[r - 1]);
    let inner = if ta { x.dims[r - 2] } else { x.dims[r - 1] };
    let batch: usize = x.dims[..r - 2].iter().product();
    let elem = factors(x.dtype.into(), o.inputs[1].dtype.into());
    let tiled = o.tiled("matmul", m, n, inner, elem);
    let t = tiled.tiling;
    let mut k = Kernel::product(tiled, "A tile of c = a · b", batch);
    let (a, c, out) = (k.input(o, 0, "a"), k.input(o, 1, "b"), k.output(o, 0, "c"));
    let b = &mut k.b;
    b.plain([m, n, inner], batch, [a, c, out], [ta, tb], false);
    let (row, column) = result_tile(b, t, m, n);
    let number = b.program_id(2);
    let part = |b: &mut Builder, buffer, elements: usize, columns: usize, is_transposed: bool| {
        let base = b.times(number, elements);
        let matrix = Matrix { base: Some(base), ..Matrix::rows(buffer, columns) };
        if is_transposed { matrix.transposed() } else { matrix }
    };
    let a = part(b, a, m * inner, if ta { m } else { inner }, ta);
    let c = part(b, c, n * inner, if tb { inner } else { n }, tb);
    let out = part(b, out, m * n, n, false);
    let (zero, depth) = (b.full(0.0, &[t.m, t.n]), Depth::all(b, inner, t.k));
    let value = sum_products(b, &depth, elem, zero, |b, k| (a.load(b, row, k), c.load(b, k, column)));
    out.store(b, row, column, value);
    Ok(Emitted::one(k.finish()?))
}
