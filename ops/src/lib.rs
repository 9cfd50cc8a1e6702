//! What kfc computes: composite operations, losses and model families.
//!
//! An operation is one file: a unit struct that implements [`kfc_graph::OpDef`], a `static` of it, and a
//! typed function that appends it to a graph. Its meaning is its decomposition into primitives; backends
//! replace it by kernels. A file holds an operation together with its backward siblings.
//! [`registry::registry`] lists them all.
//!
//! Invariants:
//! - decompositions compute in f32 and round to the activation type once, at the end;
//! - gradients of weights are f32, gradients of activations have the activation's type;
//! - a gradient that an operation does not define is an error when it is asked for, never a silent zero.

mod common;

pub mod accumulate;
pub mod activation;
pub mod adamw;
pub mod attention;
pub mod embedding;
pub mod ewc;
pub mod ewc_delta;
pub mod feature_alignment;
pub mod head;
pub mod kv_append;
pub mod layer_norm;
pub mod linear;
pub mod lora_linear;
pub mod model;
pub mod penalised_norm;
pub mod registry;
pub mod rms_norm;
pub mod rope;
pub mod samples;
pub mod select_rows;
pub mod step;
pub mod sum_squares;
pub mod swiglu;
pub mod token_scores;

pub use registry::registry;
