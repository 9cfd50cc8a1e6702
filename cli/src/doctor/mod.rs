//! What `kfc doctor` looks at: the disk, the GPU, and whether a job fits. What the CPU and the memory are, the runtime says.

pub(crate) mod disk;
pub(crate) mod fit;
pub(crate) mod gpu;
