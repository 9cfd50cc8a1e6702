//! The loops of `rms_norm` and its gradient over `bf16` with AVX-512 BF16: two vectors, of even and odd elements, at a time.
//! What is rounded has the bits of the loops for other types and levels; sums are added in another order.

use crate::cpu::math::avx512::{self, each};
use crate::cpu::math::rounded::{At, LANES, instruction_or_join, load, store};
use half::bf16;
use std::arch::x86_64::*;

/// Floats of even and odd places.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn floats(w: *const f32, avx512::At(first, mask): At) -> [__m512; 2] {
    let w = [first, first + 16].map(|i| w.wrapping_add(i));
    // SAFETY: by contract.
    let [a, b] = unsafe {
        match mask {
            None => w.map(|w| _mm512_loadu_ps(w)),
            Some(m) => [
                _mm512_maskz_loadu_ps(m as __mmask16, w[0]),
                _mm512_maskz_loadu_ps((m >> 16) as __mmask16, w[1]),
            ],
        }
    };
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
    [_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b)]
}

/// Writes floats of even and odd places.
///
/// # Safety
/// There is room for them.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn put_floats([even, odd]: [__m512; 2], w: *mut f32, avx512::At(first, mask): At) {
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    let [a, b] = [low, high].map(|half| _mm512_permutex2var_ps(even, half, odd));
    let w = [first, first + 16].map(|i| w.wrapping_add(i));
    // SAFETY: by contract.
    unsafe {
        match mask {
            None => {
                _mm512_storeu_ps(w[0], a);
                _mm512_storeu_ps(w[1], b);
            }
            Some(m) => {
                _mm512_mask_storeu_ps(w[0], m as __mmask16, a);
                _mm512_mask_storeu_ps(w[1], (m >> 16) as __mmask16, b);
            }
        }
    }
}

/// Writes elements of even and odd places, rounded.
///
/// # Safety
/// There is room for them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn put([even, odd]: [__m512; 2], y: *mut bf16, at: At) {
    // SAFETY: by contract.
    unsafe { store(instruction_or_join(even, odd), y, at) }
}

/// `Σ x²`, in 32 interleaved partial sums. Squares are exact in `f32`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn squares(x: &[bf16]) -> f32 {
    let mut sums = [_mm512_setzero_ps(); 2];
    each!(LANES, x.len(), |at| {
        // SAFETY: the elements are there.
        let x = unsafe { load(x.as_ptr(), at) };
        sums = [_mm512_fmadd_ps(x[0], x[0], sums[0]), _mm512_fmadd_ps(x[1], x[1], sums[1])];
    });
    _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]))
}

/// `Σ dy·w·x`, in 32 interleaved partial sums.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn dot_weighted(dy: &[bf16], w: &[f32], x: &[bf16]) -> f32 {
    let mut sums = [_mm512_setzero_ps(); 2];
    each!(LANES, dy.len().min(w.len()).min(x.len()), |at| {
        // SAFETY: the elements are there.
        let [dy, w, x] = unsafe { [load(dy.as_ptr(), at), floats(w.as_ptr(), at), load(x.as_ptr(), at)] };
        let add = |k: usize| _mm512_fmadd_ps(_mm512_mul_ps(dy[k], w[k]), x[k], sums[k]);
        sums = [add(0), add(1)];
    });
    _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]))
}

/// `y = scale · x · w`
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) fn scale_by(scale: f32, x: &[bf16], w: &[f32], y: &mut [bf16]) {
    let scale = _mm512_set1_ps(scale);
    each!(LANES, x.len().min(w.len()).min(y.len()), |at| {
        // SAFETY: the elements are there.
        unsafe {
            let [x, w] = [load(x.as_ptr(), at), floats(w.as_ptr(), at)];
            let of = |k: usize| _mm512_mul_ps(_mm512_mul_ps(x[k], scale), w[k]);
            put([of(0), of(1)], y.as_mut_ptr(), at);
        }
    });
}

/// `dw += Σ rstd · dy · x` over rows as long as dw that follow one another, from the first to the last.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn add_products(rstd: &[f32], dy: &[bf16], x: &[bf16], dw: &mut [f32]) {
    let h = dw.len();
    let rows = rstd.len().min(dy.len().min(x.len()).checked_div(h).unwrap_or(0));
    each!(LANES, h, |at| {
        // SAFETY: the elements are there.
        unsafe {
            let mut sums = floats(dw.as_ptr(), at);
            for (i, rstd) in rstd[..rows].iter().enumerate() {
                let [dy, x] = [dy, x].map(|row| load(row.as_ptr().add(i * h), at));
                let rstd = _mm512_set1_ps(*rstd);
                let add = |k: usize| _mm512_add_ps(sums[k], _mm512_mul_ps(_mm512_mul_ps(rstd, dy[k]), x[k]));
                sums = [add(0), add(1)];
            }
            put_floats(sums, dw.as_mut_ptr(), at);
        }
    });
}

/// `dx = rstd · (dy · w - projection · x)`; dx may be where dy is.
///
/// # Safety
/// There are as many elements of dy and dx as of x, and as many of w at least.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn subtract_projection(
    [rstd, projection]: [f32; 2],
    dy: *const bf16,
    w: &[f32],
    x: &[bf16],
    dx: *mut bf16,
) {
    let (rstd, projection) = (_mm512_set1_ps(rstd), _mm512_set1_ps(projection));
    each!(LANES, x.len(), |at| {
        // SAFETY: the elements are there, by contract.
        unsafe {
            let [dy, w, x] = [load(dy, at), floats(w.as_ptr(), at), load(x.as_ptr(), at)];
            let of = |k: usize| {
                let along = _mm512_mul_ps(projection, x[k]);
                _mm512_mul_ps(rstd, _mm512_sub_ps(_mm512_mul_ps(dy[k], w[k]), along))
            };
            put([of(0), of(1)], dx, at);
        }
    });
}
