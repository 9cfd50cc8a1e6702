//! Steps of rows that are read while training runs.

use std::sync::{Arc, Mutex, PoisonError};

use super::super::error::{DataError, Result};
use super::super::order::mix;
use super::super::pack::RowSet;
use super::super::report::DataReport;
use super::super::stream::RowStream;
use super::super::stream::ahead::Ahead;
use super::general::{General, Order};
use super::{Cursor, LoaderConfig, MicroBatch, Place, StepBatch, Steps};

/// What a step is made from.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) stream: Arc<RowStream>,
    pub(super) general: General,
    config: LoaderConfig,
    /// See [`Cursor::stream`].
    pub(super) number: u64,
    report: Mutex<DataReport>,
}

impl Plan {
    pub(super) fn new(stream: RowStream, general: Option<RowSet>, config: LoaderConfig) -> Result<Plan> {
        let general = General::new(general, stream.seq_len(), &config)?;
        let print = general.rows().map_or(0, RowSet::fingerprint);
        let parts =
            [print, config.batch as u64].into_iter().chain(general.per_micro.iter().map(|&g| g as u64));
        let number = parts.fold(stream.fingerprint(), |number, part| mix(number ^ part));
        let report =
            DataReport { files: stream.files().count(), seq_len: stream.seq_len(), ..DataReport::default() };
        Ok(Plan { stream: Arc::new(stream), general, config, number, report: Mutex::new(report) })
    }

    pub(super) fn steps(self: &Arc<Plan>, from: &Cursor) -> Steps {
        let first = from.epoch * self.stream.blocks() as u64 + from.place.group * self.stream.group() as u64;
        let mut feed = Feed {
            ahead: Ahead::start(&self.stream, first),
            plan: Arc::clone(self),
            cursor: from.clone(),
            group: None,
            order: None,
        };
        Box::new(move || feed.step())
    }

    pub(super) fn check(&self, cursor: &Cursor) -> Result<()> {
        let groups = self.stream.blocks().div_ceil(self.stream.group()) as u64;
        if cursor.place.group <= groups {
            return Ok(());
        }
        let reason =
            format!("group {} of an epoch that has {groups}; use an earlier checkpoint", cursor.place.group);
        Err(DataError::Cursor { reason })
    }

    pub(super) fn report(&self) -> DataReport {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Goes through the epochs, step by step.
struct Feed {
    plan: Arc<Plan>,
    ahead: Ahead,
    cursor: Cursor,
    group: Option<Group>,
    /// The order of general rows in use.
    order: Order,
}

/// Blocks whose rows are in use.
struct Group {
    /// Numbers of the blocks, and their rows.
    blocks: Vec<(u64, RowSet)>,
    /// Block and row, in the order in which they are taken.
    rows: Vec<(u32, u32)>,
}

impl Feed {
    fn step(&mut self) -> Result<(StepBatch, Cursor)> {
        loop {
            let before = self.cursor.clone();
            let (step, rows) = self.fill()?;
            if rows < self.main_rows() {
                // The epoch is over. Its tail is dropped, unless it is all there is of it.
                let place = Place { general: self.cursor.place.general, ..Place::default() };
                self.cursor =
                    Cursor { epoch: before.epoch + 1, step_in_epoch: 0, stream: before.stream, place };
                self.group = None;
                if before.step_in_epoch > 0 {
                    self.cursor.place.general = before.place.general;
                    continue;
                }
                if rows == 0 {
                    let reason = self.plan.report().why_empty();
                    return Err(DataError::Empty { sources: "data.train".into(), reason });
                }
            } else {
                self.cursor.step_in_epoch += 1;
            }
            return Ok((step, self.cursor.clone()));
        }
    }

    /// Training rows of a step.
    fn main_rows(&self) -> usize {
        self.plan.config.batch * self.plan.config.accumulation - self.plan.general.per_step()
    }

    /// Builds a step of what the epoch still has, and says how many rows that is.
    fn fill(&mut self) -> Result<(StepBatch, usize)> {
        let plan = Arc::clone(&self.plan);
        let c = &plan.config;
        let (mut step, mut taken) = (StepBatch::empty(c.accumulation), 0);
        // Ranks take turns in the general rows, a step's rows at a time.
        let (turn, world, rank) = (plan.general.per_step() as u64, c.world as u64, c.rank as u64);
        for &general in &plan.general.per_micro {
            let mut micro = MicroBatch::empty(c.batch, plan.stream.seq_len());
            for slot in 0..c.batch {
                micro.general[slot] = slot >= c.batch - general;
                if micro.general[slot] {
                    let taken = self.cursor.place.general;
                    let next = (taken / turn * world + rank) * turn + taken % turn;
                    if let Some((rows, row)) = plan.general.row(next, c, &mut self.order) {
                        micro.put(slot, rows, row, row as u64, &mut step);
                    }
                    self.cursor.place.general += 1;
                } else if let Some((group, block, row)) = self.next_row()? {
                    let (number, rows) = &group.blocks[block];
                    micro.put(slot, rows, row, number << 32 | row as u64, &mut step);
                    taken += 1;
                }
            }
            step.micro.push(micro);
        }
        Ok((step, taken))
    }

    /// The next row of the epoch, if it has another.
    fn next_row(&mut self) -> Result<Option<(&Group, usize, usize)>> {
        loop {
            if self.group.is_none() && !self.read_group()? {
                return Ok(None);
            }
            let left = self.group.as_ref().map_or(0, |g| g.rows.len() as u64);
            if self.cursor.place.row < left {
                break;
            }
            self.group = None;
            self.cursor.place.group += 1;
            self.cursor.place.row = 0;
        }
        let at = self.cursor.place.row as usize;
        self.cursor.place.row += 1;
        Ok(self.group.as_ref().map(|g| (g, g.rows[at].0 as usize, g.rows[at].1 as usize)))
    }

    /// Takes the blocks of the group at the cursor; false if the epoch has no such group.
    fn read_group(&mut self) -> Result<bool> {
        let stream = &self.plan.stream;
        let first = self.cursor.place.group * stream.group() as u64;
        let count = (stream.blocks() as u64).saturating_sub(first).min(stream.group() as u64);
        let number = self.cursor.epoch * stream.blocks() as u64 + first;
        let mut blocks = Vec::with_capacity(count as usize);
        for number in number..number + count {
            let block = self.ahead.next()?;
            self.plan.report.lock().unwrap_or_else(PoisonError::into_inner).add(&block.report);
            blocks.push((stream.block_at(number) as u64, block.rows));
        }
        let in_file_order = |(i, (_, rows)): (usize, &(u64, RowSet))| {
            (0..rows.len() as u32).map(move |row| (i as u32, row)).collect::<Vec<_>>()
        };
        let all: Vec<(u32, u32)> = blocks.iter().enumerate().flat_map(in_file_order).collect();
        let order = stream.group_order(all.len(), self.cursor.epoch, self.cursor.place.group);
        let rows = order.into_iter().map(|i| all[i as usize]).collect();
        self.group = Some(Group { blocks, rows });
        Ok(count > 0)
    }
}
