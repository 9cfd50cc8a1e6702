//! Pointwise primitives: one loop an operation, element type by element type. Floats compute in `f32` and round once.
//!
//! A kernel of one primitive and a fused group run the same loops, so that fusing changes no bit.

use crate::cpu::elem::{Elem, of_type};
use crate::cpu::float::{BLOCK, convert};
use crate::cpu::simd::simd;
use crate::cpu::{Call, Kernel, KernelError, math, par};
use half::bf16;
use kfc_graph::{CmpOp, DType, Prim, TensorType};
use std::mem::MaybeUninit;

/// Applies a primitive to `n` elements of each operand.
///
/// # Safety
/// Operands and the result are aligned, of the types that [`apply`] was asked for, and at least `n` elements long; the
/// result overlaps no operand, but may be where one is if the loop [`writes_over`] them.
pub(crate) type Apply = unsafe fn(x: &[*const u8], out: *mut u8, n: usize);

/// Most operands of a pointwise primitive.
pub(crate) const MOST_OPERANDS: usize = 3;

/// A loop over slices as [`Apply`], by its number of operands.
macro_rules! erased {
    ($f:expr, 1) => {
        |x, out, n| {
            // SAFETY: by contract of `Apply`.
            unsafe { $f(of(x, 0, n), to(out, n)) }
        }
    };
    ($f:expr, 2) => {
        |x, out, n| {
            // SAFETY: by contract of `Apply`.
            unsafe { $f(of(x, 0, n), of(x, 1, n), to(out, n)) }
        }
    };
    ($f:expr, 3) => {
        |x, out, n| {
            // SAFETY: by contract of `Apply`.
            unsafe { $f(of(x, 0, n), of(x, 1, n), of(x, 2, n), to(out, n)) }
        }
    };
}

/// The loop of a pointwise primitive at these operand types; `None` if it is none.
pub(crate) fn apply(p: &Prim, types: &[DType]) -> Option<Apply> {
    const INT: DType = DType::I32;
    let t = *types.first()?;
    Some(match (p, t) {
        (Prim::Add, INT) => erased!(add_int, 2),
        (Prim::Sub, INT) => erased!(sub_int, 2),
        (Prim::Mul, INT) => erased!(mul_int, 2),
        (Prim::Div, INT) => erased!(div_int, 2),
        (Prim::Max, INT) => erased!(max_int, 2),
        (Prim::Compare(CmpOp::Eq), INT) => erased!(eq_int, 2),
        (Prim::Compare(CmpOp::Lt), INT) => erased!(lt_int, 2),
        (Prim::Compare(CmpOp::Le), INT) => erased!(le_int, 2),
        (Prim::Neg, t) => of_type!(t, T => erased!(neg::<T>, 1)),
        (Prim::Exp, DType::Bf16) => erased!(exp_bf16, 1),
        (Prim::Log, DType::Bf16) => erased!(log_bf16, 1),
        (Prim::Sigmoid, DType::Bf16) => erased!(sigmoid_bf16, 1),
        (Prim::Exp, t) => of_type!(t, T => erased!(exp::<T>, 1)),
        (Prim::Log, t) => of_type!(t, T => erased!(log::<T>, 1)),
        (Prim::Sqrt, t) => of_type!(t, T => erased!(sqrt::<T>, 1)),
        (Prim::Sigmoid, t) => of_type!(t, T => erased!(sigmoid::<T>, 1)),
        (Prim::Erf, t) => of_type!(t, T => erased!(erf::<T>, 1)),
        (Prim::Add, DType::Bf16) => add_bf16,
        (Prim::Add, t) => of_type!(t, T => erased!(add::<T>, 2)),
        (Prim::Sub, t) => of_type!(t, T => erased!(sub::<T>, 2)),
        (Prim::Mul, t) => of_type!(t, T => erased!(mul::<T>, 2)),
        (Prim::Div, t) => of_type!(t, T => erased!(div::<T>, 2)),
        (Prim::Max, t) => of_type!(t, T => erased!(max::<T>, 2)),
        (Prim::Compare(CmpOp::Eq), t) => of_type!(t, T => erased!(eq::<T>, 2)),
        (Prim::Compare(CmpOp::Lt), t) => of_type!(t, T => erased!(lt::<T>, 2)),
        (Prim::Compare(CmpOp::Le), t) => of_type!(t, T => erased!(le::<T>, 2)),
        // Elements are moved as bits.
        (Prim::Select, _) if types.get(1)?.size() == 2 => erased!(select16, 3),
        (Prim::Select, _) => erased!(select32, 3),
        (Prim::Cast(other), t) if *other == t && t.size() == 2 => erased!(same16, 1),
        (Prim::Cast(other), t) if *other == t => erased!(same32, 1),
        (Prim::Cast(other), t) => of_type!(t, A => of_type!(*other, B => erased!(convert::<A, B>, 1))),
        _ => return None,
    })
}

/// Operand `i`.
///
/// # Safety
/// As [`Apply`].
unsafe fn of<'a, T>(x: &[*const u8], i: usize, n: usize) -> &'a [T] {
    // SAFETY: by contract.
    unsafe { std::slice::from_raw_parts(x[i].cast(), n) }
}

/// The result.
///
/// # Safety
/// As [`Apply`].
unsafe fn to<'a, T>(out: *mut u8, n: usize) -> &'a mut [T] {
    // SAFETY: by contract.
    unsafe { std::slice::from_raw_parts_mut(out.cast(), n) }
}

/// The kernel of one pointwise primitive.
pub(crate) struct Pointwise {
    n: usize,
    /// Bytes of an element of each operand.
    sizes: Vec<usize>,
    /// Bytes of an element of the result.
    size: usize,
    apply: Apply,
    /// Whether operands need not be copied where the result is written over them.
    writes_over: bool,
}

impl Pointwise {
    pub(crate) fn new(
        p: &Prim,
        inputs: &[TensorType],
        output: &TensorType,
    ) -> Result<Pointwise, KernelError> {
        let types: Vec<DType> = inputs.iter().map(|t| t.dtype).collect();
        let apply = apply(p, &types).ok_or_else(|| KernelError::Unclaimed(p.name().to_string()))?;
        let sizes = types.iter().map(|t| t.size()).collect();
        let writes_over = writes_over(p, types[0]);
        Ok(Pointwise { n: output.elements(), sizes, size: output.dtype.size(), apply, writes_over })
    }

    /// Elements `start..start + n`.
    ///
    /// # Safety
    /// In bounds of the buffers, and written by this task alone.
    unsafe fn part(&self, call: &Call<'_>, start: usize, n: usize) {
        let mut x = [std::ptr::null(); MOST_OPERANDS];
        // SAFETY: by contract.
        unsafe {
            for (x, (buf, size)) in x.iter_mut().zip(call.inputs.iter().zip(&self.sizes)) {
                *x = buf.ptr.add(start * size).cast_const();
            }
            (self.apply)(&x, call.outputs[0].ptr.add(start * self.size), n);
        }
    }

    /// As [`Pointwise::part`], at most a block, of which an operand is the result's own buffer: that is copied first.
    ///
    /// # Safety
    /// As there.
    unsafe fn part_over_operand(&self, call: &Call<'_>, start: usize, n: usize) {
        let mut rooms = [[MaybeUninit::<u32>::uninit(); BLOCK]; MOST_OPERANDS];
        let mut x = [std::ptr::null(); MOST_OPERANDS];
        // SAFETY: by contract; no element is larger than four bytes.
        unsafe {
            let out = call.outputs[0].ptr;
            for (i, (buf, size)) in call.inputs.iter().zip(&self.sizes).enumerate() {
                x[i] = buf.ptr.add(start * size).cast_const();
                if buf.ptr == out {
                    let room = rooms[i].as_mut_ptr().cast::<u8>();
                    std::ptr::copy_nonoverlapping(x[i], room, n * size);
                    x[i] = room.cast_const();
                }
            }
            (self.apply)(&x, out.add(start * self.size), n);
        }
    }
}

impl Kernel for Pointwise {
    unsafe fn run(&self, call: &Call<'_>) {
        let over = !self.writes_over && call.inputs.iter().any(|b| b.ptr == call.outputs[0].ptr);
        par::ranges(self.n, par::GRAIN, |r| {
            // SAFETY: ranges are disjoint and in bounds.
            unsafe {
                if !over {
                    return self.part(call, r.start, r.len());
                }
                let end = r.end;
                r.step_by(BLOCK)
                    .for_each(|start| self.part_over_operand(call, start, BLOCK.min(end - start)));
            }
        });
    }

    fn may_inplace(&self) -> &'static [(usize, usize)] {
        let fits = |i: usize| self.sizes[i] == self.size;
        match self.sizes.len() {
            1 if fits(0) => &[(0, 0)],
            2 if fits(0) => &[(0, 0), (1, 0)],
            3 if fits(1) => &[(1, 0), (2, 0)],
            _ => &[],
        }
    }
}

/// Declares loops over slices of one length, over floats as numbers.
macro_rules! loops {
    ($($name:ident($($arg:ident),*) -> $out:ty = $e:expr;)+) => {
        simd! {$(
            fn $name<T: Elem>($($arg: &[T],)* out: &mut [$out]) {
                let n = out.len();
                $(let $arg = &$arg[..n];)*
                for i in 0..n {
                    $(let $arg = $arg[i].get();)*
                    out[i] = <$out as Elem>::put($e);
                }
            }
        )+}
    };
}

loops! {
    neg(a) -> T = -a;
    exp(a) -> T = math::exp(a);
    log(a) -> T = math::log(a);
    sqrt(a) -> T = a.sqrt();
    sigmoid(a) -> T = math::sigmoid(a);
    erf(a) -> T = math::erf(a);
    add(a, b) -> T = a + b;
    sub(a, b) -> T = a - b;
    mul(a, b) -> T = a * b;
    div(a, b) -> T = a / b;
    max(a, b) -> T = if a > b || a.is_nan() { a } else { b };
}

/// Declares loops over `bf16`: those of `math::rounded` where the level has them, else the same as for other floats.
macro_rules! bf16_loops {
    ($($name:ident = $f:ident;)+) => {$(
        fn $name(x: &[bf16], out: &mut [bf16]) {
            #[cfg(target_arch = "x86_64")]
            if math::rounded::$f(x, out) {
                return;
            }
            $f(x, out);
        }
    )+};
}

bf16_loops! {
    exp_bf16 = exp;
    log_bf16 = log;
    sigmoid_bf16 = sigmoid;
}

/// As [`add`]. At a level of [`math::rounded`] the result may be where an operand is.
///
/// # Safety
/// As [`Apply`].
unsafe fn add_bf16(x: &[*const u8], out: *mut u8, n: usize) {
    // SAFETY: by contract.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if math::rounded::add([x[0].cast(), x[1].cast()], out.cast(), n) {
            return;
        }
        add::<bf16>(of(x, 0, n), of(x, 1, n), to(out, n));
    }
}

/// Whether the loop of a primitive may write over an operand.
fn writes_over(p: &Prim, x: DType) -> bool {
    #[cfg(target_arch = "x86_64")]
    let is_there = math::rounded::is_there();
    #[cfg(not(target_arch = "x86_64"))]
    let is_there = false;
    is_there && matches!(p, Prim::Add) && x == DType::Bf16
}

/// Declares loops over slices of one length, over elements as they are.
macro_rules! plain_loops {
    ($($name:ident $(<$t:ident: $bound:ident>)? ($($arg:ident: $ty:ty),*) -> $out:ty = $e:expr;)+) => {
        simd! {$(
            fn $name $(<$t: $bound>)? ($($arg: &[$ty],)* out: &mut [$out]) {
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

plain_loops! {
    eq<T: Elem>(a: T, b: T) -> i32 = i32::from(a.get() == b.get());
    lt<T: Elem>(a: T, b: T) -> i32 = i32::from(a.get() < b.get());
    le<T: Elem>(a: T, b: T) -> i32 = i32::from(a.get() <= b.get());
    add_int(a: i32, b: i32) -> i32 = a.wrapping_add(b);
    sub_int(a: i32, b: i32) -> i32 = a.wrapping_sub(b);
    mul_int(a: i32, b: i32) -> i32 = a.wrapping_mul(b);
    // As the interpreter: the quotient is truncated; a division by zero saturates as a float would.
    div_int(a: i32, b: i32) -> i32 = (f64::from(a) / f64::from(b)) as i32;
    max_int(a: i32, b: i32) -> i32 = a.max(b);
    eq_int(a: i32, b: i32) -> i32 = i32::from(a == b);
    lt_int(a: i32, b: i32) -> i32 = i32::from(a < b);
    le_int(a: i32, b: i32) -> i32 = i32::from(a <= b);
    same16(a: u16) -> u16 = a;
    same32(a: u32) -> u32 = a;
    select16(c: i32, a: u16, b: u16) -> u16 = if c != 0 { a } else { b };
    select32(c: i32, a: u32, b: u32) -> u32 = if c != 0 { a } else { b };
}
