//! `feature_alignment`: a program takes a tile of the projected features and compares it with the teacher's.

use super::products::{Depth, Matrix, fixed, result_tile, sum_products};
use super::sums::total;
use super::{EmitError, Emitted, Kernel, Operation};
use crate::tile::ir::{Access, Elem, Fold};

/// `Σ w · (P·hs − ht)²`.
pub(super) fn feature_alignment(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let (rows, inner, outer) = (o.inputs[0].rows(), o.inputs[0].last(), o.inputs[1].dims[0]);
    let t = fixed(rows, outer, inner, Elem::F32);
    let grid = [rows.div_ceil(t.m), outer.div_ceil(t.n), 1];
    let mut e = Emitted { workspaces: vec![(Elem::F32, grid[0] * grid[1])], ..Emitted::default() };
    let doc = "The sum of w · (hs · pᵀ − ht)² over a tile";
    let mut k = Kernel::new("feature_alignment", doc, grid, t.warps);
    let [hs, p, ht, w] = [(0, "hs"), (1, "p"), (2, "ht"), (3, "w")].map(|(i, name)| k.input(o, i, name));
    let partial = k.work(&e, 0, "partial", Access::Write);
    let b = &mut k.b;
    let (row, column) = result_tile(b, t, rows, outer);
    let zero = b.full(0.0, &[t.m, t.n]);
    let (hs, p) = (Matrix::rows(hs, inner), Matrix::rows(p, inner).transposed());
    let depth = Depth::all(b, inner, t.k);
    let projected =
        sum_products(b, &depth, Elem::F32, zero, |b, k| (hs.load(b, row, k), p.load(b, k, column)));
    let target = Matrix::rows(ht, outer).load(b, row, column);
    let target = b.cast(target, Elem::F32);
    let mask = row.mask(b);
    let weight = b.load(w, row.at, mask);
    // Outside the tensors both features are 0.
    let difference = b.sub(projected, target);
    let square = b.mul(difference, difference);
    let sums = b.reduce(Fold::Sum, square, 1);
    let terms = b.mul(sums, weight);
    let sum = b.reduce(Fold::Sum, terms, 0);
    let (x, y) = (b.program_id(0), b.program_id(1));
    let y = b.times(y, grid[0]);
    let at = b.add(x, y);
    b.store(partial, at, sum, None);
    e.launches.push(k.finish()?);
    let last = total("feature_alignment_total", o, &e, 0, 0)?;
    e.launches.push(last);
    Ok(e)
}
