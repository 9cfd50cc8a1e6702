//! Kernels of [`super::narrow`] for AVX-512 with BF16.

use super::narrow::{Columns, Kernels, LANES, PAIRS, Rows, STRIP};
use crate::cpu::simd::quarters;
use std::arch::x86_64::*;

/// Rows of a register tile of [`rows`]; each has sums of rounded elements and of rests.
const M: usize = 8;

/// Lines of a register tile of [`columns`], each of two vectors.
const LINES: usize = 8;

/// Columns of it.
const N: usize = 32;

/// Rows that are fetched ahead by [`columns`], where each is one cache line.
const AHEAD: usize = 12;

pub(super) static KERNELS: Kernels = Kernels { m: M, rows, n: N, lines: LINES, columns };

/// The products of pairs of `bf16`, added to sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot(sums: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: both types are 512 bits without invalid values.
    let [a, b] = unsafe { std::mem::transmute::<[__m512i; 2], [__m512bh; 2]>([a, b]) };
    _mm512_dpbf16_ps(sums, a, b)
}

/// # Safety
/// See [`Kernels::rows`].
unsafe fn rows(t: &Rows) {
    const TILES: [unsafe fn(&Rows); M] = [
        rows_tile::<1>,
        rows_tile::<2>,
        rows_tile::<3>,
        rows_tile::<4>,
        rows_tile::<5>,
        rows_tile::<6>,
        rows_tile::<7>,
        rows_tile::<8>,
    ];
    // SAFETY: by contract.
    unsafe { TILES[t.m - 1](t) }
}

/// # Safety
/// See [`Kernels::rows`]; `m` is `R`.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rows_tile<const R: usize>(t: &Rows) {
    let mut acc = [[_mm512_setzero_ps(); 2]; R];
    let (mut x, mut panel) = (t.x, t.panel);
    for u in 0..t.units {
        if u % 16 < M {
            // A line of each of the rows that come next.
            _mm_prefetch::<_MM_HINT_T0>(x.wrapping_add((M + u % 16) * t.stride).cast());
        }
        // SAFETY: by contract.
        unsafe {
            let b = [_mm512_loadu_si512(panel.cast()), _mm512_loadu_si512(panel.add(LANES).cast())];
            for (i, acc) in acc.iter_mut().enumerate() {
                let a = _mm512_set1_epi32(x.add(i * t.stride).cast::<i32>().read_unaligned());
                *acc = [dot(acc[0], a, b[0]), dot(acc[1], a, b[1])];
            }
            (x, panel) = (x.add(2), panel.add(PAIRS));
        }
    }
    let (alpha, mask) = (_mm512_set1_ps(t.alpha), (!0u16) >> (LANES - t.n));
    for (i, acc) in acc.iter().enumerate() {
        let sums = _mm512_mul_ps(alpha, _mm512_add_ps(acc[0], acc[1]));
        // SAFETY: by contract; lanes beyond the lines are masked.
        unsafe { _mm512_mask_storeu_ps(t.out.add(i * t.ldo), mask, sums) };
    }
}

/// # Safety
/// See [`Kernels::columns`].
unsafe fn columns(t: &Columns) {
    macro_rules! tiles {
        ($($lines:literal),*) => {
            [$([columns_tile::<$lines, false>, columns_tile::<$lines, true>]),*]
        };
    }
    const TILES: [[unsafe fn(&Columns); 2]; LINES] = tiles!(1, 2, 3, 4, 5, 6, 7, 8);
    // SAFETY: by contract.
    unsafe { TILES[t.lines - 1][usize::from(t.kept.is_some())](t) }
}

/// # Safety
/// See [`Kernels::columns`]; there are `L` lines, and `DROPS` says whether not all elements count.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn columns_tile<const L: usize, const DROPS: bool>(t: &Columns) {
    let mask = (!0u32) >> (N - t.n);
    let mut acc = [[_mm512_setzero_ps(); 2]; L];
    for (i, acc) in acc.iter_mut().enumerate() {
        // SAFETY: by contract.
        unsafe {
            let at = t.sums.add(i * STRIP);
            let (a, b) = (_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16)));
            // What `unpacklo` and `unpackhi` make of 32 columns: every other four of them.
            *acc = [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b)];
        }
    }
    let (mut x, mut panel) = (t.x, t.panel);
    for u in 0..t.depth.div_ceil(2) {
        _mm_prefetch::<_MM_HINT_T0>(x.wrapping_add(AHEAD * t.stride).cast());
        _mm_prefetch::<_MM_HINT_T0>(x.wrapping_add((AHEAD + 1) * t.stride).cast());
        // SAFETY: by contract; columns beyond the last are masked.
        unsafe {
            let mask_of = |row: usize| match t.kept {
                Some((kept, first, stride)) if DROPS => mask & kept.at(first + row * stride),
                _ => mask,
            };
            let first = _mm512_maskz_loadu_epi16(mask_of(2 * u), x.cast());
            let second = if 2 * u + 1 < t.depth {
                _mm512_maskz_loadu_epi16(mask_of(2 * u + 1), x.add(t.stride).cast())
            } else {
                _mm512_setzero_si512()
            };
            let pairs = [_mm512_unpacklo_epi16(first, second), _mm512_unpackhi_epi16(first, second)];
            for half in [0, LANES] {
                for (i, acc) in acc.iter_mut().enumerate() {
                    let line = _mm512_set1_epi32(panel.add(half + i).read().cast_signed());
                    *acc = [dot(acc[0], line, pairs[0]), dot(acc[1], line, pairs[1])];
                }
            }
            (x, panel) = (x.wrapping_add(2 * t.stride), panel.add(PAIRS));
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        let [even, odd] = acc.map(|a| _mm512_castps_si512(a));
        // SAFETY: by contract.
        unsafe {
            let at = t.sums.add(i * STRIP);
            let [first, second] = quarters(even, odd);
            _mm512_storeu_si512(at.cast(), first);
            _mm512_storeu_si512(at.add(16).cast(), second);
        }
    }
}
