//! Multiple choice: the log-likelihood of each choice after the context, as lm-evaluation-harness scores it.
//!
//! A blank separates context and choice unless the choice starts with white space. Context and choice are tokenised
//! together; what follows the tokens of the context alone is the choice. `acc` takes the largest log-likelihood, `acc_norm`
//! divides it by the characters of the choice, `acc_bytes` by its UTF-8 bytes; the first wins among equals.

use super::scorer::{ScoreRow, score};
use super::{Measured, Observer, Options, data, limited};
use crate::data::eval_data::{ChoiceItem, read_choice};
use crate::data::{IGNORE, Tokenizer};
use crate::error::{Result, RunError};
use crate::inference::Served;
use std::time::Instant;

/// A context with one choice.
struct Pair {
    tokens: Vec<i32>,
    labels: Vec<i32>,
}

pub(super) fn measure(
    served: &Served,
    options: &Options,
    seq_len: usize,
    observer: &mut dyn Observer,
) -> Result<Measured> {
    let path = data(options)?;
    let tokenizer = served.tokenizer()?;
    let items = limited(read_choice(path)?, options.limit);
    let mut cut = 0;
    let mut pairs = Vec::new();
    for (row, item) in items.iter().enumerate() {
        for choice in &item.choices {
            let pair = pair(&tokenizer, &item.context, choice, seq_len).map_err(|reason| {
                RunError::Input(format!("{}, row {}, choice {choice:?}: {reason}", path.display(), row + 1))
            })?;
            cut += usize::from(pair.1);
            pairs.push(pair.0);
        }
    }
    if cut > 0 {
        observer.note(&format!("{cut} contexts lost their start to fit {seq_len} tokens"));
    }
    let rows: Vec<ScoreRow<'_>> =
        pairs.iter().map(|p| ScoreRow { tokens: &p.tokens, labels: &p.labels }).collect();
    let started = Instant::now();
    let scores = score(served, &rows, options.batch, &mut |done, total| observer.progress(done, total))?;
    let seconds = started.elapsed().as_secs_f64();
    let mut logp = scores.iter().map(|s| s.logp);
    let likelihoods: Vec<Vec<f64>> =
        items.iter().map(|i| logp.by_ref().take(i.choices.len()).collect()).collect();
    let read: usize = pairs.iter().map(|p| p.tokens.len()).sum();
    Ok(Measured { values: values(&items, &likelihoods), tokens_per_s: read as f64 / seconds.max(1e-9) })
}

/// Tokens of context and choice, of which the choice is scored; and whether the context lost its start to fit.
fn pair(
    tokenizer: &Tokenizer,
    context: &str,
    choice: &str,
    seq_len: usize,
) -> std::result::Result<(Pair, bool), String> {
    let bare = context.trim_end();
    // White space at the end of the context goes to the choice, where tokenizers put it.
    let blank = if choice.starts_with(char::is_whitespace) { "" } else { " " };
    let continuation = format!("{}{blank}{choice}", &context[bare.len()..]);
    let encode = |text: &str| tokenizer.encode(text).map_err(|e| e.to_string());
    let mut tokens = encode(&format!("{bare}{continuation}"))?;
    let mut from = encode(bare)?.len();
    if from == 0 {
        let start = tokenizer.bos().or(tokenizer.eos());
        let start =
            start.ok_or("the context has no tokens, and the tokenizer names none that starts a text")?;
        tokens.insert(0, start as i32);
        from = 1;
    }
    if tokens.len() <= from {
        return Err("the choice adds no tokens to its context".into());
    }
    // The last token is only a label, so one more than the row length fits.
    let excess = tokens.len().saturating_sub(seq_len + 1);
    if excess >= from {
        return Err(format!(
            "the choice alone has {} tokens, more than the {seq_len} of a row",
            tokens.len() - from
        ));
    }
    tokens.drain(..excess);
    let labels = (0..tokens.len()).map(|i| if i + excess < from { IGNORE } else { tokens[i] }).collect();
    Ok((Pair { tokens, labels }, excess > 0))
}

/// `acc`, `acc_norm`, `acc_bytes`, `acc_stderr` (of `acc`, √(p(1-p)/(n-1)): ±1.96 of it is a 95 % interval), `n`.
fn values(items: &[ChoiceItem], likelihoods: &[Vec<f64>]) -> Vec<f64> {
    let share = |size: &dyn Fn(&str) -> usize| {
        let right = items.iter().zip(likelihoods).filter(|(item, ll)| {
            let per = ll.iter().zip(&item.choices).map(|(ll, choice)| ll / size(choice).max(1) as f64);
            best(per) == Some(item.gold)
        });
        right.count() as f64 / items.len() as f64
    };
    let acc = share(&|_| 1);
    let n = items.len() as f64;
    let stderr = (acc * (1.0 - acc) / (n - 1.0)).sqrt();
    vec![acc, share(&|c| c.chars().count()), share(&str::len), stderr, n]
}

/// Index of the largest value, the first of equals.
fn best(values: impl Iterator<Item = f64>) -> Option<usize> {
    let mut top: Option<(f64, usize)> = None;
    for (i, value) in values.enumerate() {
        if top.is_none_or(|(largest, _)| value > largest) {
            top = Some((value, i));
        }
    }
    top.map(|(_, i)| i)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::data::testing::TempDir;
    use crate::data::{save_word_level, words_of};

    fn item(choices: &[&str], gold: usize) -> ChoiceItem {
        ChoiceItem { context: "c".into(), choices: choices.iter().map(|c| c.to_string()).collect(), gold }
    }

    #[test]
    fn lengths_divide_as_they_should() {
        // Raw: 0 wins. By characters (4, 2): -1.0, -1.5: 0 wins. By bytes (4, 4): -1.0, -0.75: 1 wins.
        let items = [item(&["abcd", "éé"], 0), item(&["abcd", "éé"], 1), item(&["long choice", "x"], 0)];
        // Third: raw -6 against -5: 1; by characters -6/11 against -5: 0.
        let ll = [vec![-2.0, -3.0], vec![-4.0, -3.0], vec![-6.0, -5.0]];
        let out = values(&items, &ll);
        // acc: 0 right, 1 right, 1 wrong. acc_norm: -0.5 against -1.5 right; -1 against -1.5 wrong; right.
        // acc_bytes: -0.5 against -0.75 right; -1 against -0.75 right; right.
        let (acc, n) = (2.0 / 3.0, 3.0);
        let expected = [acc, 2.0 / 3.0, 1.0, (acc * (1.0 - acc) / 2.0f64).sqrt(), n];
        assert!(out.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{out:?}");
        assert_eq!(best([-1.0, -1.0].into_iter()), Some(0));
    }

    #[test]
    fn contexts_and_choices_are_split_between_tokens() {
        let dir = TempDir::new("pairs");
        let t = save_word_level(dir.path(), &words_of(["a b c d e"]).unwrap()).unwrap();
        let id = |w: &str| t.id(w).unwrap() as i32;
        let check = |context: &str, choice: &str, seq_len: usize, tokens: &str, scored: usize| {
            let (pair, cut) = pair(&t, context, choice, seq_len).unwrap();
            let ids: Vec<i32> = tokens.split(' ').map(id).collect();
            assert_eq!(pair.tokens, ids);
            let from = ids.len() - scored;
            assert!(pair.labels[..from].iter().all(|l| *l == IGNORE));
            assert_eq!(pair.labels[from..], ids[from..]);
            cut
        };
        assert!(!check("a b c", "d e", 16, "a b c d e", 2));
        assert!(!check("a b c ", " d", 16, "a b c d", 1));
        assert!(!check("a b c", "d e", 4, "a b c d e", 2));
        assert!(check("a b c", "d e", 3, "b c d e", 2));
        assert!(check("a b c", "d e", 2, "c d e", 2));
        assert!(pair(&t, "a b c", "d e", 1).is_err_and(|e| e.contains("the choice alone has 2 tokens")));
        assert!(pair(&t, "a b c", " ", 9).is_err_and(|e| e.contains("adds no tokens")));
        // Without a context the text starts with EOS, as there is no BOS.
        let (empty, _) = pair(&t, "", "a", 9).unwrap();
        assert_eq!(empty.tokens, [t.eos().unwrap() as i32, id("a")]);
    }
}
