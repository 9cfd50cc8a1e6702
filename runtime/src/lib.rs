//! What runs a compiled plan: devices, executor, training loop, data loader, model folders and checkpoints.

pub mod checkpoint;
pub mod config;
pub mod files;
pub mod hf;
