//! Free answers against the right ones.

use super::answers::{exact_match, f1, final_number};
use super::completion::{Prompt, complete};
use super::{Measured, Observer, Options, data, limited};
use crate::data::eval_data::{QaItem, read_qa};
use crate::error::Result;
use crate::inference::Served;

pub(super) fn measure(
    served: &Served,
    options: &Options,
    seq_len: usize,
    observer: &mut dyn Observer,
) -> Result<Measured> {
    let items = limited(read_qa(data(options)?)?, options.limit);
    let until = |item: &QaItem| if item.worked { "Question:" } else { "\n" };
    let prompts: Vec<Prompt<'_>> =
        items.iter().map(|item| Prompt { text: &item.prompt, until: Some(until(item)) }).collect();
    let (answers, tokens_per_s) = complete(served, &prompts, options, seq_len, observer)?;
    Ok(Measured { values: values(&items, &answers), tokens_per_s })
}

/// `exact_match`, `f1` (means over items of the best of each item's right answers), `n`.
fn values(items: &[QaItem], answers: &[String]) -> Vec<f64> {
    let n = items.len() as f64;
    let (mut exact, mut overlap) = (0.0, 0.0);
    for (item, answer) in items.iter().zip(answers) {
        let (e, f) = compare(item, answer);
        exact += e;
        overlap += f;
    }
    vec![exact / n, overlap / n, n]
}

/// Exact match and F1 of one answer; of a worked answer both say whether the final number is right.
fn compare(item: &QaItem, answer: &str) -> (f64, f64) {
    let best = |score: &dyn Fn(&str) -> f64| item.answers.iter().map(|gold| score(gold)).fold(0.0, f64::max);
    if item.worked {
        let number = final_number(answer);
        let right = best(&|gold| f64::from(u8::from(number.is_some() && final_number(gold) == number)));
        return (right, right);
    }
    (best(&|gold| f64::from(u8::from(exact_match(answer, gold)))), best(&|gold| f1(answer, gold)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_right_answer_counts() {
        let item = |answers: &[&str], worked| QaItem {
            prompt: "p".into(),
            answers: answers.iter().map(|a| a.to_string()).collect(),
            worked,
        };
        let items = [
            item(&["the red car", "red"], false),
            item(&["blue", "dark blue sky"], false),
            item(&["1234"], true),
            item(&["7"], true),
            item(&["7"], true),
        ];
        let answers =
            [" Red.", " dark blue", "2 * 617 = 1,234", "no idea", "7 then\n#### 8"].map(String::from);
        // F1: 1; max(2·1/(2+1), 2·2/(2+3)) = 0.8; 1; 0; 0.
        let out = values(&items, &answers);
        assert!((out[0] - 2.0 / 5.0).abs() < 1e-12 && (out[1] - 2.8 / 5.0).abs() < 1e-12, "{out:?}");
        assert_eq!(out[2], 5.0);
    }
}
