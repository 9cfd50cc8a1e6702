//! `rope`: rotary position embedding on half-split pairs `(i, i + D/2)` of each head. The inverse rotation is its
//! gradient.

use crate::cpu::scratch::{self, Cut};
use crate::cpu::simd::simd;
use crate::cpu::{Call, Kernel, KernelError, par};
use kfc_graph::{Attrs, DType, TensorType};

/// `rope`. Positions outside the table take its nearest row.
pub(crate) struct Rope {
    rows: usize,
    width: usize,
    head_dim: usize,
    positions: usize,
    x: DType,
    inverse: bool,
}

impl Rope {
    pub(crate) fn new(attrs: &Attrs, inputs: &[TensorType]) -> Result<Rope, KernelError> {
        let (head_dim, inverse) = (attrs.usize("head_dim")?, attrs.bool("inverse")?);
        let x = &inputs[0];
        if head_dim == 0 || !head_dim.is_multiple_of(2) || !x.last().is_multiple_of(head_dim) {
            return Err(KernelError::Operand {
                op: "rope".into(),
                operand: 0,
                found: x.to_string(),
                expected: format!("rows of whole heads of {head_dim}, an even number"),
            });
        }
        let positions = inputs[1].dims[0];
        Ok(Rope { rows: x.rows(), width: x.last(), head_dim, positions, x: x.dtype, inverse })
    }
}

impl Kernel for Rope {
    unsafe fn run(&self, call: &Call<'_>) {
        let (width, half) = (self.width, self.head_dim / 2);
        let (x, y) = (call.src(0, self.x), call.dst(0, self.x));
        // SAFETY: by contract of `run`.
        let (cos, sin, pos) = unsafe { (call.input::<f32>(1), call.input::<f32>(2), call.input::<i32>(3)) };
        let sign = if self.inverse { -1.0 } else { 1.0 };
        par::ranges(self.rows, par::rows_grain(2 * width), |rows| {
            scratch::with(2 * width, |s| {
                let mut cut = Cut(s);
                let (sx, sy) = (cut.take(width), cut.take(width));
                for r in rows {
                    let p = (pos[r].max(0) as usize).min(self.positions - 1) * half;
                    // SAFETY: rows are in bounds and written by one task each.
                    unsafe {
                        let x = x.read_before(&[y], r * width, width, sx);
                        let out = y.begin(r * width, width, sy);
                        rotate(sign, &cos[p..p + half], &sin[p..p + half], x, out);
                        y.finish(r * width, out);
                    }
                }
            });
        });
    }

    fn may_inplace(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}

simd! {
    fn rotate(sign: f32, cos: &[f32], sin: &[f32], x: &[f32], y: &mut [f32]) {
        let half = cos.len();
        let sin = &sin[..half];
        for (x, y) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(2 * half)) {
            let ((x1, x2), (y1, y2)) = (x.split_at(half), y.split_at_mut(half));
            for i in 0..half {
                let s = sign * sin[i];
                y1[i] = x1[i] * cos[i] - x2[i] * s;
                y2[i] = x2[i] * cos[i] + x1[i] * s;
            }
        }
    }
}
