//! Characters: Unicode normalisation, symbols that say nothing, white space, and how long a text is.

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick, is_nfkc_quick};

/// A Unicode normal form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Canonical composition: what looks the same is the same.
    Nfc,
    /// Compatibility composition: also `①` → `1`, `x²` → `x2`, `，` → `,`.
    Nfkc,
    /// Characters as they are.
    None,
}

impl Form {
    /// Every form.
    pub const ALL: [Form; 3] = [Form::Nfc, Form::Nfkc, Form::None];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Form::Nfc => "nfc",
            Form::Nfkc => "nfkc",
            Form::None => "none",
        }
    }

    /// The text in this form.
    pub fn apply(self, text: String) -> String {
        match self {
            Form::Nfc if is_nfc_quick(text.chars()) != IsNormalized::Yes => text.nfc().collect(),
            Form::Nfkc if is_nfkc_quick(text.chars()) != IsNormalized::Yes => text.nfkc().collect(),
            _ => text,
        }
    }
}

/// Whether a character is an ideograph: a word or a part of one by itself.
pub fn is_han(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{3FFFF}' | '々' | '〇')
}

/// Whether a character is Japanese kana.
pub fn is_kana(c: char) -> bool {
    matches!(c, '\u{3041}'..='\u{3096}' | '\u{30A1}'..='\u{30FA}' | '\u{31F0}'..='\u{31FF}' | '\u{FF66}'..='\u{FF9D}')
}

/// Whether a character is a Korean syllable.
pub fn is_hangul(c: char) -> bool {
    matches!(c, '\u{AC00}'..='\u{D7A3}' | '\u{1100}'..='\u{11FF}' | '\u{3130}'..='\u{318F}')
}

/// How many Latin letters a character stands for: 3 for an ideograph, 2 for kana and Korean syllables, 1 for other letters
/// and digits, 0 for the rest. A Chinese text is about a third as long as the same in English.
fn char_weight(c: char) -> usize {
    if c.is_ascii() {
        usize::from(c.is_ascii_alphanumeric())
    } else if !c.is_alphanumeric() {
        0
    } else if is_han(c) {
        3
    } else if is_kana(c) || is_hangul(c) {
        2
    } else {
        1
    }
}

/// How long a text is, in characters of which an ideograph counts three (see `char_weight`).
pub fn weight(text: &str) -> usize {
    text.chars().map(char_weight).sum()
}

/// The share of a text's characters, white space aside, that are neither letters nor digits.
pub fn symbol_share(text: &str) -> f64 {
    let (mut all, mut symbols) = (0u64, 0u64);
    for c in text.chars().filter(|c| !c.is_whitespace()) {
        all += 1;
        symbols += u64::from(!c.is_alphanumeric());
    }
    if all == 0 { 0.0 } else { symbols as f64 / all as f64 }
}

/// Removes what is invisible or decoration, folds full-width letters and digits to ASCII and special spaces to plain ones,
/// and shortens runs of a repeated symbol to three. Lines that were only symbols go.
pub fn strip_symbols(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.split(['\n', '\u{2028}', '\u{2029}', '\u{85}']) {
        let start = out.len();
        let (mut last, mut run) = ('\0', 0);
        for c in line.chars().filter_map(plain) {
            run = if c == last { run + 1 } else { 1 };
            last = c;
            if run <= 3 || c.is_alphanumeric() || c.is_whitespace() {
                out.push(c);
            }
        }
        let kept = &out[start..];
        let decoration = kept.chars().count() >= 3 && kept.chars().all(|c| c.is_whitespace() || is_rule(c));
        let emptied = kept.trim().is_empty() && !line.trim().is_empty();
        if decoration && !kept.trim().is_empty() || emptied {
            out.truncate(start);
        }
        out.push('\n');
    }
    out.pop();
    out
}

/// What lines are drawn with. Brackets and the like are not: `});` is code.
fn is_rule(c: char) -> bool {
    "-=_*~+#.|/\\<>^·•—–…".contains(c)
}

/// What a character becomes, `None` if it goes.
fn plain(c: char) -> Option<char> {
    if c.is_ascii() {
        return (c == '\t' || !c.is_ascii_control()).then_some(c);
    }
    match c {
        // Spaces of all widths.
        '\u{A0}' | '\u{1680}' | '\u{2000}'..='\u{200A}' | '\u{202F}' | '\u{205F}' | '\u{3000}' => Some(' '),
        // Full-width digits and letters; full-width punctuation is how Chinese is written.
        '\u{FF10}'..='\u{FF19}' | '\u{FF21}'..='\u{FF3A}' | '\u{FF41}'..='\u{FF5A}' => {
            char::from_u32(c as u32 - 0xFEE0)
        }
        // C1 controls, soft hyphen, marks of direction, invisible operators, byte order marks.
        '\u{80}'..='\u{9F}'
        | '\u{AD}'
        | '\u{200B}'
        | '\u{200E}'
        | '\u{200F}'
        | '\u{202A}'..='\u{202E}'
        | '\u{2060}'..='\u{206F}'
        | '\u{FEFF}' => None,
        // Replacement characters, what is private to a font, what is no character.
        '\u{FFF9}'..='\u{FFFF}' | '\u{E000}'..='\u{F8FF}' | '\u{F0000}'..='\u{10FFFF}' => None,
        // Box drawing, blocks, geometric shapes, stars and dingbats.
        '\u{2500}'..='\u{25FF}'
        | '\u{2605}'
        | '\u{2606}'
        | '\u{2701}'..='\u{2757}'
        | '\u{2761}'..='\u{2767}'
        | '\u{2794}'..='\u{27BF}' => None,
        _ => Some(c),
    }
}

/// One space where there were several (an indent stays), none at the end of lines, one blank line at most, none around.
pub fn tidy_space(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut blank = 0;
    for line in text.lines() {
        let line = line.trim_end();
        if line.trim_start().is_empty() {
            blank += 1;
            continue;
        }
        if !out.is_empty() {
            out.push_str(if blank > 0 { "\n\n" } else { "\n" });
        }
        blank = 0;
        let body = line.trim_start();
        if !out.is_empty() {
            out.push_str(&line[..line.len() - body.len()]);
        }
        let mut space = false;
        for c in body.chars() {
            let is_space = c == ' ' || c == '\t';
            if !(is_space && space) {
                out.push(if is_space { ' ' } else { c });
            }
            space = is_space;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_forms() {
        let apply = |form: Form, text: &str| form.apply(text.to_owned());
        assert_eq!(apply(Form::Nfc, "e\u{301} ①，"), "é ①，");
        assert_eq!(apply(Form::Nfkc, "e\u{301} ①，ｶ"), "é 1,カ");
        assert_eq!(apply(Form::None, "e\u{301}"), "e\u{301}");
    }

    #[test]
    fn chinese_is_as_long_as_what_it_says() {
        assert_eq!(weight("a cache is fast, 3 ns"), 15);
        assert_eq!(weight("缓存很快，3 纳秒。"), 19);
        assert_eq!(weight("キャッシュ 캐시 кэш ☺"), 10 + 4 + 3);
        assert_eq!(weight("，。 !?"), 0);
    }

    #[test]
    fn symbols() {
        assert_eq!(strip_symbols("a\u{200b}b\u{ad}\u{feff}\r\u{7}c\u{a0}d\u{3000}e"), "abc d e");
        assert_eq!(strip_symbols("ＣＰＵ１２，（好）"), "CPU12，（好）");
        assert_eq!(
            strip_symbols("★ 第一章 ★\n======\n正文……\n│\n!!!!!! 1000000"),
            " 第一章 \n\n正文……\n\n!!! 1000000"
        );
        assert_eq!(strip_symbols("a\u{2028}b\n\nc"), "a\nb\n\nc");
        assert_eq!(strip_symbols("x² ≥ 3 → y ✓"), "x² ≥ 3 → y ");
        assert_eq!(strip_symbols("});\n-- * --\n？！！"), "});\n\n？！！");
    }

    #[test]
    fn white_space() {
        assert_eq!(tidy_space("\n  a \t b  \r\n\n\n\n    c\n d\n\n"), "a b\n\n    c\n d");
        assert_eq!(tidy_space(" \n "), "");
    }

    #[test]
    fn share_of_symbols() {
        assert_eq!(symbol_share("a b。!"), 0.5);
        assert_eq!(symbol_share(" "), 0.0);
    }
}
