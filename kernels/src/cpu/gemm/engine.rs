//! Panels and micro-kernels for kernels that order their products themselves, such as attention.
//!
//! Units of panels are of one kind: pairs of `bf16` if that is the type of the operands and the CPU multiplies it, else
//! single `f32`. Operands of other types are converted before they are packed.

use super::Mat;
use super::micro::{self, Block, Fetch, Isa};
use super::pack::{self, Part};
use crate::cpu::float::Src;
use crate::cpu::simd::{Level, level};
use kfc_graph::DType;

/// The micro-kernels for operands of one type.
#[derive(Clone, Copy)]
pub(crate) struct Engine {
    isa: &'static Isa,
    level: Level,
    pair: bool,
}

impl Engine {
    /// For operands of type `x` on this CPU.
    pub(crate) fn new(x: DType) -> Engine {
        Engine::at(level(), x)
    }

    /// With instructions up to a level, which the CPU must have.
    pub(crate) fn at(level: Level, x: DType) -> Engine {
        let isa = micro::isa(level);
        Engine { isa, level, pair: x == DType::Bf16 && isa.pair.is_some() }
    }

    /// Its instructions.
    pub(crate) fn level(&self) -> Level {
        self.level
    }

    /// Whether units are pairs of `bf16`.
    pub(crate) fn is_pair(&self) -> bool {
        self.pair
    }

    /// The type that elements have when they are packed.
    pub(crate) fn element(&self) -> DType {
        if self.pair { DType::Bf16 } else { DType::F32 }
    }

    /// Rows of a panel of the left operand.
    pub(crate) fn mr(&self) -> usize {
        self.isa.mr
    }

    /// Columns of a panel of the right operand.
    pub(crate) fn nr(&self) -> usize {
        self.isa.nr
    }

    /// Units of a depth.
    pub(crate) fn units(&self, depth: usize) -> usize {
        if self.pair { depth.div_ceil(2) } else { depth }
    }

    /// Units of the panels of some lines.
    pub(crate) fn panel_units(&self, lines: usize, width: usize, depth: usize) -> usize {
        lines.next_multiple_of(width) * self.units(depth)
    }

    /// Packs lines that are each contiguous along the depth and `stride` elements apart into panels of `width`.
    ///
    /// # Safety
    /// `lines` holds elements of [`Engine::element`] in these extents, `out` the panels; they do not overlap.
    pub(crate) unsafe fn pack_rows(
        &self,
        lines: *const u8,
        stride: usize,
        count: usize,
        depth: usize,
        width: usize,
        out: *mut u32,
    ) {
        // SAFETY: by contract.
        unsafe { self.pack(lines, (stride, 1), count, depth, width, out) }
    }

    /// Packs lines that are next to each other in memory; from one depth to the next there are `stride` elements.
    ///
    /// # Safety
    /// As [`Engine::pack_rows`].
    pub(crate) unsafe fn pack_columns(
        &self,
        lines: *const u8,
        stride: usize,
        count: usize,
        depth: usize,
        width: usize,
        out: *mut u32,
    ) {
        // SAFETY: by contract.
        unsafe { self.pack(lines, (1, stride), count, depth, width, out) }
    }

    /// Packs lines whose elements are `strides` apart from line to line and from depth to depth.
    ///
    /// # Safety
    /// As [`Engine::pack_rows`].
    unsafe fn pack(
        &self,
        lines: *const u8,
        (rs, cs): (usize, usize),
        count: usize,
        depth: usize,
        width: usize,
        out: *mut u32,
    ) {
        let mat = Mat { src: Src::new(lines, self.element()), rs, cs, dropout: None };
        let part = Part { first: 0, count, k: 0, depth, width, pair: self.pair };
        // SAFETY: by contract.
        unsafe { pack::pack(self.isa, &mat, part, out) }
    }

    /// Writes the transpose of `m` rows of `n` floats, `stride` apart, to rows of `width` floats.
    ///
    /// # Safety
    /// Addresses cover the extents and do not overlap; `m <= width`.
    pub(crate) unsafe fn transpose(
        &self,
        rows: *const f32,
        stride: usize,
        (m, n): (usize, usize),
        out: *mut f32,
        width: usize,
    ) {
        for i in (0..m).step_by(16) {
            // SAFETY: by contract.
            unsafe {
                let (rows, out) = (rows.add(i * stride).cast(), out.add(i).cast());
                (self.isa.transpose)(rows, stride, 16.min(m - i), n, false, out, width);
            }
        }
    }

    /// Adds the product of panels of `m` rows, one after the other, and one panel of `n <= nr` columns to a row-major
    /// result (or writes it). Panels of rows are `a_panel` units apart.
    ///
    /// # Safety
    /// Panels and result cover the extents; nothing else uses the result.
    pub(crate) unsafe fn product(&self, p: &Panels) {
        let Isa { mr, single, pair, .. } = *self.isa;
        let kernel = if self.pair { pair.unwrap_or(single) } else { single };
        for i in (0..p.m).step_by(mr) {
            // SAFETY: by contract.
            unsafe {
                let c = p.c.add(i * p.ldc);
                kernel(&Block {
                    units: p.units,
                    a: p.a.add(i / mr * p.a_panel),
                    a_row: 0,
                    b: p.b,
                    c,
                    ldc: p.ldc,
                    m: mr.min(p.m - i),
                    n: p.n,
                    alpha: p.alpha,
                    add: p.add,
                    result: Fetch::lines(c, p.ldc),
                    ahead: None,
                });
            }
        }
    }
}

/// Operands of [`Engine::product`].
#[derive(Clone, Copy)]
pub(crate) struct Panels {
    pub(crate) units: usize,
    pub(crate) a: *const u32,
    /// Units from one panel of rows to the next.
    pub(crate) a_panel: usize,
    pub(crate) b: *const u32,
    pub(crate) c: *mut f32,
    /// Elements from one row of the result to the next.
    pub(crate) ldc: usize,
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) alpha: f32,
    /// Whether the result's content is added to.
    pub(crate) add: bool,
}
