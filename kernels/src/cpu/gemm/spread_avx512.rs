//! [`super::spread`] for narrow panels with AVX-512: whole cache lines are read once and written once, where panels of eight
//! lines take a quarter of one and leave half of another at a time.

use super::avx512::MR;
use super::spread::{self, Lines};
use crate::cpu::simd::quarters;
use std::arch::x86_64::*;

/// Depths that are fetched ahead. Few, for rows that lie a multiple of 4 KiB apart share one place in the nearest cache.
const AHEAD: usize = 8;

/// See [`super::micro::Isa::spread`].
///
/// # Safety
/// The CPU has AVX-512 F and BW.
pub(super) unsafe fn spread(lines: &Lines, width: usize, pair: bool) {
    if width != MR {
        return spread::spread(lines, width, pair);
    }
    let (columns, depths) = if pair { (32, 4) } else { (16, 2) };
    let (count, depth) = lines.extents();
    let (count, depth) = (count / columns * columns, depth / depths * depths);
    let [whole, right, below] = lines.cut::<MR>(count, depth, pair);
    // SAFETY: by contract.
    unsafe { if pair { pairs(&whole) } else { singles(&whole) } }
    spread::spread(&right, width, pair);
    spread::spread(&below, width, pair);
}

/// Writes a line of a panel, which is two units.
#[inline]
#[target_feature(enable = "avx512f")]
fn write(lines: &Lines, u: usize, line: usize, units: __m512i) {
    // SAFETY: there are as many lines and units by the contract of `Lines::new`.
    unsafe { _mm512_storeu_si512(lines.unit::<MR>(u, line).cast(), units) }
}

/// A cache line of a depth; another one further down is fetched.
#[inline]
#[target_feature(enable = "avx512f")]
fn read<T>(lines: &Lines, depth: usize, line: usize) -> __m512i {
    // SAFETY: there are as many elements by the contract of `Lines::new`; a prefetch never faults.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(lines.element::<T>(depth + AHEAD, line).cast());
        _mm512_loadu_si512(lines.element::<T>(depth, line).cast())
    }
}

/// Whole squares of 16 lines and two depths.
#[target_feature(enable = "avx512f")]
fn singles(lines: &Lines) {
    let (count, depth) = lines.extents();
    for u in (0..depth).step_by(2) {
        for line in (0..count).step_by(16) {
            let [a, b] = [u, u + 1].map(|k| read::<u32>(lines, k, line));
            write(lines, u, line, _mm512_shuffle_i64x2::<0x44>(a, b));
            write(lines, u, line + MR, _mm512_shuffle_i64x2::<0xee>(a, b));
        }
    }
}

/// Whole squares of 32 lines and four depths.
#[target_feature(enable = "avx512f,avx512bw")]
fn pairs(lines: &Lines) {
    let (count, depth) = lines.extents();
    for k in (0..depth).step_by(4) {
        for line in (0..count).step_by(32) {
            let [a, b, c, d] = [k, k + 1, k + 2, k + 3].map(|k| read::<u16>(lines, k, line));
            // What `unpacklo` and `unpackhi` make of a quarter belongs to one panel.
            let joined = |a, b| quarters(_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b));
            let (first, second) = (joined(a, b), joined(c, d));
            for i in 0..2 {
                let at = line + 2 * MR * i;
                write(lines, k / 2, at, _mm512_shuffle_i64x2::<0x44>(first[i], second[i]));
                write(lines, k / 2, at + MR, _mm512_shuffle_i64x2::<0xee>(first[i], second[i]));
            }
        }
    }
}
