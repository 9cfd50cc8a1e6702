//! A piece of a sequence with a key-value cache: the prompt in pieces, then one token at a time.
//!
//! Data: `tokens`, `positions`, `segments` `i32 [B,T]`; `start` `i32 [B]` (first cache row written); `cache_segments`,
//! `cache_positions` `i32 [B,C]` (after this piece is in; -1 is empty); `last` `i32 [B]` (which of the `T` positions is
//! read). State: `cache.L.k`, `cache.L.v` `[B,C,W]`. Output: `logits` `f32 [B,1,V]` at `last`.

use super::{batch_inputs, data};
use crate::model::transformer::{CacheInputs, Transformer};
use crate::model::{LoraSpec, ModelConfig};
use crate::{linear, select_rows};
use kfc_graph::{Builder, DType, Graph, Result};

/// Builds the graph for pieces of `seq` tokens and caches of `capacity` tokens.
///
/// # Errors
/// If the configuration contradicts itself.
pub fn decode_graph(
    config: &ModelConfig,
    dtype: DType,
    lora: Option<&LoraSpec>,
    batch: usize,
    seq: usize,
    capacity: usize,
) -> Result<Graph> {
    let mut graph = Graph::new("decode");
    let mut b = Builder::new(&mut graph);
    let inputs = batch_inputs(&mut b, batch, seq);
    let cache = CacheInputs {
        capacity,
        start: data(&mut b, "start", DType::I32, &[batch]),
        segments: data(&mut b, "cache_segments", DType::I32, &[batch, capacity]),
        positions: data(&mut b, "cache_positions", DType::I32, &[batch, capacity]),
    };
    let last = data(&mut b, "last", DType::I32, &[batch]);
    let mut model = Transformer::new(config, "student.", dtype, capacity).with_lora(lora, None);
    let hidden = model.hidden(&mut b, inputs, Some(cache))?;
    let row = select_rows::select_rows(&mut b, hidden.last, last)?;
    let w = model.head(&mut b)?;
    let logits = linear::linear(&mut b, row, w, None)?;
    let logits = b.cast(logits, DType::F32)?;
    let caches: Vec<_> = model.caches().to_vec();
    for (state, updated) in caches {
        let name = graph.inputs().iter().find(|i| i.value == state).map_or(String::new(), |i| i.name.clone());
        graph.add_output(name, updated, Some(state));
    }
    graph.add_output("logits", logits, None);
    Ok(graph)
}
