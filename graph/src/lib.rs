//! The IR of kfc and everything that is done to it before a device is known.
//!
//! A [`Graph`] is a list of nodes in topological order over immutable values with static shapes. A node applies an
//! [`Op`]: either one of the closed set of primitives ([`Prim`]), whose meaning is the f64 interpreter in [`interp`], or
//! a composite ([`OpDef`]), whose meaning is its decomposition into primitives.
//!
//! Invariants:
//! - nodes stand in topological order; a value is defined once, before its first use;
//! - every pass is a function from a graph to a new graph that [`verify::verify`] accepts;
//! - nothing here knows a device, a file format or a model family.

pub mod attrs;
pub mod autodiff;
pub mod budget;
pub mod builder;
pub mod cost;
pub mod error;
pub mod fused;
pub mod graph;
pub mod group;
pub mod interp;
pub mod memory;
pub mod op;
pub mod passes;
pub mod prim;
mod prim_cost;
pub mod schedule;
pub mod text;
pub mod types;
pub mod verify;

pub use attrs::{AttrValue, Attrs};
pub use builder::Builder;
pub use error::{GraphError, Result};
pub use fused::Fused;
pub use graph::{Def, Graph, Input, InputKind, Node, NodeId, Output, Phase, ValueId};
pub use group::Group;
pub use op::{Composite, Cost, Op, OpDef, Registry, Sample, SampleInput, Vjp, VjpArgs};
pub use prim::{CmpOp, Prim};
pub use types::{DType, TensorType};
