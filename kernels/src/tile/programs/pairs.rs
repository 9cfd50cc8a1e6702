//! Two products of one input in one kernel, for what is computed from an element of each: the gated activation from those of
//! two layers, the rotation of positions from those of the two halves of a head.
//!
//! Invariant: as with an epilogue, sums are rounded to the type of the result that they would have been written as.

use super::elementwise::{gated, rotated};
use super::lora::Lora;
use super::products::{Axis, Depth, Matrix, add_bias, extent, factors, sum_each};
use super::{EmitError, Emitted, Kernel, Launch, Operation, lora};
use crate::tile::ir::{Access, Elem, Unary, Var};
use crate::tile::tiling::{GATED, ROTATED, Shape, Tiled};
use crate::tile::{Buffer, Builder, Tiling};

/// One of the two: a layer's weight, and which of its columns a program takes.
struct Side {
    w: Matrix,
    column: Axis,
    bias: Option<Buffer>,
    adapter: Option<Adapter>,
}

/// `scale · s·bᵀ`
#[derive(Clone, Copy)]
struct Adapter {
    s: Matrix,
    b: Matrix,
    rank: usize,
    scale: f32,
}

/// A layer's parameters.
struct Layer {
    w: Buffer,
    bias: Option<Buffer>,
    adapter: Option<Adapter>,
    outputs: usize,
    inputs: usize,
}

/// Extents of a layer, and of its adapter if it has one.
struct Extents {
    rows: usize,
    inputs: usize,
    outputs: usize,
    elem: Elem,
    lora: Option<Lora>,
}

impl Extents {
    fn new(o: &Operation<'_>) -> Result<Extents, EmitError> {
        let (x, w) = (&o.inputs[0], &o.inputs[1]);
        let has_adapter = o.inputs.len() > 3;
        Ok(Extents {
            rows: x.rows(),
            inputs: x.last(),
            outputs: w.dims[0],
            elem: factors(x.dtype.into(), w.dtype.into()),
            lora: if has_adapter { Some(Lora::new(o, 0)?) } else { None },
        })
    }

    /// A kernel's name by what it computes from its sums.
    fn kernel(&self, what: &str) -> String {
        format!("{}{what}", if self.lora.is_some() { "lora" } else { "linear" })
    }
}

impl Layer {
    /// Parameters but for x, their names ending in `end`.
    fn bind(k: &mut Kernel, o: &Operation<'_>, e: &Extents, end: &str) -> Result<Layer, EmitError> {
        let name = |base: &str| format!("{base}{end}");
        let w = k.input(o, 1, &name("w"));
        let Some(l) = &e.lora else {
            let bias = (o.inputs.len() > 2).then(|| k.input(o, 2, &name("bias")));
            return Ok(Layer { w, bias, adapter: None, outputs: e.outputs, inputs: e.inputs });
        };
        let b = k.input(o, 3, &name("b"));
        let bias = if o.attrs.bool("bias")? { Some(k.input(o, 4, &name("bias"))) } else { None };
        let s = k.bind(o.result(1), 0, &name("s"), Elem::F32, e.rows * l.rank, Access::Read);
        let (s, b) = (Matrix::rows(s, l.rank), Matrix::rows(b, l.rank).transposed());
        let adapter = Some(Adapter { s, b, rank: l.rank, scale: l.scale });
        Ok(Layer { w, bias, adapter, outputs: e.outputs, inputs: e.inputs })
    }

    fn side(&self, column: Axis) -> Side {
        let w = Matrix::rows(self.w, self.inputs).transposed();
        Side { w, column, bias: self.bias, adapter: self.adapter }
    }
}

/// Both sums of a tile of rows, in `f32` and with what is added to them.
fn sums(b: &mut Builder, t: Tiling, e: &Extents, x: Buffer, row: Axis, sides: &[Side; 2]) -> Vec<Var> {
    let x = Matrix::rows(x, e.inputs);
    let zero = b.full(0.0, &[t.m, t.n]);
    let depth = Depth::all(b, e.inputs, t.k);
    let mut sums = sum_each(b, &depth, e.elem, &[zero, zero], |b, k| {
        let x = x.load(b, row, k);
        sides.iter().map(|side| (x, side.w.load(b, k, side.column))).collect()
    });
    if let [Some(one), Some(other)] = [sides[0].adapter, sides[1].adapter] {
        let depth = Depth::all(b, one.rank, extent(one.rank, 32));
        let is_same = one.s.buffer == other.s.buffer;
        sums = sum_each(b, &depth, e.elem, &sums, |b, k| {
            let mut factors: Vec<(Var, Var)> = Vec::new();
            for (side, a) in sides.iter().zip([one, other]) {
                let s = match factors.first().filter(|_| is_same) {
                    Some(first) => first.0,
                    None => {
                        let (s, scale) = (a.s.load(b, row, k), b.float(a.scale));
                        let s = b.mul(s, scale);
                        b.cast(s, e.elem)
                    }
                };
                factors.push((s, a.b.load(b, k, side.column)));
            }
            factors
        });
    }
    for (sum, side) in sums.iter_mut().zip(sides) {
        if let Some(bias) = side.bias {
            *sum = add_bias(b, bias, side.column, *sum);
        }
    }
    sums
}

/// A value as it is when it was written and read.
fn rounded(b: &mut Builder, value: Var, o: &Operation<'_>) -> (Var, Var) {
    let narrow = b.cast(value, o.outputs[0].dtype.into());
    (narrow, b.cast(narrow, Elem::F32))
}

/// The launches before the one of a pair: s of each layer that has an adapter.
fn before(layers: &[&Operation<'_>]) -> Result<Vec<Launch>, EmitError> {
    let mut launches = Vec::new();
    for o in layers {
        if let Some(l) = Extents::new(o)?.lora {
            launches.push(lora::down(o, &l)?);
        }
    }
    Ok(launches)
}

/// `silu(gate) · up` of two layers of one x, result 0 of `whole`; `kept` says which of gate and up are results too.
pub(super) fn gated_pair(
    whole: &Operation<'_>,
    gate: &Operation<'_>,
    up: &Operation<'_>,
    kept: [bool; 2],
) -> Result<Emitted, EmitError> {
    let e = Extents::new(gate)?;
    let tiled = whole.tiled(&e.kernel(GATED), e.rows, e.outputs, e.inputs, e.elem);
    let t = tiled.tiling;
    let doc = "A tile of silu(gate) · up, gate and up being linear layers of one x";
    let mut k = Kernel::product(tiled, doc, 1);
    let x = k.input(gate, 0, "x");
    let layers = [Layer::bind(&mut k, gate, &e, "1")?, Layer::bind(&mut k, up, &e, "2")?];
    let own = [(gate, "gate"), (up, "up")];
    let own: Vec<Option<Buffer>> =
        own.iter().zip(kept).map(|(&(o, name), kept)| kept.then(|| k.output(o, 0, name))).collect();
    let y = k.output(whole, 0, "y");
    let b = &mut k.b;
    let (row, column) = super::products::result_tile(b, t, e.rows, e.outputs);
    let sides = layers.map(|l| l.side(column));
    let sums = sums(b, t, &e, x, row, &sides);
    let (at, mask) = Matrix::rows(y, e.outputs).place(b, row, column);
    let mut wide = Vec::new();
    for (sum, own) in sums.into_iter().zip(own) {
        let (narrow, value) = rounded(b, sum, gate);
        if let Some(own) = own {
            b.store(own, at, narrow, mask);
        }
        wide.push(value);
    }
    let value = gated(b, wide[0], wide[1]);
    b.store(y, at, value, mask);
    let mut launches = before(&[gate, up])?;
    launches.push(k.finish()?);
    Ok(Emitted { launches, ..Emitted::default() })
}

/// The rotation `rope` of a layer's result, of heads whose halves are powers of two.
pub(super) fn rotated_pair(
    whole: &Operation<'_>,
    layer: &Operation<'_>,
    rope: &Operation<'_>,
) -> Result<Emitted, EmitError> {
    let e = Extents::new(layer)?;
    let (d, inverse) = (rope.attrs.usize("head_dim")?, rope.attrs.bool("inverse")?);
    let half = d / 2;
    let heads = e.outputs / d;
    let shape =
        Shape { kernel: e.kernel(ROTATED), m: e.rows, n: half, k: e.inputs, parts: heads, elem: e.elem };
    let tiled = Tiled { tiling: whole.tilings.of(&shape), shape };
    let t = tiled.tiling;
    let doc = "A tile of a linear layer's result, elements i and i + D/2 of each head rotated by the token's position";
    let mut k = Kernel::product(tiled, doc, heads);
    let x = k.input(layer, 0, "x");
    let params = Layer::bind(&mut k, layer, &e, "")?;
    let [cos, sin, pos] = [(1, "cos"), (2, "sin"), (3, "pos")].map(|(i, name)| k.input(rope, i, name));
    let y = k.output(whole, 0, "y");
    let b = &mut k.b;
    let (row, block, head) = (b.program_id(0), b.program_id(1), b.program_id(2));
    let row = Axis::block(b, row, t.m, e.rows);
    let (range, start) = (b.range(t.n), b.times(block, t.n));
    let pair = b.add(range, start);
    // Starts are sums of multiples of the grid's numbers, so that copies know where they begin.
    let start = b.times(head, d);
    let first = b.add(pair, start);
    let halves = b.int(half);
    let second = b.add(first, halves);
    let columns = [first, second].map(|at| Axis { at, limit: None });
    let sides = columns.map(|c| params.side(c));
    let sums = sums(b, t, &e, x, row, &sides);
    let mask = row.mask(b);
    let position = b.load(pos, row.at, mask);
    let line = b.times(position, half);
    let (line, along) = (b.expand(line, 1), b.expand(pair, 0));
    let angle = b.add(line, along);
    let places = columns.map(|c| Matrix::rows(y, params.outputs).place(b, row, c));
    let mask = places[0].1;
    let (c, s) = (b.load(cos, angle, mask), b.load(sin, angle, mask));
    let s = if inverse { b.unary(Unary::Neg, s) } else { s };
    let [x1, x2] = [sums[0], sums[1]].map(|sum| rounded(b, sum, layer).1);
    for (value, (at, mask)) in rotated(b, [x1, x2], c, s).into_iter().zip(places) {
        b.store(y, at, value, mask);
    }
    let mut launches = before(&[layer])?;
    launches.push(k.finish()?);
    Ok(Emitted { launches, ..Emitted::default() })
}
