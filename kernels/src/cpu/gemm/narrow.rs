//! Products of a `bf16` matrix and a narrow `f32` one, such as an adapter's, whose elements are rounded to `bf16`; sums are
//! `f32`. The narrow matrix is copied into panels, for it is small. The wide one is read where it lies along its rows, and across
//! them in strips that are copied: rows may lie so that they share one place in the nearest cache.

use super::micro;
use crate::cpu::dropout::Kept;
use crate::cpu::elem::Elem;
use crate::cpu::par::Shared;
use crate::cpu::scratch::{self, Cut, LINE};
use crate::cpu::simd::{level, simd};
use half::bf16;
use kfc_graph::DType;
use std::ops::Range;

/// Lines of a panel.
pub(super) const LANES: usize = 16;

/// Columns of the wide matrix that [`Narrow::columns`] takes at once.
pub(crate) const STRIP: usize = 64;

/// Rows of a strip that are copied at once: they stay in the nearest cache while all lines are multiplied with them.
const CHUNK: usize = 128;

/// The kernels of an instruction set.
pub(super) struct Kernels {
    /// Rows of [`Rows`] at most.
    pub(super) m: usize,
    /// # Safety
    /// The CPU has the instruction set, addresses cover the extents, and nothing else uses the result.
    pub(super) rows: unsafe fn(&Rows),
    /// # Safety
    /// As `rows`.
    pub(super) pairs: unsafe fn(&Strip),
    /// Lines of [`Columns`] at most.
    pub(super) lines: usize,
    /// # Safety
    /// As `rows`.
    pub(super) columns: unsafe fn(&Columns),
}

/// `out [m, n] = alpha · x · panel`, a panel of `n <= LANES` lines.
pub(super) struct Rows {
    /// Pairs of depths.
    pub(super) units: usize,
    pub(super) x: *const u16,
    /// Elements from row to row.
    pub(super) stride: usize,
    pub(super) panel: *const u32,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) alpha: f32,
    pub(super) out: *mut f32,
    /// Elements from row to row of the result.
    pub(super) ldo: usize,
}

/// Rows of a strip to be copied: for each two of them [`STRIP`] pairs, in an order that [`Columns`] of the same kernels knows.
/// Elements that do not count are zeros, and so is what completes an odd number of rows.
pub(super) struct Strip {
    pub(super) depth: usize,
    pub(super) x: *const u16,
    /// Elements from row to row.
    pub(super) stride: usize,
    pub(super) n: usize,
    /// Which elements of `x` count, if not all, and the number of the first one.
    pub(super) kept: Option<(Kept, usize)>,
    pub(super) pairs: *mut u32,
}

/// `sums [lines, STRIP] += panelᵀ · strip`.
pub(super) struct Columns {
    pub(super) units: usize,
    pub(super) pairs: *const u32,
    /// The first of the lines in a panel.
    pub(super) panel: *const u32,
    pub(super) lines: usize,
    /// Rows of `x` to be fetched meanwhile, no more than there are units, and elements from row to row.
    pub(super) ahead: (*const u16, usize),
    pub(super) stride: usize,
    pub(super) sums: *mut f32,
}

/// A narrow matrix, rounded.
#[derive(Clone, Copy)]
pub(crate) struct Panels {
    at: Shared<u32>,
    lines: usize,
    depth: usize,
}

impl Panels {
    /// Elements that a matrix of `lines` and a depth takes.
    pub(crate) fn len(lines: usize, depth: usize) -> usize {
        lines.div_ceil(LANES) * depth.div_ceil(2) * LANES
    }

    /// Panels in `memory`, which has [`Panels::len`] elements and is to be written by [`Panels::write`].
    pub(crate) fn new(memory: &mut [u32], lines: usize, depth: usize) -> Panels {
        debug_assert_eq!(memory.len(), Panels::len(lines, depth));
        Panels { at: Shared::new(memory), lines, depth }
    }

    fn units(&self) -> usize {
        self.depth.div_ceil(2)
    }

    /// Panels, each with its lines.
    fn panels(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let lines = self.lines;
        (0..lines).step_by(LANES).map(move |l| l..lines.min(l + LANES))
    }

    /// From `unit` of the panel of `line` on.
    ///
    /// # Safety
    /// In bounds.
    unsafe fn at(&self, line: usize, unit: usize) -> *mut u32 {
        // SAFETY: by contract.
        unsafe { self.at.at(line / LANES * self.units() * LANES + unit * LANES + line % LANES) }
    }

    /// Writes depths, the first of which is even, and the number of them unless they are the last. Element `(line, depth)` of
    /// `matrix`, which begins at the first of them, is at `line * strides.0 + depth * strides.1`.
    ///
    /// # Safety
    /// Nothing else uses these depths meanwhile.
    pub(crate) unsafe fn write(&self, matrix: &[f32], strides: (usize, usize), depths: Range<usize>) {
        let (n, units) = (depths.len(), depths.len().div_ceil(2));
        for lines in self.panels() {
            // SAFETY: by contract.
            let out = unsafe {
                std::slice::from_raw_parts_mut(self.at(lines.start, depths.start / 2), units * LANES)
            };
            let matrix = matrix.get(lines.start * strides.0..).unwrap_or_default();
            if strides.0 == 1 {
                write_rows(matrix, strides.1, lines.len(), n, out);
            } else {
                write_columns(matrix, strides, lines.len(), n, out);
            }
        }
    }
}

simd! {
    /// The pairs of a panel whose lines are next to each other; from one depth to the next there are `stride` elements.
    fn write_rows(matrix: &[f32], stride: usize, lines: usize, depth: usize, out: &mut [u32]) {
        let all = |d: usize| padded(&matrix[d * stride..][..LANES]);
        let some = |d: usize| padded(&matrix[d * stride..][..lines]);
        if lines == LANES { write_pairs(depth, all, out) } else { write_pairs(depth, some, out) }
    }

    /// The pairs of a panel whose lines and depths are `strides` apart.
    fn write_columns(matrix: &[f32], strides: (usize, usize), lines: usize, depth: usize, out: &mut [u32]) {
        let at = |d: usize, i: usize| matrix[i * strides.0 + d * strides.1];
        let all = |d: usize| std::array::from_fn(|i| at(d, i));
        let some = |d: usize| std::array::from_fn(|i| if i < lines { at(d, i) } else { 0.0 });
        if lines == LANES { write_pairs(depth, all, out) } else { write_pairs(depth, some, out) }
    }
}

/// A few elements, and zeros after them.
#[inline(always)]
fn padded(x: &[f32]) -> [f32; LANES] {
    let mut row = [0.0; LANES];
    row[..x.len()].copy_from_slice(x);
    row
}

/// Writes the pairs of depths, an odd last one with zeros.
#[inline(always)]
fn write_pairs(depth: usize, row: impl Fn(usize) -> [f32; LANES], out: &mut [u32]) {
    for (u, out) in out.chunks_exact_mut(LANES).enumerate() {
        let first = row(2 * u);
        let second = if 2 * u + 1 < depth { row(2 * u + 1) } else { [0.0; LANES] };
        for i in 0..LANES {
            out[i] = rounded(first[i]) | rounded(second[i]) << 16;
        }
    }
}

/// The bits of a number rounded to `bf16`.
#[inline(always)]
fn rounded(x: f32) -> u32 {
    u32::from(<bf16 as Elem>::put(x).to_bits())
}

/// The kernels of this CPU.
#[derive(Clone, Copy)]
pub(crate) struct Narrow(&'static Kernels);

impl Narrow {
    /// For a wide matrix of type `x`, if the CPU has them.
    pub(crate) fn of(x: DType) -> Option<Narrow> {
        micro::isa(level()).narrow.filter(|_| x == DType::Bf16).map(Narrow)
    }

    /// `out [m, lines] = alpha · x · N` for `x [m, depth]`, whose rows are `stride` elements apart, and an even depth.
    ///
    /// # Safety
    /// `x` covers these extents, and `panels` are written.
    pub(crate) unsafe fn rows(
        &self,
        x: &[bf16],
        stride: usize,
        panels: &Panels,
        alpha: f32,
        out: &mut [f32],
    ) {
        debug_assert!(panels.depth.is_multiple_of(2));
        let x = x.as_ptr();
        let (lines, most) = (panels.lines, self.0.m);
        for (i, out) in out.chunks_mut(most * lines).enumerate() {
            for group in panels.panels() {
                // SAFETY: by contract.
                unsafe {
                    (self.0.rows)(&Rows {
                        units: panels.units(),
                        x: x.add(i * most * stride).cast(),
                        stride,
                        panel: panels.at(group.start, 0),
                        m: out.len() / lines,
                        n: group.len(),
                        alpha,
                        out: out.as_mut_ptr().add(group.start),
                        ldo: lines,
                    });
                }
            }
        }
    }

    /// Calls `result` with each line of `Nᵀ · x` for `n <= STRIP` columns: those of the rows of `stride` elements that begin
    /// at `x`. With `kept`, which numbers them from a column's first element on, only the elements that it keeps count.
    ///
    /// # Safety
    /// `x` covers these extents, `panels` are written, and so is what `kept` says of these elements.
    pub(crate) unsafe fn columns(
        &self,
        n: usize,
        panels: &Panels,
        (x, stride): (*const bf16, usize),
        kept: Option<(Kept, usize)>,
        mut result: impl FnMut(usize, &[f32]),
    ) {
        let Kernels { pairs: copy, lines: most, columns, .. } = *self.0;
        let passes = panels.panels().map(|p| p.len().div_ceil(most)).sum::<usize>();
        scratch::with(panels.lines * STRIP + CHUNK / 2 * STRIP + LINE, |s| {
            let mut cut = Cut(s);
            let pairs = cut.line(CHUNK / 2 * STRIP);
            let sums = cut.0;
            sums.fill(0.0);
            for start in (0..panels.depth).step_by(CHUNK) {
                let end = panels.depth.min(start + CHUNK);
                let units = (end - start).div_ceil(2);
                // SAFETY: by contract; the first depth of a chunk is even.
                unsafe {
                    copy(&Strip {
                        depth: end - start,
                        x: x.add(start * stride).cast(),
                        stride,
                        n,
                        kept: kept.map(|(kept, first)| (kept, first + start * stride)),
                        pairs: pairs.as_mut_ptr().cast(),
                    });
                    // Passes over this chunk share the rows of the next.
                    let (mut ahead, last) = (end, panels.depth.min(end + CHUNK));
                    let share = CHUNK.div_ceil(passes).min(units);
                    for line in panels.panels().flat_map(|p| p.step_by(most)) {
                        let lines = panels.lines.min(line / LANES * LANES + LANES) - line;
                        columns(&Columns {
                            units,
                            pairs: pairs.as_ptr().cast(),
                            panel: panels.at(line, start / 2),
                            lines: most.min(lines),
                            ahead: (x.wrapping_add(ahead * stride).cast(), share.min(last - ahead)),
                            stride,
                            sums: sums.as_mut_ptr().add(line * STRIP),
                        });
                        ahead = last.min(ahead + share);
                    }
                }
            }
            sums.chunks_exact(STRIP).enumerate().for_each(|(line, sums)| result(line, &sums[..n]));
        });
    }
}
