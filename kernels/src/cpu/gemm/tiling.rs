//! How a result is cut: into parts, one for a task, and these into tiles. Sums do not depend on it: each element adds its
//! products in order of depth, whatever part and tile it is in. So both may depend on the kernel's
//! [`Choice`](crate::cpu::choice::Choice), and parts on the number of threads.

use super::micro::Isa;
use super::phase::LONGEST;
use crate::cpu::choice;
use crate::cpu::scratch::LINE;

/// Largest extents of a tile.
const TILE_ROWS: usize = 128;
const TILE_COLUMNS: usize = 256;

/// Most elements of a tile.
pub(super) const TILE_AREA: usize = TILE_ROWS * TILE_COLUMNS;

/// Most columns of a part, whose panels a near cache keeps.
const PART_COLUMNS: usize = 256;

/// Most columns and rows of a part where rows are packed, too: fewer would be packed too often.
const PACKED_COLUMNS: usize = 512;
const PACKED_ROWS: usize = 512;

/// Most elements of a part whose sums are kept from phase to phase.
const PART_AREA: usize = 1 << 18;

/// Multiply-adds of a part below which cutting further does not pay.
const PART_WORK: usize = 1 << 19;

/// Most parts for a thread, unless scratch asks for more.
const PARTS: usize = 16;

/// Rows (of the other operand) that could be multiplied in the time that packing takes.
const PACKING: usize = 24;

/// The same for reading a left operand from a far cache; and where there are few rows or columns, so deep that parts read them
/// from memory.
const READING: usize = 2;
const READING_DEEP: usize = 32;

/// Most scratch of one thread, in floats: packed operands of a part and its sums, a tile twice, and what is rounded up.
pub(super) const SCRATCH: usize =
    (PACKED_ROWS + PACKED_COLUMNS + 128) * LONGEST + PART_AREA + 2 * TILE_AREA + 64 * LONGEST + 8 * LINE;

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

    /// So many parts, or fewer if there is not a unit of `to` for each.
    fn cut(n: usize, count: usize, to: usize) -> Parts {
        let units = n.div_ceil(to).max(1);
        Parts { n, to, units, count: count.clamp(1, units) }
    }

    /// Start and length of a part.
    pub(super) fn part(&self, i: usize) -> (usize, usize) {
        // Where they do not come out even, parts of one unit more stand between the others, so that halves are equal.
        let at = |i: usize| (i * self.units / self.count * self.to).min(self.n);
        (at(i), at(i + 1) - at(i))
    }

    /// The largest part, whole units.
    fn most(&self) -> usize {
        self.units.div_ceil(self.count) * self.to
    }
}

/// Largest extents of a tile; half as many rows where there are more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Most {
    rows: usize,
    pub(super) columns: usize,
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

/// Tiles of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiling {
    pub(super) rows: Parts,
    pub(super) columns: Parts,
}

impl Tiling {
    /// Of `m × n` elements.
    pub(super) fn new(m: usize, n: usize, isa: &Isa, most: Most) -> Tiling {
        let rows = if m > most.rows { most.rows / 2 } else { m.next_multiple_of(isa.mr) };
        Tiling { rows: Parts::new(m, rows, isa.mr), columns: Parts::new(n, most.columns, isa.nr) }
    }
}

/// What a sum of products is to whoever cuts it.
pub(super) struct Extents {
    pub(super) m: usize,
    pub(super) n: usize,
    /// Of all products.
    pub(super) depth: usize,
    /// Whether all of it is packed at once. Then a thread packs columns once for all of its parts that share them.
    pub(super) is_one_phase: bool,
    /// Whether rows of the left operand are packed.
    pub(super) packs_a: bool,
    /// Whether sums are kept in scratch from phase to phase.
    pub(super) keeps_c: bool,
}

/// Parts of a result, each of which is a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    rows: Parts,
    columns: Parts,
}

impl Grid {
    /// The grid that is expected to be fastest on so many threads, of those whose parts fit scratch.
    pub(super) fn new(e: &Extents, isa: &Isa, threads: usize) -> Grid {
        let worth = (e.m * e.n).saturating_mul(e.depth) / PART_WORK;
        let most = worth.min(choice::current().parts.map_or(PARTS, usize::from) * threads);
        let most_columns = if e.packs_a || e.m <= TILE_ROWS { PACKED_COLUMNS } else { PART_COLUMNS };
        let (mut best, mut least) = (None, usize::MAX);
        for columns in counts(e.n.div_ceil(isa.nr)) {
            let columns = Parts::cut(e.n, columns, isa.lanes);
            if columns.most() > most_columns.next_multiple_of(isa.nr) {
                continue;
            }
            for rows in counts(e.m.div_ceil(isa.mr)) {
                // More than it is worth only if scratch asks for it.
                if best.is_some() && rows * columns.count > most {
                    break;
                }
                let grid = Grid { rows: Parts::cut(e.m, rows, isa.mr), columns };
                let time = if grid.has_room(e, isa) { grid.time(e, isa, threads) } else { continue };
                if time < least {
                    (best, least) = (Some(grid), time);
                }
            }
            if best.is_some() && columns.count > most {
                break;
            }
        }
        let smallest = || Grid { rows: Parts::new(e.m, 1, isa.mr), columns: Parts::new(e.n, 1, isa.nr) };
        best.unwrap_or_else(smallest)
    }

    /// Whether scratch has room for what a part keeps of its rows.
    fn has_room(&self, e: &Extents, isa: &Isa) -> bool {
        let (m, n) = self.most();
        (!e.packs_a || m <= PACKED_ROWS.next_multiple_of(isa.mr)) && (!e.keeps_c || m * n <= PART_AREA)
    }

    /// How long it takes, in multiply-adds of a unit of depth: what the thread with the first or the last share of the parts has
    /// to do, and a tenth of a part that it waits for another.
    fn time(&self, e: &Extents, isa: &Isa, threads: usize) -> usize {
        let ((m, n), count) = (self.most(), self.count());
        let share = count.div_ceil(threads);
        let before = |part: usize| {
            let (row, column) = (part % self.rows.count, self.columns.part(part / self.rows.count));
            e.m * column.0 + self.rows.part(row).0 * column.1
        };
        let products = before(share).max(e.m * e.n - before(count * (threads - 1) / threads));
        // Columns of parts are packed for each, or once for those that follow one another.
        let is_kept = e.is_one_phase && m > TILE_ROWS;
        let packed = if is_kept { share.div_ceil(self.rows.count) } else { share };
        let reading = if e.packs_a {
            PACKING
        } else if e.m.min(e.n) <= TILE_ROWS && !e.is_one_phase {
            READING_DEEP
        } else {
            READING
        };
        // A register tile of one vector takes longer than its share of a wider one.
        let is_narrow = isa.lanes < isa.nr && (1..=isa.lanes).contains(&(n % isa.nr));
        let waste = if is_narrow { isa.lanes / 2 } else { 0 };
        let part = m * n + reading * m + PACKING * n;
        let wait = if threads > 1 { part / 10 } else { 0 };
        products + share * m * (reading + waste) + PACKING * n * packed + wait
    }

    /// Rows and columns of the largest part, whole units.
    pub(super) fn most(&self) -> (usize, usize) {
        (self.rows.most(), self.columns.most())
    }

    pub(super) fn count(&self) -> usize {
        self.rows.count * self.columns.count
    }

    /// Start and extent of a part's rows and columns. Parts that follow one another share columns.
    pub(super) fn part(&self, i: usize) -> ((usize, usize), (usize, usize)) {
        (self.rows.part(i % self.rows.count), self.columns.part(i / self.rows.count))
    }
}

/// Numbers of parts that are tried: one, and about a third more each time, at most `most`.
fn counts(most: usize) -> impl Iterator<Item = usize> {
    let next = move |n: &usize| (*n < most).then(|| (n + n.div_ceil(3)).min(most));
    std::iter::successors(Some(1), next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::gemm::micro;
    use crate::cpu::simd::available;

    #[test]
    fn parts_cover_an_extent_and_its_halves_are_equal() {
        for n in [1, 15, 16, 17, 255, 256, 688, 1024, 2752, 8192, 32000] {
            for to in [8, 16, 48] {
                for count in [1, 2, 3, 4, 6, 8, 11, 20, 36] {
                    let parts = Parts::cut(n, count, to);
                    let of = |i: usize| parts.part(i);
                    assert_eq!((of(0).0, of(parts.count)), (0, (n, 0)));
                    assert!((0..parts.count).all(|i| of(i).0 + of(i).1 == of(i + 1).0));
                    let (least, most) = (parts.units / parts.count * to, parts.most());
                    assert!(most - least <= to && (0..parts.count).all(|i| of(i).1 <= most));
                    assert!((0..parts.count - 1).all(|i| of(i).1 >= least));
                    if parts.count.is_multiple_of(2) {
                        assert_eq!(of(parts.count / 2).0, (parts.units / 2 * to).min(n));
                    }
                }
            }
        }
    }

    #[test]
    fn threads_have_equal_shares_of_a_result() {
        let shapes = [
            (1024, 256, 272, true),
            (1024, 688, 272, true),
            (1024, 1024, 1024, true),
            (1024, 1024, 2752, false),
            (1024, 2752, 1024, true),
            (256, 256, 8192, false),
            (256, 8192, 256, true),
        ];
        for (level, (m, n, depth, is_one_phase)) in
            available().into_iter().flat_map(|level| shapes.map(|shape| (level, shape)))
        {
            let isa = micro::isa(level);
            for threads in [2, 4] {
                let e = Extents { m, n, depth, is_one_phase, packs_a: false, keeps_c: !is_one_phase };
                let grid = Grid::new(&e, isa, threads);
                let at = |t: usize| grid.count() * t / threads;
                let area = |(row, column): ((usize, usize), (usize, usize))| row.1 * column.1;
                let share = |t: usize| (at(t)..at(t + 1)).map(|i| area(grid.part(i))).sum::<usize>();
                let most = (0..threads).map(share).max().unwrap_or(0);
                assert_eq!((0..threads).map(share).sum::<usize>(), m * n);
                assert!(most * threads * 100 <= m * n * 104, "{m} × {n} for {threads}: {grid:?}");
            }
        }
    }
}
