//! What one optimiser step reports.

use serde_json::{Map, Value, json};

/// Figures of a step. Terms are unweighted; a term that is not part of the loss is absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepMetrics {
    /// 1-based.
    pub step: usize,
    /// Weighted sum of the terms.
    pub loss: f64,
    /// Cross-entropy, mean over labelled tokens of the step, nats.
    pub ce: Option<f64>,
    /// T² times the divergence, mean over taught tokens.
    pub kd: Option<f64>,
    /// Mean squared error of the aligned features; the sum over all alignments when there are several.
    pub feat: Option<f64>,
    /// ½ΣF(θ-θ*)²
    pub ewc: Option<f64>,
    /// Learning rate this step used.
    pub lr: f64,
    /// Norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Tokens of the step that are not padding.
    pub tokens: usize,
    /// Their rate.
    pub tokens_per_s: f64,
    /// Wall time of the step, milliseconds.
    pub step_ms: f64,
    /// Peak resident memory of the process so far, bytes.
    pub peak_bytes: u64,
    /// Share of labelled tokens whose most likely token was the label.
    pub accuracy: Option<f64>,
    /// The step's gradient was not finite and nothing was updated.
    pub skipped: bool,
    /// Factor on the loss, if not 1.
    pub loss_scale: Option<f64>,
}

impl StepMetrics {
    /// One line of `metrics.jsonl`, without the line break. Numbers that are not finite become null.
    pub fn to_json(&self) -> Value {
        let mut m = Map::new();
        m.insert("step".into(), json!(self.step));
        m.insert("loss".into(), json!(self.loss));
        for (name, term) in [("ce", self.ce), ("kd", self.kd), ("feat", self.feat), ("ewc", self.ewc)] {
            if let Some(v) = term {
                m.insert(name.into(), json!(v));
            }
        }
        m.insert("lr".into(), json!(self.lr));
        m.insert("grad_norm".into(), json!(self.grad_norm));
        m.insert("tokens".into(), json!(self.tokens));
        m.insert("tokens_per_s".into(), json!(self.tokens_per_s));
        m.insert("step_ms".into(), json!(self.step_ms));
        m.insert("peak_bytes".into(), json!(self.peak_bytes));
        if let Some(v) = self.accuracy {
            m.insert("accuracy".into(), json!(v));
        }
        if let Some(v) = self.loss_scale {
            m.insert("loss_scale".into(), json!(v));
        }
        if self.skipped {
            m.insert("skipped".into(), json!(true));
        }
        Value::Object(m)
    }
}
