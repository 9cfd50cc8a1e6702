//! The training data of a job.

use crate::config::{DataFormat, JobConfig, Length, LongRows, ModelInit, OnError, Streaming};
use crate::data::{
    self, DataConfig, DataError, DataReport, Format, Loader, LoaderConfig, RowSet, RowStream, StreamConfig,
    Tokenizer,
};
use crate::error::{Result, RunError};
use crate::models::Model;
use crate::teacher_cache::is_cache;
use kfc_ops::model::ModelConfig;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Row length where neither the job nor a token file says one.
const DEFAULT_SEQ_LEN: usize = 1024;

/// Bytes of files above which `data.streaming = "auto"` streams.
const STREAM_ABOVE: u64 = 64 << 20;

/// Where training rows come from.
#[derive(Debug)]
pub enum JobRows {
    /// Rows in memory, and what was read.
    Held(Box<RowSet>, DataReport),
    /// Files that are read while training runs.
    Streamed(Box<RowStream>),
}

/// The rows of a job and what was read.
#[derive(Debug)]
pub struct JobData {
    /// Training rows.
    pub rows: JobRows,
    /// Rows of general text.
    pub general: Option<RowSet>,
    /// What was read as general text.
    pub general_report: Option<DataReport>,
    /// How long that took.
    pub took: Duration,
}

impl JobData {
    /// Tokens of a row.
    pub fn seq_len(&self) -> usize {
        match &self.rows {
            JobRows::Held(rows, _) => rows.seq_len(),
            JobRows::Streamed(stream) => stream.seq_len(),
        }
    }

    /// Training rows, if they are counted.
    pub fn len(&self) -> Option<usize> {
        match &self.rows {
            JobRows::Held(rows, _) => Some(rows.len()),
            JobRows::Streamed(_) => None,
        }
    }

    /// Whether there is nothing to train on, as far as that is known.
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// What was found, for the user.
    pub fn describe(&self) -> String {
        match &self.rows {
            JobRows::Held(_, report) => report.to_string(),
            JobRows::Streamed(stream) => stream.to_string(),
        }
    }

    /// Bytes that will be taken beside what is resident now.
    pub fn to_come(&self) -> u64 {
        match &self.rows {
            JobRows::Held(..) => 0,
            JobRows::Streamed(stream) => stream.memory(),
        }
    }
}

/// Reads and tokenises what a job trains on, or opens the files that it is streamed from.
///
/// # Errors
/// If files are missing, lines are bad, or nothing is left to train on.
pub fn load(job: &JobConfig, model: &ModelConfig) -> Result<JobData> {
    let started = Instant::now();
    let tokenizer = tokenizer_path(job).map(|p| Tokenizer::load(&p)).transpose()?.map(Arc::new);
    let general_paths = job.distill.as_ref().map_or(&[][..], |d| &d.general);
    let rows = if streams(job)? {
        JobRows::Streamed(Box::new(open(job, model, tokenizer.clone())?))
    } else {
        let (rows, report) = read(job, model, &job.data.train, job.data.seq_len, tokenizer.as_deref())?;
        JobRows::Held(Box::new(rows), report)
    };
    let mut data = JobData { rows, general: None, general_report: None, took: started.elapsed() };
    if general_paths.is_empty() {
        return Ok(data);
    }
    let seq_len = data.seq_len();
    let (general, general_report) = read(job, model, general_paths, Some(seq_len), tokenizer.as_deref())?;
    if general.seq_len() != seq_len {
        return Err(RunError::Input(format!(
            "distill.general: rows have {} tokens, training rows have {seq_len}; use token files of one row length",
            general.seq_len(),
        )));
    }
    data.general = Some(general);
    data.general_report = Some(general_report);
    data.took = started.elapsed();
    Ok(data)
}

/// Reads the training rows of a job into memory, whatever `data.streaming` says.
///
/// # Errors
/// As [`load`].
pub fn load_rows(job: &JobConfig, model: &ModelConfig) -> Result<RowSet> {
    let tokenizer = tokenizer_path(job).map(|p| Tokenizer::load(&p)).transpose()?;
    Ok(read(job, model, &job.data.train, job.data.seq_len, tokenizer.as_ref())?.0)
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
        rank: job.data.rank,
        world: job.data.world,
    };
    let loader = match data.rows {
        JobRows::Held(rows, _) => Loader::new(*rows, data.general, config)?,
        JobRows::Streamed(stream) => Loader::streamed(*stream, data.general, config)?,
    };
    Ok(loader.after(data.took))
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

/// Whether the job's files are streamed.
fn streams(job: &JobConfig) -> Result<bool> {
    let cached = job.distill.as_ref().is_some_and(|d| is_cache(&d.teacher));
    match job.data.streaming {
        Streaming::Off => Ok(false),
        Streaming::On => Ok(true),
        Streaming::Auto if cached || matches!(job.train.length, Length::Epochs(_)) => Ok(false),
        Streaming::Auto => {
            let sources = data::source::find(&job.data.train, format(job))?;
            let mut bytes = 0;
            for source in sources {
                let size = std::fs::metadata(&source.path).map_err(DataError::io(&source.path))?.len();
                bytes += size;
            }
            Ok(bytes > STREAM_ABOVE)
        }
    }
}

fn open(job: &JobConfig, model: &ModelConfig, tokenizer: Option<Arc<Tokenizer>>) -> Result<RowStream> {
    let mut config = data_config(job, model, &job.data.train, job.data.seq_len);
    // Rows cannot be looked at before they are read, so tokens must be ones that both models know.
    if let Some(distill) = job.distill.as_ref().filter(|d| !is_cache(&d.teacher)) {
        let teacher = Model::open(&distill.teacher, job.model.dtype, ModelInit::Pretrained, 0)?;
        config.vocab = config.vocab.min(teacher.config.vocab_size);
    }
    let config = StreamConfig {
        data: config,
        shuffle: job.data.shuffle,
        seed: job.train.seed,
        workers: job.data.workers,
        prefetch: job.data.prefetch,
        rank: job.data.rank,
        world: job.data.world,
    };
    Ok(RowStream::open(&job.data.train, config, tokenizer)?)
}

fn read(
    job: &JobConfig,
    model: &ModelConfig,
    paths: &[PathBuf],
    seq_len: Option<usize>,
    tokenizer: Option<&Tokenizer>,
) -> Result<(RowSet, DataReport)> {
    Ok(data::load(paths, &data_config(job, model, paths, seq_len), tokenizer)?)
}

fn format(job: &JobConfig) -> Option<Format> {
    job.data.format.map(|f| match f {
        DataFormat::Jsonl => Format::Jsonl,
        DataFormat::Text => Format::Text,
        DataFormat::Tokens => Format::Tokens,
        DataFormat::WebDataset => Format::WebDataset,
    })
}

fn data_config(
    job: &JobConfig,
    model: &ModelConfig,
    paths: &[PathBuf],
    seq_len: Option<usize>,
) -> DataConfig {
    let section = &job.data;
    let format = format(job);
    // A token file says its own row length; a token shard does not.
    let says_its_own = data::source::find(paths, format).is_ok_and(|sources| {
        sources.iter().all(|s| s.format == Format::Tokens)
            && data::load::layout(&sources).is_ok_and(|l| l == data::token_file::Layout::Rows)
    });
    let default = (!says_its_own).then(|| DEFAULT_SEQ_LEN.min(model.max_positions));
    DataConfig {
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
    }
}
