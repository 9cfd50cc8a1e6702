//! `exp`, `log`, `sigmoid`, SwiGLU and sums over `bf16` with AVX-512. A result that is rounded to 8 bits of fraction needs fewer steps
//! than the functions of [`super`]: they are exact to 2^-16, so that the rounded value is within 0.51 units in its last place.
//! What is infinite, zero or NaN is as there, and so are results below normal numbers: `exp` gives zero, the others what can be
//! stored.
//!
//! Levels with and without BF16 give the same bits. Other levels have none of these: each function says whether it is there.

use crate::cpu::math::avx512::{self, each};
use crate::cpu::simd::{self, Level};
use half::bf16;
use std::arch::x86_64::*;

/// Coefficients of `2^r` for r in [0, 1), from the first power on: relative error 2^-18.4, none at 0.
const EXP2: [f32; 4] = [0.693_044_84, 0.241_280_21, 0.052_242_46, 0.013_426_691];

/// Coefficients of `log(1 + f) / f` for f in [-¼, ½], from the first power on: relative error 2^-19.5, none at 0.
const LOG: [f32; 6] = [-0.499_989_15, 0.333_187_37, -0.250_593_04, 0.206_263_47, -0.167_648_9, 0.083_244_726];

/// Elements of a vector.
pub(crate) const LANES: usize = 32;

/// A loop over `n` elements of operands and results. A result may be where an operand is: each element is read before it is
/// written.
///
/// # Safety
/// The CPU has the instruction set, and there are `n` elements everywhere; results overlap nothing else.
type Loop<const N: usize, const M: usize> = unsafe fn([*const bf16; N], [*mut bf16; M], usize);

/// Whether the level has these loops.
pub(crate) fn is_there() -> bool {
    simd::level().has_avx512()
}

/// Runs the loop of the level; whether there is one.
///
/// # Safety
/// As [`Loop`], but for the instruction set.
unsafe fn run<const N: usize, const M: usize>(
    [plain, bf16]: [Loop<N, M>; 2],
    x: [*const bf16; N],
    out: [*mut bf16; M],
    n: usize,
) -> bool {
    let f = match simd::level() {
        Level::Avx512 => plain,
        Level::Avx512Bf16 => bf16,
        _ => return false,
    };
    // SAFETY: by contract, and the level's instructions are there.
    unsafe { f(x, out, n) };
    true
}

/// [`run`] of one operand.
fn map(loops: [Loop<1, 1>; 2], x: &[bf16], out: &mut [bf16]) -> bool {
    let n = x.len().min(out.len());
    // SAFETY: both have that many elements, and do not overlap.
    unsafe { run(loops, [x.as_ptr()], [out.as_mut_ptr()], n) }
}

/// `e^x` of each element, if the level has it.
pub(crate) fn exp(x: &[bf16], out: &mut [bf16]) -> bool {
    map([plain::exp, with_bf16::exp], x, out)
}

/// The natural logarithm of each element, if the level has it.
pub(crate) fn log(x: &[bf16], out: &mut [bf16]) -> bool {
    map([plain::log, with_bf16::log], x, out)
}

/// `1 / (1 + e^-x)` of each element, if the level has it.
pub(crate) fn sigmoid(x: &[bf16], out: &mut [bf16]) -> bool {
    map([plain::sigmoid, with_bf16::sigmoid], x, out)
}

/// The sum of elements, if the level has it.
///
/// # Safety
/// As [`Loop`], but for the instruction set.
pub(crate) unsafe fn add(x: [*const bf16; 2], out: *mut bf16, n: usize) -> bool {
    // SAFETY: by contract.
    unsafe { run([plain::add, with_bf16::add], x, [out], n) }
}

/// `silu(gate) · up` of each element, if the level has it.
///
/// # Safety
/// As [`Loop`], but for the instruction set.
pub(crate) unsafe fn swiglu(x: [*const bf16; 2], y: *mut bf16, n: usize) -> bool {
    // SAFETY: by contract.
    unsafe { run([plain::swiglu, with_bf16::swiglu], x, [y], n) }
}

/// Gradients of gate and up from that of [`swiglu`], gate and up, if the level has it.
///
/// # Safety
/// As [`Loop`], but for the instruction set.
pub(crate) unsafe fn swiglu_bwd(x: [*const bf16; 3], out: [*mut bf16; 2], n: usize) -> bool {
    // SAFETY: by contract.
    unsafe { run([plain::swiglu_bwd, with_bf16::swiglu_bwd], x, out, n) }
}

/// Functions of vectors of `f32`, for whatever has AVX-512.
macro_rules! functions {
    ($($(#[$meta:meta])* fn $name:ident($($arg:tt)*) -> $ret:ty $body:block)+) => {$(
        $(#[$meta])*
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        pub(crate) fn $name($($arg)*) -> $ret $body
    )+};
}

functions! {
    /// `1 + c[0]·x + c[1]·x² + …`, of four terms or six.
    fn polynomial(c: &[f32], x: __m512) -> __m512 {
        let mut p = _mm512_set1_ps(c[c.len() - 1]);
        for &c in c[..c.len() - 1].iter().rev() {
            p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(c));
        }
        _mm512_fmadd_ps(p, x, _mm512_set1_ps(1.0))
    }

    /// `2^t`; of infinities, too, whose fraction counts as 0.
    fn exp2_of(t: __m512) -> __m512 {
        // Rounded down, without exceptions.
        const FRACTION: i32 = 9;
        _mm512_scalef_ps(polynomial(&EXP2, _mm512_reduce_ps::<FRACTION>(t)), t)
    }

    fn exp_of([x]: [__m512; 1]) -> [__m512; 1] {
        [exp2_of(_mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)))]
    }

    fn log_of([x]: [__m512; 1]) -> [__m512; 1] {
        // The fraction in [¾, 1½), NaN of a negative number; its power of two is one more than that of ⅔ x.
        let m = _mm512_getmant_ps::<_MM_MANT_NORM_P75_1P5, _MM_MANT_SIGN_NAN>(x);
        let e = _mm512_getexp_ps(_mm512_mul_ps(x, _mm512_set1_ps(2.0 / 3.0)));
        let f = _mm512_sub_ps(m, _mm512_set1_ps(1.0));
        let ln2 = _mm512_set1_ps(std::f32::consts::LN_2);
        // Zero and infinity come out of their exponents.
        [_mm512_fmadd_ps(f, polynomial(&LOG, f), _mm512_fmadd_ps(e, ln2, ln2))]
    }

    fn sigmoid_of([x]: [__m512; 1]) -> [__m512; 1] {
        let t = _mm512_mul_ps(x, _mm512_set1_ps(-std::f32::consts::LOG2_E));
        let d = _mm512_add_ps(exp2_of(t), _mm512_set1_ps(1.0));
        // One step of Newton's, or zero where the divisor may be infinite. Of a NaN it is one.
        let s = _mm512_rcp14_ps(d);
        let finite = _mm512_cmp_ps_mask::<_CMP_NGE_UQ>(t, _mm512_set1_ps(127.5));
        let e = _mm512_fnmadd_ps(d, s, _mm512_set1_ps(1.0));
        [_mm512_maskz_fmadd_ps(finite, e, s, s)]
    }

    fn add_of([a, b]: [__m512; 2]) -> [__m512; 1] {
        [_mm512_add_ps(a, b)]
    }

    fn swiglu_of([gate, up]: [__m512; 2]) -> [__m512; 1] {
        let [s] = sigmoid_of([gate]);
        [_mm512_mul_ps(_mm512_mul_ps(gate, s), up)]
    }

    fn swiglu_bwd_of([dy, gate, up]: [__m512; 3]) -> [__m512; 2] {
        let (one, [s]) = (_mm512_set1_ps(1.0), sigmoid_of([gate]));
        let slope = _mm512_fmadd_ps(gate, _mm512_sub_ps(one, s), one);
        let dy_s = _mm512_mul_ps(dy, s);
        [_mm512_mul_ps(_mm512_mul_ps(dy_s, up), slope), _mm512_mul_ps(dy_s, gate)]
    }

    /// The bits of elements of even and odd places, as high halves of `f32`.
    fn split(x: __m512i) -> [__m512; 2] {
        let high = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
        [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(x)), _mm512_castsi512_ps(_mm512_and_si512(x, high))]
    }

    /// Rounds to the nearest, ties to even, by adding to the bits; the quiet NaN of a NaN. In the high halves.
    fn rounded(x: __m512) -> __m512i {
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        _mm512_mask_or_epi32(sum, nan, bits, _mm512_set1_epi32(0x0040_0000))
    }

    /// Elements of even and odd places, rounded and put together.
    fn join(even: __m512, odd: __m512) -> __m512i {
        _mm512_mask_mov_epi16(rounded(odd), 0x5555_5555, _mm512_srli_epi32::<16>(rounded(even)))
    }

    /// The same, subnormal numbers as zeros, as [`instruction`].
    fn join_flushed(even: __m512, odd: __m512) -> __m512i {
        let normal = |x| _mm512_maskz_mov_ps(!subnormal(x), x);
        join(normal(even), normal(odd))
    }

    fn subnormal(x: __m512) -> __mmask16 {
        const DENORMAL: i32 = 0x20;
        _mm512_fpclass_ps_mask::<DENORMAL>(x)
    }
}

/// As [`join_flushed`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn instruction(even: __m512, odd: __m512) -> __m512i {
    // SAFETY: both types are 512 bits without invalid values.
    let halves = unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(odd, even)) };
    // Elements 0, 16, 1, 17, and so on.
    let pairs = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    let second = _mm512_slli_epi32::<16>(_mm512_add_epi32(pairs, _mm512_set1_epi32(16)));
    _mm512_permutexvar_epi16(_mm512_or_si512(pairs, second), halves)
}

/// As [`join`]: the instruction takes subnormal numbers as zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) fn instruction_or_join(even: __m512, odd: __m512) -> __m512i {
    if subnormal(even) | subnormal(odd) != 0 {
        return join(even, odd);
    }
    instruction(even, odd)
}

/// Where a vector begins, and which of its elements are there if not all are.
pub(crate) type At = avx512::At<__mmask32>;

/// Elements of even and odd places.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn load(x: *const bf16, avx512::At(first, mask): At) -> [__m512; 2] {
    let x = x.wrapping_add(first);
    // SAFETY: by contract.
    split(unsafe {
        match mask {
            None => _mm512_loadu_si512(x.cast()),
            Some(mask) => _mm512_maskz_loadu_epi16(mask, x.cast()),
        }
    })
}

/// Writes a vector of elements.
///
/// # Safety
/// There is room for them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn store(x: __m512i, y: *mut bf16, avx512::At(first, mask): At) {
    let y = y.wrapping_add(first);
    // SAFETY: by contract.
    unsafe {
        match mask {
            None => _mm512_storeu_si512(y.cast(), x),
            Some(mask) => _mm512_mask_storeu_epi16(y.cast(), mask, x),
        }
    }
}

/// Loops over vectors of elements.
macro_rules! loops {
    ($($name:ident = $f:ident, $put:ident, $n:literal => $m:literal;)+, $features:literal) => {$(
        /// # Safety
        /// See [`Loop`].
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(x: [*const bf16; $n], out: [*mut bf16; $m], n: usize) {
            each!(LANES, n, |at| {
                let (mut even, mut odd) = ([_mm512_setzero_ps(); $n], [_mm512_setzero_ps(); $n]);
                for k in 0..$n {
                    // SAFETY: the elements are there.
                    [even[k], odd[k]] = unsafe { load(x[k], at) };
                }
                let (even, odd) = ($f(even), $f(odd));
                for k in 0..$m {
                    // SAFETY: as above.
                    unsafe { store($put(even[k], odd[k]), out[k], at) };
                }
            });
        }
    )+};
}

/// AVX-512 F, BW, DQ, VL.
mod plain {
    use super::*;
    loops! {
        exp = exp_of, join_flushed, 1 => 1;
        // No logarithm of a number is subnormal.
        log = log_of, join, 1 => 1;
        sigmoid = sigmoid_of, join, 1 => 1;
        add = add_of, join, 2 => 1;
        swiglu = swiglu_of, join, 2 => 1;
        swiglu_bwd = swiglu_bwd_of, join, 3 => 2;
        , "avx512f,avx512bw,avx512dq,avx512vl"
    }
}

/// The same with BF16.
mod with_bf16 {
    use super::*;
    loops! {
        exp = exp_of, instruction, 1 => 1;
        log = log_of, instruction, 1 => 1;
        sigmoid = sigmoid_of, instruction_or_join, 1 => 1;
        add = add_of, instruction_or_join, 2 => 1;
        swiglu = swiglu_of, instruction_or_join, 2 => 1;
        swiglu_bwd = swiglu_bwd_of, instruction_or_join, 3 => 2;
        , "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"
    }
}

#[cfg(test)]
#[path = "rounded_tests.rs"]
mod tests;
