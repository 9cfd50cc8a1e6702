//! `rope`: rotary position embedding on half-split pairs `(i, i + D/2)` of each head. The inverse rotation is its
//! gradient.

use crate::cpu::elem::{Elem, of_type};
use crate::cpu::scratch;
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

impl Rope {
    /// # Safety
    /// As [`Kernel::run`], with x of type `T`.
    unsafe fn run_as<T: Elem>(&self, call: &Call<'_>) {
        let (width, half) = (self.width, self.head_dim / 2);
        let (x, y) = (call.src(0, self.x), call.dst(0, self.x));
        // SAFETY: by contract of `run`.
        let (cos, sin, pos) = unsafe { (call.input::<f32>(1), call.input::<f32>(2), call.input::<i32>(3)) };
        let sign = if self.inverse { -1.0 } else { 1.0 };
        par::ranges(self.rows, par::rows_grain(width), |rows| {
            scratch::with(width, |room| {
                for r in rows {
                    let p = (pos[r].max(0) as usize).min(self.positions - 1) * half;
                    // SAFETY: rows are in bounds and written by one task each.
                    unsafe {
                        let x = x.row_before::<T>(&[y], r * width, width, room);
                        rotate(sign, &cos[p..p + half], &sin[p..p + half], x, y.raw::<T>(r * width, width));
                    }
                }
            });
        });
    }
}

impl Kernel for Rope {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract.
        of_type!(self.x, T => unsafe { self.run_as::<T>(call) });
    }

    fn may_inplace(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}

simd! {
    fn rotate<T: Elem>(sign: f32, cos: &[f32], sin: &[f32], x: &[T], y: &mut [T]) {
        let half = cos.len();
        let sin = &sin[..half];
        for (x, y) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(2 * half)) {
            let ((x1, x2), (y1, y2)) = (x.split_at(half), y.split_at_mut(half));
            for i in 0..half {
                let (a, b, c, s) = (x1[i].get(), x2[i].get(), cos[i], sign * sin[i]);
                y1[i] = T::put(a * c - b * s);
                y2[i] = T::put(b * c + a * s);
            }
        }
    }
}
