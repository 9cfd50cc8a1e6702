//! Sums and maxima over axes. Sums accumulate in `f64`, in an order that depends on shapes only.

use crate::cpu::elem::{Elem, of_type};
use crate::cpu::float::{BLOCK, Dst, Src};
use crate::cpu::simd::simd;
use crate::cpu::{Call, Kernel, par};
use kfc_graph::{DType, TensorType};

/// What is reduced to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Sum,
    Max,
}

impl Kind {
    pub(crate) fn identity(self) -> f64 {
        match self {
            Kind::Sum => 0.0,
            Kind::Max => f64::NEG_INFINITY,
        }
    }

    pub(crate) fn join(self, a: f64, b: f64) -> f64 {
        match self {
            Kind::Sum => a + b,
            Kind::Max => a.max(b),
        }
    }

    /// Of at most a block of neighbours.
    pub(crate) fn of_block<T: Elem>(self, x: &[T]) -> f64 {
        match self {
            Kind::Sum => sum(x),
            Kind::Max => f64::from(max(x)),
        }
    }
}

/// Elements of a partial result when few results have many elements each.
pub(crate) const PARTIAL: usize = 64 * 1024;

/// Partial results of each of `rows` rows of so many elements: more than one only where few rows are long.
pub(crate) fn partials_of(rows: usize, width: usize) -> usize {
    if rows < 16 { width.div_ceil(PARTIAL) } else { 1 }
}

/// Columns that a task reduces side by side when the innermost axis is kept.
const COLUMNS: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Axis {
    len: usize,
    stride: usize,
}

/// `Prim::ReduceSum` and `Prim::ReduceMax`.
pub(crate) struct Reduce {
    kind: Kind,
    dtype: DType,
    kept: Vec<Axis>,
    reduced: Vec<Axis>,
    /// The innermost axis, contiguous, is reduced; its extent.
    run: Option<usize>,
    /// Extent of the innermost axis if it is kept.
    columns: usize,
}

impl Reduce {
    pub(crate) fn new(kind: Kind, a: &TensorType, axes: &[usize]) -> Reduce {
        let mut merged: Vec<(Axis, bool)> = Vec::new();
        for (i, &len) in a.dims.iter().enumerate().filter(|(_, d)| **d != 1) {
            let stride: usize = a.dims[i + 1..].iter().product();
            let is_reduced = axes.contains(&i);
            match merged.last_mut() {
                Some((last, r)) if *r == is_reduced => *last = Axis { len: last.len * len, stride },
                _ => merged.push((Axis { len, stride }, is_reduced)),
            }
        }
        let (inner, inner_reduced) = merged.pop().unwrap_or((Axis { len: 1, stride: 1 }, true));
        let pick = |want: bool| merged.iter().filter(|(_, r)| *r == want).map(|(a, _)| *a).collect();
        Reduce {
            kind,
            dtype: a.dtype,
            kept: pick(false),
            reduced: pick(true),
            run: inner_reduced.then_some(inner.len),
            columns: inner.len,
        }
    }

    fn kept_count(&self) -> usize {
        self.kept.iter().map(|a| a.len).product()
    }

    fn reduced_count(&self) -> usize {
        self.reduced.iter().map(|a| a.len).product()
    }

    /// Partial results of each result, if it is worth to cut the runs.
    fn partials(&self) -> usize {
        match self.run {
            Some(run) if self.reduced.is_empty() => partials_of(self.kept_count(), run),
            _ => 1,
        }
    }

    fn reduce_runs(&self, a: Src, out: Dst, run: usize) {
        let reduced = self.reduced_count();
        par::ranges(self.kept_count(), par::rows_grain(run * reduced), |r| {
            for i in r {
                let base = locate(&self.kept, i);
                let total = (0..reduced).fold(self.kind.identity(), |t, j| {
                    // SAFETY: the run lies within the operand.
                    self.kind
                        .join(t, unsafe { reduce_run(self.kind, a, base + locate(&self.reduced, j), run) })
                });
                // SAFETY: each result is written by one task.
                unsafe { out.store(i, &[total as f32]) }
            }
        });
    }

    fn reduce_partials(&self, a: Src, out: Dst, run: usize, work: &mut [f64]) {
        let partials = self.partials();
        let shared = par::Shared::new(work);
        par::tasks(work.len(), |t| {
            let (i, start) = (t / partials, t % partials * PARTIAL);
            // SAFETY: the part lies within the operand; each partial result is written by one task.
            unsafe {
                let at = locate(&self.kept, i) + start;
                shared.slice(t, 1)[0] = reduce_run(self.kind, a, at, PARTIAL.min(run - start));
            }
        });
        for (i, parts) in work.chunks_exact(partials).enumerate() {
            let total = parts.iter().fold(self.kind.identity(), |t, &p| self.kind.join(t, p));
            // SAFETY: in bounds.
            unsafe { out.store(i, &[total as f32]) }
        }
    }

    fn reduce_columns(&self, a: Src, out: Dst) {
        let blocks = self.columns.div_ceil(COLUMNS);
        let reduced = self.reduced_count();
        let grain = par::rows_grain(reduced * COLUMNS.min(self.columns));
        par::ranges(self.kept_count() * blocks, grain, |r| {
            for task in r {
                let (i, column) = (task / blocks, task % blocks * COLUMNS);
                let n = COLUMNS.min(self.columns - column);
                let base = locate(&self.kept, i) + column;
                let mut total = [self.kind.identity(); COLUMNS];
                let mut x = [0.0f32; COLUMNS];
                for j in 0..reduced {
                    // SAFETY: the row lies within the operand.
                    let row = unsafe { a.read(base + locate(&self.reduced, j), n, &mut x) };
                    match self.kind {
                        Kind::Sum => total.iter_mut().zip(row).for_each(|(t, x)| *t += f64::from(*x)),
                        Kind::Max => total.iter_mut().zip(row).for_each(|(t, x)| *t = t.max(f64::from(*x))),
                    }
                }
                for (x, t) in x.iter_mut().zip(&total) {
                    *x = *t as f32;
                }
                // SAFETY: each block of columns is written by one task.
                unsafe { out.store(i * self.columns + column, &x[..n]) }
            }
        });
    }
}

impl Kernel for Reduce {
    unsafe fn run(&self, call: &Call<'_>) {
        let (a, out) = (call.src(0, self.dtype), call.dst(0, self.dtype));
        match self.run {
            // SAFETY: the workspace has the size that `workspace_bytes` asks for.
            Some(run) if self.partials() > 1 => unsafe {
                self.reduce_partials(a, out, run, call.work(0, self.kept_count() * self.partials()));
            },
            Some(run) => self.reduce_runs(a, out, run),
            None => self.reduce_columns(a, out),
        }
    }

    fn workspace_bytes(&self) -> usize {
        if self.partials() > 1 { self.kept_count() * self.partials() * size_of::<f64>() } else { 0 }
    }
}

fn locate(axes: &[Axis], mut index: usize) -> usize {
    let mut at = 0;
    for axis in axes.iter().rev() {
        at += index % axis.len * axis.stride;
        index /= axis.len;
    }
    at
}

/// # Safety
/// `start..start + n` is in bounds.
unsafe fn reduce_run(kind: Kind, a: Src, start: usize, n: usize) -> f64 {
    of_type!(a.dtype(), T => {
        // SAFETY: by contract.
        let x = unsafe { a.raw::<T>(start, n) };
        x.chunks(BLOCK).fold(kind.identity(), |t, x| kind.join(t, kind.of_block(x)))
    })
}

/// Lanes of the accumulators below.
const LANES: usize = 16;

simd! {
    /// `Σ x`, in 16 interleaved partial sums.
    pub(crate) fn sum<T: Elem>(x: &[T]) -> f64 {
        let mut acc = [0.0f64; LANES];
        let parts = x.chunks_exact(LANES);
        let rest = parts.remainder();
        for part in parts {
            for l in 0..LANES {
                acc[l] += f64::from(part[l].get());
            }
        }
        acc.iter().sum::<f64>() + rest.iter().map(|v| f64::from(v.get())).sum::<f64>()
    }

    /// `Σ x²`, in 16 interleaved partial sums.
    pub(crate) fn sum_squares<T: Elem>(x: &[T]) -> f64 {
        let mut acc = [0.0f64; LANES];
        let parts = x.chunks_exact(LANES);
        let rest = parts.remainder();
        for part in parts {
            for l in 0..LANES {
                acc[l] += f64::from(part[l].get()) * f64::from(part[l].get());
            }
        }
        acc.iter().sum::<f64>() + rest.iter().map(|v| f64::from(v.get()) * f64::from(v.get())).sum::<f64>()
    }

    /// `Σ x·y`, in 32 interleaved partial sums.
    pub(crate) fn dot<T: Elem>(x: &[T], y: &[T]) -> f32 {
        const LANES: usize = 32;
        let (px, py) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
        let (rx, ry) = (px.remainder(), py.remainder());
        let mut acc = [0.0f32; LANES];
        for (x, y) in px.zip(py) {
            for l in 0..LANES {
                acc[l] += x[l].get() * y[l].get();
            }
        }
        let mut half = LANES / 2;
        while half > 0 {
            for l in 0..half {
                acc[l] += acc[l + half];
            }
            half /= 2;
        }
        acc[0] + rx.iter().zip(ry).map(|(x, y)| x.get() * y.get()).sum::<f32>()
    }

    /// The largest element; -inf if there is none.
    pub(crate) fn max<T: Elem>(x: &[T]) -> f32 {
        let mut acc = [f32::NEG_INFINITY; LANES];
        let parts = x.chunks_exact(LANES);
        let rest = parts.remainder();
        for part in parts {
            for l in 0..LANES {
                let x = part[l].get();
                acc[l] = if x > acc[l] { x } else { acc[l] };
            }
        }
        acc.into_iter().chain(rest.iter().map(|v| v.get())).fold(f32::NEG_INFINITY, |m, v| if v > m { v } else { m })
    }

    /// `y += alpha · x`.
    pub(crate) fn axpy<T: Elem>(alpha: f32, x: &[T], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += alpha * x.get();
        }
    }

    /// `x *= factor`
    pub(crate) fn scale(factor: f32, x: &mut [f32]) {
        for x in x {
            *x *= factor;
        }
    }
}
