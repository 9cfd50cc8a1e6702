//! `ewc_delta` and its gradient: the penalty on the merged change `scale·B·A`, tile by tile; the change is never stored.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // What is asked for ahead.
mod tile;

use crate::cpu::par::{self, Stage};
use crate::cpu::reduce::axpy;
use crate::cpu::scratch;
use crate::cpu::simd;
use crate::cpu::{Call, Kernel, KernelError};
use kfc_graph::{Attrs, DType, TensorType};
use std::ops::Range;
use tile::{COLUMNS, Change, GradA, GradB, LANES, ROWS};

/// Rows of a task that computes nothing but the penalty.
const PENALTY_ROWS: usize = 64;

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

    /// The first row and column of each tile of these rows, and its extents, in order.
    fn tiles(&self, rows: Range<usize>) -> impl Iterator<Item = (usize, usize, usize, usize)> {
        let (inputs, end) = (self.inputs, rows.end);
        rows.step_by(ROWS).flat_map(move |i| {
            let columns = (0..inputs).step_by(COLUMNS);
            columns.map(move |j| (i, j, ROWS.min(end - i), COLUMNS.min(inputs - j)))
        })
    }

    /// Where a tile begins in the Fisher information.
    fn fisher_at(&self, fisher: *const u8, i: usize, j: usize) -> *const u8 {
        fisher.wrapping_add((i * self.inputs + j) * self.fisher.size())
    }
}

/// Operands of a call.
#[derive(Clone, Copy)]
struct Operands<'a> {
    a: &'a [f32],
    b: &'a [f32],
    fisher: *const u8,
}

// SAFETY: what the address points to is only read, by contract of `Kernel::run`.
unsafe impl Sync for Operands<'_> {}

impl Operands<'_> {
    /// The change at a tile, its gradient to `g` unless that is null.
    fn change(
        &self,
        d: &Delta,
        (i, j, m, n): (usize, usize, usize, usize),
        factor: f32,
        g: *mut f32,
    ) -> Change {
        Change {
            m,
            n,
            rank: d.rank,
            a: self.a[j..].as_ptr(),
            a_row: d.inputs,
            b: self.b[i * d.rank..].as_ptr(),
            fisher: d.fisher_at(self.fisher, i, j),
            fisher_row: d.inputs,
            bf16: d.fisher == DType::Bf16,
            scale: d.scale,
            factor,
            g,
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
        let (x, partials) = unsafe {
            let x = Operands { a: call.input(0), b: call.input(1), fisher: call.inputs[2].ptr };
            (x, call.work::<f64>(0, d.outputs.div_ceil(PENALTY_ROWS)))
        };
        let kernels = tile::kernels(simd::level());
        let shared = par::Shared::new(partials);
        let x = &x;
        par::ranges(d.outputs, PENALTY_ROWS, |rows| {
            let i = rows.start;
            let change = |at| x.change(&d, at, 0.0, std::ptr::null_mut());
            // SAFETY: tiles lie within the operands; each partial sum is written by one task.
            unsafe {
                let total = d.tiles(rows).map(|at| (kernels.change)(&change(at))).sum();
                shared.slice(i / PENALTY_ROWS, 1)[0] = total;
            }
        });
        // SAFETY: by contract of `run`; all tasks are done.
        unsafe {
            let total: f64 = call.work::<f64>(0, d.outputs.div_ceil(PENALTY_ROWS)).iter().sum();
            call.output::<f32>(0)[0] = (0.5 * total) as f32;
        }
    }

    fn workspace_bytes(&self) -> usize {
        self.0.outputs.div_ceil(PENALTY_ROWS) * size_of::<f64>()
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

    /// Elements of a row of the transpose of `A`.
    fn padded(&self) -> usize {
        self.delta.rank.next_multiple_of(LANES)
    }

    /// Room for a penalty of each group, in front of the transpose.
    fn penalty_bytes(&self) -> usize {
        (self.groups() * size_of::<f64>()).next_multiple_of(64)
    }

    /// Room for the transpose of `A`, in front of the groups' gradients.
    fn transpose_bytes(&self) -> usize {
        self.padded() * self.delta.inputs * size_of::<f32>()
    }

    /// Adds the rows of a group to both gradients; the penalty's sum.
    ///
    /// # Safety
    /// The gradients of `A` and of the group's rows of `B` are written by this task alone.
    unsafe fn rows(
        &self,
        x: &Operands<'_>,
        at: &[f32],
        factor: f32,
        rows: Range<usize>,
        da: &mut [f32],
        db: &mut [f32],
    ) -> f64 {
        let d = &self.delta;
        let kernels = tile::kernels(simd::level());
        let (first, mut total) = (rows.start, 0.0);
        scratch::with(ROWS * COLUMNS + LANES, |room| {
            // Vectors that are aligned lie in one line each.
            let skip = room.as_ptr().align_offset(64).min(LANES);
            let g = room[skip..].as_mut_ptr();
            for tile @ (i, j, m, n) in d.tiles(rows) {
                let (rank, next_size) = (d.rank, d.fisher.size());
                let (next_i, next_j) = if j + n < d.inputs { (i, j + n) } else { (i + m, 0) };
                let grad_a = GradA {
                    m,
                    n,
                    rank,
                    b: x.b[i * rank..].as_ptr(),
                    g,
                    da: da[j..].as_mut_ptr(),
                    da_row: d.inputs,
                    add: i > first,
                    next: d.fisher_at(x.fisher, next_i, next_j),
                    next_row: d.inputs * next_size,
                    next_size,
                };
                let (at, at_row) = (at[j * self.padded()..].as_ptr(), self.padded());
                let db = db[(i - first) * rank..].as_mut_ptr();
                let grad_b = GradB { m, n, rank, at, at_row, g, db, add: j > 0 };
                // SAFETY: tiles lie within the operands, and `room` holds one.
                unsafe {
                    total += (kernels.change)(&x.change(d, tile, factor, g));
                    (kernels.grad_a)(&grad_a);
                    (kernels.grad_b)(&grad_b);
                }
            }
        });
        total
    }
}

/// Elements that tasks only read by now.
///
/// # Safety
/// In bounds, and nothing writes to them meanwhile.
unsafe fn read<'a>(shared: par::Shared<f32>, start: usize, n: usize) -> &'a [f32] {
    // SAFETY: by contract.
    unsafe { std::slice::from_raw_parts(shared.at(start), n) }
}

impl Kernel for EwcDeltaBwd {
    unsafe fn run(&self, call: &Call<'_>) {
        let d = self.delta;
        let (part, groups, padded) = (d.rank * d.inputs, self.groups(), self.padded());
        let (transpose_at, partials_at) =
            (self.penalty_bytes(), self.penalty_bytes() + self.transpose_bytes());
        // SAFETY: by contract of `run`; the workspace has the size asked for.
        let (x, g, penalties, at, partials, da, db) = unsafe {
            (
                Operands { a: call.input(1), b: call.input(2), fisher: call.inputs[3].ptr },
                call.input::<f32>(0)[0],
                par::Shared::new(call.work::<f64>(0, groups)),
                par::Shared::new(call.work::<f32>(transpose_at, padded * d.inputs)),
                par::Shared::new(call.work::<f32>(partials_at, groups * part)),
                par::Shared::new(call.output::<f32>(0)),
                par::Shared::new(call.output::<f32>(1)),
            )
        };
        let x = &x;
        let columns = |task: usize| task * COLUMNS..d.inputs.min((task + 1) * COLUMNS);
        let transpose = |task: usize| {
            let columns = columns(task);
            // SAFETY: each task has rows of its own.
            let to = unsafe { at.slice(columns.start * padded, columns.len() * padded) };
            for (to, j) in to.chunks_exact_mut(padded).zip(columns) {
                let (row, rest) = to.split_at_mut(d.rank);
                row.iter_mut().enumerate().for_each(|(k, to)| *to = x.a[k * d.inputs + j]);
                rest.fill(0.0);
            }
        };
        let rows = |task: usize| {
            let rows = task * self.group..d.outputs.min((task + 1) * self.group);
            // SAFETY: the transpose is complete; each group has a penalty, a partial gradient and rows of its own.
            unsafe {
                let (at, da) = (read(at, 0, padded * d.inputs), partials.slice(task * part, part));
                let db = db.slice(rows.start * d.rank, rows.len() * d.rank);
                penalties.slice(task, 1)[0] = self.rows(x, at, g * d.scale, rows, da, db);
            }
        };
        let sum = |task: usize| {
            let (start, n) = (task * par::GRAIN, par::GRAIN.min(part - task * par::GRAIN));
            // SAFETY: all groups are done; each task has elements of its own.
            unsafe {
                let da = da.slice(start, n);
                da.copy_from_slice(read(partials, start, n));
                (1..groups).for_each(|group| axpy(1.0, read(partials, group * part + start, n), da));
            }
        };
        par::run_steps(&[
            Stage((d.inputs.div_ceil(COLUMNS), &transpose), (groups, &rows)),
            Stage((0, &|_| ()), (part.div_ceil(par::GRAIN), &sum)),
        ]);
        // SAFETY: by contract of `run`; all tasks are done.
        unsafe {
            let penalty: f64 = call.work::<f64>(0, groups).iter().sum();
            call.output::<f32>(2)[0] = (0.5 * penalty) as f32;
        }
    }

    fn workspace_bytes(&self) -> usize {
        let parts = self.groups() * self.delta.rank * self.delta.inputs * size_of::<f32>();
        self.penalty_bytes() + self.transpose_bytes() + parts
    }
}
