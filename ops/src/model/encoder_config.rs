//! `config.json` of an encoder that classifies sequences: the BERT family.

use super::config::{Fields, ModelError, dtype, field, unsupported};
use super::names::{Parameter, ParameterKind};
use crate::activation::Activation;
use kfc_graph::DType;
use serde_json::Value;

/// A family of encoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncoderFamily {
    /// BERT (Devlin et al., 2018): a pooler, then a linear classifier.
    Bert,
    /// RoBERTa (Liu et al., 2019) and what shares its architecture (XLM-RoBERTa, CamemBERT): a classification head of
    /// two layers; positions count from the padding id on.
    Roberta,
}

impl EncoderFamily {
    const SUPPORTED: &'static str = "bert, roberta, xlm-roberta, camembert, each with a sequence classification head (…ForSequenceClassification)";
}

/// How logits become a score, as the model was trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The logit is the score.
    Regression,
    /// One label of several: softmax.
    SingleLabel,
    /// Each label for itself: sigmoid.
    MultiLabel,
}

/// Shape and arithmetic of an encoder with a classification head.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// Architecture.
    pub family: EncoderFamily,
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Layers.
    pub layers: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Attention heads; divides `hidden_size`.
    pub heads: usize,
    /// Rows of the position embedding.
    pub position_rows: usize,
    /// Rows of the token type embedding.
    pub type_rows: usize,
    /// Epsilon of the norms.
    pub eps: f64,
    /// Activation of the feed-forward block.
    pub activation: Activation,
    /// First row of the position embedding that text uses.
    pub first_position: usize,
    /// Names of the labels, in order of the logits.
    pub labels: Vec<String>,
    /// What the file says about the labels, if it does.
    pub problem: Option<Problem>,
    /// Element type stated by the file.
    pub dtype: Option<DType>,
}

impl EncoderConfig {
    /// Reads the parsed `config.json`.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] names what is not built: another architecture, activation or kind of positions;
    /// [`ModelError::Field`] a field that is missing or out of range.
    pub fn from_json(json: &Value) -> Result<EncoderConfig, ModelError> {
        let Value::Object(map) = json else { return Err(field("", "the file is not a JSON object")) };
        let f = Fields { map, prefix: "" };
        let family = family(&f)?;
        let hidden_size = f.positive("hidden_size")?;
        let heads = f.positive("num_attention_heads")?;
        if !hidden_size.is_multiple_of(heads) {
            return Err(field("hidden_size", format!("{hidden_size} is no multiple of {heads} heads")));
        }
        let name = f.str("hidden_act")?.unwrap_or("gelu");
        let Some(activation) = Activation::named(name) else {
            return Err(unsupported(format!("hidden_act `{name}`"), Activation::NAMES));
        };
        let positions = f.str("position_embedding_type")?.unwrap_or("absolute");
        if positions != "absolute" {
            return Err(unsupported(format!("position_embedding_type `{positions}`"), "absolute"));
        }
        if f.bool("is_decoder", false)? {
            return Err(unsupported("is_decoder = true".into(), "encoders"));
        }
        if f.get("quantization_config").is_some() {
            return Err(unsupported("quantization_config".into(), "weights in f32, bf16 or f16"));
        }
        let position_rows = f.positive_or("max_position_embeddings", 512)?;
        let first_position = match family {
            EncoderFamily::Bert => 0,
            EncoderFamily::Roberta => f.tokens("pad_token_id")?.first().map_or(1, |&pad| pad as usize) + 1,
        };
        if position_rows <= first_position + 2 {
            return Err(field("max_position_embeddings", format!("{position_rows} leaves no room for text")));
        }
        let types = if family == EncoderFamily::Bert { 2 } else { 1 };
        Ok(EncoderConfig {
            family,
            vocab_size: f.positive("vocab_size")?,
            hidden_size,
            layers: f.positive("num_hidden_layers")?,
            intermediate_size: f.positive("intermediate_size")?,
            heads,
            position_rows,
            type_rows: f.positive_or("type_vocab_size", types)?,
            eps: f.above_zero("layer_norm_eps")?.unwrap_or(1e-12),
            activation,
            first_position,
            labels: labels(&f)?,
            problem: problem(&f)?,
            dtype: dtype(&f)?,
        })
    }

    /// Tokens that a text may have.
    pub const fn max_tokens(&self) -> usize {
        self.position_rows - self.first_position
    }

    /// Every parameter that the graph uses, in order of use. Of the token types only the first is used, but the table is
    /// loaded whole.
    pub fn parameters(&self) -> Vec<Parameter> {
        let (h, inner, n) = (self.hidden_size, self.intermediate_size, self.labels.len());
        let mut all = Vec::new();
        let mut add = |name: String, dims: Vec<usize>, kind| all.push(Parameter { name, dims, kind });
        let base = self.base();
        for (table, rows) in
            [("word", self.vocab_size), ("position", self.position_rows), ("token_type", self.type_rows)]
        {
            let name = format!("{base}embeddings.{table}_embeddings.weight");
            add(name, vec![rows, h], ParameterKind::Embedding);
        }
        let mut module = |path: String, dims: Option<[usize; 2]>| match dims {
            Some([out, inner]) => {
                add(format!("{path}.weight"), vec![out, inner], ParameterKind::Matrix);
                add(format!("{path}.bias"), vec![out], ParameterKind::Bias);
            }
            None => {
                add(format!("{path}.weight"), vec![h], ParameterKind::Norm);
                add(format!("{path}.bias"), vec![h], ParameterKind::Bias);
            }
        };
        module(format!("{base}embeddings.LayerNorm"), None);
        for layer in 0..self.layers {
            let at = |part: &str| self.layer_path(layer, part);
            for part in ["query", "key", "value"] {
                module(at(&format!("attention.self.{part}")), Some([h, h]));
            }
            module(at("attention.output.dense"), Some([h, h]));
            module(at("attention.output.LayerNorm"), None);
            module(at("intermediate.dense"), Some([inner, h]));
            module(at("output.dense"), Some([h, inner]));
            module(at("output.LayerNorm"), None);
        }
        let [dense, out] = self.head_paths();
        module(dense.into(), Some([h, h]));
        module(out.into(), Some([n, h]));
        all
    }

    /// What tensor names of the encoder begin with.
    pub(super) const fn base(&self) -> &'static str {
        match self.family {
            EncoderFamily::Bert => "bert.",
            EncoderFamily::Roberta => "roberta.",
        }
    }

    pub(super) fn layer_path(&self, layer: usize, part: &str) -> String {
        format!("{}encoder.layer.{layer}.{part}", self.base())
    }

    /// The two linear layers of the classification head.
    pub(super) const fn head_paths(&self) -> [&'static str; 2] {
        match self.family {
            EncoderFamily::Bert => ["bert.pooler.dense", "classifier"],
            EncoderFamily::Roberta => ["classifier.dense", "classifier.out_proj"],
        }
    }
}

fn family(f: &Fields<'_>) -> Result<EncoderFamily, ModelError> {
    let architecture = f.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
    let family = match (f.str("model_type")?, architecture) {
        (Some("bert"), _) | (None, Some("BertForSequenceClassification")) => EncoderFamily::Bert,
        (Some("roberta" | "xlm-roberta" | "camembert"), _)
        | (None, Some("RobertaForSequenceClassification")) => EncoderFamily::Roberta,
        (Some(other), _) | (None, Some(other)) => {
            return Err(unsupported(format!("architecture `{other}`"), EncoderFamily::SUPPORTED));
        }
        (None, None) => {
            return Err(field("model_type", format!("is missing; one of {}", EncoderFamily::SUPPORTED)));
        }
    };
    match architecture {
        Some(name) if !name.ends_with("ForSequenceClassification") => Err(unsupported(
            format!("architecture `{name}`, which has no head that scores text,"),
            EncoderFamily::SUPPORTED,
        )),
        _ => Ok(family),
    }
}

/// Names of the labels: `id2label`, else as many as `num_labels` says, else two.
fn labels(f: &Fields<'_>) -> Result<Vec<String>, ModelError> {
    let Some(map) = f.get("id2label") else {
        let n = f.positive_or("num_labels", 2)?;
        return Ok((0..n).map(|i| format!("LABEL_{i}")).collect());
    };
    let bad = || field("id2label", "must map the integers from 0 on to names");
    let map = map.as_object().filter(|m| !m.is_empty()).ok_or_else(bad)?;
    let name = |i: usize| map.get(&i.to_string()).and_then(Value::as_str).map(String::from).ok_or_else(bad);
    (0..map.len()).map(name).collect()
}

fn problem(f: &Fields<'_>) -> Result<Option<Problem>, ModelError> {
    Ok(match f.str("problem_type")? {
        None => None,
        Some("regression") => Some(Problem::Regression),
        Some("single_label_classification") => Some(Problem::SingleLabel),
        Some("multi_label_classification") => Some(Problem::MultiLabel),
        Some(other) => {
            let known = "regression, single_label_classification, multi_label_classification";
            return Err(field("problem_type", format!("is `{other}`, must be one of {known}")));
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tiny() -> Value {
        json!({
            "model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": 99,
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
            "id2label": {"0": "bad", "1": "good"}, "problem_type": null
        })
    }

    fn with(key: &str, value: Value) -> Result<EncoderConfig, ModelError> {
        let mut json = tiny();
        json[key] = value;
        EncoderConfig::from_json(&json)
    }

    #[test]
    fn defaults_are_those_of_transformers() {
        let c = EncoderConfig::from_json(&tiny()).unwrap();
        assert_eq!((c.eps, c.activation, c.max_tokens(), c.type_rows), (1e-12, Activation::Gelu, 512, 2));
        assert_eq!(c.labels, ["bad", "good"]);
        assert_eq!(c.parameters().len(), 3 + 2 + 2 * 16 + 4);
    }

    #[test]
    fn roberta_counts_positions_from_the_padding_id() {
        let mut json = tiny();
        json["model_type"] = "roberta".into();
        json["max_position_embeddings"] = 514.into();
        json["architectures"] = json!(["RobertaForSequenceClassification"]);
        let c = EncoderConfig::from_json(&json).unwrap();
        assert_eq!((c.first_position, c.max_tokens(), c.type_rows), (2, 512, 1));
        assert!(c.parameters().iter().any(|p| p.name == "classifier.out_proj.weight"));
    }

    #[test]
    fn what_is_not_built_is_named_with_what_is() {
        let message = |r: Result<EncoderConfig, ModelError>| r.unwrap_err().to_string();
        assert_eq!(
            message(with("hidden_act", "mish".into())),
            format!("config.json: hidden_act `mish` is not supported; supported: {}", Activation::NAMES)
        );
        assert!(message(with("model_type", "llama".into())).contains("architecture `llama`"));
        assert!(message(with("architectures", json!(["BertForMaskedLM"]))).contains("`BertForMaskedLM`"));
        assert!(message(with("position_embedding_type", "relative_key".into())).contains("absolute"));
        assert!(message(with("num_attention_heads", 5.into())).contains("no multiple of 5"));
        assert!(message(with("id2label", json!({"1": "x"}))).contains("id2label"));
        assert!(message(with("problem_type", "ranking".into())).contains("`ranking`"));
    }
}
