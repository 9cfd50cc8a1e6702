//! `layer_norm`, `rms_norm` and its gradient: a program takes a row.

use super::row::{Row, TILE};
use super::sums::column_sums;
use super::{EmitError, Emitted, Kernel, Operation, warps, width};
use crate::tile::ir::{Access, Elem, Unary, Var};
use crate::tile::{Buffer, Builder};

/// Rows whose products one program adds up for the gradient of the weight.
const ROWS: usize = 64;

/// `y = (x − mean)/√(var + eps) · w + bias`
pub(super) fn layer_norm(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let (x, eps) = (&o.inputs[0], o.attrs.f64("eps")? as f32);
    let h = x.last();
    let doc = "A row: y = (x − mean)/sqrt(var + eps) · w + bias";
    let mut k = Kernel::new("layer_norm", doc, [x.rows(), 1, 1], warps(width(h, TILE)));
    let [x, w, bias] = [(0, "x"), (1, "w"), (2, "bias")].map(|(i, name)| k.input(o, i, name));
    let y = k.output(o, 0, "y");
    let b = &mut k.b;
    let row = Row::new(b, h);
    let n = b.float(h as f32);
    let sum = row.sum(b, |b, _, index, mask| b.load_float(x, index, mask));
    let mean = b.div(sum, n);
    let squares = row.sum(b, |b, _, index, mask| {
        let x = b.load_float(x, index, mask);
        let centred = b.sub(x, mean);
        let square = b.mul(centred, centred);
        // Beyond the row there is no element, but a mean.
        match mask {
            Some(mask) => {
                let zero = b.full(0.0, &[row.width]);
                b.select(mask, square, zero)
            }
            None => square,
        }
    });
    let variance = b.div(squares, n);
    let (eps, one) = (b.float(eps), b.float(1.0));
    let shifted = b.add(variance, eps);
    let root = b.unary(Unary::Sqrt, shifted);
    let scale = b.div(one, root);
    row.tiles(b, &[], |b, column, index, mask, _| {
        let x = b.load_float(x, index, mask);
        let [w, bias] = [w, bias].map(|p: Buffer| b.load_float(p, column, mask));
        let centred = b.sub(x, mean);
        let xhat = b.mul(centred, scale);
        let scaled = b.mul(xhat, w);
        let value = b.add(scaled, bias);
        b.store(y, index, value, mask);
        Vec::new()
    });
    Ok(Emitted { launches: vec![k.finish()?], ..Emitted::default() })
}

/// `y = x · rstd · w`, `rstd = 1/√(mean(x²) + eps)`.
pub(super) fn rms_norm(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let (x, eps) = (&o.inputs[0], o.attrs.f64("eps")? as f32);
    let h = x.last();
    let doc = "A row: y = x · rstd · w with rstd = 1/sqrt(mean(x²) + eps)";
    let mut k = Kernel::new("rms_norm", doc, [x.rows(), 1, 1], warps(width(h, TILE)));
    let (x, w) = (k.input(o, 0, "x"), k.input(o, 1, "w"));
    let (y, rstd) = (k.output(o, 0, "y"), k.output(o, 1, "rstd"));
    let b = &mut k.b;
    let row = Row::new(b, h);
    let sum = row.sum(b, |b, _, index, mask| {
        let x = b.load_float(x, index, mask);
        b.mul(x, x)
    });
    let (n, eps, one) = (b.float(h as f32), b.float(eps), b.float(1.0));
    let mean = b.div(sum, n);
    let shifted = b.add(mean, eps);
    let root = b.unary(Unary::Sqrt, shifted);
    let scale = b.div(one, root);
    let pid = b.program_id(0);
    b.store(rstd, pid, scale, None);
    row.tiles(b, &[], |b, column, index, mask, _| {
        let (x, w) = (b.load_float(x, index, mask), b.load_float(w, column, mask));
        let xhat = b.mul(x, scale);
        let value = b.mul(xhat, w);
        b.store(y, index, value, mask);
        Vec::new()
    });
    Ok(Emitted { launches: vec![k.finish()?], ..Emitted::default() })
}

/// `dx = rstd · (dy·w − x̂ · mean(dy·w·x̂))`, and `dw = Σ dy·x̂` over rows.
pub(super) fn rms_norm_bwd(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let x = &o.inputs[1];
    let (rows, h) = (x.rows(), x.last());
    let doc = "A row: dx = rstd · (dy·w − x̂ · mean(dy·w·x̂)) with x̂ = x · rstd";
    let mut k = Kernel::new("rms_norm_bwd", doc, [rows, 1, 1], warps(width(h, TILE)));
    let [dy, x, w, rstd] = [(0, "dy"), (1, "x"), (2, "w"), (3, "rstd")].map(|(i, name)| k.input(o, i, name));
    let dx = k.output(o, 0, "dx");
    let b = &mut k.b;
    let row = Row::new(b, h);
    let pid = b.program_id(0);
    let scale = b.load(rstd, pid, None);
    let parts = |b: &mut Builder, column: Var, index: Var, mask: Option<Var>| {
        let [dy, x] = [dy, x].map(|p: Buffer| b.load_float(p, index, mask));
        let w = b.load_float(w, column, mask);
        (b.mul(dy, w), b.mul(x, scale))
    };
    let sum = row.sum(b, |b, column, index, mask| {
        let (dxhat, xhat) = parts(b, column, index, mask);
        b.mul(dxhat, xhat)
    });
    let n = b.float(h as f32);
    let mean = b.div(sum, n);
    row.tiles(b, &[], |b, column, index, mask, _| {
        let (dxhat, xhat) = parts(b, column, index, mask);
        let along = b.mul(xhat, mean);
        let across = b.sub(dxhat, along);
        let value = b.mul(across, scale);
        b.store(dx, index, value, mask);
        Vec::new()
    });
    let mut e = Emitted { launches: vec![k.finish()?], ..Emitted::default() };
    if o.attrs.bool("need_dw")? {
        weight_gradient(o, &mut e, rows, h)?;
    }
    Ok(e)
}

/// Adds the programs of `dw`: sums over runs of rows, then over these.
fn weight_gradient(o: &Operation<'_>, e: &mut Emitted, rows: usize, h: usize) -> Result<(), EmitError> {
    let runs = rows.div_ceil(ROWS);
    e.workspaces.push((Elem::F32, runs * h));
    let cols = width(h, 256);
    let doc = "Sums of dy · x · rstd over a run of rows, for some columns";
    let mut k = Kernel::new("rms_norm_bwd_dw", doc, [h.div_ceil(cols), runs, 1], warps(cols));
    let [dy, x, rstd] = [(0, "dy"), (1, "x"), (3, "rstd")].map(|(i, name)| k.input(o, i, name));
    let partial = k.work(e, 0, "partial", Access::Write);
    let b = &mut k.b;
    let (pid, run, range) = (b.program_id(0), b.program_id(1), b.range(cols));
    let start = b.times(pid, cols);
    let column = b.add(range, start);
    let mask = (!h.is_multiple_of(cols)).then(|| b.below(column, h));
    let first = b.times(run, ROWS);
    let (many, all) = (b.int(ROWS), b.int(rows));
    let last = b.add(first, many);
    let last = b.binary(crate::tile::ir::Binary::Min, last, all);
    let zero = b.full(0.0, &[cols]);
    let sums = b.repeat(first, last, 1, &[zero], |b, row, sums| {
        let at = b.times(row, h);
        let index = b.add(column, at);
        let [dy, x] = [dy, x].map(|p| b.load_float(p, index, mask));
        let scale = b.load(rstd, row, None);
        let xhat = b.mul(x, scale);
        let term = b.mul(dy, xhat);
        vec![b.add(sums[0], term)]
    });
    let at = b.times(run, h);
    let index = b.add(column, at);
    b.store(partial, index, sums[0], mask);
    e.launches.push(k.finish()?);
    let last = column_sums("rms_norm_bwd_dw_sum", o, e, 0, runs, h, 1)?;
    e.launches.push(last);
    Ok(())
}
