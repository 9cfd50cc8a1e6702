//! Rows of general text beside the training rows: how many stand in each micro-batch, and which.

use super::super::error::{DataError, Result};
use super::super::order::{Stream, permutation};
use super::super::pack::RowSet;
use super::LoaderConfig;

/// An order of rows, kept from step to step, and the epoch that it is of.
pub(super) type Order = Option<(u64, Vec<u32>)>;

/// General rows.
#[derive(Debug)]
pub(super) struct General {
    rows: Option<RowSet>,
    /// General rows of each micro-batch: its last ones.
    pub(super) per_micro: Vec<usize>,
}

impl General {
    /// Checks settings and rows; `seq_len` is that of the training rows.
    pub(super) fn new(rows: Option<RowSet>, seq_len: usize, config: &LoaderConfig) -> Result<General> {
        let wrong = |setting, reason: String| Err(DataError::Config { setting, reason });
        if config.batch == 0 || config.accumulation == 0 {
            return wrong("train.batch and train.accumulation", "each must be at least 1".into());
        }
        if config.rank >= config.world {
            return wrong("data.rank", format!("{} is not below data.world = {}", config.rank, config.world));
        }
        if !(0.0..1.0).contains(&config.general_fraction) {
            let reason = format!("{} is not a share in [0, 1)", config.general_fraction);
            return wrong("distill.general_fraction", reason);
        }
        let rows = rows.filter(|_| config.general_fraction > 0.0);
        let Some(general) = &rows else {
            return Ok(General { rows, per_micro: vec![0; config.accumulation] });
        };
        if general.seq_len() != seq_len {
            let theirs = general.seq_len();
            let reason =
                format!("its rows have {theirs} tokens, the training rows {seq_len}; make them equal");
            return wrong("distill.general", reason);
        }
        if general.is_empty() {
            let sources = "distill.general".into();
            return Err(DataError::Empty { sources, reason: "there are no rows".into() });
        }
        if config.batch * config.accumulation < 2 {
            let reason = "a step of one row has no room for general text; raise train.batch or train.accumulation, or \
                          drop distill.general";
            return wrong("distill.general", reason.into());
        }
        let per_micro = general_share(config.batch, config.accumulation, config.general_fraction);
        Ok(General { rows, per_micro })
    }

    /// The rows, if they are used.
    pub(super) fn rows(&self) -> Option<&RowSet> {
        self.rows.as_ref()
    }

    /// General rows of a step.
    pub(super) fn per_step(&self) -> usize {
        self.per_micro.iter().sum()
    }

    /// The general row that is taken as number `next` in all.
    pub(super) fn row(&self, next: u64, config: &LoaderConfig, kept: &mut Order) -> Option<(&RowSet, usize)> {
        let rows = self.rows.as_ref()?;
        let (epoch, at) = (next / rows.len() as u64, next % rows.len() as u64);
        Some((rows, row_at(config, Stream::General, rows.len(), epoch, at as usize, kept)))
    }
}

/// The row that stands at place `at` of an epoch of `n` rows.
pub(super) fn row_at(
    config: &LoaderConfig,
    stream: Stream,
    n: usize,
    epoch: u64,
    at: usize,
    kept: &mut Order,
) -> usize {
    if !config.shuffle {
        return at;
    }
    match kept {
        Some((of, order)) if *of == epoch => order[at] as usize,
        _ => {
            let order = permutation(n, config.seed, stream, epoch);
            let row = order[at] as usize;
            *kept = Some((epoch, order));
            row
        }
    }
}

/// General rows of each micro-batch: the share of `batch` rounded, at least 1 and at most `batch - 1`. With micro-batches
/// of one row the share of the step is rounded so instead and its rows are spread evenly over the micro-batches.
pub(super) fn general_share(batch: usize, accumulation: usize, fraction: f64) -> Vec<usize> {
    let share = |of: usize| ((fraction * of as f64).round() as usize).clamp(1, of - 1);
    if batch > 1 {
        return vec![share(batch); accumulation];
    }
    let total = share(accumulation);
    (0..accumulation).map(|m| (m + 1) * total / accumulation - m * total / accumulation).collect()
}
