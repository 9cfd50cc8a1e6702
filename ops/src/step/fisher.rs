//! Diagonal Fisher information of one sample: the square of its gradient, added to accumulators.
//!
//! The sample is one row; its loss is the row's mean cross-entropy. Squaring the mean gradient of a batch would be
//! another, smaller quantity, so the graph has one row by construction.
//!
//! Data: `tokens`, `positions`, `segments`, `labels` `i32 [1,T]`, `w_ce` `f32 [1,T]`, `weight` `f32[1]` (one over the
//! number of samples). Outputs: `ce`, and the updated `fisher.P`.

use super::{batch_inputs, data};
use crate::model::transformer::Transformer;
use crate::model::{LoraSpec, ModelConfig};
use crate::{accumulate, head};
use kfc_graph::autodiff;
use kfc_graph::{Builder, DType, Graph, GraphError, InputKind, Phase, Result, TensorType, ValueId};

/// Builds the graph for the parameters named `wrt` (graph inputs of the forward pass).
///
/// # Errors
/// If a name is not part of the forward pass.
pub fn fisher_graph(
    config: &ModelConfig,
    dtype: DType,
    lora: Option<&LoraSpec>,
    seq: usize,
    wrt: &[String],
) -> Result<Graph> {
    let mut graph = Graph::new("fisher");
    let mut b = Builder::new(&mut graph);
    let batch = batch_inputs(&mut b, 1, seq);
    let labels = data(&mut b, "labels", DType::I32, &[1, seq]);
    let w_ce = data(&mut b, "w_ce", DType::F32, &[1, seq]);
    let weight = data(&mut b, "weight", DType::F32, &[1]);
    let one = b.scalar(1.0)?;
    let mut model = Transformer::new(config, "student.", dtype, seq).with_lora(lora, None);
    let hidden = model.hidden(&mut b, batch, None)?;
    let w = model.head(&mut b)?;
    b.set_scope("loss");
    let losses = head::head(&mut b, &head::Head { h: hidden.last, w, labels, w_ce, distillation: None })?;
    let values: Vec<ValueId> = wrt
        .iter()
        .map(|n| {
            let missing = || GraphError::Gradient(format!("`{n}` is not part of the forward pass"));
            model.inputs().get(n).copied().ok_or_else(missing)
        })
        .collect::<Result<_>>()?;
    let grads = autodiff::backward(&mut graph, &[(losses.ce, one)], &values)?;
    let mut b = Builder::new(&mut graph);
    b.phase = Phase::Backward;
    b.set_scope("accumulate");
    for (name, g) in wrt.iter().zip(grads) {
        let Some(g) = g else { continue };
        let ty = TensorType::new(DType::F32, b.ty(g).dims.clone());
        let name = format!("fisher.{name}");
        let acc = b.graph().add_input(name.clone(), InputKind::State, ty);
        let sum = accumulate::accumulate_square(&mut b, acc, g, weight)?;
        b.graph().add_output(name, sum, Some(acc));
    }
    graph.add_output("ce", losses.ce, None);
    Ok(graph)
}
