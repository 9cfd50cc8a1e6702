//! The decoder of llama-like families as a forward graph.

use super::config::ModelConfig;
use super::lora::LoraSpec;
use super::names::{EMBEDDING, FINAL_NORM, Module};
use crate::{attention, embedding, kv_append, linear, lora_linear, rms_norm, rope, swiglu};
use kfc_graph::{Builder, DType, InputKind, Result, TensorType, ValueId};
use std::collections::BTreeMap;

/// Data of a batch, each `i32 [B,T]`.
#[derive(Clone, Copy, Debug)]
pub struct BatchInputs {
    /// Token ids.
    pub tokens: ValueId,
    /// Position of each token in its document.
    pub positions: ValueId,
    /// Document of each token; -1 is padding.
    pub segments: ValueId,
}

/// Key-value cache of a generating model.
#[derive(Clone, Copy, Debug)]
pub struct CacheInputs {
    /// Tokens that fit, the extent `C` below.
    pub capacity: usize,
    /// First cache row that this run writes, `i32 [B]`.
    pub start: ValueId,
    /// Document of each cache row after this run's tokens are in, `i32 [B,C]`; -1 is empty.
    pub segments: ValueId,
    /// Position of each cache row, `i32 [B,C]`.
    pub positions: ValueId,
}

/// What a decoder layer adds to the residual stream, and what its attention weighs.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// The operands of its attention, positions applied.
    pub attends: attention::Attention,
    /// Output of the attention block `[B,T,H]`.
    pub attention: ValueId,
    /// Output of the MLP block `[B,T,H]`.
    pub mlp: ValueId,
}

/// What a forward pass gives.
#[derive(Clone, Debug)]
pub struct Hidden {
    /// The embedded tokens `[B,T,H]`, where the residual stream begins.
    pub embedded: ValueId,
    /// The parts of each decoder layer.
    pub parts: Vec<Parts>,
    /// Output of each decoder layer `[B,T,H]`, before any norm that follows.
    pub layers: Vec<ValueId>,
    /// Output of the last norm `[B,T,H]`, what the head reads.
    pub last: ValueId,
}

/// Builds a model's forward pass. Weights become graph inputs when first used, named `prefix + tensor name`;
/// adapters are named `lora.PATH.lora_A.weight` and `lora.PATH.lora_B.weight`.
pub struct Transformer<'a> {
    config: &'a ModelConfig,
    prefix: &'a str,
    dtype: DType,
    positions: usize,
    lora: Option<&'a LoraSpec>,
    seed: Option<ValueId>,
    embedded: bool,
    inputs: BTreeMap<String, ValueId>,
    caches: Vec<(ValueId, ValueId)>,
}

impl<'a> Transformer<'a> {
    /// A model whose weights and activations are `dtype` and whose positions stay below `positions`.
    pub fn new(config: &'a ModelConfig, prefix: &'a str, dtype: DType, positions: usize) -> Self {
        Transformer {
            config,
            prefix,
            dtype,
            positions,
            lora: None,
            seed: None,
            embedded: false,
            inputs: BTreeMap::new(),
            caches: Vec::new(),
        }
    }

    /// Adds adapters. With a seed (`i32[2]`) their dropout is active.
    #[must_use]
    pub fn with_lora(mut self, spec: Option<&'a LoraSpec>, seed: Option<ValueId>) -> Self {
        self.lora = spec;
        self.seed = seed.filter(|_| spec.is_some_and(|s| s.dropout > 0.0));
        self
    }

    /// With `embedded`, the embedded tokens are data ([`embedded_input`]), and there is no table among the weights.
    #[must_use]
    pub fn with_embedded(mut self, embedded: bool) -> Self {
        self.embedded = embedded;
        self
    }

    /// The weights and adapters used so far: input name and value, in order of name.
    pub fn inputs(&self) -> &BTreeMap<String, ValueId> {
        &self.inputs
    }

    /// Cache inputs and their updated values, in order of use.
    pub fn caches(&self) -> &[(ValueId, ValueId)] {
        &self.caches
    }

    /// The forward pass up to the last norm.
    ///
    /// # Errors
    /// If operand types do not fit: a configuration that contradicts itself.
    pub fn hidden(
        &mut self,
        b: &mut Builder<'_>,
        batch: BatchInputs,
        cache: Option<CacheInputs>,
    ) -> Result<Hidden> {
        b.set_scope(&format!("{}embed", self.prefix));
        let embedded = self.embed(b, batch.tokens)?;
        let mut x = embedded;
        let mut layers = Vec::with_capacity(self.config.layers);
        let mut parts = Vec::with_capacity(self.config.layers);
        for layer in 0..self.config.layers {
            let (after, added) = self.layer(b, layer, x, batch, cache)?;
            x = after;
            layers.push(after);
            parts.push(added);
        }
        b.set_scope(&format!("{}norm", self.prefix));
        let last = self.norm(b, FINAL_NORM, x)?;
        Ok(Hidden { embedded, parts, layers, last })
    }

    /// The weight that the head multiplies with, `[V,H]`.
    ///
    /// # Errors
    /// As [`Transformer::hidden`].
    pub fn head(&mut self, b: &mut Builder<'_>) -> Result<ValueId> {
        b.set_scope(&format!("{}head", self.prefix));
        let name = self.config.head_weight();
        self.weight(b, name, &[self.config.vocab_size, self.config.hidden_size])
    }

    fn layer(
        &mut self,
        b: &mut Builder<'_>,
        layer: usize,
        x: ValueId,
        batch: BatchInputs,
        cache: Option<CacheInputs>,
    ) -> Result<(ValueId, Parts)> {
        let [q, k, v, o, gate, up, down] = self.config.layer_modules(layer);
        b.set_scope(&format!("{}layers.{layer}.attn", self.prefix));
        let h = self.norm(b, &format!("model.layers.{layer}.input_layernorm.weight"), x)?;
        let (q, k, v) = (self.project(b, &q, h)?, self.project(b, &k, h)?, self.project(b, &v, h)?);
        let (q, k) = (self.rotate(b, q, batch.positions)?, self.rotate(b, k, batch.positions)?);
        let attends = self.attends(b, layer, [q, k, v], batch, cache)?;
        let a = attention::attention(b, &attends)?;
        let attention = self.project(b, &o, a)?;
        let x = b.add(x, attention)?;

        b.set_scope(&format!("{}layers.{layer}.mlp", self.prefix));
        let h = self.norm(b, &format!("model.layers.{layer}.post_attention_layernorm.weight"), x)?;
        let (gate, up) = (self.project(b, &gate, h)?, self.project(b, &up, h)?);
        let h = swiglu::swiglu(b, gate, up)?;
        let mlp = self.project(b, &down, h)?;
        Ok((b.add(x, mlp)?, Parts { attends, attention, mlp }))
    }

    /// The operands of a layer's attention; with a cache, keys and values go into it first.
    fn attends(
        &mut self,
        b: &mut Builder<'_>,
        layer: usize,
        [q, k, v]: [ValueId; 3],
        batch: BatchInputs,
        cache: Option<CacheInputs>,
    ) -> Result<attention::Attention> {
        let (k, v, seg_k, pos_k) = match cache {
            None => (k, v, batch.segments, batch.positions),
            Some(c) => {
                let k = self.append(b, &format!("cache.{layer}.k"), k, c)?;
                let v = self.append(b, &format!("cache.{layer}.v"), v, c)?;
                (k, v, c.segments, c.positions)
            }
        };
        Ok(attention::Attention {
            q,
            k,
            v,
            seg_q: batch.segments,
            pos_q: batch.positions,
            seg_k,
            pos_k,
            heads: self.config.heads,
            kv_heads: self.config.kv_heads,
            scale: 1.0 / (self.config.head_dim as f64).sqrt(),
        })
    }

    fn append(
        &mut self,
        b: &mut Builder<'_>,
        name: &str,
        new: ValueId,
        cache: CacheInputs,
    ) -> Result<ValueId> {
        let ty = b.ty(new).clone();
        let ty = TensorType::new(ty.dtype, [ty.dims[0], cache.capacity, ty.dims[2]]);
        let state = b.graph().add_input(name, InputKind::State, ty);
        let updated = kv_append::kv_append(b, state, new, cache.start)?;
        self.caches.push((state, updated));
        Ok(updated)
    }

    fn rotate(&mut self, b: &mut Builder<'_>, x: ValueId, positions: ValueId) -> Result<ValueId> {
        let ty = TensorType::new(DType::F32, [self.positions, self.config.head_dim / 2]);
        let cos = self.input(b, format!("{}rope.cos", self.prefix), &ty);
        let sin = self.input(b, format!("{}rope.sin", self.prefix), &ty);
        rope::rope(b, x, cos, sin, positions, self.config.head_dim)
    }

    fn norm(&mut self, b: &mut Builder<'_>, name: &str, x: ValueId) -> Result<ValueId> {
        let w = self.weight(b, name, &[self.config.hidden_size])?;
        rms_norm::rms_norm(b, x, w, self.config.rms_norm_eps)
    }

    fn project(&mut self, b: &mut Builder<'_>, module: &Module, x: ValueId) -> Result<ValueId> {
        let w =
            self.weight(b, &format!("{}.weight", module.path), &[module.out_features, module.in_features])?;
        let bias = match module.bias {
            true => Some(self.weight(b, &format!("{}.bias", module.path), &[module.out_features])?),
            false => None,
        };
        let adapter = self.lora.and_then(|spec| spec.index(&module.path).map(|i| (spec, i)));
        let Some((spec, index)) = adapter else { return linear::linear(b, x, w, bias) };
        let name = |side: &str| lora_input(&module.path, side);
        let a = self.input(b, name("A"), &TensorType::new(DType::F32, [spec.r, module.in_features]));
        let bb = self.input(b, name("B"), &TensorType::new(DType::F32, [module.out_features, spec.r]));
        let args = lora_linear::LoraLinear {
            x,
            w,
            a,
            b: bb,
            bias,
            scale: spec.scale,
            dropout: self.seed.map(|seed| lora_linear::Dropout {
                p: spec.dropout,
                seed,
                stream: index as u32,
            }),
        };
        lora_linear::lora_linear(b, &args)
    }

    fn embed(&mut self, b: &mut Builder<'_>, tokens: ValueId) -> Result<ValueId> {
        let width = self.config.hidden_size;
        if self.embedded {
            let mut dims = b.graph().ty(tokens).dims.clone();
            dims.push(width);
            let ty = TensorType::new(self.dtype, dims);
            return Ok(b.graph().add_input(embedded_input(self.prefix), InputKind::Data, ty));
        }
        let table = self.weight(b, EMBEDDING, &[self.config.vocab_size, width])?;
        embedding::embedding(b, table, tokens)
    }

    fn weight(&mut self, b: &mut Builder<'_>, name: &str, dims: &[usize]) -> Result<ValueId> {
        Ok(self.input(b, format!("{}{name}", self.prefix), &TensorType::new(self.dtype, dims)))
    }

    fn input(&mut self, b: &mut Builder<'_>, name: String, ty: &TensorType) -> ValueId {
        if let Some(&v) = self.inputs.get(&name) {
            return v;
        }
        let v = b.graph().add_input(name.clone(), InputKind::Weight, ty.clone());
        self.inputs.insert(name, v);
        v
    }
}

/// Name of the graph input of embedded tokens, `[B,T,H]`, of the model whose weights' names begin with `prefix`.
pub fn embedded_input(prefix: &str) -> String {
    format!("embedded.{}", prefix.trim_end_matches('.'))
}

/// Name of the graph input of an adapter matrix; `side` is `A` or `B`.
pub fn lora_input(path: &str, side: &str) -> String {
    format!("lora.{path}.lora_{side}.weight")
}
