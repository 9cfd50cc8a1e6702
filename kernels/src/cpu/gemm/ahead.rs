//! Operands that are packed next are asked for while micro-kernels sum what is packed already: packing waits for memory, and
//! sums leave the memory idle.

use super::Mat;
use super::pack::Part;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Rows of cache lines.
#[derive(Clone, Copy)]
pub(super) struct Region {
    at: *const u8,
    /// Bytes from row to row.
    pitch: usize,
    rows: usize,
    /// Lines of a row.
    lines: usize,
}

impl Region {
    /// Nothing.
    const NONE: Region = Region { at: std::ptr::null(), pitch: 0, rows: 0, lines: 0 };

    /// What packing a part reads.
    pub(super) fn new(mat: &Mat, part: &Part) -> Region {
        let size = mat.src.dtype().size();
        let at = mat.src.ptr().wrapping_add((part.first * mat.rs + part.k * mat.cs) * size);
        let (pitch, rows, row) =
            if mat.cs == 1 { (mat.rs, part.count, part.depth) } else { (mat.cs, part.depth, part.count) };
        Region::of(at, pitch * size, rows, row * size)
    }

    /// `rows` of so many bytes, `pitch` bytes apart.
    pub(super) fn of(at: *const u8, pitch: usize, rows: usize, row: usize) -> Region {
        Region { at, pitch, rows, lines: (at as usize % LINE + row).div_ceil(LINE) }
    }

    /// One of so many shares of its rows.
    pub(super) fn share(self, i: usize, count: usize) -> Region {
        let at = |i: usize| self.rows * i / count;
        Region { at: self.at.wrapping_add(at(i) * self.pitch), rows: at(i + 1) - at(i), ..self }
    }
}

/// Cache lines that a micro-kernel asks for, at most one at each unit. A hint: the addresses need not be valid.
#[derive(Clone, Copy)]
pub(super) struct Walk {
    at: *const u8,
    /// How many.
    count: usize,
    /// Of a row, and of the first from `at` on.
    lines: usize,
    left: usize,
    /// Bytes from the last line of a row to the next row.
    jump: usize,
}

impl Walk {
    /// The walk of a call of so many units, and how many lines it asks for.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub(super) fn begin(walk: Option<&Walk>, units: usize) -> (Walk, usize) {
        match walk {
            Some(walk) => (*walk, units.min(walk.count)),
            None => (Walk { at: std::ptr::null(), count: 0, lines: 0, left: 0, jump: 0 }, 0),
        }
    }

    /// Units from one line to the next, a power of two, where so many of all units ask for one: many at once would have what
    /// the kernel itself reads wait.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub(super) fn apart(asked: usize, units: usize) -> usize {
        1 << (units / asked.max(1)).max(1).ilog2()
    }

    /// Asks for the next line.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub(super) fn step(&mut self) {
        crate::cpu::simd::prefetch(self.at);
        self.left -= 1;
        let is_end = self.left == 0;
        self.at = self.at.wrapping_add(if is_end { self.jump } else { LINE });
        self.left = if is_end { self.lines } else { self.left };
    }
}

/// Most regions that are asked for together.
const REGIONS: usize = 8;

/// What is packed next, and how far it has been asked for.
pub(super) struct Ahead {
    regions: [Region; REGIONS],
    count: usize,
    /// The region that is under way, and how many lines of it have been asked for.
    number: usize,
    done: usize,
    /// Calls that ask, all lines, and those of a call.
    calls: usize,
    lines: usize,
    each: usize,
}

impl Ahead {
    /// Nothing so far; what is wanted is asked for by so many calls.
    pub(super) fn new(calls: usize) -> Ahead {
        let (count, number, done, lines, each) = (0, 0, 0, 0, 0);
        Ahead { regions: [Region::NONE; REGIONS], count, number, done, calls: calls.max(1), lines, each }
    }

    /// Adds a region, if there is room.
    pub(super) fn want(&mut self, region: Region) {
        let lines = region.rows * region.lines;
        if lines > 0 && self.count < REGIONS {
            self.regions[self.count] = region;
            (self.count, self.lines) = (self.count + 1, self.lines + lines);
            self.each = self.lines.div_ceil(self.calls);
        }
    }

    /// What the next call asks for.
    #[inline]
    pub(super) fn walk(&mut self) -> Option<Walk> {
        if self.number == self.count {
            return None;
        }
        let (r, done) = (self.regions[self.number], self.done);
        let count = self.each.min(r.rows * r.lines - done);
        self.done += count;
        if self.done == r.rows * r.lines {
            (self.number, self.done) = (self.number + 1, 0);
        }
        let (row, line) = (done / r.lines, done % r.lines);
        Some(Walk {
            at: r.at.wrapping_add(row * r.pitch + line * LINE),
            count,
            lines: r.lines,
            left: r.lines - line,
            jump: r.pitch.wrapping_sub((r.lines - 1) * LINE),
        })
    }
}
