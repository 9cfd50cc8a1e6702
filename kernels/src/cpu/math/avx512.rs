//! Loops over vectors with AVX-512, and `2^x` of vectors of `f32`.

use std::arch::x86_64::*;

/// Where a vector begins, and which of its elements are there if not all are.
#[derive(Clone, Copy)]
pub(crate) struct At<M>(pub(crate) usize, pub(crate) Option<M>);

/// Runs a block for all vectors of so many lanes, of so many elements: no closure, which would not be compiled for a whole vector
/// and for the last.
macro_rules! each {
    ($lanes:expr, $n:expr, |$at:ident| $body:block) => {{
        let (lanes, n) = ($lanes, $n);
        let whole = n / lanes * lanes;
        for first in (0..whole).step_by(lanes) {
            let $at = $crate::cpu::math::avx512::At(first, None);
            $body
        }
        if whole < n {
            let $at = $crate::cpu::math::avx512::At(whole, Some((1 << (n - whole)) - 1));
            $body
        }
    }};
}
pub(crate) use each;

/// `2^x` for `x <= 128`: to the nearest integer and the polynomial of degree 5 of least relative error (9.2e-8) for the rest;
/// ≤ 2 ulp where the result is normal. NaN stays.
#[expect(clippy::approx_constant, reason = "a coefficient of the fit is near ln 2, and not ln 2")]
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn exp2(x: __m512) -> __m512 {
    // What is below comes to 0, and -inf would leave no rest. Of a number and NaN the second operand is taken.
    let x = _mm512_max_ps(_mm512_set1_ps(-200.0), x);
    let n = _mm512_roundscale_ps::<8>(x);
    let r = _mm512_sub_ps(x, n);
    let p = _mm512_set1_ps(1.326_472_7e-3);
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.671_513e-3));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.550_733_6e-2));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.402_224_2e-1));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.931_47e-1));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0));
    _mm512_scalef_ps(p, n)
}
