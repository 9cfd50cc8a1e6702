//! Micro-kernels: the product of one panel of rows and one panel of columns, held in registers.
//!
//! A panel is `width` rows (or columns) of an operand, stored depth by depth in 32-bit units: a unit is one `f32`, or two
//! `bf16` of consecutive depths. An element of the result is summed over the units in order, whatever its place in a panel.

use super::ahead::Walk;
use super::narrow;
use super::spread::{self, Lines};
use crate::cpu::dropout::Kept;
use crate::cpu::simd::Level;

/// One call of a micro-kernel: `C (+)= alpha · A · B` for `m × n` elements.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub(super) units: usize,
    pub(super) a: *const u32,
    /// Bytes from one row of `a` to the next, for kernels that read it where it lies ([`Isa::direct`]).
    pub(super) a_row: usize,
    pub(super) b: *const u32,
    pub(super) c: *mut f32,
    /// Elements from one row of the result to the next.
    pub(super) ldc: usize,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) alpha: f32,
    /// Whether the result's content is added to.
    pub(super) add: bool,
    /// Where the result goes in the end: it is asked for while the sums are made.
    pub(super) result: Fetch,
    /// What is asked for besides.
    pub(super) ahead: Option<&'a Walk>,
}

/// Memory that a micro-kernel may ask for while it computes, so that it is there when it is needed: `row` bytes from row to
/// row, `width` from vector to vector. A hint: the addresses need not be valid.
#[derive(Clone, Copy)]
pub(super) struct Fetch {
    pub(super) at: *const u8,
    pub(super) row: usize,
    pub(super) width: usize,
}

impl Fetch {
    /// Rows of floats, `row` of them apart.
    pub(super) fn lines(at: *const f32, row: usize) -> Fetch {
        Fetch { at: at.cast(), row: row * size_of::<f32>(), width: 64 }
    }
}

/// Depths of one operand pair that [`Chain`] goes through.
#[derive(Clone, Copy)]
pub(super) struct Link {
    pub(super) units: usize,
    pub(super) a: *const u32,
    /// Bytes from one row of `a` to the next if it is read where it lies; else it is a panel.
    pub(super) a_row: Option<usize>,
    pub(super) b: *const u32,
}

impl Link {
    /// No depth.
    pub(super) const NONE: Link = Link { units: 0, a: std::ptr::null(), a_row: None, b: std::ptr::null() };
}

/// One call of a micro-kernel for `m × n` sums over several depths: `to = from + A₀·B₀ + A₁·B₁ + …`. The sums stay in
/// registers from `from` to `to`, and an element adds its units in order.
pub(super) struct Chain<'a> {
    pub(super) links: &'a [Link],
    pub(super) m: usize,
    pub(super) n: usize,
    /// Dropout of the sums of the first link.
    pub(super) dropped: Option<&'a Dropped>,
    /// What is added to, and the elements from row to row of it (none for a row that all have in common); else nothing.
    pub(super) from: Option<(*const f32, usize)>,
    pub(super) to: To,
    /// As [`Block::result`], or another place that is needed soon.
    pub(super) result: Fetch,
    /// As [`Block::ahead`], while the first link without dropout is multiplied.
    pub(super) ahead: Option<&'a Walk>,
}

/// Dropout of sums.
#[derive(Clone, Copy)]
pub(super) struct Dropped {
    pub(super) kept: Kept,
    /// Factor of those that are kept.
    pub(super) keep: f32,
    /// Number of the first element, and of elements from row to row.
    pub(super) first: usize,
    pub(super) row: usize,
}

/// Where sums go, and the elements from row to row there.
#[derive(Clone, Copy)]
pub(super) enum To {
    F32(*mut f32, usize),
    /// Rounded to nearest even. Sums of units are never denormal.
    Bf16(*mut u16, usize),
}

/// The micro-kernels of an instruction set; all have panels of the same width.
pub(super) struct Isa {
    /// Rows of a panel of the left operand.
    pub(super) mr: usize,
    /// Columns of a panel of the right operand.
    pub(super) nr: usize,
    /// Columns of a vector of a register tile: where they are fewer than a panel's, part of one costs its share.
    pub(super) lanes: usize,
    /// Of units that are one `f32`.
    ///
    /// # Safety
    /// The CPU has the instruction set; panels and result cover the extents, `m` and `n` are at most `mr` and `nr`, and the
    /// result is not used elsewhere.
    pub(super) single: unsafe fn(&Block<'_>),
    /// Of units that are two `bf16`, with the same contract.
    pub(super) pair: Option<unsafe fn(&Block<'_>)>,
    /// Sum of products of as many `bf16`.
    ///
    /// # Safety
    /// The CPU has the instruction set; the slices are equally long.
    pub(super) dot: Option<Dot>,
    /// As `single` and `pair` for a left operand that is no panel: rows of contiguous units, `a_row` bytes apart, aligned to
    /// elements.
    pub(super) direct: Option<[unsafe fn(&Block<'_>); 2]>,
    /// Of units that are two `bf16`, from the first depth to the result. Gives the bits that calls of `pair` and `direct` with
    /// an `alpha` of one give, which begin with the result's content where it is added to; sums with dropout come first, and
    /// that content is added to them.
    ///
    /// # Safety
    /// As `single`, for all links, at least one of which has units.
    pub(super) chain: Option<unsafe fn(&Chain<'_>)>,
    /// Copies up to 16 rows into a panel.
    pub(super) transpose: Transpose,
    /// Copies lines into panels of a width; of `bf16` in pairs if the last argument says so.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    pub(super) spread: unsafe fn(&Lines, usize, bool),
    /// Products of `bf16` with narrow matrices.
    pub(super) narrow: Option<&'static narrow::Kernels>,
}

/// See [`Isa::dot`].
pub(super) type Dot = unsafe fn(&[u16], &[u16]) -> f32;

/// `transpose(rows, stride, m, n, pair, out, width)` writes `m <= 16` rows of `n` contiguous elements (`f32`, or `bf16` if
/// `pair`), whose starts are `stride` elements apart, into the first `m` columns of a panel of that width.
///
/// # Safety
/// The CPU has the instruction set and addresses cover the extents.
pub(super) type Transpose = unsafe fn(*const u8, usize, usize, usize, bool, *mut u32, usize);

/// The micro-kernels of a level.
pub(super) fn isa(level: Level) -> &'static Isa {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Bf16 => &super::avx512::BF16,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => &super::avx512::F32,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => &super::avx2::ISA,
        #[cfg(target_arch = "aarch64")]
        Level::NeonBf16 => &super::neon::BF16,
        #[cfg(target_arch = "aarch64")]
        Level::Neon => &super::neon::F32,
        // Levels of other architectures never occur.
        _ => &PORTABLE,
    }
}

const MR: usize = 4;
const NR: usize = 8;

static PORTABLE: Isa = Isa {
    mr: MR,
    nr: NR,
    lanes: NR,
    single: portable,
    pair: None,
    dot: None,
    direct: None,
    chain: None,
    transpose,
    spread: spread::spread,
    narrow: None,
};

/// # Safety
/// See [`Isa::single`].
unsafe fn portable(t: &Block<'_>) {
    // SAFETY: panels have `units` groups of their width.
    let acc = unsafe {
        let a = std::slice::from_raw_parts(t.a.cast::<[f32; MR]>(), t.units);
        let b = std::slice::from_raw_parts(t.b.cast::<[f32; NR]>(), t.units);
        sums(a, b)
    };
    for (i, acc) in acc[..t.m].iter().enumerate() {
        // SAFETY: by contract.
        let c = unsafe { std::slice::from_raw_parts_mut(t.c.add(i * t.ldc), t.n) };
        for (c, s) in c.iter_mut().zip(acc) {
            *c = if t.add { t.alpha * s + *c } else { t.alpha * s };
        }
    }
}

/// A register tile; a function of its own, so that the sums stay in registers.
#[inline(never)]
fn sums(a: &[[f32; MR]], b: &[[f32; NR]]) -> [[f32; NR]; MR] {
    let mut acc = [[0.0f32; NR]; MR];
    for (a, b) in a.iter().zip(b) {
        for (acc, &a) in acc.iter_mut().zip(a) {
            for (s, &b) in acc.iter_mut().zip(b) {
                *s += a * b;
            }
        }
    }
    acc
}

/// [`Transpose`] with plain loads and stores.
///
/// # Safety
/// See [`Transpose`].
pub(super) unsafe fn transpose(
    rows: *const u8,
    stride: usize,
    m: usize,
    n: usize,
    pair: bool,
    out: *mut u32,
    width: usize,
) {
    for i in 0..m {
        // SAFETY: by contract.
        unsafe {
            if pair {
                let row = rows.cast::<u16>().add(i * stride);
                for u in 0..n.div_ceil(2) {
                    let high = if 2 * u + 1 < n { row.add(2 * u + 1).read() } else { 0 };
                    *out.add(u * width + i) = u32::from(row.add(2 * u).read()) | u32::from(high) << 16;
                }
            } else {
                let row = rows.cast::<u32>().add(i * stride);
                (0..n).for_each(|u| *out.add(u * width + i) = row.add(u).read());
            }
        }
    }
}
