//! Replacing what is found in a text by one of what may stand for it.
//!
//! Of matches that overlap the leftmost counts, of those that begin together the longest. A match that begins or ends in a
//! letter or digit of a script with spaces must not be part of a longer word; Chinese, Japanese and Korean have no such
//! bounds, so that `CPU` is found in `使用CPU的`. Which replacement is taken depends on the seed, the row's name and
//! what is replaced: everywhere in a row it is the same.

use super::table::Replacements;
use crate::data::clean::text::{is_han, is_hangul, is_kana};
use crate::error::input_error;
use aho_corasick::{AhoCorasick, MatchKind};
use kfc_runtime::files::Xxh64;
use serde_json::{Value, json};

/// Finds what may be replaced.
pub struct Replacer {
    patterns: Vec<String>,
    choices: Vec<Vec<String>>,
    automaton: AhoCorasick,
    whole_words: bool,
}

/// A text in which something was replaced.
#[derive(Clone, Debug, PartialEq)]
pub struct Replaced {
    /// The new text.
    pub text: String,
    /// What became what, and at which byte of the old text.
    pub changes: Vec<Value>,
}

impl Replacer {
    /// For these replacements; `whole_words` asks for bounds of words.
    ///
    /// # Errors
    /// If there are none, or more than can be searched for.
    pub fn new(all: Replacements, ignore_case: bool, whole_words: bool) -> anyhow::Result<Replacer> {
        let (patterns, choices): (Vec<String>, Vec<Vec<String>>) =
            all.into_iter().map(|(from, to)| (from, to.into_iter().collect())).unzip();
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::Standard)
            .ascii_case_insensitive(ignore_case)
            .build(&patterns)
            .map_err(|e| input_error(format!("there are too many entities to search for: {e}")))?;
        Ok(Replacer { patterns, choices, automaton, whole_words })
    }

    /// Variant `variant` of a text, each match replaced with probability `share`; `None` if nothing is found or chosen.
    pub fn apply(&self, text: &str, draw: &Draw<'_>, share: f64) -> Option<Replaced> {
        let (mut out, mut copied, mut changes) = (String::new(), 0, Vec::new());
        for (pattern, from, to) in self.find(text) {
            let choices = &self.choices[pattern];
            let random = draw.random(&self.patterns[pattern]);
            // The upper half decides whether, the lower half which.
            if (random >> 32) as f64 >= share * 2f64.powi(32) {
                continue;
            }
            let choice = &choices[(random as u32 as usize + draw.variant) % choices.len()];
            if choice == &text[from..to] {
                continue;
            }
            out.push_str(&text[copied..from]);
            out.push_str(choice);
            copied = to;
            changes.push(json!({"from": &text[from..to], "to": choice, "at": from}));
        }
        out.push_str(&text[copied..]);
        (!changes.is_empty()).then_some(Replaced { text: out, changes })
    }

    /// The matches that count: pattern, start and end in bytes.
    fn find(&self, text: &str) -> Vec<(usize, usize, usize)> {
        let whole = |start: usize, end: usize| !self.whole_words || is_whole(text, start, end);
        let mut found: Vec<(usize, usize, usize)> = self
            .automaton
            .find_overlapping_iter(text)
            .map(|found| (found.pattern().as_usize(), found.start(), found.end()))
            .filter(|&(_, start, end)| whole(start, end))
            .collect();
        found.sort_by_key(|&(pattern, start, end)| (start, std::cmp::Reverse(end), pattern));
        let mut free = 0;
        found.retain(|&(_, start, end)| {
            let taken = start >= free;
            if taken {
                free = end;
            }
            taken
        });
        found
    }
}

/// What a choice depends on.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// The user's seed.
    pub seed: u64,
    /// The name of the row.
    pub row: &'a str,
    /// The number of the variant, from 0.
    pub variant: usize,
}

impl Draw<'_> {
    /// 64 bits that are the same for all variants, so that these take turns among the choices.
    fn random(&self, of: &str) -> u64 {
        let mut hash = Xxh64::new();
        hash.update(&self.seed.to_le_bytes());
        hash.update(self.row.as_bytes());
        hash.update(&[0]);
        hash.update(of.as_bytes());
        hash.finish()
    }
}

/// Whether what stands at `start..end` is not part of a longer word.
fn is_whole(text: &str, start: usize, end: usize) -> bool {
    let joins = |inside: Option<char>, outside: Option<char>| {
        inside.is_some_and(in_word) && outside.is_some_and(in_word)
    };
    let (before, found, after) = (&text[..start], &text[start..end], &text[end..]);
    !joins(found.chars().next(), before.chars().next_back())
        && !joins(found.chars().next_back(), after.chars().next())
}

/// Letters and digits of scripts that put spaces between words.
fn in_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric() && !is_han(c) && !is_kana(c) && !is_hangul(c)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn replacer(pairs: &[(&str, &[&str])], ignore_case: bool) -> Replacer {
        let all = pairs
            .iter()
            .map(|(from, to)| ((*from).to_owned(), to.iter().map(|to| (*to).to_owned()).collect()));
        Replacer::new(all.collect(), ignore_case, true).unwrap()
    }

    fn draw(variant: usize) -> Draw<'static> {
        Draw { seed: 1, row: "r", variant }
    }

    fn text(replacer: &Replacer, text: &str) -> Option<String> {
        replacer.apply(text, &draw(0), 1.0).map(|replaced| replaced.text)
    }

    #[test]
    fn words_and_chinese() {
        let r = replacer(&[("CPU", &["中央处理器"]), ("缓存", &["cache"]), ("é", &["e"])], false);
        assert_eq!(text(&r, "使用CPU的缓存。").unwrap(), "使用中央处理器的cache。");
        assert_eq!(
            text(&r, "A CPU, the CPUs, a VCPU, CPU_1, CPU-2").unwrap(),
            "A 中央处理器, the CPUs, a VCPU, CPU_1, 中央处理器-2"
        );
        assert_eq!(text(&r, "cpu café"), None);
        assert_eq!(text(&r, ""), None);
        assert_eq!(text(&replacer(&[("cpu", &["x"])], true), "Cpu").unwrap(), "x");
    }

    #[test]
    fn the_longest_match_that_is_a_word() {
        let r = replacer(
            &[
                ("New York", &["NY"]),
                ("New York C", &["?"]),
                ("York City", &["?"]),
                ("机器", &["?"]),
                ("机器学习", &["ML"]),
            ],
            false,
        );
        assert_eq!(text(&r, "New York City 机器学习").unwrap(), "NY City ML");
        assert_eq!(text(&r, "York City").unwrap(), "?");
    }

    #[test]
    fn variants_take_turns_and_rows_agree_with_themselves() {
        let r = replacer(&[("a", &["1", "2", "3"])], false);
        let variants: std::collections::BTreeSet<String> =
            (0..3).map(|v| r.apply("a a", &draw(v), 1.0).unwrap().text).collect();
        assert_eq!(variants.into_iter().collect::<Vec<_>>(), ["1 1", "2 2", "3 3"]);
        assert_eq!(r.apply("a b a", &draw(3), 1.0), r.apply("a b a", &draw(0), 1.0));
        let changes = r.apply("é a", &draw(0), 1.0).unwrap().changes;
        assert_eq!((&changes[0]["from"], &changes[0]["at"]), (&json!("a"), &json!(3)));
        assert_eq!(r.apply("a", &draw(0), 0.0), None);
    }

    #[test]
    fn the_share_is_kept() {
        let r = replacer(&[("a", &["b"])], false);
        let rows: Vec<String> = (0..2000).map(|i| i.to_string()).collect();
        let replaced = |seed| -> Vec<&String> {
            let is = |row: &&String| r.apply("a", &Draw { seed, row, variant: 0 }, 0.3).is_some();
            rows.iter().filter(is).collect()
        };
        assert!((500..700).contains(&replaced(1).len()), "{}", replaced(1).len());
        assert_ne!(replaced(1), replaced(2));
    }
}
