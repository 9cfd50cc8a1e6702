//! The loops around the micro-kernels.
//!
//! The result is cut into blocks, which are computed one after the other. For a block the depth of all products is cut into
//! segments of at most [`KC`] units; as many as fit the packed operands are a phase: their panels are packed, each once, and
//! then all tiles of the block add them up, in parallel. A tile of a result that is not `f32` is summed in scratch of its
//! task if there is one phase, else in scratch of the block.

use super::micro::{Block, Isa};
use super::pack::{self, Part};
use super::tiling::{BLOCK, Parts, TILE_AREA, Tiling};
use super::{Job, KC, Mat, Product};
use crate::cpu::par;
use crate::cpu::reduce;
use crate::cpu::scratch::{self, Cut};
use kfc_graph::DType;

/// Units of depth of a phase.
const PHASE: usize = 2 * KC;

/// Floats between two cache lines.
const LINE: usize = 16;

/// Most scratch that all tiles of a product share: two packed operands and a block of the result.
pub const SHARED_BYTES: usize = (2 * (BLOCK + 64) * PHASE + BLOCK * BLOCK + 3 * LINE) * size_of::<f32>();

/// A part of the depth of one product.
#[derive(Clone, Copy)]
struct Segment<'a> {
    product: &'a Product,
    k: usize,
    depth: usize,
    units: usize,
    /// Whether units are pairs.
    pair: bool,
    /// Units of the phase before it.
    at: usize,
}

/// Most segments of a phase: a full phase has two of full depth, or shorter ones of several products.
const SEGMENTS: usize = 8;

/// Segments that are packed together, and where the next phase begins: a product and a depth of it.
struct Phase<'a> {
    segments: [Option<Segment<'a>>; SEGMENTS],
    next: (usize, usize),
}

impl<'a> Phase<'a> {
    /// The phase that begins at `from`; without segments if there is no depth left.
    fn new(products: &'a [Product], isa: &Isa, from: (usize, usize)) -> Phase<'a> {
        let (mut product, mut k) = from;
        let (mut segments, mut count, mut used) = ([None; SEGMENTS], 0, 0);
        while let Some(p) = products.get(product) {
            let is_pair = |m: &Mat| m.src.dtype() == DType::Bf16 && m.dropout.is_none();
            let pair = isa.pair.is_some() && is_pair(&p.a) && is_pair(&p.b);
            let depth = if pair { 2 * KC } else { KC }.min(p.k - k);
            let units = if pair { depth.div_ceil(2) } else { depth };
            if depth > 0 {
                if used + units > PHASE || count == SEGMENTS {
                    break;
                }
                segments[count] = Some(Segment { product: p, k, depth, units, pair, at: used });
                (count, used, k) = (count + 1, used + units, k + depth);
            }
            if k == p.k {
                (product, k) = (product + 1, 0);
            }
        }
        Phase { segments, next: (product, k) }
    }

    fn iter(&self) -> impl Iterator<Item = &Segment<'a>> {
        self.segments.iter().flatten()
    }

    fn units(&self) -> usize {
        self.iter().last().map_or(0, |s| s.at + s.units)
    }
}

/// Calls `f` for each phase with whether it is the first and the last; there is always one, if only without segments.
fn phases<'a>(products: &'a [Product], isa: &Isa, mut f: impl FnMut(&Phase<'a>, bool, bool)) {
    let mut from = (0, 0);
    loop {
        let phase = Phase::new(products, isa, from);
        // What is left may be products without depth.
        let is_last = products[phase.next.0.min(products.len())..].iter().all(|p| p.k == 0);
        f(&phase, from == (0, 0), is_last);
        if is_last {
            return;
        }
        from = phase.next;
    }
}

/// Whether one task computes a product of these extents.
pub(super) fn is_one_tile(m: usize, n: usize, k: usize, isa: &Isa) -> bool {
    m <= BLOCK && n <= BLOCK && Tiling::new(m, n, k, isa).count() == 1
}

/// The first `n` floats of a piece that begin at a cache line.
fn aligned(piece: &mut [f32], n: usize) -> &mut [f32] {
    let skip = piece.as_ptr().align_offset(64).min(LINE);
    &mut piece[skip..skip + n]
}

/// Computes a job.
///
/// # Safety
/// As [`Job::run`]; the CPU has the instruction set.
pub(super) unsafe fn run(job: &Job<'_>, isa: &Isa) {
    let (mut count, mut deep) = (0, 0);
    phases(job.products, isa, |phase, _, _| (count, deep) = (count + 1, deep.max(phase.units())));
    let depth = job.products.iter().map(|p| p.k).sum();
    let (rows, columns) = (Parts::new(job.m, BLOCK, isa.mr), Parts::new(job.n, BLOCK, isa.nr));
    let (m, n) = (rows.most(isa.mr), columns.most(isa.nr));
    let (a_len, b_len) = (m * deep, n * deep);
    let c_len = if count == 1 || job.c.dtype() == DType::F32 { 0 } else { m * n };
    scratch::with(a_len + b_len + c_len + 3 * LINE, |s| {
        let mut cut = Cut(s);
        let mut take = |n: usize| par::Shared::new(aligned(cut.take(n + LINE), n));
        let (a, b, c) = (take(a_len), take(b_len), take(c_len));
        for row in rows.all() {
            for (j, column) in columns.all().enumerate() {
                let tiling = Tiling::new(row.1, column.1, depth, isa);
                let pass = Pass { job, isa, tiling, row, column, a, b, c, is_packed: j > 0 && count == 1 };
                phases(job.products, isa, |phase, is_first, is_last| {
                    // SAFETY: by contract; blocks are disjoint.
                    unsafe { pass.phase(phase, is_first, is_last) }
                });
            }
        }
    });
}

/// What computes a block.
struct Pass<'a> {
    job: &'a Job<'a>,
    isa: &'a Isa,
    tiling: Tiling,
    /// Start and extent of the block.
    row: (usize, usize),
    column: (usize, usize),
    /// Packed operands.
    a: par::Shared<f32>,
    b: par::Shared<f32>,
    /// Sums of the block, if they are kept from one phase to the next and not in the result.
    c: par::Shared<f32>,
    /// Whether the left operand is packed already.
    is_packed: bool,
}

impl Pass<'_> {
    /// Packs and adds a phase.
    ///
    /// # Safety
    /// As [`run`], for this block.
    unsafe fn phase(&self, phase: &Phase<'_>, is_first: bool, is_last: bool) {
        let (rows, columns) = (self.tiling.rows, self.tiling.columns);
        // An operand whose panels only one tile uses is packed by that tile.
        let a_tasks = if columns.count == 1 || self.is_packed { 0 } else { rows.count };
        let b_tasks = if rows.count == 1 { 0 } else { columns.count };
        // SAFETY: by contract; tasks write disjoint panels, and tiles are disjoint.
        unsafe {
            if a_tasks + b_tasks > 0 {
                par::tasks(a_tasks + b_tasks, |t| {
                    if t < a_tasks { self.pack_a(phase, t) } else { self.pack_b(phase, t - a_tasks) }
                });
            }
            par::tasks(self.tiling.count(), |t| self.tile(phase, t, is_first, is_last));
        }
    }

    /// Packs a part of the rows of the left operand.
    ///
    /// # Safety
    /// As [`run`]; nothing else uses these panels meanwhile.
    unsafe fn pack_a(&self, phase: &Phase<'_>, part: usize) {
        let (mr, (i, m)) = (self.isa.mr, self.tiling.rows.part(part));
        for s in phase.iter() {
            let part =
                Part { first: self.row.0 + i, count: m, k: s.k, depth: s.depth, width: mr, pair: s.pair };
            // SAFETY: by contract.
            unsafe {
                let to = self.panels(self.a, self.row.1.next_multiple_of(mr), s, i);
                pack::pack(self.isa, &s.product.a, part, to);
            }
        }
    }

    /// Packs a part of the columns of the right operand.
    ///
    /// # Safety
    /// As [`run`]; nothing else uses these panels meanwhile.
    unsafe fn pack_b(&self, phase: &Phase<'_>, part: usize) {
        let (nr, (j, n)) = (self.isa.nr, self.tiling.columns.part(part));
        for s in phase.iter() {
            let part =
                Part { first: self.column.0 + j, count: n, k: s.k, depth: s.depth, width: nr, pair: s.pair };
            // SAFETY: by contract.
            unsafe {
                let to = self.panels(self.b, self.column.1.next_multiple_of(nr), s, j);
                pack::pack(self.isa, &s.product.b.t(), part, to);
            }
        }
    }

    /// Where a segment's panels from line `first` on are, of an operand with `lines`.
    ///
    /// # Safety
    /// In bounds.
    unsafe fn panels(
        &self,
        packed: par::Shared<f32>,
        lines: usize,
        s: &Segment<'_>,
        first: usize,
    ) -> *mut u32 {
        // SAFETY: by contract.
        unsafe { packed.at(s.at * lines + s.units * first).cast() }
    }

    /// Adds a phase to a tile.
    ///
    /// # Safety
    /// As [`run`], for this tile.
    unsafe fn tile(&self, phase: &Phase<'_>, t: usize, is_first: bool, is_last: bool) {
        let (rows, columns) = (self.tiling.rows, self.tiling.columns);
        let (row, column) = (t / columns.count, t % columns.count);
        let ((i, m), (j, n)) = (rows.part(row), columns.part(column));
        let (top, left) = (self.row.0 + i, self.column.0 + j);
        let in_place = self.job.c.dtype() == DType::F32;
        let c_len = if in_place || !(is_first && is_last) { 0 } else { m * n };
        let d_len = if phase.iter().any(|s| s.product.dropout.is_some()) { m * n } else { 0 };
        debug_assert!(m * n <= TILE_AREA);
        // SAFETY: the tile lies within the result and no other task writes it.
        unsafe {
            if columns.count == 1 && !self.is_packed {
                self.pack_a(phase, row);
            }
            if rows.count == 1 {
                self.pack_b(phase, column);
            }
            scratch::with(c_len + d_len, |s| {
                let (pc, pd) = s.split_at_mut(c_len);
                let (c, ldc) = if in_place {
                    (self.job.c.raw::<f32>(0, 0).as_mut_ptr().add(top * self.job.ldc + left), self.job.ldc)
                } else if c_len > 0 {
                    (pc.as_mut_ptr(), n)
                } else {
                    (self.c.at(i * self.column.1 + j), self.column.1)
                };
                let tile = Tile { c, ldc, m, n };
                let mut started = !is_first || self.begin(&tile, top, left, phase, in_place);
                for s in phase.iter() {
                    if let Some(d) = s.product.dropout {
                        let part = Tile { c: pd.as_mut_ptr(), ldc: n, ..tile };
                        self.add(s, (i, j), &part, false);
                        for r in 0..m {
                            d.apply((top + r) * self.job.n + left, part.row(r));
                            reduce::axpy(1.0, part.row(r), tile.row(r));
                        }
                    } else {
                        self.add(s, (i, j), &tile, started);
                    }
                    started = true;
                }
                if is_last && !in_place {
                    (0..m).for_each(|r| self.job.c.store((top + r) * self.job.ldc + left, tile.row(r)));
                }
            });
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
            let is_written = phase.iter().next().is_some_and(|s| s.product.dropout.is_none());
            if !is_set && !is_written {
                (0..tile.m).for_each(|r| tile.row(r).fill(0.0));
            }
            is_set || !is_written
        }
    }

    /// Adds a segment to the tile at `(i, j)` of the block, or writes it.
    ///
    /// # Safety
    /// As [`run`], for this tile; its panels are packed.
    unsafe fn add(&self, s: &Segment<'_>, (i, j): (usize, usize), tile: &Tile, add: bool) {
        let &Isa { mr, nr, single, pair, .. } = self.isa;
        let kernel = if s.pair { pair.unwrap_or(single) } else { single };
        let Tile { c, ldc, m, n } = *tile;
        // SAFETY: by contract.
        unsafe {
            let a = self.panels(self.a, self.row.1.next_multiple_of(mr), s, i);
            let b = self.panels(self.b, self.column.1.next_multiple_of(nr), s, j);
            for y in (0..n).step_by(nr) {
                for x in (0..m).step_by(mr) {
                    kernel(&Block {
                        units: s.units,
                        a: a.add(x * s.units),
                        b: b.add(y * s.units),
                        c: c.add(x * ldc + y),
                        ldc,
                        m: mr.min(m - x),
                        n: nr.min(n - y),
                        alpha: s.product.alpha,
                        add,
                    });
                }
            }
        }
    }
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
