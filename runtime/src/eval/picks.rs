//! Log-probabilities of single tokens at single places: what scoring choices needs, and no more.
//!
//! A row is read once, whatever it is asked for, and the output layer works on the places that are asked for, not on the
//! whole row. So choices of one token each cost one pass over their context together. Rows go to the shortest of a fixed
//! list of lengths that holds them; plans stay compiled from call to call.

use super::scorer::{MAX_TOKENS, padded};
use crate::data::IGNORE;
use crate::error::{Result, RunError};
use crate::exec::Slot;
use crate::inference::Served;
use crate::plan_set::{PlanId, PlanSet};
use kfc_ops::step::score::picks_graph;

/// Inputs of the graph whose shape depends on the plan.
const OWN: [&str; 7] =
    ["tokens", "positions", "segments", "at", "labels", "student.rope.cos", "student.rope.sin"];

/// Tokens that are read, and what is asked of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PickRow {
    /// Token ids, one or more.
    pub tokens: Vec<i32>,
    /// Pairs of a position and the token whose log-probability after it is asked for.
    pub picks: Vec<(usize, i32)>,
}

/// Shape of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shape {
    seq: usize,
    picks: usize,
    batch: usize,
}

struct Bucket {
    shape: Shape,
    plan: PlanId,
    tokens: Slot,
    positions: Slot,
    segments: Slot,
    at: Slot,
    labels: Slot,
    logp: usize,
}

/// A model with the plans that were needed so far.
pub(super) struct Picker<'a> {
    served: &'a Served,
    batch: usize,
    plans: PlanSet,
    buckets: Vec<Bucket>,
}

impl<'a> Picker<'a> {
    /// Nothing is compiled yet.
    ///
    /// # Errors
    /// If memory runs out.
    pub(super) fn new(served: &'a Served, batch: usize) -> Result<Picker<'a>> {
        Ok(Picker {
            served,
            batch: batch.max(1),
            plans: PlanSet::new(served.store(1)?)?,
            buckets: Vec::new(),
        })
    }

    /// The log-probabilities in nats, in the order of each row's picks. `progress` is told the rows done and in all.
    ///
    /// # Errors
    /// If a token is outside the vocabulary, a number is not finite, compiling fails or memory runs out.
    pub(super) fn score(
        &mut self,
        rows: &[PickRow],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<Vec<f64>>> {
        self.check(rows)?;
        let length = |row: &PickRow| (padded(row.tokens.len()), row.picks.len().next_power_of_two());
        let mut order: Vec<((usize, usize), usize)> =
            rows.iter().enumerate().map(|(i, row)| (length(row), i)).collect();
        // Longest first: the first plan needs the largest arena, and what runs out of memory does so at once.
        order.sort_by_key(|&(length, i)| (std::cmp::Reverse(length), i));
        let mut out = vec![Vec::new(); rows.len()];
        let mut done = 0;
        for group in order.chunk_by(|a, b| a.0 == b.0) {
            let (seq, picks) = group[0].0;
            let most = (MAX_TOKENS / seq).clamp(1, self.batch);
            for members in group.chunks(most) {
                // Batches are full or of a power of two of rows, so that few plans are compiled.
                let batch =
                    if members.len() == most { most } else { members.len().next_power_of_two().min(most) };
                let bucket = self.bucket(Shape { seq, picks, batch })?;
                let members: Vec<usize> = members.iter().map(|m| m.1).collect();
                self.buckets[bucket].run(&mut self.plans, rows, &members);
                for (at, &row) in members.iter().enumerate() {
                    let logp = self.buckets[bucket].read(&self.plans, at, rows[row].picks.len());
                    if logp.iter().any(|l| !l.is_finite()) {
                        return Err(self.served.not_finite());
                    }
                    out[row] = logp;
                }
                done += members.len();
                progress(done, rows.len());
            }
        }
        Ok(out)
    }

    fn check(&self, rows: &[PickRow]) -> Result<()> {
        let vocab = self.served.model.config.vocab_size as i32;
        let tokens = rows.iter().flat_map(|r| r.tokens.iter().chain(r.picks.iter().map(|p| &p.1)));
        match tokens.into_iter().find(|t| !(0..vocab).contains(*t)) {
            None => Ok(()),
            Some(bad) => Err(RunError::Input(format!(
                "token {bad} is outside the model's vocabulary of {vocab}; is the tokenizer that of another model?"
            ))),
        }
    }

    fn bucket(&mut self, shape: Shape) -> Result<usize> {
        if let Some(at) = self.buckets.iter().position(|b| b.shape == shape) {
            return Ok(at);
        }
        let model = &self.served.model;
        let prefix = format!("picks.{}.{}.{}.", shape.seq, shape.picks, shape.batch);
        model.place_rope(self.plans.store_mut(), &format!("{prefix}student."), shape.seq)?;
        let lora = self.served.lora.as_ref();
        let graph = picks_graph(&model.config, model.dtype, lora, shape.batch, shape.seq, shape.picks)?;
        let plan = self.plans.add(&graph, &OWN, &prefix)?;
        let slot = |name: &str| self.plans.slot(&format!("{prefix}{name}"));
        self.buckets.push(Bucket {
            shape,
            plan,
            tokens: slot("tokens")?,
            positions: slot("positions")?,
            segments: slot("segments")?,
            at: slot("at")?,
            labels: slot("labels")?,
            logp: self.plans.output(plan, "logp")?,
        });
        Ok(self.buckets.len() - 1)
    }
}

impl Bucket {
    fn run(&self, plans: &mut PlanSet, rows: &[PickRow], members: &[usize]) {
        let Shape { seq, picks, batch } = self.shape;
        let store = plans.store_mut();
        let fill = |values: &mut [i32], rest: i32, real: &mut dyn Iterator<Item = i32>| {
            values.iter_mut().for_each(|v| *v = real.next().unwrap_or(rest));
        };
        for at in 0..batch {
            let row = members.get(at).map(|&i| &rows[i]);
            let (tokens, picked) = row.map_or((&[][..], &[][..]), |r| (&r.tokens[..], &r.picks[..]));
            let (whole, asked) = (at * seq..(at + 1) * seq, at * picks..(at + 1) * picks);
            let n = tokens.len() as i32;
            fill(&mut store.slice_mut::<i32>(self.tokens)[whole.clone()], 0, &mut tokens.iter().copied());
            fill(&mut store.slice_mut::<i32>(self.positions)[whole.clone()], 0, &mut (0..n));
            fill(&mut store.slice_mut::<i32>(self.segments)[whole], -1, &mut (0..n).map(|_| 0));
            let first = (at * seq) as i32;
            let places = &mut picked.iter().map(|p| first + p.0 as i32);
            fill(&mut store.slice_mut::<i32>(self.at)[asked.clone()], first, places);
            fill(&mut store.slice_mut::<i32>(self.labels)[asked], IGNORE, &mut picked.iter().map(|p| p.1));
        }
        plans.run(self.plan);
    }

    fn read(&self, plans: &PlanSet, at: usize, count: usize) -> Vec<f64> {
        let from = at * self.shape.picks;
        plans.plan(self.plan).output::<f32>(self.logp)[from..from + count]
            .iter()
            .map(|l| f64::from(*l))
            .collect()
    }
}
