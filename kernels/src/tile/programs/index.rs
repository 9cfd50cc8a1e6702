//! Operations that move rows to or from where another operand says.

use super::{EmitError, Emitted, Kernel, Operation, warps, width};
use crate::tile::ir::{Access, Compare, Var};
use crate::tile::{Buffer, Builder};

/// Elements of a tile of a row.
const TILE: usize = 1024;

/// Columns of this program's part of a row of `n` elements, and which of them there are.
fn columns(b: &mut Builder, n: usize) -> (Var, Option<Var>) {
    let w = width(n, TILE);
    let (pid, range) = (b.program_id(0), b.range(w));
    let start = b.times(pid, w);
    let column = b.add(range, start);
    (column, (!n.is_multiple_of(w)).then(|| b.below(column, n)))
}

/// A program for each part of each of `rows` rows of `n` elements, of each of `batch` sequences.
fn over_rows(name: &str, doc: &str, n: usize, rows: usize, batch: usize) -> Kernel {
    let w = width(n, TILE);
    Kernel::new(name, doc, [n.div_ceil(w).max(1), rows.max(1), batch.max(1)], warps(w))
}

/// Copies this program's part of row `from` to row `to`, where `only` holds.
fn copy_row(b: &mut Builder, n: usize, (x, from): (Buffer, Var), (y, to): (Buffer, Var), only: Option<Var>) {
    let (column, mut mask) = columns(b, n);
    if let Some(only) = only {
        let dims = b.ty(column).dims.clone();
        let only = b.splat(only, &dims);
        mask = Some(match mask {
            Some(mask) => b.and(mask, only),
            None => only,
        });
    }
    let (from, to) = (b.times(from, n), b.times(to, n));
    let (from, to) = (b.add(column, from), b.add(column, to));
    let value = b.load(x, from, mask);
    b.store(y, to, value, mask);
}

/// Rows `start[b]..start[b] + T` of the cache become those of `new`; the cache is the result's content.
pub(super) fn kv_append(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let (capacity, (batch, t, n)) = (o.inputs[0].dims[1], triple(&o.inputs[1].dims));
    let doc =
        "Row i of the new rows of sequence b becomes row start[b] + i of its cache, if there is such a row";
    let mut k = over_rows("kv_append", doc, n, t, batch);
    let (new, start) = (k.input(o, 1, "new"), k.input(o, 2, "start"));
    let cache = k.output(o, 0, "cache");
    let b = &mut k.b;
    let (i, sequence) = (b.program_id(1), b.program_id(2));
    let first = b.load(start, sequence, None);
    let row = b.add(first, i);
    let (zero, end) = (b.int(0), b.int(capacity));
    let (after, before) = (b.compare(Compare::Le, zero, row), b.compare(Compare::Lt, row, end));
    let fits = b.and(after, before);
    let (from, to) = (b.times(sequence, t), b.times(sequence, capacity));
    let (from, to) = (b.add(from, i), b.add(to, row));
    copy_row(b, n, (new, from), (cache, to), Some(fits));
    Ok(Emitted { updates: &[(0, 0)], ..Emitted::one(k.finish()?) })
}

/// Row `idx[b]` of each sequence.
pub(super) fn select_rows(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let (batch, t, n) = triple(&o.inputs[0].dims);
    let mut k = over_rows("select_rows", "Row idx[b] of each sequence b", n, 1, batch);
    let (x, idx, y) = (k.input(o, 0, "x"), k.input(o, 1, "idx"), k.output(o, 0, "y"));
    let b = &mut k.b;
    let sequence = b.program_id(2);
    let row = b.load(idx, sequence, None);
    let first = b.times(sequence, t);
    let from = b.add(first, row);
    copy_row(b, n, (x, from), (y, sequence), None);
    Ok(Emitted::one(k.finish()?))
}

fn triple(dims: &[usize]) -> (usize, usize, usize) {
    (dims[0], dims[1], dims[2])
}

/// Sums of rows by id, in order of the rows: zeros, then one program for each row and part of it. The program of an id's
/// first row adds up all rows of that id, those of others do nothing.
pub(super) fn scatter_add(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let (ids, n) = (o.inputs[0].elements(), o.outputs[0].last());
    let mut zeros = super::elementwise::flat("scatter_zeros", "Zeros", o.outputs[0].elements());
    let y = zeros.output(o, 0, "y");
    let (at, mask) = super::elementwise::tile(&mut zeros.b, o.outputs[0].elements());
    let zero = zeros.b.float(0.0);
    zeros.b.store(y, at, zero, mask);

    let doc = "The sum of all rows that have the id of row i, if i is the first of them";
    let mut k = over_rows("scatter_add", doc, n, ids, 1);
    let (list, rows) = (k.input(o, 0, "ids"), k.input(o, 1, "rows"));
    let y = k.bind(
        super::Arg::Output(0),
        0,
        "y",
        o.outputs[0].dtype.into(),
        o.outputs[0].elements(),
        Access::Write,
    );
    let b = &mut k.b;
    let (own, none, end) = (b.program_id(1), b.int(0), b.int(ids));
    let id = b.load(list, own, None);
    let earlier = earlier_equals(b, list, id, own, ids);
    let is_first = b.compare(Compare::Eq, earlier, none);
    // From the row itself if it is the first of its id, else nothing.
    let from = b.select(is_first, own, end);
    let (column, mask) = columns(b, n);
    let dims = b.ty(column).dims.clone();
    let zero = b.full(0.0, &dims);
    let sums = b.repeat(from, end, 1, &[zero], |b, row, sums| {
        let other = b.load(list, row, None);
        let same = b.compare(Compare::Eq, other, id);
        let same = b.splat(same, &dims);
        let mask = match mask {
            Some(mask) => b.and(mask, same),
            None => same,
        };
        let start = b.times(row, n);
        let index = b.add(column, start);
        let x = b.load_float(rows, index, Some(mask));
        vec![b.add(sums[0], x)]
    });
    let start = b.times(id, n);
    let index = b.add(column, start);
    let writes = b.splat(is_first, &dims);
    let writes = match mask {
        Some(mask) => b.and(mask, writes),
        None => writes,
    };
    b.store(y, index, sums[0], Some(writes));
    Ok(Emitted { launches: vec![zeros.finish()?, k.finish()?], ..Emitted::default() })
}

/// Whether one of the first `own` of `n` ids is `id`: 1, else 0.
fn earlier_equals(b: &mut Builder, list: Buffer, id: Var, own: Var, n: usize) -> Var {
    let w = width(n, TILE);
    let (range, zero, one) = (b.range(w), b.int(0), b.int(1));
    let none = b.splat(zero, &[w]);
    let found = b.repeat(zero, own, w, &[none], |b, at, found| {
        let index = b.add(range, at);
        let before = b.compare(Compare::Lt, index, own);
        let other = b.load(list, index, Some(before));
        let same = b.compare(Compare::Eq, other, id);
        let hit = b.and(same, before);
        vec![b.select(hit, one, found[0])]
    });
    b.reduce(crate::tile::ir::Fold::Max, found[0], 0)
}
