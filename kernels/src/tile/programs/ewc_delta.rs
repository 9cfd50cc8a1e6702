//! `ewc_delta` and its gradient: tiles of the change `scale·B·A` are made and used, never stored.

use super::products::{Axis, Depth, Matrix, extent, fixed, result_tile, sum_products};
use super::sums::{column_sums, total};
use super::{EmitError, Emitted, Kernel, Operation};
use crate::tile::ir::{Access, Binary, Elem, Fold, Var};
use crate::tile::{Builder, Tiling};

/// Rows or columns of the weight that one program of the gradient goes through.
const RUN: usize = 1024;

/// Positions of operands, and extents.
struct Delta {
    a: usize,
    b: usize,
    fisher: usize,
    rank: usize,
    inputs: usize,
    outputs: usize,
    scale: f32,
}

impl Delta {
    fn new(o: &Operation<'_>, first: usize) -> Result<Delta, EmitError> {
        let (a, b) = (&o.inputs[first], &o.inputs[first + 1]);
        Ok(Delta {
            a: first,
            b: first + 1,
            fisher: first + 2,
            rank: a.dims[0],
            inputs: a.dims[1],
            outputs: b.dims[0],
            scale: o.attrs.f64("scale")? as f32,
        })
    }

    fn tiles(&self) -> Tiling {
        let t = fixed(self.outputs, self.inputs, self.rank, Elem::F32);
        // Triton 3.6 fails on products of 64 rows that are reduced at once where they stand in tensor memory (sm_100).
        Tiling { m: t.m.min(32), ..t }
    }

    /// Parameters a, b and fisher.
    fn operands(&self, k: &mut Kernel, o: &Operation<'_>) -> [Matrix; 3] {
        let (a, b) = (k.input(o, self.a, "a"), k.input(o, self.b, "b"));
        let fisher = k.input(o, self.fisher, "fisher");
        [Matrix::rows(a, self.inputs), Matrix::rows(b, self.rank), Matrix::rows(fisher, self.inputs)]
    }

    /// A tile of the change.
    fn change(&self, b: &mut Builder, [lora_a, lora_b, _]: [Matrix; 3], row: Axis, column: Axis) -> Var {
        let t = self.tiles();
        let zero = b.full(0.0, &[t.m, t.n]);
        let depth = Depth::all(b, self.rank, t.k);
        let product = sum_products(b, &depth, Elem::F32, zero, |b, k| {
            (lora_b.load(b, row, k), lora_a.load(b, k, column))
        });
        let scale = b.float(self.scale);
        b.mul(product, scale)
    }
}

/// `½ Σ F·(scale·B·A)²`.
pub(super) fn ewc_delta(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let mut e = Emitted::default();
    penalty(o, &mut e, 0, 0)?;
    Ok(e)
}

/// Adds the launches of the penalty, result `j`; operands begin at `first`.
fn penalty(o: &Operation<'_>, e: &mut Emitted, first: usize, j: usize) -> Result<(), EmitError> {
    let d = Delta::new(o, first)?;
    let t = d.tiles();
    let grid = [d.outputs.div_ceil(t.m), d.inputs.div_ceil(t.n), 1];
    e.workspaces.push((Elem::F32, grid[0] * grid[1]));
    let work = e.workspaces.len() - 1;
    let doc = "The sum of ½ · fisher · (scale · b · a)² over a tile";
    let mut k = Kernel::new("ewc_delta", doc, grid, t.warps);
    let operands = d.operands(&mut k, o);
    let partial = k.work(e, work, "partial", Access::Write);
    let b = &mut k.b;
    let (row, column) = result_tile(b, t, d.outputs, d.inputs);
    let change = d.change(b, operands, row, column);
    let fisher = operands[2].load(b, row, column);
    let fisher = b.cast(fisher, Elem::F32);
    let half = b.float(0.5);
    let fisher = b.mul(fisher, half);
    let square = b.mul(change, change);
    let term = b.mul(fisher, square);
    let sums = b.reduce(Fold::Sum, term, 1);
    let sum = b.reduce(Fold::Sum, sums, 0);
    let (x, y) = (b.program_id(0), b.program_id(1));
    let y = b.times(y, grid[0]);
    let at = b.add(x, y);
    b.store(partial, at, sum, None);
    e.launches.push(k.finish()?);
    let last = total("ewc_delta_total", o, e, work, j)?;
    e.launches.push(last);
    Ok(())
}

/// `da = bᵀ·d`, `db = d·aᵀ` with `d = g · scale · F·(scale·b·a)`: each goes through the other extent in runs. Also the
/// penalty, by the programs of [`ewc_delta`].
pub(super) fn ewc_delta_bwd(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let mut e = Emitted::default();
    gradient(o, &mut e, 0)?;
    gradient(o, &mut e, 1)?;
    penalty(o, &mut e, 1, 2)?;
    Ok(e)
}

/// Adds the launches of result `j`: 0 is da, 1 is db.
fn gradient(o: &Operation<'_>, e: &mut Emitted, j: usize) -> Result<(), EmitError> {
    let d = Delta::new(o, 1)?;
    let (t, rank) = (d.tiles(), extent(d.rank, 64));
    // The extent that the result has beside the rank, with its tile, and the one that is summed over.
    let (kept, tile, summed, step) =
        if j == 0 { (d.inputs, t.n, d.outputs, t.m) } else { (d.outputs, t.m, d.inputs, t.n) };
    let (name, doc) = if j == 0 {
        (
            "ewc_delta_da",
            "A tile of da = bᵀ · d over a run of rows of d = g · scale · fisher · (scale · b · a)",
        )
    } else {
        (
            "ewc_delta_db",
            "A tile of db = d · aᵀ over a run of columns of d = g · scale · fisher · (scale · b · a)",
        )
    };
    let runs = summed.div_ceil(RUN);
    let mut k = Kernel::new(name, doc, [kept.div_ceil(tile), d.rank.div_ceil(rank), runs], 8);
    let g = k.input(o, 0, "g");
    let operands = d.operands(&mut k, o);
    let out = if runs == 1 {
        k.output(o, j, "sum")
    } else {
        e.workspaces.push((Elem::F32, runs * kept * d.rank));
        k.work(e, e.workspaces.len() - 1, "partial", Access::Write)
    };
    let b = &mut k.b;
    let (block, ranks, run) = (b.program_id(0), b.program_id(1), b.program_id(2));
    let (kept_at, rank_at) = (Axis::block(b, block, tile, kept), Axis::block(b, ranks, rank, d.rank));
    let zero = b.int(0);
    let (g, scale) = (b.load(g, zero, None), b.float(d.scale));
    let factor = b.mul(g, scale);
    let from = b.times(run, RUN);
    let (size, end) = (b.int(RUN), b.int(summed));
    let to = b.add(from, size);
    let to = b.binary(Binary::Min, to, end);
    let dims = if j == 0 { [rank, tile] } else { [tile, rank] };
    let start = b.full(0.0, &dims);
    let sums = b.repeat(from, to, step, &[start], |b, at, sums| {
        let over = Axis::from(b, at, step, summed);
        let (row, column) = if j == 0 { (over, kept_at) } else { (kept_at, over) };
        let change = d.change(b, operands, row, column);
        let fisher = operands[2].load(b, row, column);
        let fisher = b.cast(fisher, Elem::F32);
        let weighted = b.mul(fisher, change);
        let weighted = b.mul(weighted, factor);
        vec![if j == 0 {
            let lora_b = operands[1].transposed().load(b, rank_at, over);
            b.dot(lora_b, weighted, sums[0])
        } else {
            let lora_a = operands[0].transposed().load(b, over, rank_at);
            b.dot(weighted, lora_a, sums[0])
        }]
    });
    let base = b.times(run, kept * d.rank);
    if j == 0 {
        Matrix { base: Some(base), ..Matrix::rows(out, kept) }.store(b, rank_at, kept_at, sums[0]);
    } else {
        Matrix { base: Some(base), ..Matrix::rows(out, d.rank) }.store(b, kept_at, rank_at, sums[0]);
    }
    e.launches.push(k.finish()?);
    if runs > 1 {
        let work = e.workspaces.len() - 1;
        let last = column_sums(&format!("{name}_sum"), o, e, work, runs, kept * d.rank, j)?;
        e.launches.push(last);
    }
    Ok(())
}
