//! Matrix products: a program takes a tile of the result and walks the depth. What other programs share of that is here.

use super::epilogue::Epilogue;
use super::{EmitError, Emitted, Kernel, Operation};
use crate::tile::ir::{Access, Binary, Elem, Var};
pub(super) use crate::tile::tiling::extent;
use crate::tile::tiling::{Shape, Tiled};
use crate::tile::{Buffer, Builder, Tiling};

/// Positions along an axis of a matrix.
#[derive(Clone, Copy)]
pub(super) struct Axis {
    /// The positions, `i32[n]`.
    pub(super) at: Var,
    /// The axis' extent, if some positions may lie beyond it.
    pub(super) limit: Option<usize>,
}

impl Axis {
    /// Positions `block · n + 0..n` of an axis of `extent`.
    pub(super) fn block(b: &mut Builder, block: Var, n: usize, extent: usize) -> Axis {
        let (range, start) = (b.range(n), b.times(block, n));
        Axis { at: b.add(range, start), limit: (!extent.is_multiple_of(n)).then_some(extent) }
    }

    /// Positions `at + 0..n` of an axis of `extent`, where `at` is a multiple of `n`.
    pub(super) fn from(b: &mut Builder, at: Var, n: usize, extent: usize) -> Axis {
        let range = b.range(n);
        Axis { at: b.add(range, at), limit: (!extent.is_multiple_of(n)).then_some(extent) }
    }

    /// All positions of an axis, in a tile of `n`.
    pub(super) fn whole(b: &mut Builder, n: usize, extent: usize) -> Axis {
        Axis { at: b.range(n), limit: (extent != n).then_some(extent) }
    }

    /// Which positions exist; nothing if all do.
    pub(super) fn mask(self, b: &mut Builder) -> Option<Var> {
        self.limit.map(|limit| b.below(self.at, limit))
    }
}

/// A matrix in a buffer: element `(i, j)` stands at `base + i · strides.0 + j · strides.1`.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    /// The buffer.
    pub(super) buffer: Buffer,
    /// Index of its first element; 0 if nothing.
    pub(super) base: Option<Var>,
    /// Distances of neighbours down and along.
    pub(super) strides: (usize, usize),
}

impl Matrix {
    /// Rows of `columns` elements, one after the other.
    pub(super) fn rows(buffer: Buffer, columns: usize) -> Matrix {
        Matrix { buffer, base: None, strides: (columns, 1) }
    }

    /// Whether its columns lie together, not its rows.
    fn is_turned(self) -> bool {
        self.strides.1 != 1
    }

    /// The transpose.
    pub(super) fn transposed(self) -> Matrix {
        Matrix { strides: (self.strides.1, self.strides.0), ..self }
    }

    /// Indices of the elements `(i, j)`, and which of them exist.
    pub(super) fn place(self, b: &mut Builder, i: Axis, j: Axis) -> (Var, Option<Var>) {
        let masks = [(i, 1), (j, 0)].map(|(axis, side)| {
            let mask = axis.mask(b)?;
            Some(b.expand(mask, side))
        });
        let down = b.times(i.at, self.strides.0);
        let down = match self.base {
            Some(base) => b.add(down, base),
            None => down,
        };
        let along = b.times(j.at, self.strides.1);
        let (down, along) = (b.expand(down, 1), b.expand(along, 0));
        let index = b.add(down, along);
        let dims = b.ty(index).dims.clone();
        let mask = match masks {
            [Some(m), Some(n)] => Some(b.and(m, n)),
            [one, other] => one.or(other).map(|m| b.broadcast(m, &dims)),
        };
        (index, mask)
    }

    /// Elements `(i, j)`, 0 where there are none.
    pub(super) fn load(self, b: &mut Builder, i: Axis, j: Axis) -> Var {
        let (index, mask) = self.place(b, i, j);
        b.load(self.buffer, index, mask)
    }

    /// Writes elements `(i, j)`.
    pub(super) fn store(self, b: &mut Builder, i: Axis, j: Axis, value: Var) {
        let (index, mask) = self.place(b, i, j);
        b.store(self.buffer, index, value, mask);
    }
}

/// How a product is cut whose tiles are summed further: it must not change with what is chosen.
pub(super) fn fixed(m: usize, n: usize, k: usize, elem: Elem) -> Tiling {
    Tiling::builtin(&Shape { kernel: String::new(), m, n, k, parts: 1, elem })
}

/// The type in which factors of these types are multiplied.
pub(super) fn factors(a: Elem, b: Elem) -> Elem {
    if a == b { a } else { Elem::F32 }
}

/// The type in which a gradient kept as `f32` is multiplied with values of a type: bf16 has the range for it, f16 has not.
pub(super) fn gradient_factors(other: Elem) -> Elem {
    if other == Elem::Bf16 { Elem::Bf16 } else { Elem::F32 }
}

/// A part of the depth of a product.
pub(super) struct Depth {
    from: Var,
    to: Var,
    step: usize,
    extent: usize,
}

impl Depth {
    /// All of it.
    pub(super) fn all(b: &mut Builder, extent: usize, step: usize) -> Depth {
        Depth { from: b.int(0), to: b.int(extent), step, extent }
    }

    /// Run `number` of runs of `run` elements, a multiple of `step`.
    pub(super) fn run(b: &mut Builder, number: Var, run: usize, extent: usize, step: usize) -> Depth {
        let from = b.times(number, run);
        let (size, end) = (b.int(run), b.int(extent));
        let to = b.add(from, size);
        Depth { from, to: b.binary(Binary::Min, to, end), step, extent }
    }
}

/// `acc + Σ a · b` over a part of the depth; `f` gives the factors at positions along it, which are multiplied as `elem`.
pub(super) fn sum_products(
    b: &mut Builder,
    depth: &Depth,
    elem: Elem,
    acc: Var,
    f: impl FnOnce(&mut Builder, Axis) -> (Var, Var),
) -> Var {
    sum_each(b, depth, elem, &[acc], |b, k| vec![f(b, k)])[0]
}

/// Several such sums in one walk of the depth; `f` gives the factors of each.
pub(super) fn sum_each(
    b: &mut Builder,
    depth: &Depth,
    elem: Elem,
    sums: &[Var],
    f: impl FnOnce(&mut Builder, Axis) -> Vec<(Var, Var)>,
) -> Vec<Var> {
    b.repeat(depth.from, depth.to, depth.step, sums, |b, at, sums| {
        let axis = Axis::from(b, at, depth.step, depth.extent);
        let factors = f(b, axis);
        let narrow = |b: &mut Builder, (x, y)| (b.cast(x, elem), b.cast(y, elem));
        let factors: Vec<(Var, Var)> = factors.into_iter().map(|pair| narrow(b, pair)).collect();
        factors.into_iter().zip(sums).map(|((x, y), sum)| b.dot(x, y, *sum)).collect()
    })
}

/// `y = x·wᵀ (+ bias)`, and what is done to it.
pub(super) fn linear(o: &Operation<'_>, epilogue: Epilogue<'_>) -> Result<Emitted, EmitError> {
    let (rows, inputs, outputs) = (o.inputs[0].rows(), o.inputs[0].last(), o.inputs[1].dims[0]);
    let elem = factors(o.inputs[0].dtype.into(), o.inputs[1].dtype.into());
    let tiled = o.tiled(&epilogue.name("linear"), rows, outputs, inputs, elem);
    let t = tiled.tiling;
    let doc = epilogue.doc("A tile of y = x · wᵀ (+ bias), summed in f32");
    let mut k = Kernel::product(tiled, &doc, 1);
    let (x, w) = (k.input(o, 0, "x"), k.input(o, 1, "w"));
    let bias = (o.inputs.len() > 2).then(|| k.input(o, 2, "bias"));
    let y = epilogue.bind(&mut k, o, 0, "y");
    let b = &mut k.b;
    if let (None, Some(y)) = (bias, y.alone()) {
        b.plain([rows, outputs, inputs], 1, [x, w, y], [false, true], false);
    }
    let (row, column) = result_tile(b, t, rows, outputs);
    let zero = b.full(0.0, &[t.m, t.n]);
    let depth = Depth::all(b, inputs, t.k);
    let (x, w) = (Matrix::rows(x, inputs), Matrix::rows(w, inputs).transposed());
    let mut value = sum_products(b, &depth, elem, zero, |b, k| (x.load(b, row, k), w.load(b, k, column)));
    if let Some(bias) = bias {
        value = add_bias(b, bias, column, value);
    }
    y.write(b, (row, column), outputs, value)?;
    Ok(Emitted::one(k.finish()?))
}

/// Rows and columns of this program's tile of a result `[rows, columns]`.
pub(super) fn result_tile(b: &mut Builder, t: Tiling, rows: usize, columns: usize) -> (Axis, Axis) {
    let (row, column) = (b.program_id(0), b.program_id(1));
    (Axis::block(b, row, t.m, rows), Axis::block(b, column, t.n, columns))
}

/// A bias added to each row.
pub(super) fn add_bias(b: &mut Builder, bias: Buffer, column: Axis, value: Var) -> Var {
    let mask = column.mask(b);
    let row = b.load_float(bias, column.at, mask);
    let row = b.expand(row, 0);
    b.add(value, row)
}

/// `c = a·b`, or `c + a·b`: a launch of its own, `[m, k]` and `[k, n]` to `[m, n]` in rows.
pub(super) struct Product {
    tiled: Tiled,
    /// Whether the product is added to what `c` holds.
    adds: bool,
}

impl Product {
    pub(super) fn new(tiled: Tiled, adds: bool) -> Product {
        Product { tiled, adds }
    }

    /// A kernel that has its grid and no parameters yet.
    pub(super) fn kernel(&self, doc: &str) -> Kernel {
        Kernel::product(self.tiled.clone(), doc, 1)
    }

    /// What is done to `c`.
    pub(super) fn access(&self) -> Access {
        if self.adds { Access::ReadWrite } else { Access::Write }
    }

    /// The program's body.
    pub(super) fn write(&self, b: &mut Builder, x: Matrix, y: Matrix, c: Buffer) {
        let (t, s) = (self.tiled.tiling, &self.tiled.shape);
        let turned = [x.is_turned(), y.is_turned()];
        b.plain([s.m, s.n, s.k], 1, [x.buffer, y.buffer, c], turned, self.adds);
        let (row, column) = result_tile(b, t, s.m, s.n);
        let c = Matrix::rows(c, s.n);
        let start = if self.adds {
            let before = c.load(b, row, column);
            b.cast(before, Elem::F32)
        } else {
            b.full(0.0, &[t.m, t.n])
        };
        let depth = Depth::all(b, s.k, t.k);
        let value = sum_products(b, &depth, s.elem, start, |b, k| (x.load(b, row, k), y.load(b, k, column)));
        c.store(b, row, column, value);
    }
}
