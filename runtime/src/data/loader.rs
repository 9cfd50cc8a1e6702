//! Batches of fixed shape for the steps of training.
//!
//! A step takes `batch × accumulation` rows; a step never mixes epochs. What is left of an epoch and fills no step is
//! dropped, unless the whole epoch is shorter than a step: then the step is padded with empty rows. Rows come in the order
//! of the source, or in that of [`permutation`]; general rows have an order and epochs of their own.
//!
//! A step is a pure function of the rows, the settings and a [`Cursor`]. A thread builds two steps ahead;
//! the cursor of the loader counts only what was taken out of it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use super::documents::IGNORE;
use super::error::{DataError, Result};
use super::order::{Stream, permutation};
use super::pack::{RowSet, RowSlices};

/// How many steps are built ahead.
const AHEAD: usize = 2;

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
    /// For each row its index in its [`RowSet`] (the general rows have one of their own); `u64::MAX` for an empty row.
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Epochs that are over.
    pub epoch: u64,
    /// Steps taken of the current epoch.
    pub step_in_epoch: u64,
    /// A number that stands for the data and the settings; a cursor is worth nothing with others.
    pub stream: u64,
}

impl Cursor {
    /// The cursor as it is written into a checkpoint.
    pub fn to_json(&self) -> Value {
        json!({"epoch": self.epoch, "step_in_epoch": self.step_in_epoch, "stream": format!("{:016x}", self.stream)})
    }

    /// Reads what [`Cursor::to_json`] wrote.
    pub fn from_json(value: &Value) -> Result<Cursor> {
        let number = |key: &str| value[key].as_u64();
        let stream = value["stream"].as_str().and_then(|s| u64::from_str_radix(s, 16).ok());
        match (number("epoch"), number("step_in_epoch"), stream) {
            (Some(epoch), Some(step_in_epoch), Some(stream)) => Ok(Cursor { epoch, step_in_epoch, stream }),
            _ => Err(DataError::Cursor {
                reason: format!(
                    "the checkpoint's data position is damaged: {value}; use an earlier checkpoint"
                ),
            }),
        }
    }
}

/// Hands out the steps of training.
#[derive(Debug)]
pub struct Loader {
    plan: Arc<Plan>,
    cursor: Cursor,
    ahead: Option<Ahead>,
    reading: Duration,
}

impl Loader {
    /// A loader at the start of the data. `general` is what [`LoaderConfig::general_fraction`] takes rows from.
    pub fn new(main: RowSet, general: Option<RowSet>, config: LoaderConfig) -> Result<Loader> {
        let plan = Arc::new(Plan::new(main, general, config)?);
        let cursor = Cursor { epoch: 0, step_in_epoch: 0, stream: plan.stream };
        Ok(Loader { plan, cursor, ahead: None, reading: Duration::ZERO })
    }

    /// The same, saying that reading its rows took so long.
    pub fn after(self, reading: Duration) -> Loader {
        Loader { reading, ..self }
    }

    /// How long reading the rows took, as far as that was said.
    pub fn reading(&self) -> Duration {
        self.reading
    }

    /// The next step.
    pub fn next_step(&mut self) -> StepBatch {
        let ahead = self.ahead.take().or_else(|| Ahead::start(&self.plan, &self.cursor));
        let built = ahead.as_ref().and_then(|a| a.steps.as_ref()?.recv().ok());
        // A thread that could not be started or is gone costs speed, not the run.
        let step = built.unwrap_or_else(|| self.plan.build(&self.cursor, &mut Orders::default()));
        self.ahead = ahead;
        self.cursor = self.plan.after(&self.cursor);
        step
    }

    /// The place behind the last step that was taken.
    pub fn cursor(&self) -> Cursor {
        self.cursor.clone()
    }

    /// Goes to a place: the steps that follow are those that followed it before.
    pub fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        if cursor.stream != self.plan.stream {
            return Err(DataError::Cursor {
                reason: "the data, the tokenizer or a setting of its order (batch, accumulation, seq_len, packing, \
                         shuffle, seed, general text) is not that of the checkpoint; restore it, or start a new run from \
                         the adapter"
                    .into(),
            });
        }
        if u32::try_from(cursor.epoch).is_err() {
            return Err(DataError::Cursor {
                reason: format!("there was no epoch {}; use an earlier checkpoint", cursor.epoch),
            });
        }
        if cursor.step_in_epoch >= self.plan.steps_per_epoch as u64 {
            return Err(DataError::Cursor {
                reason: format!(
                    "step {} of an epoch that has {}; use an earlier checkpoint",
                    cursor.step_in_epoch, self.plan.steps_per_epoch
                ),
            });
        }
        self.ahead = None;
        self.cursor = cursor.clone();
        Ok(())
    }

    /// Steps of an epoch, at least 1.
    pub fn steps_per_epoch(&self) -> usize {
        self.plan.steps_per_epoch
    }

    /// Epochs that are over.
    pub fn epoch(&self) -> u64 {
        self.cursor.epoch
    }

    /// Tokens of a row.
    pub fn seq_len(&self) -> usize {
        self.plan.main.seq_len()
    }

    /// The training rows.
    pub fn rows(&self) -> &RowSet {
        &self.plan.main
    }

    /// The general rows, if they are used.
    pub fn general_rows(&self) -> Option<&RowSet> {
        self.plan.general.as_ref()
    }

    /// General rows of each micro-batch of a step.
    pub fn general_rows_per_micro_batch(&self) -> &[usize] {
        &self.plan.general_rows
    }
}

/// What a step is made from.
#[derive(Debug)]
struct Plan {
    main: RowSet,
    general: Option<RowSet>,
    config: LoaderConfig,
    /// General rows of each micro-batch: its last ones.
    general_rows: Vec<usize>,
    steps_per_epoch: usize,
    stream: u64,
}

/// The orders in use, kept from step to step.
#[derive(Default)]
struct Orders {
    main: Option<(u64, Vec<u32>)>,
    general: Option<(u64, Vec<u32>)>,
}

impl Plan {
    fn new(main: RowSet, general: Option<RowSet>, config: LoaderConfig) -> Result<Plan> {
        let wrong = |setting, reason: String| Err(DataError::Config { setting, reason });
        if config.batch == 0 || config.accumulation == 0 {
            return wrong("train.batch and train.accumulation", "each must be at least 1".into());
        }
        if !(0.0..1.0).contains(&config.general_fraction) {
            let reason = format!("{} is not a share in [0, 1)", config.general_fraction);
            return wrong("distill.general_fraction", reason);
        }
        let general = general.filter(|_| config.general_fraction > 0.0);
        if let Some(g) = &general
            && g.seq_len() != main.seq_len()
        {
            let reason = format!(
                "its rows have {} tokens, the training rows {}; make them equal",
                g.seq_len(),
                main.seq_len()
            );
            return wrong("distill.general", reason);
        }
        for (rows, sources) in [(Some(&main), "data.train"), (general.as_ref(), "distill.general")] {
            if rows.is_some_and(RowSet::is_empty) {
                return Err(DataError::Empty { sources: sources.into(), reason: "there are no rows".into() });
            }
        }
        if general.is_some() && config.batch * config.accumulation < 2 {
            let reason = "a step of one row has no room for general text; raise train.batch or train.accumulation, or \
                          set distill.general_fraction = 0";
            return wrong("distill.general", reason.into());
        }
        let general_rows = match &general {
            Some(_) => general_share(config.batch, config.accumulation, config.general_fraction),
            None => vec![0; config.accumulation],
        };
        let main_rows = config.batch * config.accumulation - general_rows.iter().sum::<usize>();
        let steps_per_epoch = (main.len() / main_rows).max(1);
        let mut stream = main.fingerprint();
        let seed = if config.shuffle { config.seed } else { 0 };
        let general_print = general.as_ref().map_or(0, RowSet::fingerprint);
        let mut parts = vec![general_print, seed, u64::from(config.shuffle), config.batch as u64];
        parts.extend(general_rows.iter().map(|&g| g as u64));
        for part in parts {
            stream = super::order::mix(stream ^ part);
        }
        Ok(Plan { main, general, config, general_rows, steps_per_epoch, stream })
    }

    fn after(&self, cursor: &Cursor) -> Cursor {
        let mut next = Cursor { step_in_epoch: cursor.step_in_epoch + 1, ..cursor.clone() };
        if next.step_in_epoch >= self.steps_per_epoch as u64 {
            next.epoch += 1;
            next.step_in_epoch = 0;
        }
        next
    }

    fn build(&self, cursor: &Cursor, orders: &mut Orders) -> StepBatch {
        let general_per_step: usize = self.general_rows.iter().sum();
        let main_per_step = self.config.batch * self.config.accumulation - general_per_step;
        let steps_done = cursor.epoch * self.steps_per_epoch as u64 + cursor.step_in_epoch;
        let mut next_main = cursor.step_in_epoch as usize * main_per_step;
        let mut next_general = steps_done * general_per_step as u64;
        let mut step = StepBatch {
            micro: Vec::with_capacity(self.config.accumulation),
            ce_tokens: 0,
            kd_tokens: 0,
            tokens: 0,
        };
        for &general in &self.general_rows {
            let mut micro = MicroBatch::empty(self.config.batch, self.main.seq_len());
            for slot in 0..self.config.batch {
                let is_general = slot >= self.config.batch - general;
                let source = match (&self.general, is_general) {
                    (Some(rows), true) => {
                        let (epoch, at) =
                            (next_general / rows.len() as u64, next_general % rows.len() as u64);
                        next_general += 1;
                        Some((
                            rows,
                            self.row_at(Stream::General, rows.len(), epoch, at as usize, &mut orders.general),
                        ))
                    }
                    _ => {
                        let at = next_main;
                        next_main += 1;
                        let n = self.main.len();
                        (at < n).then(|| {
                            (&self.main, self.row_at(Stream::Main, n, cursor.epoch, at, &mut orders.main))
                        })
                    }
                };
                micro.general[slot] = is_general;
                if let Some((rows, row)) = source {
                    micro.put(slot, rows, row, &mut step);
                }
            }
            step.micro.push(micro);
        }
        step
    }

    fn row_at(
        &self,
        stream: Stream,
        n: usize,
        epoch: u64,
        at: usize,
        kept: &mut Option<(u64, Vec<u32>)>,
    ) -> usize {
        if !self.config.shuffle {
            return at;
        }
        match kept {
            Some((of, order)) if *of == epoch => order[at] as usize,
            _ => {
                let order = permutation(n, self.config.seed, stream, epoch);
                let row = order[at] as usize;
                *kept = Some((epoch, order));
                row
            }
        }
    }
}

/// General rows of each micro-batch: the share of `batch` rounded, at least 1 and at most `batch - 1`. With micro-batches
/// of one row the share of the step is rounded so instead and its rows are spread evenly over the micro-batches.
fn general_share(batch: usize, accumulation: usize, fraction: f64) -> Vec<usize> {
    let share = |of: usize| ((fraction * of as f64).round() as usize).clamp(1, of - 1);
    if batch > 1 {
        return vec![share(batch); accumulation];
    }
    let total = share(accumulation);
    (0..accumulation).map(|m| (m + 1) * total / accumulation - m * total / accumulation).collect()
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

    fn put(&mut self, slot: usize, rows: &RowSet, row: usize, step: &mut StepBatch) {
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
        self.row_ids[slot] = row as u64;
        let trained = self.labels[range.clone()].iter().filter(|&&l| l != IGNORE).count();
        step.kd_tokens += trained;
        step.ce_tokens += if self.general[slot] { 0 } else { trained };
        step.tokens += self.segments[range].iter().filter(|&&s| s >= 0).count();
    }
}

/// The thread that builds steps, from a cursor on.
#[derive(Debug)]
struct Ahead {
    steps: Option<Receiver<StepBatch>>,
    thread: Option<JoinHandle<()>>,
}

impl Ahead {
    fn start(plan: &Arc<Plan>, cursor: &Cursor) -> Option<Ahead> {
        let (send, receive) = sync_channel(AHEAD);
        let (plan, mut cursor) = (Arc::clone(plan), cursor.clone());
        let work = move || {
            let mut orders = Orders::default();
            while send.send(plan.build(&cursor, &mut orders)).is_ok() {
                cursor = plan.after(&cursor);
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::documents::Documents;
    use super::*;
    use proptest::prelude::*;

    /// Rows of `seq_len` 4; row `i` holds the tokens `10·i + base`, of which the first is not trained.
    fn rows(n: usize, base: i32) -> RowSet {
        let mut docs = Documents::new();
        for i in 0..n as i32 {
            let tokens = [0, 1, 2].map(|t| 10 * i + base + t);
            docs.push(&tokens, &tokens);
        }
        RowSet::new(docs, 4, false).unwrap()
    }

    fn config(batch: usize, accumulation: usize) -> LoaderConfig {
        LoaderConfig { batch, accumulation, shuffle: false, seed: 7, general_fraction: 0.25 }
    }

    fn ids(step: &StepBatch) -> Vec<u64> {
        step.micro.iter().flat_map(|m| m.row_ids.clone()).collect()
    }

    #[test]
    fn rows_in_order_and_the_tail_dropped() {
        let mut loader = Loader::new(rows(13, 1), None, config(2, 2)).unwrap();
        assert_eq!(loader.steps_per_epoch(), 3);
        for step in 0..7u64 {
            let expected: Vec<u64> = (0..4).map(|i| (4 * step + i) % 12).collect();
            assert_eq!((loader.epoch(), ids(&loader.next_step())), (step / 3, expected));
        }
    }

    #[test]
    fn a_step_has_static_shapes_and_counts() {
        let step = Loader::new(rows(4, 1), None, config(2, 2)).unwrap().next_step();
        assert_eq!((step.ce_tokens, step.kd_tokens, step.tokens), (8, 8, 12));
        let micro = &step.micro[1];
        assert_eq!((micro.rows, micro.seq_len, micro.general.clone()), (2, 4, vec![false; 2]));
        assert_eq!(micro.tokens, [21, 22, 23, 0, 31, 32, 33, 0]);
        assert_eq!(micro.labels, [22, 23, -100, -100, 32, 33, -100, -100]);
        assert_eq!(micro.positions, [0, 1, 2, 0, 0, 1, 2, 0]);
        assert_eq!(micro.segments, [0, 0, 0, -1, 0, 0, 0, -1]);
    }

    #[test]
    fn an_epoch_shorter_than_a_step_is_padded_with_empty_rows() {
        let mut loader = Loader::new(rows(3, 1), None, config(2, 3)).unwrap();
        for epoch in 0..2 {
            assert_eq!((loader.epoch(), loader.steps_per_epoch()), (epoch, 1));
            let step = loader.next_step();
            let none = u64::MAX;
            assert_eq!(ids(&step), [0, 1, 2, none, none, none]);
            assert_eq!((step.ce_tokens, step.tokens), (6, 9));
            let last = &step.micro[2];
            assert!(last.tokens.iter().all(|&t| t == 0) && last.labels.iter().all(|&l| l == IGNORE));
            assert!(last.segments.iter().all(|&s| s == -1));
        }
    }

    #[test]
    fn shuffling_sees_every_row_once_an_epoch_in_a_new_order() {
        let mut loader =
            Loader::new(rows(12, 1), None, LoaderConfig { shuffle: true, ..config(2, 2) }).unwrap();
        let mut epoch = || (0..3).flat_map(|_| ids(&loader.next_step())).collect::<Vec<_>>();
        let (first, second) = (epoch(), epoch());
        assert_ne!(first, second);
        for mut order in [first, second] {
            order.sort_unstable();
            assert_eq!(order, (0..12).collect::<Vec<_>>());
        }
    }

    #[test]
    fn general_rows_stand_last_and_go_round_on_their_own() {
        let mut loader = Loader::new(rows(12, 1), Some(rows(5, 1001)), config(4, 2)).unwrap();
        assert_eq!((loader.steps_per_epoch(), loader.general_rows_per_micro_batch()), (2, &[1, 1][..]));
        for step in 0..6u64 {
            let batch = loader.next_step();
            for (m, micro) in batch.micro.iter().enumerate() {
                assert_eq!(micro.general, [false, false, false, true]);
                assert_eq!(micro.row_ids[3], (2 * step + m as u64) % 5);
                assert!(micro.tokens[12] > 1000);
                assert_eq!(micro.row_ids[0], (6 * step + 3 * m as u64) % 12);
            }
            assert_eq!((batch.ce_tokens, batch.kd_tokens), (12, 16));
        }
    }

    #[test]
    fn general_shares() {
        assert_eq!(general_share(8, 2, 0.25), [2, 2]);
        assert_eq!(general_share(2, 1, 0.01), [1]);
        assert_eq!(general_share(2, 1, 0.99), [1]);
        assert_eq!(general_share(1, 8, 0.25), [0, 0, 0, 1, 0, 0, 0, 1]);
        assert_eq!(general_share(1, 3, 0.1), [0, 0, 1]);
    }

    #[test]
    fn settings_that_cannot_work() {
        let error = |main, general, config| Loader::new(main, general, config).unwrap_err().to_string();
        assert!(error(rows(3, 1), None, config(0, 1)).contains("at least 1"));
        assert!(error(rows(0, 1), None, config(1, 1)).contains("data.train"));
        assert!(error(rows(3, 1), Some(rows(0, 1)), config(2, 1)).contains("distill.general"));
        assert!(error(rows(3, 1), Some(rows(2, 1)), config(1, 1)).contains("no room for general"));
        let all = LoaderConfig { general_fraction: 1.0, ..config(4, 1) };
        assert!(error(rows(3, 1), Some(rows(2, 1)), all).contains("1 is not a share"));
        let none = LoaderConfig { general_fraction: 0.0, ..config(1, 1) };
        assert!(Loader::new(rows(3, 1), Some(rows(2, 1)), none).unwrap().general_rows().is_none());
    }

    #[test]
    fn a_cursor_of_other_data_is_refused() {
        let mut loader = Loader::new(rows(6, 1), None, config(2, 1)).unwrap();
        loader.next_step();
        let written = loader.cursor().to_json();
        let cursor = Cursor::from_json(&serde_json::from_str(&written.to_string()).unwrap()).unwrap();
        assert_eq!(cursor, loader.cursor());
        assert_eq!((cursor.epoch, cursor.step_in_epoch), (0, 1));
        for (main, config) in [(rows(6, 2), config(2, 1)), (rows(6, 1), config(1, 1))] {
            let error = Loader::new(main, None, config).unwrap().seek(&cursor).unwrap_err().to_string();
            assert!(error.contains("not that of the checkpoint"), "{error}");
        }
        let far = Cursor { step_in_epoch: 3, ..cursor };
        assert!(loader.seek(&far).unwrap_err().to_string().contains("step 3 of an epoch that has 3"));
        let never = Cursor { epoch: u64::MAX, ..loader.cursor() };
        assert!(loader.seek(&never).unwrap_err().to_string().contains("there was no epoch"));
        assert!(Cursor::from_json(&json!({"epoch": 1})).unwrap_err().to_string().contains("damaged"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn seeking_gives_the_same_stream(
            n in 1usize..30, g in 0usize..9, batch in 1usize..4, accumulation in 2usize..4, shuffle: bool,
            at in 0usize..12,
        ) {
            let config = LoaderConfig { shuffle, ..config(batch, accumulation) };
            let general = (g > 0).then(|| rows(g, 1001));
            let mut loader = Loader::new(rows(n, 1), general.clone(), config.clone()).unwrap();
            for _ in 0..at {
                loader.next_step();
            }
            let cursor = loader.cursor();
            let stream: Vec<StepBatch> = (0..5).map(|_| loader.next_step()).collect();
            let mut resumed = Loader::new(rows(n, 1), general, config).unwrap();
            resumed.next_step();
            resumed.seek(&cursor).unwrap();
            for expected in &stream {
                prop_assert_eq!(&resumed.next_step(), expected);
            }
            loader.seek(&cursor).unwrap();
            prop_assert_eq!(&loader.next_step(), &stream[0]);
            for step in &stream {
                prop_assert_eq!(step.micro.len(), accumulation);
                let trained = |general: bool| step.micro.iter().map(|m| (0..m.rows)
                    .filter(|&r| m.general[r] == general)
                    .map(|r| m.labels[4 * r..4 * r + 4].iter().filter(|&&l| l != IGNORE).count()).sum::<usize>()).sum::<usize>();
                prop_assert_eq!(step.ce_tokens, trained(false));
                prop_assert_eq!(step.kd_tokens, trained(false) + trained(true));
            }
        }
    }
}
