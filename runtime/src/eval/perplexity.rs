//! Perplexity of text that is read as training data is.

use super::scorer::{RowScore, ScoreRow, score};
use super::{Measured, Observer, Options, data};
use crate::data::source::Format;
use crate::data::{DataConfig, Documents, IGNORE, OnError, RowSet, Tokenizer, load};
use crate::error::Result;
use crate::inference::Served;
use std::time::Instant;

pub(super) fn measure(
    served: &Served,
    options: &Options,
    seq_len: usize,
    observer: &mut dyn Observer,
) -> Result<Measured> {
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
    let rows = windows(&rows, seq_len, options.limit);
    let started = Instant::now();
    let scores = score(served, &rows, options.batch, &mut |done, total| observer.progress(done, total))?;
    let seconds = started.elapsed().as_secs_f64();
    let read: usize = rows.iter().map(|r| r.tokens.len()).sum();
    let bytes = tokenizer.map(|t| scored_bytes(&t, &rows)).transpose()?;
    Ok(Measured { values: values(&scores, bytes), tokens_per_s: read as f64 / seconds.max(1e-9) })
}

/// The documents of the first rows, cut where one is longer than `seq_len` (a row of a token file can be): windows overlap
/// by one token, so that every token but the document's first is scored once.
fn windows(rows: &RowSet, seq_len: usize, limit: Option<usize>) -> Vec<ScoreRow<'_>> {
    let documents = rows.documents();
    let count = documents.len().min(limit.unwrap_or(usize::MAX));
    (0..count).flat_map(|d| windows_of(documents, d, seq_len)).collect()
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

/// `ppl`, `nll`, `bits_per_byte` (with the `bytes` of the scored text), `accuracy`, `tokens`.
fn values(scores: &[RowScore], bytes: Option<usize>) -> Vec<f64> {
    let logp: f64 = scores.iter().map(|s| s.logp).sum();
    let tokens: usize = scores.iter().map(|s| s.tokens).sum();
    let greedy: usize = scores.iter().map(|s| s.greedy).sum();
    let nll = -logp / tokens as f64;
    let mut out = vec![nll.exp(), nll];
    out.extend(bytes.map(|b| -logp / std::f64::consts::LN_2 / b as f64));
    out.extend([greedy as f64 / tokens as f64, tokens as f64]);
    out
}

/// Bytes of the text of the scored tokens: those of the whole less those of what is only context. Special tokens have no
/// text, though their bits count.
fn scored_bytes(tokenizer: &Tokenizer, rows: &[ScoreRow<'_>]) -> Result<usize> {
    let mut bytes = 0usize;
    for row in rows {
        let scored = |i: usize| i > 0 && row.labels[i] != IGNORE;
        let context: Vec<i32> =
            row.tokens.iter().enumerate().filter(|(i, _)| !scored(*i)).map(|(_, t)| *t).collect();
        let (all, context) = (tokenizer.decode(row.tokens, true)?, tokenizer.decode(&context, true)?);
        bytes += all.len().saturating_sub(context.len());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_over_tokens() {
        let scores =
            [RowScore { logp: -2.0, tokens: 1, greedy: 1 }, RowScore { logp: -4.0, tokens: 3, greedy: 1 }];
        let out = values(&scores, Some(12));
        let expected = [1.5f64.exp(), 1.5, 6.0 / std::f64::consts::LN_2 / 12.0, 0.5, 4.0];
        assert!(out.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{out:?}");
        assert_eq!(values(&scores, None).len(), 4);
    }

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
