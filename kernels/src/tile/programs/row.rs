//! Programs that take a row each.

use super::width;
use crate::tile::Builder;
use crate::tile::ir::{Fold, Var};

/// Widest tile of a row; longer rows are taken in several.
pub(super) const TILE: usize = 4096;

/// A row of `h` elements, taken in tiles of `width`.
#[derive(Clone, Copy)]
pub(super) struct Row {
    h: usize,
    pub(super) width: usize,
    start: Var,
}

impl Row {
    pub(super) fn new(b: &mut Builder, h: usize) -> Row {
        let row = b.program_id(0);
        Row { h, width: width(h, TILE), start: b.times(row, h) }
    }

    /// The first `h` elements of the row of this program, of rows of `stride` elements.
    pub(super) fn prefix(b: &mut Builder, h: usize, stride: usize, width: usize) -> Row {
        let row = b.program_id(0);
        Row { h, width, start: b.times(row, stride) }
    }

    /// Calls `f` for each tile with the columns, the indices and the mask; carries what it returns.
    pub(super) fn tiles(
        &self,
        b: &mut Builder,
        init: &[Var],
        f: impl FnOnce(&mut Builder, Var, Var, Option<Var>, &[Var]) -> Vec<Var>,
    ) -> Vec<Var> {
        let range = b.range(self.width);
        if self.h <= self.width {
            let mask = (self.h < self.width).then(|| b.below(range, self.h));
            let index = b.add(range, self.start);
            return f(b, range, index, mask, init);
        }
        let (from, to) = (b.int(0), b.int(self.h));
        b.repeat(from, to, self.width, init, |b, at, carried| {
            let column = b.add(range, at);
            let mask = (!self.h.is_multiple_of(self.width)).then(|| b.below(column, self.h));
            let index = b.add(column, self.start);
            f(b, column, index, mask, carried)
        })
    }

    /// `Σ f` over the row, where `f` gives the terms of a tile (0 where there is no element).
    pub(super) fn sum(
        &self,
        b: &mut Builder,
        f: impl FnOnce(&mut Builder, Var, Var, Option<Var>) -> Var,
    ) -> Var {
        let zero = b.full(0.0, &[self.width]);
        let sums = self.tiles(b, &[zero], |b, column, index, mask, sums| {
            let terms = f(b, column, index, mask);
            vec![b.add(sums[0], terms)]
        });
        b.reduce(Fold::Sum, sums[0], 0)
    }
}
