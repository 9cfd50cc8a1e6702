//! The model with a key-value cache: tokens go in, the logits after the last of each row come out.
//!
//! Rows are independent: each has its own length, and a step may bring a different number of tokens to each. A step is
//! one run of a plan for a fixed number of tokens a row (a piece); rows with fewer tokens are padded.

use crate::error::{Result, RunError};
use crate::exec::Slot;
use crate::inference::Served;
use crate::plan_set::{PlanId, PlanSet};
use kfc_ops::step::decode::decode_graph;

/// Tokens a row that plans are made for.
const PIECES: [usize; 4] = [1, 8, 64, 512];
/// Padded tokens of a run beyond which only the two shortest pieces are used: it bounds the activations.
const MAX_TOKENS: usize = 4096;
/// Data of the decode graph whose shape depends on the piece.
const OWN: [&str; 3] = ["tokens", "positions", "segments"];

/// A plan for pieces of one length.
struct Piece {
    plan: PlanId,
    tokens: Slot,
    positions: Slot,
    segments: Slot,
    logits: usize,
}

/// Data that all pieces share.
struct Shared {
    start: Slot,
    last: Slot,
    cache_segments: Slot,
    cache_positions: Slot,
}

/// A model that reads tokens into caches.
pub struct Decoder<'a> {
    served: &'a Served,
    capacity: usize,
    batch: usize,
    plans: PlanSet,
    /// Lengths of pieces, ascending, each with its plan once it was needed.
    pieces: Vec<(usize, Option<Piece>)>,
    shared: Option<Shared>,
    lengths: Vec<usize>,
    /// The piece that ran last.
    ran: Option<usize>,
}

impl<'a> Decoder<'a> {
    /// `batch` empty caches for `capacity` tokens each. Nothing is compiled yet.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn new(served: &'a Served, capacity: usize, batch: usize) -> Result<Decoder<'a>> {
        let fits = |&n: &usize| n <= 8 || (n * batch <= MAX_TOKENS && n <= capacity.next_power_of_two());
        Ok(Decoder {
            served,
            capacity,
            batch,
            plans: PlanSet::new(served.store(capacity)?)?,
            pieces: PIECES.into_iter().filter(fits).map(|n| (n, None)).collect(),
            shared: None,
            lengths: vec![0; batch],
            ran: None,
        })
    }

    /// Tokens that a row's cache holds at most.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Number of rows.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Tokens in the cache of `row`.
    pub fn len(&self, row: usize) -> usize {
        self.lengths[row]
    }

    /// Whether all caches are empty.
    pub fn is_empty(&self) -> bool {
        self.lengths.iter().all(|n| *n == 0)
    }

    /// Forgets all but the first `len` tokens of `row`.
    pub fn truncate(&mut self, row: usize, len: usize) {
        let len = len.min(self.lengths[row]);
        let (from, to) = (row * self.capacity + len, row * self.capacity + self.lengths[row]);
        if let Some(shared) = &self.shared {
            self.plans.store_mut().slice_mut::<i32>(shared.cache_segments)[from..to].fill(-1);
        }
        self.lengths[row] = len;
    }

    /// The longest piece worth running when the row with the most tokens has `pending`: one that they fill to more than
    /// a quarter, or else the next shorter one.
    fn piece_for(&self, pending: usize) -> usize {
        let at = self.pieces.iter().position(|(n, _)| *n >= pending).unwrap_or(self.pieces.len() - 1);
        if at > 0 && pending * 4 <= self.pieces[at].0 { at - 1 } else { at }
    }

    /// Compiles what [`Decoder::step`] needs for this much, so that a step's time is the step's.
    ///
    /// # Errors
    /// If compiling fails or memory runs out.
    pub fn ready(&mut self, pending: &[&[i32]]) -> Result<()> {
        self.prepare(self.piece_for(longest(pending)))
    }

    /// Reads the first tokens of `pending` (one slice a row, empty for rows that rest) into the caches, and writes to
    /// `taken` how many of each row. The logits are those after the last token taken.
    ///
    /// # Errors
    /// If a token is outside the vocabulary, a row's cache is full, or compiling a piece fails.
    pub fn step(&mut self, pending: &[&[i32]], taken: &mut [usize]) -> Result<()> {
        let at = self.piece_for(longest(pending));
        self.prepare(at)?;
        let (t, capacity) = (self.pieces[at].0, self.capacity);
        let (Some(piece), Some(shared)) = (&self.pieces[at].1, &self.shared) else { return Ok(()) };
        let vocab = self.served.model.config.vocab_size;
        let store = self.plans.store_mut();
        for (row, tokens) in pending.iter().enumerate() {
            let (len, n) = (self.lengths[row], tokens.len().min(t));
            if len + n > capacity {
                return Err(RunError::Failed(format!("the cache is full: {capacity} tokens")));
            }
            if let Some(bad) = tokens[..n].iter().find(|id| **id < 0 || **id as usize >= vocab) {
                return Err(RunError::Input(format!(
                    "token {bad} is outside the model's vocabulary of {vocab}; is the tokenizer that of another model?"
                )));
            }
            let padded = row * t..(row + 1) * t;
            let real = row * t..row * t + n;
            store.slice_mut::<i32>(piece.tokens)[padded.clone()].fill(0);
            store.slice_mut::<i32>(piece.tokens)[real.clone()].copy_from_slice(&tokens[..n]);
            store.slice_mut::<i32>(piece.segments)[padded.clone()].fill(-1);
            store.slice_mut::<i32>(piece.segments)[real.clone()].fill(0);
            store.slice_mut::<i32>(piece.positions)[padded].fill(0);
            let positions = &mut store.slice_mut::<i32>(piece.positions)[real];
            positions.iter_mut().zip(len as i32..).for_each(|(p, at)| *p = at);
            // A resting row writes behind its cache, which drops the rows.
            store.slice_mut::<i32>(shared.start)[row] = if n == 0 { capacity } else { len } as i32;
            store.slice_mut::<i32>(shared.last)[row] = n.saturating_sub(1) as i32;
            let cache = row * capacity + len..row * capacity + len + n;
            store.slice_mut::<i32>(shared.cache_segments)[cache].fill(0);
            self.lengths[row] += n;
            taken[row] = n;
        }
        self.plans.run(piece.plan);
        self.ran = Some(at);
        Ok(())
    }

    /// Logits `[V]` after the last token that `row` read in the last step; empty before the first step.
    pub fn logits(&self, row: usize) -> &[f32] {
        let vocab = self.served.model.config.vocab_size;
        match self.ran.and_then(|at| self.pieces[at].1.as_ref()) {
            Some(piece) => {
                let all = self.plans.plan(piece.plan).output::<f32>(piece.logits);
                &all[row * vocab..(row + 1) * vocab]
            }
            None => &[],
        }
    }

    /// Compiles the plan of a piece, if that was not done, and the data that all share with the first.
    fn prepare(&mut self, at: usize) -> Result<()> {
        if self.pieces[at].1.is_some() {
            return Ok(());
        }
        let t = self.pieces[at].0;
        let model = &self.served.model;
        let lora = self.served.lora.as_ref();
        let graph = decode_graph(&model.config, model.dtype, lora, self.batch, t, self.capacity)?;
        let prefix = format!("piece.{t}.");
        let plan = self.plans.add(&graph, &OWN, &prefix)?;
        let slot = |name: &str| self.plans.slot(&format!("{prefix}{name}"));
        let piece = Piece {
            plan,
            tokens: slot("tokens")?,
            positions: slot("positions")?,
            segments: slot("segments")?,
            logits: self.plans.output(plan, "logits")?,
        };
        self.pieces[at].1 = Some(piece);
        if self.shared.is_none() {
            self.share()?;
        }
        Ok(())
    }

    fn share(&mut self) -> Result<()> {
        let shared = Shared {
            start: self.plans.slot("start")?,
            last: self.plans.slot("last")?,
            cache_segments: self.plans.slot("cache_segments")?,
            cache_positions: self.plans.slot("cache_positions")?,
        };
        let store = self.plans.store_mut();
        store.slice_mut::<i32>(shared.cache_segments).fill(-1);
        for row in store.slice_mut::<i32>(shared.cache_positions).chunks_mut(self.capacity) {
            row.iter_mut().zip(0..).for_each(|(p, i)| *p = i);
        }
        self.shared = Some(shared);
        Ok(())
    }
}

fn longest(pending: &[&[i32]]) -> usize {
    pending.iter().map(|p| p.len()).max().unwrap_or(0)
}
