//! Elementary functions on `f32`, branch-free so that loops over them vectorise.
//!
//! There are two of each: here with multiplications and additions that are not fused, and in [`fused`] for loops that run
//! with instructions that fuse them ([`erf`] is the same for both). Errors against the exact value where that is a normal
//! number: `exp` and `log` ≤ 2 ulp, `sigmoid` ≤ 4 ulp, `erf` ≤ 6 ulp. `exp` is infinite above 88.72 and flushes to 0 below
//! -103.97, the fused one where results are no normal numbers, below -87.33; `sigmoid` flushes to 0 below -88.37; `log(0)` is
//! -inf, `log` of a negative number is NaN; NaN in, NaN out.
//!
//! Loops over `bf16` have shorter ones with AVX-512: `rounded`.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub mod fused;
#[cfg(target_arch = "x86_64")]
pub(crate) mod rounded;

/// `e^x` as a number near 1 and a power of two, for x within ±104. Range reduction by Cody and Waite, degree-6 polynomial.
#[inline(always)]
fn exp_parts(x: f32) -> (f32, i32) {
    const LOG2E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts: the product of the first with an integer below 2^9 is exact.
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Adding 1.5·2^23 rounds to an integer and leaves it in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let t = x * LOG2E + MAGIC;
    let n = t - MAGIC;
    let k = t.to_bits().wrapping_sub(MAGIC.to_bits()) as i32;
    let r = (x - n * LN2_HI) - n * LN2_LO;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    (p * (r * r) + r + 1.0, k)
}

/// `x` within bounds; NaN stays.
#[inline(always)]
fn clamp(x: f32, lo: f32, hi: f32) -> f32 {
    let x = if x < lo { lo } else { x };
    if x > hi { hi } else { x }
}

/// `e^x`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let (p, k) = exp_parts(clamp(x, -104.0, 89.0));
    // 2^k in two factors, so that neither leaves the range of normal numbers.
    // (Wrapping, so that no overflow check keeps debug builds from vectorising.)
    let half = k >> 1;
    let s1 = f32::from_bits((half.wrapping_add(127) as u32) << 23);
    let s2 = f32::from_bits((k.wrapping_sub(half).wrapping_add(127) as u32) << 23);
    p * s1 * s2
}

/// Natural logarithm. Cephes' `logf`: mantissa in [√½, √2), degree-8 polynomial.
#[inline(always)]
pub fn log(x: f32) -> f32 {
    const SUBNORMAL_SCALE: f32 = 8_388_608.0;
    let tiny = x < f32::MIN_POSITIVE;
    let y = if tiny { x * SUBNORMAL_SCALE } else { x };
    // Bits relative to √½: the exponent of the quotient is the power of two to take out.
    let bits = y.to_bits().wrapping_sub(0x3f35_04f3);
    let e = ((bits as i32) >> 23) as f32 - if tiny { 23.0 } else { 0.0 };
    let m = f32::from_bits((bits & 0x007f_ffff).wrapping_add(0x3f35_04f3));
    let f = m - 1.0;
    let z = f * f;
    let p = 7.037_683_6e-2;
    let p = p * f - 1.151_461e-1;
    let p = p * f + 1.167_699_9e-1;
    let p = p * f - 1.242_014_1e-1;
    let p = p * f + 1.424_932_3e-1;
    let p = p * f - 1.666_805_8e-1;
    let p = p * f + 2.000_071_5e-1;
    let p = p * f - 2.499_999_4e-1;
    let p = p * f + 0.333_333_3;
    let p = p * f * z;
    let p = p - e * 2.121_944_4e-4 - 0.5 * z;
    let r = f + p + e * 0.693_359_4;
    let r = if x == f32::INFINITY { f32::INFINITY } else { r };
    let r = if x == 0.0 { f32::NEG_INFINITY } else { r };
    if x < 0.0 || x.is_nan() { f32::NAN } else { r }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    // Below the lower bound the power is lost beside 1; from 2^128 on it is infinite. Between them one factor will do.
    let (p, k) = exp_parts(clamp(-x, -87.0, 89.0));
    1.0 / (1.0 + p * f32::from_bits((k.wrapping_add(127) as u32) << 23))
}

/// The error function: `x·P(x²)/Q(x²)` up to where it is 1 in `f32`, beyond that ±1. Both polynomials are of degree 5, fitted
/// to the least largest relative error (1.9e-8); all coefficients are positive, so that nothing cancels.
#[inline(always)]
// The constant term of P is fitted, too: it is near the limit 2/√π, not equal to it.
#[allow(clippy::approx_constant)]
pub fn erf(x: f32) -> f32 {
    const ONE_FROM: f32 = 3.92;
    let x = clamp(x, -ONE_FROM, ONE_FROM);
    let z = x * x;
    let p = 2.050_061_8e-6;
    let p = p * z + 2.848_648_6e-4;
    let p = p * z + 3.765_159e-3;
    let p = p * z + 5.274_727_6e-2;
    let p = p * z + 1.903_968_8e-1;
    let p = p * z + 1.128_379_1;
    let q = 3.809_051_5e-5;
    let q = q * z + 1.162_410_5e-3;
    let q = q * z + 1.496_830_2e-2;
    let q = q * z + 1.141_049_9e-1;
    let q = q * z + 5.020_675_7e-1;
    let q = q * z + 1.0;
    clamp(x * p / q, -1.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Error in units in the last place of the exact value.
    fn ulps(got: f32, exact: f64) -> f64 {
        let nearest = (exact as f32).abs().max(f32::MIN_POSITIVE);
        let ulp = f64::from(f32::from_bits(nearest.to_bits() + 1)) - f64::from(nearest);
        (f64::from(got) - exact).abs() / ulp
    }

    /// The largest error over floats between two of one sign, every 199th of them.
    fn worst(f: fn(f32) -> f32, exact: fn(f64) -> f64, lo: f32, hi: f32) -> (f64, f32) {
        let (lo, hi) = (lo.to_bits().min(hi.to_bits()), lo.to_bits().max(hi.to_bits()));
        (lo..=hi).step_by(199).map(f32::from_bits).fold((0.0, 0.0), |w, x| {
            let e = ulps(f(x), exact(f64::from(x)));
            if e > w.0 { (e, x) } else { w }
        })
    }

    /// `exp`, `log` and `sigmoid`.
    type Functions = [fn(f32) -> f32; 3];
    const PLAIN: Functions = [exp, log, sigmoid];
    const FUSED: Functions = [fused::exp, fused::log, fused::sigmoid];

    #[test]
    fn errors_stay_within_what_is_stated() {
        let exact_sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for [exp, log, sigmoid] in [PLAIN, FUSED] {
            for (lo, hi) in [(1e-9, 88.72), (-87.33, -1e-9)] {
                let w = worst(exp, f64::exp, lo, hi);
                assert!(w.0 <= 2.0, "exp: {w:?}");
            }
            let w = worst(log, f64::ln, f32::from_bits(1), f32::MAX);
            assert!(w.0 <= 2.0, "log: {w:?}");
            for (lo, hi) in [(1e-9, 100.0), (-87.3, -1e-9)] {
                let w = worst(sigmoid, exact_sigmoid, lo, hi);
                assert!(w.0 <= 4.0, "sigmoid: {w:?}");
            }
        }
        for (lo, hi) in [(1e-9, 5.0), (-5.0, -1e-9)] {
            let w = worst(erf, kfc_graph::interp::erf, lo, hi);
            assert!(w.0 <= 6.0, "erf: {w:?}");
        }
    }

    #[test]
    fn special_values() {
        for [exp, log, sigmoid] in [PLAIN, FUSED] {
            assert_eq!(exp(f32::NEG_INFINITY), 0.0);
            assert_eq!(exp(-200.0), 0.0);
            assert_eq!(exp(f32::MIN), 0.0);
            assert_eq!(exp(0.0), 1.0);
            assert_eq!(exp(89.0), f32::INFINITY);
            assert_eq!(exp(f32::MAX), f32::INFINITY);
            assert_eq!(exp(f32::INFINITY), f32::INFINITY);
            assert_eq!(log(0.0), f32::NEG_INFINITY);
            assert_eq!(log(-0.0), f32::NEG_INFINITY);
            assert_eq!(log(1.0), 0.0);
            assert_eq!(log(f32::INFINITY), f32::INFINITY);
            assert!(log(-1.0).is_nan() && log(f32::NEG_INFINITY).is_nan());
            assert!((log(1e-40) - 1e-40_f64.ln() as f32).abs() < 1e-4);
            assert_eq!([-1000.0, f32::NEG_INFINITY].map(sigmoid), [0.0; 2]);
            assert_eq!([1000.0, f32::INFINITY].map(sigmoid), [1.0; 2]);
            for nan in [0x7fc0_0000, 0x7f80_0001, 0xffff_ffff, 0x7fd5_5555].map(f32::from_bits) {
                assert!([exp, log, sigmoid, erf].iter().all(|f| f(nan).is_nan()));
            }
        }
        assert_eq!((erf(0.0), erf(f32::INFINITY), erf(f32::NEG_INFINITY)), (0.0, 1.0, -1.0));
    }
}
