//! Matrix products: `C = Σ αᵢ·Aᵢ·Bᵢ (+ bias) (+ C)` with operands of any float type, summed in `f32`.
//!
//! The result is cut into parts; each is computed by one thread from the first to the last product, and within a product in
//! order of depth, so that the bits do not depend on how it is cut (`blocked`, `tiling`).
//! Operands are copied into panels (`pack`) for micro-kernels that hold a part of the result in registers (`micro`).
//! Products of two `bf16` operands are taken as they are where the CPU multiplies `bf16` (AVX-512 BF16, NEON BF16); all others are
//! converted to `f32` in the panels. Results that are not `f32` are rounded once, at the end. Few rows are computed as dot
//! products without panels.

use crate::cpu::dropout::Dropout;
use crate::cpu::float::{Dst, Src};
use crate::cpu::simd::{self, Level};
use crate::cpu::{choice, par, reduce, scratch};
use kfc_graph::DType;
use micro::Isa;

// Some of what micro-kernels are told only those for x86-64 use.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
mod ahead;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_pair;
mod blocked;
mod engine;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
mod micro;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) mod narrow;
#[cfg(target_arch = "x86_64")]
mod narrow_avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
mod phase;
mod spread;
#[cfg(target_arch = "x86_64")]
mod spread_avx512;
#[cfg(test)]
mod tests;
mod tiling;

/// Units of depth of a panel; also elements that are converted at once.
const KC: usize = 256;

/// Rows of a result up to which columns are computed as dot products ([`Job::dots`]).
const DOT_ROWS: usize = 4;

/// Rows up to which a job is turned in any case, if there are more columns: it packs no more than these rows then.
const FEW_ROWS: usize = 128;

/// Depth up to which a turned job packs its left operand where it cannot be read in place: that of adapters.
const SHALLOW: usize = 64;

/// Most products of a turned job.
const TURNED_PRODUCTS: usize = 4;

/// Most multiply-adds of a product that is one task where there are several products.
const ONE_TASK: usize = 1 << 21;

/// Columns of a task of dot products.
const DOT_COLUMNS: usize = 32;

/// Most scratch of one thread: packed operands and sums of what it computes.
pub const SCRATCH_BYTES: usize = tiling::SCRATCH * size_of::<f32>();

pub(crate) use engine::{Engine, Panels};

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
    /// Whether the result is stored transposed: `c` then has `n` rows of `m`.
    pub(crate) turned: bool,
    /// Whether few rows may be computed as dot products, which add in another order. Not where the result must not depend on
    /// the number of rows, or on how a weight is read.
    pub(crate) dots: bool,
}

impl<'a> Job<'a> {
    /// A dense result without bias.
    pub(crate) fn new(m: usize, n: usize, products: &'a [Product], c: Dst) -> Job<'a> {
        Job { m, n, products, bias: None, accumulate: false, c, ldc: n, turned: false, dots: true }
    }

    /// Runs all parts in parallel.
    ///
    /// # Safety
    /// Operands and result have the extents stated, the result overlaps no operand, and nothing else uses it.
    pub(crate) unsafe fn run(&self) {
        // SAFETY: by contract.
        unsafe { self.run_at(simd::level()) }
    }

    /// [`Job::run`] with instructions up to a level.
    ///
    /// # Safety
    /// As there; the CPU has that level.
    unsafe fn run_at(&self, level: Level) {
        if self.m == 0 || self.n == 0 {
            return;
        }
        if self.is_dots() {
            // SAFETY: by contract.
            return unsafe { self.dots(micro::isa(level)) };
        }
        let isa = micro::isa(level);
        let is_few = self.m <= FEW_ROWS && self.m < self.n;
        if (is_few || choice::current().turned) && self.turns(isa) {
            let turn = |p: &Product| Product { a: p.b.t(), b: p.a.t(), ..*p };
            let mut products = [self.products[0]; TURNED_PRODUCTS];
            products.iter_mut().zip(self.products).for_each(|(to, p)| *to = turn(p));
            let products = &products[..self.products.len()];
            let job = Job { m: self.n, n: self.m, products, turned: true, ..*self };
            // SAFETY: by contract.
            return unsafe { blocked::run(&job, isa, false) };
        }
        // SAFETY: by contract.
        unsafe { blocked::run(self, isa, false) }
    }

    /// Whether the transposed result can be computed instead, with right operands read where they lie, all but shallow ones.
    fn turns(&self, isa: &Isa) -> bool {
        let fits = |p: &Product| {
            let plain = p.dropout.is_none() && p.a.dropout.is_none() && p.b.dropout.is_none();
            let turned = Product { a: p.b.t(), b: p.a.t(), ..*p };
            (plain, plain && phase::is_direct(&turned, isa))
        };
        let count = self.products.len();
        let mut any = false;
        let all = self.products.iter().all(|p| {
            let (plain, direct) = fits(p);
            any |= direct;
            direct || (plain && p.k <= SHALLOW)
        });
        !self.accumulate && (1..=TURNED_PRODUCTS).contains(&count) && all && any
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
        self.dots && self.m <= DOT_ROWS && !self.accumulate && self.products.iter().all(fits)
    }

    /// Each element as a dot product: reads the right operand once, which is all the work with few rows.
    ///
    /// # Safety
    /// As [`Job::run`].
    unsafe fn dots(&self, isa: &Isa) {
        let depth: usize = self.products.iter().map(|p| p.k).sum();
        let blocks = self.n.div_ceil(DOT_COLUMNS);
        par::ranges(blocks, par::rows_grain(DOT_COLUMNS * depth / 4), |range| {
            for block in range {
                let start = block * DOT_COLUMNS;
                // SAFETY: by contract; blocks of columns are disjoint.
                unsafe { self.dot_block(isa, start, DOT_COLUMNS.min(self.n - start)) }
            }
        });
    }

    /// `columns` elements of each row from column `first` on.
    ///
    /// # Safety
    /// As [`Job::dots`].
    unsafe fn dot_block(&self, isa: &Isa, first: usize, columns: usize) {
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
                    let is_bf16 = p.a.src.dtype() == DType::Bf16 && p.b.src.dtype() == DType::Bf16;
                    for (i, sums) in sums[..self.m].iter_mut().enumerate() {
                        if let (true, Some(dot)) = (is_bf16, isa.dot) {
                            let a = p.a.src.raw(i * p.a.rs, p.k);
                            for (j, sum) in sums[..columns].iter_mut().enumerate() {
                                *sum += p.alpha * dot(a, p.b.src.raw((first + j) * p.b.cs, p.k));
                            }
                            continue;
                        }
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
}

/// Floats from row to row of a matrix with that many columns, so that its rows can be read in place, as `f32` or `bf16`.
pub(crate) fn row_pitch(columns: usize) -> usize {
    let line = 64 / size_of::<f32>();
    if (columns * size_of::<f32>()).is_multiple_of(phase::CROWDED) { columns + line } else { columns }
}

/// Whether `bf16` operands are multiplied as they are.
pub(crate) fn multiplies_bf16() -> bool {
    micro::isa(simd::level()).pair.is_some()
}

/// Whether a product of these extents is done by one task, so that several are better run side by side.
pub(crate) fn is_one_task(m: usize, n: usize, k: usize) -> bool {
    (m * n).saturating_mul(k) <= ONE_TASK
}

/// `C (+)= alpha · A · B`, all `f32`, small enough for one task; `C` is row-major with `ldc` elements a row, operands have
/// `(row, column)` strides, one of which is 1.
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
    let mat = |p: *const f32, (rs, cs): (usize, usize)| {
        let src = Src::new(p.cast_mut().cast(), DType::F32);
        Mat { src, rs, cs, dropout: None }
    };
    let products = [Product { alpha, ..Product::new(mat(a, (ars, acs)), mat(b, (brs, bcs)), k) }];
    let c = Dst::new(c.cast(), DType::F32);
    let job = Job { accumulate: add, ldc, ..Job::new(m, n, &products, c) };
    // SAFETY: by contract.
    unsafe { blocked::run(&job, micro::isa(simd::level()), true) }
}
