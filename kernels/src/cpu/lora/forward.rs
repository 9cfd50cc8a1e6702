//! `lora_linear`.

use super::{Lora, Piece, Pieces, ROWS, bf16_rows, f32_rows, panel_depths, panel_tasks, round, round_tasks};
use crate::cpu::elem::Elem;
use crate::cpu::float::Dst;
use crate::cpu::gemm::narrow::{Narrow, Panels};
use crate::cpu::gemm::{Job, Mat, Product};
use crate::cpu::par::{self, Shared, Stage};
use crate::cpu::scratch;
use crate::cpu::simd::simd;
use crate::cpu::{Call, Kernel, KernelError};
use half::bf16;
use kfc_graph::{Attrs, DType, TensorType};

/// Rows of x that dropout is applied to at once.
const DROPPED: usize = 8;

/// `lora_linear`.
pub(crate) struct LoraLinear {
    lora: Lora,
    bias: Option<DType>,
    narrow: Option<(Narrow, Layout)>,
    workspace: usize,
}

/// What narrow products keep in the workspace.
struct Layout {
    /// Panels of A.
    a: Piece<u32>,
    /// scale · S `[M, r]` and B `[O, r]`, rounded.
    s: Piece<bf16>,
    b: Piece<bf16>,
}

impl LoraLinear {
    pub(crate) fn new(attrs: &Attrs, inputs: &[TensorType]) -> Result<LoraLinear, KernelError> {
        let lora = Lora::new(attrs, &inputs[0], &inputs[1], &inputs[2])?;
        let bias = attrs.bool("bias")?.then(|| inputs[4].dtype);
        let mut pieces = Pieces::default();
        let narrow = lora.narrow().map(|narrow| {
            let layout = Layout {
                a: pieces.next(Panels::len(lora.rank, lora.inputs)),
                s: pieces.next(lora.rows * lora.rank),
                b: pieces.next(lora.outputs * lora.rank),
            };
            (narrow, layout)
        });
        Ok(LoraLinear { lora, bias, narrow, workspace: pieces.bytes })
    }

    /// Computes S; returns S and B as operands of the second product of y, and a factor.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn low_rank(&self, call: &Call<'_>) -> (Mat, Mat, f32) {
        let Lora { rows, inputs, rank, scale, .. } = self.lora;
        // SAFETY: by contract.
        unsafe {
            if let Some((narrow, layout)) = &self.narrow {
                return self.narrow(call, *narrow, layout);
            }
            let x = Mat::rows(call.src(0, self.lora.x), inputs).with_dropout(self.lora.dropout(call));
            let a = Mat::rows(call.src(2, DType::F32), inputs);
            let s = call.output::<f32>(1);
            Job::new(rows, rank, &[Product::new(x, a.t(), inputs)], Dst::floats(s)).run();
            (f32_rows(s, rank), Mat::rows(call.src(3, DType::F32), rank), scale)
        }
    }

    /// The same with products for narrow matrices.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn narrow(&self, call: &Call<'_>, narrow: Narrow, layout: &Layout) -> (Mat, Mat, f32) {
        let Lora { rows, inputs, rank, scale, .. } = self.lora;
        // SAFETY: by contract; the workspace has the size asked for, and tasks write disjoint parts.
        unsafe {
            let (x, a, b) = (call.src(0, DType::Bf16), call.input::<f32>(2), call.input::<f32>(3));
            let dropout = self.lora.dropout(call);
            let panels = Panels::new(layout.a.of(call), rank, inputs);
            let (s16, b16) = (layout.s.of(call), layout.b.of(call));
            let (s, s_rounded, b_rounded) =
                (Shared::new(call.output::<f32>(1)), Shared::new(s16), Shared::new(b16));
            let written = panel_tasks(rank, inputs);
            let prepare = |task: usize| match task.checked_sub(written) {
                None => {
                    let depths = panel_depths(rank, inputs, task);
                    panels.write(&a[depths.start.min(inputs)..], (inputs, 1), depths);
                }
                Some(task) => round(b, b_rounded, task),
            };
            let multiply = |task: usize| {
                let first = task * ROWS;
                let n = ROWS.min(rows - first);
                let s = s.slice(first * rank, n * rank);
                match dropout {
                    None => narrow.rows(x.raw(first * inputs, n * inputs), inputs, &panels, 1.0, s),
                    Some(dropout) => scratch::with(DROPPED * inputs / 2, |kept| {
                        let kept: &mut [bf16] = bytemuck::cast_slice_mut(kept);
                        for (i, s) in s.chunks_mut(DROPPED * rank).enumerate() {
                            let (start, n) = ((first + i * DROPPED) * inputs, s.len() / rank * inputs);
                            dropout.copy_kept(start, x.raw(start, n), &mut kept[..n]);
                            narrow.rows(kept, inputs, &panels, dropout.keep(), s);
                        }
                    }),
                }
                round_scaled(scale, s, s_rounded.slice(first * rank, n * rank));
            };
            let stages =
                [Stage((written + round_tasks(b.len()), &prepare), (rows.div_ceil(ROWS), &multiply))];
            par::run_steps(&stages);
            (bf16_rows(s16, rank), bf16_rows(b16, rank), 1.0)
        }
    }
}

impl Kernel for LoraLinear {
    unsafe fn run(&self, call: &Call<'_>) {
        let Lora { rows, inputs, outputs, rank, .. } = self.lora;
        let x = Mat::rows(call.src(0, self.lora.x), inputs);
        let w = Mat::rows(call.src(1, self.lora.w), inputs);
        // SAFETY: by contract of `run`.
        unsafe {
            let (s, b, alpha) = self.low_rank(call);
            let products =
                [Product::new(x, w.t(), inputs), Product { alpha, ..Product::new(s, b.t(), rank) }];
            let bias = self.bias.map(|t| call.src(4, t));
            Job { bias, ..Job::new(rows, outputs, &products, call.dst(0, self.lora.x)) }.run();
        }
    }

    fn workspace_bytes(&self) -> usize {
        self.workspace
    }
}

simd! {
    /// `factor · x`, rounded.
    fn round_scaled(factor: f32, x: &[f32], out: &mut [bf16]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = <bf16 as Elem>::put(factor * *x);
        }
    }
}
