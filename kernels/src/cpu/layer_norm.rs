//! `layer_norm`, row by row.

use crate::cpu::elem::{Elem, of_type};
use crate::cpu::reduce::sum;
use crate::cpu::scratch::{self, Cut};
use crate::cpu::simd::simd;
use crate::cpu::{Call, Kernel, par};
use kfc_graph::{DType, TensorType};

/// `layer_norm`: `y = (x − mean)/√(var + eps)·w + bias`.
pub(crate) struct LayerNorm {
    rows: usize,
    width: usize,
    dtype: DType,
    eps: f64,
}

impl LayerNorm {
    pub(crate) fn new(x: &TensorType, eps: f64) -> LayerNorm {
        LayerNorm { rows: x.rows(), width: x.last(), dtype: x.dtype, eps }
    }

    /// # Safety
    /// As [`Kernel::run`], with operands of type `T`.
    unsafe fn run_as<T: Elem>(&self, call: &Call<'_>) {
        let h = self.width;
        let [x, w, bias] = [0, 1, 2].map(|i| call.src(i, self.dtype));
        let y = call.dst(0, self.dtype);
        par::ranges(self.rows, par::rows_grain(h), |rows| {
            scratch::with(3 * h, |s| {
                let mut cut = Cut(s);
                let (sw, sb, room) = (cut.take(h), cut.take(h), cut.take(h));
                // SAFETY: by contract of `run`; rows are written by one task each.
                unsafe {
                    let (w, bias) = (w.read(0, h, sw), bias.read(0, h, sb));
                    for r in rows {
                        let x = x.row_before::<T>(&[y], r * h, h, room);
                        let mean = (sum(x) / h as f64) as f32;
                        let variance = f64::from(squares_around(mean, x)) / h as f64;
                        let scale = (1.0 / (variance + self.eps).sqrt()) as f32;
                        normalise(mean, scale, x, w, bias, y.raw::<T>(r * h, h));
                    }
                }
            });
        });
    }
}

impl Kernel for LayerNorm {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract.
        of_type!(self.dtype, T => unsafe { self.run_as::<T>(call) });
    }

    fn may_inplace(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}

simd! {
    /// `Σ (x − mean)²`, in 32 interleaved partial sums.
    fn squares_around<T: Elem>(mean: f32, x: &[T]) -> f32 {
        const LANES: usize = 32;
        let mut acc = [0.0f32; LANES];
        let parts = x.chunks_exact(LANES);
        let rest = parts.remainder();
        for part in parts {
            for l in 0..LANES {
                let d = part[l].get() - mean;
                acc[l] += d * d;
            }
        }
        acc.iter().sum::<f32>() + rest.iter().map(|v| (v.get() - mean) * (v.get() - mean)).sum::<f32>()
    }

    /// `y = (x − mean) · scale · w + bias`
    fn normalise<T: Elem>(mean: f32, scale: f32, x: &[T], w: &[f32], bias: &[f32], y: &mut [T]) {
        for (((y, x), w), bias) in y.iter_mut().zip(x).zip(w).zip(bias) {
            *y = T::put((x.get() - mean) * scale * *w + *bias);
        }
    }
}
