//! Holding one answer of the model against what is right.

use super::answers::{self, exact_match, f1, final_number, mentions};
use super::stats::Part;
use serde_json::{Value, json};

/// What is right.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Key {
    /// Any of these texts; of a worked answer the final number.
    Qa { answers: Vec<String>, worked: bool },
    /// A worked answer of GSM8K.
    Gsm8k { full: String },
    /// Entities that a text is to mention.
    Mentioned(Vec<String>),
    /// Entities that are to be listed, and no others.
    Listed(Vec<String>),
}

/// What an answer is worth: one part for each of the task's estimates.
pub(super) struct Grade {
    pub correct: bool,
    pub parts: Vec<Part>,
}

impl Key {
    /// Where answers end.
    pub(super) fn until(&self) -> &'static [&'static str] {
        match self {
            Key::Qa { worked: false, .. } | Key::Listed(_) => &["\n"],
            Key::Qa { worked: true, .. } => &["Question:"],
            Key::Gsm8k { .. } => &["Question:", "</s>", "<|im_end|>"],
            Key::Mentioned(_) => &[],
        }
    }

    /// What is right, for a person who reads the results.
    pub(super) fn right(&self) -> Value {
        match self {
            Key::Qa { answers, .. } => json!(answers),
            Key::Gsm8k { full } => json!(answers::last_answer(full)),
            Key::Mentioned(entities) | Key::Listed(entities) => json!(entities),
        }
    }

    /// Texts in a question that must stay as they are for this to stay right.
    pub(super) fn keeps(&self) -> Vec<&str> {
        match self {
            Key::Qa { answers: texts, .. } | Key::Mentioned(texts) | Key::Listed(texts) => {
                texts.iter().map(String::as_str).collect()
            }
            Key::Gsm8k { .. } => Vec::new(),
        }
    }

    /// Grades an answer.
    pub(super) fn grade(&self, answer: &str) -> Grade {
        match self {
            Key::Qa { answers, worked } => qa(answers, *worked, answer),
            Key::Gsm8k { full } => gsm8k(full, answer),
            Key::Mentioned(entities) => {
                let found = entities.iter().filter(|e| mentions(answer, e)).count();
                let part = Part { num: found as f64, den: entities.len() as f64 };
                Grade { correct: found == entities.len(), parts: vec![part] }
            }
            Key::Listed(entities) => listed(entities, answer),
        }
    }
}

/// Exact match and F1, the best over the right answers; of a worked answer both say whether the final number is right.
fn qa(right: &[String], worked: bool, answer: &str) -> Grade {
    let best = |score: &dyn Fn(&str) -> f64| right.iter().map(|gold| score(gold)).fold(0.0, f64::max);
    let exact = |gold: &str| match (worked, final_number(answer)) {
        (true, number) => number.is_some() && final_number(gold) == number,
        (false, _) => exact_match(answer, gold),
    };
    let exact = best(&|gold| f64::from(u8::from(exact(gold))));
    let overlap = if worked { exact } else { best(&|gold| f1(answer, gold)) };
    Grade { correct: exact == 1.0, parts: vec![Part::mean(exact), Part::mean(overlap)] }
}

fn gsm8k(full: &str, answer: &str) -> Grade {
    let number = final_number(answer);
    let correct = number.is_some() && number == final_number(full);
    let gold = answers::last_answer(full);
    let same = |found: Option<&str>| found.is_some_and(|f| answers::last_answer(f) == gold);
    let (strict, flexible) = (same(answers::strict_match(answer)), same(answers::flexible_extract(answer)));
    Grade { correct, parts: [correct, strict, flexible].map(Part::hit).into() }
}

/// Recall, precision and F1 of a list. Entities are the same if they are without white space and in lower case, since
/// annotated text has blanks between all tokens.
fn listed(entities: &[String], answer: &str) -> Grade {
    let said = answers::list(answer);
    let right: Vec<String> = answers::distinct(entities.iter().map(|e| answers::bare(e)));
    let hits = said.iter().filter(|s| right.contains(s)).count() as f64;
    let (n, m) = (right.len() as f64, said.len() as f64);
    let parts =
        vec![Part { num: hits, den: n }, Part { num: hits, den: m }, Part { num: 2.0 * hits, den: n + m }];
    Grade { correct: hits == n && hits == m, parts }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::stats::{Form, value};

    fn metrics(graded: &[(Key, &str)]) -> Vec<f64> {
        let grades: Vec<Grade> = graded.iter().map(|(key, answer)| key.grade(answer)).collect();
        let parts = |i: usize| grades.iter().map(|g| g.parts[i]).collect::<Vec<_>>();
        (0..grades[0].parts.len()).map(|i| value(&parts(i), Form::Ratio)).collect()
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|t| t.to_string()).collect()
    }

    #[test]
    fn the_best_right_answer_counts() {
        let key = |answers: &[&str], worked| Key::Qa { answers: strings(answers), worked };
        let out = metrics(&[
            (key(&["the red car", "red"], false), " Red."),
            (key(&["blue", "dark blue sky"], false), " dark blue"),
            (key(&["1234"], true), "2 * 617 = 1,234"),
            (key(&["7"], true), "no idea"),
            (key(&["7"], true), "7 then\n#### 8"),
        ]);
        // F1: 1; max(2·1/(2+1), 2·2/(2+3)) = 0.8; 1; 0; 0.
        assert!((out[0] - 2.0 / 5.0).abs() < 1e-12 && (out[1] - 2.8 / 5.0).abs() < 1e-12, "{out:?}");
    }

    #[test]
    fn recall_is_over_all_entities() {
        let key = |entities: &[&str]| Key::Mentioned(strings(entities));
        let graded =
            [(key(&["Bern", "Paris", "New York"]), "from bern to New  York"), (key(&["Rome"]), "Romeo")];
        assert_eq!(metrics(&graded), [0.5]);
        assert!(!graded[0].0.grade("bern").correct && graded[1].0.grade("to Rome").correct);
    }

    #[test]
    fn lists_are_compared_as_wholes() {
        let key = |entities: &[&str]| Key::Listed(strings(entities));
        // 2 of 3 found among 3 said; nothing to find and one said; nothing of nothing.
        let out = metrics(&[
            (
                key(&["ataxia - telangiectasia", "flu", "T - cell leukaemia"]),
                " Ataxia-telangiectasia; flu; cold; flu.",
            ),
            (key(&[]), " flu"),
            (key(&[]), " none"),
        ]);
        let expected = [2.0 / 3.0, 2.0 / 4.0, 4.0 / 7.0];
        assert!(out.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{out:?}");
        assert!(key(&[]).grade("None.").correct && !key(&["flu"]).grade("flu; cold").correct);
    }

    #[test]
    fn worked_answers_are_read_three_ways() {
        let key = Key::Gsm8k { full: "2 * 617 = 1,234\n#### 1,234".into() };
        let read = |answer: &str| key.grade(answer).parts.iter().map(|p| p.num == 1.0).collect::<Vec<_>>();
        assert_eq!(read("it is 1234"), [true, false, true]);
        assert_eq!(read("so\n#### 1,234"), [true, true, true]);
        assert_eq!(read("so\n#### $1,234."), [true, false, true]);
        assert_eq!(read("1234 or 5"), [false, false, false]);
        assert_eq!(read("#### 1234 and then 7"), [true, true, false]);
        assert_eq!(read("1234.0"), [true, false, false]);
    }
}
