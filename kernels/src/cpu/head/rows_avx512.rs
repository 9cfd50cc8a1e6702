//! The passes of [`super::rows`] over the logits of a student and a teacher with AVX-512, where `e^z` is a power of `e^(z/T)`.

use super::rows::Power;
use crate::cpu::math::avx512::{each, exp2};
use crate::cpu::simd::{self, Level};
use std::arch::x86_64::*;
use std::f64::consts::LN_2;

/// Elements of a vector.
const LANES: usize = 16;

/// Elements whose sums are made in `f32`; sums of such runs are added in `f64`.
const RUN: usize = 4096;

/// Whether the level has [`sums`].
pub(super) fn has_sums() -> bool {
    simd::level().has_avx512()
}

/// Whether the level has [`rounded_gradient`].
pub(super) fn has_gradient() -> bool {
    simd::level() == Level::Avx512Bf16
}

#[inline]
#[target_feature(enable = "avx512f")]
fn power<P: Power>(mut x: __m512) -> __m512 {
    for _ in 0..P::SQUARES {
        x = _mm512_mul_ps(x, x);
    }
    x
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn sum(x: __m512) -> f64 {
    let halves = [_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x)].map(|x| _mm512_cvtps_pd(x));
    _mm512_reduce_add_pd(_mm512_add_pd(halves[0], halves[1]))
}

/// `z = e^((z - max)·scale)` and `zt = e^((zt - max_t)·scale)`. Returns the sums of the first's power (itself, its square or the
/// square of that), of both, and of `zt·((zt - max_t) - (z - max))·scale`. What is `next` elements further is asked for.
///
/// # Safety
/// [`has_sums`]; there are as many teacher's logits.
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) unsafe fn sums<P: Power>(
    _: P,
    scale: f32,
    max: [f32; 2],
    z: &mut [f32],
    zt: &mut [f32],
    next: [usize; 2],
) -> [f64; 4] {
    debug_assert!(zt.len() >= z.len());
    // In units of log₂.
    let scale = _mm512_set1_ps(scale * std::f32::consts::LOG2_E);
    let max = max.map(|m| _mm512_set1_ps(m));
    let mut totals = [0.0; 4];
    for (z, zt) in z.chunks_mut(RUN).zip(zt.chunks_mut(RUN)) {
        let mut acc = [_mm512_setzero_ps(); 4];
        each!(LANES, z.len(), |at| {
            let (i, mask) = (at.0, at.1.unwrap_or(!0));
            let place = [z.as_mut_ptr(), zt.as_mut_ptr()].map(|x| x.wrapping_add(i));
            (0..2).for_each(|k| simd::prefetch(place[k].wrapping_add(next[k])));
            // SAFETY: the elements of the mask are there.
            let x = place.map(|x| unsafe { _mm512_maskz_loadu_ps(mask, x) });
            let shifted = |k: usize| _mm512_mul_ps(_mm512_sub_ps(x[k], max[k]), scale);
            let d = [shifted(0), shifted(1)];
            let e = d.map(|d| _mm512_maskz_mov_ps(mask, exp2(d)));
            // SAFETY: as above.
            (0..2).for_each(|k| unsafe { _mm512_mask_storeu_ps(place[k], mask, e[k]) });
            let gap = _mm512_maskz_mul_ps(mask, e[1], _mm512_sub_ps(d[1], d[0]));
            let terms = [power::<P>(e[0]), e[0], e[1], gap];
            (0..4).for_each(|k| acc[k] = _mm512_add_ps(acc[k], terms[k]));
        });
        (0..4).for_each(|k| totals[k] += sum(acc[k]));
    }
    totals[3] *= LN_2;
    totals
}

/// The gradient `all·z' + student·z - teacher·zt` of exponentials that [`sums`] left, `z'` being the power of `z`, less `a` at
/// `label`; rounded to `bf16`, in the first half of z.
///
/// # Safety
/// [`has_gradient`]; there are as many teacher's exponentials, and the label is one of them.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn rounded_gradient<P: Power>(
    _: P,
    [all, student, teacher]: [f32; 3],
    label: Option<(usize, f32)>,
    z: &mut [f32],
    zt: &[f32],
) {
    debug_assert!(zt.len() >= z.len());
    let factors = [all, student, teacher].map(|f| _mm512_set1_ps(f));
    let gradient = |z: __m512, zt: __m512| {
        let [all, student, teacher] = factors;
        let between = _mm512_fmsub_ps(student, z, _mm512_mul_ps(teacher, zt));
        _mm512_fmadd_ps(all, power::<P>(z), between)
    };
    let rounded = |g: __m512| {
        // SAFETY: both types are 256 bits without invalid values.
        unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(g)) }
    };
    let at_label = label.map(|(l, a)| {
        let [z, zt] = [z[l], zt[l]].map(|x| _mm512_set1_ps(x));
        (l, _mm512_sub_ps(gradient(z, zt), _mm512_set1_ps(a)))
    });
    let n = z.len();
    let from = z.as_mut_ptr();
    let out: *mut i16 = from.cast();
    each!(LANES, n, |at| {
        let (i, mask) = (at.0, at.1.unwrap_or(!0));
        // SAFETY: the elements of the mask are there; what is written was read.
        unsafe {
            let x = [from.cast_const(), zt.as_ptr()].map(|x| _mm512_maskz_loadu_ps(mask, x.wrapping_add(i)));
            let halves = _mm512_castsi256_si512(rounded(gradient(x[0], x[1])));
            _mm512_mask_storeu_epi16(out.wrapping_add(i), __mmask32::from(mask), halves);
        }
    });
    if let Some((l, g)) = at_label {
        // SAFETY: the element is there.
        unsafe { *out.add(l) = _mm256_extract_epi16::<0>(rounded(g)) as i16 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::head::rows::Squared;
    use half::bf16;

    /// Logits, some of them far below the others, none of them above `max`.
    fn logits(n: usize, max: f32) -> Vec<f32> {
        (0..n).map(|i| max - (i * 7919 % 4001) as f32 * if i % 5 == 0 { 0.05 } else { 0.002 }).collect()
    }

    fn close(found: f64, exact: f64, scale: f64) -> bool {
        (found - exact).abs() <= 3e-6 * scale + 1e-30
    }

    /// Compares with sums in `f64`.
    fn compare<const SQUARES: usize>(n: usize) {
        let power = Squared::<SQUARES>;
        let temperature = f32::from(1u8 << SQUARES);
        let (max, mut z, mut zt) = ([3.5f32, -7.0], logits(n, 3.5), logits(n + 9, -7.0)[9..].to_vec());
        let label = n / 3;
        // One that the teacher all but rules out, and one that only the teacher has.
        zt[label] = -900.0;
        zt.push(11.0);
        let d: Vec<[f64; 2]> = (0..n)
            .map(|i| [z[i] - max[0], zt[i] - max[1]].map(|d| f64::from(d) / f64::from(temperature)))
            .collect();
        let squared = |x: f64| x.powi(1 << SQUARES);
        // SAFETY: the level is there.
        let found = unsafe { sums(power, 1.0 / temperature, max, &mut z, &mut zt, [0, 0]) };
        assert_eq!(zt[n], 11.0);
        let (mut exact, mut most) = ([0.0; 4], 0.0);
        for (i, [d, dt]) in d.iter().enumerate() {
            let gap = dt.exp() * (dt - d);
            let terms = [squared(d.exp()), d.exp(), dt.exp(), gap];
            most += gap.abs();
            exact.iter_mut().zip(terms).for_each(|(sum, t)| *sum += t);
            assert!(close(z[i].into(), d.exp(), d.exp() * (1.0 - d)), "{n}, {i}: {} {d}", z[i]);
        }
        for k in 0..3 {
            assert!(close(found[k], exact[k], exact[k]), "{n}: {found:?} {exact:?}");
        }
        assert!(close(found[3], exact[3], most), "{n}: {found:?} {exact:?}");
        if !has_gradient() {
            return;
        }
        let (factors, a) = ([0.3f32, 0.7, 0.9], 0.25f32);
        for (l, a) in [(Some(label), a), (Some(n - 1), a), (None, 0.0)] {
            let mut g = z.clone();
            // SAFETY: the level is there.
            unsafe { rounded_gradient(power, factors, l.map(|l| (l, a)), &mut g, &zt) };
            let bits: &[u16] = bytemuck::cast_slice(&g);
            for i in 0..n {
                let [all, student, teacher] = factors.map(f64::from);
                let (z, zt) = (f64::from(z[i]), f64::from(zt[i]));
                let less = if l == Some(i) { f64::from(a) } else { 0.0 };
                let exact = all * squared(z) + student * z - teacher * zt - less;
                let found = f64::from(bf16::from_bits(bits[i]).to_f32());
                let allowed = exact.abs() / 256.0 + 1e-6;
                assert!((found - exact).abs() <= allowed, "{n}, {i}: {found} {exact}");
            }
        }
    }

    #[test]
    fn sums_and_gradients_are_those_of_single_elements() {
        if !has_sums() {
            return;
        }
        for n in [1, 2, 15, 16, 17, 48, 333, 4096, 4100, 9001] {
            compare::<0>(n);
            compare::<1>(n);
            compare::<2>(n);
        }
    }

    #[test]
    fn no_number_stays_none() {
        if !has_sums() {
            return;
        }
        let (mut z, mut zt) = (vec![0.5f32; 40], vec![0.5f32; 40]);
        z[17] = f32::NAN;
        // SAFETY: the level is there.
        let found = unsafe { sums(Squared::<1>, 0.5, [0.5, 0.5], &mut z, &mut zt, [0, 0]) };
        assert!(found[0].is_nan() && found[1].is_nan() && found[2] == 40.0 && z[17].is_nan() && z[16] == 1.0);
    }
}
