//! Log-likelihoods, without ever holding the logits of a whole batch: of every labelled token, or of single tokens at
//! single places.
//!
//! Of [`score_graph`], data: `tokens`, `positions`, `segments`, `labels` `i32 [B,T]` (shifted). Outputs: `logp` `f32 [B,T]` (nats, 0 where
//! the label is -100) and `greedy` `i32 [B,T]` (the likeliest token).

use super::{batch_inputs, data};
use crate::embedding;
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

/// The log-probability of chosen tokens at chosen places; the output layer sees these places alone. Data beside `tokens`,
/// `positions` and `segments` `i32 [B,T]`: `at` `i32 [B,K]` (places in `0..B·T`) and `labels` `i32 [B,K]` (the tokens, or
/// -100). Output: `logp` `f32 [B,K]` (nats, 0 where the label is -100).
///
/// # Errors
/// If the configuration contradicts itself.
pub fn picks_graph(
    config: &ModelConfig,
    dtype: DType,
    lora: Option<&LoraSpec>,
    batch: usize,
    seq: usize,
    picks: usize,
) -> Result<Graph> {
    let mut graph = Graph::new("picks");
    let mut b = Builder::new(&mut graph);
    let inputs = batch_inputs(&mut b, batch, seq);
    let at = data(&mut b, "at", DType::I32, &[batch, picks]);
    let labels = data(&mut b, "labels", DType::I32, &[batch, picks]);
    let mut model = Transformer::new(config, "student.", dtype, seq).with_lora(lora, None);
    let hidden = model.hidden(&mut b, inputs, None)?;
    let width = b.ty(hidden.last).dims[2];
    let rows = b.reshape(hidden.last, &[batch * seq, width])?;
    let picked = embedding::embedding(&mut b, rows, at)?;
    let w = model.head(&mut b)?;
    let scores = token_scores::token_scores(&mut b, picked, w, labels)?;
    graph.add_output("logp", scores.logp, None);
    Ok(graph)
}
