//! How a result is cut: a function of its extents, of the widths of panels and of the kernel's
//! [`Choice`](crate::cpu::choice::Choice), and never of threads. Sums do not depend on it: each element adds its products in
//! order of depth, whatever tile it is in.

use super::micro::Isa;
use crate::cpu::choice;

/// Largest extents of a block, whose operands are packed together.
pub(super) const BLOCK: usize = 1024;

/// Largest extents of a tile, which one task computes.
pub(super) const TILE_ROWS: usize = 128;
pub(super) const TILE_COLUMNS: usize = 256;

/// Most elements of a tile.
pub(super) const TILE_AREA: usize = 2 * TILE_ROWS * TILE_COLUMNS;

/// Work of a tile, in multiply-adds, below which it is not cut further for more parallelism.
const TILE_WORK: usize = 1 << 20;

/// Tiles wanted of a large block, to occupy many cores.
const TILES: usize = 16;

/// An extent cut into parts of nearly equal length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    n: usize,
    /// What lengths are multiples of, and how many of these there are.
    to: usize,
    units: usize,
    pub(super) count: usize,
}

impl Parts {
    /// Parts of at most `at_most` (or `to`, if that is more), a multiple of `to` but for the last.
    pub(super) fn new(n: usize, at_most: usize, to: usize) -> Parts {
        let units = n.div_ceil(to).max(1);
        let count = units.div_ceil((at_most / to).max(1));
        Parts { n, to, units, count }
    }

    /// Start and length of a part.
    pub(super) fn part(&self, i: usize) -> (usize, usize) {
        // The first of the parts have one unit more where they do not come out even.
        let (units, longer) = (self.units / self.count, self.units % self.count);
        let at = |i: usize| ((i * units + i.min(longer)) * self.to).min(self.n);
        (at(i), at(i + 1) - at(i))
    }

    /// The largest part, whole units.
    pub(super) fn most(&self) -> usize {
        self.units.div_ceil(self.count) * self.to
    }
}

/// Largest extents of a tile; half as many rows where there are more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Most {
    rows: usize,
    columns: usize,
}

impl Default for Most {
    fn default() -> Most {
        Most { rows: TILE_ROWS, columns: TILE_COLUMNS }
    }
}

impl Most {
    /// Those of the kernel that runs.
    pub(super) fn chosen() -> Most {
        match choice::current().tile {
            Some((rows, columns)) => Most { rows: rows.into(), columns: columns.into() },
            None => Most::default(),
        }
    }
}

/// Tiles of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiling {
    pub(super) rows: Parts,
    pub(super) columns: Parts,
}

impl Tiling {
    /// Of `m × n` elements of a product of depth `k`.
    pub(super) fn new(m: usize, n: usize, k: usize, isa: &Isa, most: Most) -> Tiling {
        let rows = if m > most.rows { most.rows / 2 } else { m };
        let (mut mt, mut nt) = (rows.max(1), n.clamp(1, most.columns));
        let count = |mt: usize, nt: usize| m.div_ceil(mt) * n.div_ceil(nt);
        while count(mt, nt) < TILES && mt * nt * k > 2 * TILE_WORK && (mt > isa.mr || nt > isa.nr) {
            let cut_rows = nt <= isa.nr || (mt > isa.mr && mt >= nt);
            if cut_rows { mt = mt.div_ceil(2) } else { nt = nt.div_ceil(2) }
        }
        Tiling { rows: Parts::new(m, mt, isa.mr), columns: Parts::new(n, nt, isa.nr) }
    }

    pub(super) fn count(&self) -> usize {
        self.rows.count * self.columns.count
    }
}
