//! Runs one operation on the CPU kernels and on the `f64` interpreter and compares.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod exec;
pub mod levels;
pub mod llama;

use half::{bf16, f16};
use kfc_graph::interp::{self, Tensor};
use kfc_graph::{Builder, DType, Graph, InputKind, Op, Sample, SampleInput, TensorType};
use kfc_kernels::cpu::{self, Buf, Call};
use kfc_ops::samples;
use std::alloc::Layout;
use std::ptr::NonNull;

/// Encodes elements in their type.
pub fn encode(ty: &TensorType, data: &[f64]) -> Vec<u8> {
    data.iter()
        .flat_map(|&v| match ty.dtype {
            DType::F32 => (v as f32).to_le_bytes().to_vec(),
            DType::Bf16 => bf16::from_f64(v).to_le_bytes().to_vec(),
            DType::F16 => f16::from_f64(v).to_le_bytes().to_vec(),
            DType::I32 => (v as i32).to_le_bytes().to_vec(),
        })
        .collect()
}

/// Inverse of [`encode`].
pub fn decode(ty: &TensorType, bytes: &[u8]) -> Vec<f64> {
    bytes
        .chunks_exact(ty.dtype.size())
        .map(|b| match ty.dtype {
            DType::F32 => f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            DType::Bf16 => f64::from(bf16::from_le_bytes([b[0], b[1]])),
            DType::F16 => f64::from(f16::from_le_bytes([b[0], b[1]])),
            DType::I32 => f64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        })
        .collect()
}

/// Bytes with a 64-byte aligned start and nothing after them, so that an address sanitizer sees who goes too far.
pub struct Aligned {
    start: NonNull<u8>,
    bytes: usize,
}

impl Aligned {
    pub fn new(bytes: usize, fill: u8) -> Aligned {
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { std::alloc::alloc(Aligned::layout(bytes)) }).unwrap();
        // SAFETY: that many bytes were allocated.
        unsafe { start.write_bytes(fill, bytes) };
        Aligned { start, bytes }
    }

    /// An empty buffer still has an address of its own.
    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes.max(1), 64).unwrap()
    }

    pub fn buf(&mut self) -> Buf {
        Buf { ptr: self.start.as_ptr(), bytes: self.bytes }
    }

    pub fn slice(&mut self) -> &mut [u8] {
        // SAFETY: all bytes were written.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), Aligned::layout(self.bytes)) };
    }
}

/// Runs an operation on the CPU; returns the bytes of its results. Results and workspace hold garbage before.
pub fn run_cpu(op: &Op, inputs: &[TensorType], data: &[Vec<u8>]) -> Vec<Vec<u8>> {
    run_copied(op, inputs, data, false)
}

/// [`run_cpu`] with a transposed copy of the operand that may have one, if `copied`.
pub fn run_copied(op: &Op, inputs: &[TensorType], data: &[Vec<u8>], copied: bool) -> Vec<Vec<u8>> {
    let outputs = op.infer(inputs).unwrap();
    let kernel = cpu::build(op, inputs, &outputs).unwrap();
    let mut ins: Vec<Aligned> = data
        .iter()
        .map(|d| {
            let mut a = Aligned::new(d.len(), 0);
            a.slice().copy_from_slice(d);
            a
        })
        .collect();
    let mut outs: Vec<Aligned> = outputs.iter().map(|t| Aligned::new(t.bytes(), 0xff)).collect();
    for &(i, o) in kernel.inplace() {
        outs[o].slice().copy_from_slice(&data[i]);
        // The contract forbids to read this operand.
        ins[i].slice().fill(0xff);
    }
    let mut workspace = Aligned::new(kernel.workspace_bytes(), 0xff);
    let in_bufs: Vec<Buf> = ins.iter_mut().map(Aligned::buf).collect();
    let out_bufs: Vec<Buf> = outs.iter_mut().map(Aligned::buf).collect();
    let mut copy = kernel.transposed().filter(|_| copied).map(|t| {
        let mut copy = Aligned::new(t.bytes(), 0xff);
        t.fill(&data[t.operand], copy.slice());
        copy
    });
    let transposed = copy.as_mut().map(Aligned::buf);
    // SAFETY: buffers have the sizes of their types and do not overlap.
    unsafe {
        kernel.run(&Call { inputs: &in_bufs, outputs: &out_bufs, workspace: workspace.buf(), transposed });
    }
    outs.iter_mut().map(|o| o.slice().to_vec()).collect()
}

/// Runs an operation on the interpreter.
pub fn run_interp(op: &Op, inputs: &[TensorType], data: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let mut g = Graph::new("one");
    let ids: Vec<_> = inputs
        .iter()
        .enumerate()
        .map(|(i, t)| g.add_input(format!("i{i}"), InputKind::Data, t.clone()))
        .collect();
    let results = Builder::new(&mut g).op(op.clone(), &ids).unwrap();
    results.iter().enumerate().for_each(|(i, r)| g.add_output(format!("o{i}"), *r, None));
    let tensors: Vec<Tensor> =
        inputs.iter().zip(data).map(|(t, d)| Tensor::new(t.dims.clone(), d.clone())).collect();
    interp::run(&g, &tensors).unwrap().into_iter().map(|t| t.data).collect()
}

/// What rounding operands of a sum to `bf16` may make of it.
pub const ROUNDED: f64 = 4e-3;

/// Largest error allowed, relative to the largest element of the exact result. It depends on the result's type: whatever the
/// operands are, arithmetic is in `f32`.
pub fn precise(out: &TensorType) -> f64 {
    match out.dtype {
        DType::F32 => 1e-5,
        DType::Bf16 => 1e-2,
        DType::F16 => 2e-3,
        DType::I32 => 0.0,
    }
}

/// The same, but adapters may be rounded where the activations that they are multiplied with are `bf16`.
fn tolerance(op: &Op, inputs: &[TensorType], out: &TensorType) -> f64 {
    let is_rounded = op.name().starts_with("lora_linear") && inputs[0].dtype == DType::Bf16;
    if is_rounded { precise(out).max(ROUNDED) } else { precise(out) }
}

/// Compares the CPU with the interpreter on these operands, and thread counts with each other.
pub fn check(what: &str, op: &Op, inputs: &[TensorType], data: &[Vec<f64>]) {
    check_within(what, op, inputs, data, |_, ty| tolerance(op, inputs, ty));
}

/// The same with errors allowed for each result and its type.
pub fn check_within(
    what: &str,
    op: &Op,
    inputs: &[TensorType],
    data: &[Vec<f64>],
    tolerance: impl Fn(usize, &TensorType) -> f64,
) {
    let bytes: Vec<Vec<u8>> = inputs.iter().zip(data).map(|(t, d)| encode(t, d)).collect();
    let outputs = op.infer(inputs).unwrap();
    let exact = run_interp(op, inputs, data);
    let in_pool = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run_cpu(op, inputs, &bytes))
    };
    let got = in_pool(1);
    for threads in [2, 3] {
        assert_eq!(in_pool(threads), got, "{what}: {} differs with {threads} threads", op.name());
    }
    for (j, (ty, exact)) in outputs.iter().zip(&exact).enumerate() {
        let got = decode(ty, &got[j]);
        let scale = exact.iter().fold(0.0f64, |m, v| m.max(v.abs())).max(1e-3);
        let tol = tolerance(j, ty) * scale;
        for (i, (g, e)) in got.iter().zip(exact).enumerate() {
            let close = g == e || (g - e).abs() <= tol || (g.is_nan() && e.is_nan());
            assert!(
                close,
                "{what}: {} result {j} {ty}, element {i}: {g} instead of {e}, tolerance {tol:e}\noperands {}",
                op.name(),
                inputs.iter().map(|t| t.to_string()).collect::<Vec<_>>().join(", ")
            );
        }
    }
}

/// Checks one sample.
pub fn check_sample(what: &str, op: &Op, sample: &Sample, seed: u64) {
    let types: Vec<TensorType> = sample.inputs.iter().map(|(t, _)| t.clone()).collect();
    let data: Vec<Vec<f64>> = sample
        .inputs
        .iter()
        .enumerate()
        .map(|(i, (t, c))| samples::fill(t, c, seed.wrapping_mul(1000).wrapping_add(i as u64)))
        .collect();
    check(what, op, &types, &data);
}

/// Checks an operation on uniform operands in `lo..hi` (integers for `i32`).
pub fn check_uniform(op: &Op, types: &[TensorType], lo: f64, hi: f64) {
    let inputs = types
        .iter()
        .map(|t| {
            let c = match t.dtype {
                DType::I32 => SampleInput::Integers(lo as i64, hi as i64),
                _ => SampleInput::Uniform(lo, hi),
            };
            (t.clone(), c)
        })
        .collect();
    check_sample("uniform", op, &Sample { attrs: kfc_graph::Attrs::new(), inputs }, 1);
}
