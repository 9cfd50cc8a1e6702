//! `lora_linear` and its gradient: everything goes through the narrow `S = dropout(x)·Aᵀ`.

use crate::cpu::float::Dst;
use crate::cpu::gemm::{Job, Mat, Product};
use crate::cpu::philox::{Dropout, Stream};
use crate::cpu::{Call, Kernel, KernelError};
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
}

/// `lora_linear`.
pub(crate) struct LoraLinear {
    lora: Lora,
    bias: Option<DType>,
}

impl LoraLinear {
    pub(crate) fn new(attrs: &Attrs, inputs: &[TensorType]) -> Result<LoraLinear, KernelError> {
        let lora = Lora::new(attrs, &inputs[0], &inputs[1], &inputs[2])?;
        let bias = attrs.bool("bias")?.then(|| inputs[4].dtype);
        Ok(LoraLinear { lora, bias })
    }
}

impl Kernel for LoraLinear {
    unsafe fn run(&self, call: &Call<'_>) {
        let Lora { rows, inputs, outputs, rank, scale, .. } = self.lora;
        let f32 = DType::F32;
        let x = Mat::rows(call.src(0, self.lora.x), inputs);
        let w = Mat::rows(call.src(1, self.lora.w), inputs);
        let (a, b) = (Mat::rows(call.src(2, f32), inputs), Mat::rows(call.src(3, f32), rank));
        let (y, s) = (call.dst(0, self.lora.x), call.dst(1, f32));
        // SAFETY: by contract of `run`.
        unsafe {
            let dropped = x.with_dropout(self.lora.dropout(call));
            Job::new(rows, rank, &[Product::new(dropped, a.t(), inputs)], s).run();
            let products = [
                Product::new(x, w.t(), inputs),
                Product { alpha: scale, ..Product::new(Mat::rows(s.src(), rank), b.t(), rank) },
            ];
            let bias = self.bias.map(|t| call.src(4, t));
            Job { bias, ..Job::new(rows, outputs, &products, y) }.run();
        }
    }
}

/// `lora_linear_bwd`. The gradient of the frozen weight is never computed.
pub(crate) struct LoraLinearBwd {
    lora: Lora,
    need_dx: bool,
}

impl LoraLinearBwd {
    pub(crate) fn new(attrs: &Attrs, inputs: &[TensorType]) -> Result<LoraLinearBwd, KernelError> {
        let lora = Lora::new(attrs, &inputs[1], &inputs[2], &inputs[3])?;
        Ok(LoraLinearBwd { lora, need_dx: attrs.bool("need_dx")? })
    }
}

impl Kernel for LoraLinearBwd {
    unsafe fn run(&self, call: &Call<'_>) {
        let Lora { rows, inputs, outputs, rank, scale, .. } = self.lora;
        let f32 = DType::F32;
        let dy = Mat::rows(call.src(0, self.lora.x), outputs);
        let x = Mat::rows(call.src(1, self.lora.x), inputs);
        let w = Mat::rows(call.src(2, self.lora.w), inputs);
        let (a, b) = (Mat::rows(call.src(3, f32), inputs), Mat::rows(call.src(4, f32), rank));
        let s = Mat::rows(call.src(5, f32), rank);
        let first = usize::from(self.need_dx);
        let (da, db) = (call.dst(first, f32), call.dst(first + 1, f32));
        // SAFETY: by contract of `run`; the workspace has the size asked for.
        unsafe {
            let dropout = self.lora.dropout(call);
            let ds = Dst::floats(call.work(0, rows * rank));
            let scaled = |a, b, k| Product { alpha: scale, ..Product::new(a, b, k) };
            Job::new(rows, rank, &[scaled(dy, b, outputs)], ds).run();
            let ds = Mat::rows(ds.src(), rank);
            Job::new(outputs, rank, &[scaled(dy.t(), s, rows)], db).run();
            Job::new(rank, inputs, &[Product::new(ds.t(), x.with_dropout(dropout), rows)], da).run();
            if self.need_dx {
                let products =
                    [Product::new(dy, w, outputs), Product { dropout, ..Product::new(ds, a, rank) }];
                Job::new(rows, inputs, &products, call.dst(0, self.lora.x)).run();
            }
        }
    }

    fn workspace_bytes(&self) -> usize {
        self.lora.rows * self.lora.rank * size_of::<f32>()
    }
}
