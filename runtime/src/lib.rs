//! What runs a compiled plan: devices, executor, training loop, data loader, model folders and checkpoints.

pub mod config;
