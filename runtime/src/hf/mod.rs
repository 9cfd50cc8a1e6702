//! Files in the layouts of Hugging Face and PEFT: configurations, weights, adapters.
//!
//! Invariants:
//! - whatever bytes a file holds, reading it gives data or an error, never a panic, and allocates in proportion to the
//!   file;
//! - weights are mapped, not copied;
//! - what is written is bit for bit the same for the same content.

pub mod folder;
pub mod header;
pub mod peft;
pub mod weights;
pub mod write;

pub use folder::{ModelFolder, write_model};
pub use header::{FileDType, dtype_of, file_dtype};
pub use peft::{Adapter, AdapterConfig, LoraPair, Targets, read_adapter, write_adapter};
pub use weights::{TensorView, WeightFile, Weights};
pub use write::{LogitsWriter, TensorFileWriter, TensorOut, TensorSpec, write_safetensors, write_sharded};

#[cfg(test)]
mod tests_models;
#[cfg(test)]
mod tests_weights;
