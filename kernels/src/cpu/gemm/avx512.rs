//! Micro-kernels of AVX-512.

use super::ahead::Walk;
use super::avx512_pair;
use super::micro::{Block, Fetch, Isa};
use super::spread_avx512;
use std::arch::x86_64::*;

/// Rows of a register tile.
pub(super) const MR: usize = 8;

/// Vectors of a row of a register tile.
pub(super) const VR: usize = 3;

/// Columns of a register tile.
pub(super) const NR: usize = 16 * VR;

/// `f32` only.
pub(super) static F32: Isa = Isa {
    mr: MR,
    nr: NR,
    lanes: NR / VR,
    single: single::<false>,
    pair: None,
    dot: None,
    direct: Some([single::<true>, single::<true>]),
    chain: None,
    transpose,
    spread: spread_avx512::spread,
    narrow: None,
};

/// `f32`, and `bf16` by its own instruction.
pub(super) static BF16: Isa = Isa {
    pair: Some(avx512_pair::pair::<false>),
    dot: Some(dot),
    direct: Some([single::<true>, avx512_pair::pair::<true>]),
    chain: Some(avx512_pair::chain),
    narrow: Some(&super::narrow_avx512::KERNELS),
    ..F32
};

/// Mask of the first `n` of 16 lanes.
pub(super) fn first(n: usize) -> __mmask16 {
    if n >= 16 { !0 } else { (1 << n) - 1 }
}

/// Asks for the lines of a result of `M` rows of `V` vectors: they come while the sums are made.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn ask_for<const M: usize, const V: usize>(result: &Fetch) {
    for i in 0..M {
        for v in 0..V {
            _mm_prefetch::<_MM_HINT_T0>(result.at.wrapping_add(i * result.row + v * result.width).cast());
        }
    }
}

/// # Safety
/// See [`Isa::single`], or [`Isa::direct`] if `DIRECT`.
unsafe fn single<const DIRECT: bool>(t: &Block<'_>) {
    macro_rules! tiles {
        ($m:literal) => {
            [single_tile::<$m, 1, DIRECT>, single_tile::<$m, 2, DIRECT>, single_tile::<$m, 3, DIRECT>]
        };
    }
    let tiles: [[unsafe fn(&Block<'_>); VR]; MR] =
        const { [tiles!(1), tiles!(2), tiles!(3), tiles!(4), tiles!(5), tiles!(6), tiles!(7), tiles!(8)] };
    // SAFETY: by contract.
    unsafe { tiles[t.m - 1][(t.n - 1) / 16](t) }
}

/// # Safety
/// See [`single`]; `M` rows and `V` vectors are those of the block.
#[target_feature(enable = "avx512f")]
unsafe fn single_tile<const M: usize, const V: usize, const DIRECT: bool>(t: &Block<'_>) {
    ask_for::<M, V>(&t.result);
    let mut acc = [[_mm512_setzero_ps(); V]; M];
    let (mut pa, mut pb) = (t.a, t.b.cast::<f32>());
    let (a_row, a_unit) = if DIRECT { (t.a_row, 1) } else { (size_of::<u32>(), MR) };
    // No closure: sums stay in registers.
    macro_rules! step {
        ($u:ident) => {
            if DIRECT && $u % 16 < M {
                // A line of each of the rows that come next.
                _mm_prefetch::<_MM_HINT_T0>(pa.wrapping_byte_add((M + $u % 16) * a_row).cast());
            }
            let mut b = [_mm512_setzero_ps(); V];
            // SAFETY: panels have `units` groups of their width, rows as many units.
            unsafe {
                for (v, b) in b.iter_mut().enumerate() {
                    *b = _mm512_loadu_ps(pb.add(16 * v));
                }
                for (i, acc) in acc.iter_mut().enumerate() {
                    let a = _mm512_set1_ps(pa.byte_add(i * a_row).cast::<f32>().read_unaligned());
                    for (acc, &b) in acc.iter_mut().zip(&b) {
                        *acc = _mm512_fmadd_ps(a, b, *acc);
                    }
                }
                (pa, pb) = (pa.add(a_unit), pb.add(NR));
            }
        };
    }
    let (mut ahead, asked) = Walk::begin(t.ahead, t.units);
    let apart = Walk::apart(asked, t.units);
    for u in 0..t.units {
        if u & (apart - 1) == 0 && u < asked * apart {
            ahead.step();
        }
        step!(u);
    }
    let alpha = _mm512_set1_ps(t.alpha);
    for (i, acc) in acc.iter().enumerate() {
        for (v, &acc) in acc.iter().enumerate() {
            let mask = first(t.n - 16 * v);
            // SAFETY: by contract; lanes beyond the block are masked.
            unsafe {
                let c = t.c.add(i * t.ldc + 16 * v);
                let sum = if t.add {
                    _mm512_fmadd_ps(acc, alpha, _mm512_maskz_loadu_ps(mask, c))
                } else {
                    _mm512_mul_ps(acc, alpha)
                };
                _mm512_mask_storeu_ps(c, mask, sum);
            }
        }
    }
}

/// Sum of products of `bf16`.
///
/// # Safety
/// See [`Isa::dot`].
unsafe fn dot(a: &[u16], b: &[u16]) -> f32 {
    // SAFETY: by contract.
    unsafe { dot_pairs(a, b) }
}

/// # Safety
/// See [`dot`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn dot_pairs(a: &[u16], b: &[u16]) -> f32 {
    const N: usize = 8;
    let mut acc = [_mm512_setzero_ps(); N];
    let mut step = |v: usize, a: __m512i, b: __m512i| {
        // SAFETY: both types are 512 bits without invalid values.
        let [a, b] = unsafe { std::mem::transmute::<[__m512i; 2], [__m512bh; 2]>([a, b]) };
        acc[v] = _mm512_dpbf16_ps(acc[v], a, b);
    };
    let (mut wide_a, mut wide_b) = (a.chunks_exact(32 * N), b.chunks_exact(32 * N));
    for (a, b) in (&mut wide_a).zip(&mut wide_b) {
        for v in 0..N {
            // SAFETY: the chunk has `N` vectors.
            unsafe {
                step(
                    v,
                    _mm512_loadu_si512(a.as_ptr().add(32 * v).cast()),
                    _mm512_loadu_si512(b.as_ptr().add(32 * v).cast()),
                );
            }
        }
    }
    for (v, (a, b)) in wide_a.remainder().chunks(32).zip(wide_b.remainder().chunks(32)).enumerate() {
        let mask = if a.len() == 32 { !0 } else { (1u32 << a.len()) - 1 };
        // SAFETY: elements beyond the slices are masked.
        unsafe {
            step(
                v,
                _mm512_maskz_loadu_epi16(mask, a.as_ptr().cast()),
                _mm512_maskz_loadu_epi16(mask, b.as_ptr().cast()),
            );
        }
    }
    let [a, b, c, d, e, f, g, h] = acc;
    let add = |x, y| _mm512_add_ps(x, y);
    _mm512_reduce_add_ps(add(add(add(a, b), add(c, d)), add(add(e, f), add(g, h))))
}

/// [`super::micro::Transpose`] in registers, 16 units of 16 rows at a time.
///
/// # Safety
/// See there.
unsafe fn transpose(
    rows: *const u8,
    stride: usize,
    m: usize,
    n: usize,
    pair: bool,
    out: *mut u32,
    width: usize,
) {
    // SAFETY: by contract.
    unsafe { transpose_rows(rows, stride, m, n, pair, out, width) }
}

/// # Safety
/// See [`transpose`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn transpose_rows(
    rows: *const u8,
    stride: usize,
    m: usize,
    n: usize,
    pair: bool,
    out: *mut u32,
    width: usize,
) {
    let (size, per) = if pair { (2, 2) } else { (4, 1) };
    let units = n.div_ceil(per);
    let row = |i: usize, u: usize| rows.wrapping_add((i * stride + u * per) * size);
    // Whole squares: 16 units of 16 rows, or 32 of 8.
    let (lines, step) = if m == 8 { (8, 32) } else { (16, 16) };
    let whole = if m == lines { n / per / step * step } else { 0 };
    for u in (0..whole).step_by(step) {
        let mut r = [_mm512_setzero_ps(); 16];
        // The next rows come while these are copied.
        for i in 0..16 {
            _mm_prefetch::<_MM_HINT_T0>(row(lines + i % lines, u + i / lines * 16).cast());
        }
        // SAFETY: by contract.
        unsafe {
            if m == 8 {
                for (i, r) in r.iter_mut().enumerate() {
                    *r = _mm512_loadu_ps(row(i % 8, u + i / 8 * 16).cast());
                }
                for (c, column) in transposed(r).into_iter().enumerate() {
                    let to = out.add((u + c) * width).cast();
                    _mm256_storeu_ps(to, _mm512_castps512_ps256(column));
                    _mm256_storeu_pd(
                        to.add(16 * width).cast(),
                        _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(column)),
                    );
                }
            } else {
                for (i, r) in r.iter_mut().enumerate() {
                    *r = _mm512_loadu_ps(row(i, u).cast());
                }
                for (c, column) in transposed(r).into_iter().enumerate() {
                    _mm512_storeu_ps(out.add((u + c) * width).cast(), column);
                }
            }
        }
    }
    for u in (whole..units).step_by(16) {
        let left = n - u * per;
        let (singles, pairs) = (first(left), if left >= 32 { !0 } else { (1u32 << left) - 1 });
        let mut r = [_mm512_setzero_ps(); 16];
        for (i, r) in r[..m].iter_mut().enumerate() {
            // SAFETY: by contract; elements beyond the row are masked.
            *r = unsafe {
                if pair {
                    _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(pairs, row(i, u).cast()))
                } else {
                    _mm512_maskz_loadu_ps(singles, row(i, u).cast())
                }
            };
        }
        let columns = transposed(r);
        for (c, column) in columns[..16.min(units - u)].iter().enumerate() {
            // SAFETY: by contract; rows that are not there are masked.
            unsafe { _mm512_mask_storeu_ps(out.add((u + c) * width).cast(), first(m), *column) };
        }
    }
}

/// The transpose of 16 × 16 units.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(mut r: [__m512; 16]) -> [__m512; 16] {
    let mut t = r;
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    let pd = |x| _mm512_castps_pd(x);
    for i in (0..16).step_by(4) {
        r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(t[i]), pd(t[i + 2])));
        r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(t[i]), pd(t[i + 2])));
        r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(t[i + 1]), pd(t[i + 3])));
        r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(t[i + 1]), pd(t[i + 3])));
    }
    // `r[4 i + j]` has in its quarter `q` rows `4 i..` of column `4 q + j`.
    for j in 0..4 {
        t[j] = _mm512_shuffle_f32x4::<0x88>(r[j], r[4 + j]);
        t[4 + j] = _mm512_shuffle_f32x4::<0xdd>(r[j], r[4 + j]);
        t[8 + j] = _mm512_shuffle_f32x4::<0x88>(r[8 + j], r[12 + j]);
        t[12 + j] = _mm512_shuffle_f32x4::<0xdd>(r[8 + j], r[12 + j]);
    }
    for j in 0..4 {
        r[j] = _mm512_shuffle_f32x4::<0x88>(t[j], t[8 + j]);
        r[8 + j] = _mm512_shuffle_f32x4::<0xdd>(t[j], t[8 + j]);
        r[4 + j] = _mm512_shuffle_f32x4::<0x88>(t[4 + j], t[12 + j]);
        r[12 + j] = _mm512_shuffle_f32x4::<0xdd>(t[4 + j], t[12 + j]);
    }
    r
}
