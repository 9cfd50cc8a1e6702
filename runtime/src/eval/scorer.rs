//! Log-likelihoods of rows of tokens, in batches of rows of about the same length.
//!
//! Each row goes to the shortest of a fixed list of lengths that holds it; each length has one plan, with as many rows as
//! its batches need. So short rows are not padded to the longest, and nothing is compiled twice.

use crate::data::IGNORE;
use crate::error::{Result, RunError};
use crate::exec::Slot;
use crate::inference::Served;
use crate::plan_set::{PlanId, PlanSet};
use kfc_ops::step::score::score_graph;

/// Padded tokens of a run: bounds the activations, so that long rows come in smaller batches.
pub(super) const MAX_TOKENS: usize = 8192;
/// Shortest row length that has a plan.
const SHORTEST: usize = 16;
/// Inputs of the score graph whose shape depends on the row length.
const OWN: [&str; 6] = ["tokens", "positions", "segments", "labels", "student.rope.cos", "student.rope.sin"];

/// Tokens of a text, of which some are scored.
#[derive(Clone, Copy, Debug)]
pub struct ScoreRow<'a> {
    /// Token ids, two or more.
    pub tokens: &'a [i32],
    /// For each token the id itself if it is scored, else [`IGNORE`]. The first is never scored.
    pub labels: &'a [i32],
}

/// What the model makes of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowScore {
    /// Sum of the log-probabilities of the scored tokens, in nats.
    pub logp: f64,
    /// Number of scored tokens.
    pub tokens: usize,
    /// How many of them are the likeliest token of their place.
    pub greedy: usize,
}

/// The length of the plan for rows of `inputs` tokens: 16, 32, 64, 96, 128, 192, …, at most a third is padding.
pub(super) fn padded(inputs: usize) -> usize {
    let power = inputs.next_power_of_two().max(SHORTEST);
    let between = power / 4 * 3;
    if between >= 96 && between >= inputs { between } else { power }
}

/// A plan for rows of one length.
struct Bucket {
    plan: PlanId,
    batch: usize,
    seq: usize,
    tokens: Slot,
    positions: Slot,
    segments: Slot,
    labels: Slot,
    logp: usize,
    greedy: usize,
}

/// Scores rows, `batch` at a time at most; the scores are in the order of the rows. `progress` is told the rows done and
/// in all.
///
/// # Errors
/// If a token is outside the vocabulary, a score is not finite, compiling fails or memory runs out.
pub fn score(
    served: &Served,
    rows: &[ScoreRow<'_>],
    batch: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<RowScore>> {
    check(served, rows)?;
    let mut by_length: Vec<(usize, usize)> =
        rows.iter().enumerate().map(|(i, row)| (padded(row.tokens.len() - 1), i)).collect();
    // Longest first: the first plan needs the largest arena, and what runs out of memory does so at once.
    by_length.sort_by_key(|&(length, i)| (std::cmp::Reverse(length), i));
    let mut plans = PlanSet::new(served.store(1)?)?;
    let mut scores = vec![RowScore::default(); rows.len()];
    let mut done = 0;
    for group in by_length.chunk_by(|a, b| a.0 == b.0) {
        let seq = group[0].0;
        let most = (MAX_TOKENS / seq).clamp(1, batch.max(1));
        let batches = group.len().div_ceil(most);
        let bucket = Bucket::new(served, &mut plans, group.len().div_ceil(batches), seq)?;
        for members in group.chunks(bucket.batch) {
            bucket.run(&mut plans, rows, members);
            for (at, &(_, row)) in members.iter().enumerate() {
                let score = bucket.read(&plans, at, rows[row]);
                if !score.logp.is_finite() {
                    return Err(served.not_finite());
                }
                scores[row] = score;
            }
            done += members.len();
            progress(done, rows.len());
        }
    }
    Ok(scores)
}

fn check(served: &Served, rows: &[ScoreRow<'_>]) -> Result<()> {
    let vocab = served.model.config.vocab_size as i32;
    for row in rows {
        if row.tokens.len() < 2 {
            return Err(RunError::Failed("a row to score has fewer than two tokens".into()));
        }
        if let Some(bad) = row.tokens.iter().find(|t| !(0..vocab).contains(*t)) {
            return Err(RunError::Input(format!(
                "token {bad} is outside the model's vocabulary of {vocab}; is the tokenizer that of another model?"
            )));
        }
    }
    Ok(())
}

impl Bucket {
    fn new(served: &Served, plans: &mut PlanSet, batch: usize, seq: usize) -> Result<Bucket> {
        let model = &served.model;
        let prefix = format!("rows.{seq}.");
        model.place_rope(plans.store_mut(), &format!("{prefix}student."), seq)?;
        let graph = score_graph(&model.config, model.dtype, served.lora.as_ref(), batch, seq)?;
        let plan = plans.add(&graph, &OWN, &prefix)?;
        let slot = |name: &str| plans.slot(&format!("{prefix}{name}"));
        Ok(Bucket {
            plan,
            batch,
            seq,
            tokens: slot("tokens")?,
            positions: slot("positions")?,
            segments: slot("segments")?,
            labels: slot("labels")?,
            logp: plans.output(plan, "logp")?,
            greedy: plans.output(plan, "greedy")?,
        })
    }

    /// Runs the plan on `members` (pairs of length and row). The last token of a row predicts nothing and is left out.
    fn run(&self, plans: &mut PlanSet, rows: &[ScoreRow<'_>], members: &[(usize, usize)]) {
        let store = plans.store_mut();
        for at in 0..self.batch {
            let row = members.get(at).map(|&(_, i)| rows[i]);
            let n = row.map_or(0, |r| r.tokens.len() - 1);
            let place = at * self.seq..(at + 1) * self.seq;
            let fill = |values: &mut [i32], with: i32, real: &mut dyn FnMut(usize) -> i32| {
                values.iter_mut().enumerate().for_each(|(i, v)| *v = if i < n { real(i) } else { with });
            };
            let token = &mut |i: usize| row.map_or(0, |r| r.tokens[i]);
            fill(&mut store.slice_mut::<i32>(self.tokens)[place.clone()], 0, token);
            let label = &mut |i: usize| row.map_or(IGNORE, |r| r.labels[i + 1]);
            fill(&mut store.slice_mut::<i32>(self.labels)[place.clone()], IGNORE, label);
            fill(&mut store.slice_mut::<i32>(self.positions)[place.clone()], 0, &mut |i| i as i32);
            fill(&mut store.slice_mut::<i32>(self.segments)[place], -1, &mut |_| 0);
        }
        plans.run(self.plan);
    }

    fn read(&self, plans: &PlanSet, at: usize, row: ScoreRow<'_>) -> RowScore {
        let plan = plans.plan(self.plan);
        let from = at * self.seq;
        let (logp, greedy) =
            (&plan.output::<f32>(self.logp)[from..], &plan.output::<i32>(self.greedy)[from..]);
        let mut score = RowScore::default();
        for (i, &label) in row.labels[1..].iter().enumerate().filter(|(_, l)| **l != IGNORE) {
            score.logp += f64::from(logp[i]);
            score.tokens += 1;
            score.greedy += usize::from(greedy[i] == label);
        }
        score
    }
}

#[cfg(test)]
mod tests {
    use super::padded;

    #[test]
    fn lengths_are_few_and_near() {
        let mut lengths: Vec<usize> = (1..=4096).map(padded).collect();
        assert!((1..=4096).all(|n| padded(n) >= n && (n < 32 || n * 2 > padded(n))));
        lengths.dedup();
        assert_eq!(lengths[..8], [16, 32, 64, 96, 128, 192, 256, 384]);
        assert!(lengths.len() < 20, "{}", lengths.len());
    }
}
