//! Model families: from a Hugging Face `config.json` to a forward graph.
//!
//! Nothing here reads files or holds weights: a weight is a graph input named after its tensor.

pub mod config;
pub mod encoder;
pub mod encoder_config;
pub mod lora;
pub mod names;
pub mod rope;
pub mod transformer;

pub use config::{Family, ModelConfig, ModelError};
pub use encoder_config::{EncoderConfig, EncoderFamily, Problem};
pub use lora::{LoraSpec, resolve_targets};
pub use names::{Module, Parameter, ParameterKind};
pub use rope::Rope;
