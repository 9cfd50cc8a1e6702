//! Names and shapes of a model's parameters, as Hugging Face writes them.

use super::config::ModelConfig;

/// A linear layer that an adapter can attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Path without `.weight` (`model.layers.0.self_attn.q_proj`).
    pub path: String,
    /// Output features.
    pub out_features: usize,
    /// Input features.
    pub in_features: usize,
    /// It has a bias.
    pub bias: bool,
}

impl Module {
    /// Last part of the path (`q_proj`).
    pub fn short(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }
}

/// What a parameter is, which decides initialisation and weight decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterKind {
    /// Token embedding (and head).
    Embedding,
    /// Matrix of a linear layer.
    Matrix,
    /// Scale of a norm.
    Norm,
    /// Bias of a linear layer.
    Bias,
}

/// A parameter of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Tensor name.
    pub name: String,
    /// Shape.
    pub dims: Vec<usize>,
    /// What it is.
    pub kind: ParameterKind,
}

impl Parameter {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }
}

/// Name of the embedding's weight.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the head's weight, when it is not tied.
pub const HEAD: &str = "lm_head.weight";
/// Name of the last norm's weight.
pub const FINAL_NORM: &str = "model.norm.weight";

impl ModelConfig {
    /// Name of the weight that the head multiplies with.
    pub const fn head_weight(&self) -> &'static str {
        if self.tie_word_embeddings { EMBEDDING } else { HEAD }
    }

    /// The seven linear layers of a decoder layer, in order of use.
    pub fn layer_modules(&self, layer: usize) -> [Module; 7] {
        let (h, q, kv, i) = (self.hidden_size, self.q_width(), self.kv_width(), self.intermediate_size);
        let module = |block: &str, name: &str, out_features, in_features, bias| Module {
            path: format!("model.layers.{layer}.{block}.{name}"),
            out_features,
            in_features,
            bias,
        };
        [
            module("self_attn", "q_proj", q, h, self.qkv_bias),
            module("self_attn", "k_proj", kv, h, self.qkv_bias),
            module("self_attn", "v_proj", kv, h, self.qkv_bias),
            module("self_attn", "o_proj", h, q, self.o_bias),
            module("mlp", "gate_proj", i, h, self.mlp_bias),
            module("mlp", "up_proj", i, h, self.mlp_bias),
            module("mlp", "down_proj", h, i, self.mlp_bias),
        ]
    }

    /// Every linear layer but the head, in order of use.
    pub fn modules(&self) -> Vec<Module> {
        (0..self.layers).flat_map(|l| self.layer_modules(l)).collect()
    }

    /// Every parameter, in order of use.
    pub fn parameters(&self) -> Vec<Parameter> {
        let h = self.hidden_size;
        let norm = |name: String| Parameter { name, dims: vec![h], kind: ParameterKind::Norm };
        let mut all = vec![Parameter {
            name: EMBEDDING.into(),
            dims: vec![self.vocab_size, h],
            kind: ParameterKind::Embedding,
        }];
        for layer in 0..self.layers {
            for (i, module) in self.layer_modules(layer).into_iter().enumerate() {
                match i {
                    0 => all.push(norm(format!("model.layers.{layer}.input_layernorm.weight"))),
                    4 => all.push(norm(format!("model.layers.{layer}.post_attention_layernorm.weight"))),
                    _ => {}
                }
                all.push(Parameter {
                    name: format!("{}.weight", module.path),
                    dims: vec![module.out_features, module.in_features],
                    kind: ParameterKind::Matrix,
                });
                if module.bias {
                    all.push(Parameter {
                        name: format!("{}.bias", module.path),
                        dims: vec![module.out_features],
                        kind: ParameterKind::Bias,
                    });
                }
            }
        }
        all.push(norm(FINAL_NORM.into()));
        if !self.tie_word_embeddings {
            all.push(Parameter {
                name: HEAD.into(),
                dims: vec![self.vocab_size, h],
                kind: ParameterKind::Embedding,
            });
        }
        all
    }
}
