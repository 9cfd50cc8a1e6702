//! The loops of `decode` with AVX-512: what is read of a key is used for several rows of queries.

use std::arch::x86_64::*;

/// Rows and keys whose dot products are summed side by side.
const ROWS: usize = 4;
const KEYS: usize = 4;

/// Vectors of values that are summed side by side.
const VECTORS: usize = 4;

/// Mask of the first `n` of 16 lanes.
fn first(n: usize) -> __mmask16 {
    if n >= 16 { !0 } else { (1 << n) - 1 }
}

/// Elements `i..i + 16` of a row, with zeros after its end.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(row: &[f32], i: usize) -> __m512 {
    let row = &row[i..];
    // SAFETY: elements beyond the row are masked.
    unsafe { _mm512_maskz_loadu_ps(first(row.len()), row.as_ptr()) }
}

/// See [`super::decode::dots`].
///
/// # Safety
/// The CPU has AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn dots(q: &[f32], keys: &[f32], stride: usize, d: usize, out: &mut [f32], n: usize) {
    let (rows, count) = (q.len() / d, keys.len().div_ceil(stride));
    for r in (0..rows).step_by(ROWS) {
        // Rows and keys that are not there repeat the last one.
        let q: [&[f32]; ROWS] = std::array::from_fn(|i| &q[(r + i).min(rows - 1) * d..][..d]);
        for j in (0..count).step_by(KEYS) {
            let k: [&[f32]; KEYS] = std::array::from_fn(|i| &keys[(j + i).min(count - 1) * stride..][..d]);
            let mut acc = [[_mm512_setzero_ps(); KEYS]; ROWS];
            for i in (0..d).step_by(16) {
                let mut x = [_mm512_setzero_ps(); KEYS];
                for (x, k) in x.iter_mut().zip(k) {
                    *x = load(k, i);
                }
                for (acc, q) in acc.iter_mut().zip(q) {
                    let q = load(q, i);
                    for (acc, x) in acc.iter_mut().zip(x) {
                        *acc = _mm512_fmadd_ps(q, x, *acc);
                    }
                }
            }
            for (i, acc) in acc.iter().enumerate().take(rows - r) {
                for (out, acc) in out[(r + i) * n + j..].iter_mut().zip(acc).take(count - j) {
                    *out = _mm512_reduce_add_ps(*acc);
                }
            }
        }
    }
}

/// See [`super::decode::weighted`].
///
/// # Safety
/// The CPU has AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn weighted(
    weights: &[f32],
    n: usize,
    values: &[f32],
    stride: usize,
    dv: usize,
    out: &mut [f32],
    part: usize,
) {
    let (rows, count) = (out.len() / part, values.len().div_ceil(stride));
    for r in (0..rows).step_by(ROWS) {
        let w: [&[f32]; ROWS] = std::array::from_fn(|i| &weights[(r + i).min(rows - 1) * n..][..count]);
        for c in (0..dv).step_by(16 * VECTORS) {
            let mut acc = [[_mm512_setzero_ps(); VECTORS]; ROWS];
            for j in 0..count {
                let v = &values[j * stride..][..dv];
                let mut x = [_mm512_setzero_ps(); VECTORS];
                for (i, x) in x.iter_mut().enumerate() {
                    *x = load(v, (c + 16 * i).min(dv));
                }
                for (acc, w) in acc.iter_mut().zip(w) {
                    let w = _mm512_set1_ps(w[j]);
                    for (acc, x) in acc.iter_mut().zip(x) {
                        *acc = _mm512_fmadd_ps(w, x, *acc);
                    }
                }
            }
            for (i, acc) in acc.iter().enumerate().take(rows - r) {
                let out = &mut out[(r + i) * part..][2..2 + dv];
                for (v, acc) in acc.iter().enumerate() {
                    let at = (c + 16 * v).min(dv);
                    let sum = _mm512_add_ps(load(out, at), *acc);
                    let out = &mut out[at..];
                    // SAFETY: elements beyond the row are masked.
                    unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), first(out.len()), sum) };
                }
            }
        }
    }
}
