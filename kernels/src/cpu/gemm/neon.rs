//! Micro-kernels of NEON, with and without BF16.
//!
//! `bfmmla` adds a 2 × 4 by 4 × 2 product of `bf16` to four `f32`, `bfdot` two products to each of four. Both round each
//! product and sum to odd, take denormal operands as zero and flush denormal results, so that `bf16` products have other
//! last bits than on CPUs without them. The compiler has no intrinsics for them yet, hence the assembly.
//! (Arm Architecture Reference Manual, FEAT_BF16.)

use super::micro::{self, Block, Isa};
use super::spread;
use std::arch::aarch64::*;
use std::arch::asm;

/// Rows of a register tile.
const MR: usize = 8;

/// Vectors of a row of a register tile.
const VR: usize = 3;

/// Columns of a register tile.
const NR: usize = 4 * VR;

/// `f32` only.
pub(super) static F32: Isa = Isa {
    mr: MR,
    nr: NR,
    lanes: NR / VR,
    single,
    pair: None,
    dot: None,
    direct: None,
    chain: None,
    transpose,
    spread: spread::spread,
    narrow: None,
};

/// `f32`, and `bf16` by its own instructions.
pub(super) static BF16: Isa = Isa { pair: Some(pair), dot: Some(dot), ..F32 };

/// # Safety
/// See [`Isa::single`].
unsafe fn single(t: &Block<'_>) {
    macro_rules! tiles {
        ($m:literal) => {
            [single_tile::<$m, 1>, single_tile::<$m, 2>, single_tile::<$m, 3>]
        };
    }
    const TILES: [[unsafe fn(&Block<'_>); VR]; MR] =
        [tiles!(1), tiles!(2), tiles!(3), tiles!(4), tiles!(5), tiles!(6), tiles!(7), tiles!(8)];
    // SAFETY: by contract.
    unsafe { TILES[t.m - 1][(t.n - 1) / 4](t) }
}

/// # Safety
/// See [`Isa::single`]; `M` rows and `V` vectors are those of the block.
#[target_feature(enable = "neon")]
unsafe fn single_tile<const M: usize, const V: usize>(t: &Block<'_>) {
    let mut acc = [[vdupq_n_f32(0.0); V]; M];
    let (mut pa, mut pb) = (t.a.cast::<f32>(), t.b.cast::<f32>());
    for _ in 0..t.units {
        // SAFETY: panels have `units` groups of their width.
        unsafe {
            let mut b = [vdupq_n_f32(0.0); V];
            for (v, b) in b.iter_mut().enumerate() {
                *b = vld1q_f32(pb.add(4 * v));
            }
            // Rows are multiplied by lanes of two vectors, whose numbers must be constants.
            let (low, high) = (vld1q_f32(pa), vld1q_f32(pa.add(4)));
            macro_rules! row {
                ($i:literal, $a:ident, $lane:literal) => {
                    if let Some(acc) = acc.get_mut($i) {
                        for (acc, &b) in acc.iter_mut().zip(&b) {
                            *acc = vfmaq_laneq_f32::<$lane>(*acc, b, $a);
                        }
                    }
                };
            }
            row!(0, low, 0);
            row!(1, low, 1);
            row!(2, low, 2);
            row!(3, low, 3);
            row!(4, high, 0);
            row!(5, high, 1);
            row!(6, high, 2);
            row!(7, high, 3);
            (pa, pb) = (pa.add(MR), pb.add(NR));
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        for (v, &acc) in acc.iter().enumerate() {
            // SAFETY: by contract.
            unsafe { store(t, i, 4 * v, acc) }
        }
    }
}

/// Writes or adds sums to the columns of row `i` from `j` on that the block has.
///
/// # Safety
/// See [`Isa::single`]; `i` and `j` are less than the block's extents.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn store(t: &Block<'_>, i: usize, j: usize, acc: float32x4_t) {
    // SAFETY: by contract.
    unsafe {
        let sum = |c: *const f32| match t.add {
            true => vfmaq_n_f32(vld1q_f32(c), acc, t.alpha),
            false => vmulq_n_f32(acc, t.alpha),
        };
        let c = t.c.add(i * t.ldc + j);
        if t.n - j >= 4 {
            return vst1q_f32(c, sum(c));
        }
        let c = std::slice::from_raw_parts_mut(c, t.n - j);
        let mut four = [0.0; 4];
        four[..c.len()].copy_from_slice(c);
        let sums = sum(four.as_ptr());
        vst1q_f32(four.as_mut_ptr(), sums);
        c.copy_from_slice(&four[..c.len()]);
    }
}

/// # Safety
/// See [`Isa::pair`].
unsafe fn pair(t: &Block<'_>) {
    macro_rules! tiles {
        ($m:literal) => {
            [pair_tile::<$m, 1>, pair_tile::<$m, 2>, pair_tile::<$m, 3>]
        };
    }
    const TILES: [[unsafe fn(&Block<'_>); VR]; MR / 2] = [tiles!(1), tiles!(2), tiles!(3), tiles!(4)];
    // SAFETY: by contract.
    unsafe { TILES[(t.m - 1) / 2][(t.n - 1) / 4](t) }
}

/// The product of two units each of two rows and two columns, added to four sums. The order of the code is kept, so that
/// columns are loaded only when they are needed and all sums of a tile stay in registers.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn bfmmla(mut acc: float32x4_t, a: uint32x4_t, b: uint32x4_t) -> float32x4_t {
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!(
            "bfmmla {acc:v}.4s, {a:v}.8h, {b:v}.8h",
            acc = inout(vreg) acc, a = in(vreg) a, b = in(vreg) b,
            options(nostack, preserves_flags)
        );
    }
    acc
}

/// Two units of the first two of four lines, then of the others.
///
/// # Safety
/// Four units each can be read.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn joined(first: *const u32, second: *const u32) -> [uint32x4_t; 2] {
    // SAFETY: by contract.
    let (first, second) = unsafe { (vld1q_u32(first), vld1q_u32(second)) };
    [vzip1q_u32(first, second), vzip2q_u32(first, second)]
}

/// Sums of `M` pairs of rows and `V` vectors of columns; a vector of them has two columns of a row, then of the next row.
///
/// # Safety
/// See [`Isa::pair`].
#[inline]
#[target_feature(enable = "neon,bf16")]
unsafe fn pair_sums<const M: usize, const V: usize>(t: &Block<'_>) -> [[[float32x4_t; 2]; V]; M] {
    // What completes an odd number of units.
    static ZEROS: [u32; NR] = [0; NR];
    let mut acc = [[[vdupq_n_f32(0.0); 2]; V]; M];
    let (mut pa, mut pb) = (t.a, t.b);
    for u in 0..t.units.div_ceil(2) {
        let is_whole = 2 * u + 1 < t.units;
        // SAFETY: panels have `units` groups of their width.
        unsafe {
            let a2 = if is_whole { pa.add(MR) } else { ZEROS.as_ptr() };
            let b2 = if is_whole { pb.add(NR) } else { ZEROS.as_ptr() };
            let a = [joined(pa, a2), joined(pa.add(4), a2.add(4))];
            for v in 0..V {
                let [left, right] = joined(pb.add(4 * v), b2.add(4 * v));
                for (i, acc) in acc.iter_mut().enumerate() {
                    let a = a[i / 2][i % 2];
                    acc[v] = [bfmmla(acc[v][0], a, left), bfmmla(acc[v][1], a, right)];
                }
            }
            (pa, pb) = (pa.wrapping_add(2 * MR), pb.wrapping_add(2 * NR));
        }
    }
    acc
}

/// # Safety
/// See [`Isa::pair`]; `M` pairs of rows and `V` vectors cover those of the block.
#[target_feature(enable = "neon,bf16")]
unsafe fn pair_tile<const M: usize, const V: usize>(t: &Block<'_>) {
    // SAFETY: by contract.
    let acc = unsafe { pair_sums::<M, V>(t) };
    for (i, acc) in acc.iter().enumerate() {
        for (v, &[left, right]) in acc.iter().enumerate() {
            let (left, right) = (vreinterpretq_f64_f32(left), vreinterpretq_f64_f32(right));
            // SAFETY: by contract.
            unsafe {
                store(t, 2 * i, 4 * v, vreinterpretq_f32_f64(vzip1q_f64(left, right)));
                if 2 * i + 1 < t.m {
                    store(t, 2 * i + 1, 4 * v, vreinterpretq_f32_f64(vzip2q_f64(left, right)));
                }
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
#[target_feature(enable = "neon,bf16")]
unsafe fn dot_pairs(a: &[u16], b: &[u16]) -> f32 {
    const N: usize = 4;
    let mut acc = [vdupq_n_f32(0.0); N];
    let (mut wide_a, mut wide_b) = (a.chunks_exact(8 * N), b.chunks_exact(8 * N));
    for (a, b) in (&mut wide_a).zip(&mut wide_b) {
        for (v, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the chunk has `N` vectors.
            unsafe { *acc = bfdot(*acc, vld1q_u16(a.as_ptr().add(8 * v)), vld1q_u16(b.as_ptr().add(8 * v))) };
        }
    }
    let rests = wide_a.remainder().chunks(8).zip(wide_b.remainder().chunks(8));
    for (acc, (a, b)) in acc.iter_mut().zip(rests) {
        let (mut eight_a, mut eight_b) = ([0; 8], [0; 8]);
        eight_a[..a.len()].copy_from_slice(a);
        eight_b[..b.len()].copy_from_slice(b);
        // SAFETY: eight elements each.
        unsafe { *acc = bfdot(*acc, vld1q_u16(eight_a.as_ptr()), vld1q_u16(eight_b.as_ptr())) };
    }
    let [a, b, c, d] = acc;
    vaddvq_f32(vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d)))
}

/// Four sums of two products, added to four sums.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn bfdot(mut acc: float32x4_t, a: uint16x8_t, b: uint16x8_t) -> float32x4_t {
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!(
            "bfdot {acc:v}.4s, {a:v}.8h, {b:v}.8h",
            acc = inout(vreg) acc, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// [`super::micro::Transpose`] in registers, four units of four rows at a time.
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
    let (size, per) = if pair { (2, 2) } else { (4, 1) };
    let row = |i: usize, u: usize| rows.wrapping_add((i * stride + u * per) * size);
    let (lines, units) = (m / 4 * 4, n / per / 4 * 4);
    // SAFETY: by contract.
    unsafe {
        for i in (0..lines).step_by(4) {
            for u in (0..units).step_by(4) {
                square(
                    [row(i, u), row(i + 1, u), row(i + 2, u), row(i + 3, u)],
                    out.add(u * width + i),
                    width,
                );
            }
        }
        // What is left: the last units of these rows, and the last rows.
        let to = out.add(units * width);
        micro::transpose(row(0, units), stride, lines, n - units * per, pair, to, width);
        micro::transpose(row(lines, 0), stride, m - lines, n, pair, out.add(lines), width);
    }
}

/// Transposes four units of four rows; columns are written `width` units apart.
///
/// # Safety
/// Addresses cover the extents.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn square(rows: [*const u8; 4], out: *mut u32, width: usize) {
    // SAFETY: by contract; loads of bytes need no alignment.
    let [a, b, c, d] = rows.map(|r| vreinterpretq_u32_u8(unsafe { vld1q_u8(r) }));
    let wide = |x| vreinterpretq_u64_u32(x);
    let (ab, ab2) = (wide(vtrn1q_u32(a, b)), wide(vtrn2q_u32(a, b)));
    let (cd, cd2) = (wide(vtrn1q_u32(c, d)), wide(vtrn2q_u32(c, d)));
    let columns = [vtrn1q_u64(ab, cd), vtrn1q_u64(ab2, cd2), vtrn2q_u64(ab, cd), vtrn2q_u64(ab2, cd2)];
    for (i, column) in columns.into_iter().enumerate() {
        // SAFETY: by contract.
        unsafe { vst1q_u32(out.add(i * width), vreinterpretq_u32_u64(column)) }
    }
}
