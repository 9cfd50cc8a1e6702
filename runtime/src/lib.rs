//! Devices, executor, training loop, data loader and checkpoints.

pub mod data;
