//! One number of a text's logits.

use crate::error::{Result, RunError};
use kfc_ops::model::{EncoderConfig, Problem};

/// How logits become a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `1/(1 + e^-x)` of the label's logit.
    Sigmoid,
    /// The label's share of the softmax.
    Softmax,
    /// The label's logit.
    Raw,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 3] = [Kind::Sigmoid, Kind::Softmax, Kind::Raw];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Sigmoid => "sigmoid",
            Kind::Softmax => "softmax",
            Kind::Raw => "raw",
        }
    }
}

/// Which label counts, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scoring {
    /// Position of the label's logit.
    pub label: usize,
    /// What its score is.
    pub kind: Kind,
}

impl Scoring {
    /// The scoring of a model. Without `kind` it is what the model was trained for: the logit of a regression, a sigmoid of a
    /// single label or of labels that exclude nothing, else a softmax. `label` is a name or a position; a model of one
    /// label needs none, one of two takes the second.
    ///
    /// # Errors
    /// If there is no such label, or several and none is named.
    pub fn choose(config: &EncoderConfig, label: Option<&str>, kind: Option<Kind>) -> Result<Scoring> {
        let labels = &config.labels;
        let listed = labels.iter().map(|l| format!("`{l}`")).collect::<Vec<_>>().join(", ");
        let label = match label {
            None if labels.len() <= 2 => labels.len() - 1,
            None => {
                return Err(RunError::Input(format!(
                    "the model has {} labels; say with --label which of them is wanted: {listed}",
                    labels.len()
                )));
            }
            Some(name) => {
                let by_name = labels.iter().position(|l| l == name);
                let by_number = || name.parse().ok().filter(|&i: &usize| i < labels.len());
                by_name.or_else(by_number).ok_or_else(|| {
                    RunError::Input(format!("the model has no label `{name}`; it has {listed}"))
                })?
            }
        };
        let usual = match (config.problem, labels.len()) {
            (Some(Problem::Regression), _) => Kind::Raw,
            (Some(Problem::MultiLabel), _) | (_, 1) => Kind::Sigmoid,
            _ => Kind::Softmax,
        };
        Ok(Scoring { label, kind: kind.unwrap_or(usual) })
    }

    /// The score of these logits.
    pub fn score(&self, logits: &[f32]) -> f64 {
        let x = f64::from(logits[self.label]);
        match self.kind {
            Kind::Raw => x,
            Kind::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Kind::Softmax => 1.0 / logits.iter().map(|&y| (f64::from(y) - x).exp()).sum::<f64>(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(labels: usize, problem: &str) -> EncoderConfig {
        let names: serde_json::Map<String, serde_json::Value> =
            (0..labels).map(|i| (i.to_string(), json!(["bad", "good", "odd"][i]))).collect();
        EncoderConfig::from_json(&json!({
            "model_type": "bert", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 8, "id2label": names,
            "problem_type": if problem.is_empty() { json!(null) } else { json!(problem) }
        }))
        .unwrap()
    }

    #[test]
    fn scorings_follow_the_model() {
        let choose = |labels, problem: &str| Scoring::choose(&config(labels, problem), None, None).unwrap();
        assert_eq!(choose(1, ""), Scoring { label: 0, kind: Kind::Sigmoid });
        assert_eq!(choose(1, "regression"), Scoring { label: 0, kind: Kind::Raw });
        assert_eq!(choose(2, ""), Scoring { label: 1, kind: Kind::Softmax });
        assert_eq!(choose(2, "multi_label_classification"), Scoring { label: 1, kind: Kind::Sigmoid });
        let three = config(3, "");
        assert_eq!(Scoring::choose(&three, Some("odd"), None).unwrap().label, 2);
        assert_eq!(Scoring::choose(&three, Some("0"), Some(Kind::Raw)).unwrap().kind, Kind::Raw);
        let message = |label| Scoring::choose(&three, label, None).unwrap_err().to_string();
        assert!(message(None).contains("--label") && message(None).contains("`bad`, `good`, `odd`"));
        assert!(message(Some("3")).contains("no label `3`"));
    }

    #[test]
    fn scores() {
        let score = |kind, logits: &[f32]| Scoring { label: 1, kind }.score(logits);
        assert_eq!(score(Kind::Raw, &[1.0, 2.5]), 2.5);
        assert_eq!(score(Kind::Sigmoid, &[9.0, 0.0]), 0.5);
        assert!((score(Kind::Softmax, &[0.0, 3f32.ln()]) - 0.75).abs() < 1e-7);
        assert_eq!(score(Kind::Softmax, &[800.0, -800.0]), 0.0);
    }
}
