//! `lora_linear` and its gradient: everything goes through the narrow `S = dropout(x)·Aᵀ`.
//!
//! `S` and the gradients of the adapters are `f32`. Where the CPU has kernels for them ([`crate::cpu::gemm::narrow`]), products of a
//! `bf16` activation with an adapter, with `S` or with its gradient round these to `bf16`, too: in gradients that is lost among
//! what rounding the activations does. What an adapter adds to a `bf16` result is a product of `bf16` in the same pass as that of
//! the frozen weight, whose depth it makes longer by the rank. Other types are computed in `f32`.

mod backward;
mod forward;

pub(crate) use backward::LoraLinearBwd;
pub(crate) use forward::LoraLinear;

use crate::cpu::dropout::Dropout;
use crate::cpu::float::{Dst, Src, convert};
use crate::cpu::gemm::Mat;
use crate::cpu::gemm::narrow::Narrow;
use crate::cpu::par::Shared;
use crate::cpu::philox::Stream;
use crate::cpu::{Call, KernelError};
use half::bf16;
use kfc_graph::{Attrs, DType, TensorType};
use std::ops::Range;

/// Rows of a task that multiplies by an adapter; even, and whole tiles of kernels.
const ROWS: usize = 32;

/// Elements of a task that converts an adapter.
const CONVERTED: usize = 4096;

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

    /// The kernels for products with adapters, if there are any for these operands: pairs of elements must not go over the
    /// end of a row.
    fn narrow(&self) -> Option<Narrow> {
        let is_even = self.inputs.is_multiple_of(2) && self.outputs.is_multiple_of(2);
        Narrow::of(self.x).filter(|_| is_even && self.w == DType::Bf16 && self.rank > 0)
    }
}

/// Pieces of a workspace, one after the other.
#[derive(Default)]
struct Pieces {
    bytes: usize,
}

impl Pieces {
    /// Where the next `n` elements of `T` begin.
    fn next<T>(&mut self, n: usize) -> Piece<T> {
        let at = self.bytes;
        self.bytes += (n * size_of::<T>()).next_multiple_of(64);
        Piece { at, n, of: std::marker::PhantomData }
    }
}

/// A piece of a workspace.
struct Piece<T> {
    at: usize,
    n: usize,
    of: std::marker::PhantomData<fn() -> T>,
}

impl<T: bytemuck::Pod> Piece<T> {
    /// # Safety
    /// As [`Call::work`].
    #[allow(clippy::mut_from_ref)]
    unsafe fn of<'a>(&self, call: &'a Call<'_>) -> &'a mut [T] {
        // SAFETY: by contract.
        unsafe { call.work(self.at, self.n) }
    }
}

/// Tasks that write the panels of a narrow matrix.
fn panel_tasks(lines: usize, depth: usize) -> usize {
    (lines * depth).div_ceil(CONVERTED)
}

/// The depths of such a task.
fn panel_depths(lines: usize, depth: usize, task: usize) -> Range<usize> {
    let each = depth.div_ceil(panel_tasks(lines, depth)).next_multiple_of(2);
    (task * each).min(depth)..((task + 1) * each).min(depth)
}

/// Tasks that round a matrix to `bf16`.
fn round_tasks(n: usize) -> usize {
    n.div_ceil(CONVERTED)
}

/// Such a task.
///
/// # Safety
/// `out` has as many elements, and nothing else uses those of the task.
unsafe fn round(x: &[f32], out: Shared<bf16>, task: usize) {
    let part = &x[task * CONVERTED..x.len().min((task + 1) * CONVERTED)];
    // SAFETY: by contract.
    convert(part, unsafe { out.slice(task * CONVERTED, part.len()) });
}

/// A `bf16` matrix of rows of `columns`.
fn bf16_rows(x: &[bf16], columns: usize) -> Mat {
    Mat::rows(Src::new(x.as_ptr().cast(), DType::Bf16), columns)
}

/// An `f32` matrix of rows of `columns`.
fn f32_rows(x: &mut [f32], columns: usize) -> Mat {
    Mat::rows(Dst::floats(x).src(), columns)
}
