//! The loops around the micro-kernels.
//!
//! The result is cut into parts ([`super::tiling`]), and a thread computes a part on its own, with operands that it packed for
//! itself: what another core has just written costs more to read than to pack again. The depth of all products is cut into
//! phases ([`super::phase`]): all tiles of the part add up one before the next begins, and panels are packed just before the
//! first tile that needs them, while the tile before it has them fetched ([`super::ahead`]). A left operand that lies in memory as
//! the micro-kernels can read it is not packed at all.
//!
//! A tile of a result that is not `f32` is summed in scratch if there is one phase, else all tiles of the part are.
//!
//! Each element adds its products in order of depth, whatever part and tile it is in: its bits do not depend on how, or for how
//! many threads, the result is cut.

use super::ahead::{Ahead, Region};
use super::micro::{Block, Chain, Dropped, Fetch, Isa, Link, To};
use super::pack;
use super::phase::{Phase, SEGMENTS, Segment, is_direct, phases};
use super::tiling::{Extents, Grid, Most, TILE_AREA, Tiling};
use super::{Job, Mat};
use crate::cpu::par::{self, Shared};
use crate::cpu::reduce;
use crate::cpu::scratch::{self, Cut, LINE};
use kfc_graph::DType;

/// Whether sums are kept in the result itself.
fn is_in_place(job: &Job<'_>) -> bool {
    job.c.dtype() == DType::F32 && !job.turned
}

/// Computes a job, on the calling thread alone or in parallel.
///
/// # Safety
/// As [`Job::run`]; the CPU has the instruction set.
pub(super) unsafe fn run(job: &Job<'_>, isa: &Isa, alone: bool) {
    let (count, deep) = phases(job.products, isa).fold((0, 0), |(n, d), p| (n + 1, d.max(p.units())));
    let extents = Extents {
        m: job.m,
        n: job.n,
        depth: job.products.iter().map(|p| p.k).sum(),
        is_one_phase: count == 1,
        packs_a: !job.products.iter().all(|p| is_direct(p, isa)),
        keeps_c: count > 1 && !is_in_place(job),
    };
    let grid = Grid::new(&extents, isa, if alone { 1 } else { par::threads() });
    let most = Most::chosen();
    let (m, n) = grid.most();
    let has_dropout = job.products.iter().any(|p| p.dropout.is_some());
    let is_tiled = Tiling::new(m, n, isa, most).rows.count > 1;
    let a_len = if extents.packs_a { m * deep } else { 0 };
    // Columns of a part, or of a tile if they are packed again in the next phase.
    let kept = if count == 1 { n } else { n.min(most.columns.max(isa.nr)) };
    let b_len = if is_tiled || has_dropout { kept.next_multiple_of(isa.nr) * deep } else { 0 };
    let c_len = if extents.keeps_c { m * n } else { 0 };
    let thread = |parts: &mut dyn Iterator<Item = usize>| {
        scratch::with(a_len + b_len + c_len + 3 * LINE, |s| {
            let mut cut = Cut(s);
            let mut take = |n: usize| Shared::new(cut.line(n));
            let (a, b, c) = (take(a_len), take(b_len), take(c_len));
            let pass = |i: usize, packed: Option<(usize, usize)>| {
                let (row, column) = grid.part(i);
                let tiling = Tiling::new(row.1, column.1, isa, most);
                let keeps_b = count == 1 && tiling.rows.count > 1;
                let is_packed = keeps_b && packed == Some(column);
                Pass {
                    job,
                    isa,
                    tiling,
                    row,
                    column,
                    a,
                    b,
                    c,
                    keeps_b,
                    is_packed,
                    is_first: true,
                    is_last: false,
                }
            };
            // Whose columns are packed.
            let mut packed = None;
            for i in parts {
                let part = pass(i, packed);
                packed = part.keeps_b.then_some(part.column);
                // Which part this thread takes next is not known yet; it is most likely the one behind it.
                let next = (i + 1 < grid.count()).then(|| pass(i + 1, packed));
                // SAFETY: by contract; parts of the result are disjoint.
                unsafe { part.run(count, next.as_ref()) };
            }
        });
    };
    if alone { thread(&mut (0..grid.count())) } else { par::each_thread(grid.count(), thread) }
}

/// What computes a phase of a part.
struct Pass<'a> {
    job: &'a Job<'a>,
    isa: &'a Isa,
    tiling: Tiling,
    /// Start and extent of the part.
    row: (usize, usize),
    column: (usize, usize),
    /// Packed operands.
    a: Shared<f32>,
    b: Shared<f32>,
    /// Sums of the part, if they are kept from one phase to the next and not in the result.
    c: Shared<f32>,
    /// Whether panels of all columns are kept for tiles and parts that follow, and whether they are packed already.
    keeps_b: bool,
    is_packed: bool,
    is_first: bool,
    is_last: bool,
}

impl Pass<'_> {
    /// Computes the part in `count` phases; then the same thread is expected to go on with the part `next`.
    ///
    /// # Safety
    /// As [`run`]; nothing else uses this part.
    unsafe fn run(mut self, count: usize, next: Option<&Pass<'_>>) {
        for (number, phase) in phases(self.job.products, self.isa).enumerate() {
            (self.is_first, self.is_last) = (number == 0, number + 1 == count);
            // Tiles that follow one another share columns, whose panels take most of a cache.
            for column in 0..self.tiling.columns.count {
                for row in 0..self.tiling.rows.count {
                    // SAFETY: by contract; tiles are computed one after the other.
                    unsafe { self.tile(&phase, (row, column), next) };
                }
            }
        }
    }

    /// Packs a part of the rows of the left operand.
    ///
    /// # Safety
    /// As [`run`]; nothing else uses these panels meanwhile.
    unsafe fn pack_a(&self, phase: &Phase<'_>, part: usize) {
        let (mr, (i, m)) = (self.isa.mr, self.tiling.rows.part(part));
        for s in phase.iter().filter(|s| !s.direct) {
            // SAFETY: by contract.
            unsafe {
                pack::pack(self.isa, &s.product.a, s.part(self.row.0 + i, m, mr), self.shared_a(i).of(s));
            }
        }
    }

    /// Packs columns of the right operand.
    ///
    /// # Safety
    /// As [`run`]; nothing else uses these panels meanwhile.
    unsafe fn pack_b(&self, phase: &Phase<'_>, (j, n): (usize, usize), to: Panels) {
        for s in phase.iter() {
            let part = s.part(self.column.0 + j, n, self.isa.nr);
            // SAFETY: by contract.
            unsafe {
                pack::pack(self.isa, &s.product.b.t(), part, to.of(s));
            }
        }
    }

    /// Panels of the left operand from row `i` of the part on.
    fn shared_a(&self, i: usize) -> Panels {
        Panels { at: self.a, lines: self.row.1.next_multiple_of(self.isa.mr), first: i }
    }

    /// Panels of the right operand from column `j` of the part on, where a tile begins.
    fn shared_b(&self, j: usize, n: usize) -> Panels {
        let (lines, first) = if self.keeps_b { (self.column.1, j) } else { (n, 0) };
        Panels { at: self.b, lines: lines.next_multiple_of(self.isa.nr), first }
    }

    /// Adds a phase to a tile.
    ///
    /// # Safety
    /// As [`run`], for this tile.
    unsafe fn tile(&self, phase: &Phase<'_>, (row, column): (usize, usize), next: Option<&Pass<'_>>) {
        let (rows, columns) = (self.tiling.rows, self.tiling.columns);
        let (is_first, is_last) = (self.is_first, self.is_last);
        let ((i, m), (j, n)) = (rows.part(row), columns.part(column));
        let (top, left) = (self.row.0 + i, self.column.0 + j);
        let in_place = is_in_place(self.job);
        let chain = phase.chain(self.isa);
        // Micro-kernels round the result themselves.
        let rounds = chain.is_some() && is_last && !self.job.turned && self.job.c.dtype() == DType::Bf16;
        let is_alone = is_first && is_last && !in_place;
        let has_dropout = chain.is_none() && phase.dropped().next().is_some();
        let c_len = if is_alone && (!rounds || self.job.accumulate) { m * n } else { 0 };
        // A row that is added to every row and nothing else is read where it is.
        let adds_row = chain.is_some() && is_first && !self.job.turned && !self.job.accumulate;
        let bias = self.job.bias.filter(|_| adds_row);
        let bias_len = if bias.is_some() { n } else { 0 };
        let copies = self.job.turned && is_last && self.job.c.dtype() != DType::F32;
        let d_len = if has_dropout || copies { m * n } else { 0 };
        debug_assert!(m * n <= TILE_AREA);
        // SAFETY: the tile lies within the result and no other task writes it.
        unsafe {
            if column == 0 {
                self.pack_a(phase, row);
            }
            // Panels that only this tile uses are packed one by one, into the same place, which stays in the cache.
            let own_len = if rows.count == 1 && !has_dropout { self.isa.nr * phase.units() } else { 0 };
            scratch::with(c_len + d_len + bias_len + own_len + LINE, |s| {
                let mut cut = Cut(s);
                let (pc, pd, pbias) = (cut.take(c_len), cut.take(d_len), cut.take(bias_len));
                let own = Panels { at: Shared::new(cut.line(own_len)), lines: self.isa.nr, first: 0 };
                let (c, ldc) = if in_place {
                    (self.job.c.raw::<f32>(0, 0).as_mut_ptr().add(top * self.job.ldc + left), self.job.ldc)
                } else if is_alone {
                    (pc.as_mut_ptr(), n)
                } else {
                    (self.c.at(i * self.column.1 + j), self.column.1)
                };
                let tile = Tile { c, ldc, m, n };
                let is_set = !is_first || (bias.is_none() && self.begin(&tile, top, left, phase, in_place));
                let from = match bias {
                    Some(bias) => {
                        bias.load(left, pbias);
                        Some((pbias.as_ptr(), 0))
                    }
                    None => is_set.then_some((c.cast_const(), ldc)),
                };
                let to = if rounds {
                    let at = top * self.job.ldc + left;
                    To::Bf16(self.job.c.offset(at).src().ptr().cast_mut().cast(), self.job.ldc)
                } else {
                    To::F32(c, ldc)
                };
                let step = if own_len > 0 { self.isa.nr } else { n };
                for y in (0..n).step_by(step) {
                    let part = y..n.min(y + step);
                    let b = if own_len > 0 { own } else { self.shared_b(j, n) };
                    if row == 0 && !self.is_packed {
                        self.pack_b(phase, (j + y, part.len()), b);
                    }
                    let calls = m.div_ceil(self.isa.mr) * part.len().div_ceil(self.isa.nr);
                    let mut ahead = self.after(phase, (row, column), (j + part.end, calls), next);
                    if is_last && self.job.turned {
                        ahead.want(self.turned((top, m), (left + part.start, part.len())));
                    }
                    let place = Place { a: self.shared_a(i), b, top, left, out: false };
                    let out = !in_place && !self.job.turned && is_last;
                    if let Some(kernel) = chain {
                        let place = Place { out, ..place };
                        self.chain(kernel, phase, &place, &tile, part, from, to, &mut ahead);
                        continue;
                    }
                    let mut add = is_set;
                    // There is one part then, the whole tile.
                    for s in phase.dropped() {
                        self.add_dropped(s, &place, &tile, add, pd);
                        add = true;
                    }
                    let mut left = phase.plain().count();
                    for s in phase.plain() {
                        left -= 1;
                        let place = Place { out: out && left == 0, ..place };
                        self.add(s, &place, &tile, part.clone(), add, &mut ahead);
                        add = true;
                    }
                }
                if is_last && self.job.turned {
                    self.store_turned(&tile, top, left, pd);
                } else if is_last && !in_place && !rounds {
                    (0..m).for_each(|r| self.job.c.store((top + r) * self.job.ldc + left, tile.row(r)));
                }
            });
        }
    }

    /// What is packed after the columns of a tile that end with column `end` of the part; their products, so many calls, ask
    /// for it. What tiles of other columns need is asked for by all tiles before them, a share each.
    fn after(
        &self,
        phase: &Phase<'_>,
        (row, column): (usize, usize),
        (end, calls): (usize, usize),
        next: Option<&Pass<'_>>,
    ) -> Ahead {
        let mut ahead = Ahead::new(calls);
        let (rows, columns) = (self.tiling.rows, self.tiling.columns);
        let (j, n) = columns.part(column);
        if end < j + n {
            self.want_columns(&mut ahead, phase, (end, j + n - end), (0, 1));
            return ahead;
        }
        if row + 1 < rows.count && column == 0 {
            self.want_rows(&mut ahead, phase, row + 1);
        }
        let later;
        let (part, then, column) = match next {
            _ if column + 1 < columns.count => (self, phase, column + 1),
            _ if !self.is_last => {
                later = Phase::new(self.job.products, self.isa, phase.next);
                (self, &later, 0)
            }
            Some(next) => {
                later = Phase::new(self.job.products, self.isa, (0, 0));
                (next, &later, 0)
            }
            None => return ahead,
        };
        if row + 1 == rows.count && column == 0 {
            part.want_rows(&mut ahead, then, 0);
        }
        if !part.is_packed {
            part.want_columns(&mut ahead, then, part.tiling.columns.part(column), (row, rows.count));
        }
        ahead
    }

    /// Has rows of a tile asked for, where they are packed.
    fn want_rows(&self, ahead: &mut Ahead, phase: &Phase<'_>, tile: usize) {
        let (i, m) = self.tiling.rows.part(tile);
        for s in phase.iter().filter(|s| !s.direct) {
            ahead.want(Region::new(&s.product.a, &s.part(self.row.0 + i, m, self.isa.mr)));
        }
    }

    /// Has a share of columns asked for: of the first panel where panels are packed one by one.
    fn want_columns(
        &self,
        ahead: &mut Ahead,
        phase: &Phase<'_>,
        (j, n): (usize, usize),
        (share, of): (usize, usize),
    ) {
        let n = if self.tiling.rows.count == 1 { n.min(self.isa.nr) } else { n };
        for s in phase.iter() {
            let part = s.part(self.column.0 + j, n, self.isa.nr);
            ahead.want(Region::new(&s.product.b.t(), &part).share(share, of));
        }
    }

    /// Sets a tile to what is there before the first product; false if that is nothing and it is not set.
    ///
    /// # Safety
    /// As [`run`], for this tile.
    unsafe fn begin(&self, tile: &Tile, top: usize, left: usize, phase: &Phase<'_>, in_place: bool) -> bool {
        let job = self.job;
        // SAFETY: by contract.
        unsafe {
            if job.accumulate && !in_place {
                (0..tile.m).for_each(|r| job.c.src().load((top + r) * job.ldc + left, tile.row(r)));
            }
            if let Some(bias) = job.bias {
                scratch::with(tile.n, |s| {
                    if job.turned {
                        let s = &mut s[..1];
                        for r in 0..tile.m {
                            bias.load(top + r, s);
                            tile.row(r).fill(s[0]);
                        }
                        return;
                    }
                    bias.load(left, s);
                    for r in 0..tile.m {
                        if job.accumulate {
                            reduce::axpy(1.0, s, tile.row(r));
                        } else {
                            tile.row(r).copy_from_slice(s);
                        }
                    }
                });
            }
            let is_set = job.accumulate || job.bias.is_some();
            let is_written = phase.iter().next().is_some();
            if !is_set && !is_written {
                (0..tile.m).for_each(|r| tile.row(r).fill(0.0));
            }
            is_set || !is_written
        }
    }

    /// Where a segment's rows begin, and the bytes from one to the next if they are not packed.
    ///
    /// # Safety
    /// As [`run`], for this place.
    unsafe fn rows_of(&self, s: &Segment<'_>, place: &Place) -> (*const u32, Option<usize>) {
        let Mat { src, rs, .. } = s.product.a;
        // SAFETY: by contract.
        unsafe {
            if s.direct {
                (src.offset(place.top * rs + s.k).ptr().cast(), Some(rs * src.dtype().size()))
            } else {
                (place.a.of(s).cast_const(), None)
            }
        }
    }

    /// Adds all segments to columns of a tile: `to = from + …`, both from the tile's first element on.
    ///
    /// # Safety
    /// As [`run`], for this tile; its panels are packed.
    #[allow(clippy::too_many_arguments)]
    unsafe fn chain(
        &self,
        kernel: unsafe fn(&Chain<'_>),
        phase: &Phase<'_>,
        place: &Place,
        tile: &Tile,
        columns: std::ops::Range<usize>,
        from: Option<(*const f32, usize)>,
        to: To,
        ahead: &mut Ahead,
    ) {
        let &Isa { mr, nr, .. } = self.isa;
        // SAFETY: by contract.
        unsafe {
            // Each segment from the tile's first row and column on, and the bytes of a row.
            let mut begin = [(Link::NONE, 0); SEGMENTS];
            let mut count = 0;
            for (begin, s) in begin.iter_mut().zip(phase.dropped().chain(phase.plain())) {
                let (a, a_row) = self.rows_of(s, place);
                let link = Link { units: s.units, a, a_row, b: place.b.of(s) };
                // A panel of `mr` rows is as long as `mr` rows.
                *begin = (link, a_row.unwrap_or(s.units * size_of::<u32>()));
                count += 1;
            }
            let mut links = [Link::NONE; SEGMENTS];
            let dropout = phase.dropped().find_map(|s| s.product.dropout);
            let kept = dropout.and_then(|d| d.kept().map(|kept| (kept, d.keep())));
            for (panel, y) in columns.step_by(nr).enumerate() {
                for x in (0..tile.m).step_by(mr) {
                    for (link, &(begin, row)) in links[..count].iter_mut().zip(&begin) {
                        let b = begin.b.add(panel * nr * begin.units);
                        *link = Link { a: begin.a.byte_add(x * row), b, ..begin };
                    }
                    let dropped = kept.map(|(kept, keep)| {
                        let first = (place.top + x) * self.job.n + place.left + y;
                        Dropped { kept, keep, first, row: self.job.n }
                    });
                    kernel(&Chain {
                        links: &links[..count],
                        m: mr.min(tile.m - x),
                        n: nr.min(tile.n - y),
                        dropped: dropped.as_ref(),
                        from: from.map(|(from, row)| (from.add(x * row + y), row)),
                        to: match to {
                            To::F32(to, row) => To::F32(to.add(x * row + y), row),
                            To::Bf16(to, row) => To::Bf16(to.add(x * row + y), row),
                        },
                        result: if place.out {
                            self.result(place, x, y)
                        } else {
                            Fetch::lines(tile.c.wrapping_add(x * tile.ldc + y), tile.ldc)
                        },
                        ahead: ahead.walk().as_ref(),
                    });
                }
            }
        }
    }

    /// Adds a segment with dropout to a tile, or writes it. `sums` are as many as the tile has.
    ///
    /// # Safety
    /// As [`run`], for this tile; its panels are packed, and `sums` are not part of it.
    unsafe fn add_dropped(&self, s: &Segment<'_>, place: &Place, tile: &Tile, add: bool, sums: &mut [f32]) {
        let Some(dropout) = s.product.dropout else { return };
        let own = Tile { c: sums.as_mut_ptr(), ldc: tile.n, ..*tile };
        let to = if add { &own } else { tile };
        // SAFETY: by contract.
        unsafe {
            self.add(s, place, to, 0..tile.n, false, &mut Ahead::new(0));
            for r in 0..tile.m {
                dropout.apply((place.top + r) * self.job.n + place.left, to.row(r));
                if add {
                    reduce::axpy(1.0, to.row(r), tile.row(r));
                }
            }
        }
    }

    /// Adds a segment to columns of a tile, or writes them.
    ///
    /// # Safety
    /// As [`run`], for this tile; its panels are packed.
    #[allow(clippy::too_many_arguments)]
    unsafe fn add(
        &self,
        s: &Segment<'_>,
        place: &Place,
        tile: &Tile,
        columns: std::ops::Range<usize>,
        add: bool,
        ahead: &mut Ahead,
    ) {
        let &Isa { mr, nr, single, pair, .. } = self.isa;
        let Tile { c, ldc, m, n } = *tile;
        // SAFETY: by contract.
        unsafe {
            let (a, a_row) = self.rows_of(s, place);
            let kernel = match self.isa.direct {
                Some(direct) if s.direct => direct[usize::from(s.pair)],
                _ if s.pair => pair.unwrap_or(single),
                _ => single,
            };
            // A panel of `mr` rows is as long as `mr` rows.
            let a_row = a_row.unwrap_or(s.units * size_of::<u32>());
            let b = place.b.of(s);
            for (panel, y) in columns.step_by(nr).enumerate() {
                for x in (0..m).step_by(mr) {
                    let at = c.add(x * ldc + y);
                    kernel(&Block {
                        units: s.units,
                        a: a.byte_add(x * a_row),
                        a_row,
                        b: b.add(panel * nr * s.units),
                        c: at,
                        ldc,
                        m: mr.min(m - x),
                        n: nr.min(n - y),
                        alpha: s.product.alpha,
                        add,
                        result: if place.out { self.result(place, x, y) } else { Fetch::lines(at, ldc) },
                        ahead: ahead.walk().as_ref(),
                    });
                }
            }
        }
    }

    /// Where a tile goes in the transposed result.
    fn turned(&self, (top, m): (usize, usize), (left, n): (usize, usize)) -> Region {
        let (c, size) = (self.job.c.src().ptr(), self.job.c.dtype().size());
        let at = c.wrapping_add((left * self.job.ldc + top) * size);
        Region::of(at, self.job.ldc * size, n, m * size)
    }

    /// Writes a tile to the transposed result, that of another type than `f32` by way of `turned`, which holds as many elements
    /// and is not part of the tile.
    ///
    /// # Safety
    /// As [`run`], for this tile.
    unsafe fn store_turned(&self, tile: &Tile, top: usize, left: usize, turned: &mut [f32]) {
        let job = self.job;
        // SAFETY: by contract.
        unsafe {
            let is_f32 = job.c.dtype() == DType::F32;
            let (to, row) = if is_f32 {
                (job.c.offset(left * job.ldc + top).src().ptr().cast_mut().cast::<u32>(), job.ldc)
            } else {
                (turned.as_mut_ptr().cast(), tile.m)
            };
            for i in (0..tile.m).step_by(16) {
                let rows = tile.c.add(i * tile.ldc).cast_const().cast();
                let lines = 16.min(tile.m - i);
                (self.isa.transpose)(rows, tile.ldc, lines, tile.n, false, to.add(i), row);
            }
            if !is_f32 {
                for (j, line) in turned.chunks_exact(tile.m).take(tile.n).enumerate() {
                    job.c.store((left + j) * job.ldc + top, line);
                }
            }
        }
    }

    /// Where a register tile goes in the end.
    fn result(&self, place: &Place, x: usize, y: usize) -> Fetch {
        let size = self.job.c.dtype().size();
        let at = self.job.c.src().ptr();
        let at = at.wrapping_add(((place.top + x) * self.job.ldc + place.left + y) * size);
        Fetch { at, row: self.job.ldc * size, width: 16 * size }
    }
}

/// Packed panels of all segments of a phase.
#[derive(Clone, Copy)]
struct Panels {
    at: Shared<f32>,
    /// Lines of the operand that are packed, whole panels.
    lines: usize,
    /// The first line meant, at the start of a panel.
    first: usize,
}

impl Panels {
    /// The panels of a segment.
    ///
    /// # Safety
    /// In bounds.
    unsafe fn of(&self, s: &Segment<'_>) -> *mut u32 {
        // SAFETY: by contract.
        unsafe { self.at.at(s.at * self.lines + s.units * self.first).cast() }
    }
}

/// Where a tile is.
#[derive(Clone, Copy)]
struct Place {
    /// Panels of its rows, and of the columns that are added to.
    a: Panels,
    b: Panels,
    /// In the result.
    top: usize,
    left: usize,
    /// Whether the tile goes to the result next.
    out: bool,
}

/// The sums of a tile.
#[derive(Clone, Copy)]
struct Tile {
    c: *mut f32,
    ldc: usize,
    m: usize,
    n: usize,
}

impl Tile {
    /// A row of it.
    ///
    /// # Safety
    /// No other reference to the row is live.
    #[allow(clippy::mut_from_ref)]
    unsafe fn row(&self, r: usize) -> &mut [f32] {
        // SAFETY: by contract.
        unsafe { std::slice::from_raw_parts_mut(self.c.add(r * self.ldc), self.n) }
    }
}
