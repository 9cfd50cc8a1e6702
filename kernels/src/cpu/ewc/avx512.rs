//! Tiles of [`super::tile`] with AVX-512: the depth of the products is the rank, too little to pay for packing, so that operands
//! are read where they lie, a vector of columns times a broadcast element. Sums over depth are taken one by one in order, whatever
//! the block of registers: results do not depend on how extents are cut.

use super::tile::{COLUMNS, Change, GradA, GradB, Kernels, LANES};
use std::arch::x86_64::*;

pub(super) static KERNELS: Kernels = Kernels { change, grad_a, grad_b };

/// Mask of the first `n` of 16 lanes.
fn first(n: usize) -> __mmask16 {
    if n >= LANES { !0 } else { (1 << n) - 1 }
}

/// Calls `$block::<M, …>` for blocks of `$most` rows, then of halves of that.
macro_rules! blocks {
    ($n:expr, |$at:ident| $($m:literal => $call:expr),+) => {{
        let n = $n;
        let mut $at = 0;
        $(while n - $at >= $m {
            $call;
            $at += $m;
        })+
    }};
}

/// # Safety
/// See [`Kernels::change`].
unsafe fn change(t: &Change) -> f64 {
    // SAFETY: by contract.
    unsafe { if t.bf16 { change_as::<true>(t) } else { change_as::<false>(t) } }
}

/// # Safety
/// See [`Kernels::change`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn change_as<const BF16: bool>(t: &Change) -> f64 {
    let mut total = _mm512_setzero_pd();
    // SAFETY: by contract; blocks lie within the tile.
    unsafe {
        blocks!(t.m, |i|
            8 => total = _mm512_add_pd(total, change_rows::<8, BF16>(t, i)),
            4 => total = _mm512_add_pd(total, change_rows::<4, BF16>(t, i)),
            2 => total = _mm512_add_pd(total, change_rows::<2, BF16>(t, i)),
            1 => total = _mm512_add_pd(total, change_rows::<1, BF16>(t, i))
        );
    }
    _mm512_reduce_add_pd(total)
}

/// `M` rows from row `i` of the tile on, and their sums of `F·Δ²`.
///
/// # Safety
/// See [`Kernels::change`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn change_rows<const M: usize, const BF16: bool>(t: &Change, i: usize) -> __m512d {
    // Of two vectors of columns at a time.
    const V: usize = 2;
    let (scale, factor) = (_mm512_set1_ps(t.scale), _mm512_set1_ps(t.factor));
    let mut penalty = [_mm512_setzero_ps(); V];
    for j in (0..t.n).step_by(V * LANES) {
        let masks = [first(t.n - j), first((t.n - j).saturating_sub(LANES))];
        let mut acc = [[_mm512_setzero_ps(); V]; M];
        // SAFETY: by contract; columns beyond the tile are masked, and the result has room for them.
        unsafe {
            let (mut a, b) = (t.a.add(j), t.b.add(i * t.rank));
            for k in 0..t.rank {
                let x = [
                    _mm512_maskz_loadu_ps(masks[0], a),
                    _mm512_maskz_loadu_ps(masks[1], a.wrapping_add(LANES)),
                ];
                for (r, acc) in acc.iter_mut().enumerate() {
                    let b = _mm512_set1_ps(*b.add(r * t.rank + k));
                    for (acc, x) in acc.iter_mut().zip(x) {
                        *acc = _mm512_fmadd_ps(b, x, *acc);
                    }
                }
                a = a.wrapping_add(t.a_row);
            }
            for (r, acc) in acc.iter().enumerate() {
                for v in 0..V {
                    let at = (i + r) * t.fisher_row + j + v * LANES;
                    let f = if BF16 {
                        let f = t.fisher.cast::<i16>().wrapping_add(at);
                        let f = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(masks[v], f));
                        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(f))
                    } else {
                        _mm512_maskz_loadu_ps(masks[v], t.fisher.cast::<f32>().wrapping_add(at))
                    };
                    let x = _mm512_mul_ps(acc[v], scale);
                    let fx = _mm512_mul_ps(f, x);
                    penalty[v] = _mm512_fmadd_ps(fx, x, penalty[v]);
                    if !t.g.is_null() {
                        _mm512_storeu_ps(
                            t.g.add((i + r) * COLUMNS + j + v * LANES),
                            _mm512_mul_ps(fx, factor),
                        );
                    }
                }
            }
        }
    }
    let sum = _mm512_add_ps(penalty[0], penalty[1]);
    let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(sum)));
    _mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(sum)), _mm512_cvtps_pd(high))
}

/// # Safety
/// See [`Kernels::grad_a`].
unsafe fn grad_a(t: &GradA) {
    // SAFETY: by contract.
    unsafe { grad_a_blocks(t) }
}

/// # Safety
/// See [`Kernels::grad_a`].
#[target_feature(enable = "avx512f")]
unsafe fn grad_a_blocks(t: &GradA) {
    for j in (0..t.n).step_by(2 * LANES) {
        // SAFETY: by contract.
        unsafe {
            blocks!(t.rank, |k|
                8 => grad_a_block::<8>(t, k, j),
                4 => grad_a_block::<4>(t, k, j),
                2 => grad_a_block::<2>(t, k, j),
                1 => grad_a_block::<1>(t, k, j)
            );
        }
    }
}

/// Two vectors of columns from `j` on of `K` rows of the gradient from row `k` on.
///
/// # Safety
/// See [`Kernels::grad_a`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn grad_a_block<const K: usize>(t: &GradA, k: usize, j: usize) {
    const V: usize = 2;
    let masks = [first(t.n - j), first((t.n - j).saturating_sub(LANES))];
    let at = |q: usize, v: usize| t.da.wrapping_add((k + q) * t.da_row + j + v * LANES);
    let mut acc = [[_mm512_setzero_ps(); V]; K];
    // SAFETY: by contract; columns beyond the tile are masked, and `g` has room for them.
    unsafe {
        if t.add {
            for (q, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm512_maskz_loadu_ps(masks[v], at(q, v));
                }
            }
        }
        let (mut b, mut g) = (t.b.add(k), t.g.add(j));
        for i in 0..t.m {
            if k == 0 {
                // What the next tile reads, a line or two of each row.
                let next = t.next.wrapping_add(i * t.next_row + j * t.next_size);
                _mm_prefetch::<_MM_HINT_T0>(next.cast());
                if t.next_size == size_of::<f32>() {
                    _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(64).cast());
                }
            }
            let x = [_mm512_loadu_ps(g), _mm512_loadu_ps(g.add(LANES))];
            for (q, acc) in acc.iter_mut().enumerate() {
                let b = _mm512_set1_ps(*b.add(q));
                for (acc, x) in acc.iter_mut().zip(x) {
                    *acc = _mm512_fmadd_ps(b, x, *acc);
                }
            }
            (b, g) = (b.wrapping_add(t.rank), g.wrapping_add(COLUMNS));
        }
        for (q, acc) in acc.iter().enumerate() {
            for (v, acc) in acc.iter().enumerate() {
                _mm512_mask_storeu_ps(at(q, v), masks[v], *acc);
            }
        }
    }
}

/// # Safety
/// See [`Kernels::grad_b`].
unsafe fn grad_b(t: &GradB) {
    // SAFETY: by contract.
    unsafe { grad_b_blocks(t) }
}

/// # Safety
/// See [`Kernels::grad_b`].
#[target_feature(enable = "avx512f")]
unsafe fn grad_b_blocks(t: &GradB) {
    let mut k = 0;
    // SAFETY: by contract.
    unsafe {
        while t.rank.saturating_sub(k) > LANES {
            blocks!(t.m, |i|
                8 => grad_b_block::<8, 2>(t, i, k),
                4 => grad_b_block::<4, 2>(t, i, k),
                2 => grad_b_block::<2, 2>(t, i, k),
                1 => grad_b_block::<1, 2>(t, i, k)
            );
            k += 2 * LANES;
        }
        if k < t.rank {
            blocks!(t.m, |i|
                16 => grad_b_block::<16, 1>(t, i, k),
                8 => grad_b_block::<8, 1>(t, i, k),
                4 => grad_b_block::<4, 1>(t, i, k),
                2 => grad_b_block::<2, 1>(t, i, k),
                1 => grad_b_block::<1, 1>(t, i, k)
            );
        }
    }
}

/// `V` vectors of columns from `k` on of `M` rows of the gradient from row `i` on.
///
/// # Safety
/// See [`Kernels::grad_b`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn grad_b_block<const M: usize, const V: usize>(t: &GradB, i: usize, k: usize) {
    let at = |r: usize, v: usize| t.db.wrapping_add((i + r) * t.rank + k + v * LANES);
    let mask = |v: usize| first((t.rank - k).saturating_sub(v * LANES));
    let mut acc = [[_mm512_setzero_ps(); V]; M];
    // SAFETY: by contract; columns beyond the rank are masked in the result, and there in `at`.
    unsafe {
        if t.add {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm512_maskz_loadu_ps(mask(v), at(r, v));
                }
            }
        }
        let (mut a, g) = (t.at.add(k), t.g.add(i * COLUMNS));
        for j in 0..t.n {
            let mut x = [_mm512_setzero_ps(); V];
            for (v, x) in x.iter_mut().enumerate() {
                *x = _mm512_loadu_ps(a.add(v * LANES));
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let g = _mm512_set1_ps(*g.add(r * COLUMNS + j));
                for (acc, x) in acc.iter_mut().zip(x) {
                    *acc = _mm512_fmadd_ps(g, x, *acc);
                }
            }
            a = a.wrapping_add(t.at_row);
        }
        for (r, acc) in acc.iter().enumerate() {
            for (v, acc) in acc.iter().enumerate() {
                _mm512_mask_storeu_ps(at(r, v), mask(v), *acc);
            }
        }
    }
}
