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
    let sums = sums_of(b, (from, to), (n, tile), 1, |b, index, mask| vec![b.load(partial, index, mask)]);
    let zero = b.int(0);
    b.store(out, zero, sums[0], None);
    k.finish()
}

/// `½ Σ F·(θ−θ*)²`.
pub(super) fn ewc_penalty(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let doc = "Sums of ½ · fisher · (theta − anchor)² over parts of the tensor";
    sum_all(o, "ewc_penalty", doc, &[0], 1, &|k, i| {
        let names = [(0, "theta"), (1, "fisher"), (2, "anchor")];
        let [theta, fisher, anchor] = names.map(|(at, name)| k.input(o, i + at, name));
        Box::new(move |b, index, mask| {
            let [t, f, a] = [theta, fisher, anchor].map(|p| b.load_float(p, index, mask));
            let d = b.sub(t, a);
            vec![half_weighted_square(b, f, d)]
        })
    })
}

/// `Σ (g + weight·F·(θ−θ*))²` and `½ Σ F·(θ−θ*)²` over a list of parameters.
pub(super) fn penalised_norm(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let doc = "Sums of (g + weight · fisher · (theta − anchor))² and of ½ · fisher · (theta − anchor)² over parts of a parameter";
    let first: Vec<usize> = (1..o.inputs.len()).step_by(4).collect();
    sum_all(o, "penalised_norm", doc, &first, 2, &|k, i| {
        let weight = k.input(o, 0, "weight");
        let names = [(0, "g"), (1, "theta"), (2, "fisher"), (3, "anchor")];
        let buffers = names.map(|(at, name)| k.input(o, i + at, name));
        Box::new(move |b, index, mask| {
            let zero = b.int(0);
            let weight = b.load(weight, zero, None);
            let [g, t, f, a] = buffers.map(|p| b.load_float(p, index, mask));
            let d = b.sub(t, a);
            let pull = b.mul(f, d);
            let pull = b.mul(pull, weight);
            let g = b.add(g, pull);
            vec![b.mul(g, g), half_weighted_square(b, f, d)]
        })
    })
}

/// `½·F·d²`
fn half_weighted_square(b: &mut Builder, fisher: Var, d: Var) -> Var {
    let d2 = b.mul(d, d);
    let half = b.float(0.5);
    let fisher = b.mul(fisher, half);
    b.mul(fisher, d2)
}

/// `Σ x²` over a list of tensors.
pub(super) fn sum_squares(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let all: Vec<usize> = (0..o.inputs.len()).collect();
    sum_all(o, "sum_squares", "Sums of x² over parts of a tensor", &all, 1, &|k, i| {
        let x = k.input(o, i, "x");
        Box::new(move |b, index, mask| {
            let x = b.load_float(x, index, mask);
            vec![b.mul(x, x)]
        })
    })
}

/// `Σ x`.
pub(super) fn sum_elements(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    sum_all(o, "sum", "Sums of x over parts of the tensor", &[0], 1, &|k, i| {
        let x = k.input(o, i, "x");
        Box::new(move |b, index, mask| vec![b.load_float(x, index, mask)])
    })
}

/// Writes the terms of sums at these indices, 0 where the mask does not hold.
type Terms = Box<dyn FnOnce(&mut Builder, Var, Option<Var>) -> Vec<Var>>;

/// Binds the operands of the tensor whose first operand is this one.
type Operands<'a> = dyn Fn(&mut Kernel, usize) -> Terms + 'a;

/// Sums over the elements of a list of tensors into results 0, 1, .., all scalars: parts of each tensor, then the sums of
/// these in order. `first` says where the operands of each tensor begin.
fn sum_all(
    o: &Operation<'_>,
    name: &str,
    doc: &str,
    first: &[usize],
    results: usize,
    operands: &Operands<'_>,
) -> Result<Emitted, EmitError> {
    // Partial sums of a tensor begin at a multiple of 16 bytes; those without elements are 0.
    let parts = |&i: &usize| {
        o.inputs[i].elements().div_ceil(PART).next_multiple_of(if first.len() > 1 { 4 } else { 1 })
    };
    let all: usize = first.iter().map(parts).sum();
    let mut e = Emitted { workspaces: vec![(Elem::F32, all); results], ..Emitted::default() };
    let mut start = 0;
    for i in first {
        let (n, parts) = (o.inputs[*i].elements(), parts(i));
        let tile = width(n, TILE);
        let mut k = Kernel::new(name, doc, [parts, 1, 1], warps(tile));
        let terms = operands(&mut k, *i);
        let partials: Vec<_> = (0..results)
            .map(|j| {
                let name = ["partial", "partial_1"][j.min(1)];
                k.work_part(&e, j, name, start, parts, Access::Write)
            })
            .collect();
        let b = &mut k.b;
        let pid = b.program_id(0);
        let from = b.times(pid, PART);
        let (size, all) = (b.int(PART), b.int(n));
        let to = b.add(from, size);
        let to = b.binary(Binary::Min, to, all);
        let sums = sums_of(b, (from, to), (n, tile), results, terms);
        for (partial, sum) in partials.into_iter().zip(sums) {
            b.store(partial, pid, sum, None);
        }
        e.launches.push(k.finish()?);
        start += parts;
    }
    for j in 0..results {
        let last = total(&format!("{name}_total"), o, &e, j, j)?;
        e.launches.push(last);
    }
    Ok(e)
}

/// `count` sums of terms at the indices `from..to` of `n`, taken in tiles.
fn sums_of(
    b: &mut Builder,
    (from, to): (Var, Var),
    (n, tile): (usize, usize),
    count: usize,
    terms: impl FnOnce(&mut Builder, Var, Option<Var>) -> Vec<Var>,
) -> Vec<Var> {
    let (range, zero) = (b.range(tile), b.full(0.0, &[tile]));
    let sums = b.repeat(from, to, tile, &vec![zero; count], |b, at, sums| {
        let index = b.add(range, at);
        let mask = (!n.is_multiple_of(tile)).then(|| b.below(index, n));
        let terms = terms(b, index, mask);
        sums.iter().zip(terms).map(|(&sum, term)| b.add(sum, term)).collect()
    });
    sums.into_iter().map(|sum| b.reduce(Fold::Sum, sum, 0)).collect()
}
