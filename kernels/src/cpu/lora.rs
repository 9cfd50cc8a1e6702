//! `lora_linear` and its gradient: everything goes through the narrow `S = dropout(x)·Aᵀ`.
//!
//! Where the CPU multiplies `bf16`, a `bf16` activation times an `f32` adapter is one product of `bf16`: the `f32` matrix is
//! split into a rounded part and the rounded rest, which stand side by side, and the two halves of the result are added. That
//! keeps 16 bits of each adapter element, at twice the width and the speed of `bf16`.

use crate::cpu::float::{Dst, Src};
use crate::cpu::gemm::{self, Job, Mat, Product};
use crate::cpu::par::{self, Shared};
use crate::cpu::philox::{Dropout, Stream};
use crate::cpu::simd::simd;
use crate::cpu::{Call, Kernel, KernelError};
use half::bf16;
use kfc_graph::{Attrs, DType, TensorType};

/// Shapes and attributes that both directions share.
#[derive(Clone, Copy)]
struct Lora {
    rows: usize,
    inputs: usize,
    outputs: usize,
    rank: usize,
    x: DType,
    w: DType,
    scale: f32,
    /// Rate and stream, if there is dropout.
    dropout: Option<(f64, u32)>,
}

impl Lora {
    fn new(attrs: &Attrs, x: &TensorType, w: &TensorType, a: &TensorType) -> Result<Lora, KernelError> {
        let p = attrs.f64("dropout")?;
        let dropout = if p > 0.0 { Some((p, attrs.usize("stream")? as u32)) } else { None };
        Ok(Lora {
            rows: x.rows(),
            inputs: x.last(),
            outputs: w.dims[0],
            rank: a.dims[0],
            x: x.dtype,
            w: w.dtype,
            scale: attrs.f64("scale")? as f32,
            dropout,
        })
    }

    /// # Safety
    /// The last operand is the seed if there is dropout.
    unsafe fn dropout(&self, call: &Call<'_>) -> Option<Dropout> {
        // SAFETY: by contract.
        let seed = || unsafe { call.input::<i32>(call.inputs.len() - 1) };
        self.dropout.map(|(p, stream)| Dropout::new(Stream::new(seed(), stream), p))
    }

    /// Whether products of activations and adapters are products of split adapters. (Elements of x that dropout has scaled
    /// are no `bf16`.)
    fn splits(&self, with_dropout: bool) -> bool {
        self.x == DType::Bf16 && !(with_dropout && self.dropout.is_some()) && gemm::multiplies_bf16()
    }
}

/// Pieces of a workspace, one after the other.
#[derive(Default)]
struct Pieces {
    bytes: usize,
}

impl Pieces {
    /// Where the next `n` elements of `size` bytes begin.
    fn next(&mut self, n: usize, size: usize) -> usize {
        let start = self.bytes;
        self.bytes += (n * size).next_multiple_of(64);
        start
    }
}

/// `lora_linear`.
pub(crate) struct LoraLinear {
    lora: Lora,
    bias: Option<DType>,
    /// Where the split A `[2r, I]` and both halves of S `[M, 2r]` are.
    a: usize,
    s: usize,
    workspace: usize,
}

impl LoraLinear {
    pub(crate) fn new(attrs: &Attrs, inputs: &[TensorType]) -> Result<LoraLinear, KernelError> {
        let lora = Lora::new(attrs, &inputs[0], &inputs[1], &inputs[2])?;
        let bias = attrs.bool("bias")?.then(|| inputs[4].dtype);
        let mut pieces = Pieces::default();
        let wide = if lora.splits(true) { 2 * lora.rank } else { 0 };
        let a = pieces.next(wide * lora.inputs, size_of::<bf16>());
        let s = pieces.next(lora.rows * wide, size_of::<f32>());
        Ok(LoraLinear { lora, bias, a, s, workspace: pieces.bytes })
    }

    /// Computes S.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn narrow(&self, call: &Call<'_>, x: Mat, s: Dst) {
        let Lora { rows, inputs, rank, .. } = self.lora;
        // SAFETY: by contract; the workspace has the size asked for.
        unsafe {
            if !self.lora.splits(true) {
                let a = Mat::rows(call.src(2, DType::F32), inputs);
                let x = x.with_dropout(self.lora.dropout(call));
                return Job::new(rows, rank, &[Product::new(x, a.t(), inputs)], s).run();
            }
            let split_a = call.work::<bf16>(self.a, 2 * rank * inputs);
            let (high, low) = split_a.split_at_mut(rank * inputs);
            split(call.input(2), high, low);
            let a = Mat::rows(bf16s(split_a), inputs);
            let wide = call.work::<f32>(self.s, rows * 2 * rank);
            Job::new(rows, 2 * rank, &[Product::new(x, a.t(), inputs)], Dst::floats(wide)).run();
            for (s, wide) in s.raw(0, rows * rank).chunks_exact_mut(rank).zip(wide.chunks_exact(2 * rank)) {
                let (high, low) = wide.split_at(rank);
                sum(1.0, high, low, s);
            }
        }
    }
}

impl Kernel for LoraLinear {
    unsafe fn run(&self, call: &Call<'_>) {
        let Lora { rows, inputs, outputs, rank, scale, .. } = self.lora;
        let f32 = DType::F32;
        let x = Mat::rows(call.src(0, self.lora.x), inputs);
        let w = Mat::rows(call.src(1, self.lora.w), inputs);
        let b = Mat::rows(call.src(3, f32), rank);
        let (y, s) = (call.dst(0, self.lora.x), call.dst(1, f32));
        // SAFETY: by contract of `run`.
        unsafe {
            self.narrow(call, x, s);
            let products = [
                Product::new(x, w.t(), inputs),
                Product { alpha: scale, ..Product::new(Mat::rows(s.src(), rank), b.t(), rank) },
            ];
            let bias = self.bias.map(|t| call.src(4, t));
            Job { bias, ..Job::new(rows, outputs, &products, y) }.run();
        }
    }

    fn workspace_bytes(&self) -> usize {
        self.workspace
    }
}

/// `lora_linear_bwd`. The gradient of the frozen weight is never computed.
pub(crate) struct LoraLinearBwd {
    lora: Lora,
    need_dx: bool,
    layout: Layout,
}

/// Where things stand in the workspace, in bytes.
#[derive(Default)]
struct Layout {
    /// dS `[M, r]`.
    ds: usize,
    /// Both halves of dS `[M, 2r]`, or of a gradient `[2r, I]` or `[2r, O]`.
    wide: usize,
    /// The split B `[O, 2r]`, or the split S or dS `[M, 2r]`.
    split: usize,
    total: usize,
}

impl LoraLinearBwd {
    pub(crate) fn new(attrs: &Attrs, inputs: &[TensorType]) -> Result<LoraLinearBwd, KernelError> {
        let lora = Lora::new(attrs, &inputs[1], &inputs[2], &inputs[3])?;
        let mut pieces = Pieces::default();
        let wide = if lora.splits(false) { 2 * lora.rank } else { 0 };
        let layout = Layout {
            ds: pieces.next(lora.rows * lora.rank, size_of::<f32>()),
            wide: pieces.next(
                (wide * lora.rows.max(lora.inputs).max(lora.outputs)).max(lora.rank * lora.outputs),
                size_of::<f32>(),
            ),
            split: pieces.next(wide * lora.rows.max(lora.outputs), size_of::<bf16>()),
            total: pieces.bytes,
        };
        Ok(LoraLinearBwd { lora, need_dx: attrs.bool("need_dx")?, layout })
    }

    /// Splits `f32` rows of `r` into `bf16` rows of `2r`.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn split_rows(&self, call: &Call<'_>, from: &[f32]) -> Mat {
        let r = self.lora.rank;
        // SAFETY: by contract; the workspace has the size asked for.
        let to = unsafe { call.work::<bf16>(self.layout.split, 2 * from.len()) };
        let shared = Shared::new(to);
        par::ranges(from.len() / r, par::rows_grain(r), |rows| {
            for row in rows {
                // SAFETY: rows are disjoint.
                let (high, low) = unsafe { shared.slice(2 * r * row, 2 * r) }.split_at_mut(r);
                split(&from[r * row..][..r], high, low);
            }
        });
        Mat::rows(bf16s(to), 2 * r)
    }

    /// `dS = scale · dy·B`.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn narrow(&self, call: &Call<'_>, dy: Mat, ds: &mut [f32]) {
        let Lora { rows, outputs, rank, scale, .. } = self.lora;
        // SAFETY: by contract; the workspace has the size asked for.
        unsafe {
            if !self.lora.splits(false) {
                let b = Mat::rows(call.src(4, DType::F32), rank);
                let product = Product { alpha: scale, ..Product::new(dy, b, outputs) };
                return Job::new(rows, rank, &[product], Dst::floats(ds)).run();
            }
            let b = self.split_rows(call, call.input(4));
            let wide = call.work::<f32>(self.layout.wide, rows * 2 * rank);
            Job::new(rows, 2 * rank, &[Product::new(dy, b, outputs)], Dst::floats(wide)).run();
            for (ds, wide) in ds.chunks_exact_mut(rank).zip(wide.chunks_exact(2 * rank)) {
                let (high, low) = wide.split_at(rank);
                sum(scale, high, low, ds);
            }
        }
    }

    /// `Nᵀ·x` for a narrow N `[M, r]` and x `[M, columns]`, as one `[r, columns]` or as two halves of it.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn gradient<'a>(
        &self,
        call: &'a Call<'_>,
        narrow: &[f32],
        x: Mat,
        columns: usize,
        splits: bool,
    ) -> (&'a [f32], &'a [f32]) {
        let Lora { rows, rank, .. } = self.lora;
        // SAFETY: by contract; the workspace has the size asked for.
        unsafe {
            let (n, lines) = if splits {
                (self.split_rows(call, narrow), 2 * rank)
            } else {
                (Mat::rows(Src::new(narrow.as_ptr().cast(), DType::F32), rank), rank)
            };
            let wide = call.work::<f32>(self.layout.wide, lines * columns);
            Job::new(lines, columns, &[Product::new(n.t(), x, rows)], Dst::floats(wide)).run();
            let (high, low) = wide.split_at(rank * columns);
            (high, low)
        }
    }
}

impl Kernel for LoraLinearBwd {
    unsafe fn run(&self, call: &Call<'_>) {
        let Lora { rows, inputs, outputs, rank, scale, .. } = self.lora;
        let f32 = DType::F32;
        let dy = Mat::rows(call.src(0, self.lora.x), outputs);
        let x = Mat::rows(call.src(1, self.lora.x), inputs);
        let w = Mat::rows(call.src(2, self.lora.w), inputs);
        let a = Mat::rows(call.src(3, f32), inputs);
        let first = usize::from(self.need_dx);
        // SAFETY: by contract of `run`; the workspace has the size asked for.
        unsafe {
            let dropout = self.lora.dropout(call);
            let ds = call.work(self.layout.ds, rows * rank);
            self.narrow(call, dy, ds);
            let (high, low) = self.gradient(call, call.input(5), dy, outputs, self.lora.splits(false));
            transposed_sum(scale, high, low, outputs, call.output(first + 1));
            let da = call.output::<f32>(first);
            if self.lora.splits(true) {
                let (high, low) = self.gradient(call, ds, x, inputs, true);
                sum(1.0, high, low, da);
            } else {
                let narrow = Mat::rows(Dst::floats(ds).src(), rank).t();
                let product = Product::new(narrow, x.with_dropout(dropout), rows);
                Job::new(rank, inputs, &[product], Dst::floats(da)).run();
            }
            if self.need_dx {
                let ds = Mat::rows(Dst::floats(ds).src(), rank);
                let products =
                    [Product::new(dy, w, outputs), Product { dropout, ..Product::new(ds, a, rank) }];
                Job::new(rows, inputs, &products, call.dst(0, self.lora.x)).run();
            }
        }
    }

    fn workspace_bytes(&self) -> usize {
        self.layout.total
    }
}

fn bf16s(x: &[bf16]) -> Src {
    Src::new(x.as_ptr().cast(), DType::Bf16)
}

/// Rows of a block of [`transposed_sum`].
const BLOCK: usize = 16;

/// `out [columns, r] = scale · (high + low)ᵀ` of `[r, columns]`; `low` may be empty.
fn transposed_sum(scale: f32, high: &[f32], low: &[f32], columns: usize, out: &mut [f32]) {
    let rank = high.len() / columns;
    let mut line = [0.0f32; BLOCK];
    for j in (0..columns).step_by(BLOCK) {
        let n = BLOCK.min(columns - j);
        for k in 0..rank {
            let at = k * columns + j;
            sum(scale, &high[at..at + n], low.get(at..at + n).unwrap_or_default(), &mut line[..n]);
            (0..n).for_each(|i| out[(j + i) * rank + k] = line[i]);
        }
    }
}

simd! {
    /// `x` as a sum of two `bf16`.
    fn split(x: &[f32], high: &mut [bf16], low: &mut [bf16]) {
        for ((x, high), low) in x.iter().zip(high).zip(low) {
            let bits = if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
            let top = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
            let rest = (*x - f32::from_bits(top)).to_bits();
            *high = bf16::from_bits((top >> 16) as u16);
            *low = bf16::from_bits((rest.wrapping_add(0x7fff + ((rest >> 16) & 1)) >> 16) as u16);
        }
    }

    /// `out = scale · (high + low)`; `low` may be empty.
    fn sum(scale: f32, high: &[f32], low: &[f32], out: &mut [f32]) {
        if low.is_empty() {
            return out.iter_mut().zip(high).for_each(|(o, h)| *o = scale * h);
        }
        for ((o, h), l) in out.iter_mut().zip(high).zip(low) {
            *o = scale * (h + l);
        }
    }
}
