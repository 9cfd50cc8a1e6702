//! What runs a compiled plan: devices, executor, training loop, data loader, model folders and checkpoints.
//!
//! Invariants:
//! - whatever a run writes is complete or not there;
//! - the same job gives the same bytes for any number of threads, after a rerun, and after a kill and a resume;
//! - a tensor that a file already holds in the right type is mapped, not copied.

pub mod accounting;
pub mod alone;
pub mod calibration;
pub mod checkpoint;
pub mod config;
mod counted;
pub mod data;
pub mod device;
pub mod edited;
pub mod encoder;
pub mod error;
pub mod eval;
pub mod exec;
pub mod files;
pub mod fisher;
pub mod generate;
pub mod hf;
pub mod inference;
pub mod inspect;
mod kernel_cache;
pub mod logits;
pub mod lookup;
pub mod machine;
mod mapped;
pub mod memory;
pub mod merge;
pub mod models;
pub mod nvrtc;
pub mod plan_set;
pub mod profile;
pub mod quantile;
pub mod random;
pub mod samples;
pub mod session;
pub mod teach;
pub mod teacher_cache;
#[cfg(test)]
pub(crate) mod testing;
pub mod train;
pub mod triton;
pub mod tuning;

pub use counted::counted;
pub use error::{Result, RunError};
