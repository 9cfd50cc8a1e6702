//! Criterion benches of kernels, passes and whole steps.
//!
//! `cargo bench -p kfc-benches` runs everything, `--bench step` one file, `-- small` what has that in its name, and
//! `-- --quick` gives a rough figure of each in seconds. Workloads are those of `kfc bench`. `--bench recompute` is none of
//! criterion's: it times plans in processes of their own.

pub mod compare;
pub mod limits;
pub mod lora;
pub mod operands;

pub mod attention;

pub mod bandwidth;

pub mod operation;

pub use kfc::bench::{temp, workloads};
