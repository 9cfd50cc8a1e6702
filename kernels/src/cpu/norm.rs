//! `rms_norm` and its gradient, row by row.

use crate::cpu::elem::{Elem, of_type};
use crate::cpu::reduce::{axpy, sum_squares};
use crate::cpu::scratch::{self, Cut};
use crate::cpu::simd::simd;
use crate::cpu::{Call, Kernel, par};
use kfc_graph::{DType, TensorType};

/// `rms_norm`: `y = x · rstd · w`, `rstd = 1/√(mean(x²) + eps)`.
pub(crate) struct RmsNorm {
    rows: usize,
    width: usize,
    x: DType,
    w: DType,
    eps: f64,
}

impl RmsNorm {
    pub(crate) fn new(x: &TensorType, w: &TensorType, eps: f64) -> RmsNorm {
        RmsNorm { rows: x.rows(), width: x.last(), x: x.dtype, w: w.dtype, eps }
    }
}

impl RmsNorm {
    /// # Safety
    /// As [`Kernel::run`], with x of type `T`.
    unsafe fn run_as<T: Elem>(&self, call: &Call<'_>) {
        let h = self.width;
        let (x, w, y) = (call.src(0, self.x), call.src(1, self.w), call.dst(0, self.x));
        let rstd = call.dst(1, DType::F32);
        par::ranges(self.rows, par::rows_grain(h), |rows| {
            scratch::with(h, |s| {
                // SAFETY: by contract of `run`; rows are written by one task each.
                unsafe {
                    let w = w.read(0, h, s);
                    for r in rows {
                        let x = x.raw::<T>(r * h, h);
                        let scale = (1.0 / (sum_squares(x) / h as f64 + self.eps).sqrt()) as f32;
                        scale_by(scale, x, w, y.raw::<T>(r * h, h));
                        rstd.store(r, &[scale]);
                    }
                }
            });
        });
    }
}

impl Kernel for RmsNorm {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract.
        of_type!(self.x, T => unsafe { self.run_as::<T>(call) });
    }
}

/// `rms_norm_bwd`.
pub(crate) struct RmsNormBwd {
    rows: usize,
    width: usize,
    x: DType,
    w: DType,
    need_dw: bool,
}

impl RmsNormBwd {
    pub(crate) fn new(x: &TensorType, w: &TensorType, need_dw: bool) -> RmsNormBwd {
        RmsNormBwd { rows: x.rows(), width: x.last(), x: x.dtype, w: w.dtype, need_dw }
    }

    /// Rows of a task: with a gradient of the weight there are at most 16 tasks, each with a partial sum.
    fn grain(&self) -> usize {
        let grain = par::rows_grain(2 * self.width);
        if self.need_dw { grain.max(self.rows.div_ceil(16)) } else { grain }
    }
}

impl RmsNormBwd {
    /// # Safety
    /// As [`Kernel::run`], with x of type `T`.
    unsafe fn run_as<T: Elem>(&self, call: &Call<'_>) {
        let h = self.width;
        let (dy, x, w) = (call.src(0, self.x), call.src(1, self.x), call.src(2, self.w));
        let (rstd, dx) = (call.src(3, DType::F32), call.dst(0, self.x));
        let grain = self.grain();
        let tasks = self.rows.div_ceil(grain);
        // SAFETY: by contract of `run`; the workspace has the size asked for.
        let partials = unsafe { call.work::<f32>(0, if self.need_dw { tasks * h } else { 0 }) };
        let shared = par::Shared::new(partials);
        par::ranges(self.rows, grain, |rows| {
            scratch::with(2 * h, |s| {
                let mut cut = Cut(s);
                let (sw, room) = (cut.take(h), cut.take(h));
                // SAFETY: by contract of `run`; rows and partial sums are written by one task each.
                unsafe {
                    let partial = if self.need_dw { (rows.start / grain * h, h) } else { (0, 0) };
                    let dw = shared.slice(partial.0, partial.1);
                    dw.fill(0.0);
                    let w = w.read(0, h, sw);
                    for r in rows {
                        let x = x.raw::<T>(r * h, h);
                        let dy = dy.row_before::<T>(&[dx], r * h, h, room);
                        let rstd = rstd.at(r);
                        let projection = dot_weighted(dy, w, x) * rstd * rstd / h as f32;
                        if self.need_dw {
                            add_product(rstd, dy, x, dw);
                        }
                        subtract_projection(rstd, projection, dy, w, x, dx.raw::<T>(r * h, h));
                    }
                }
            });
        });
        if self.need_dw {
            // SAFETY: by contract of `run`; all tasks are done.
            let (dw, partials) = unsafe { (call.output::<f32>(1), call.work::<f32>(0, tasks * h)) };
            dw.fill(0.0);
            partials.chunks_exact(h).for_each(|p| axpy(1.0, p, dw));
        }
    }
}

impl Kernel for RmsNormBwd {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract.
        of_type!(self.x, T => unsafe { self.run_as::<T>(call) });
    }

    fn may_inplace(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn workspace_bytes(&self) -> usize {
        if self.need_dw { self.rows.div_ceil(self.grain()) * self.width * size_of::<f32>() } else { 0 }
    }
}

simd! {
    /// `y = scale · x · w`
    fn scale_by<T: Elem>(scale: f32, x: &[T], w: &[f32], y: &mut [T]) {
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = T::put(x.get() * scale * *w);
        }
    }

    /// `Σ dy·w·x`, in 32 interleaved partial sums.
    fn dot_weighted<T: Elem>(dy: &[T], w: &[f32], x: &[T]) -> f32 {
        const LANES: usize = 32;
        let whole = dy.len() / LANES * LANES;
        let ((dy, dy_rest), (w, w_rest), (x, x_rest)) = (dy.split_at(whole), w.split_at(whole), x.split_at(whole));
        let mut acc = [0.0f32; LANES];
        for ((dy, w), x) in dy.chunks_exact(LANES).zip(w.chunks_exact(LANES)).zip(x.chunks_exact(LANES)) {
            for l in 0..LANES {
                acc[l] += dy[l].get() * w[l] * x[l].get();
            }
        }
        let rest = dy_rest.iter().zip(w_rest).zip(x_rest).map(|((dy, w), x)| dy.get() * *w * x.get());
        acc.iter().sum::<f32>() + rest.sum::<f32>()
    }

    /// `dx = rstd · (dy · w - projection · x)`
    fn subtract_projection<T: Elem>(rstd: f32, projection: f32, dy: &[T], w: &[f32], x: &[T], dx: &mut [T]) {
        for (((dx, dy), w), x) in dx.iter_mut().zip(dy).zip(w).zip(x) {
            *dx = T::put(rstd * (dy.get() * *w - projection * x.get()));
        }
    }

    /// `acc += scale · a · b`
    fn add_product<T: Elem>(scale: f32, a: &[T], b: &[T], acc: &mut [f32]) {
        for ((acc, a), b) in acc.iter_mut().zip(a).zip(b) {
            *acc += scale * a.get() * b.get();
        }
    }
}
