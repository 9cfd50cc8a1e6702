//! `feature_alignment`: the projected features stand in the workspace a chunk of tokens at a time.

use crate::cpu::float::Dst;
use crate::cpu::gemm::{Job, Mat, Product};
use crate::cpu::scratch;
use crate::cpu::simd::simd;
use crate::cpu::{Call, Kernel, par};
use kfc_graph::{DType, TensorType};

/// Tokens of a chunk.
const CHUNK: usize = 256;

/// `feature_alignment`: `Σ w ‖P·hs − ht‖²`.
pub(crate) struct FeatureAlignment {
    tokens: usize,
    student: (usize, DType),
    teacher: (usize, DType),
}

impl FeatureAlignment {
    pub(crate) fn new(inputs: &[TensorType]) -> FeatureAlignment {
        let (hs, ht) = (&inputs[0], &inputs[2]);
        FeatureAlignment { tokens: hs.rows(), student: (hs.last(), hs.dtype), teacher: (ht.last(), ht.dtype) }
    }

    fn losses_at(&self) -> usize {
        (CHUNK * self.teacher.0 * size_of::<f32>()).next_multiple_of(64)
    }
}

impl Kernel for FeatureAlignment {
    unsafe fn run(&self, call: &Call<'_>) {
        let ((k, xs), (n, xt)) = (self.student, self.teacher);
        let mut total = 0.0f64;
        // SAFETY: by contract of `run`; the workspace has the size asked for; rows are disjoint.
        unsafe {
            let (hs, ht) = (call.src(0, xs), call.src(2, xt));
            let (p, w) = (Mat::rows(call.src(1, DType::F32), k), call.input::<f32>(3));
            for start in (0..self.tokens).step_by(CHUNK) {
                let m = CHUNK.min(self.tokens - start);
                let projected = call.work::<f32>(0, m * n);
                let h = Mat::rows(hs.offset(start * k), k);
                Job::new(m, n, &[Product::new(h, p.t(), k)], Dst::floats(projected)).run();
                let projected = &*projected;
                let losses = call.work::<f64>(self.losses_at(), m);
                let shared = par::Shared::new(losses);
                par::ranges(m, par::rows_grain(2 * n), |rows| {
                    scratch::with(n, |s| {
                        for r in rows {
                            let target = ht.read((start + r) * n, n, s);
                            let distance = squared_distance(&projected[r * n..(r + 1) * n], target);
                            shared.slice(r, 1)[0] = f64::from(w[start + r]) * distance;
                        }
                    });
                });
                total += losses.iter().sum::<f64>();
            }
            call.output::<f32>(0)[0] = total as f32;
        }
    }

    fn workspace_bytes(&self) -> usize {
        self.losses_at() + CHUNK * size_of::<f64>()
    }
}

simd! {
    fn squared_distance(x: &[f32], y: &[f32]) -> f64 {
        const LANES: usize = 16;
        let mut acc = [0.0f64; LANES];
        let (px, py) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
        let (rx, ry) = (px.remainder(), py.remainder());
        for (x, y) in px.zip(py) {
            for l in 0..LANES {
                let d = f64::from(x[l] - y[l]);
                acc[l] += d * d;
            }
        }
        let rest: f64 = rx.iter().zip(ry).map(|(x, y)| f64::from(x - y) * f64::from(x - y)).sum();
        acc.iter().sum::<f64>() + rest
    }
}
