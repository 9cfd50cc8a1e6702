//! Training rows that are read while training runs: nothing but the blocks at hand is in memory.
//!
//! The files are cut into blocks (`cut`) of about 64 rows. An epoch takes the blocks in the order of [`permutation`] (or of
//! the files), of which rank `r` of `w` takes the positions `r`, `r + w`, `r + 2w`, …; ranks share nothing and together
//! take every block once. [`GROUP`] blocks at a time make a group, whose rows are put into an order of their own. So a row
//! is found from (epoch, group, row in the group) by reading one group: that is all that resuming needs. Workers read
//! blocks ahead of their use; how many there are changes no row.

pub(crate) mod ahead;
pub(crate) mod cut;
pub(crate) mod read;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::{DataError, Result};
use super::load::{DataConfig, layout};
use super::order::{Stream, mix, permutation};
use super::source::{Format, find};
use super::token_file::{Layout, map};
use super::tokenizer::Tokenizer;
use crate::hf::header::Header;
use cut::{Blocks, Shard, Texts, cut, shards};
use read::{Block, Reading};

/// Blocks whose rows are shuffled together.
pub const GROUP: usize = 16;

/// Bytes that a thread keeps: its share of the allocator, what the tokenizer remembers. Eight took 11 MiB more than one.
const WORKER: u64 = 3 << 19;

/// How files are streamed.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamConfig {
    /// How rows are made of them.
    pub data: DataConfig,
    /// Whether each epoch has an order of its own (else that of the files).
    pub shuffle: bool,
    /// The seed of that order.
    pub seed: u64,
    /// Threads that read.
    pub workers: usize,
    /// Blocks that each of them is ahead.
    pub prefetch: usize,
    /// Which share of the blocks is taken, below `world`.
    pub rank: usize,
    /// How many shares there are.
    pub world: usize,
}

/// Files that are read while training runs.
#[derive(Debug)]
pub struct RowStream {
    config: StreamConfig,
    seq_len: usize,
    layout: Layout,
    tokenizer: Option<Arc<Tokenizer>>,
    shards: Vec<Shard>,
    blocks: Blocks,
    fingerprint: u64,
    /// Bytes that a block takes, about: what the first one takes.
    block_bytes: u64,
    /// The orders of the last two epochs that were asked for.
    orders: Mutex<Vec<(u64, Arc<Vec<u32>>)>>,
}

impl RowStream {
    /// Looks at the files and reads the first block of the epoch, so that what is wrong with all rows is found now.
    ///
    /// # Errors
    /// If a file is missing, empty or damaged, rows cannot be used, or there are fewer blocks than ranks.
    pub fn open(
        paths: &[PathBuf],
        config: StreamConfig,
        tokenizer: Option<Arc<Tokenizer>>,
    ) -> Result<RowStream> {
        let wrong = |setting, reason: String| DataError::Config { setting, reason };
        if config.rank >= config.world {
            return Err(wrong(
                "data.rank",
                format!("{} is not below data.world = {}", config.rank, config.world),
            ));
        }
        let sources = find(paths, config.data.format)?;
        let tokens = sources.iter().filter(|s| s.format == Format::Tokens).count();
        if tokens > 0 && tokens < sources.len() {
            return Err(wrong(
                "data.train",
                "token files and text files cannot be mixed; name one kind".into(),
            ));
        }
        if tokens == 0 && tokenizer.is_none() {
            let reason = "text needs a tokenizer and the model folder has none; set it to a folder with a tokenizer.json";
            return Err(wrong("data.tokenizer", reason.into()));
        }
        let layout = if tokens > 0 { layout(&sources)? } else { Layout::Rows };
        let files = shards(sources)?;
        let seq_len = match (config.data.seq_len, layout, files.first()) {
            (None, Layout::Rows, Some(first)) if tokens > 0 => columns(&first.source.path)?,
            _ => config.data.row_length()?,
        };
        let blocks = cut(&files, layout, seq_len, tokenizer.as_deref(), Texts::Cut)?;
        if blocks.len() < config.world {
            return Err(wrong(
                "data.world",
                format!(
                    "{} blocks are too few for {} ranks; write more, smaller shards",
                    blocks.len(),
                    config.world
                ),
            ));
        }
        let mut stream = RowStream {
            fingerprint: fingerprint(&config, seq_len, &files, tokenizer.as_deref()),
            config,
            seq_len,
            layout,
            tokenizer,
            shards: files,
            blocks,
            block_bytes: 0,
            orders: Mutex::default(),
        };
        let first = stream.read(0)?;
        // Tokens and labels, and as much again for the text that they are made of and what lies in between.
        stream.block_bytes = 16 * first.rows.documents().total_tokens() as u64 + (64 << 10);
        Ok(stream)
    }

    /// Tokens of a row.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Blocks of an epoch of this rank.
    pub fn blocks(&self) -> usize {
        (self.blocks.len() - self.config.rank).div_ceil(self.config.world)
    }

    /// A number that changes with any file and any setting that decides about rows and their order.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The files with a number each that stands for length and both ends.
    pub fn files(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.shards.iter().map(|s| (s.source.path.as_path(), s.print))
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.bytes).sum()
    }

    /// Bytes that blocks in use and blocks read ahead take, about.
    pub fn memory(&self) -> u64 {
        let held = if self.config.shuffle { GROUP } else { 1 } + self.window() + self.config.workers;
        held.min(2 * self.blocks() + GROUP) as u64 * self.block_bytes + self.config.workers as u64 * WORKER
    }

    pub(crate) fn config(&self) -> &StreamConfig {
        &self.config
    }

    /// Blocks that are read ahead at most.
    pub(crate) fn window(&self) -> usize {
        (self.config.workers * self.config.prefetch).max(1)
    }

    /// Blocks of a group.
    pub(crate) fn group(&self) -> usize {
        if self.config.shuffle { GROUP } else { 1 }
    }

    /// The order of the rows of a group.
    pub(crate) fn group_order(&self, rows: usize, epoch: u64, group: u64) -> Vec<u32> {
        if !self.config.shuffle {
            return (0..rows as u32).collect();
        }
        permutation(rows, mix(self.config.seed ^ mix(group)), Stream::Group, epoch)
    }

    /// Block `number` of this rank, counted through all epochs.
    pub(crate) fn block_at(&self, number: u64) -> usize {
        let (epoch, at) = (number / self.blocks() as u64, number % self.blocks() as u64);
        let position = self.config.rank + at as usize * self.config.world;
        if !self.config.shuffle {
            return position;
        }
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let known = orders.iter().find(|(of, _)| *of == epoch).map(|(_, order)| Arc::clone(order));
        let order = known.unwrap_or_else(|| {
            let order = Arc::new(permutation(self.blocks.len(), self.config.seed, Stream::Blocks, epoch));
            if orders.len() > 1 {
                orders.remove(0);
            }
            orders.push((epoch, Arc::clone(&order)));
            order
        });
        order[position] as usize
    }

    /// Reads block `number` of this rank, counted through all epochs.
    pub(crate) fn read(&self, number: u64) -> Result<Block> {
        let reading = Reading {
            config: &self.config.data,
            seq_len: self.seq_len,
            layout: self.layout,
            tokenizer: self.tokenizer.as_deref(),
        };
        reading.block(&self.shards, self.blocks.spans(self.block_at(number)))
    }
}

impl fmt::Display for RowStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "streamed in rows of {} tokens: {:.1} MiB in {} files, {} blocks; {} workers, {} blocks ahead of their use",
            self.seq_len,
            self.bytes() as f64 / f64::from(1 << 20),
            self.shards.len(),
            self.blocks.len(),
            self.config.workers,
            self.window()
        )?;
        match self.config.world {
            1 => Ok(()),
            world => write!(f, "; rank {} of {world}", self.config.rank),
        }
    }
}

/// The row length of a token file.
fn columns(path: &Path) -> Result<usize> {
    let wrong = |reason: String| DataError::Tokens { path: path.to_path_buf(), reason };
    let header = Header::from_file_bytes(&map(path)?).map_err(wrong)?;
    match header.tensors.get("input_ids").map(|ids| ids.dims.as_slice()) {
        Some(&[_, columns]) if columns > 1 => Ok(columns),
        dims => {
            Err(wrong(format!("input_ids is {dims:?}; it must be [rows, tokens], with two tokens a row")))
        }
    }
}

fn fingerprint(
    config: &StreamConfig,
    seq_len: usize,
    shards: &[Shard],
    tokenizer: Option<&Tokenizer>,
) -> u64 {
    let data = &config.data;
    let seed = if config.shuffle { config.seed } else { 0 };
    let settings = [
        seq_len as u64,
        u64::from(data.packing),
        data.long_rows.map_or(0, |l| 1 + l as u64),
        data.on_error as u64,
        u64::from(config.shuffle),
        seed,
        config.rank as u64,
        config.world as u64,
        tokenizer.map_or(0, Tokenizer::fingerprint),
    ];
    settings.into_iter().chain(shards.iter().map(|s| s.print)).fold(0, |hash, part| mix(hash ^ part))
}
