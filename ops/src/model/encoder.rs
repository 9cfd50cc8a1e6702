//! The encoder of the BERT family with its classification head, as a forward graph.
//!
//! Attention sees both ways: all positions that the attention operation is given are equal, so only segments tell what a
//! token sees. Names of weights are `encoder.` and the tensor's name.

use super::encoder_config::EncoderConfig;
use crate::activation::Activation;
use crate::{attention, embedding, layer_norm, linear, select_rows};
use kfc_graph::{Builder, DType, Graph, InputKind, Result, TensorType, ValueId};

/// What names of weights begin with.
pub const PREFIX: &str = "encoder.";

/// Logits of `batch` texts of at most `seq` tokens. Data: `tokens`, `positions` (rows of the position embedding) and
/// `segments` `i32 [B,T]`, where -1 is padding. The first token of each text is its summary. Output: `logits`
/// `f32 [B,labels]`.
///
/// # Errors
/// If the configuration contradicts itself.
pub fn classify_graph(config: &EncoderConfig, dtype: DType, batch: usize, seq: usize) -> Result<Graph> {
    let mut graph = Graph::new("classify");
    let mut b = Builder::new(&mut graph);
    let mut data =
        |name: &str| b.graph().add_input(name, InputKind::Data, TensorType::new(DType::I32, [batch, seq]));
    let (tokens, positions, segments) = (data("tokens"), data("positions"), data("segments"));
    let encoder = Encoder { config, dtype, segments };
    let mut x = encoder.embed(&mut b, tokens, positions)?;
    for layer in 0..config.layers {
        x = encoder.layer(&mut b, layer, x)?;
    }
    let logits = encoder.head(&mut b, x)?;
    graph.add_output("logits", logits, None);
    Ok(graph)
}

struct Encoder<'a> {
    config: &'a EncoderConfig,
    dtype: DType,
    segments: ValueId,
}

impl Encoder<'_> {
    fn embed(&self, b: &mut Builder<'_>, tokens: ValueId, positions: ValueId) -> Result<ValueId> {
        b.set_scope("embed");
        let (c, base) = (self.config, self.config.base());
        let dims = b.ty(tokens).dims.clone();
        let table = |b: &mut Builder<'_>, name: &str, rows: usize| {
            self.weight(b, &format!("{base}embeddings.{name}_embeddings.weight"), &[rows, c.hidden_size])
        };
        let words = table(b, "word", c.vocab_size)?;
        let words = embedding::embedding(b, words, tokens)?;
        let places = table(b, "position", c.position_rows)?;
        let places = embedding::embedding(b, places, positions)?;
        let types = table(b, "token_type", c.type_rows)?;
        let first = b.slice(types, 0, 0, 1)?;
        let first = b.reshape(first, &[1, 1, c.hidden_size])?;
        let first = b.broadcast(first, &[dims[0], dims[1], c.hidden_size])?;
        // In the order in which transformers adds them.
        let x = b.add(words, first)?;
        let x = b.add(x, places)?;
        self.norm(b, &format!("{base}embeddings.LayerNorm"), x)
    }

    fn layer(&self, b: &mut Builder<'_>, layer: usize, x: ValueId) -> Result<ValueId> {
        let c = self.config;
        let at = |part: &str| c.layer_path(layer, part);
        let (h, inner) = (c.hidden_size, c.intermediate_size);
        b.set_scope(&format!("layers.{layer}.attn"));
        let q = self.project(b, &at("attention.self.query"), x, [h, h])?;
        let k = self.project(b, &at("attention.self.key"), x, [h, h])?;
        let v = self.project(b, &at("attention.self.value"), x, [h, h])?;
        let nowhere = b.constant(b.ty(self.segments).clone(), 0.0)?;
        let args = attention::Attention {
            q,
            k,
            v,
            seg_q: self.segments,
            pos_q: nowhere,
            seg_k: self.segments,
            pos_k: nowhere,
            heads: c.heads,
            kv_heads: c.heads,
            scale: 1.0 / ((h / c.heads) as f64).sqrt(),
        };
        let a = attention::attention(b, &args)?;
        let a = self.project(b, &at("attention.output.dense"), a, [h, h])?;
        let a = b.add(a, x)?;
        let x = self.norm(b, &at("attention.output.LayerNorm"), a)?;

        b.set_scope(&format!("layers.{layer}.mlp"));
        let f = self.project(b, &at("intermediate.dense"), x, [inner, h])?;
        let f = c.activation.apply(b, f)?;
        let f = self.project(b, &at("output.dense"), f, [h, inner])?;
        let f = b.add(f, x)?;
        self.norm(b, &at("output.LayerNorm"), f)
    }

    /// Both families end alike: a layer with tanh on the first token, and one that gives the logits.
    fn head(&self, b: &mut Builder<'_>, x: ValueId) -> Result<ValueId> {
        b.set_scope("head");
        let (h, n) = (self.config.hidden_size, self.config.labels.len());
        let [dense, out] = self.config.head_paths();
        let batch = b.ty(x).dims[0];
        let first = b.constant(TensorType::new(DType::I32, [batch]), 0.0)?;
        let x = select_rows::select_rows(b, x, first)?;
        let x = self.project(b, dense, x, [h, h])?;
        let x = Activation::Tanh.apply(b, x)?;
        let x = self.project(b, out, x, [n, h])?;
        let x = b.reshape(x, &[batch, n])?;
        b.cast(x, DType::F32)
    }

    fn norm(&self, b: &mut Builder<'_>, path: &str, x: ValueId) -> Result<ValueId> {
        let dims = [self.config.hidden_size];
        let w = self.weight(b, &format!("{path}.weight"), &dims)?;
        let bias = self.weight(b, &format!("{path}.bias"), &dims)?;
        layer_norm::layer_norm(b, x, w, bias, self.config.eps)
    }

    fn project(
        &self,
        b: &mut Builder<'_>,
        path: &str,
        x: ValueId,
        [out, inner]: [usize; 2],
    ) -> Result<ValueId> {
        let w = self.weight(b, &format!("{path}.weight"), &[out, inner])?;
        let bias = self.weight(b, &format!("{path}.bias"), &[out])?;
        linear::linear(b, x, w, Some(bias))
    }

    fn weight(&self, b: &mut Builder<'_>, name: &str, dims: &[usize]) -> Result<ValueId> {
        let ty = TensorType::new(self.dtype, dims);
        Ok(b.graph().add_input(format!("{PREFIX}{name}"), InputKind::Weight, ty))
    }
}
