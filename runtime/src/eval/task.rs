//! What can be measured, what the results are called, and where a task finds its rows.

use super::stats::Form;
use crate::data::source::Format;
use crate::error::{Result, RunError};
use std::path::{Path, PathBuf};

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
    /// MedQA's four-option questions: [`Task::Choice`] with the options listed and their letters scored.
    MedQa,
    /// GSM8K's word problems, with the prompt, the ends and the two extractions of lm-evaluation-harness.
    Gsm8k,
    /// NCBI disease sentences: the model lists the diseases of a sentence, which is compared with the annotation.
    NcbiDisease,
    /// Tokens a second of reading prompts and of making tokens.
    Speed,
}

/// What part of a report a task's numbers belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Perplexity: no right and wrong.
    Text,
    /// Answers that are right or wrong.
    Quality,
    /// Entities that are known or not.
    Knowledge,
    /// Time.
    Speed,
}

/// A metric that is a function of sums over rows, which has an interval and can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Its name among the metrics.
    pub name: &'static str,
    /// How it follows from the sums.
    pub form: Form,
}

const fn ratio(name: &'static str) -> Estimate {
    Estimate { name, form: Form::Ratio }
}

const CHOICE: [Estimate; 3] = [ratio("acc"), ratio("acc_norm"), ratio("acc_bytes")];
const QA: [Estimate; 2] = [ratio("exact_match"), ratio("f1")];
const GSM8K: [Estimate; 3] = [ratio("exact_match"), ratio("strict_match"), ratio("flexible_extract")];
const ENTITY: [Estimate; 1] = [ratio("entity_recall")];
const LISTED: [Estimate; 3] = [ratio("entity_recall"), ratio("entity_precision"), ratio("entity_f1")];
const PERPLEXITY: [Estimate; 4] =
    [Estimate { name: "ppl", form: Form::Exp }, ratio("nll"), ratio("bits_per_byte"), ratio("accuracy")];
const PERPLEXITY_OF_TOKENS: [Estimate; 3] = [PERPLEXITY[0], PERPLEXITY[1], PERPLEXITY[3]];

impl Task {
    /// Every task.
    pub const ALL: [Task; 8] = [
        Task::Perplexity,
        Task::Choice,
        Task::Qa,
        Task::Entity,
        Task::MedQa,
        Task::Gsm8k,
        Task::NcbiDisease,
        Task::Speed,
    ];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Task::Perplexity => "ppl",
            Task::Choice => "choice",
            Task::Qa => "qa",
            Task::Entity => "entity",
            Task::MedQa => "medqa",
            Task::Gsm8k => "gsm8k",
            Task::NcbiDisease => "ncbi-disease",
            Task::Speed => "speed",
        }
    }

    /// The task of this name.
    pub fn named(name: &str) -> Option<Task> {
        Task::ALL.into_iter().find(|task| task.name() == name)
    }

    /// What its numbers tell.
    pub const fn subject(self) -> Subject {
        match self {
            Task::Perplexity => Subject::Text,
            Task::Choice | Task::Qa | Task::MedQa | Task::Gsm8k => Subject::Quality,
            Task::Entity | Task::NcbiDisease => Subject::Knowledge,
            Task::Speed => Subject::Speed,
        }
    }

    /// The metrics with intervals, the one that the task is judged by first.
    pub fn estimates(self, data: Option<&Path>) -> &'static [Estimate] {
        match self {
            Task::Perplexity if data.and_then(Format::of) == Some(Format::Tokens) => &PERPLEXITY_OF_TOKENS,
            Task::Perplexity => &PERPLEXITY,
            Task::Choice | Task::MedQa => &CHOICE,
            Task::Qa => &QA,
            Task::Gsm8k => &GSM8K,
            Task::Entity => &ENTITY,
            Task::NcbiDisease => &LISTED,
            Task::Speed => &[],
        }
    }

    /// The names of what [`super::evaluate`] gives for this task and data, in order.
    pub fn metrics(self, data: Option<&Path>) -> Vec<&'static str> {
        let counts: &[&str] = match self {
            Task::Perplexity => &["tokens"],
            Task::Choice | Task::MedQa => &["acc_stderr", "n"],
            Task::Qa | Task::Gsm8k => &["n"],
            Task::Entity | Task::NcbiDisease => &["entities", "n"],
            Task::Speed => &["prefill_tokens_per_s"],
        };
        let estimates = self.estimates(data).iter().map(|e| e.name);
        estimates.chain(counts.iter().copied()).chain(["tokens_per_s", "seconds"]).collect()
    }

    /// Longest answer where the caller sets none, in tokens; lm-evaluation-harness generates 256.
    pub(super) const fn answer_tokens(self) -> usize {
        match self {
            Task::Gsm8k => 256,
            _ => 64,
        }
    }

    /// The file below a folder of data sets that the task reads.
    const fn file(self) -> Option<(&'static str, &'static str)> {
        match self {
            Task::MedQa => Some(("medqa", "test.jsonl")),
            Task::Gsm8k => Some(("gsm8k", "test.jsonl")),
            Task::NcbiDisease => Some(("ncbi-disease", "test.tsv")),
            _ => None,
        }
    }

    /// The file of rows that `path` means: itself, or the task's own below a folder.
    ///
    /// # Errors
    /// If it is a folder that has no such file, or the task reads files only.
    pub fn find(self, path: &Path) -> Result<PathBuf> {
        if !path.is_dir() {
            return Ok(path.to_path_buf());
        }
        let Some((folder, file)) = self.file() else {
            return Err(RunError::Input(format!(
                "{} is a folder; --task {} reads a file of rows",
                path.display(),
                self.name()
            )));
        };
        let places = [path.join(folder).join(file), path.join(file)];
        places.iter().find(|p| p.is_file()).cloned().ok_or_else(|| {
            RunError::Input(format!(
                "{} has neither {folder}/{file} nor {file}, which --task {} reads",
                path.display(),
                self.name()
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::data::testing::TempDir;

    #[test]
    fn names_lead_back() {
        assert!(Task::ALL.into_iter().all(|task| Task::named(task.name()) == Some(task)));
        assert_eq!(Task::named("x"), None);
    }

    #[test]
    fn folders_of_data_sets() {
        let dir = TempDir::new("sets");
        assert!(Task::MedQa.find(dir.path()).unwrap_err().to_string().contains("neither medqa/test.jsonl"));
        let flat = dir.file("test.jsonl", "");
        assert_eq!(Task::MedQa.find(dir.path()).unwrap(), flat);
        std::fs::create_dir(dir.path().join("gsm8k")).unwrap();
        let nested = dir.file("gsm8k/test.jsonl", "");
        assert_eq!(Task::Gsm8k.find(dir.path()).unwrap(), nested);
        assert_eq!(Task::Gsm8k.find(&flat).unwrap(), flat);
        assert!(Task::Qa.find(dir.path()).unwrap_err().to_string().contains("reads a file of rows"));
    }
}
