//! `lora_linear_bwd`. The gradient of the frozen weight is never computed.

use super::{Lora, Piece, Pieces, ROWS, bf16_rows, f32_rows, panel_depths, panel_tasks, round, round_tasks};
use crate::cpu::dropout::{BITS, Dropout, Kept};
use crate::cpu::float::{Dst, convert};
use crate::cpu::gemm::narrow::{Narrow, Panels, STRIP};
use crate::cpu::gemm::{Job, Mat, Product};
use crate::cpu::par::{self, Shared, Stage};
use crate::cpu::transposed::Transposed;
use crate::cpu::{Call, Kernel, KernelError};
use half::bf16;
use kfc_graph::{Attrs, DType, TensorType};
use std::ops::Range;

/// `lora_linear_bwd`.
pub(crate) struct LoraLinearBwd {
    lora: Lora,
    need_dx: bool,
    /// dS `[M, r]`.
    ds: Piece<f32>,
    /// What dropout keeps of x `[M, I]`, a bit each.
    kept: Option<Piece<u32>>,
    way: Way,
    workspace: usize,
}

/// How gradients of adapters are computed.
enum Way {
    /// With kernels for narrow matrices.
    Narrow(Narrow, Layout),
    /// As any products; the gradient of B is made transposed, `[r, O]`.
    Plain(Piece<f32>),
}

/// What narrow products keep in the workspace.
struct Layout {
    /// Panels of B, S and dS.
    b: Piece<u32>,
    s: Piece<u32>,
    ds: Piece<u32>,
    /// A `[r, I]` and dS `[M, r]`, rounded.
    a16: Piece<bf16>,
    ds16: Piece<bf16>,
}

impl LoraLinearBwd {
    pub(crate) fn new(attrs: &Attrs, inputs: &[TensorType]) -> Result<LoraLinearBwd, KernelError> {
        let lora = Lora::new(attrs, &inputs[1], &inputs[2], &inputs[3])?;
        let Lora { rows, inputs, outputs, rank, .. } = lora;
        let mut pieces = Pieces::default();
        let ds = pieces.next(rows * rank);
        let kept = lora.dropout.map(|_| pieces.next(Kept::words(rows * inputs)));
        let way = match lora.narrow() {
            Some(narrow) => {
                let layout = Layout {
                    b: pieces.next(Panels::len(rank, outputs)),
                    s: pieces.next(Panels::len(rank, rows)),
                    ds: pieces.next(Panels::len(rank, rows)),
                    a16: pieces.next(rank * inputs),
                    ds16: pieces.next(rows * rank),
                };
                Way::Narrow(narrow, layout)
            }
            None => Way::Plain(pieces.next(rank * outputs)),
        };
        Ok(LoraLinearBwd { lora, need_dx: attrs.bool("need_dx")?, ds, kept, way, workspace: pieces.bytes })
    }

    fn weight(&self) -> Transposed {
        let Lora { inputs, outputs, w, .. } = self.lora;
        Transposed { operand: 2, rows: outputs, columns: inputs, dtype: w }
    }

    /// Dropout, whose decisions are yet to be made by [`decide`].
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn dropout(&self, call: &Call<'_>) -> Option<(Dropout, Kept)> {
        // SAFETY: by contract; the workspace has the size asked for.
        unsafe {
            let kept = self.kept.as_ref().map(|kept| Kept::new(kept.of(call)))?;
            Some((self.lora.dropout(call)?.with(kept), kept))
        }
    }

    /// Computes the gradients of A and B, and what dropout keeps; returns dS and A as operands of the second product of dx.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn adapters(&self, call: &Call<'_>) -> (Mat, Mat) {
        // SAFETY: by contract.
        unsafe {
            match &self.way {
                Way::Narrow(narrow, layout) => self.narrow(call, *narrow, layout),
                Way::Plain(db) => self.plain(call, db),
            }
        }
    }

    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn plain(&self, call: &Call<'_>, db: &Piece<f32>) -> (Mat, Mat) {
        let Lora { rows, inputs, outputs, rank, scale, .. } = self.lora;
        let f32 = DType::F32;
        let first = usize::from(self.need_dx);
        // SAFETY: by contract; the workspace has the size asked for.
        unsafe {
            let dy = Mat::rows(call.src(0, self.lora.x), outputs);
            let dropout = self.dropout(call);
            let x = Mat::rows(call.src(1, self.lora.x), inputs).with_dropout(dropout.map(|d| d.0));
            let b = Mat::rows(call.src(4, f32), rank);
            if dropout.is_some() {
                par::tasks(rows.div_ceil(ROWS), |task| decide(dropout, inputs, block(task, rows)));
            }
            let ds = self.ds.of(call);
            let product = Product { alpha: scale, ..Product::new(dy, b, outputs) };
            Job::new(rows, rank, &[product], Dst::floats(ds)).run();
            let ds = f32_rows(ds, rank);

            let (s, db) = (Mat::rows(call.src(5, f32), rank), db.of(call));
            let product = Product { alpha: scale, ..Product::new(s.t(), dy, rows) };
            Job::new(rank, outputs, &[product], Dst::floats(db)).run();
            transpose(db, outputs, call.output(first + 1));

            Job::new(rank, inputs, &[Product::new(ds.t(), x, rows)], call.dst(first, f32)).run();
            (ds, Mat::rows(call.src(3, f32), inputs))
        }
    }

    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn narrow(&self, call: &Call<'_>, narrow: Narrow, layout: &Layout) -> (Mat, Mat) {
        let Lora { rows, inputs, outputs, rank, scale, .. } = self.lora;
        let first = usize::from(self.need_dx);
        // SAFETY: by contract; the workspace has the size asked for, and tasks write disjoint parts.
        unsafe {
            let (dy, x) = (call.src(0, DType::Bf16), call.src(1, DType::Bf16));
            let (a, b, s) = (call.input::<f32>(3), call.input::<f32>(4), call.input::<f32>(5));
            let dropout = self.dropout(call);
            let (a16, ds16) = (layout.a16.of(call), layout.ds16.of(call));
            let (a_rounded, ds_rounded) = (Shared::new(a16), Shared::new(ds16));
            let ds = Shared::new(self.ds.of(call));
            let b_panels = Panels::new(layout.b.of(call), rank, outputs);
            let s_panels = Panels::new(layout.s.of(call), rank, rows);
            let ds_panels = Panels::new(layout.ds.of(call), rank, rows);
            let (da, db) =
                (Shared::new(call.output::<f32>(first)), Shared::new(call.output::<f32>(first + 1)));

            let (of_b, of_s) = (panel_tasks(rank, outputs), panel_tasks(rank, rows));
            let rounds = if self.need_dx { round_tasks(a.len()) } else { 0 };
            let prepare = |task: usize| {
                if task < of_b {
                    let depths = panel_depths(rank, outputs, task);
                    b_panels.write(&b[depths.start * rank..], (1, rank), depths);
                } else if task < of_b + of_s {
                    let depths = panel_depths(rank, rows, task - of_b);
                    s_panels.write(&s[depths.start * rank..], (1, rank), depths);
                } else {
                    round(a, a_rounded, task - of_b - of_s);
                }
            };
            // dS = scale · dy·B, as it is, in panels and rounded; and what dropout keeps of these rows.
            let rows_of_s = |task: usize| {
                let Range { start, end } = block(task, rows);
                let n = end - start;
                decide(dropout, inputs, start..end);
                let part = ds.slice(start * rank, n * rank);
                narrow.rows(dy.raw(start * outputs, n * outputs), outputs, &b_panels, scale, part);
                convert(part, ds_rounded.slice(start * rank, n * rank));
                ds_panels.write(part, (1, rank), start..end);
            };
            // dB = scale · dyᵀ·S
            let columns_of_b = |strip: usize| {
                let (j, n) = part(strip, outputs);
                let db = db.slice(j * rank, n * rank);
                narrow.columns(n, &s_panels, (dy.offset(j).ptr().cast(), outputs), None, |k, line| {
                    line.iter().zip(db.chunks_exact_mut(rank)).for_each(|(sum, db)| db[k] = scale * sum);
                });
            };
            // dA = dSᵀ·dropout(x)
            let columns_of_a = |strip: usize| {
                let (j, n) = part(strip, inputs);
                let keep = dropout.map_or(1.0, |d| d.0.keep());
                let (x, kept) = ((x.offset(j).ptr().cast(), inputs), dropout.map(|d| (d.1, j)));
                narrow.columns(n, &ds_panels, x, kept, |k, line| {
                    let da = da.slice(k * inputs + j, n);
                    da.iter_mut().zip(line).for_each(|(da, sum)| *da = keep * sum);
                });
            };
            let blocks = rows.div_ceil(ROWS);
            let work = |task: usize| match task.checked_sub(blocks) {
                None => rows_of_s(task),
                Some(strip) => columns_of_b(strip),
            };
            let stages = [
                Stage((of_b + of_s + rounds, &prepare), (blocks + outputs.div_ceil(STRIP), &work)),
                Stage((0, &|_| ()), (inputs.div_ceil(STRIP), &columns_of_a)),
            ];
            par::run_steps(&stages);
            (bf16_rows(ds16, rank), bf16_rows(a16, inputs))
        }
    }
}

/// Rows of a task.
fn block(task: usize, rows: usize) -> Range<usize> {
    task * ROWS..rows.min((task + 1) * ROWS)
}

/// Decides what dropout keeps of rows, from a whole block of them on.
///
/// # Safety
/// There are bits for the rows, and nothing else uses them meanwhile.
unsafe fn decide(dropout: Option<(Dropout, Kept)>, inputs: usize, rows: Range<usize>) {
    const { assert!(ROWS.is_multiple_of(BITS)) };
    if let Some((dropout, kept)) = dropout {
        // SAFETY: by contract.
        unsafe { dropout.decide(kept, rows.start * inputs, rows.len() * inputs) }
    }
}

/// First and number of the columns of a strip.
fn part(strip: usize, columns: usize) -> (usize, usize) {
    (strip * STRIP, STRIP.min(columns - strip * STRIP))
}

impl Kernel for LoraLinearBwd {
    unsafe fn run(&self, call: &Call<'_>) {
        let Lora { rows, inputs, outputs, rank, .. } = self.lora;
        // SAFETY: by contract of `run`.
        unsafe {
            let (ds, a) = self.adapters(call);
            if self.need_dx {
                let dy = Mat::rows(call.src(0, self.lora.x), outputs);
                let w = self.weight().mat(call);
                let dropout = self.dropout(call).map(|d| d.0);
                let products =
                    [Product::new(dy, w, outputs), Product { dropout, ..Product::new(ds, a, rank) }];
                Job { dots: false, ..Job::new(rows, inputs, &products, call.dst(0, self.lora.x)) }.run();
            }
        }
    }

    fn workspace_bytes(&self) -> usize {
        self.workspace
    }

    fn transposed(&self) -> Option<Transposed> {
        self.need_dx.then(|| self.weight())
    }
}

/// Columns of a block of [`transpose`].
const BLOCK: usize = 16;

/// `out [columns, r]` of `x [r, columns]`, block by block.
fn transpose(x: &[f32], columns: usize, out: &mut [f32]) {
    let rank = x.len() / columns;
    for j in (0..columns).step_by(BLOCK) {
        for k in 0..rank {
            let line = &x[k * columns..][j..columns.min(j + BLOCK)];
            line.iter().enumerate().for_each(|(i, x)| out[(j + i) * rank + k] = *x);
        }
    }
}
