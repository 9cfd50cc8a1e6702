//! Element types as numbers of `f32`, converted by plain integer arithmetic: loops over them vectorise on every
//! instruction set, and give the same bits there.

use half::{bf16, f16};

/// An element of a tensor.
pub(crate) trait Elem: Copy + Send + Sync + 'static {
    /// Its value.
    fn get(self) -> f32;

    /// The nearest element, ties to even; the quiet NaN of a NaN.
    fn put(x: f32) -> Self;
}

impl Elem for f32 {
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }

    #[inline(always)]
    fn put(x: f32) -> f32 {
        x
    }
}

impl Elem for bf16 {
    #[inline(always)]
    fn get(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn put(x: f32) -> bf16 {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        let quiet_nan = bits | 0x0040_0000;
        bf16::from_bits(((if x.is_nan() { quiet_nan } else { rounded }) >> 16) as u16)
    }
}

impl Elem for f16 {
    #[inline(always)]
    fn get(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7fff) << 13;
        // With f32's bias a normal number is 2^-112 of itself; so is a subnormal one, and the product is exact.
        let scaled = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
        // An exponent of ones is one in f32 too; a NaN becomes quiet.
        let quiet = if magnitude > 0x7c00 << 13 { 0x0040_0000 } else { 0 };
        let special = magnitude | 0x7f80_0000 | quiet;
        let value = if magnitude >= 0x7c00 << 13 { special } else { scaled.to_bits() };
        f32::from_bits(value | (bits & 0x8000) << 16)
    }

    #[inline(always)]
    fn put(x: f32) -> f16 {
        let bits = x.to_bits();
        let magnitude = bits & 0x7fff_ffff;
        // Normal: round the fraction, then change the bias. A carry goes into the exponent, as it should.
        let rounded = magnitude.wrapping_add(0xfff + ((magnitude >> 13) & 1));
        let normal = rounded.wrapping_sub(112 << 23) >> 13;
        // Subnormal: a unit of 0.5's last place is one of f16's subnormal numbers, so that the sum rounds.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
        let finite = if magnitude < 113 << 23 { subnormal } else { normal };
        let nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
        let large = if magnitude > 0x7f80_0000 { nan } else { 0x7c00 };
        let value = if magnitude >= 143 << 23 { large } else { finite };
        f16::from_bits((value | (bits >> 16) & 0x8000) as u16)
    }
}

impl Elem for i32 {
    #[inline(always)]
    fn get(self) -> f32 {
        self as f32
    }

    /// Truncated.
    #[inline(always)]
    fn put(x: f32) -> i32 {
        x as i32
    }
}

/// Evaluates an expression with a name for the element type that a [`kfc_graph::DType`] means.
macro_rules! of_type {
    ($dtype:expr, $t:ident => $e:expr) => {
        match $dtype {
            kfc_graph::DType::F32 => {
                type $t = f32;
                $e
            }
            kfc_graph::DType::Bf16 => {
                type $t = half::bf16;
                $e
            }
            kfc_graph::DType::F16 => {
                type $t = half::f16;
                $e
            }
            kfc_graph::DType::I32 => {
                type $t = i32;
                $e
            }
        }
    };
}
pub(crate) use of_type;

#[cfg(test)]
mod tests {
    use super::*;

    /// Patterns near every rounding boundary of 16-bit types, and scattered ones.
    fn patterns() -> impl Iterator<Item = u32> {
        let near = (0..=0xffffu32).flat_map(|high| {
            let at = high << 16;
            [0, 1, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0x8000, 0x8001, 0xffff]
                .map(move |low| at | low)
        });
        near.chain((0..2_000_000u32).map(|i| i.wrapping_mul(0x9e37_79b1)))
    }

    #[test]
    fn sixteen_bits_become_what_the_half_crate_says() {
        for bits in 0..=u16::MAX {
            let (h, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            assert_eq!(h.get().to_bits(), h.to_f32().to_bits(), "f16 {bits:04x}");
            assert_eq!(b.get().to_bits(), u32::from(bits) << 16, "bf16 {bits:04x}");
        }
    }

    #[test]
    fn rounding_is_what_the_half_crate_does() {
        for bits in patterns() {
            let x = f32::from_bits(bits);
            assert_eq!(<f16 as Elem>::put(x).to_bits(), f16::from_f32(x).to_bits(), "f16 of {bits:08x}");
            assert_eq!(<bf16 as Elem>::put(x).to_bits(), bf16::from_f32(x).to_bits(), "bf16 of {bits:08x}");
        }
    }
}
