//! Copies blocks of operands into panels (see [`super::micro`]): converts, applies dropout, and transposes.

use super::micro::Isa;
use super::spread::Lines;
use super::{KC, Mat};
use kfc_graph::DType;

/// Elements of a converted run.
const RUN: usize = 512;

/// Panels that are written side by side.
const PANELS: usize = 8;

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
            (false, _) => across(isa, mat, part, is_raw, out),
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
unsafe fn across(isa: &Isa, mat: &Mat, part: Part, is_raw: bool, out: *mut u32) {
    debug_assert!(mat.rs == 1);
    let Part { width, pair, depth, .. } = part;
    let panel = width * part.units();
    // Panels lie a power of two apart: more of them would evict each other from the cache before a line is full.
    let run = (RUN / width).clamp(1, PANELS) * width;
    let size = mat.src.dtype().size();
    for line in (0..part.count).step_by(run) {
        let (lines, start) = (run.min(part.count - line), part.first + line + part.k * mat.cs);
        let to = out.wrapping_add(line / width * panel);
        if !is_raw {
            // SAFETY: by contract.
            unsafe { converted_across(isa, mat, start, (lines, depth, width), (to, panel)) };
            continue;
        }
        let from = (mat.src.ptr().wrapping_add(start * size), mat.cs * size);
        // SAFETY: by contract.
        unsafe { (isa.spread)(&Lines::new(from, (lines, depth), (to, panel)), width, pair) };
    }
}

/// Lines that are next to each other in memory, the first element of which is `start`, converted.
///
/// # Safety
/// As [`pack`]; there are at most [`RUN`] lines.
unsafe fn converted_across(
    isa: &Isa,
    mat: &Mat,
    start: usize,
    (lines, depth, width): (usize, usize, usize),
    (out, panel): (*mut u32, usize),
) {
    let mut floats = [0.0f32; RUN];
    let row = &mut floats[..lines];
    for k in 0..depth {
        // SAFETY: by contract.
        unsafe {
            mat.src.load(start + k * mat.cs, row);
            if let Some(d) = mat.dropout {
                d.apply(start + k * mat.cs, row);
            }
            let unit = Lines::new((row.as_ptr().cast(), 0), (lines, 1), (out.wrapping_add(k * width), panel));
            (isa.spread)(&unit, width, false);
        }
    }
}
