//! `ewc_delta` and its gradient: the penalty on the merged change `scale·B·A`, tile by tile; the change is never stored.

mod block;

use crate::cpu::elem::{Elem, of_type};
use crate::cpu::float::Src;
use crate::cpu::reduce::axpy;
use crate::cpu::scratch;
use crate::cpu::simd::{prefetch, simd};
use crate::cpu::{Call, Kernel, KernelError, par};
use block::{Block, ROWS, Tile};
use kfc_graph::{Attrs, DType, TensorType};

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

    /// Multiplies a tile at `(i, j)` by `factor` and its Fisher information, if there is a factor; returns `Σ F·change²`.
    ///
    /// # Safety
    /// As [`Kernel::run`]: `fisher` has the extents of the change.
    unsafe fn weigh(&self, fisher: Src, (i, j): (usize, usize), tile: Tile<'_>, factor: Option<f32>) -> f64 {
        let (start, stride) = (i * self.inputs + j, self.inputs);
        let n = (tile.floats.len() / tile.width - 1) * stride + tile.columns;
        of_type!(self.fisher, T => {
            // SAFETY: by contract.
            let fisher = unsafe { fisher.raw::<T>(start, n) };
            weigh(fisher, stride, tile.floats, tile.width, tile.columns, factor)
        })
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
            let total = scratch::with(Block::scratch(d), |s| {
                let mut block = Block::new(d, s);
                block.begin(b, (i, m));
                let width = block.width();
                let mut total = 0.0;
                for j in (0..d.inputs).step_by(width) {
                    let tile = block.change(a, (j, width.min(d.inputs - j)));
                    // SAFETY: by contract of `run`.
                    total += unsafe { d.weigh(fisher, (i, j), tile, None) };
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
        // SAFETY: by contract of `run`.
        let db = par::Shared::new(unsafe { call.output::<f32>(1) });
        let fisher = call.src(3, d.fisher);
        let (partials, penalties) = (par::Shared::new(partials), par::Shared::new(penalties));
        par::ranges(d.outputs, self.group, |rows| {
            let group = rows.start / self.group;
            // SAFETY: each partial gradient and penalty is written by one task.
            let (da, penalty) = unsafe { (partials.slice(group * part, part), penalties.slice(group, 1)) };
            da.fill(0.0);
            penalty[0] = 0.0;
            scratch::with(Block::scratch(d), |s| {
                let mut block = Block::new(d, s);
                let (end, width) = (rows.end, block.width());
                for i in rows.step_by(ROWS) {
                    let m = ROWS.min(end - i);
                    block.begin(b, (i, m));
                    // SAFETY: these rows belong to this group.
                    let db = unsafe { db.slice(i * d.rank, m * d.rank) };
                    for j in (0..d.inputs).step_by(width) {
                        let columns = (j, width.min(d.inputs - j));
                        let tile = block.change(a, columns);
                        // SAFETY: by contract of `run`.
                        penalty[0] += unsafe { d.weigh(fisher, (i, j), tile, Some(g * d.scale)) };
                        block.add(a, columns, da, db);
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
    /// `Σ f·t²` over the columns of a tile; then `t *= factor · f`, if there is a factor.
    fn weigh<T: Elem>(
        fisher: &[T],
        stride: usize,
        tile: &mut [f32],
        width: usize,
        columns: usize,
        factor: Option<f32>,
    ) -> f64 {
        const LANES: usize = 16;
        let (mut acc, mut rest) = ([0.0f32; LANES], 0.0);
        for (r, t) in tile.chunks_exact_mut(width).enumerate() {
            let (f, t) = (&fisher[r * stride..][..columns], &mut t[..columns]);
            // These rows of the next tile.
            prefetch(f.as_ptr().wrapping_add(columns).cast(), columns * size_of::<T>());
            let (pf, mut pt) = (f.chunks_exact(LANES), t.chunks_exact_mut(LANES));
            let tail = pf.remainder();
            for (f, t) in pf.zip(&mut pt) {
                for l in 0..LANES {
                    let (f, x) = (f[l].get(), t[l]);
                    acc[l] += f * (x * x);
                    t[l] = factor.map_or(x, |factor| x * (factor * f));
                }
            }
            for (f, t) in tail.iter().zip(pt.into_remainder()) {
                rest += f64::from(f.get() * (*t * *t));
                *t = factor.map_or(*t, |factor| *t * (factor * f.get()));
            }
        }
        acc.iter().map(|a| f64::from(*a)).sum::<f64>() + rest
    }
}
