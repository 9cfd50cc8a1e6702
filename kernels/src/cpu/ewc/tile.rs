//! What is done to one tile of the change, at each level of instructions: the change itself, weighted with the Fisher
//! information, and its share of both gradients. The products' depth is a rank or a side of a tile.

use crate::cpu::float::Src;
use crate::cpu::gemm;
use crate::cpu::simd::{Level, simd};
use kfc_graph::DType;

/// Most rows of a tile.
pub(super) const ROWS: usize = 32;

/// Most columns of a tile: with these rows it stays in L1 beside what it is multiplied by.
pub(super) const COLUMNS: usize = 128;

/// Columns of rows of the transposed `A` are padded to a multiple of this.
pub(super) const LANES: usize = 16;

/// The tile of `Δ = scale·B·A`, its penalty, and its gradient: `g = factor·F·Δ`.
pub(super) struct Change {
    /// Rows, at most [`ROWS`].
    pub(super) m: usize,
    /// Columns, at most [`COLUMNS`].
    pub(super) n: usize,
    pub(super) rank: usize,
    /// The tile's columns of `A`, with `a_row` elements from row to row.
    pub(super) a: *const f32,
    pub(super) a_row: usize,
    /// The tile's rows of `B`, dense.
    pub(super) b: *const f32,
    /// The tile of the Fisher information, `bf16` or `f32`, with `fisher_row` elements from row to row.
    pub(super) fisher: *const u8,
    pub(super) fisher_row: usize,
    pub(super) bf16: bool,
    pub(super) scale: f32,
    pub(super) factor: f32,
    /// `m` rows of [`COLUMNS`] elements, of which those beyond `n` may be written, too; or null if only the penalty is wanted.
    pub(super) g: *mut f32,
}

/// `dA (+)= Bᵀ·g`.
pub(super) struct GradA {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) rank: usize,
    /// As in [`Change`].
    pub(super) b: *const f32,
    /// As [`Change`] wrote it.
    pub(super) g: *const f32,
    /// The tile's columns of the gradient, with `da_row` elements from row to row.
    pub(super) da: *mut f32,
    pub(super) da_row: usize,
    /// Whether the gradient's content is added to.
    pub(super) add: bool,
    /// Where the next tile's Fisher information lies, with `next_row` bytes from row to row and `next_size` an element. A hint:
    /// the address need not be valid.
    pub(super) next: *const u8,
    pub(super) next_row: usize,
    pub(super) next_size: usize,
}

/// `dB (+)= g·Aᵀ`.
pub(super) struct GradB {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) rank: usize,
    /// The tile's rows of the transpose of `A`, of `at_row` elements: the rank, padded with zeros to a multiple of [`LANES`].
    pub(super) at: *const f32,
    pub(super) at_row: usize,
    /// As [`Change`] wrote it.
    pub(super) g: *const f32,
    /// The tile's rows of the gradient, dense.
    pub(super) db: *mut f32,
    /// Whether the gradient's content is added to.
    pub(super) add: bool,
}

/// The parts of a tile at one level.
///
/// # Safety
/// Of all three: the CPU has the instruction set, addresses cover the extents, and what is written overlaps nothing else.
pub(super) struct Kernels {
    /// Returns `Σ F·Δ²`.
    pub(super) change: unsafe fn(&Change) -> f64,
    pub(super) grad_a: unsafe fn(&GradA),
    pub(super) grad_b: unsafe fn(&GradB),
}

/// The parts of a tile at a level.
pub(super) fn kernels(level: Level) -> &'static Kernels {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Bf16 => &super::avx512::KERNELS,
        _ => &PRODUCTS,
    }
}

/// With the products of [`gemm`].
static PRODUCTS: Kernels = Kernels { change, grad_a, grad_b };

/// # Safety
/// See [`Kernels::change`].
unsafe fn change(t: &Change) -> f64 {
    let (mut read, mut rows) = ([0.0; COLUMNS], [0.0; ROWS * COLUMNS]);
    let fisher = Src::new(t.fisher, if t.bf16 { DType::Bf16 } else { DType::F32 });
    let mut total = 0.0;
    let to = if t.g.is_null() { rows.as_mut_ptr() } else { t.g };
    // SAFETY: by contract.
    unsafe {
        product((t.m, t.n, t.rank), (t.b, (t.rank, 1)), (t.a, (t.a_row, 1)), (to, COLUMNS), false, t.scale);
        for i in 0..t.m {
            let row = std::slice::from_raw_parts_mut(to.add(i * COLUMNS), t.n);
            let f = fisher.read(i * t.fisher_row, t.n, &mut read);
            total += weighted_squares(f, row);
            multiply(t.factor, f, row);
        }
    }
    total
}

/// # Safety
/// See [`Kernels::grad_a`].
unsafe fn grad_a(t: &GradA) {
    // SAFETY: by contract.
    unsafe {
        let (b, g) = ((t.b, (1, t.rank)), (t.g, (COLUMNS, 1)));
        product((t.rank, t.n, t.m), b, g, (t.da, t.da_row), t.add, 1.0);
    }
}

/// # Safety
/// See [`Kernels::grad_b`].
unsafe fn grad_b(t: &GradB) {
    // SAFETY: by contract.
    unsafe {
        let (g, at) = ((t.g, (COLUMNS, 1)), (t.at, (t.at_row, 1)));
        product((t.m, t.rank, t.n), g, at, (t.db, t.rank), t.add, 1.0);
    }
}

/// An operand and its strides.
type Operand = (*const f32, (usize, usize));

/// `C (+)= alpha · A · B` of extents `m`, `n` and the depth `k`.
///
/// # Safety
/// As [`gemm::kernel`].
unsafe fn product(
    (m, n, k): (usize, usize, usize),
    (a, a_strides): Operand,
    (b, b_strides): Operand,
    (c, ldc): (*mut f32, usize),
    add: bool,
    alpha: f32,
) {
    // SAFETY: by contract.
    unsafe { gemm::kernel(m, n, k, c, ldc, add, a, a_strides, b, b_strides, alpha) };
}

simd! {
    /// `Σ f·t²`
    fn weighted_squares(f: &[f32], t: &[f32]) -> f64 {
        let (pf, pt) = (f.chunks_exact(LANES), t.chunks_exact(LANES));
        let (rf, rt) = (pf.remainder(), pt.remainder());
        let mut acc = [0.0f32; LANES];
        for (f, t) in pf.zip(pt) {
            for l in 0..LANES {
                acc[l] += f[l] * (t[l] * t[l]);
            }
        }
        let rest: f64 = rf.iter().zip(rt).map(|(f, t)| f64::from(f * (t * t))).sum();
        acc.iter().map(|a| f64::from(*a)).sum::<f64>() + rest
    }

    /// `t *= factor · f`
    fn multiply(factor: f32, f: &[f32], t: &mut [f32]) {
        for (t, f) in t.iter_mut().zip(f) {
            *t *= factor * *f;
        }
    }
}
