//! The parts of a text that may be changed: words, and runs of Chinese characters.

use std::ops::Range;

/// A part of a text that may be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// A word of letters: no digit in or beside it, not all in capitals.
    Word(Range<usize>),
    /// Chinese characters next to each other.
    Han(Range<usize>),
}

/// A Chinese character of the common blocks.
pub(super) fn is_han(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}')
}

/// What of `text` may be changed, from left to right.
pub(super) fn units(text: &str, keep: &[&str]) -> Vec<Unit> {
    let kept: Vec<Range<usize>> = keep.iter().flat_map(|k| places(text, k)).collect();
    let mut out = Vec::new();
    let mut chars = text.char_indices().peekable();
    while let Some((start, c)) = chars.next() {
        let han = is_han(c);
        if !han && !c.is_alphanumeric() {
            continue;
        }
        let mut end = start + c.len_utf8();
        while let Some(&(at, c)) = chars.peek().filter(|(_, c)| is_han(*c) == han && c.is_alphanumeric()) {
            end = at + c.len_utf8();
            chars.next();
        }
        if han {
            out.extend(without(start..end, &kept).into_iter().map(Unit::Han));
        } else if may_change(text, &(start..end)) && kept.iter().all(|k| k.end <= start || end <= k.start) {
            out.push(Unit::Word(start..end));
        }
    }
    out
}

/// Letters only, not all capitals, and not joined to digits as in `34-year`.
fn may_change(text: &str, word: &Range<usize>) -> bool {
    let own = &text[word.clone()];
    let letters = own.chars().all(char::is_alphabetic) && own.chars().any(char::is_lowercase);
    let digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    let joined = |c: Option<char>| matches!(c, Some('-' | '.' | '\'' | '_' | '/'));
    let (mut before, mut after) = (text[..word.start].chars().rev(), text[word.end..].chars());
    letters
        && !(joined(before.next()) && digit(before.next()))
        && !(joined(after.next()) && digit(after.next()))
}

/// Where `part` stands in `text`, without regard to ASCII capitals.
fn places(text: &str, part: &str) -> Vec<Range<usize>> {
    let part = part.trim();
    let (own, n) = (text.as_bytes(), part.len());
    if n == 0 || n > own.len() {
        return Vec::new();
    }
    let starts = (0..=own.len() - n).filter(|&at| own[at..at + n].eq_ignore_ascii_case(part.as_bytes()));
    starts.map(|at| at..at + n).collect()
}

/// `range` less what is kept.
fn without(range: Range<usize>, kept: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut rest = vec![range];
    for k in kept {
        let cut = |r: Range<usize>| {
            [r.start..r.end.min(k.start.max(r.start)), r.start.max(k.end.min(r.end))..r.end]
        };
        rest = rest.into_iter().flat_map(cut).filter(|r| r.start < r.end).collect();
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_runs() {
        let text = "A 34-year-old mother's DNA, 患者头痛 x2 Zürich";
        let found: Vec<&str> = units(text, &["头"])
            .iter()
            .map(|u| match u {
                Unit::Word(r) | Unit::Han(r) => &text[r.clone()],
            })
            .collect();
        assert_eq!(found, ["old", "mother", "s", "患者", "痛", "Zürich"]);
    }
}
