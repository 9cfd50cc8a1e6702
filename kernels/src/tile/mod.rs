//! Tile programs: how a kernel of a GPU computes, between the graph (what is computed) and source text (which is only
//! printed).
//!
//! A program says what one block of threads does with tiles of elements: loads and stores with masks, arithmetic,
//! reductions, dot products, loops. It does not say which thread holds what. [`interp`] is its meaning and checks every
//! index; [`triton`] prints it as Triton and [`cuda`] as CUDA C++. [`programs`] writes programs for operations, [`lower`]
//! those of plans. [`header`] is what stands above a kernel in a file, and [`trial`] compares kernels that people wrote with
//! the program.
//!
//! Invariant: programs of a grid are independent: none reads what another one writes.

mod build;
pub mod choice;
pub mod chunk;
pub mod cuda;
pub mod header;
pub mod interp;
pub mod ir;
pub mod lower;
pub mod plain;
pub mod programs;
pub mod shortlist;
pub mod tiling;
pub mod trial;
pub mod triton;
mod verify;

pub use build::{Buffer, Builder};
pub use choice::{Choice, Choices};
pub use ir::Program;
pub use tiling::{Tiling, Tilings};

/// Why a program is wrong. A fault of the code that wrote it, not of its input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tile program `{program}`: {message}")]
pub struct TileError {
    /// The program.
    pub program: String,
    /// What is wrong.
    pub message: String,
}
