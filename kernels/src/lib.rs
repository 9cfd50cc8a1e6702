//! What runs: kernels for each device and the compiled plans that name them.

pub mod cpu;
