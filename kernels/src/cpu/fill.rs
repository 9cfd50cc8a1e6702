//! Results without operands: constants, indices, random numbers.

use crate::cpu::philox::Stream;
use crate::cpu::{Call, Kernel, par};
use kfc_graph::{DType, TensorType};

/// `Prim::Const`.
pub(crate) struct Const {
    n: usize,
    dtype: DType,
    bits: u32,
}

impl Const {
    pub(crate) fn new(ty: &TensorType, value: f64) -> Const {
        Const { n: ty.elements(), dtype: ty.dtype, bits: bits(ty.dtype, value) }
    }
}

/// An element of this value, in the low bits.
pub(crate) fn bits(dtype: DType, value: f64) -> u32 {
    match dtype {
        DType::F32 => (value as f32).to_bits(),
        DType::Bf16 => u32::from(half::bf16::from_f64(value).to_bits()),
        DType::F16 => u32::from(half::f16::from_f64(value).to_bits()),
        DType::I32 => value as i32 as u32,
    }
}

impl Kernel for Const {
    unsafe fn run(&self, call: &Call<'_>) {
        let out = call.dst(0, self.dtype);
        par::ranges(self.n, 4 * par::GRAIN, |r| {
            // SAFETY: ranges are disjoint and in bounds.
            unsafe {
                match self.dtype.size() {
                    2 => out.raw::<u16>(r.start, r.len()).fill(self.bits as u16),
                    _ => out.raw::<u32>(r.start, r.len()).fill(self.bits),
                }
            }
        });
    }
}

/// `Prim::Iota`.
pub(crate) struct Iota {
    outer: usize,
    count: usize,
    inner: usize,
}

impl Iota {
    pub(crate) fn new(dims: &[usize], axis: usize) -> Iota {
        Iota {
            outer: dims[..axis].iter().product(),
            count: dims[axis],
            inner: dims[axis + 1..].iter().product(),
        }
    }
}

impl Kernel for Iota {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract of `run`.
        let out = unsafe { call.output::<i32>(0) };
        if out.is_empty() {
            return;
        }
        let repeated = out.chunks_exact_mut(self.count * self.inner).take(self.outer);
        for period in repeated {
            for (i, run) in period.chunks_exact_mut(self.inner).enumerate() {
                run.fill(i as i32);
            }
        }
    }
}

/// `Prim::Random`.
pub(crate) struct Random {
    n: usize,
    stream: u32,
}

impl Random {
    pub(crate) fn new(dims: &[usize], stream: u32) -> Random {
        Random { n: dims.iter().product(), stream }
    }
}

impl Kernel for Random {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract of `run`.
        let stream = Stream::new(unsafe { call.input(0) }, self.stream);
        let out = call.dst(0, DType::F32);
        par::ranges(self.n, par::GRAIN, |r| {
            // SAFETY: ranges are disjoint and in bounds.
            stream.uniform(r.start as u64, unsafe { out.raw(r.start, r.len()) });
        });
    }
}
