//! Perplexity of text that is read as training data is.

use super::exam::RowResult;
use super::scorer::{RowScore, ScoreRow, score};
use super::stats::Part;
use super::{Answered, Observer, Options, data};
use crate::data::source::Format;
use crate::data::{DataConfig, Documents, IGNORE, OnError, RowSet, Tokenizer, load};
use crate::error::Result;
use crate::inference::Served;

pub(super) fn measure(
    served: &Served,
    options: &Options,
    seq_len: usize,
    observer: &mut dyn Observer,
) -> Result<Answered> {
    let path = data(options)?;
    let is_tokens = Format::of(path) == Some(Format::Tokens);
    let tokenizer = if is_tokens { None } else { Some(served.tokenizer()?) };
    let config = DataConfig {
        format: None,
        seq_len: (!is_tokens).then_some(seq_len),
        packing: false,
        long_rows: None,
        on_error: OnError::Stop,
        vocab: served.model.config.vocab_size,
    };
    let (rows, report) = load(&[path.to_path_buf()], &config, tokenizer.as_ref())?;
    observer.note(&report.to_string());
    let (owners, rows): (Vec<usize>, Vec<ScoreRow<'_>>) =
        windows(&rows, seq_len, options.limit).into_iter().unzip();
    let scores = score(served, &rows, options.batch, &mut |done, total| observer.progress(done, total))?;
    let mut results: Vec<RowResult> = Vec::new();
    for ((owner, row), score) in owners.into_iter().zip(&rows).zip(&scores) {
        let bytes = tokenizer.as_ref().map(|t| scored_bytes(t, row)).transpose()?;
        let parts = parts(score, bytes);
        match results.last_mut().filter(|last| last.row == owner + 1) {
            Some(last) => last.parts.iter_mut().zip(parts).for_each(|(sum, part)| {
                *sum = Part { num: sum.num + part.num, den: sum.den + part.den };
            }),
            None => {
                results.push(RowResult { row: owner + 1, correct: None, parts, detail: Default::default() })
            }
        }
    }
    Ok(Answered { rows: results, tokens: rows.iter().map(|r| r.tokens.len()).sum() })
}

/// The documents of the first rows, cut where one is longer than `seq_len` (a row of a token file can be): windows overlap
/// by one token, so that every token but the document's first is scored once. Each with the number of its document.
fn windows(rows: &RowSet, seq_len: usize, limit: Option<usize>) -> Vec<(usize, ScoreRow<'_>)> {
    let documents = rows.documents();
    let count = documents.len().min(limit.unwrap_or(usize::MAX));
    let of = |d: usize| windows_of(documents, d, seq_len).into_iter().map(move |window| (d, window));
    (0..count).flat_map(of).collect()
}

fn windows_of(documents: &Documents, document: usize, seq_len: usize) -> Vec<ScoreRow<'_>> {
    let (tokens, labels) = (documents.tokens(document), documents.labels(document));
    let starts = (0..tokens.len().saturating_sub(1)).step_by(seq_len - 1);
    let window = |start: usize| {
        let end = (start + seq_len).min(tokens.len());
        ScoreRow { tokens: &tokens[start..end], labels: &labels[start..end] }
    };
    starts.map(window).collect()
}

/// What a window adds to `ppl`, `nll`, `bits_per_byte` (with the bytes of the scored text) and `accuracy`.
fn parts(score: &RowScore, bytes: Option<usize>) -> Vec<Part> {
    let tokens = score.tokens as f64;
    let nll = Part { num: -score.logp, den: tokens };
    let bits = bytes.map(|b| Part { num: -score.logp / std::f64::consts::LN_2, den: b as f64 });
    let accuracy = Part { num: score.greedy as f64, den: tokens };
    [nll, nll].into_iter().chain(bits).chain([accuracy]).collect()
}

/// Bytes of the text of the scored tokens: those of the whole less those of what is only context. Special tokens have no
/// text, though their bits count.
fn scored_bytes(tokenizer: &Tokenizer, row: &ScoreRow<'_>) -> Result<usize> {
    let scored = |i: usize| i > 0 && row.labels[i] != IGNORE;
    let context: Vec<i32> =
        row.tokens.iter().enumerate().filter(|(i, _)| !scored(*i)).map(|(_, t)| *t).collect();
    let (all, context) = (tokenizer.decode(row.tokens, true)?, tokenizer.decode(&context, true)?);
    Ok(all.len().saturating_sub(context.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_score_every_token_once() {
        for n in 2..20 {
            let tokens: Vec<i32> = (0..n).collect();
            let mut documents = Documents::new();
            documents.push(&tokens, &tokens);
            for seq_len in 2..22 {
                let scored: Vec<i32> =
                    windows_of(&documents, 0, seq_len).iter().flat_map(|w| w.labels[1..].to_vec()).collect();
                assert_eq!(scored, tokens[1..], "{n} tokens in windows of {seq_len}");
            }
        }
    }
}
