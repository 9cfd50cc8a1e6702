//! The training data of a job.

use crate::config::{DataFormat, JobConfig, LongRows, OnError};
use crate::data::{self, DataConfig, DataReport, Format, Loader, LoaderConfig, RowSet, Tokenizer};
use crate::error::{Result, RunError};
use kfc_ops::model::ModelConfig;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Row length where neither the job nor a token file says one.
const DEFAULT_SEQ_LEN: usize = 1024;

/// The rows of a job and what was read.
pub struct JobData {
    /// Training rows.
    pub rows: RowSet,
    /// Rows of general text.
    pub general: Option<RowSet>,
    /// What was read for training.
    pub report: DataReport,
    /// What was read as general text.
    pub general_report: Option<DataReport>,
    /// How long that took.
    pub took: Duration,
}

/// Reads and tokenises everything that a job trains on.
///
/// # Errors
/// If files are missing, lines are bad, or nothing is left to train on.
pub fn load(job: &JobConfig, model: &ModelConfig) -> Result<JobData> {
    let started = Instant::now();
    let tokenizer = tokenizer_path(job).map(|p| Tokenizer::load(&p)).transpose()?;
    let (rows, report) = read(job, model, &job.data.train, job.data.seq_len, tokenizer.as_ref())?;
    let general_paths = job.distill.as_ref().map_or(&[][..], |d| &d.general);
    if general_paths.is_empty() {
        return Ok(JobData { rows, general: None, report, general_report: None, took: started.elapsed() });
    }
    let (general, general_report) =
        read(job, model, general_paths, Some(rows.seq_len()), tokenizer.as_ref())?;
    if general.seq_len() != rows.seq_len() {
        return Err(RunError::Input(format!(
            "distill.general: rows have {} tokens, training rows have {}; use token files of one row length",
            general.seq_len(),
            rows.seq_len()
        )));
    }
    let general_report = Some(general_report);
    Ok(JobData { rows, general: Some(general), report, general_report, took: started.elapsed() })
}

/// The loader over a job's rows.
///
/// # Errors
/// If batch and fractions do not fit together.
pub fn loader(job: &JobConfig, data: JobData) -> Result<Loader> {
    let config = LoaderConfig {
        batch: job.train.batch,
        accumulation: job.train.accumulation,
        shuffle: job.data.shuffle,
        seed: job.train.seed,
        general_fraction: job.distill.as_ref().map_or(0.0, |d| d.general_fraction),
    };
    Ok(Loader::new(data.rows, data.general, config)?.after(data.took))
}

/// Where the job's tokenizer is, if there is one.
pub fn tokenizer_path(job: &JobConfig) -> Option<PathBuf> {
    if let Some(path) = &job.data.tokenizer {
        return Some(path.clone());
    }
    has_tokenizer(&job.model.path).then(|| job.model.path.clone())
}

/// Whether a model folder has a tokenizer.
pub fn has_tokenizer(folder: &Path) -> bool {
    folder.join("tokenizer.json").is_file()
}

fn read(
    job: &JobConfig,
    model: &ModelConfig,
    paths: &[PathBuf],
    seq_len: Option<usize>,
    tokenizer: Option<&Tokenizer>,
) -> Result<(RowSet, DataReport)> {
    let section = &job.data;
    let format = section.format.map(|f| match f {
        DataFormat::Jsonl => Format::Jsonl,
        DataFormat::Text => Format::Text,
        DataFormat::Tokens => Format::Tokens,
    });
    // A token file says its own row length.
    let tokens_only = format == Some(Format::Tokens)
        || (format.is_none() && paths.iter().all(|p| Format::of(p) == Some(Format::Tokens)));
    let default = (!tokens_only).then(|| DEFAULT_SEQ_LEN.min(model.max_positions));
    let config = DataConfig {
        format,
        seq_len: seq_len.or(default),
        packing: section.packing,
        long_rows: match section.long_rows {
            LongRows::Split => None,
            LongRows::Truncate => Some(data::LongRows::Truncate),
            LongRows::Error => Some(data::LongRows::Error),
        },
        on_error: match section.on_error {
            OnError::Fail => data::OnError::Stop,
            OnError::Skip => data::OnError::Skip,
        },
        vocab: model.vocab_size,
    };
    Ok(data::load(paths, &config, tokenizer)?)
}
