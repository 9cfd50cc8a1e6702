//! What a model makes of one row of tokens: attention weights, gradient × input, and what each part of the model adds to
//! the logit of one token at one position.
//!
//! Data: `tokens`, `positions`, `segments`, `labels` `i32 [1,T]` (shifted), `w_ce` `f32 [1,T]`, `pick` `f32 [1,T]` (1 at
//! the position asked about, else 0) and `target` `f32 [1,V]` (1 at the token asked about, else 0).
//!
//! Outputs: `logits` `f32 [1,V]` at the position; `ce` `f32[1]`; `attribution` and `sensitivity` `f32 [1,T]`: the sum and
//! the 2-norm over the hidden axis of gradient × embedding and of the gradient (Simonyan et al. 2014; Shrikumar et al.
//! 2016), of the logit of `target` or of `ce`; `embed`, `attn.L` and `mlp.L` `f32 [1,H]`: what is added to the residual
//! stream at the position; `residual` `f32 [1,H]`: their sum, before the last norm; `direction` `f32 [1,H]`: the row of
//! the output weight of `target`; and `attention.L` `f32 [1,heads,T,T]`.

use super::{batch_inputs, data};
use crate::attention::attention_weights;
use crate::common::{f32, row_sum, spread, square};
use crate::model::transformer::Transformer;
use crate::model::{LoraSpec, ModelConfig};
use crate::{head, linear};
use kfc_graph::autodiff;
use kfc_graph::{Builder, DType, Graph, GraphError, Phase, Result, ValueId};

/// What the gradient is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// The logit of the token asked about.
    Logit,
    /// The cross-entropy of the row.
    Loss,
}

/// Builds the graph.
///
/// # Errors
/// If the configuration contradicts itself.
pub fn inspect_graph(
    config: &ModelConfig,
    dtype: DType,
    lora: Option<&LoraSpec>,
    seq: usize,
    of: Of,
) -> Result<Graph> {
    let mut graph = Graph::new("inspect");
    let mut b = Builder::new(&mut graph);
    let inputs = batch_inputs(&mut b, 1, seq);
    let labels = data(&mut b, "labels", DType::I32, &[1, seq]);
    let w_ce = data(&mut b, "w_ce", DType::F32, &[1, seq]);
    let pick = data(&mut b, "pick", DType::F32, &[1, seq]);
    let target = data(&mut b, "target", DType::F32, &[1, config.vocab_size]);
    let one = b.scalar(1.0)?;
    let mut model = Transformer::new(config, "student.", dtype, seq).with_lora(lora, None);
    let hidden = model.hidden(&mut b, inputs, None)?;
    let w = model.head(&mut b)?;

    b.set_scope("taps");
    let mut outputs = Vec::new();
    for (layer, parts) in hidden.parts.iter().enumerate() {
        outputs.push((format!("attention.{layer}"), attention_weights(&mut b, &parts.attends)?));
        outputs.push((format!("attn.{layer}"), at(&mut b, parts.attention, pick)?));
        outputs.push((format!("mlp.{layer}"), at(&mut b, parts.mlp, pick)?));
    }
    outputs.push(("embed".into(), at(&mut b, hidden.embedded, pick)?));
    let residual = hidden.layers.last().copied().unwrap_or(hidden.embedded);
    outputs.push(("residual".into(), at(&mut b, residual, pick)?));
    let typed = b.cast(target, dtype)?;
    outputs.push(("direction".into(), b.matmul(typed, w, false, false, DType::F32)?));

    b.set_scope("target");
    let last = at(&mut b, hidden.last, pick)?;
    let last = b.cast(last, dtype)?;
    let logits = linear::linear(&mut b, last, w, None)?;
    let logits = f32(&mut b, logits)?;
    outputs.push(("logits".into(), logits));
    let chosen = b.mul(logits, target)?;
    let logit = b.sum_all(chosen)?;
    let losses = head::head(&mut b, &head::Head { h: hidden.last, w, labels, w_ce, distillation: None })?;
    outputs.push(("ce".into(), losses.ce));

    let seed = match of {
        Of::Logit => logit,
        Of::Loss => losses.ce,
    };
    let grads = autodiff::backward(&mut graph, &[(seed, one)], &[hidden.embedded])?;
    let missing = || GraphError::Gradient("nothing flows back to the embedded tokens".into());
    let g = grads[0].ok_or_else(missing)?;
    let mut b = Builder::new(&mut graph);
    b.phase = Phase::Backward;
    b.set_scope("attribution");
    let (g, x) = (f32(&mut b, g)?, f32(&mut b, hidden.embedded)?);
    let product = b.mul(g, x)?;
    let squares = square(&mut b, g)?;
    let squares = over_hidden(&mut b, squares)?;
    outputs.push(("attribution".into(), over_hidden(&mut b, product)?));
    outputs.push(("sensitivity".into(), b.sqrt(squares)?));
    outputs.into_iter().for_each(|(name, v)| graph.add_output(name, v, None));
    Ok(graph)
}

/// The row of x `[1,T,H]` where `pick` `[1,T]` is 1: `f32 [1,H]`.
fn at(b: &mut Builder<'_>, x: ValueId, pick: ValueId) -> Result<ValueId> {
    let [rows, seq, width] = [0, 1, 2].map(|axis| b.ty(x).dims[axis]);
    let pick = b.reshape(pick, &[rows, seq, 1])?;
    let pick = spread(b, pick, width)?;
    let x = f32(b, x)?;
    let picked = b.mul(x, pick)?;
    let sum = b.reduce_sum(picked, &[1])?;
    b.reshape(sum, &[rows, width])
}

/// Sum of x `[1,T,H]` over H: `[1,T]`.
fn over_hidden(b: &mut Builder<'_>, x: ValueId) -> Result<ValueId> {
    let dims = b.ty(x).dims[..2].to_vec();
    let sum = row_sum(b, x)?;
    b.reshape(sum, &dims)
}
