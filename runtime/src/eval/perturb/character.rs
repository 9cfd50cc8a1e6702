//! Slips of typing.

use super::units::Unit;
use super::{Draws, share};
use std::ops::Range;

/// Shortest word that is changed: of shorter ones too little is left.
const SHORTEST: usize = 4;

/// The keys beside each letter of an English keyboard.
const BESIDE: [(&str, &str); 26] = [
    ("a", "qsz"),
    ("b", "vgn"),
    ("c", "xdv"),
    ("d", "sfe"),
    ("e", "wrd"),
    ("f", "dgr"),
    ("g", "fht"),
    ("h", "gjy"),
    ("i", "uok"),
    ("j", "hku"),
    ("k", "jli"),
    ("l", "kop"),
    ("m", "njk"),
    ("n", "bmh"),
    ("o", "ipl"),
    ("p", "ol"),
    ("q", "wa"),
    ("r", "etf"),
    ("s", "adw"),
    ("t", "ryg"),
    ("u", "yij"),
    ("v", "cbf"),
    ("w", "qes"),
    ("x", "zcs"),
    ("y", "tuh"),
    ("z", "xas"),
];

/// Chinese characters that are taken for each other: they sound the same (for whoever types by sound) or look alike.
const ALIKE: [&str; 48] = [
    "的地得",
    "在再",
    "他她它",
    "做作",
    "己已",
    "未末",
    "象像",
    "那哪",
    "以已",
    "时是",
    "事是",
    "有又",
    "和合",
    "后候",
    "元员",
    "坐座",
    "定订",
    "须需",
    "帐账",
    "带代",
    "度渡",
    "副付",
    "分份",
    "近进",
    "经径",
    "历力",
    "利力",
    "练炼",
    "两俩",
    "清请",
    "情晴",
    "人入",
    "日曰",
    "土士",
    "大太",
    "千干",
    "天夫",
    "午牛",
    "由申",
    "拔拨",
    "治冶",
    "侯候",
    "因困",
    "头买",
    "病并",
    "药要",
    "者着",
    "症证",
];

/// What one slip changes.
enum Spot {
    /// A word of [`SHORTEST`] letters or more.
    Word(Range<usize>),
    /// A Chinese character, and where the next one of its run ends, if it is not the last.
    Han(Range<usize>, Option<usize>),
}

/// A tenth of the words (of pairs of Chinese characters) with a slip in each.
pub(super) fn slip(text: &str, units: &[Unit], draws: &mut Draws) -> Option<String> {
    let spots = spots(text, units);
    let words = spots.iter().filter(|s| matches!(s, Spot::Word(_))).count();
    let chosen = draws.choose(spots.len(), share(words + (spots.len() - words) / 2).min(spots.len()));
    let (mut out, mut copied) = (String::new(), 0);
    for spot in chosen.into_iter().map(|i| &spots[i]) {
        let (range, new) = match spot {
            Spot::Word(range) => (range.clone(), mistyped(&text[range.clone()], draws)),
            Spot::Han(range, next) => match alike(&text[range.clone()], draws) {
                Some(other) => (range.clone(), other),
                None => match next {
                    Some(end) => {
                        (range.start..*end, format!("{}{}", &text[range.end..*end], &text[range.clone()]))
                    }
                    None => continue,
                },
            },
        };
        // Two slips at neighbouring characters would overlap.
        if range.start < copied {
            continue;
        }
        out.push_str(&text[copied..range.start]);
        out.push_str(&new);
        copied = range.end;
    }
    out.push_str(&text[copied..]);
    Some(out)
}

fn spots(text: &str, units: &[Unit]) -> Vec<Spot> {
    let mut spots = Vec::new();
    for unit in units {
        match unit {
            Unit::Word(range) if text[range.clone()].chars().count() >= SHORTEST => {
                spots.push(Spot::Word(range.clone()));
            }
            Unit::Word(_) => {}
            Unit::Han(range) => {
                let ends: Vec<usize> =
                    text[range.clone()].char_indices().map(|(i, c)| range.start + i + c.len_utf8()).collect();
                let mut start = range.start;
                for (i, end) in ends.iter().enumerate() {
                    spots.push(Spot::Han(start..*end, ends.get(i + 1).copied()));
                    start = *end;
                }
            }
        }
    }
    spots
}

/// One of four slips within the word; its first letter stays.
fn mistyped(word: &str, draws: &mut Draws) -> String {
    let mut letters: Vec<char> = word.chars().collect();
    let at = 1 + draws.below(letters.len() - 2);
    match draws.below(4) {
        0 if letters[at] != letters[at + 1] => letters.swap(at, at + 1),
        1 => letters.insert(at, letters[at]),
        2 => match beside(letters[at], draws) {
            Some(other) => letters[at] = other,
            None => drop(letters.remove(at)),
        },
        _ => drop(letters.remove(at)),
    }
    letters.into_iter().collect()
}

fn beside(letter: char, draws: &mut Draws) -> Option<char> {
    let keys = BESIDE.iter().find(|(key, _)| key.starts_with(letter))?.1;
    keys.chars().nth(draws.below(keys.len()))
}

fn alike(character: &str, draws: &mut Draws) -> Option<String> {
    let others: Vec<char> = ALIKE
        .iter()
        .filter(|group| group.contains(character))
        .flat_map(|group| group.chars())
        .filter(|c| !character.contains(*c))
        .collect();
    (!others.is_empty()).then(|| others[draws.below(others.len())].to_string())
}
