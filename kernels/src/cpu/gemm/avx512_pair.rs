//! Micro-kernels of AVX-512 BF16 for units that are two `bf16`.
//!
//! `vdpbf16ps` multiplies two pairs of `bf16` and adds both products to an `f32`. How it rounds between the two additions is
//! its own affair; it rounds to nearest even, takes denormal operands as zero and flushes denormal results, whatever the
//! rounding mode says. So `bf16` products have other last bits than on CPUs without it, but always the same on one CPU.

use super::ahead::Walk;
use super::avx512::{MR, NR, VR, ask_for, first};
use super::micro::{Block, Chain, Link, To};
use crate::cpu::simd::prefetch;
use std::arch::x86_64::*;

/// A register tile of some extents.
type Tile = unsafe fn(&Chain<'_>, f32);

/// Sums of a register tile.
type Sums<const M: usize, const V: usize> = [[__m512; V]; M];

/// # Safety
/// See [`super::micro::Isa::chain`].
pub(super) unsafe fn chain(t: &Chain<'_>) {
    // SAFETY: by contract.
    unsafe { if t.dropped.is_some() { scaled::<true>(t, 1.0) } else { scaled::<false>(t, 1.0) } }
}

/// # Safety
/// See [`super::micro::Isa::pair`], or [`super::micro::Isa::direct`] if `DIRECT`.
pub(super) unsafe fn pair<const DIRECT: bool>(t: &Block<'_>) {
    let link = Link { units: t.units, a: t.a, a_row: DIRECT.then_some(t.a_row), b: t.b };
    let from = t.add.then_some((t.c.cast_const(), t.ldc));
    let to = To::F32(t.c, t.ldc);
    let chain =
        Chain { links: &[link], m: t.m, n: t.n, dropped: None, from, to, result: t.result, ahead: t.ahead };
    // SAFETY: by contract.
    unsafe { scaled::<false>(&chain, t.alpha) }
}

/// `to = from + alpha · (A₀·B₀ + A₁·B₁ + …)`; `DROPS` says whether sums are dropped, of which none are otherwise.
///
/// # Safety
/// See [`super::micro::Isa::chain`].
unsafe fn scaled<const DROPS: bool>(t: &Chain<'_>, alpha: f32) {
    macro_rules! tiles {
        ($m:literal) => {
            [tile::<$m, 1, DROPS>, tile::<$m, 2, DROPS>, tile::<$m, 3, DROPS>]
        };
    }
    let tiles: [[Tile; VR]; MR] =
        const { [tiles!(1), tiles!(2), tiles!(3), tiles!(4), tiles!(5), tiles!(6), tiles!(7), tiles!(8)] };
    // SAFETY: by contract.
    unsafe { tiles[t.m - 1][(t.n - 1) / 16](t, alpha) }
}

/// Adds the products of one unit of each row, `a_row` bytes apart, and one of each column, to the sums of a [`tile`].
///
/// Like [`add_link`] no function or closure: either would have a pointer to the sums where the compiler does not put it in line,
/// which it decides by the size of what it compiles together, and would write all sums to memory at each unit.
macro_rules! add_unit {
    ($acc:ident, $a:ident, $a_row:expr, $columns:ident) => {
        let mut b = [_mm512_setzero_si512(); V];
        for (v, b) in b.iter_mut().enumerate() {
            *b = _mm512_loadu_si512($columns.add(16 * v).cast());
        }
        for (i, acc) in $acc.iter_mut().enumerate() {
            let a = _mm512_set1_epi32($a.byte_add(i * $a_row).cast::<i32>().read_unaligned());
            for (acc, &b) in acc.iter_mut().zip(&b) {
                let [a, b] = std::mem::transmute::<[__m512i; 2], [__m512bh; 2]>([a, b]);
                *acc = _mm512_dpbf16_ps(*acc, a, b);
            }
        }
    };
}

/// Adds the products of a link whose rows are `a_row` bytes apart and have units `a_unit` apart. `coming` stands before each unit.
macro_rules! add_link {
    ($acc:ident, $link:ident, $ahead:ident, $a_row:expr, $a_unit:expr, |$a:ident, $u:ident| $coming:block) => {
        let (mut $a, mut b) = ($link.a, $link.b);
        let (mut ahead, asked) = Walk::begin($ahead, $link.units);
        for $u in 0..asked {
            ahead.step();
            $coming
            add_unit!($acc, $a, $a_row, b);
            ($a, b) = ($a.add($a_unit), b.add(NR));
        }
        for $u in asked..$link.units {
            $coming
            add_unit!($acc, $a, $a_row, b);
            ($a, b) = ($a.add($a_unit), b.add(NR));
        }
    };
}

/// # Safety
/// See [`scaled`]; `M` rows and `V` vectors are those of the tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn tile<const M: usize, const V: usize, const DROPS: bool>(t: &Chain<'_>, alpha: f32) {
    ask_for::<M, V>(&t.result);
    let mut acc: Sums<M, V> = [[_mm512_setzero_ps(); V]; M];
    /// Sets each vector, called `$x`, of row `$i`.
    macro_rules! each {
        (|$i:pat, $v:pat, $x:ident| $value:expr) => {
            for (i, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    let ($i, $v, $x) = (i, v, *acc);
                    *acc = $value;
                }
            }
        };
    }
    let begins = alpha == 1.0;
    if let Some(d) = t.dropped.filter(|_| DROPS) {
        (0..M).for_each(|i| prefetch(d.kept.address(d.first + i * d.row)));
    }
    // SAFETY: by contract; lanes beyond the tile are masked, and vectors of all types are 512 bits without invalid values.
    unsafe {
        if let (true, Some(from), false) = (begins, t.from, DROPS) {
            each!(|i, v, _x| load(t, from, i, v));
        }
        for (i, link) in t.links.iter().enumerate() {
            let ahead = t.ahead.filter(|_| i == usize::from(DROPS));
            match link.a_row {
                Some(a_row) => {
                    // A line of each of the rows that come next.
                    add_link!(acc, link, ahead, a_row, 1, |a, u| {
                        if u % 16 < M {
                            _mm_prefetch::<_MM_HINT_T0>(a.wrapping_byte_add((M + u % 16) * a_row).cast());
                        }
                    });
                }
                None => {
                    add_link!(acc, link, ahead, size_of::<u32>(), MR, |a, _u| {});
                }
            }
            if let Some(d) = t.dropped.filter(|_| DROPS && i == 0) {
                let keep = _mm512_set1_ps(d.keep);
                for (i, acc) in acc.iter_mut().enumerate() {
                    // A row of the tile has no more columns than there are bits.
                    let bits = d.kept.at(d.first + i * d.row);
                    for (v, acc) in acc.iter_mut().enumerate() {
                        *acc = _mm512_maskz_mul_ps((bits >> (16 * v)) as __mmask16, *acc, keep);
                    }
                }
                if let Some(from) = t.from {
                    each!(|i, v, x| _mm512_add_ps(x, load(t, from, i, v)));
                }
            }
        }
        if !begins {
            let alpha = _mm512_set1_ps(alpha);
            match t.from {
                None => each!(|_, _, x| _mm512_mul_ps(x, alpha)),
                Some(from) => each!(|i, v, x| _mm512_fmadd_ps(x, alpha, load(t, from, i, v))),
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            for (v, &acc) in acc.iter().enumerate() {
                let mask = first(t.n - 16 * v);
                match t.to {
                    To::F32(to, row) => _mm512_mask_storeu_ps(to.add(i * row + 16 * v), mask, acc),
                    To::Bf16(to, row) => {
                        let rounded = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(acc));
                        _mm256_mask_storeu_epi16(to.add(i * row + 16 * v).cast(), mask, rounded);
                    }
                }
            }
        }
    }
}

/// A vector of what is added to.
///
/// # Safety
/// See [`scaled`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(t: &Chain<'_>, (from, row): (*const f32, usize), i: usize, v: usize) -> __m512 {
    // SAFETY: by contract; lanes beyond the tile are masked.
    unsafe { _mm512_maskz_loadu_ps(first(t.n - 16 * v), from.add(i * row + 16 * v)) }
}
