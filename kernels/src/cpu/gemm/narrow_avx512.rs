//! Kernels of [`super::narrow`] for AVX-512 with BF16.

use super::narrow::{Columns, Kernels, LANES, Rows, STRIP, Strip};
use crate::cpu::simd::{prefetch, quarters};
use std::arch::x86_64::*;

/// Rows of a register tile of [`rows`], each of sums of even units and of odd ones.
const M: usize = 8;

/// Lines of a register tile of [`columns`], each of [`VECTORS`].
const LINES: usize = 4;

/// Vectors of a strip's pairs.
const VECTORS: usize = STRIP / LANES;

/// Rows that are fetched ahead by [`pairs`]. Few, for rows that lie a multiple of 4 KiB apart share one place in the nearest cache.
const AHEAD: usize = 8;

pub(super) static KERNELS: Kernels = Kernels { m: M, rows, pairs, lines: LINES, columns };

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
    let mut add = |x: *const u16, panel: *const u32, which: usize| {
        // SAFETY: by contract.
        unsafe {
            let b = _mm512_loadu_si512(panel.cast());
            for (i, acc) in acc.iter_mut().enumerate() {
                let a = _mm512_set1_epi32(x.add(i * t.stride).cast::<i32>().read_unaligned());
                acc[which] = dot(acc[which], a, b);
            }
        }
    };
    for u in 0..t.units / 2 {
        // A line of each of the rows that come next.
        _mm_prefetch::<_MM_HINT_T0>(x.wrapping_add((M + u % M) * t.stride).cast());
        add(x, panel, 0);
        add(x.wrapping_add(2), panel.wrapping_add(LANES), 1);
        (x, panel) = (x.wrapping_add(4), panel.wrapping_add(2 * LANES));
    }
    if t.units % 2 == 1 {
        add(x, panel, 0);
    }
    let (alpha, mask) = (_mm512_set1_ps(t.alpha), (!0u16) >> (LANES - t.n));
    for (i, acc) in acc.iter().enumerate() {
        let sums = _mm512_mul_ps(alpha, _mm512_add_ps(acc[0], acc[1]));
        // SAFETY: by contract; lanes beyond the lines are masked.
        unsafe { _mm512_mask_storeu_ps(t.out.add(i * t.ldo), mask, sums) };
    }
}

/// # Safety
/// See [`Kernels::pairs`].
unsafe fn pairs(t: &Strip) {
    // SAFETY: by contract.
    unsafe { if t.kept.is_some() { pairs_of::<true>(t) } else { pairs_of::<false>(t) } }
}

/// # Safety
/// See [`Kernels::pairs`]; `DROPS` says whether not all elements count.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pairs_of<const DROPS: bool>(t: &Strip) {
    let mask = (!0u64) >> (STRIP - t.n);
    let halves = [mask as u32, (mask >> 32) as u32];
    let (mut x, mut to) = (t.x, t.pairs);
    for row in (0..t.depth).step_by(2) {
        for (half, mask) in halves.into_iter().enumerate() {
            let at = x.wrapping_add(32 * half);
            let read = |i: usize| {
                let from = at.wrapping_add(i * t.stride);
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD * t.stride).cast());
                if row + i == t.depth {
                    return _mm512_setzero_si512();
                }
                // SAFETY: by contract; columns beyond the last are masked.
                unsafe {
                    let mask = match t.kept {
                        Some((kept, first)) if DROPS && mask != 0 => {
                            mask & kept.at(first + (row + i) * t.stride + 32 * half) as u32
                        }
                        _ => mask,
                    };
                    _mm512_maskz_loadu_epi16(mask, from.cast())
                }
            };
            let (first, second) = (read(0), read(1));
            // SAFETY: by contract.
            unsafe {
                _mm512_storeu_si512(to.add(2 * half * LANES).cast(), _mm512_unpacklo_epi16(first, second));
                _mm512_storeu_si512(
                    to.add((2 * half + 1) * LANES).cast(),
                    _mm512_unpackhi_epi16(first, second),
                );
            }
        }
        (x, to) = (x.wrapping_add(2 * t.stride), to.wrapping_add(STRIP));
    }
}

/// # Safety
/// See [`Kernels::columns`].
unsafe fn columns(t: &Columns) {
    const TILES: [unsafe fn(&Columns); LINES] =
        [columns_tile::<1>, columns_tile::<2>, columns_tile::<3>, columns_tile::<4>];
    // SAFETY: by contract.
    unsafe { TILES[t.lines - 1](t) }
}

/// # Safety
/// See [`Kernels::columns`]; there are `L` lines.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn columns_tile<const L: usize>(t: &Columns) {
    let mut acc = [[_mm512_setzero_ps(); VECTORS]; L];
    for (i, acc) in acc.iter_mut().enumerate() {
        for (half, acc) in acc.chunks_exact_mut(2).enumerate() {
            // SAFETY: by contract.
            unsafe {
                let at = t.sums.add(i * STRIP + 32 * half);
                let (a, b) = (_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16)));
                // What `unpacklo` and `unpackhi` make of 32 columns: every other four of them.
                acc[0] = _mm512_shuffle_f32x4::<0x88>(a, b);
                acc[1] = _mm512_shuffle_f32x4::<0xdd>(a, b);
            }
        }
    }
    let (mut pairs, mut panel, mut ahead) = (t.pairs, t.panel, t.ahead.0);
    for u in 0..t.units {
        if u < t.ahead.1 {
            prefetch(ahead);
            prefetch(ahead.wrapping_add(32));
            ahead = ahead.wrapping_add(t.stride);
        }
        // SAFETY: by contract.
        unsafe {
            let mut x = [_mm512_setzero_si512(); VECTORS];
            x.iter_mut().enumerate().for_each(|(i, x)| *x = _mm512_loadu_si512(pairs.add(i * LANES).cast()));
            for (i, acc) in acc.iter_mut().enumerate() {
                let line = _mm512_set1_epi32(panel.add(i).read().cast_signed());
                acc.iter_mut().zip(x).for_each(|(acc, x)| *acc = dot(*acc, line, x));
            }
            (pairs, panel) = (pairs.add(STRIP), panel.add(LANES));
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        for (half, acc) in acc.chunks_exact(2).enumerate() {
            let [even, odd] = [acc[0], acc[1]].map(|a| _mm512_castps_si512(a));
            // SAFETY: by contract.
            unsafe {
                let at = t.sums.add(i * STRIP + 32 * half);
                let [first, second] = quarters(even, odd);
                _mm512_storeu_si512(at.cast(), first);
                _mm512_storeu_si512(at.add(16).cast(), second);
            }
        }
    }
}
