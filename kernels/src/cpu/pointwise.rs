//! Pointwise primitives: one loop an operation over blocks of `f32`, or over `i32` as it is.

use crate::cpu::float::{BLOCK, Dst, Src};
use crate::cpu::simd::simd;
use crate::cpu::{Call, Kernel, KernelError, math, par};
use kfc_graph::{CmpOp, DType, Prim, TensorType};

type Unary = fn(&[f32], &mut [f32]);
type Binary = fn(&[f32], &[f32], &mut [f32]);
type BinaryInt = fn(&[i32], &[i32], &mut [i32]);
type CompareFloat = fn(&[f32], &[f32], &mut [i32]);

/// The kernel of a pointwise primitive other than `Cast` and `Select`.
pub(crate) fn build(p: &Prim, inputs: &[TensorType]) -> Result<Box<dyn Kernel>, KernelError> {
    let n = inputs[0].elements();
    let dtype = inputs[0].dtype;
    let is_int = dtype == DType::I32;
    let unary = |f: Unary| -> Box<dyn Kernel> { Box::new(UnaryKernel { n, dtype, f }) };
    let binary = |f: Binary, g: BinaryInt| -> Box<dyn Kernel> {
        if is_int { Box::new(IntKernel { n, f: g }) } else { Box::new(BinaryKernel { n, dtype, f }) }
    };
    let compare = |f: CompareFloat, g: BinaryInt| -> Box<dyn Kernel> {
        if is_int { Box::new(IntKernel { n, f: g }) } else { Box::new(CompareKernel { n, dtype, f }) }
    };
    Ok(match p {
        Prim::Neg => unary(neg),
        Prim::Exp => unary(exp),
        Prim::Log => unary(log),
        Prim::Sqrt => unary(sqrt),
        Prim::Sigmoid => unary(sigmoid),
        Prim::Add => binary(add, add_int),
        Prim::Sub => binary(sub, sub_int),
        Prim::Mul => binary(mul, mul_int),
        Prim::Div => binary(div, div_int),
        Prim::Max => binary(max, max_int),
        Prim::Compare(CmpOp::Eq) => compare(eq, eq_int),
        Prim::Compare(CmpOp::Lt) => compare(lt, lt_int),
        Prim::Compare(CmpOp::Le) => compare(le, le_int),
        other => return Err(KernelError::Unclaimed(other.name().to_string())),
    })
}

/// Calls `f(start, len)` for each block of `0..n`, in parallel over groups of blocks.
fn blocks(n: usize, f: impl Fn(usize, usize) + Sync + Send) {
    par::ranges(n, par::GRAIN, |r| {
        let end = r.end;
        r.step_by(BLOCK).for_each(|start| f(start, BLOCK.min(end - start)));
    });
}

struct UnaryKernel {
    n: usize,
    dtype: DType,
    f: Unary,
}

impl Kernel for UnaryKernel {
    unsafe fn run(&self, call: &Call<'_>) {
        let (a, out) = (call.src(0, self.dtype), call.dst(0, self.dtype));
        blocks(self.n, |start, n| {
            let (mut x, mut y) = ([0.0; BLOCK], [0.0; BLOCK]);
            // SAFETY: blocks are disjoint and in bounds.
            unsafe {
                let x = a.read_before(&[out], start, n, &mut x);
                let y = out.begin(start, n, &mut y);
                (self.f)(x, y);
                out.finish(start, y);
            }
        });
    }

    fn may_inplace(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}

struct BinaryKernel {
    n: usize,
    dtype: DType,
    f: Binary,
}

impl Kernel for BinaryKernel {
    unsafe fn run(&self, call: &Call<'_>) {
        let (a, b, out) = (call.src(0, self.dtype), call.src(1, self.dtype), call.dst(0, self.dtype));
        blocks(self.n, |start, n| {
            let (mut x, mut y, mut z) = ([0.0; BLOCK], [0.0; BLOCK], [0.0; BLOCK]);
            // SAFETY: blocks are disjoint and in bounds.
            unsafe {
                let x = a.read_before(&[out], start, n, &mut x);
                let y = b.read_before(&[out], start, n, &mut y);
                let z = out.begin(start, n, &mut z);
                (self.f)(x, y, z);
                out.finish(start, z);
            }
        });
    }

    fn may_inplace(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (1, 0)]
    }
}

struct CompareKernel {
    n: usize,
    dtype: DType,
    f: CompareFloat,
}

impl Kernel for CompareKernel {
    unsafe fn run(&self, call: &Call<'_>) {
        let (a, b, out) = (call.src(0, self.dtype), call.src(1, self.dtype), call.dst(0, DType::I32));
        blocks(self.n, |start, n| {
            let (mut x, mut y) = ([0.0; BLOCK], [0.0; BLOCK]);
            // SAFETY: blocks are disjoint and in bounds.
            unsafe { (self.f)(a.read(start, n, &mut x), b.read(start, n, &mut y), out.raw(start, n)) }
        });
    }
}

struct IntKernel {
    n: usize,
    f: BinaryInt,
}

impl Kernel for IntKernel {
    unsafe fn run(&self, call: &Call<'_>) {
        let (a, b, out) = (call.src(0, DType::I32), call.src(1, DType::I32), call.dst(0, DType::I32));
        blocks(self.n, |start, n| {
            // SAFETY: blocks are disjoint and in bounds.
            unsafe { (self.f)(a.raw(start, n), b.raw(start, n), out.raw(start, n)) }
        });
    }
}

/// `Prim::Cast`.
pub(crate) struct Cast {
    n: usize,
    from: DType,
    to: DType,
}

impl Cast {
    pub(crate) fn new(from: &TensorType, to: DType) -> Cast {
        Cast { n: from.elements(), from: from.dtype, to }
    }
}

impl Kernel for Cast {
    unsafe fn run(&self, call: &Call<'_>) {
        let (a, out) = (call.src(0, self.from), call.dst(0, self.to));
        // SAFETY: blocks are disjoint and in bounds.
        blocks(self.n, |start, n| unsafe { cast_block(a, out, start, n) });
    }
}

/// Converts elements `start..start + n`, at most a block.
///
/// # Safety
/// In bounds of both.
unsafe fn cast_block(a: Src, out: Dst, start: usize, n: usize) {
    let mut x = [0.0; BLOCK];
    // SAFETY: by contract.
    unsafe {
        if a.dtype() == out.dtype() {
            let size = a.dtype().size();
            out.offset(start).raw::<u8>(0, n * size).copy_from_slice(a.offset(start).raw(0, n * size));
        } else {
            out.store(start, a.read(start, n, &mut x));
        }
    }
}

/// `Prim::Select`.
pub(crate) struct Select {
    n: usize,
    size: usize,
}

impl Select {
    pub(crate) fn new(ty: &TensorType) -> Select {
        Select { n: ty.elements(), size: ty.dtype.size() }
    }
}

impl Kernel for Select {
    unsafe fn run(&self, call: &Call<'_>) {
        let dtype = if self.size == 2 { DType::Bf16 } else { DType::F32 };
        let (c, a, b) = (call.src(0, DType::I32), call.src(1, dtype), call.src(2, dtype));
        let out = call.dst(0, dtype);
        blocks(self.n, |start, n| {
            // SAFETY: blocks are disjoint and in bounds; elements are moved as bits.
            unsafe {
                match self.size {
                    2 => select16(c.raw(start, n), a.raw(start, n), b.raw(start, n), out.raw(start, n)),
                    _ => select32(c.raw(start, n), a.raw(start, n), b.raw(start, n), out.raw(start, n)),
                }
            }
        });
    }
}

/// Declares loops over slices of one length.
macro_rules! loops {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $e:expr;)+) => {
        simd! {$(
            fn $name($($arg: &[$ty],)* out: &mut [$out]) {
                let n = out.len();
                $(let $arg = &$arg[..n];)*
                for i in 0..n {
                    $(let $arg = $arg[i];)*
                    out[i] = $e;
                }
            }
        )+}
    };
}

loops! {
    neg(a: f32) -> f32 = -a;
    exp(a: f32) -> f32 = math::exp(a);
    log(a: f32) -> f32 = math::log(a);
    sqrt(a: f32) -> f32 = a.sqrt();
    sigmoid(a: f32) -> f32 = math::sigmoid(a);
    add(a: f32, b: f32) -> f32 = a + b;
    sub(a: f32, b: f32) -> f32 = a - b;
    mul(a: f32, b: f32) -> f32 = a * b;
    div(a: f32, b: f32) -> f32 = a / b;
    max(a: f32, b: f32) -> f32 = if a > b || a.is_nan() { a } else { b };
    eq(a: f32, b: f32) -> i32 = i32::from(a == b);
    lt(a: f32, b: f32) -> i32 = i32::from(a < b);
    le(a: f32, b: f32) -> i32 = i32::from(a <= b);
    add_int(a: i32, b: i32) -> i32 = a.wrapping_add(b);
    sub_int(a: i32, b: i32) -> i32 = a.wrapping_sub(b);
    mul_int(a: i32, b: i32) -> i32 = a.wrapping_mul(b);
    // As the interpreter: the quotient is truncated; a division by zero saturates as a float would.
    div_int(a: i32, b: i32) -> i32 = (f64::from(a) / f64::from(b)) as i32;
    max_int(a: i32, b: i32) -> i32 = a.max(b);
    eq_int(a: i32, b: i32) -> i32 = i32::from(a == b);
    lt_int(a: i32, b: i32) -> i32 = i32::from(a < b);
    le_int(a: i32, b: i32) -> i32 = i32::from(a <= b);
    select16(c: i32, a: u16, b: u16) -> u16 = if c != 0 { a } else { b };
    select32(c: i32, a: u32, b: u32) -> u32 = if c != 0 { a } else { b };
}
