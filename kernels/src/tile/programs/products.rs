//! Matrix products: a program takes a tile of the result.

use super::{EmitError, Emitted, Kernel, Operation};
use crate::tile::Builder;
use crate::tile::ir::{Elem, Var};

/// Extents of a tile of the result, and of the depth taken at once.
const M: usize = 64;
const N: usize = 64;
const K: usize = 32;

/// `y = x·Wᵀ (+ bias)`.
pub(super) fn linear(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let (rows, inputs, outputs) = (o.inputs[0].rows(), o.inputs[0].last(), o.inputs[1].dims[0]);
    let has_bias = o.inputs.len() > 2;
    let doc = "A tile of y = x · wᵀ (+ bias), summed in f32";
    let mut k = Kernel::new("linear", doc, [rows.div_ceil(M), outputs.div_ceil(N), 1], 4);
    let (x, w) = (k.input(o, 0, "x"), k.input(o, 1, "w"));
    let bias = has_bias.then(|| k.input(o, 2, "bias"));
    let y = k.output(o, 0, "y");
    // A product of two types is taken in f32.
    let elem = if o.inputs[0].dtype == o.inputs[1].dtype { Elem::from(o.inputs[0].dtype) } else { Elem::F32 };
    let b = &mut k.b;
    let (row, column) = (b.program_id(0), b.program_id(1));
    let (row, column) = (positions(b, row, M), positions(b, column, N));
    let depth = b.range(K);
    let zero = b.full(0.0, &[M, N]);
    let (from, to) = (b.int(0), b.int(inputs));
    let sums = b.repeat(from, to, K, &[zero], |b, at, sums| {
        let k = b.add(depth, at);
        let a = matrix(b, x, (row, rows), (k, inputs), (inputs, 1));
        let w = matrix(b, w, (k, inputs), (column, outputs), (1, inputs));
        let (a, w) = (b.cast(a, elem), b.cast(w, elem));
        vec![b.dot(a, w, sums[0])]
    });
    let mut value = sums[0];
    if let Some(bias) = bias {
        let mask = b.below(column, outputs);
        let row = b.load_float(bias, column, Some(mask));
        let row = b.expand(row, 0);
        value = b.add(value, row);
    }
    let (index, mask) = place(b, (row, rows), (column, outputs), (outputs, 1));
    b.store(y, index, value, Some(mask));
    Ok(Emitted { launches: vec![k.finish()?], workspaces: Vec::new() })
}

/// Positions `block · n + 0..n`.
fn positions(b: &mut Builder, block: Var, n: usize) -> Var {
    let (range, start) = (b.range(n), b.times(block, n));
    b.add(range, start)
}

/// Indices of elements `(i, j)` of a matrix with these strides, and whether they exist: `i` and `j` come with limits.
fn place(b: &mut Builder, i: (Var, usize), j: (Var, usize), strides: (usize, usize)) -> (Var, Var) {
    let (mi, mj) = (b.below(i.0, i.1), b.below(j.0, j.1));
    let (mi, mj) = (b.expand(mi, 1), b.expand(mj, 0));
    let (i, j) = (b.times(i.0, strides.0), b.times(j.0, strides.1));
    let (i, j) = (b.expand(i, 1), b.expand(j, 0));
    (b.add(i, j), b.and(mi, mj))
}

/// Elements of a matrix, 0 outside.
fn matrix(
    b: &mut Builder,
    buffer: crate::tile::Buffer,
    i: (Var, usize),
    j: (Var, usize),
    strides: (usize, usize),
) -> Var {
    let (index, mask) = place(b, i, j, strides);
    b.load(buffer, index, Some(mask))
}
