//! What the benchmarks share: workloads, and folders that go away.
//!
//! `cargo bench -p kfc-benches` runs everything, `--bench step` one file, `-- small` what has that in its name, and
//! `-- --quick` gives a rough figure of each in seconds.

pub mod temp;
pub mod workloads;
