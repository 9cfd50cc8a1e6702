//! Operations that compute each element from elements at the same place, or at a place that another operand says.

use super::{EmitError, Emitted, Kernel, Operation, warps};
use crate::tile::Builder;
use crate::tile::ir::{Binary, Unary, Var};

/// Elements of a tile.
const TILE: usize = 1024;

/// Indices of this program's tile of `n` elements, and which of them there are.
pub(super) fn tile(b: &mut Builder, n: usize) -> (Var, Option<Var>) {
    let width = super::width(n, TILE);
    let (pid, range) = (b.program_id(0), b.range(width));
    let start = b.times(pid, width);
    let index = b.add(range, start);
    let mask = (!n.is_multiple_of(width)).then(|| b.below(index, n));
    (index, mask)
}

/// A program over `n` elements.
pub(super) fn flat(name: &str, doc: &str, n: usize) -> Kernel {
    let width = super::width(n, TILE);
    Kernel::new(name, doc, [n.div_ceil(width).max(1), 1, 1], warps(width))
}

pub(super) fn one(k: Kernel) -> Result<Emitted, EmitError> {
    Ok(Emitted::one(k.finish()?))
}

/// `silu(gate) · up`.
pub(super) fn swiglu(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let n = o.outputs[0].elements();
    let mut k = flat("swiglu", "y = gate · sigmoid(gate) · up", n);
    let (gate, up, y) = (k.input(o, 0, "gate"), k.input(o, 1, "up"), k.output(o, 0, "y"));
    let b = &mut k.b;
    let (at, mask) = tile(b, n);
    let (g, u) = (b.load_float(gate, at, mask), b.load_float(up, at, mask));
    let value = gated(b, g, u);
    b.store(y, at, value, mask);
    one(k)
}

/// `silu(gate) · up` of `f32` elements.
pub(super) fn gated(b: &mut Builder, gate: Var, up: Var) -> Var {
    let s = b.unary(Unary::Sigmoid, gate);
    let silu = b.mul(gate, s);
    b.mul(silu, up)
}

/// Gradients of gate and up, of `f32` elements.
pub(super) fn gated_bwd(b: &mut Builder, dy: Var, gate: Var, up: Var) -> [Var; 2] {
    let s = b.unary(Unary::Sigmoid, gate);
    let one = b.float(1.0);
    let rest = b.sub(one, s);
    let rest = b.mul(gate, rest);
    let rest = b.add(one, rest);
    let ds = b.mul(dy, s);
    let du = b.mul(ds, up);
    [b.mul(du, rest), b.mul(ds, gate)]
}

/// Gradients of gate and up.
pub(super) fn swiglu_bwd(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let n = o.outputs[0].elements();
    let doc = "dgate = dy · up · σ · (1 + gate · (1 − σ)), dup = dy · gate · σ with σ = sigmoid(gate)";
    let mut k = flat("swiglu_bwd", doc, n);
    let (dy, gate, up) = (k.input(o, 0, "dy"), k.input(o, 1, "gate"), k.input(o, 2, "up"));
    let (dgate, dup) = (k.output(o, 0, "dgate"), k.output(o, 1, "dup"));
    let b = &mut k.b;
    let (at, mask) = tile(b, n);
    let [d, g, u] = [dy, gate, up].map(|p| b.load_float(p, at, mask));
    let [dg, du] = gated_bwd(b, d, g, u);
    b.store(dgate, at, dg, mask);
    b.store(dup, at, du, mask);
    one(k)
}

/// `acc + g`, or `acc + weight · g²`, in place.
pub(super) fn accumulate(o: &Operation<'_>, square: bool) -> Result<Emitted, EmitError> {
    let n = o.outputs[0].elements();
    let (name, doc) = if square {
        ("accumulate_square", "acc' = acc + weight · g²")
    } else {
        ("accumulate", "acc' = acc + g")
    };
    let mut k = flat(name, doc, n);
    let (acc, g) = (k.updated(o, 0, "acc"), k.input(o, 1, "g"));
    let weight = square.then(|| k.input(o, 2, "weight"));
    let b = &mut k.b;
    let (at, mask) = tile(b, n);
    let (a, mut x) = (b.load(acc, at, mask), b.load_float(g, at, mask));
    if let Some(weight) = weight {
        let zero = b.int(0);
        let w = b.load(weight, zero, None);
        x = b.mul(x, x);
        x = b.mul(x, w);
    }
    let sum = b.add(a, x);
    b.store(acc, at, sum, mask);
    Ok(Emitted { updates: &[(0, 0)], ..one(k)? })
}

/// `g · F · (θ − θ*)`.
pub(super) fn ewc_penalty_bwd(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let n = o.outputs[0].elements();
    let mut k = flat("ewc_penalty_bwd", "dtheta = g · fisher · (theta − anchor)", n);
    let g = k.input(o, 0, "g");
    let (theta, fisher, anchor) = (k.input(o, 1, "theta"), k.input(o, 2, "fisher"), k.input(o, 3, "anchor"));
    let out = k.output(o, 0, "dtheta");
    let b = &mut k.b;
    let (at, mask) = tile(b, n);
    let zero = b.int(0);
    let g = b.load(g, zero, None);
    let [t, f, a] = [theta, fisher, anchor].map(|p| b.load_float(p, at, mask));
    let d = b.sub(t, a);
    let fd = b.mul(f, d);
    let value = b.mul(fd, g);
    b.store(out, at, value, mask);
    one(k)
}

/// Rows of a table; a program takes a part of a row.
pub(super) fn embedding(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let (table, ids) = (&o.inputs[0], &o.inputs[1]);
    let (rows, h) = (ids.elements(), table.last());
    let width = super::width(h, TILE);
    let doc = "Row ids[i] of the table for each i";
    let mut k = Kernel::new("embedding", doc, [h.div_ceil(width), rows.max(1), 1], warps(width));
    let (source, list, y) = (k.input(o, 0, "table"), k.input(o, 1, "ids"), k.output(o, 0, "y"));
    let b = &mut k.b;
    let row = b.program_id(1);
    let id = b.load(list, row, None);
    let (pid, range) = (b.program_id(0), b.range(width));
    let start = b.times(pid, width);
    let column = b.add(range, start);
    let mask = (!h.is_multiple_of(width)).then(|| b.below(column, h));
    let (from, to) = (b.times(id, h), b.times(row, h));
    let (from, to) = (b.add(column, from), b.add(column, to));
    let value = b.load(source, from, mask);
    b.store(y, to, value, mask);
    one(k)
}

/// Rotation of the pairs `(i, i + D/2)` of each head by the angle of its token's position.
pub(super) fn rope(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let d = o.attrs.usize("head_dim")?;
    let inverse = o.attrs.bool("inverse")?;
    let (x, half) = (&o.inputs[0], d / 2);
    let heads = x.last() / d;
    let pairs = heads * half;
    let width = super::width(pairs, TILE);
    let doc = "Elements i and i + D/2 of each head are rotated by the angle of the token's position";
    let mut k = Kernel::new("rope", doc, [pairs.div_ceil(width), x.rows().max(1), 1], warps(width));
    let [x_, cos, sin, pos] =
        [(0, "x"), (1, "cos"), (2, "sin"), (3, "pos")].map(|(i, name)| k.input(o, i, name));
    let y = k.output(o, 0, "y");
    let b = &mut k.b;
    let (row, pid, range) = (b.program_id(1), b.program_id(0), b.range(width));
    let start = b.times(pid, width);
    let pair = b.add(range, start);
    let mask = (!pairs.is_multiple_of(width)).then(|| b.below(pair, pairs));
    let halves = b.int(half);
    let (head, i) = (b.div(pair, halves), b.binary(Binary::Rem, pair, halves));
    let position = b.load(pos, row, None);
    let angles = b.times(position, half);
    let angle = b.add(i, angles);
    let (c, s) = (b.load(cos, angle, mask), b.load(sin, angle, mask));
    let s = if inverse { b.unary(Unary::Neg, s) } else { s };
    let (token, head) = (b.times(row, x.last()), b.times(head, d));
    let first = b.add(head, i);
    let first = b.add(first, token);
    let second = b.add(first, halves);
    let (x1, x2) = (b.load_float(x_, first, mask), b.load_float(x_, second, mask));
    let [y1, y2] = rotated(b, [x1, x2], c, s);
    b.store(y, first, y1, mask);
    b.store(y, second, y2, mask);
    one(k)
}

/// Pairs of `f32` elements rotated by angles of these cosines and sines.
pub(super) fn rotated(b: &mut Builder, [x1, x2]: [Var; 2], c: Var, s: Var) -> [Var; 2] {
    let (x1c, x2s) = (b.mul(x1, c), b.mul(x2, s));
    let (x2c, x1s) = (b.mul(x2, c), b.mul(x1, s));
    [b.sub(x1c, x2s), b.add(x2c, x1s)]
}
