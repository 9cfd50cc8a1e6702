//! Whole programs: the graphs that a run is made of.
//!
//! A training step runs [`train`] once a micro-batch (forward, losses, backward, gradients added to accumulators) and
//! [`update`] once (penalties, gradient norm, clipping, AdamW). [`fisher`], [`score`], [`logits`], [`inspect`] and
//! [`decode`] are the programs of the other commands.
//!
//! Names of graph inputs are the interface to the runtime:
//! `student.*`, `teacher.*` weights; `lora.*` adapters; `projector.N.weight`; `grad.P`, `m.P`, `v.P`, `lr_scale.P` of a
//! trained parameter `P`; `master.P` its f32 copy when `P` itself is kept in 16 bits; `fisher.*`, `anchor.*`;
//! `embedded.*` embedded tokens; and the data that each module lists.

pub mod decode;
pub mod fisher;
pub mod inspect;
pub mod logits;
pub mod score;
pub mod train;
pub mod update;

use crate::model::transformer::BatchInputs;
use kfc_graph::{Builder, DType, InputKind, TensorType, ValueId};

/// A parameter that a step trains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainedParam {
    /// Graph input of the forward pass (`lora.…`, `student.…` or `projector.…`).
    pub name: String,
    /// Shape.
    pub dims: Vec<usize>,
    /// Weight decay applies.
    pub decay: bool,
}

impl TrainedParam {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }
}

fn data(b: &mut Builder<'_>, name: &str, dtype: DType, dims: &[usize]) -> ValueId {
    b.graph().add_input(name, InputKind::Data, TensorType::new(dtype, dims))
}

fn batch_inputs(b: &mut Builder<'_>, batch: usize, seq: usize) -> BatchInputs {
    BatchInputs {
        tokens: data(b, "tokens", DType::I32, &[batch, seq]),
        positions: data(b, "positions", DType::I32, &[batch, seq]),
        segments: data(b, "segments", DType::I32, &[batch, seq]),
    }
}
