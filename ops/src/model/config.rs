//! `config.json` of a Hugging Face model folder, old and new style.

use super::rope::{Rope, RopeKind};
use kfc_graph::DType;
use serde_json::{Map, Value};
use thiserror::Error;

/// What can be wrong with a model description.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum ModelError {
    /// A field is missing, of the wrong type or out of range.
    #[error("config.json: `{field}`: {message}")]
    Field {
        /// Dotted name of the field.
        field: String,
        /// What is wrong and what is expected.
        message: String,
    },
    /// The model needs something that is not built.
    #[error("config.json: {what} is not supported; supported: {supported}")]
    Unsupported {
        /// What the model asks for.
        what: String,
        /// What there is.
        supported: String,
    },
    /// A LoRA target matches no linear layer.
    #[error("lora.targets: `{target}` is no linear layer of this model; there are: {known}")]
    UnknownTarget {
        /// The name asked for.
        target: String,
        /// The names there are.
        known: String,
    },
}

/// An architecture this crate can build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama and what shares its architecture (DeepSeek LLM, DeepSeek Coder, R1-Distill-Llama).
    Llama,
    /// Qwen2 (R1-Distill-Qwen): biases on q, k and v.
    Qwen2,
}

impl Family {
    const SUPPORTED: &'static str = "llama, qwen2";

    /// `model_type` in `config.json`.
    pub const fn name(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Qwen2 => "qwen2",
        }
    }
}

/// Everything about a model's shape and arithmetic.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Architecture.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Epsilon of the norms.
    pub rms_norm_eps: f64,
    /// The head shares the embedding's weight.
    pub tie_word_embeddings: bool,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on the attention's output projection.
    pub o_bias: bool,
    /// Biases in the feed-forward block.
    pub mlp_bias: bool,
    /// Positions the model was made for.
    pub max_positions: usize,
    /// Rotary embedding.
    pub rope: Rope,
    /// Standard deviation of random initialisation.
    pub initializer_range: f64,
    /// Element type stated by the file.
    pub dtype: Option<DType>,
    /// Token that starts a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Token that fills.
    pub pad_token_id: Option<u32>,
}

impl ModelConfig {
    /// Reads the parsed `config.json`.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] names an architecture, rope type or activation that is not built;
    /// [`ModelError::Field`] a field that is missing or out of range.
    pub fn from_json(json: &Value) -> Result<ModelConfig, ModelError> {
        let Value::Object(map) = json else { return Err(field("", "the file is not a JSON object")) };
        let f = Fields { map, prefix: "" };
        let family = family(&f)?;
        if let Some(act) = f.str("hidden_act")?
            && act != "silu"
        {
            return Err(ModelError::Unsupported {
                what: format!("hidden_act `{act}`"),
                supported: "silu".into(),
            });
        }
        if f.bool("use_sliding_window", false)? {
            return Err(ModelError::Unsupported {
                what: "use_sliding_window = true".into(),
                supported: "full attention".into(),
            });
        }
        if map.contains_key("quantization_config") && !map["quantization_config"].is_null() {
            return Err(ModelError::Unsupported {
                what: "quantization_config".into(),
                supported: "weights in f32, bf16 or f16".into(),
            });
        }
        let hidden_size = f.positive("hidden_size")?;
        let heads = f.positive("num_attention_heads")?;
        let kv_heads = f.positive_or("num_key_value_heads", heads)?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(field("num_key_value_heads", format!("{kv_heads} does not divide {heads} heads")));
        }
        if f.get("head_dim").is_none() && !hidden_size.is_multiple_of(heads) {
            return Err(field("hidden_size", format!("{hidden_size} is no multiple of {heads} heads")));
        }
        let head_dim = f.positive_or("head_dim", hidden_size / heads)?;
        if head_dim % 2 != 0 {
            return Err(field("head_dim", format!("{head_dim} is odd, rotary embedding needs pairs")));
        }
        let rms_norm_eps = f.number("rms_norm_eps")?.unwrap_or(1e-6);
        if rms_norm_eps < 0.0 {
            return Err(field("rms_norm_eps", format!("{rms_norm_eps} is negative")));
        }
        let max_positions = f.positive_or("max_position_embeddings", 2048)?;
        let attention_bias = f.bool("attention_bias", false)?;
        Ok(ModelConfig {
            family,
            vocab_size: f.positive("vocab_size")?,
            hidden_size,
            layers: f.positive("num_hidden_layers")?,
            intermediate_size: f.positive("intermediate_size")?,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps,
            tie_word_embeddings: f.bool("tie_word_embeddings", false)?,
            qkv_bias: attention_bias || family == Family::Qwen2,
            o_bias: attention_bias && family == Family::Llama,
            mlp_bias: f.bool("mlp_bias", false)?,
            max_positions,
            rope: rope(&f, head_dim, max_positions)?,
            initializer_range: f.number("initializer_range")?.unwrap_or(0.02),
            dtype: dtype(&f)?,
            bos_token_id: f.tokens("bos_token_id")?.first().copied(),
            eos_token_ids: f.tokens("eos_token_id")?,
            pad_token_id: f.tokens("pad_token_id")?.first().copied(),
        })
    }

    /// Width of all query heads together.
    pub const fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub const fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

fn family(f: &Fields<'_>) -> Result<Family, ModelError> {
    let architecture = f.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
    match (f.str("model_type")?, architecture) {
        (Some("llama"), _) | (None, Some("LlamaForCausalLM")) => Ok(Family::Llama),
        (Some("qwen2"), _) | (None, Some("Qwen2ForCausalLM")) => Ok(Family::Qwen2),
        (Some(other), _) | (None, Some(other)) => Err(ModelError::Unsupported {
            what: format!("architecture `{other}`"),
            supported: Family::SUPPORTED.into(),
        }),
        (None, None) => Err(field("model_type", format!("is missing; one of {}", Family::SUPPORTED))),
    }
}

pub(super) fn dtype(f: &Fields<'_>) -> Result<Option<DType>, ModelError> {
    let name = match f.str("dtype")? {
        Some(name) => Some(name),
        None => f.str("torch_dtype")?,
    };
    Ok(match name {
        Some("float32") => Some(DType::F32),
        Some("bfloat16") => Some(DType::Bf16),
        Some("float16") => Some(DType::F16),
        _ => None,
    })
}

fn rope(f: &Fields<'_>, head_dim: usize, max_positions: usize) -> Result<Rope, ModelError> {
    let empty = Map::new();
    let (map, prefix) = match (f.get("rope_parameters"), f.get("rope_scaling")) {
        (Some(Value::Object(m)), _) => (m, "rope_parameters."),
        (_, Some(Value::Object(m))) => (m, "rope_scaling."),
        _ => (&empty, "rope_parameters."),
    };
    let r = Fields { map, prefix };
    let theta = match r.number("rope_theta")? {
        Some(theta) => theta,
        None => f.number("rope_theta")?.unwrap_or(10_000.0),
    };
    if theta <= 1.0 {
        return Err(field("rope_theta", format!("{theta} must be above 1")));
    }
    for partial in
        [r.number("partial_rotary_factor")?, f.number("partial_rotary_factor")?].into_iter().flatten()
    {
        if partial != 1.0 {
            return Err(ModelError::Unsupported {
                what: format!("partial_rotary_factor {partial}"),
                supported: "1.0".into(),
            });
        }
    }
    let name = match r.str("rope_type")? {
        Some(name) => name,
        None => r.str("type")?.unwrap_or("default"),
    };
    let factor = || -> Result<f64, ModelError> {
        let factor = r.required_number("factor")?;
        if factor < 1.0 {
            Err(field(&r.name("factor"), format!("{factor} must be at least 1")))
        } else {
            Ok(factor)
        }
    };
    let original = |f: &Fields<'_>| -> Result<Option<f64>, ModelError> {
        match r.above_zero("original_max_position_embeddings")? {
            Some(n) => Ok(Some(n)),
            None => f.above_zero("original_max_position_embeddings"),
        }
    };
    let kind = match name {
        "default" => RopeKind::Default,
        "linear" => RopeKind::Linear { factor: factor()? },
        "llama3" => {
            let (low, high) = (r.required_number("low_freq_factor")?, r.required_number("high_freq_factor")?);
            if high <= low {
                return Err(field(
                    &r.name("high_freq_factor"),
                    format!("{high} must be above low_freq_factor {low}"),
                ));
            }
            let original = original(f)?.ok_or_else(|| {
                field(&r.name("original_max_position_embeddings"), "is missing".to_string())
            })?;
            RopeKind::Llama3 { factor: factor()?, low_freq_factor: low, high_freq_factor: high, original }
        }
        "yarn" => RopeKind::Yarn {
            factor: factor()?,
            original: original(f)?.unwrap_or(max_positions as f64),
            beta_fast: r.above_zero("beta_fast")?.unwrap_or(32.0),
            beta_slow: r.above_zero("beta_slow")?.unwrap_or(1.0),
            mscale: r.number("mscale")?,
            mscale_all_dim: r.number("mscale_all_dim")?,
            attention_factor: r.number("attention_factor")?,
            truncate: r.bool("truncate", true)?,
        },
        other => {
            return Err(ModelError::Unsupported {
                what: format!("rope type `{other}`"),
                supported: "default, linear, llama3, yarn".into(),
            });
        }
    };
    let rope = Rope { head_dim, theta, kind };
    let factor = rope.attention_factor() as f32;
    if !factor.is_finite() {
        let m = format!("together with mscale_all_dim and factor it scales cos and sin by {factor}");
        return Err(field(&r.name("mscale"), m));
    }
    Ok(rope)
}

pub(super) fn field(name: &str, message: impl Into<String>) -> ModelError {
    ModelError::Field { field: name.to_string(), message: message.into() }
}

pub(super) fn unsupported(what: String, supported: &str) -> ModelError {
    ModelError::Unsupported { what, supported: supported.into() }
}

/// Typed access to a JSON object; `null` counts as absent.
pub(super) struct Fields<'a> {
    pub(super) map: &'a Map<String, Value>,
    pub(super) prefix: &'static str,
}

/// Extents above this are a damaged file, and would overflow products of three.
const MAX_EXTENT: u64 = 1 << 24;

impl<'a> Fields<'a> {
    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    pub(super) fn positive(&self, name: &str) -> Result<usize, ModelError> {
        match self.get(name).map(|v| (v, v.as_u64())) {
            Some((_, Some(n))) if (1..=MAX_EXTENT).contains(&n) => Ok(n as usize),
            Some((v, _)) => {
                Err(field(&self.name(name), format!("must be an integer in 1..={MAX_EXTENT}, is {v}")))
            }
            None => Err(field(&self.name(name), "is missing")),
        }
    }

    pub(super) fn positive_or(&self, name: &str, default: usize) -> Result<usize, ModelError> {
        if self.get(name).is_none() { Ok(default) } else { self.positive(name) }
    }

    fn number(&self, name: &str) -> Result<Option<f64>, ModelError> {
        match self.get(name) {
            None => Ok(None),
            Some(v) => match v.as_f64() {
                Some(x) if x.is_finite() => Ok(Some(x)),
                _ => Err(field(&self.name(name), format!("must be a finite number, is {v}"))),
            },
        }
    }

    pub(super) fn above_zero(&self, name: &str) -> Result<Option<f64>, ModelError> {
        match self.number(name)? {
            Some(x) if x <= 0.0 => Err(field(&self.name(name), format!("must be above 0, is {x}"))),
            x => Ok(x),
        }
    }

    fn required_number(&self, name: &str) -> Result<f64, ModelError> {
        self.number(name)?.ok_or_else(|| field(&self.name(name), "is missing"))
    }

    pub(super) fn str(&self, name: &str) -> Result<Option<&'a str>, ModelError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(v) => Err(field(&self.name(name), format!("must be a string, is {v}"))),
        }
    }

    pub(super) fn bool(&self, name: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(v) => Err(field(&self.name(name), format!("must be true or false, is {v}"))),
        }
    }

    /// One token id or a list of them.
    pub(super) fn tokens(&self, name: &str) -> Result<Vec<u32>, ModelError> {
        let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        match self.get(name) {
            None => Ok(Vec::new()),
            // Released files write -1 for "none".
            Some(v) if v.as_i64() == Some(-1) => Ok(Vec::new()),
            Some(Value::Array(list)) => list
                .iter()
                .map(|v| one(v).ok_or_else(|| field(&self.name(name), format!("{v} is no token id"))))
                .collect(),
            Some(v) => {
                one(v).map(|t| vec![t]).ok_or_else(|| field(&self.name(name), format!("{v} is no token id")))
            }
        }
    }
}
