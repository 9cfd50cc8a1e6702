//! Questions with right answers, asked as they stand or with other words: what all tasks share that have right and wrong.
//!
//! An [`Exam`] is opened once for a task. Asking a row gives a [`RowResult`], the same for every batch it is asked in up to
//! the rounding of kernels. Plans stay compiled between calls, so asking again is cheap.

use super::choice;
use super::completion::{Answerer, Prompt};
use super::grade::Key;
use super::picks::Picker;
use super::stats::Part;
use super::{Observer, Options, Task, data, limited};
use crate::data::Tokenizer;
use crate::data::eval_data::{
    ChoiceItem, EntityItem, QaItem, read_choice, read_entities, read_qa, read_sentences,
};
use crate::error::{Result, RunError};
use crate::inference::Served;
use serde_json::{Map, Value, json};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What came of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct RowResult {
    /// Its place in the data, from 1.
    pub row: usize,
    /// Whether it was answered right: the likeliest choice, an exact match, all entities. Text is neither.
    pub correct: Option<bool>,
    /// What it adds to each of the task's estimates, in their order.
    pub parts: Vec<Part>,
    /// What was asked and said, by name.
    pub detail: Map<String, Value>,
}

/// A row to ask, with other words for its question where they are given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    /// From 0.
    pub row: usize,
    pub question: Option<String>,
}

/// A prompt to be answered freely.
struct Free {
    prompt: String,
    question: Range<usize>,
    key: Key,
}

enum Items {
    Choice(Vec<ChoiceItem>),
    Free(Vec<Free>),
}

/// The rows of a task and what asks them.
pub struct Exam<'a> {
    options: &'a Options,
    seq_len: usize,
    path: PathBuf,
    tokenizer: Tokenizer,
    items: Items,
    /// Solved rows before every question.
    shots: String,
    picker: Picker<'a>,
    answerer: Answerer<'a>,
}

impl<'a> Exam<'a> {
    /// Reads the rows of a task that has right and wrong answers.
    ///
    /// # Errors
    /// If the data or the tokenizer cannot be read.
    pub(super) fn open(served: &'a Served, options: &'a Options, seq_len: usize) -> Result<Exam<'a>> {
        let path = options.task.find(data(options)?)?;
        let items = read(options.task, &path)?.limited(options.limit);
        let shots = shots(options, &path)?;
        let (picker, answerer) =
            (Picker::new(served, options.batch)?, Answerer::new(served, options, seq_len));
        Ok(Exam { options, seq_len, path, tokenizer: served.tokenizer()?, items, shots, picker, answerer })
    }

    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        match &self.items {
            Items::Choice(items) => items.len(),
            Items::Free(items) => items.len(),
        }
    }

    /// The words of a row's question.
    pub(super) fn question(&self, row: usize) -> &str {
        match &self.items {
            Items::Choice(items) => &items[row].context[items[row].question.clone()],
            Items::Free(items) => &items[row].prompt[items[row].question.clone()],
        }
    }

    /// What of a row's question must stay as it is.
    pub(super) fn keeps(&self, row: usize) -> Vec<&str> {
        match &self.items {
            Items::Choice(_) => Vec::new(),
            Items::Free(items) => items[row].key.keeps(),
        }
    }

    /// Asks rows; results are in the order of `asks`. Gives the tokens that the model read and made too.
    ///
    /// # Errors
    /// If a row does not fit, or the model's numbers are not finite.
    pub(super) fn ask(
        &mut self,
        asks: &[Ask],
        observer: &mut dyn Observer,
    ) -> Result<(Vec<RowResult>, usize)> {
        match &self.items {
            Items::Choice(items) => {
                let place = |row: usize| format!("{}, row {}", self.path.display(), row + 1);
                let context = |ask: &Ask| {
                    let item = &items[ask.row];
                    format!("{}{}", self.shots, with(&item.context, &item.question, ask.question.as_deref()))
                };
                let contexts: Vec<String> = asks.iter().map(context).collect();
                let asked: Vec<choice::Asked<'_>> = asks
                    .iter()
                    .zip(&contexts)
                    .map(|(ask, context)| choice::Asked { row: ask.row, context, item: &items[ask.row] })
                    .collect();
                choice::ask(&mut self.picker, &self.tokenizer, &asked, self.seq_len, &place, observer)
            }
            Items::Free(items) => {
                let text = |ask: &Ask| {
                    let item = &items[ask.row];
                    format!("{}{}", self.shots, with(&item.prompt, &item.question, ask.question.as_deref()))
                };
                let texts: Vec<String> = asks.iter().map(text).collect();
                let prompts: Vec<Prompt<'_>> = asks
                    .iter()
                    .zip(&texts)
                    .map(|(ask, text)| Prompt { row: ask.row, text, until: items[ask.row].key.until() })
                    .collect();
                let (answers, tokens) = self.answerer.complete(&self.tokenizer, &prompts, observer)?;
                let results = asks.iter().zip(&texts).zip(answers).map(|((ask, text), answer)| {
                    graded(ask.row, &items[ask.row].key, &text[self.shots.len()..], answer)
                });
                Ok((results.collect(), tokens))
            }
        }
    }

    /// How it is run.
    pub(super) fn options(&self) -> &'a Options {
        self.options
    }
}

impl Items {
    fn limited(self, limit: Option<usize>) -> Items {
        match self {
            Items::Choice(items) => Items::Choice(limited(items, limit)),
            Items::Free(items) => Items::Free(limited(items, limit)),
        }
    }
}

fn read(task: Task, path: &Path) -> Result<Items> {
    let free = |items: Vec<Free>| Items::Free(items);
    Ok(match task {
        Task::Choice | Task::MedQa => Items::Choice(read_choice(path)?),
        Task::Qa => free(read_qa(path)?.into_iter().map(asked).collect()),
        Task::Gsm8k => free(read_qa(path)?.into_iter().map(worked).collect()),
        Task::Entity => free(read_entities(path)?.into_iter().map(recalled).collect()),
        Task::NcbiDisease => free(read_sentences(path)?.into_iter().map(listed).collect()),
        Task::Perplexity | Task::Speed => {
            return Err(RunError::Failed(format!("{} has no right answers", task.name())));
        }
    })
}

fn asked(item: QaItem) -> Free {
    let key = Key::Qa { answers: item.answers, worked: item.worked };
    Free { prompt: item.prompt, question: item.question, key }
}

fn worked(item: QaItem) -> Free {
    Free { prompt: item.prompt, question: item.question, key: Key::Gsm8k { full: item.full } }
}

fn recalled(item: EntityItem) -> Free {
    Free { question: 0..item.prompt.len(), prompt: item.prompt, key: Key::Mentioned(item.entities) }
}

/// Before and after the sentence of [`Task::NcbiDisease`].
const SENTENCE: (&str, &str) = ("Sentence: ", "\nDiseases, separated by semicolons:");

fn listed(item: EntityItem) -> Free {
    let start = SENTENCE.0.len();
    Free {
        question: start..start + item.prompt.len(),
        prompt: format!("{}{}{}", SENTENCE.0, item.prompt, SENTENCE.1),
        key: Key::Listed(item.entities),
    }
}

/// `text` with other words in the place of its question.
fn with(text: &str, question: &Range<usize>, words: Option<&str>) -> String {
    match words {
        None => text.to_owned(),
        Some(words) => format!("{}{words}{}", &text[..question.start], &text[question.end..]),
    }
}

/// The first rows of the training part beside the data, solved, each with an empty line behind it: as
/// lm-evaluation-harness puts them, with its sampler `first_n`.
fn shots(options: &Options, path: &Path) -> Result<String> {
    if options.shots == 0 {
        return Ok(String::new());
    }
    let train = match &options.shots_from {
        Some(path) => path.clone(),
        None => path.with_file_name(match path.extension() {
            Some(extension) => format!("train.{}", extension.to_string_lossy()),
            None => "train".into(),
        }),
    };
    if !train.is_file() {
        return Err(RunError::Input(format!(
            "--shots {} takes solved rows from {}, which is not there; name a file of them with --shots-from",
            options.shots,
            train.display()
        )));
    }
    if train == path {
        return Err(RunError::Input(format!(
            "--shots {}: {} is what is measured; take the solved rows from another file with --shots-from",
            options.shots,
            path.display()
        )));
    }
    let solved: Vec<String> = match read(options.task, &train)? {
        Items::Choice(items) => items
            .iter()
            .map(|i| format!("{} {}\n\n", i.context, i.choices[i.gold]))
            .take(options.shots)
            .collect(),
        Items::Free(items) => {
            let answers = match options.task {
                Task::Qa | Task::Gsm8k => read_qa(&train)?.into_iter().map(|i| i.full).collect(),
                _ => items.iter().map(|i| list_of(&i.key)).collect::<Vec<_>>(),
            };
            let pairs = items.iter().zip(answers);
            pairs.map(|(i, answer)| format!("{} {answer}\n\n", i.prompt)).take(options.shots).collect()
        }
    };
    if solved.len() < options.shots {
        let (n, file) = (solved.len(), train.display());
        return Err(RunError::Input(format!("--shots {}: {file} has only {n} rows", options.shots)));
    }
    Ok(solved.concat())
}

fn list_of(key: &Key) -> String {
    match key {
        Key::Mentioned(entities) | Key::Listed(entities) if !entities.is_empty() => entities.join("; "),
        _ => "none".into(),
    }
}

fn graded(row: usize, key: &Key, prompt: &str, answer: String) -> RowResult {
    let grade = key.grade(&answer);
    let detail = [("prompt", json!(prompt)), ("answer", json!(answer)), ("right", key.right())];
    RowResult {
        row: row + 1,
        correct: Some(grade.correct),
        parts: grade.parts,
        detail: detail.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
    }
}
