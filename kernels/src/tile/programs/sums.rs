//! Sums over whole tensors and over rows, in two stages.

use super::{EmitError, Emitted, Kernel, Launch, Operation, warps, width};
use crate::tile::Builder;
use crate::tile::ir::{Access, Elem, Fold, Var};

/// Elements that one program adds up.
const PART: usize = 1 << 14;

/// Elements of a tile.
const TILE: usize = 1024;

/// Sums of the rows of workspace 0, `[rows, columns]`, in order, into result `j`.
pub(super) fn column_sums(
    name: &str,
    o: &Operation<'_>,
    e: &Emitted,
    rows: usize,
    columns: usize,
    j: usize,
) -> Result<Launch, EmitError> {
    let cols = width(columns, 256);
    let mut k =
        Kernel::new(name, "Sums of the partial sums, in order", [columns.div_ceil(cols), 1, 1], warps(cols));
    let partial = k.work(e, 0, "partial", Access::Read);
    let out = k.output(o, j, "sum");
    let b = &mut k.b;
    let (pid, range) = (b.program_id(0), b.range(cols));
    let start = b.times(pid, cols);
    let column = b.add(range, start);
    let mask = (!columns.is_multiple_of(cols)).then(|| b.below(column, columns));
    let zero = b.full(0.0, &[cols]);
    let (from, to) = (b.int(0), b.int(rows));
    let sums = b.repeat(from, to, 1, &[zero], |b, row, sums| {
        let at = b.times(row, columns);
        let index = b.add(column, at);
        let x = b.load(partial, index, mask);
        vec![b.add(sums[0], x)]
    });
    b.store(out, column, sums[0], mask);
    k.finish()
}

/// `½ Σ F·(θ−θ*)²`.
pub(super) fn ewc_penalty(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let n = o.inputs[0].elements();
    let parts = n.div_ceil(PART);
    let mut e = Emitted { launches: Vec::new(), workspaces: vec![(Elem::F32, parts)] };
    let tile = width(n, TILE);
    let doc = "Sums of ½ · fisher · (theta − anchor)² over parts of the tensor";
    let mut k = Kernel::new("ewc_penalty", doc, [parts, 1, 1], warps(tile));
    let [theta, fisher, anchor] =
        [(0, "theta"), (1, "fisher"), (2, "anchor")].map(|(i, name)| k.input(o, i, name));
    let partial = k.work(&e, 0, "partial", Access::Write);
    part(&mut k.b, n, tile, partial, |b, index, mask| {
        let [t, f, a] = [theta, fisher, anchor].map(|p| b.load_float(p, index, mask));
        let d = b.sub(t, a);
        let d2 = b.mul(d, d);
        let half = b.float(0.5);
        let f = b.mul(f, half);
        b.mul(f, d2)
    });
    e.launches.push(k.finish()?);
    let last = column_sums("ewc_penalty_sum", o, &e, parts, 1, 0)?;
    e.launches.push(last);
    Ok(e)
}

/// Adds up the terms of this program's part of `n` elements and stores the sum in `partial`.
fn part(
    b: &mut Builder,
    n: usize,
    tile: usize,
    partial: crate::tile::Buffer,
    terms: impl FnOnce(&mut Builder, Var, Option<Var>) -> Var,
) {
    let (pid, range) = (b.program_id(0), b.range(tile));
    let first = b.times(pid, PART);
    let (size, all) = (b.int(PART), b.int(n));
    let last = b.add(first, size);
    let last = b.binary(crate::tile::ir::Binary::Min, last, all);
    let zero = b.full(0.0, &[tile]);
    let sums = b.repeat(first, last, tile, &[zero], |b, at, sums| {
        let index = b.add(range, at);
        let mask = (!n.is_multiple_of(tile)).then(|| b.below(index, n));
        let terms = terms(b, index, mask);
        vec![b.add(sums[0], terms)]
    });
    let sum = b.reduce(Fold::Sum, sums[0], 0);
    b.store(partial, pid, sum, None);
}
