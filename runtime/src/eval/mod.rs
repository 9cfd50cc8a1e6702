//! Measuring a model: perplexity, multiple choice, free answers, entity recall, speed.
//!
//! Every task reads its data, runs the model in batches of rows of about the same length, and gives named numbers in a fixed
//! order. [`Task::metrics`] lists the names, so that a caller can refuse a wrong one before the work.

pub mod answers;
mod choice;
mod completion;
mod entity;
mod perplexity;
mod qa;
pub mod scorer;
mod speed;
#[cfg(test)]
mod tests;

pub use scorer::{RowScore, ScoreRow, score};

use crate::data::DataError;
use crate::data::source::Format;
use crate::error::{Result, RunError};
use crate::inference::Served;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Row length where the caller sets none and the model was made for more: longer rows are slow and need much memory.
pub const DEFAULT_SEQ_LEN: usize = 4096;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Perplexity of text, rows or token files, read as training data is, a row a document. A text file is cut into windows
    /// of the row length; the loss is on every token after the first of a window (of rows with a prompt, on the answer).
    Perplexity,
    /// Multiple choice by log-likelihood, as lm-evaluation-harness does.
    Choice,
    /// Free answers, greedy: exact match and F1 after SQuAD's normalisation. An answer ends at a line break; those of rows
    /// with worked answers (GSM8K) at `Question:`, and their final numbers are compared.
    Qa,
    /// The share of the listed entities that the greedy completion of a prompt mentions.
    Entity,
    /// Tokens a second of reading prompts and of making tokens.
    Speed,
}

impl Task {
    /// The names of what [`evaluate`] gives for this task and data, in order.
    pub fn metrics(self, data: Option<&Path>) -> Vec<&'static str> {
        let own: &[&str] = match self {
            Task::Perplexity if data.and_then(Format::of) == Some(Format::Tokens) => {
                &["ppl", "nll", "accuracy", "tokens"]
            }
            Task::Perplexity => &["ppl", "nll", "bits_per_byte", "accuracy", "tokens"],
            Task::Choice => &["acc", "acc_norm", "acc_bytes", "acc_stderr", "n"],
            Task::Qa => &["exact_match", "f1", "n"],
            Task::Entity => &["entity_recall", "entities", "n"],
            Task::Speed => &["prefill_tokens_per_s"],
        };
        own.iter().copied().chain(["tokens_per_s", "seconds"]).collect()
    }
}

/// How a task is run.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// What is measured.
    pub task: Task,
    /// Rows; only [`Task::Speed`] can do without.
    pub data: Option<PathBuf>,
    /// Only the first rows.
    pub limit: Option<usize>,
    /// Most rows at a time.
    pub batch: usize,
    /// Longest row in tokens, prompt and answer together; `None` is the model's limit, at most [`DEFAULT_SEQ_LEN`].
    pub seq_len: Option<usize>,
    /// Longest answer, in tokens; `None` is 64, or half a row where rows are shorter than twice that.
    pub max_new_tokens: Option<usize>,
    /// Seed of the prompts that [`Task::Speed`] makes up.
    pub seed: u64,
}

impl Options {
    /// Longest answer in rows of `seq_len` tokens.
    fn answer_tokens(&self, seq_len: usize) -> usize {
        self.max_new_tokens.unwrap_or_else(|| 64.min(seq_len / 2).max(1))
    }
}

/// What a task is told and tells while it runs.
pub trait Observer {
    /// Rows done and in all.
    fn progress(&mut self, done: usize, total: usize);
    /// Something worth knowing: rows were cut, and the like.
    fn note(&mut self, text: &str);
}

/// Named results in the order of [`Task::metrics`].
pub type Metrics = Vec<(&'static str, f64)>;

/// What a task gives beside its own metrics.
struct Measured {
    /// The task's own numbers, in the order of [`Task::metrics`].
    values: Vec<f64>,
    /// Tokens a second.
    tokens_per_s: f64,
}

/// Runs a task. `tokens_per_s` counts the tokens that the model read and made, padding not included, but for
/// [`Task::Speed`], where it is the tokens made a second; `seconds` is the time of the whole task but for opening the model.
///
/// # Errors
/// If the data or an option is wrong, the model's numbers are not finite, or memory runs out.
pub fn evaluate(served: &Served, options: &Options, observer: &mut dyn Observer) -> Result<Metrics> {
    let started = Instant::now();
    let seq_len = row_length(served, options)?;
    let measured = match options.task {
        Task::Perplexity => perplexity::measure(served, options, seq_len, observer),
        Task::Choice => choice::measure(served, options, seq_len, observer),
        Task::Qa => qa::measure(served, options, seq_len, observer),
        Task::Entity => entity::measure(served, options, seq_len, observer),
        Task::Speed => speed::measure(served, options, seq_len, observer),
    }
    .map_err(in_terms_of_arguments)?;
    let names = options.task.metrics(options.data.as_deref());
    let values = measured.values.into_iter().chain([measured.tokens_per_s, started.elapsed().as_secs_f64()]);
    Ok(names.into_iter().zip(values).collect())
}

fn row_length(served: &Served, options: &Options) -> Result<usize> {
    let most = served.model.config.max_positions;
    match options.seq_len {
        None => Ok(most.min(DEFAULT_SEQ_LEN)),
        Some(n) if n > most => Err(RunError::Input(format!("--seq-len {n}: the model has {most} positions"))),
        Some(n) if n < 2 => Err(RunError::Input(format!("--seq-len {n}: a row needs two tokens or more"))),
        Some(n) => Ok(n),
    }
}

fn data(options: &Options) -> Result<&Path> {
    options
        .data
        .as_deref()
        .ok_or_else(|| RunError::Input("the task needs rows; give them with --data FILE".into()))
}

fn limited<T>(mut items: Vec<T>, limit: Option<usize>) -> Vec<T> {
    items.truncate(limit.unwrap_or(usize::MAX));
    items
}

/// The readers of training data speak of the configuration's keys; here the same things are arguments.
fn in_terms_of_arguments(error: RunError) -> RunError {
    let said = |text: String| text.replace("data.seq_len", "--seq-len").replace("data.train", "--data");
    match error {
        RunError::Data(DataError::Empty { sources, reason }) => {
            RunError::Data(DataError::Empty { sources, reason: said(reason) })
        }
        RunError::Data(DataError::Config { setting, reason }) => {
            RunError::Input(format!("{}: {}", said(setting.into()), said(reason)))
        }
        other => other,
    }
}
