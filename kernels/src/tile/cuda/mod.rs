//! Programs as CUDA C++ source.
//!
//! A tile is an array of registers in each thread; `assign` decides in which layout, `print` writes loops over the
//! registers. Indices and masks are no tiles: they are computed from coordinates where they are used. Dots take their
//! operands from shared memory and use tensor cores for 16-bit floats; loops copy them some rounds ahead (`stages`).
//! Reductions have a fixed order, so results are the same bits each time. What is not plain C++ is behind the `kfc_` functions
//! of [`HEADERS`].
//!
//! Invariants: 16-bit floats and integers are exact; `f32` arithmetic may be contracted to fused multiply-adds, and `exp`
//! and the like are accurate to 2 units in the last place. Buffers start at multiples of 16 bytes, and may overlap where
//! the planner computes in place.

mod assign;
mod axis;
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

/// A printed kernel and how it is launched: with pointers to the program's buffers in order.
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
}

/// The source of a program for an architecture. On Hopper, products of 16-bit tiles with rows for whole groups of four warps
/// are `wgmma`; elsewhere, and of other tiles, `mma.sync`.
///
/// # Errors
/// If its tiles do not fit in shared memory.
pub fn print(p: &Program, arch: Arch) -> Result<Source, TileError> {
    print::print(p, arch)
}
