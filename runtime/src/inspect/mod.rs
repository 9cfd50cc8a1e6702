//! `kfc inspect`: what a model makes of a text, and what training changed.
//!
//! - [`ask`]: attention weights, gradient × input, and each part's share of a logit, for one row of tokens;
//! - `moved`: how far an adapter moves each weight;
//! - `fisher`: where a Fisher diagonal is large.

mod fisher;
mod moved;
mod parts;

pub use fisher::{FisherTensor, read_fisher};
pub use kfc_ops::step::inspect::Of;
pub use moved::{Moved, moved};
pub use parts::{Part, PartKind};

use crate::error::{Result, RunError};
use crate::exec::{BoundPlan, Store};
use crate::inference::{Served, bind_one};
use kfc_ops::step::inspect::inspect_graph;

/// What is asked about a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Token ids of the row, one or more.
    pub tokens: Vec<i32>,
    /// Position asked about; the model's next token there is looked at.
    pub position: usize,
    /// Token whose logit is explained; `None` takes the likeliest.
    pub target: Option<i32>,
    /// What the gradient is of.
    pub of: Of,
}

/// What a model makes of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Inspection {
    /// Token whose logit is explained.
    pub target: i32,
    /// Its logit at the position.
    pub logit: f64,
    /// The likeliest tokens at the position and their probabilities, the likeliest first.
    pub likeliest: Vec<(i32, f64)>,
    /// Probability of the target.
    pub probability: f64,
    /// How many tokens are likelier than the target.
    pub rank: usize,
    /// Mean cross-entropy of the row's tokens after the first, nats; `None` for a row of one token.
    pub ce: Option<f64>,
    /// Gradient × input of each token, summed over the hidden axis.
    pub attribution: Vec<f32>,
    /// 2-norm of the gradient of each token.
    pub sensitivity: Vec<f32>,
    /// What each part adds to the residual stream and to the logit, in order.
    pub parts: Vec<Part>,
    /// Attention weights of each layer, `[heads,T,T]`.
    pub attention: Vec<Vec<f32>>,
    /// Heads of a layer.
    pub heads: usize,
}

/// Tokens named in [`Inspection::likeliest`].
const LIKELIEST: usize = 10;

/// Runs the model on a row and explains what it says.
///
/// # Errors
/// If a token, the position or the target is out of range, a result is not finite, or memory runs out.
pub fn ask(served: &Served, question: &Question) -> Result<Inspection> {
    check(served, question)?;
    let config = &served.model.config;
    let seq = question.tokens.len();
    let mut store = served.store(seq)?;
    let graph = inspect_graph(config, served.model.dtype, served.lora.as_ref(), seq, question.of)?;
    let mut plan = bind_one(graph, &mut store)?;
    fill(&mut store, question)?;
    // Without a target the first run tells which it is.
    let target = match question.target {
        Some(target) => target,
        None => {
            plan.run(&mut store);
            let logits = vector(&plan, "logits")?;
            likeliest(&logits, 1).first().copied().unwrap_or(0)
        }
    };
    let slot = slot(&store, "target")?;
    store.slice_mut::<f32>(slot).fill(0.0);
    store.slice_mut::<f32>(slot)[target as usize] = 1.0;
    plan.run(&mut store);
    let logits = vector(&plan, "logits")?;
    let attribution = vector(&plan, "attribution")?;
    if logits.iter().chain(&attribution).any(|v| !v.is_finite()) {
        return Err(served.not_finite());
    }
    let log_sum = log_sum_exp(&logits);
    let probability = |token: i32| (f64::from(logits[token as usize]) - log_sum).exp();
    let logit = logits[target as usize];
    Ok(Inspection {
        target,
        logit: f64::from(logit),
        likeliest: likeliest(&logits, LIKELIEST).into_iter().map(|t| (t, probability(t))).collect(),
        probability: probability(target),
        rank: logits.iter().filter(|z| **z > logit).count(),
        ce: (seq > 1).then(|| f64::from(plan.scalar(plan.output_index("ce")))),
        attribution,
        sensitivity: vector(&plan, "sensitivity")?,
        parts: parts::parts(served, &store, &plan)?,
        attention: (0..config.layers)
            .map(|layer| vector(&plan, &format!("attention.{layer}")))
            .collect::<Result<_>>()?,
        heads: config.heads,
    })
}

fn check(served: &Served, question: &Question) -> Result<()> {
    let (vocab, seq) = (served.model.config.vocab_size as i32, question.tokens.len());
    if question.position >= seq {
        return Err(RunError::Input(format!(
            "position {} is asked about, but the row has {seq} tokens, counted from 0",
            question.position
        )));
    }
    if let Some(bad) = question.tokens.iter().chain(&question.target).find(|t| !(0..vocab).contains(*t)) {
        return Err(RunError::Input(format!(
            "token {bad} is outside the model's vocabulary of {vocab}; is the tokenizer that of another model?"
        )));
    }
    Ok(())
}

fn fill(store: &mut Store, question: &Question) -> Result<()> {
    let tokens = &question.tokens;
    let seq = tokens.len();
    let positions: Vec<i32> = (0..seq as i32).collect();
    let mut labels = tokens[1..].to_vec();
    labels.push(crate::data::IGNORE);
    let rows: [(&str, &[i32]); 4] =
        [("tokens", tokens), ("positions", &positions), ("segments", &vec![0; seq]), ("labels", &labels)];
    for (name, values) in rows {
        let slot = slot(store, name)?;
        store.write(slot, values);
    }
    let share = 1.0 / (seq - 1).max(1) as f32;
    let weights: Vec<f32> = (1..=seq).map(|i| if i < seq { share } else { 0.0 }).collect();
    let pick: Vec<f32> = (0..seq).map(|i| if i == question.position { 1.0 } else { 0.0 }).collect();
    for (name, values) in [("w_ce", weights), ("pick", pick)] {
        let slot = slot(store, name)?;
        store.write(slot, &values);
    }
    Ok(())
}

fn slot(store: &Store, name: &str) -> Result<crate::exec::Slot> {
    store.slot(name).ok_or_else(|| RunError::Failed(format!("the inspected graph has no input `{name}`")))
}

/// An `f32` output.
fn vector(plan: &BoundPlan, name: &str) -> Result<Vec<f32>> {
    let missing = || RunError::Failed(format!("the inspected graph has no output `{name}`"));
    Ok(plan.output::<f32>(plan.output_index(name).ok_or_else(missing)?).to_vec())
}

/// The tokens of the `n` largest logits, the largest first, ties in order of id.
fn likeliest(logits: &[f32], n: usize) -> Vec<i32> {
    let mut ids: Vec<i32> = (0..logits.len() as i32).collect();
    let larger = |a: &i32, b: &i32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let n = n.min(ids.len());
    if n < ids.len() {
        ids.select_nth_unstable_by(n, larger);
    }
    ids.truncate(n);
    ids.sort_by(larger);
    ids
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let max = f64::from(max);
    max + logits.iter().map(|z| (f64::from(*z) - max).exp()).sum::<f64>().ln()
}
