//! Sums over whole tensors and over rows, in two stages.

use super::{EmitError, Emitted, Kernel, Launch, Operation, warps, width};
use crate::tile::Builder;
use crate::tile::ir::{Access, Binary, Elem, Fold, Var};

/// Elements that one program adds up.
const PART: usize = 1 << 14;

/// Elements of a tile.
const TILE: usize = 1024;

/// Sums of the rows of workspace `work`, `[rows, columns]`, in order, into result `j`.
pub(super) fn column_sums(
    name: &str,
    o: &Operation<'_>,
    e: &Emitted,
    work: usize,
    rows: usize,
    columns: usize,
    j: usize,
) -> Result<Launch, EmitError> {
    let cols = width(columns, 256);
    let mut k =
        Kernel::new(name, "Sums of the partial sums, in order", [columns.div_ceil(cols), 1, 1], warps(cols));
    let partial = k.work(e, work, "partial", Access::Read);
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

/// The sum of all elements of workspace `work`, in an order that their number fixes, into result `j`: one program.
pub(super) fn total(
    name: &str,
    o: &Operation<'_>,
    e: &Emitted,
    work: usize,
    j: usize,
) -> Result<Launch, EmitError> {
    let n = e.workspaces[work].1;
    let tile = width(n, TILE);
    let mut k = Kernel::new(name, "The sum of the partial sums", [1, 1, 1], warps(tile));
    let partial = k.work(e, work, "partial", Access::Read);
    let out = k.output(o, j, "sum");
    let b = &mut k.b;
    let (from, to) = (b.int(0), b.int(n));
    let sum = sum_of(b, (from, to), n, tile, |b, index, mask| b.load(partial, index, mask));
    let zero = b.int(0);
    b.store(out, zero, sum, None);
    k.finish()
}

/// `½ Σ F·(θ−θ*)²`.
pub(super) fn ewc_penalty(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let doc = "Sums of ½ · fisher · (theta − anchor)² over parts of the tensor";
    sum_all(o, "ewc_penalty", doc, |k, o| {
        let names = [(0, "theta"), (1, "fisher"), (2, "anchor")];
        let [theta, fisher, anchor] = names.map(|(i, name)| k.input(o, i, name));
        Box::new(move |b, index, mask| {
            let [t, f, a] = [theta, fisher, anchor].map(|p| b.load_float(p, index, mask));
            let d = b.sub(t, a);
            let d2 = b.mul(d, d);
            let half = b.float(0.5);
            let f = b.mul(f, half);
            b.mul(f, d2)
        })
    })
}

/// `Σ x²`.
pub(super) fn sum_squares(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    sum_all(o, "sum_squares", "Sums of x² over parts of the tensor", |k, o| {
        let x = k.input(o, 0, "x");
        Box::new(move |b, index, mask| {
            let x = b.load_float(x, index, mask);
            b.mul(x, x)
        })
    })
}

/// `Σ x`.
pub(super) fn sum_elements(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    sum_all(o, "sum", "Sums of x over parts of the tensor", |k, o| {
        let x = k.input(o, 0, "x");
        Box::new(move |b, index, mask| b.load_float(x, index, mask))
    })
}

/// Writes the terms of a sum at these indices, 0 where the mask does not hold.
type Terms = Box<dyn FnOnce(&mut Builder, Var, Option<Var>) -> Var>;

/// A sum over the elements of operand 0 into result 0, a scalar: parts of it, then their sum.
fn sum_all(
    o: &Operation<'_>,
    name: &str,
    doc: &str,
    operands: impl FnOnce(&mut Kernel, &Operation<'_>) -> Terms,
) -> Result<Emitted, EmitError> {
    let n = o.inputs[0].elements();
    let parts = n.div_ceil(PART);
    let mut e = Emitted { workspaces: vec![(Elem::F32, parts)], ..Emitted::default() };
    let tile = width(n, TILE);
    let mut k = Kernel::new(name, doc, [parts, 1, 1], warps(tile));
    let terms = operands(&mut k, o);
    let partial = k.work(&e, 0, "partial", Access::Write);
    let b = &mut k.b;
    let pid = b.program_id(0);
    let from = b.times(pid, PART);
    let (size, all) = (b.int(PART), b.int(n));
    let to = b.add(from, size);
    let to = b.binary(Binary::Min, to, all);
    let sum = sum_of(b, (from, to), n, tile, terms);
    b.store(partial, pid, sum, None);
    e.launches.push(k.finish()?);
    let last = total(&format!("{name}_total"), o, &e, 0, 0)?;
    e.launches.push(last);
    Ok(e)
}

/// The sum of terms at the indices `from..to` of `n`, taken in tiles.
fn sum_of(
    b: &mut Builder,
    (from, to): (Var, Var),
    n: usize,
    tile: usize,
    terms: impl FnOnce(&mut Builder, Var, Option<Var>) -> Var,
) -> Var {
    let (range, zero) = (b.range(tile), b.full(0.0, &[tile]));
    let sums = b.repeat(from, to, tile, &[zero], |b, at, sums| {
        let index = b.add(range, at);
        let mask = (!n.is_multiple_of(tile)).then(|| b.below(index, n));
        let terms = terms(b, index, mask);
        vec![b.add(sums[0], terms)]
    });
    b.reduce(Fold::Sum, sums[0], 0)
}
