//! Micro-kernels of AVX2 with FMA.

use super::micro::{self, Block, Isa};
use super::spread;
use std::arch::x86_64::*;

/// Rows of a register tile.
const MR: usize = 6;

/// Columns of a register tile.
const NR: usize = 16;

/// `f32` only.
pub(super) static ISA: Isa = Isa {
    mr: MR,
    nr: NR,
    lanes: 8,
    single,
    pair: None,
    dot: None,
    direct: None,
    chain: None,
    transpose: micro::transpose,
    spread: spread::spread,
    narrow: None,
};

/// # Safety
/// See [`Isa::single`].
unsafe fn single(t: &Block<'_>) {
    const TILES: [[unsafe fn(&Block<'_>); 2]; MR] = [
        [tile::<1, 1>, tile::<1, 2>],
        [tile::<2, 1>, tile::<2, 2>],
        [tile::<3, 1>, tile::<3, 2>],
        [tile::<4, 1>, tile::<4, 2>],
        [tile::<5, 1>, tile::<5, 2>],
        [tile::<6, 1>, tile::<6, 2>],
    ];
    // SAFETY: by contract.
    unsafe { TILES[t.m - 1][(t.n - 1) / 8](t) }
}

/// # Safety
/// See [`Isa::single`]; `M` rows and `V` vectors are those of the block.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const M: usize, const V: usize>(t: &Block<'_>) {
    let mut acc = [[_mm256_setzero_ps(); V]; M];
    let (mut pa, mut pb) = (t.a.cast::<f32>(), t.b.cast::<f32>());
    for _ in 0..t.units {
        let mut b = [_mm256_setzero_ps(); V];
        // SAFETY: panels have `units` groups of their width.
        unsafe {
            for (v, b) in b.iter_mut().enumerate() {
                *b = _mm256_loadu_ps(pb.add(8 * v));
            }
            for (i, acc) in acc.iter_mut().enumerate() {
                let a = _mm256_set1_ps(*pa.add(i));
                for (acc, &b) in acc.iter_mut().zip(&b) {
                    *acc = _mm256_fmadd_ps(a, b, *acc);
                }
            }
            (pa, pb) = (pa.add(MR), pb.add(NR));
        }
    }
    let alpha = _mm256_set1_ps(t.alpha);
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (i, acc) in acc.iter().enumerate() {
        for (v, &acc) in acc.iter().enumerate() {
            let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32((t.n - 8 * v) as i32), lanes);
            // SAFETY: by contract; lanes beyond the block are masked.
            unsafe {
                let c = t.c.add(i * t.ldc + 8 * v);
                let sum = if t.add {
                    _mm256_fmadd_ps(acc, alpha, _mm256_maskload_ps(c, mask))
                } else {
                    _mm256_mul_ps(acc, alpha)
                };
                _mm256_maskstore_ps(c, mask, sum);
            }
        }
    }
}
