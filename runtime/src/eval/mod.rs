//! Measuring a model: perplexity, multiple choice, free answers, entity recall, speed.
//!
//! Every task reads its data, runs the model in batches of rows of about the same length, and gives named numbers in a fixed
//! order. [`Task::metrics`] lists the names, so that a caller can refuse a wrong one before the work. What a row adds to
//! each number is kept ([`RowResult`]), for intervals and comparisons ([`stats`]).

pub mod answers;
mod attack;
mod choice;
mod completion;
mod exam;
mod grade;
mod perplexity;
pub mod perturb;
mod picks;
pub mod scorer;
mod speed;
pub mod stats;
mod task;
#[cfg(test)]
mod tests;

pub use attack::{Attack, AttackOptions, Attacked};
pub use exam::{Exam, RowResult};
pub use scorer::{RowScore, ScoreRow, score};
pub use task::{Estimate, Subject, Task};

use crate::data::DataError;
use crate::error::{Result, RunError};
use crate::inference::Served;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Row length where the caller sets none and the model was made for more: longer rows are slow and need much memory.
pub const DEFAULT_SEQ_LEN: usize = 4096;

/// How a task is run.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// What is measured.
    pub task: Task,
    /// Rows; only [`Task::Speed`] can do without. Tasks of a known data set take a folder too ([`Task::find`]).
    pub data: Option<PathBuf>,
    /// Solved rows before each question.
    pub shots: usize,
    /// Where these come from; `None` is `train` beside the data.
    pub shots_from: Option<PathBuf>,
    /// Only the first rows.
    pub limit: Option<usize>,
    /// Most rows at a time.
    pub batch: usize,
    /// Longest row in tokens, prompt and answer together; `None` is the model's limit, at most [`DEFAULT_SEQ_LEN`].
    pub seq_len: Option<usize>,
    /// Longest answer, in tokens; `None` is 64 (256 for [`Task::Gsm8k`]), or half a row where rows are shorter than twice
    /// that.
    pub max_new_tokens: Option<usize>,
    /// Seed of the prompts that [`Task::Speed`] makes up.
    pub seed: u64,
}

impl Options {
    /// Longest answer in rows of `seq_len` tokens.
    fn answer_tokens(&self, seq_len: usize) -> usize {
        self.max_new_tokens.unwrap_or_else(|| self.task.answer_tokens().min(seq_len / 2).max(1))
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

/// Rows with what the model made of them.
struct Answered {
    rows: Vec<RowResult>,
    /// Tokens that the model read and made, padding not included.
    tokens: usize,
}

/// What a task gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// What was measured.
    pub task: Task,
    /// The metrics among these that have intervals and can be compared, in the order of each row's parts.
    pub estimates: &'static [Estimate],
    /// Named numbers.
    pub metrics: Metrics,
    /// Every row, in the order of the data; none of [`Task::Speed`].
    pub rows: Vec<RowResult>,
}

/// Runs a task. `tokens_per_s` counts the tokens that the model read and made, padding not included, but for
/// [`Task::Speed`], where it is the tokens made a second; `seconds` is the time of the whole task but for opening the model.
///
/// # Errors
/// If the data or an option is wrong, the model's numbers are not finite, or memory runs out.
pub fn evaluate(served: &Served, options: &Options, observer: &mut dyn Observer) -> Result<Evaluation> {
    let started = Instant::now();
    let seq_len = row_length(served, options)?;
    match options.task {
        Task::Perplexity => {
            let answered =
                perplexity::measure(served, options, seq_len, observer).map_err(in_terms_of_arguments)?;
            Ok(evaluation(options, answered, started))
        }
        Task::Speed => {
            let (read, made) =
                speed::measure(served, options, seq_len, observer).map_err(in_terms_of_arguments)?;
            let values = [read, made, started.elapsed().as_secs_f64()];
            let metrics = Task::Speed.metrics(None).into_iter().zip(values).collect();
            Ok(Evaluation { task: Task::Speed, estimates: &[], metrics, rows: Vec::new() })
        }
        _ => Exam::open(served, options, seq_len)?.take(started, observer),
    }
}

impl<'a> Exam<'a> {
    /// Reads the rows of a task that has right and wrong answers ([`Subject::Quality`] or [`Subject::Knowledge`]).
    ///
    /// # Errors
    /// If the data, an option or the tokenizer is wrong.
    pub fn new(served: &'a Served, options: &'a Options) -> Result<Exam<'a>> {
        Exam::open(served, options, row_length(served, options)?)
    }

    /// Asks every row as it stands.
    ///
    /// # Errors
    /// If a row does not fit, or the model's numbers are not finite.
    pub fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<Evaluation> {
        self.take(Instant::now(), observer)
    }

    fn take(&mut self, started: Instant, observer: &mut dyn Observer) -> Result<Evaluation> {
        let asks: Vec<exam::Ask> = (0..self.len()).map(|row| exam::Ask { row, question: None }).collect();
        let (rows, tokens) = self.ask(&asks, observer)?;
        Ok(evaluation(self.options(), Answered { rows, tokens }, started))
    }
}

/// The metrics of rows, in the order of [`Task::metrics`].
fn evaluation(options: &Options, answered: Answered, started: Instant) -> Evaluation {
    let (task, rows, data) = (options.task, answered.rows, options.data.as_deref());
    let estimates = task.estimates(data);
    let parts = |i: usize| rows.iter().map(|r| r.parts[i]).collect::<Vec<_>>();
    let mut values: Vec<f64> =
        estimates.iter().enumerate().map(|(i, e)| stats::value(&parts(i), e.form)).collect();
    let (n, below) = (rows.len() as f64, |i: usize| parts(i).iter().map(|p| p.den).sum::<f64>());
    values.extend(match task {
        // √(p(1-p)/(n-1)) of `acc`: ±1.96 of it is a 95 % interval.
        Task::Choice | Task::MedQa => vec![(values[0] * (1.0 - values[0]) / (n - 1.0)).sqrt(), n],
        Task::Entity | Task::NcbiDisease => vec![below(0), n],
        Task::Perplexity => vec![below(0)],
        _ => vec![n],
    });
    let seconds = started.elapsed().as_secs_f64();
    values.extend([answered.tokens as f64 / seconds.max(1e-9), seconds]);
    Evaluation { task, estimates, metrics: task.metrics(data).into_iter().zip(values).collect(), rows }
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
