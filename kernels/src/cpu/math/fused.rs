//! The functions of [`super`] with fused multiplications and additions: fewer instructions, other last bits. Without
//! instructions for them these are slow.

pub use super::erf;
use std::f32::consts::LOG2_E;

/// Adding 1.5·2^23 rounds to an integer and leaves it in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// The polynomial of degree 5 of least relative error (9.2e-8) for `e^r`, |r| ≤ ½ ln 2.
#[inline(always)]
fn power(r: f32) -> f32 {
    let p = 8.289_267e-3_f32;
    let p = p.mul_add(r, 4.189_815_7e-2);
    let p = p.mul_add(r, 1.666_765_4e-1);
    let p = p.mul_add(r, 4.999_914_8e-1);
    let p = p.mul_add(r, 0.999_999_7);
    p.mul_add(r, 1.0)
}

/// `x` as `n·ln 2 + r`: the number that has n in its low bits, and r.
#[inline(always)]
fn reduce(x: f32) -> (u32, f32) {
    // ln 2 in two parts: the product of the first with an integer below 2^9 is exact.
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    let t = x.mul_add(LOG2_E, MAGIC);
    let n = t - MAGIC;
    (t.to_bits(), n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, x)))
}

/// `e^x`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Logarithms of the smallest and of the largest normal number.
    const LO: f32 = -87.336_54;
    const HI: f32 = 88.722_83;
    let (n, r) = reduce(x);
    let y = f32::from_bits(power(r).to_bits().wrapping_add(n << 23));
    let y = if x < LO { 0.0 } else { y };
    // Infinity and NaN come out of the sum.
    if x <= HI { y } else { x + f32::INFINITY }
}

/// Natural logarithm: as [`super::log`].
#[inline(always)]
pub fn log(x: f32) -> f32 {
    const SUBNORMAL_SCALE: f32 = 8_388_608.0;
    let tiny = x < f32::MIN_POSITIVE;
    let y = if tiny { x * SUBNORMAL_SCALE } else { x };
    // Bits relative to √½: the exponent of the quotient is the power of two to take out.
    let bits = y.to_bits().wrapping_sub(0x3f35_04f3);
    let e = ((bits as i32) >> 23) as f32 - if tiny { 23.0 } else { 0.0 };
    let f = f32::from_bits((bits & 0x007f_ffff).wrapping_add(0x3f35_04f3)) - 1.0;
    let z = f * f;
    let p = 7.037_683_6e-2_f32;
    let p = p.mul_add(f, -1.151_461e-1);
    let p = p.mul_add(f, 1.167_699_9e-1);
    let p = p.mul_add(f, -1.242_014_1e-1);
    let p = p.mul_add(f, 1.424_932_3e-1);
    let p = p.mul_add(f, -1.666_805_8e-1);
    let p = p.mul_add(f, 2.000_071_5e-1);
    let p = p.mul_add(f, -2.499_999_4e-1);
    let p = p.mul_add(f, 0.333_333_3);
    let p = (p * f).mul_add(z, e * -2.121_944_4e-4);
    let r = e.mul_add(0.693_359_4, z.mul_add(-0.5, p) + f);
    let r = if x < f32::INFINITY { r } else { x };
    let r = if x > 0.0 { r } else { f32::NAN };
    if x == 0.0 { f32::NEG_INFINITY } else { r }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    // Above, the power is lost beside 1; below -2^128 it is infinite, and so is the factor.
    let x = if x > 87.0 { 87.0 } else { x };
    let x = if x < -89.0 { -89.0 } else { x };
    let (n, r) = reduce(-x);
    let factor = f32::from_bits((n << 23).wrapping_add(1.0f32.to_bits()));
    1.0 / power(r).mul_add(factor, 1.0)
}
