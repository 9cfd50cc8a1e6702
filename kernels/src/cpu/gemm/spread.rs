//! Copies lines of an operand that are next to each other in memory into panels (see [`super::micro`]), as they are: a panel
//! is written from its first unit to its last in one call, for a call costs as much as copying a few vectors.

use crate::cpu::simd::simd;

/// Units that are fetched ahead: each is a short piece in another place, which the hardware does not foresee.
const AHEAD: usize = 12;

/// Widest panel.
const WIDEST: usize = 48;

/// What an odd depth is completed with.
static ZEROS: [u16; WIDEST] = [0; WIDEST];

/// Lines and the panels that they go to: both are there while a value is, and do not overlap.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    at: *const u8,
    stride: usize,
    count: usize,
    depth: usize,
    out: *mut u32,
    panel: usize,
}

impl Lines {
    /// `count` lines that begin at `at`, where they are next to each other; from one depth to the next there are `stride`
    /// bytes. Panels begin at `out`, `panel` units apart.
    ///
    /// # Safety
    /// While the value is used, elements may be read and panels written, and they do not overlap.
    pub(super) unsafe fn new(
        (at, stride): (*const u8, usize),
        (count, depth): (usize, usize),
        (out, panel): (*mut u32, usize),
    ) -> Lines {
        Lines { at, stride, count, depth, out, panel }
    }

    /// How many lines there are, and depths.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn extents(&self) -> (usize, usize) {
        (self.count, self.depth)
    }

    /// The first `count` lines to a depth, the other lines, and what of the first is left below; whole panels and units.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn cut<const W: usize>(&self, count: usize, depth: usize, pair: bool) -> [Lines; 3] {
        let (size, per) = if pair { (size_of::<u16>(), 2) } else { (size_of::<u32>(), 1) };
        let right = Lines {
            at: self.at.wrapping_add(count * size),
            out: self.unit::<W>(0, count),
            count: self.count - count,
            ..*self
        };
        let below = Lines {
            at: self.at.wrapping_add(depth * self.stride),
            out: self.unit::<W>(depth / per, 0),
            count,
            depth: self.depth - depth,
            ..*self
        };
        [Lines { count, depth, ..*self }, right, below]
    }

    /// Asks for elements of all lines at a depth, which need not exist.
    #[inline(always)]
    fn prefetch(&self, depth: usize, size: usize) {
        #[cfg(target_arch = "x86_64")]
        for byte in (0..self.count * size).step_by(64) {
            // SAFETY: a prefetch never faults.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_T0>(self.at.wrapping_add(depth * self.stride + byte).cast());
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (depth, size);
    }

    /// Elements at a depth, from a line on.
    #[inline(always)]
    pub(super) fn element<T>(&self, depth: usize, line: usize) -> *const T {
        self.at.wrapping_add(depth * self.stride).cast::<T>().wrapping_add(line)
    }

    /// A unit of the panel of `W` lines that begins with a line.
    #[inline(always)]
    pub(super) fn unit<const W: usize>(&self, u: usize, line: usize) -> *mut u32 {
        self.out.wrapping_add(line / W * self.panel + u * W)
    }

    /// Writes a unit of that panel: pairs of elements of two depths.
    #[inline(always)]
    fn join<const W: usize>(&self, u: usize, line: usize, low: *const u16, high: *const u16) {
        let join = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        let (out, n) = (self.unit::<W>(u, line), self.count - line);
        // SAFETY: there are as many lines and units by the contract of `new`, and as many zeros as the widest panel has lines.
        unsafe {
            if n >= W {
                let low = low.cast::<[u16; W]>().read_unaligned();
                let high = high.cast::<[u16; W]>().read_unaligned();
                let mut units = [0u32; W];
                (0..W).for_each(|i| units[i] = join(low[i], high[i]));
                out.cast::<[u32; W]>().write_unaligned(units);
            } else {
                (0..n).for_each(|i| {
                    out.add(i).write(join(low.add(i).read_unaligned(), high.add(i).read_unaligned()))
                });
            }
        }
    }
}

/// Writes units of one element to panels of `W` lines.
#[inline(always)]
fn singles_of<const W: usize>(lines: &Lines) {
    let (whole, rest) = (lines.count / W, lines.count % W);
    for u in 0..lines.depth {
        lines.prefetch(u + AHEAD, size_of::<u32>());
        let (mut from, mut out) = (lines.element::<u32>(u, 0), lines.unit::<W>(u, 0));
        // SAFETY: there are as many lines and units by the contract of `Lines::new`.
        unsafe {
            for _ in 0..whole {
                out.cast::<[u32; W]>().write_unaligned(from.cast::<[u32; W]>().read_unaligned());
                (from, out) = (from.wrapping_add(W), out.wrapping_add(lines.panel));
            }
            (0..rest).for_each(|i| out.add(i).write(from.add(i).read_unaligned()));
        }
    }
}

/// Writes units of two `bf16` to panels of `W` lines.
#[inline(always)]
fn pairs_of<const W: usize>(lines: &Lines) {
    for u in 0..lines.depth / 2 {
        let k = 2 * u;
        lines.prefetch(k + 2 * AHEAD, size_of::<u16>());
        lines.prefetch(k + 2 * AHEAD + 1, size_of::<u16>());
        for line in (0..lines.count).step_by(W) {
            lines.join::<W>(u, line, lines.element(k, line), lines.element(k + 1, line));
        }
    }
    if lines.depth % 2 == 1 {
        let u = lines.depth / 2;
        for line in (0..lines.count).step_by(W) {
            lines.join::<W>(u, line, lines.element(2 * u, line), ZEROS.as_ptr());
        }
    }
}

/// Copies lines into panels of `width` lines: of `bf16` in pairs, or of units.
pub(super) fn spread(lines: &Lines, width: usize, pair: bool) {
    if pair { pairs(lines, width) } else { singles(lines, width) }
}

simd! {
    // Loops of constant width for the panels that there are.

    fn singles(lines: &Lines, width: usize) {
        match width {
            4 => singles_of::<4>(lines),
            6 => singles_of::<6>(lines),
            8 => singles_of::<8>(lines),
            12 => singles_of::<12>(lines),
            16 => singles_of::<16>(lines),
            _ => {
                debug_assert_eq!(width, WIDEST);
                singles_of::<WIDEST>(lines)
            }
        }
    }

    fn pairs(lines: &Lines, width: usize) {
        match width {
            8 => pairs_of::<8>(lines),
            12 => pairs_of::<12>(lines),
            _ => {
                debug_assert_eq!(width, WIDEST);
                pairs_of::<WIDEST>(lines)
            }
        }
    }
}
