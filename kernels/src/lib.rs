//! What runs: kernels of each device, and plans compiled from graphs.

pub mod calibrate;
pub mod compile;
pub mod cpu;
pub mod cuda;
mod over;
pub mod plan;
pub mod tile;
pub mod timeline;

pub use cpu::KernelError;
