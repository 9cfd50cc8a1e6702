//! Clauses in another order, from dependency parses in CoNLL-U (universaldependencies.org/format).
//!
//! An adverbial clause (`advcl`) of a sentence's root moves from its front to its end or back: "Because it rained, we
//! stayed." and "We stayed because it rained." It moves only if it is one run of words at the very front or end, so that
//! everything else stays in order. Sentences are found in rows by their text (`# text = ...`).

use super::table::Replacements;
use crate::data::clean::text::{is_han, is_kana};
use crate::error::input_error;
use anyhow::Context;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Most words of a sentence that is looked at.
const LONGEST: usize = 500;

#[derive(Clone, Debug)]
struct Word {
    form: String,
    kind: String,
    /// Number of the word that it depends on, 0 for the root.
    head: usize,
    relation: String,
    space_after: bool,
}

/// A sentence while it is read.
#[derive(Debug, Default)]
struct Sentence {
    text: Option<String>,
    words: Vec<Word>,
    /// A range such as `1-2`: its last word, what is left of its form, whether a space follows.
    range: Option<(usize, String, bool)>,
}

/// Reads the sentences of a file into `all`, each with what it may become.
///
/// # Errors
/// If the file cannot be read or a line is of another form.
pub fn read_parses(path: &Path, all: &mut Replacements) -> anyhow::Result<()> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("{shown} cannot be opened"))?;
    let mut sentence = Sentence::default();
    for (number, line) in (1..).zip(BufReader::new(file).lines()) {
        let line = line.map_err(|e| input_error(format!("{shown}:{number} cannot be read: {e}")))?;
        let line = line.trim_end();
        if line.is_empty() {
            std::mem::take(&mut sentence).add_to(all);
        } else if let Some(comment) = line.strip_prefix('#') {
            if let Some(found) = comment.trim().strip_prefix("text =") {
                sentence.text = Some(found.trim().to_owned());
            }
        } else {
            sentence.read_word(line).map_err(|why| input_error(format!("{shown}:{number}: {why}")))?;
        }
    }
    sentence.add_to(all);
    Ok(())
}

impl Sentence {
    /// Reads a line of ten columns. A range gives the form of the words that it spans, and the first of them keeps it;
    /// empty nodes (`1.1`) are no words of the text.
    fn read_word(&mut self, line: &str) -> Result<(), String> {
        let columns: Vec<&str> = line.split('\t').collect();
        let &[id, form, _, kind, _, _, head, relation, _, misc] = columns.as_slice() else {
            return Err(format!(
                "a word must have 10 columns with tabs between them, this has {}",
                columns.len()
            ));
        };
        let space_after = !misc.split('|').any(|part| part == "SpaceAfter=No");
        if id.contains('.') {
            return Ok(());
        }
        if let Some((_, last)) = id.split_once('-') {
            let last = last.parse().map_err(|_| format!("`{id}` is no range of words"))?;
            self.range = Some((last, form.to_owned(), space_after));
            return Ok(());
        }
        let number = self.words.len() + 1;
        if id.parse() != Ok(number) {
            return Err(format!("this word must have the number {number}, it has `{id}`"));
        }
        let head = head.parse().map_err(|_| format!("`{head}` is not the number of a head"))?;
        let (mut form, mut space_after) = (form.to_owned(), space_after);
        if let Some((last, left, space)) = &mut self.range {
            form = std::mem::take(left);
            space_after = number >= *last && *space;
            if number >= *last {
                self.range = None;
            }
        }
        self.words.push(Word {
            form,
            kind: kind.to_owned(),
            head,
            relation: relation.to_owned(),
            space_after,
        });
        Ok(())
    }

    /// Adds the sentence with its other orders, if there are any and its words make its text.
    fn add_to(self, all: &mut Replacements) {
        let text = render(&self.words);
        if self.words.len() > LONGEST || self.text.is_some_and(|given| given != text) {
            return;
        }
        for other in reordered(&self.words) {
            if other != text {
                all.entry(text.clone()).or_default().insert(other);
            }
        }
    }
}

/// The sentence with one of its clauses at the other end, for each clause that can move.
fn reordered(words: &[Word]) -> Vec<String> {
    let Some(root) = words.iter().position(|word| word.head == 0) else { return Vec::new() };
    // Without the mark that ends the sentence.
    let end = words.iter().rposition(|word| word.kind != "PUNCT").map_or(0, |last| last + 1);
    let is_clause = |word: &Word| word.head == root + 1 && word.relation.split(':').next() == Some("advcl");
    let clauses = (0..words.len()).filter(|&i| is_clause(&words[i]));
    clauses.filter_map(|clause| moved(words, &run_below(words, clause)?, root, end)).collect()
}

/// The words below and with `top` without marks around them, if they are one run.
fn run_below(words: &[Word], top: usize) -> Option<std::ops::Range<usize>> {
    let below = |mut at: usize| {
        // A parse that goes in circles ends too.
        for _ in 0..words.len() {
            if at == top {
                return true;
            }
            match words.get(at).map(|word| word.head) {
                Some(head) if head > 0 => at = head - 1,
                _ => return false,
            }
        }
        false
    };
    let all: Vec<usize> = (0..words.len()).filter(|&i| below(i)).collect();
    let (first, last) = (*all.first()?, *all.last()?);
    if all.len() != last - first + 1 {
        return None;
    }
    let is_word = |i: &usize| words[*i].kind != "PUNCT";
    Some((first..=last).find(is_word)?..(first..=last).rfind(is_word)? + 1)
}

/// The clause at the other end of what comes before the words from `end` on.
fn moved(words: &[Word], clause: &std::ops::Range<usize>, root: usize, end: usize) -> Option<String> {
    let is_word = |i: &usize| words[*i].kind != "PUNCT";
    let (rest, front) = match clause {
        clause if clause.start == 0 => ((clause.end..end).find(is_word)?..end, true),
        clause if clause.end == end => (0..(0..clause.start).rfind(is_word)? + 1, false),
        _ => return None,
    };
    if !rest.contains(&root) {
        return None;
    }
    let (clause, rest) = (&words[clause.clone()], &words[rest]);
    let (first, second) = if front { (rest, clause) } else { (clause, rest) };
    let cjk = render(clause).chars().next_back().is_some_and(|c| is_han(c) || is_kana(c));
    let between = match (cjk, front) {
        (true, _) => "，",
        (false, true) => " ",
        (false, false) => ", ",
    };
    // What stood at the front had its capital for that alone, unless it is a name.
    let keeps_capital = second
        .first()
        .is_some_and(|word| word.kind == "PROPN" || word.form == "I" || word.form.starts_with("I'"));
    let second = if keeps_capital { render(second) } else { uncapitalised(&render(second)) };
    Some(format!("{}{between}{second}{}", capitalised(&render(first)), render(&words[end..])))
}

/// The words with their spaces, none at the end.
fn render(words: &[Word]) -> String {
    let mut text = String::new();
    for word in words {
        text.push_str(&word.form);
        if word.space_after {
            text.push(' ');
        }
    }
    text.truncate(text.trim_end().len());
    text
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Lower case for the first letter of a word that is not all capitals.
fn uncapitalised(text: &str) -> String {
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return String::new() };
    if chars.clone().next().is_some_and(char::is_uppercase) {
        return text.to_owned();
    }
    first.to_lowercase().chain(chars).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::super::super::tests::Folder;
    use super::*;

    /// Words as `form/kind/head/relation`; `~` at the end of a form is for no space after it.
    fn conllu(words: &str) -> String {
        let line = |(number, word): (usize, &str)| {
            let &[form, kind, head, relation] = word.split('/').collect::<Vec<_>>().as_slice() else {
                panic!("{word}")
            };
            let (form, misc) = form.strip_suffix('~').map_or((form, "_"), |form| (form, "SpaceAfter=No"));
            format!("{number}\t{form}\t_\t{kind}\t_\t_\t{head}\t{relation}\t_\t{misc}\n")
        };
        (1..).zip(words.split(' ')).map(line).collect::<String>() + "\n"
    }

    fn read(text: &str) -> Result<Vec<(String, Vec<String>)>, String> {
        let folder = Folder::new();
        let mut all = Replacements::new();
        read_parses(&folder.file("a.conllu", text), &mut all).map_err(|e| format!("{e:#}"))?;
        Ok(all.into_iter().map(|(from, to)| (from, to.into_iter().collect())).collect())
    }

    const RAIN: &str = "Because/SCONJ/3/mark it/PRON/3/nsubj rained~/VERB/6/advcl ,/PUNCT/3/punct we/PRON/6/nsubj \
                        stayed/VERB/0/root home~/ADV/6/advmod ./PUNCT/6/punct";

    #[test]
    fn front_to_end_and_back() {
        let front = "Because it rained, we stayed home.";
        let back = "We stayed home because it rained.";
        assert_eq!(read(&conllu(RAIN)).unwrap(), [(front.to_owned(), vec![back.to_owned()])]);
        let end = "We/PRON/2/nsubj stayed/VERB/0/root home/ADV/2/advmod because/SCONJ/6/mark Bob/PROPN/6/nsubj \
                   slept~/VERB/2/advcl:cause ./PUNCT/2/punct";
        assert_eq!(read(&conllu(end)).unwrap()[0].1, ["Because Bob slept, we stayed home."]);
    }

    #[test]
    fn chinese() {
        let text = "因为~/SCONJ/2/mark 下雨~/VERB/6/advcl ，~/PUNCT/2/punct 我们~/PRON/6/nsubj 没~/ADV/6/advmod 出门~/VERB/0/root \
                    。~/PUNCT/6/punct";
        assert_eq!(
            read(&conllu(text)).unwrap(),
            [("因为下雨，我们没出门。".to_owned(), vec!["我们没出门，因为下雨。".to_owned()])]
        );
    }

    #[test]
    fn what_cannot_move_stays() {
        // In the middle; not one run; a circle; no clause; words that are not the text.
        for words in [
            "We/PRON/5/nsubj if/SCONJ/3/mark asked/VERB/5/advcl would/AUX/5/aux go/VERB/0/root",
            "Raining/VERB/4/advcl we/PRON/4/nsubj so/ADV/1/advmod stayed/VERB/0/root",
            "a/X/2/advcl b/X/1/x",
            "a/X/1/x b/X/2/x",
            "We/PRON/2/nsubj slept/VERB/0/root",
        ] {
            assert_eq!(read(&conllu(words)).unwrap(), [], "{words}");
        }
        assert_eq!(read(&format!("# text = Something else\n{}", conllu(RAIN))).unwrap(), []);
    }

    #[test]
    fn ranges_and_empty_nodes() {
        let line = |id: &str, form: &str, kind: &str, head: &str, relation: &str, misc: &str| {
            format!("{id}\t{form}\t_\t{kind}\t_\t_\t{head}\t{relation}\t_\t{misc}\n")
        };
        let text = line("1-2", "Don't", "_", "_", "_", "_")
            + &line("1", "Do", "AUX", "3", "aux", "_")
            + &line("2", "n't", "PART", "3", "advmod", "_")
            + &line("3", "go", "VERB", "0", "root", "_")
            + &line("3.1", "x", "_", "_", "_", "_")
            + &line("4", "if", "SCONJ", "6", "mark", "_")
            + &line("5", "it", "PRON", "6", "nsubj", "_")
            + &line("6", "rains", "VERB", "3", "advcl", "SpaceAfter=No")
            + &line("7", "!", "PUNCT", "3", "punct", "_");
        assert_eq!(
            read(&text).unwrap(),
            [("Don't go if it rains!".to_owned(), vec!["If it rains, don't go!".to_owned()])]
        );
    }

    #[test]
    fn other_files_are_refused_with_a_place() {
        assert!(
            read("# text = a\nnot a parse\n")
                .unwrap_err()
                .contains("a.conllu:2: a word must have 10 columns")
        );
        assert!(
            read(&conllu("a/X/b/x")).unwrap_err().contains("a.conllu:1: `b` is not the number of a head")
        );
        assert!(
            read(&conllu(RAIN).replace("\n2\t", "\n7\t")).unwrap_err().contains("must have the number 2")
        );
    }
}
