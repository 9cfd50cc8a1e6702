//! Multiple choice: the log-likelihood of each choice after the context, as lm-evaluation-harness scores it.
//!
//! A blank separates context and choice unless the choice starts with white space. Context and choice are tokenised
//! together; what follows the tokens of the context alone is the choice. `acc` takes the largest log-likelihood, `acc_norm`
//! divides it by the characters of the choice, `acc_bytes` by its UTF-8 bytes; the first wins among equals.

use super::Observer;
use super::exam::RowResult;
use super::picks::{PickRow, Picker};
use super::stats::Part;
use crate::data::Tokenizer;
use crate::data::eval_data::ChoiceItem;
use crate::error::{Result, RunError};
use serde_json::json;

/// A row with the context it is asked with.
pub(super) struct Asked<'a> {
    /// From 0.
    pub row: usize,
    pub context: &'a str,
    pub item: &'a ChoiceItem,
}

/// A context with one choice.
struct Pair {
    tokens: Vec<i32>,
    /// The first token of the choice.
    from: usize,
}

/// Where the log-probabilities of one choice are: a row of picks, and which of them.
struct Place {
    row: usize,
    picks: std::ops::Range<usize>,
}

/// Scores the choices of rows. Choices that differ in their last token only are read once: those of one token, as
/// letters are, cost one pass over their context.
///
/// # Errors
/// If a choice does not fit, or the model's numbers are not finite. `place` says where a row stands.
pub(super) fn ask(
    picker: &mut Picker<'_>,
    tokenizer: &Tokenizer,
    asked: &[Asked<'_>],
    seq_len: usize,
    place: &dyn Fn(usize) -> String,
    observer: &mut dyn Observer,
) -> Result<(Vec<RowResult>, usize)> {
    let (mut rows, mut places, mut cut): (Vec<PickRow>, Vec<Place>, usize) = (Vec::new(), Vec::new(), 0);
    for one in asked {
        let first = rows.len();
        for choice in &one.item.choices {
            let (pair, short) = pair(tokenizer, one.context, choice, seq_len).map_err(|reason| {
                RunError::Input(format!("{}, choice {choice:?}: {reason}", place(one.row)))
            })?;
            cut += usize::from(short);
            places.push(add(&mut rows, first, pair));
        }
    }
    if cut > 0 {
        observer.note(&format!("{cut} contexts lost their start to fit {seq_len} tokens"));
    }
    let logp = picker.score(&rows, &mut |done, total| observer.progress(done, total))?;
    let mut scores = places.into_iter().map(|p| logp[p.row][p.picks].iter().sum::<f64>());
    let results = asked.iter().map(|one| {
        let scores: Vec<f64> = scores.by_ref().take(one.item.choices.len()).collect();
        graded(one, &scores)
    });
    Ok((results.collect(), rows.iter().map(|r| r.tokens.len()).sum()))
}

/// Adds a choice to the row from `first` on that reads the same tokens, or to a new one.
fn add(rows: &mut Vec<PickRow>, first: usize, pair: Pair) -> Place {
    let (read, from) = (&pair.tokens[..pair.tokens.len() - 1], pair.from);
    let at = rows[first..].iter().position(|r| r.tokens == read);
    let row = at.map_or(rows.len(), |at| first + at);
    if at.is_none() {
        rows.push(PickRow { tokens: read.to_vec(), picks: Vec::new() });
    }
    let picks = &mut rows[row].picks;
    let start = picks.len();
    picks.extend((from..pair.tokens.len()).map(|i| (i - 1, pair.tokens[i])));
    Place { row, picks: start..picks.len() }
}

/// The three ways of choosing, and what there was to choose from.
fn graded(one: &Asked<'_>, scores: &[f64]) -> RowResult {
    let item = one.item;
    let by = |size: &dyn Fn(&str) -> usize| {
        best(scores.iter().zip(&item.choices).map(|(ll, choice)| ll / size(choice).max(1) as f64))
    };
    let chosen = [by(&|_| 1), by(&|c| c.chars().count()), by(&str::len)];
    let right = chosen.map(|c| c == Some(item.gold));
    let detail = [
        ("prompt", json!(one.context)),
        ("choices", json!(item.choices)),
        ("loglikelihoods", json!(scores)),
        ("answer", json!(chosen[0].map(|c| &item.choices[c]))),
        ("right", json!(item.choices[item.gold])),
    ];
    RowResult {
        row: one.row + 1,
        correct: Some(right[0]),
        parts: right.map(Part::hit).into(),
        detail: detail.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
    }
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
    Ok((Pair { tokens, from: from - excess }, excess > 0))
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

    #[test]
    fn lengths_divide_as_they_should() {
        // Raw: 0 wins. By characters (4, 2): -1.0, -1.5: 0 wins. By bytes (4, 4): -1.0, -0.75: 1 wins.
        let right = |choices: &[&str], gold: usize, scores: &[f64]| {
            let choices = choices.iter().map(|c| c.to_string()).collect();
            let item = ChoiceItem { context: "c".into(), question: 0..1, choices, gold };
            let result = graded(&Asked { row: 0, context: "c", item: &item }, scores);
            assert_eq!(result.correct, Some(result.parts[0].num == 1.0));
            [0, 1, 2].map(|i| result.parts[i].num == 1.0)
        };
        // By characters: -0.5 against -1.5; by bytes: -0.5 against -0.75.
        assert_eq!(right(&["abcd", "éé"], 0, &[-2.0, -3.0]), [true, true, true]);
        // By characters: -1 against -1.5; by bytes: -1 against -0.75.
        assert_eq!(right(&["abcd", "éé"], 1, &[-4.0, -3.0]), [true, false, true]);
        // By characters and bytes: -6/11 against -5.
        assert_eq!(right(&["long choice", "x"], 0, &[-6.0, -5.0]), [false, true, true]);
        assert_eq!(best([-1.0, -1.0].into_iter()), Some(0));
    }

    #[test]
    fn choices_that_read_the_same_share_a_row() {
        let mut rows = Vec::new();
        let mut place = |tokens: &[i32]| {
            let place = add(&mut rows, 0, Pair { tokens: tokens.to_vec(), from: 2 });
            (place.row, place.picks)
        };
        assert_eq!(place(&[1, 2, 3]), (0, 0..1));
        assert_eq!(place(&[1, 2, 4]), (0, 1..2));
        assert_eq!(place(&[1, 2, 4, 5]), (1, 0..2));
        assert_eq!(place(&[1, 2, 4, 6]), (1, 2..4));
        assert_eq!(rows[0], PickRow { tokens: vec![1, 2], picks: vec![(1, 3), (1, 4)] });
        assert_eq!(rows[1].picks, [(1, 4), (2, 5), (1, 4), (2, 6)]);
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
            assert_eq!(pair.from, ids.len() - scored);
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
