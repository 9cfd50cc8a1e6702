//! Criterion benches of kernels, passes and whole steps.
//!
//! `cargo bench -p kfc-benches` runs everything, `--bench step` one file, `-- small` what has that in its name, and
//! `-- --quick` gives a rough figure of each in seconds. Workloads are those of `kfc bench`.

pub mod operation;

pub use kfc::bench::{temp, workloads};
