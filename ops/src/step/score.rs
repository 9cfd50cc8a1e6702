//! Log-likelihood of every labelled token, without ever holding the logits of a whole batch.
//!
//! Data: `tokens`, `positions`, `segments`, `labels` `i32 [B,T]` (shifted). Outputs: `logp` `f32 [B,T]` (nats, 0 where
//! the label is -100) and `greedy` `i32 [B,T]` (the likeliest token).

use super::{batch_inputs, data};
use crate::model::transformer::Transformer;
use crate::model::{LoraSpec, ModelConfig};
use crate::token_scores;
use kfc_graph::{Builder, DType, Graph, Result};

/// Builds the graph.
///
/// # Errors
/// If the configuration contradicts itself.
pub fn score_graph(
    config: &ModelConfig,
    dtype: DType,
    lora: Option<&LoraSpec>,
    batch: usize,
    seq: usize,
) -> Result<Graph> {
    let mut graph = Graph::new("score");
    let mut b = Builder::new(&mut graph);
    let inputs = batch_inputs(&mut b, batch, seq);
    let labels = data(&mut b, "labels", DType::I32, &[batch, seq]);
    let mut model = Transformer::new(config, "student.", dtype, seq).with_lora(lora, None);
    let hidden = model.hidden(&mut b, inputs, None)?;
    let w = model.head(&mut b)?;
    let scores = token_scores::token_scores(&mut b, hidden.last, w, labels)?;
    graph.add_output("logp", scores.logp, None);
    graph.add_output("greedy", scores.greedy, None);
    Ok(graph)
}
