//! Words replaced by words of the same meaning, from a list of groups.

use super::units::Unit;
use super::{Draws, share};
use crate::data::DataError;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

/// Groups of words with the same meaning. A word may be in several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lexicon {
    groups: Vec<Vec<String>>,
    /// Groups of each word, in lower case.
    of: HashMap<String, Vec<usize>>,
    /// Characters of the longest word.
    longest: usize,
}

impl Lexicon {
    /// General words of English and Chinese, and words of medicine, that stand for each other in most sentences.
    pub fn built_in() -> Lexicon {
        let mut lexicon = Lexicon::default();
        lexicon.extend(include_str!("synonyms.txt")).ok();
        lexicon
    }

    /// Reads a list: a line a group, its words separated by commas or tabs; `#` begins a comment.
    ///
    /// # Errors
    /// If the file cannot be read, or a line has a single word.
    pub fn read(path: &Path) -> Result<Lexicon, DataError> {
        let text = std::fs::read_to_string(path).map_err(DataError::io(path))?;
        Lexicon::of(&text, &path.display().to_string())
    }

    /// [`Lexicon::read`] for the content of a file; `name` is what errors name.
    ///
    /// # Errors
    /// If a line has a single word, or there is no line.
    pub fn of(text: &str, name: &str) -> Result<Lexicon, DataError> {
        let mut lexicon = Lexicon::default();
        lexicon.extend(text).map_err(|line| DataError::BadRow {
            place: format!("{name}:{line}"),
            reason: "a line must have two words or more of the same meaning, separated by commas".into(),
        })?;
        if lexicon.groups.is_empty() {
            return Err(DataError::Empty { sources: name.into(), reason: "the file has no words".into() });
        }
        Ok(lexicon)
    }

    /// The words of both.
    pub fn with(mut self, other: &Lexicon) -> Lexicon {
        other.groups.iter().for_each(|group| self.add(group.clone()));
        self
    }

    /// Adds the groups of a text; the line that is wrong, if one is.
    fn extend(&mut self, text: &str) -> Result<(), usize> {
        for (i, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let words = line.split([',', ',', '\t']).map(|w| w.trim().to_lowercase());
            let words: Vec<String> = words.filter(|w| !w.is_empty()).collect();
            if words.len() < 2 {
                return Err(i + 1);
            }
            self.add(words);
        }
        Ok(())
    }

    fn add(&mut self, words: Vec<String>) {
        for word in &words {
            self.longest = self.longest.max(word.chars().count());
            self.of.entry(word.clone()).or_default().push(self.groups.len());
        }
        self.groups.push(words);
    }

    /// The words that mean what `word` means, without itself.
    fn others(&self, word: &str) -> Vec<&str> {
        let groups = self.of.get(word).into_iter().flatten();
        let mut words: Vec<&str> = groups.flat_map(|&g| &self.groups[g]).map(String::as_str).collect();
        words.retain(|w| *w != word);
        words
    }
}

/// A tenth of the words that have synonyms replaced; of Chinese the longest words first.
pub(super) fn replace(text: &str, units: &[Unit], lexicon: &Lexicon, draws: &mut Draws) -> Option<String> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for unit in units {
        match unit {
            Unit::Word(range) if !lexicon.others(&text[range.clone()].to_lowercase()).is_empty() => {
                found.push(range.clone());
            }
            Unit::Word(_) => {}
            Unit::Han(range) => found.extend(longest_matches(text, range, lexicon)),
        }
    }
    if found.is_empty() {
        return None;
    }
    // A tenth of all words is about a third of those that a list knows.
    let chosen = draws.choose(found.len(), share(found.len() * 3));
    let (mut out, mut copied) = (String::new(), 0);
    for range in chosen.into_iter().map(|i| &found[i]) {
        let word = &text[range.clone()];
        let others = lexicon.others(&word.to_lowercase());
        out.push_str(&text[copied..range.start]);
        out.push_str(&capitals_of(word, others[draws.below(others.len())]));
        copied = range.end;
    }
    out.push_str(&text[copied..]);
    Some(out)
}

/// The words of a run of Chinese characters that the list knows, from the left, each as long as possible.
fn longest_matches(text: &str, run: &Range<usize>, lexicon: &Lexicon) -> Vec<Range<usize>> {
    let mut out = Vec::new();
    let mut start = run.start;
    while let Some(first) = text[start..run.end].chars().next() {
        let rest = &text[start..run.end];
        let ends = rest.char_indices().map(|(i, c)| i + c.len_utf8()).take(lexicon.longest);
        let known = ends.filter(|&end| !lexicon.others(&rest[..end]).is_empty()).last();
        out.extend(known.map(|end| start..start + end));
        start += known.unwrap_or(first.len_utf8());
    }
    out
}

/// `new` with a capital where `old` has one.
fn capitals_of(old: &str, new: &str) -> String {
    let mut letters = new.chars();
    match (old.chars().next().is_some_and(char::is_uppercase), letters.next()) {
        (true, Some(first)) => first.to_uppercase().chain(letters).collect(),
        _ => new.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::eval::perturb::units::units;

    #[test]
    fn an_empty_list_leaves_chinese_alone() {
        let text = "硌a硌硌";
        assert_eq!(replace(text, &units(text, &[]), &Lexicon::default(), &mut Draws::new(0, text, 0)), None);
    }

    #[test]
    fn the_longest_word_wins_and_unknown_characters_are_passed() {
        let lexicon = Lexicon::of("甲,乙\n甲丙,丁\n", "list").unwrap();
        let text = "硌甲丙甲";
        let found = longest_matches(text, &(0..text.len()), &lexicon);
        assert_eq!(found, [3..9, 9..12]);
    }
}
