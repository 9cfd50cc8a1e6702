//! Matrix products: `C = Σ αᵢ·Aᵢ·Bᵢ (+ bias) (+ C)` with operands of any float type, computed in `f32`.
//!
//! The result is cut into tiles by its shape alone; tiles run in parallel and each is computed by one thread from the
//! first to the last product, so that the bits do not depend on the number of threads. A tile's operands that are not
//! `f32` are converted panel by panel (a panel of `KC` columns is used by a whole tile, so that the conversion is a few
//! per cent of the work), and results that are not `f32` are rounded once, at the end.

use crate::cpu::float::{Dst, Src};
use crate::cpu::philox::Dropout;
use crate::cpu::scratch::{self, Cut};
use crate::cpu::{par, reduce};
use kfc_graph::DType;

/// Depth of a panel.
const KC: usize = 512;

/// Floats between the rows of a panel beyond their length, so that they do not meet in the same cache sets.
const PANEL_PADDING: usize = 16;

/// Rows at a multiple of this distance, in bytes, meet in the same cache sets; such operands are copied into panels.
const BAD_STRIDE: usize = 256;

/// Rows of a result up to which columns are computed as dot products ([`Job::dots`]).
const DOT_ROWS: usize = 4;

/// Columns of a task of dot products.
const DOT_COLUMNS: usize = 32;

/// Largest extent of a tile.
const TILE: usize = 512;

/// Largest number of elements of a tile.
const TILE_AREA: usize = 256 * 256;

/// Work of a tile, in multiply-adds, below which it is not cut further for more parallelism.
const TILE_WORK: usize = 1 << 20;

/// Tiles wanted of a large product, to occupy many cores.
const TILES: usize = 16;

/// Most scratch of one tile: two panels and two copies of the tile.
pub const SCRATCH_BYTES: usize =
    (2 * (TILE + PANEL_PADDING) * (KC + PANEL_PADDING) + 2 * TILE_AREA) * size_of::<f32>();

/// A matrix operand; element `(i, j)` is at `i * rs + j * cs`.
#[derive(Clone, Copy)]
pub(crate) struct Mat {
    pub(crate) src: Src,
    pub(crate) rs: usize,
    pub(crate) cs: usize,
    /// Applied to elements as they are read, numbered by their place in memory.
    pub(crate) dropout: Option<Dropout>,
}

impl Mat {
    /// A dense row-major matrix of rows of `columns`.
    pub(crate) fn rows(src: Src, columns: usize) -> Mat {
        Mat { src, rs: columns, cs: 1, dropout: None }
    }

    /// The transpose.
    #[must_use]
    pub(crate) fn t(self) -> Mat {
        Mat { rs: self.cs, cs: self.rs, ..self }
    }

    /// The same matrix with dropout.
    #[must_use]
    pub(crate) fn with_dropout(self, dropout: Option<Dropout>) -> Mat {
        Mat { dropout, ..self }
    }

    /// Whether blocks are used where they lie.
    fn is_direct(&self) -> bool {
        let is_plain = self.src.dtype() == DType::F32 && self.dropout.is_none();
        is_plain && !(self.rs.max(self.cs) * size_of::<f32>()).is_multiple_of(BAD_STRIDE)
    }

    /// Floats of a panel for `n` rows or columns of this operand.
    fn panel_floats(&self, n: usize) -> usize {
        if self.is_direct() { 0 } else { (n + PANEL_PADDING) * (KC + PANEL_PADDING) }
    }

    /// `f32` address and strides of the block of `m` rows and `n` columns at `(i, j)`, converted into `panel` if it is
    /// not directly usable.
    ///
    /// # Safety
    /// In bounds of the operand and of the panel.
    unsafe fn block(
        &self,
        i: usize,
        j: usize,
        m: usize,
        n: usize,
        panel: &mut [f32],
    ) -> (*const f32, usize, usize) {
        let at = i * self.rs + j * self.cs;
        if self.is_direct() {
            // SAFETY: by contract.
            return (unsafe { self.src.ptr().cast::<f32>().add(at) }, self.rs, self.cs);
        }
        // The panel keeps the operand's order, so that runs are contiguous on both sides.
        let by_rows = self.cs == 1;
        let (runs, len, stride) = if by_rows { (m, n, self.rs) } else { (n, m, self.cs) };
        debug_assert!(by_rows || self.rs == 1);
        let ld = len + PANEL_PADDING;
        for (r, run) in panel[..runs * ld].chunks_exact_mut(ld).enumerate() {
            let run = &mut run[..len];
            // SAFETY: by contract.
            unsafe { self.src.load(at + r * stride, run) };
            if let Some(d) = self.dropout {
                d.apply(at + r * stride, run);
            }
        }
        let (rs, cs) = if by_rows { (ld, 1) } else { (1, ld) };
        (panel.as_ptr(), rs, cs)
    }
}

/// One product `alpha · a · b` of depth `k`.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    pub(crate) a: Mat,
    pub(crate) b: Mat,
    pub(crate) k: usize,
    pub(crate) alpha: f32,
    /// Applied to this product's part of the result, numbered as the dense result.
    pub(crate) dropout: Option<Dropout>,
}

impl Product {
    pub(crate) fn new(a: Mat, b: Mat, k: usize) -> Product {
        Product { a, b, k, alpha: 1.0, dropout: None }
    }
}

/// A sum of products written to a row-major result.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) products: &'a [Product],
    /// A row added to every row.
    pub(crate) bias: Option<Src>,
    /// Whether the result's content is added to.
    pub(crate) accumulate: bool,
    pub(crate) c: Dst,
    /// Elements from one row of the result to the next.
    pub(crate) ldc: usize,
}

impl<'a> Job<'a> {
    /// A dense result without bias.
    pub(crate) fn new(m: usize, n: usize, products: &'a [Product], c: Dst) -> Job<'a> {
        Job { m, n, products, bias: None, accumulate: false, c, ldc: n }
    }

    /// Runs all tiles in parallel.
    ///
    /// # Safety
    /// Operands and result have the extents stated, the result overlaps no operand, and nothing else uses it.
    pub(crate) unsafe fn run(&self) {
        if self.is_dots() {
            // SAFETY: by contract.
            return unsafe { self.dots() };
        }
        let tiling = self.tiling();
        // SAFETY: by contract; tiles are disjoint.
        par::tasks(tiling.count(), |t| unsafe { self.tile(&tiling, t) });
    }

    /// Whether there are few rows and all operands are contiguous along the depth.
    fn is_dots(&self) -> bool {
        let fits = |p: &Product| {
            p.a.cs == 1
                && p.b.rs == 1
                && p.dropout.is_none()
                && p.a.dropout.is_none()
                && p.b.dropout.is_none()
        };
        self.m <= DOT_ROWS && !self.accumulate && self.products.iter().all(fits)
    }

    /// Each element as a dot product: reads the right operand once, which is all the work with few rows.
    ///
    /// # Safety
    /// As [`Job::run`].
    unsafe fn dots(&self) {
        let depth: usize = self.products.iter().map(|p| p.k).sum();
        let blocks = self.n.div_ceil(DOT_COLUMNS);
        par::ranges(blocks, par::rows_grain(DOT_COLUMNS * depth / 4), |range| {
            for block in range {
                let start = block * DOT_COLUMNS;
                // SAFETY: by contract; blocks of columns are disjoint.
                unsafe { self.dot_block(start, DOT_COLUMNS.min(self.n - start)) }
            }
        });
    }

    /// `columns` elements of each row from column `first` on.
    ///
    /// # Safety
    /// As [`Job::dots`].
    unsafe fn dot_block(&self, first: usize, columns: usize) {
        scratch::with(2 * KC, |s| {
            let (sa, sb) = s.split_at_mut(KC);
            let mut sums = [[0.0f32; DOT_COLUMNS]; DOT_ROWS];
            // SAFETY: by contract.
            unsafe {
                if let Some(bias) = self.bias {
                    bias.load(first, &mut sums[0][..columns]);
                    (1..DOT_ROWS).for_each(|i| sums[i] = sums[0]);
                }
                for p in self.products {
                    for (i, sums) in sums[..self.m].iter_mut().enumerate() {
                        for k in (0..p.k).step_by(KC) {
                            let n = KC.min(p.k - k);
                            let a = p.a.src.read(i * p.a.rs + k, n, sa);
                            for (j, sum) in sums[..columns].iter_mut().enumerate() {
                                let b = p.b.src.read((first + j) * p.b.cs + k, n, sb);
                                *sum += p.alpha * reduce::dot(a, b);
                            }
                        }
                    }
                }
                for (i, sums) in sums[..self.m].iter().enumerate() {
                    self.c.store(i * self.ldc + first, &sums[..columns]);
                }
            }
        });
    }

    fn tiling(&self) -> Tiling {
        Tiling::new(self.m, self.n, self.products.iter().map(|p| p.k).sum())
    }

    /// # Safety
    /// As [`Job::run`], for the elements of this tile.
    unsafe fn tile(&self, tiling: &Tiling, t: usize) {
        let (i, m) = tiling.rows.part(t / tiling.columns.count);
        let (j, n) = tiling.columns.part(t % tiling.columns.count);
        let a_len = self.products.iter().map(|p| p.a.panel_floats(m)).max().unwrap_or(0);
        let b_len = self.products.iter().map(|p| p.b.panel_floats(n)).max().unwrap_or(0);
        let in_place = self.c.dtype() == DType::F32;
        let c_len = if in_place { 0 } else { m * n };
        let d_len = if self.products.iter().any(|p| p.dropout.is_some()) { m * n } else { 0 };
        scratch::with(a_len + b_len + c_len + d_len, |s| {
            let mut cut = Cut(s);
            let (pa, pb, pc, pd) = (cut.take(a_len), cut.take(b_len), cut.take(c_len), cut.take(d_len));
            // SAFETY: the tile lies within the result and no other task writes it.
            unsafe {
                let (c, ld) = if in_place {
                    (self.c.raw::<f32>(0, 0).as_mut_ptr().add(i * self.ldc + j), self.ldc)
                } else {
                    (pc.as_mut_ptr(), n)
                };
                let row = |r: usize| std::slice::from_raw_parts_mut(c.add(r * ld), n);
                let mut started = self.begin_tile(i, j, m, row, in_place);
                for p in self.products {
                    match p.dropout {
                        None => started |= product(p, (i, m), (j, n), (pa, pb), (c, ld), started),
                        Some(d) => {
                            if !started {
                                (0..m).for_each(|r| row(r).fill(0.0));
                                started = true;
                            }
                            if product(p, (i, m), (j, n), (pa, pb), (pd.as_mut_ptr(), n), false) {
                                for (r, part) in pd.chunks_exact_mut(n).enumerate() {
                                    d.apply((i + r) * self.n + j, part);
                                    reduce::axpy(1.0, part, row(r));
                                }
                            }
                        }
                    }
                }
                if !started {
                    (0..m).for_each(|r| row(r).fill(0.0));
                }
                if !in_place {
                    (0..m).for_each(|r| self.c.store((i + r) * self.ldc + j, row(r)));
                }
            }
        });
    }

    /// Sets the tile to what is there before the first product; false if that is nothing.
    ///
    /// # Safety
    /// As [`Job::tile`].
    unsafe fn begin_tile<'b>(
        &self,
        i: usize,
        j: usize,
        m: usize,
        row: impl Fn(usize) -> &'b mut [f32],
        in_place: bool,
    ) -> bool {
        if self.accumulate && !in_place {
            // SAFETY: by contract.
            (0..m).for_each(|r| unsafe { self.c.src().load((i + r) * self.ldc + j, row(r)) });
        }
        let Some(bias) = self.bias else { return self.accumulate };
        scratch::with(row(0).len(), |s| {
            // SAFETY: by contract.
            unsafe { bias.load(j, s) };
            for r in 0..m {
                if self.accumulate { reduce::axpy(1.0, s, row(r)) } else { row(r).copy_from_slice(s) }
            }
        });
        true
    }
}

/// Adds (or writes, unless `started`) a product's part of a tile; false if its depth is 0 and nothing was written.
///
/// # Safety
/// As [`Job::tile`].
unsafe fn product(
    p: &Product,
    (i, m): (usize, usize),
    (j, n): (usize, usize),
    (pa, pb): (&mut [f32], &mut [f32]),
    (c, ld): (*mut f32, usize),
    started: bool,
) -> bool {
    let step = if p.a.is_direct() && p.b.is_direct() { p.k.max(1) } else { KC };
    let mut add = started;
    for k in (0..p.k).step_by(step) {
        let kn = step.min(p.k - k);
        // SAFETY: by contract.
        unsafe {
            let (a, ars, acs) = p.a.block(i, k, m, kn, pa);
            let (b, brs, bcs) = p.b.block(k, j, kn, n, pb);
            kernel(m, n, kn, c, ld, add, a, (ars, acs), b, (brs, bcs), p.alpha);
        }
        add = true;
    }
    p.k > 0
}

/// `C (+)= alpha · A · B` on one thread, all `f32`; `C` is row-major with `ldc` elements a row, operands have
/// `(row, column)` strides.
///
/// # Safety
/// Addresses cover the extents; `c` overlaps neither operand.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn kernel(
    m: usize,
    n: usize,
    k: usize,
    c: *mut f32,
    ldc: usize,
    add: bool,
    a: *const f32,
    (ars, acs): (usize, usize),
    b: *const f32,
    (brs, bcs): (usize, usize),
    alpha: f32,
) {
    let s = |x: usize| x as isize;
    // SAFETY: by contract.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c,
            1,
            s(ldc),
            add,
            a,
            s(acs),
            s(ars),
            b,
            s(bcs),
            s(brs),
            1.0,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// An extent cut into parts of nearly equal length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts {
    n: usize,
    part: usize,
    count: usize,
}

impl Parts {
    /// Parts of at most `at_most`, a multiple of 16 but for the last.
    fn new(n: usize, at_most: usize) -> Parts {
        let count = n.div_ceil(at_most.max(1)).max(1);
        let part = n.div_ceil(count).next_multiple_of(16).min(n.max(1));
        Parts { n, part, count: n.div_ceil(part) }
    }

    fn part(&self, i: usize) -> (usize, usize) {
        let start = i * self.part;
        (start, self.part.min(self.n - start))
    }
}

/// How a result is cut into tiles: a function of the extents only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tiling {
    rows: Parts,
    columns: Parts,
}

impl Tiling {
    fn new(m: usize, n: usize, k: usize) -> Tiling {
        let (mut mt, mut nt) = (m.clamp(1, 256), n.clamp(1, 256));
        if m <= 128 {
            nt = n.clamp(1, TILE);
        } else if n <= 128 {
            mt = m.clamp(1, TILE);
        }
        while m.div_ceil(mt) * n.div_ceil(nt) < TILES && mt * nt * k > 2 * TILE_WORK && mt.max(nt) > 16 {
            if mt >= nt { mt = mt.div_ceil(2) } else { nt = nt.div_ceil(2) }
        }
        Tiling { rows: Parts::new(m, mt), columns: Parts::new(n, nt) }
    }

    fn count(&self) -> usize {
        self.rows.count * self.columns.count
    }
}
