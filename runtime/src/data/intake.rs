//! Tokenised rows to the documents of training rows: what cannot be used is refused or counted, what is too long is cut.

use std::ops::Range;

use serde_json::Value;

use super::documents::{Documents, is_trainable};
use super::error::{DataError, Result};
use super::load::{DataConfig, LongRows, OnError};
use super::report::{DataReport, remember};
use super::rows::{Row, parse_row};
use super::source::Placed;
use super::tokenizer::{Encoded, Tokenizer};

/// A row with its tokens, and whether only a part of it is trained.
pub(crate) type Tokenised = Placed<(Encoded, bool)>;

/// The tokens of a JSON row.
pub(crate) fn tokenise(tokenizer: &Tokenizer, (place, value): Placed<Value>) -> Tokenised {
    let row = value.and_then(|v| parse_row(&v, tokenizer.chat_style(), tokenizer.eos_text()));
    (place, row.and_then(|row| encode(tokenizer, &row)))
}

/// The tokens of a row.
pub(crate) fn encode(tokenizer: &Tokenizer, row: &Row) -> std::result::Result<(Encoded, bool), String> {
    let encoded = tokenizer.encode_row(&row.pieces, row.eos).map_err(|e| e.to_string())?;
    Ok((encoded, row.is_masked()))
}

/// Takes rows in, one after the other.
#[derive(Debug)]
pub(crate) struct Intake<'a> {
    config: &'a DataConfig,
    tokenizer: Option<&'a Tokenizer>,
    seq_len: usize,
    /// What was taken.
    pub(crate) documents: Documents,
    /// What was counted.
    pub(crate) report: DataReport,
}

impl<'a> Intake<'a> {
    /// Nothing taken in. `tokenizer` is that of the rows, for errors.
    pub(crate) fn new(
        config: &'a DataConfig,
        tokenizer: Option<&'a Tokenizer>,
        seq_len: usize,
    ) -> Intake<'a> {
        let report = DataReport { seq_len, ..DataReport::default() };
        Intake { config, tokenizer, seq_len, documents: Documents::new(), report }
    }

    /// Takes a row in.
    pub(crate) fn admit(&mut self, (place, row): Tokenised) -> Result<()> {
        self.report.read += 1;
        let (row, masked) = match (row, self.config.on_error) {
            (Ok(row), _) => row,
            (Err(reason), OnError::Stop) => return Err(DataError::BadRow { place, reason }),
            (Err(reason), OnError::Skip) => {
                self.report.skipped += 1;
                remember(&mut self.report.skipped_examples, format!("{place}: {reason}"));
                return Ok(());
            }
        };
        if let Some(&id) = row.tokens.iter().find(|&&id| id as usize >= self.config.vocab) {
            return Err(DataError::BadRow { place, reason: self.unknown(id) });
        }
        if row.tokens.len() <= self.seq_len {
            self.push(&place, &row, 0..row.tokens.len());
            return Ok(());
        }
        let default = if masked { LongRows::Truncate } else { LongRows::Split };
        match self.config.long_rows.unwrap_or(default) {
            LongRows::Error => {
                return Err(DataError::LongRow { place, tokens: row.tokens.len(), seq_len: self.seq_len });
            }
            LongRows::Truncate => {
                self.report.truncated += 1;
                remember(
                    &mut self.report.truncated_examples,
                    format!("{place} ({} tokens)", row.tokens.len()),
                );
                self.push(&place, &row, 0..self.seq_len);
            }
            LongRows::Split => {
                self.report.split += 1;
                for window in windows(row.tokens.len(), self.seq_len) {
                    self.push(&place, &row, window);
                }
            }
        }
        Ok(())
    }

    fn unknown(&self, id: i32) -> String {
        let vocab = self.config.vocab;
        match self.tokenizer {
            Some(tokenizer) => format!(
                "token {id} ({:?}) is outside the model's vocabulary of {vocab}; the tokenizer {} is not this model's",
                tokenizer.token(id as u32).unwrap_or_default(),
                tokenizer.path().display()
            ),
            None => format!(
                "token {id} is outside the model's vocabulary of {vocab}; was the file made with another tokenizer?"
            ),
        }
    }

    fn push(&mut self, place: &str, row: &Encoded, range: Range<usize>) {
        if is_trainable(&row.labels[range.clone()]) {
            self.documents.push(&row.tokens[range.clone()], &row.labels[range]);
        } else {
            self.report.unlabelled += 1;
            remember(&mut self.report.unlabelled_examples, place.to_owned());
        }
    }
}

/// Windows of `seq_len` over `n` tokens. A last window of one token could not be trained, so the one before it gives it
/// another (unless that would leave that one with a single token).
pub(crate) fn windows(n: usize, seq_len: usize) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = (0..n).step_by(seq_len).map(|at| at..n.min(at + seq_len)).collect();
    if seq_len > 2
        && let [.., before, last] = &mut out[..]
        && last.len() == 1
    {
        before.end -= 1;
        last.start -= 1;
    }
    out
}
