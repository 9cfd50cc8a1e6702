//! Programs as CUDA C++ source.
//!
//! A tile is an array of registers in each thread; `assign` decides in which layout, `print` writes loops over the
//! registers. Indices and masks are no tiles: they are computed from coordinates where they are used. Dots take their
//! operands from shared memory and use tensor cores for 16-bit floats; loops copy them some rounds ahead (`stages`), on Hopper
//! by a warp of its own where their matrices allow it (`bulk`).
//! Reductions have a fixed order, so results are the same bits each time. What is not plain C++ is behind the `kfc_` functions
//! of [`HEADERS`].
//!
//! Invariants: 16-bit floats and integers are exact; `f32` arithmetic may be contracted to fused multiply-adds, and `exp`
//! and the like are accurate to 2 units in the last place. Buffers start at multiples of 16 bytes, and may overlap where
//! the planner computes in place.

mod affine;
mod assign;
mod axis;
mod bulk;
mod express;
mod hopper;
mod layout;
mod loops;
mod print;
mod products;
mod range;
mod reduce;
mod shared;
mod stages;

pub use express::type_name;

use super::ir::Elem;
use super::{Program, TileError};
use crate::cuda::Arch;

/// What a printed source may include, by name: every one the first, those of Hopper both.
pub const HEADERS: [(&str, &str); 2] =
    [("kfc.cuh", include_str!("kfc.cuh")), ("hopper.cuh", include_str!("hopper.cuh"))];

/// Shared memory that a kernel can have without asking for it at launch.
const STATIC_SHARED: usize = 48 << 10;

/// Warps over rows and columns of a product's tile.
pub(super) fn warp_grid(m: usize, n: usize, warps: usize) -> (usize, usize) {
    layout::warp_grid(m, n, warps, false)
}

/// A buffer of 16-bit elements as a matrix, of which the hardware copies boxes into swizzled tiles: what
/// `cuTensorMapEncodeTiled` is told at launch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorMap {
    /// The buffer, which begins at a multiple of 16 bytes.
    pub param: usize,
    /// Its elements.
    pub elem: Elem,
    /// Columns and rows; what is copied from beyond them is zeros.
    pub extents: [usize; 2],
    /// Bytes from row to row, a multiple of 16.
    pub pitch: usize,
    /// Columns and rows of a box.
    pub tile: [usize; 2],
    /// Bytes of a box's row, within groups of eight of which parts of 16 bytes change places: 32, 64 or 128.
    pub swizzle: usize,
}

impl TensorMap {
    /// Bytes of a box.
    pub fn tile_bytes(&self) -> usize {
        self.tile[0] * self.tile[1] * self.elem.bytes()
    }

    /// What a source says of it, map number `i`.
    fn comment(&self, i: usize, buffer: &str) -> String {
        let ([columns, rows], [c, r]) = (self.extents, self.tile);
        format!(
            "// map{i}: {buffer} as {rows} x {columns}, rows {} bytes apart, in boxes of {r} x {c} swizzled over {} bytes\n",
            self.pitch, self.swizzle
        )
    }
}

/// A printed kernel and how it is launched: with pointers to the program's buffers in order, then its tensor maps by value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// Its source, which includes [`HEADERS`]; the kernel has the program's name.
    pub text: String,
    /// Blocks.
    pub grid: [usize; 3],
    /// Threads of a block.
    pub threads: usize,
    /// Bytes of shared memory to ask for at launch.
    pub dynamic_shared: usize,
    /// Slots of the rings that operands of dots go through; 1 without rings.
    pub stages: usize,
    /// Matrices that the hardware copies from, each a parameter behind the buffers. Kernels with such have a warp more than
    /// their program, which copies.
    pub maps: Vec<TensorMap>,
}

/// The source of a program for an architecture. On Hopper, products of 16-bit tiles with rows for whole groups of four warps
/// are `wgmma`; elsewhere, and of other tiles, `mma.sync`.
///
/// # Errors
/// If its tiles do not fit in shared memory.
pub fn print(p: &Program, arch: Arch) -> Result<Source, TileError> {
    print::print(p, arch)
}
