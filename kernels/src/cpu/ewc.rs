//! `ewc_delta` and its gradient: the penalty on the merged change `scale·B·A`, tile by tile; the change is never stored.

use crate::cpu::float::Dst;
use crate::cpu::reduce::axpy;
use crate::cpu::scratch::{self, Cut};
use crate::cpu::simd::simd;
use crate::cpu::{Call, Kernel, KernelError, gemm, par};
use kfc_graph::{Attrs, DType, TensorType};

/// Rows of a tile.
const ROWS: usize = 64;

/// Columns of a tile.
const COLUMNS: usize = 512;

#[derive(Clone, Copy)]
struct Delta {
    outputs: usize,
    inputs: usize,
    rank: usize,
    fisher: DType,
    scale: f32,
}

impl Delta {
    fn new(attrs: &Attrs, a: &TensorType, b: &TensorType, fisher: &TensorType) -> Result<Delta, KernelError> {
        Ok(Delta {
            outputs: b.dims[0],
            inputs: a.dims[1],
            rank: a.dims[0],
            fisher: fisher.dtype,
            scale: attrs.f64("scale")? as f32,
        })
    }

    /// Writes the tile of `scale·B·A` at `(i, j)`.
    fn tile(&self, a: &[f32], b: &[f32], (i, m): (usize, usize), (j, n): (usize, usize), tile: &mut [f32]) {
        let (b, a) = (&b[i * self.rank..], &a[j..]);
        debug_assert!(tile.len() >= m * n);
        // SAFETY: the tile lies within the product of the two operands.
        unsafe {
            gemm::kernel(
                m,
                n,
                self.rank,
                tile.as_mut_ptr(),
                n,
                false,
                b.as_ptr(),
                (self.rank, 1),
                a.as_ptr(),
                (self.inputs, 1),
                self.scale,
            );
        }
    }
}

/// `ewc_delta`: `½ Σ F (scale·B·A)²`.
pub(crate) struct EwcDelta(Delta);

impl EwcDelta {
    pub(crate) fn new(attrs: &Attrs, inputs: &[TensorType]) -> Result<EwcDelta, KernelError> {
        Delta::new(attrs, &inputs[0], &inputs[1], &inputs[2]).map(EwcDelta)
    }
}

impl Kernel for EwcDelta {
    unsafe fn run(&self, call: &Call<'_>) {
        let d = self.0;
        // SAFETY: by contract of `run`; the workspace has the size asked for.
        let (a, b, partials) = unsafe {
            (call.input::<f32>(0), call.input::<f32>(1), call.work::<f64>(0, d.outputs.div_ceil(ROWS)))
        };
        let fisher = call.src(2, d.fisher);
        let shared = par::Shared::new(partials);
        par::ranges(d.outputs, ROWS, |rows| {
            let (i, m) = (rows.start, rows.len());
            let total = scratch::with(ROWS * COLUMNS + COLUMNS, |s| {
                let mut cut = Cut(s);
                let (tile, f) = (cut.take(ROWS * COLUMNS), cut.take(COLUMNS));
                let mut total = 0.0;
                for j in (0..d.inputs).step_by(COLUMNS) {
                    let n = COLUMNS.min(d.inputs - j);
                    d.tile(a, b, (i, m), (j, n), tile);
                    for (r, row) in tile[..m * n].chunks_exact(n).enumerate() {
                        // SAFETY: in bounds.
                        total += weighted_squares(unsafe { fisher.read((i + r) * d.inputs + j, n, f) }, row);
                    }
                }
                total
            });
            // SAFETY: each partial sum is written by one task.
            unsafe { shared.slice(i / ROWS, 1)[0] = total }
        });
        // SAFETY: by contract of `run`; all tasks are done.
        unsafe {
            let total: f64 = call.work::<f64>(0, d.outputs.div_ceil(ROWS)).iter().sum();
            call.output::<f32>(0)[0] = (0.5 * total) as f32;
        }
    }

    fn workspace_bytes(&self) -> usize {
        self.0.outputs.div_ceil(ROWS) * size_of::<f64>()
    }
}

/// `ewc_delta_bwd`: one pass over the Fisher information gives both gradients and the penalty. Groups of rows add to
/// gradients of `A` and penalties of their own, which are then added in order.
pub(crate) struct EwcDeltaBwd {
    delta: Delta,
    /// Rows of a group, a multiple of [`ROWS`].
    group: usize,
}

impl EwcDeltaBwd {
    pub(crate) fn new(attrs: &Attrs, inputs: &[TensorType]) -> Result<EwcDeltaBwd, KernelError> {
        let delta = Delta::new(attrs, &inputs[1], &inputs[2], &inputs[3])?;
        Ok(EwcDeltaBwd { delta, group: delta.outputs.div_ceil(8).next_multiple_of(ROWS) })
    }

    fn groups(&self) -> usize {
        self.delta.outputs.div_ceil(self.group)
    }

    /// Room for a penalty of each group, in front of the gradients.
    fn penalty_bytes(&self) -> usize {
        (self.groups() * size_of::<f64>()).next_multiple_of(64)
    }

    /// Adds the rows of one tile to both gradients. The tile holds `d loss / d (B·A)`.
    fn add(
        &self,
        (i, m): (usize, usize),
        (j, n): (usize, usize),
        t: &[f32],
        ab: (&[f32], &[f32]),
        da: &mut [f32],
        db: Dst,
    ) {
        let Delta { inputs, rank, .. } = self.delta;
        let (a, b) = (&ab.0[j..], &ab.1[i * rank..]);
        // SAFETY: extents are within the operands; the rows of `db` belong to this group.
        unsafe {
            let db = db.raw::<f32>(i * rank, m * rank);
            gemm::kernel(
                m,
                rank,
                n,
                db.as_mut_ptr(),
                rank,
                j > 0,
                t.as_ptr(),
                (n, 1),
                a.as_ptr(),
                (1, inputs),
                1.0,
            );
            let da = da[j..].as_mut_ptr();
            gemm::kernel(rank, n, m, da, inputs, true, b.as_ptr(), (1, rank), t.as_ptr(), (n, 1), 1.0);
        }
    }
}

impl Kernel for EwcDeltaBwd {
    unsafe fn run(&self, call: &Call<'_>) {
        let d = self.delta;
        let part = d.rank * d.inputs;
        // SAFETY: by contract of `run`; the workspace has the size asked for.
        let (g, a, b, partials, penalties) = unsafe {
            let partials = call.work::<f32>(self.penalty_bytes(), self.groups() * part);
            let penalties = call.work::<f64>(0, self.groups());
            (call.input::<f32>(0)[0], call.input::<f32>(1), call.input::<f32>(2), partials, penalties)
        };
        let (fisher, db) = (call.src(3, d.fisher), call.dst(1, DType::F32));
        let (partials, penalties) = (par::Shared::new(partials), par::Shared::new(penalties));
        par::ranges(d.outputs, self.group, |rows| {
            let group = rows.start / self.group;
            // SAFETY: each partial gradient and penalty is written by one task.
            let (da, penalty) = unsafe { (partials.slice(group * part, part), penalties.slice(group, 1)) };
            da.fill(0.0);
            penalty[0] = 0.0;
            scratch::with(ROWS * COLUMNS + COLUMNS, |s| {
                let mut cut = Cut(s);
                let (tile, f) = (cut.take(ROWS * COLUMNS), cut.take(COLUMNS));
                let end = rows.end;
                for i in rows.step_by(ROWS) {
                    let m = ROWS.min(end - i);
                    for j in (0..d.inputs).step_by(COLUMNS) {
                        let n = COLUMNS.min(d.inputs - j);
                        d.tile(a, b, (i, m), (j, n), tile);
                        for (r, row) in tile[..m * n].chunks_exact_mut(n).enumerate() {
                            // SAFETY: in bounds.
                            let f = unsafe { fisher.read((i + r) * d.inputs + j, n, f) };
                            penalty[0] += weighted_squares(f, row);
                            multiply(g * d.scale, f, row);
                        }
                        self.add((i, m), (j, n), &tile[..m * n], (a, b), da, db);
                    }
                }
            });
        });
        // SAFETY: by contract of `run`; all tasks are done.
        unsafe {
            let (da, penalty) = (call.output::<f32>(0), call.output::<f32>(2));
            da.fill(0.0);
            let partials = call.work::<f32>(self.penalty_bytes(), self.groups() * part);
            partials.chunks_exact(part).for_each(|p| axpy(1.0, p, da));
            penalty[0] = (0.5 * call.work::<f64>(0, self.groups()).iter().sum::<f64>()) as f32;
        }
    }

    fn workspace_bytes(&self) -> usize {
        self.penalty_bytes() + self.groups() * self.delta.rank * self.delta.inputs * size_of::<f32>()
    }
}

simd! {
    /// `Σ f·t²`
    fn weighted_squares(f: &[f32], t: &[f32]) -> f64 {
        const LANES: usize = 16;
        let (pf, pt) = (f.chunks_exact(LANES), t.chunks_exact(LANES));
        let (rf, rt) = (pf.remainder(), pt.remainder());
        let mut acc = [0.0f32; LANES];
        for (f, t) in pf.zip(pt) {
            for l in 0..LANES {
                acc[l] += f[l] * (t[l] * t[l]);
            }
        }
        let rest: f64 = rf.iter().zip(rt).map(|(f, t)| f64::from(f * (t * t))).sum();
        acc.iter().map(|a| f64::from(*a)).sum::<f64>() + rest
    }

    /// `t *= factor · f`
    fn multiply(factor: f32, f: &[f32], t: &mut [f32]) {
        for (t, f) in t.iter_mut().zip(f) {
            *t *= factor * *f;
        }
    }
}
