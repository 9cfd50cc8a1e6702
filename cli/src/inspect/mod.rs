//! What `kfc inspect` found, as text, as JSON and as a page.

mod draw;
mod json;
mod page;
mod text;

pub(crate) use json::json;
pub(crate) use page::page;
pub(crate) use text::text;

use kfc_graph::DType;
use kfc_runtime::inspect::{FisherTensor, Inspection, Moved, Part, PartKind, Question};

/// Everything that was found.
pub(crate) struct Look {
    /// The model's folder.
    pub(crate) model: String,
    /// The adapter's folder.
    pub(crate) adapter: Option<String>,
    /// Element type of the computation.
    pub(crate) dtype: DType,
    /// What the model makes of a text, if one was given.
    pub(crate) asked: Option<Asked>,
    /// How far the adapter moves each weight.
    pub(crate) moved: Vec<Moved>,
    /// Where the Fisher diagonal is large.
    pub(crate) fisher: Vec<FisherTensor>,
}

/// A text, and what the model makes of it.
pub(crate) struct Asked {
    /// What was asked.
    pub(crate) question: Question,
    /// What was found.
    pub(crate) found: Inspection,
    /// Text of each token.
    pub(crate) texts: Vec<String>,
    /// Text of the token whose logit is explained.
    pub(crate) target_text: String,
    /// The likeliest next tokens: id, text and probability.
    pub(crate) likeliest: Vec<(i32, String, f64)>,
}

/// Where in the model a weight is: its layer (from 1) and the last part of its path.
fn place(module: &str) -> (Option<usize>, &str) {
    let layer = module.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
    let layer = layer.and_then(|n| n.parse::<usize>().ok()).map(|n| n + 1);
    (layer, module.rsplit('.').next().unwrap_or(module))
}

/// Name of a part: layers count from 1.
fn part_name(part: &Part) -> String {
    match part.kind {
        PartKind::Embedding => "embedding".into(),
        PartKind::Attention(layer) => format!("layer {} attention", layer + 1),
        PartKind::Mlp(layer) => format!("layer {} MLP", layer + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn layers_count_from_one() {
        assert_eq!(place("model.layers.0.self_attn.q_proj"), (Some(1), "q_proj"));
        assert_eq!(place("model.embed_tokens"), (None, "embed_tokens"));
    }
}
