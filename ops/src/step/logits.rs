//! Logits of every position of a few rows.
//!
//! Data: `tokens`, `positions`, `segments` `i32 [B,T]`. Output: `logits` `f32 [B,T,V]`.

use super::batch_inputs;
use crate::linear;
use crate::model::transformer::Transformer;
use crate::model::{LoraSpec, ModelConfig};
use kfc_graph::{Builder, DType, Graph, Result};

/// Builds the graph; weights are named with `prefix` (`student.` or `teacher.`).
///
/// # Errors
/// If the configuration contradicts itself.
pub fn logits_graph(
    config: &ModelConfig,
    prefix: &str,
    dtype: DType,
    lora: Option<&LoraSpec>,
    batch: usize,
    seq: usize,
) -> Result<Graph> {
    let mut graph = Graph::new("logits");
    let mut b = Builder::new(&mut graph);
    let inputs = batch_inputs(&mut b, batch, seq);
    let mut model = Transformer::new(config, prefix, dtype, seq).with_lora(lora, None);
    let hidden = model.hidden(&mut b, inputs, None)?;
    let w = model.head(&mut b)?;
    let logits = linear::linear(&mut b, hidden.last, w, None)?;
    let logits = b.cast(logits, DType::F32)?;
    graph.add_output("logits", logits, None);
    Ok(graph)
}
