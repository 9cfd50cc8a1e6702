//! `rms_norm` and its gradient, row by row.

use crate::cpu::reduce::{axpy, dot, sum_squares};
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

impl Kernel for RmsNorm {
    unsafe fn run(&self, call: &Call<'_>) {
        let h = self.width;
        let (x, w, y) = (call.src(0, self.x), call.src(1, self.w), call.dst(0, self.x));
        let rstd = call.dst(1, DType::F32);
        par::ranges(self.rows, par::rows_grain(h), |rows| {
            scratch::with(3 * h, |s| {
                let mut cut = Cut(s);
                let (sw, sx, sy) = (cut.take(h), cut.take(h), cut.take(h));
                // SAFETY: by contract of `run`; rows are written by one task each.
                unsafe {
                    let w = w.read(0, h, sw);
                    for r in rows {
                        let x = x.read(r * h, h, sx);
                        let scale = (1.0 / (sum_squares(x) / h as f64 + self.eps).sqrt()) as f32;
                        let y_row = y.begin(r * h, h, sy);
                        scale_by(scale, x, w, y_row);
                        y.finish(r * h, y_row);
                        rstd.store(r, &[scale]);
                    }
                }
            });
        });
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

impl Kernel for RmsNormBwd {
    unsafe fn run(&self, call: &Call<'_>) {
        let h = self.width;
        let (dy, x, w) = (call.src(0, self.x), call.src(1, self.x), call.src(2, self.w));
        let (rstd, dx) = (call.src(3, DType::F32), call.dst(0, self.x));
        let grain = self.grain();
        let tasks = self.rows.div_ceil(grain);
        // SAFETY: by contract of `run`; the workspace has the size asked for.
        let partials = unsafe { call.work::<f32>(0, if self.need_dw { tasks * h } else { 0 }) };
        let shared = par::Shared::new(partials);
        par::ranges(self.rows, grain, |rows| {
            scratch::with(4 * h, |s| {
                let mut cut = Cut(s);
                let (sw, sx, sy, sd) = (cut.take(h), cut.take(h), cut.take(h), cut.take(h));
                // SAFETY: by contract of `run`; rows and partial sums are written by one task each.
                unsafe {
                    let partial = if self.need_dw { (rows.start / grain * h, h) } else { (0, 0) };
                    let dw = shared.slice(partial.0, partial.1);
                    dw.fill(0.0);
                    let w = w.read(0, h, sw);
                    for r in rows {
                        let x = x.read(r * h, h, sx);
                        let dy = dy.read_before(&[dx], r * h, h, sy);
                        let rstd = rstd.at(r);
                        let dx_row = dx.begin(r * h, h, sd);
                        scale_by(1.0, dy, w, dx_row);
                        let projection = dot(dx_row, x) * rstd * rstd / h as f32;
                        subtract_projection(rstd, projection, x, dx_row);
                        dx.finish(r * h, dx_row);
                        if self.need_dw {
                            add_product(rstd, dy, x, dw);
                        }
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

    fn may_inplace(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn workspace_bytes(&self) -> usize {
        if self.need_dw { self.rows.div_ceil(self.grain()) * self.width * size_of::<f32>() } else { 0 }
    }
}

simd! {
    /// `y = scale · x · w`
    fn scale_by(scale: f32, x: &[f32], w: &[f32], y: &mut [f32]) {
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = *x * scale * *w;
        }
    }

    /// `d = rstd · (d - projection · x)`
    fn subtract_projection(rstd: f32, projection: f32, x: &[f32], d: &mut [f32]) {
        for (d, x) in d.iter_mut().zip(x) {
            *d = rstd * (*d - projection * *x);
        }
    }

    /// `acc += scale · a · b`
    fn add_product(scale: f32, a: &[f32], b: &[f32], acc: &mut [f32]) {
        for ((acc, a), b) in acc.iter_mut().zip(a).zip(b) {
            *acc += scale * *a * *b;
        }
    }
}
