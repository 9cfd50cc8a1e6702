//! Copies blocks of operands into panels (see [`super::micro`]): converts, applies dropout, and transposes.

use super::micro::Isa;
use super::{KC, Mat};
use crate::cpu::simd::simd;
use kfc_graph::DType;

/// Elements of a converted run.
const RUN: usize = 512;

/// Panels that are written side by side.
const PANELS: usize = 8;

/// Rows that are fetched ahead, where each is a short piece in another place.
const AHEAD: usize = 12;

/// Asks for the cache lines of `bytes` from an address on; it need not be valid.
#[inline(always)]
fn prefetch(at: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..bytes).step_by(64) {
        // SAFETY: a prefetch never faults.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(line).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (at, bytes);
}

/// What is copied: `count` rows or columns ("lines") from `first` on, at depths `k..k + depth`.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) k: usize,
    pub(super) depth: usize,
    /// Lines of a panel.
    pub(super) width: usize,
    /// Whether units are pairs of `bf16`; the operand is then `bf16` without dropout.
    pub(super) pair: bool,
}

impl Part {
    /// Units of a line.
    fn units(&self) -> usize {
        if self.pair { self.depth.div_ceil(2) } else { self.depth }
    }
}

/// Writes panels of the operand whose lines are the rows of `mat` and whose depth are its columns. What a last panel has
/// beyond the lines is not written.
///
/// # Safety
/// `part` is in bounds of the operand; `out` has room for its panels.
pub(super) unsafe fn pack(isa: &Isa, mat: &Mat, part: Part, out: *mut u32) {
    let is_raw = part.pair || (mat.src.dtype() == DType::F32 && mat.dropout.is_none());
    // SAFETY: by contract.
    unsafe {
        match (mat.cs == 1, is_raw) {
            (true, true) => along_depth(isa, mat, part, out),
            (true, false) => converted_along_depth(isa, mat, part, out),
            (false, _) => across(mat, part, is_raw, out),
        }
    }
}

/// Blocks of lines that [`super::micro::Transpose`] takes: `(line, lines, place in the panels)`.
fn blocks(part: Part) -> impl Iterator<Item = (usize, usize, usize)> {
    let panel = part.width * part.units();
    (0..part.count).step_by(part.width).enumerate().flat_map(move |(p, line)| {
        let lines = part.width.min(part.count - line);
        (0..lines).step_by(16).map(move |l| (line + l, 16.min(lines - l), p * panel + l))
    })
}

/// Lines contiguous along the depth, as they are.
///
/// # Safety
/// As [`pack`].
unsafe fn along_depth(isa: &Isa, mat: &Mat, part: Part, out: *mut u32) {
    let size = mat.src.dtype().size();
    for (line, lines, at) in blocks(part) {
        // SAFETY: by contract.
        unsafe {
            let rows = mat.src.ptr().add(((part.first + line) * mat.rs + part.k) * size);
            (isa.transpose)(rows, mat.rs, lines, part.depth, part.pair, out.add(at), part.width);
        }
    }
}

/// Lines contiguous along the depth, converted.
///
/// # Safety
/// As [`pack`].
unsafe fn converted_along_depth(isa: &Isa, mat: &Mat, part: Part, out: *mut u32) {
    const LD: usize = KC + 16;
    let mut floats = [0.0f32; 16 * LD];
    for (line, lines, at) in blocks(part) {
        // SAFETY: by contract; the depth of a part is at most `KC`.
        unsafe {
            for (l, row) in floats.chunks_exact_mut(LD).take(lines).enumerate() {
                let row = &mut row[..part.depth];
                let start = (part.first + line + l) * mat.rs + part.k;
                mat.src.load(start, row);
                if let Some(d) = mat.dropout {
                    d.apply(start, row);
                }
            }
            let rows = floats.as_ptr().cast();
            (isa.transpose)(rows, LD, lines, part.depth, false, out.add(at), part.width);
        }
    }
}

/// Lines that are next to each other in memory.
///
/// # Safety
/// As [`pack`].
unsafe fn across(mat: &Mat, part: Part, is_raw: bool, out: *mut u32) {
    debug_assert!(mat.rs == 1);
    let Part { width, pair, depth, .. } = part;
    let (units, step) = (part.units(), if pair { 2 } else { 1 });
    // Panels lie a power of two apart: more of them would evict each other from the cache before a line is full.
    let run = (RUN / width).clamp(1, PANELS) * width;
    let mut floats = [0.0f32; RUN];
    let size = mat.src.dtype().size();
    for line in (0..part.count).step_by(run) {
        let lines = run.min(part.count - line);
        for u in 0..units {
            let k = u * step;
            let start = part.first + line + (part.k + k) * mat.cs;
            let panel = width * units;
            let len = (lines.div_ceil(width) - 1) * panel + (lines - 1) % width + 1;
            for k in k..k + step {
                prefetch(
                    mat.src.ptr().wrapping_add((start + (k - u * step + AHEAD * step) * mat.cs) * size),
                    lines * size,
                );
            }
            // SAFETY: by contract.
            unsafe {
                let out = std::slice::from_raw_parts_mut(out.add(line / width * panel + u * width), len);
                if pair {
                    let low = mat.src.raw::<u16>(start, lines);
                    let high = if k + 1 < depth {
                        mat.src.raw::<u16>(start + mat.cs, lines)
                    } else {
                        &ZEROS[..lines]
                    };
                    spread_pairs(low, high, out, width, panel);
                } else if is_raw {
                    spread(mat.src.raw::<u32>(start, lines), out, width, panel);
                } else {
                    let row = &mut floats[..lines];
                    mat.src.load(start, row);
                    if let Some(d) = mat.dropout {
                        d.apply(start, row);
                    }
                    spread(bytemuck::cast_slice(row), out, width, panel);
                }
            }
        }
    }
}

/// What an odd depth is completed with.
static ZEROS: [u16; RUN] = [0; RUN];

/// Writes one unit of every line to panels that are `panel` units apart.
#[inline(always)]
fn spread_by<const W: usize>(row: &[u32], out: &mut [u32], panel: usize) {
    let whole = row.chunks_exact(W);
    let (rest, n) = (whole.remainder(), row.len() / W);
    for (i, part) in whole.enumerate() {
        out[i * panel..][..W].copy_from_slice(part);
    }
    if !rest.is_empty() {
        out[n * panel..][..rest.len()].copy_from_slice(rest);
    }
}

/// The same of pairs.
#[inline(always)]
fn spread_pairs_by<const W: usize>(low: &[u16], high: &[u16], out: &mut [u32], panel: usize) {
    for (i, (low, high)) in low.chunks(W).zip(high.chunks(W)).enumerate() {
        let out = &mut out[i * panel..];
        match (low.first_chunk::<W>(), high.first_chunk::<W>(), out.first_chunk_mut::<W>()) {
            (Some(low), Some(high), Some(out)) => (0..W).for_each(|i| out[i] = join(low[i], high[i])),
            _ => out.iter_mut().zip(low).zip(high).for_each(|((o, &l), &h)| *o = join(l, h)),
        }
    }
}

/// A unit.
#[inline(always)]
fn join(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

simd! {
    // Loops of constant width for the panels that there are.
    fn spread(row: &[u32], out: &mut [u32], width: usize, panel: usize) {
        match width {
            4 => spread_by::<4>(row, out, panel),
            6 => spread_by::<6>(row, out, panel),
            8 => spread_by::<8>(row, out, panel),
            12 => spread_by::<12>(row, out, panel),
            16 => spread_by::<16>(row, out, panel),
            48 => spread_by::<48>(row, out, panel),
            _ => row.chunks(width).enumerate().for_each(|(i, r)| out[i * panel..][..r.len()].copy_from_slice(r)),
        }
    }

    fn spread_pairs(low: &[u16], high: &[u16], out: &mut [u32], width: usize, panel: usize) {
        match width {
            8 => spread_pairs_by::<8>(low, high, out, panel),
            12 => spread_pairs_by::<12>(low, high, out, panel),
            48 => spread_pairs_by::<48>(low, high, out, panel),
            _ => low.chunks(width).zip(high.chunks(width)).enumerate().for_each(|(i, (l, h))| {
                out[i * panel..].iter_mut().zip(l).zip(h).for_each(|((o, &l), &h)| *o = join(l, h));
            }),
        }
    }
}
