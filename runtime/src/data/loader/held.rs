//! Steps of rows that are in memory.

use std::sync::Arc;

use super::super::error::{DataError, Result};
use super::super::order::{Stream, mix};
use super::super::pack::RowSet;
use super::general::{General, Order, row_at};
use super::{Cursor, LoaderConfig, MicroBatch, StepBatch, Steps};

/// What a step is made from.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) main: RowSet,
    pub(super) general: General,
    config: LoaderConfig,
    pub(super) steps_per_epoch: usize,
    /// See [`Cursor::stream`].
    pub(super) stream: u64,
}

/// The orders in use, kept from step to step.
#[derive(Default)]
struct Orders {
    main: Order,
    general: Order,
}

impl Plan {
    pub(super) fn new(main: RowSet, general: Option<RowSet>, config: LoaderConfig) -> Result<Plan> {
        let general = General::new(general, main.seq_len(), &config)?;
        if main.is_empty() {
            let sources = "data.train".into();
            return Err(DataError::Empty { sources, reason: "there are no rows".into() });
        }
        let main_rows = config.batch * config.accumulation - general.per_step();
        let steps_per_epoch = (main.len() / (main_rows * config.world)).max(1);
        let seed = if config.shuffle { config.seed } else { 0 };
        let print = general.rows().map_or(0, RowSet::fingerprint);
        let mut parts = vec![print, seed, u64::from(config.shuffle), config.batch as u64];
        parts.extend(general.per_micro.iter().map(|&g| g as u64));
        if config.world > 1 {
            parts.extend([config.rank as u64, config.world as u64]);
        }
        let stream = parts.into_iter().fold(main.fingerprint(), |stream, part| mix(stream ^ part));
        Ok(Plan { main, general, config, steps_per_epoch, stream })
    }

    pub(super) fn steps(self: &Arc<Plan>, from: &Cursor) -> Steps {
        let (plan, mut cursor, mut orders) = (Arc::clone(self), from.clone(), Orders::default());
        Box::new(move || {
            let step = plan.build(&cursor, &mut orders);
            cursor = plan.after(&cursor);
            Ok((step, cursor.clone()))
        })
    }

    pub(super) fn check(&self, cursor: &Cursor) -> Result<()> {
        if cursor.step_in_epoch < self.steps_per_epoch as u64 {
            return Ok(());
        }
        Err(DataError::Cursor {
            reason: format!(
                "step {} of an epoch that has {}; use an earlier checkpoint",
                cursor.step_in_epoch, self.steps_per_epoch
            ),
        })
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
        let c = &self.config;
        let (world, rank) = (c.world as u64, c.rank as u64);
        let general_per_step = self.general.per_step();
        let main_per_step = c.batch * c.accumulation - general_per_step;
        let steps_done = cursor.epoch * self.steps_per_epoch as u64 + cursor.step_in_epoch;
        let mut next_main = (cursor.step_in_epoch * world + rank) as usize * main_per_step;
        let mut next_general = (steps_done * world + rank) * general_per_step as u64;
        let mut step = StepBatch::empty(c.accumulation);
        for &general in &self.general.per_micro {
            let mut micro = MicroBatch::empty(c.batch, self.main.seq_len());
            for slot in 0..c.batch {
                let is_general = slot >= c.batch - general;
                let source = if is_general {
                    next_general += 1;
                    self.general.row(next_general - 1, c, &mut orders.general)
                } else {
                    let (at, n) = (next_main, self.main.len());
                    next_main += 1;
                    (at < n)
                        .then(|| (&self.main, row_at(c, Stream::Main, n, cursor.epoch, at, &mut orders.main)))
                };
                micro.general[slot] = is_general;
                if let Some((rows, row)) = source {
                    micro.put(slot, rows, row, row as u64, &mut step);
                }
            }
            step.micro.push(micro);
        }
        step
    }
}
