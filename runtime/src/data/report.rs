//! What reading a data set counts, for the user to see.

use crate::counted;
use std::fmt;

/// How many examples are kept of each kind of trouble.
const EXAMPLES: usize = 5;

/// What was read and what was left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataReport {
    /// Files.
    pub files: usize,
    /// Rows in them (lines, samples, whole text files, rows of token files).
    pub read: usize,
    /// Documents that are trained on (windows counted one by one).
    pub documents: usize,
    /// Training rows after packing.
    pub rows: usize,
    /// Tokens of a training row.
    pub seq_len: usize,
    /// Tokens of the documents.
    pub tokens: usize,
    /// Tokens that are targets.
    pub trained_tokens: usize,
    /// Rows that could not be used.
    pub skipped: usize,
    /// The first of these, with place and reason.
    pub skipped_examples: Vec<String>,
    /// Rows and windows without a token to train.
    pub unlabelled: usize,
    /// The places of the first of these.
    pub unlabelled_examples: Vec<String>,
    /// Rows that lost their end.
    pub truncated: usize,
    /// The places of the first of these.
    pub truncated_examples: Vec<String>,
    /// Rows that were cut into windows.
    pub split: usize,
}

impl fmt::Display for DataReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let full = 100.0 * self.tokens as f64 / (self.rows * self.seq_len).max(1) as f64;
        write!(
            f,
            "{} of {} tokens ({full:.1} % full) from {} in {}; {} tokens, {} trained",
            counted(self.rows, "row"),
            self.seq_len,
            counted(self.documents, "document"),
            counted(self.files, "file"),
            self.tokens,
            self.trained_tokens
        )?;
        let mut line = |count: usize, what: &str, examples: &[String]| match count {
            0 => Ok(()),
            _ if examples.is_empty() => write!(f, "\n{count} {what}"),
            _ => write!(f, "\n{count} {what}, first: {}", examples.join("; ")),
        };
        line(self.split, "rows longer than seq_len were cut into windows", &[])?;
        line(self.truncated, "rows longer than seq_len lost their end", &self.truncated_examples)?;
        line(self.unlabelled, "rows without a token to train", &self.unlabelled_examples)?;
        line(self.skipped, "rows skipped", &self.skipped_examples)
    }
}

impl DataReport {
    /// Adds what was counted elsewhere in the same data.
    pub(crate) fn add(&mut self, other: &DataReport) {
        self.read += other.read;
        self.documents += other.documents;
        self.rows += other.rows;
        self.tokens += other.tokens;
        self.trained_tokens += other.trained_tokens;
        self.skipped += other.skipped;
        self.unlabelled += other.unlabelled;
        self.truncated += other.truncated;
        self.split += other.split;
        other.skipped_examples.iter().for_each(|e| remember(&mut self.skipped_examples, e.clone()));
    }

    /// Why nothing is left to train on, for the error.
    pub(crate) fn why_empty(&self) -> String {
        if self.read == 0 {
            return "the files have no rows; name files that do".into();
        }
        let mut reasons = vec![format!("{} rows were read", self.read)];
        if self.skipped > 0 {
            reasons.push(format!("{} skipped ({})", self.skipped, self.skipped_examples.join("; ")));
        }
        if self.unlabelled > 0 {
            reasons.push(format!(
                "{} have no token to train within data.seq_len = {} ({}); raise it if the prompts are longer",
                self.unlabelled,
                self.seq_len,
                self.unlabelled_examples.join("; ")
            ));
        }
        reasons.join(", ")
    }
}

/// Keeps the first few examples.
pub(crate) fn remember(examples: &mut Vec<String>, example: String) {
    if examples.len() < EXAMPLES {
        examples.push(example);
    }
}
