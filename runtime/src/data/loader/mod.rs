//! Batches of fixed shape for the steps of training.
//!
//! A step takes `batch × accumulation` rows; a step never mixes epochs. What is left of an epoch and fills no step is
//! dropped, unless the whole epoch is shorter than a step: then the step is padded with empty rows. Rows come in the order
//! of the source, or in that of [`permutation`](super::order::permutation); general rows have an order and epochs of their own.
//!
//! Of rows in memory, rank `r` of `w` takes the `r`-th part of what one process with `w` times the rows a step would take:
//! the ranks' steps together are the steps of one. Streamed rows are shared out by blocks (see [`super::stream`]).
//!
//! A step is a pure function of the rows, the settings and a [`Cursor`]. A thread builds two steps ahead;
//! the cursor of the loader counts only what was taken out of it.

mod general;
mod held;
mod streamed;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use super::documents::IGNORE;
use super::error::{DataError, Result};
use super::pack::{RowSet, RowSlices};
use super::report::DataReport;
use super::stream::RowStream;

/// How many steps are built ahead.
const AHEAD: usize = 2;

/// Steps that exist at once: the one in use, those built ahead, and the one that waits to join them.
const ALIVE: u64 = AHEAD as u64 + 2;

/// Bytes of the steps that a loader of this shape holds at once: four numbers a position, an id and a mark a row.
pub fn held_bytes(batch: usize, accumulation: usize, seq_len: usize) -> u64 {
    let rows = (batch as u64).saturating_mul(accumulation as u64);
    let row = (seq_len as u64).saturating_mul(4 * 4) + 8 + 1;
    rows.saturating_mul(row).saturating_mul(ALIVE)
}

/// How rows become steps.
#[derive(Clone, Debug, PartialEq)]
pub struct LoaderConfig {
    /// Rows of a micro-batch.
    pub batch: usize,
    /// Micro-batches of a step.
    pub accumulation: usize,
    /// Whether each epoch has an order of its own (else that of the source).
    pub shuffle: bool,
    /// The seed of that order.
    pub seed: u64,
    /// The share of general rows in each micro-batch, in [0, 1). It means nothing without general rows.
    pub general_fraction: f64,
    /// Which share of each step is built, below `world`. Streamed rows come as their stream was told.
    pub rank: usize,
    /// How many processes share the data.
    pub world: usize,
}

/// The rows of one forward and backward pass, row-major [rows, seq_len].
#[derive(Clone, Debug, PartialEq)]
pub struct MicroBatch {
    /// Rows, empty ones included.
    pub rows: usize,
    /// Tokens of a row, padding included.
    pub seq_len: usize,
    /// Token ids; 0 in padding.
    pub tokens: Vec<i32>,
    /// The token that each position is to predict, -100 where none is: shifted already.
    pub labels: Vec<i32>,
    /// Positions, from 0 in each document; 0 in padding.
    pub positions: Vec<i32>,
    /// The document's index in its row; -1 in padding.
    pub segments: Vec<i32>,
    /// For each row, whether it is general text (taught by the teacher alone).
    pub general: Vec<bool>,
    /// For each row its index in its [`RowSet`] (the general rows have one of their own), for a streamed row its block and
    /// the row in it; `u64::MAX` for an empty row.
    pub row_ids: Vec<u64>,
}

/// The micro-batches of one step of the optimiser.
#[derive(Clone, Debug, PartialEq)]
pub struct StepBatch {
    /// `accumulation` micro-batches.
    pub micro: Vec<MicroBatch>,
    /// Labels that are not -100 in rows that are not general.
    pub ce_tokens: usize,
    /// Labels that are not -100.
    pub kd_tokens: usize,
    /// Tokens that are not padding.
    pub tokens: usize,
}

/// A place in the data: how much was consumed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Epochs that are over.
    pub epoch: u64,
    /// Steps taken of the current epoch.
    pub step_in_epoch: u64,
    /// A number that stands for the data and the settings; a cursor is worth nothing with others.
    pub stream: u64,
    /// Where streamed rows go on.
    pub place: Place,
}

/// A place in streamed rows; all zero for rows in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Groups of blocks of the epoch that are used up.
    pub group: u64,
    /// Rows taken of the current group.
    pub row: u64,
    /// General rows taken in all.
    pub general: u64,
}

impl Cursor {
    /// The cursor as it is written into a checkpoint.
    pub fn to_json(&self) -> Value {
        let stream = format!("{:016x}", self.stream);
        let mut json = json!({"epoch": self.epoch, "step_in_epoch": self.step_in_epoch, "stream": stream});
        if self.place != Place::default() {
            json["place"] = json!([self.place.group, self.place.row, self.place.general]);
        }
        json
    }

    /// Reads what [`Cursor::to_json`] wrote.
    pub fn from_json(value: &Value) -> Result<Cursor> {
        let number = |key: &str| value[key].as_u64();
        let stream = value["stream"].as_str().and_then(|s| u64::from_str_radix(s, 16).ok());
        let place = match &value["place"] {
            Value::Null => Some(Place::default()),
            place => match [0, 1, 2].map(|i| place[i].as_u64()) {
                [Some(group), Some(row), Some(general)] => Some(Place { group, row, general }),
                _ => None,
            },
        };
        match (number("epoch"), number("step_in_epoch"), stream, place) {
            (Some(epoch), Some(step_in_epoch), Some(stream), Some(place)) => {
                Ok(Cursor { epoch, step_in_epoch, stream, place })
            }
            _ => Err(DataError::Cursor {
                reason: format!(
                    "the checkpoint's data position is damaged: {value}; use an earlier checkpoint"
                ),
            }),
        }
    }
}

/// Makes the step at a place, and the place behind it, again and again.
type Steps = Box<dyn FnMut() -> Result<(StepBatch, Cursor)> + Send>;

/// Where rows come from.
#[derive(Debug)]
enum Rows {
    Held(Arc<held::Plan>),
    Streamed(Arc<streamed::Plan>),
}

impl Rows {
    fn steps(&self, from: &Cursor) -> Steps {
        match self {
            Rows::Held(plan) => plan.steps(from),
            Rows::Streamed(plan) => plan.steps(from),
        }
    }
}

/// Hands out the steps of training.
#[derive(Debug)]
pub struct Loader {
    rows: Rows,
    cursor: Cursor,
    ahead: Option<Ahead>,
    reading: Duration,
}

impl Loader {
    /// A loader at the start of rows in memory. `general` is what [`LoaderConfig::general_fraction`] takes rows from.
    pub fn new(main: RowSet, general: Option<RowSet>, config: LoaderConfig) -> Result<Loader> {
        let plan = Arc::new(held::Plan::new(main, general, config)?);
        let cursor = Cursor { stream: plan.stream, ..Cursor::default() };
        Ok(Loader { rows: Rows::Held(plan), cursor, ahead: None, reading: Duration::ZERO })
    }

    /// A loader at the start of streamed rows; general rows are in memory.
    pub fn streamed(main: RowStream, general: Option<RowSet>, config: LoaderConfig) -> Result<Loader> {
        let plan = Arc::new(streamed::Plan::new(main, general, config)?);
        let cursor = Cursor { stream: plan.number, ..Cursor::default() };
        Ok(Loader { rows: Rows::Streamed(plan), cursor, ahead: None, reading: Duration::ZERO })
    }

    /// The same, saying that reading its rows took so long.
    pub fn after(self, reading: Duration) -> Loader {
        Loader { reading, ..self }
    }

    /// How long reading the rows took, as far as that was said.
    pub fn reading(&self) -> Duration {
        self.reading
    }

    /// Begins to build steps, so that the first is there when it is asked for.
    pub fn begin(&mut self) {
        if self.ahead.is_none() {
            self.ahead = Ahead::start(self.rows.steps(&self.cursor));
        }
    }

    /// The next step.
    ///
    /// # Errors
    /// If a streamed row cannot be used, or a file changed. Rows in memory have been looked at.
    pub fn next_step(&mut self) -> Result<StepBatch> {
        self.begin();
        let built = self.ahead.as_ref().and_then(|a| a.steps.as_ref()?.recv().ok());
        // A thread that could not be started or is gone costs speed, not the run.
        let made = built.unwrap_or_else(|| self.rows.steps(&self.cursor)());
        match made {
            Ok((step, cursor)) => {
                self.cursor = cursor;
                Ok(step)
            }
            Err(error) => {
                self.ahead = None;
                Err(error)
            }
        }
    }

    /// The place behind the last step that was taken.
    pub fn cursor(&self) -> Cursor {
        self.cursor.clone()
    }

    /// Goes to a place: the steps that follow are those that followed it before.
    pub fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        if cursor.stream != self.cursor.stream {
            return Err(DataError::Cursor {
                reason: "the data, the tokenizer or a setting of its order (batch, accumulation, seq_len, packing, \
                         shuffle, seed, rank, world, streaming, general text) is not that of the checkpoint; restore it, \
                         or start a new run from the adapter"
                    .into(),
            });
        }
        if u32::try_from(cursor.epoch).is_err() {
            return Err(DataError::Cursor {
                reason: format!("there was no epoch {}; use an earlier checkpoint", cursor.epoch),
            });
        }
        match &self.rows {
            Rows::Held(plan) => plan.check(cursor)?,
            Rows::Streamed(plan) => plan.check(cursor)?,
        }
        self.ahead = None;
        self.cursor = cursor.clone();
        Ok(())
    }

    /// Steps of an epoch, at least 1; none where rows are not counted before they are read.
    pub fn steps_per_epoch(&self) -> Option<usize> {
        match &self.rows {
            Rows::Held(plan) => Some(plan.steps_per_epoch),
            Rows::Streamed(_) => None,
        }
    }

    /// Epochs that are over.
    pub fn epoch(&self) -> u64 {
        self.cursor.epoch
    }

    /// Tokens of a row.
    pub fn seq_len(&self) -> usize {
        match &self.rows {
            Rows::Held(plan) => plan.main.seq_len(),
            Rows::Streamed(plan) => plan.stream.seq_len(),
        }
    }

    /// The training rows, if they are in memory.
    pub fn rows(&self) -> Option<&RowSet> {
        match &self.rows {
            Rows::Held(plan) => Some(&plan.main),
            Rows::Streamed(_) => None,
        }
    }

    /// The files that rows are streamed from, if they are.
    pub fn stream(&self) -> Option<&RowStream> {
        match &self.rows {
            Rows::Held(_) => None,
            Rows::Streamed(plan) => Some(&plan.stream),
        }
    }

    /// What was counted in the blocks that were read so far, if rows are streamed.
    pub fn streamed_report(&self) -> Option<DataReport> {
        match &self.rows {
            Rows::Held(_) => None,
            Rows::Streamed(plan) => Some(plan.report()),
        }
    }

    /// The general rows, if they are used.
    pub fn general_rows(&self) -> Option<&RowSet> {
        match &self.rows {
            Rows::Held(plan) => plan.general.rows(),
            Rows::Streamed(plan) => plan.general.rows(),
        }
    }

    /// General rows of each micro-batch of a step.
    pub fn general_rows_per_micro_batch(&self) -> &[usize] {
        match &self.rows {
            Rows::Held(plan) => &plan.general.per_micro,
            Rows::Streamed(plan) => &plan.general.per_micro,
        }
    }
}

impl StepBatch {
    fn empty(micro_batches: usize) -> StepBatch {
        StepBatch { micro: Vec::with_capacity(micro_batches), ce_tokens: 0, kd_tokens: 0, tokens: 0 }
    }
}

impl MicroBatch {
    fn empty(rows: usize, seq_len: usize) -> MicroBatch {
        let n = rows * seq_len;
        MicroBatch {
            rows,
            seq_len,
            tokens: vec![0; n],
            labels: vec![IGNORE; n],
            positions: vec![0; n],
            segments: vec![-1; n],
            general: vec![false; rows],
            row_ids: vec![u64::MAX; rows],
        }
    }

    /// Puts a row into a slot and counts its tokens.
    fn put(&mut self, slot: usize, rows: &RowSet, row: usize, id: u64, step: &mut StepBatch) {
        let range = slot * self.seq_len..(slot + 1) * self.seq_len;
        rows.fill(
            row,
            RowSlices {
                tokens: &mut self.tokens[range.clone()],
                labels: &mut self.labels[range.clone()],
                positions: &mut self.positions[range.clone()],
                segments: &mut self.segments[range.clone()],
            },
        );
        self.row_ids[slot] = id;
        let trained = self.labels[range.clone()].iter().filter(|&&l| l != IGNORE).count();
        step.kd_tokens += trained;
        step.ce_tokens += if self.general[slot] { 0 } else { trained };
        step.tokens += self.segments[range].iter().filter(|&&s| s >= 0).count();
    }
}

/// The thread that builds steps, from a cursor on.
#[derive(Debug)]
struct Ahead {
    steps: Option<Receiver<Result<(StepBatch, Cursor)>>>,
    thread: Option<JoinHandle<()>>,
}

impl Ahead {
    fn start(mut steps: Steps) -> Option<Ahead> {
        let (send, receive) = sync_channel(AHEAD);
        let work = move || {
            loop {
                let step = steps();
                let failed = step.is_err();
                if send.send(step).is_err() || failed {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name("kfc-loader".into()).spawn(work).ok()?;
        Some(Ahead { steps: Some(receive), thread: Some(thread) })
    }
}

impl Drop for Ahead {
    /// Closes the channel, which ends the thread, and waits for it.
    fn drop(&mut self) {
        self.steps = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
