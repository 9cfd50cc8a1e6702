//! Comparing answers: exact match and F1 as in SQuAD, the final number of worked answers as in GSM8K, and entities in
//! a text.

/// The normal form of SQuAD's evaluation: lower case, no ASCII punctuation, no articles, single blanks.
pub fn normalise(text: &str) -> String {
    let plain: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let words: Vec<&str> = plain.split_whitespace().filter(|w| !["a", "an", "the"].contains(w)).collect();
    words.join(" ")
}

/// Whether two answers are the same after [`normalise`].
pub fn exact_match(answer: &str, gold: &str) -> bool {
    normalise(answer) == normalise(gold)
}

/// Harmonic mean of the shares of common words (each counted as often as it is in both), after [`normalise`]. If one side
/// has no words, 1 if neither has, else 0.
pub fn f1(answer: &str, gold: &str) -> f64 {
    let (answer, gold) = (normalise(answer), normalise(gold));
    let (mut a, mut g): (Vec<&str>, Vec<&str>) = (answer.split(' ').collect(), gold.split(' ').collect());
    if answer.is_empty() || gold.is_empty() {
        return f64::from(u8::from(answer == gold));
    }
    a.sort_unstable();
    g.sort_unstable();
    let (mut i, mut j, mut common) = (0, 0, 0usize);
    while i < a.len() && j < g.len() {
        match a[i].cmp(g[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => (i, j, common) = (i + 1, j + 1, common + 1),
        }
    }
    // 2PR/(P+R) with P = common/|a| and R = common/|g|.
    2.0 * common as f64 / (a.len() + g.len()) as f64
}

/// The number that an answer comes to: the first after the last `####`, or else the last of the text. Commas between
/// digits are no part of it.
pub fn final_number(text: &str) -> Option<f64> {
    match text.rsplit_once("####") {
        Some((_, rest)) => numbers(rest).first().copied(),
        None => numbers(text).last().copied(),
    }
}

/// The numbers in a text: digits with commas between digits, one point, and a minus that follows no word.
fn numbers(text: &str) -> Vec<f64> {
    let bytes = text.as_bytes();
    let digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
    let (mut out, mut i) = (Vec::new(), 0);
    while i < bytes.len() {
        if !digit(i) {
            i += 1;
            continue;
        }
        let signed = i >= 1 && bytes[i - 1] == b'-' && !(i >= 2 && bytes[i - 2].is_ascii_alphanumeric());
        let dollars = i >= 2 && bytes[i - 1] == b'$' && bytes[i - 2] == b'-';
        let mut number = String::from(if signed || dollars { "-" } else { "" });
        let mut point = false;
        while digit(i) || (digit(i + 1) && (bytes[i] == b',' || (bytes[i] == b'.' && !point))) {
            point |= bytes[i] == b'.';
            if bytes[i] != b',' {
                number.push(char::from(bytes[i]));
            }
            i += 1;
        }
        out.extend(number.parse::<f64>().ok());
    }
    out
}

/// The number that lm-evaluation-harness' `strict-match` takes from an answer to GSM8K: what the first
/// `#### (\-?[0-9\.\,]+)` matches.
pub fn strict_match(text: &str) -> Option<&str> {
    text.match_indices("#### ").find_map(|(at, mark)| {
        let rest = &text[at + mark.len()..];
        let sign = usize::from(rest.starts_with('-'));
        let n = rest[sign..].bytes().take_while(|b| b.is_ascii_digit() || b".,".contains(b)).count();
        (n > 0).then(|| &rest[..sign + n])
    })
}

/// The number that `flexible-extract` takes: the last that `(-?[$0-9.,]{2,})|(-?[0-9]+)` matches.
pub fn flexible_extract(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let (mut found, mut i) = (None, 0);
    while i < bytes.len() {
        let from = i + usize::from(bytes[i] == b'-');
        let run = |class: &dyn Fn(&u8) -> bool| bytes[from..].iter().take_while(|b| class(b)).count();
        let wide = run(&|b| b.is_ascii_digit() || b"$.,".contains(b));
        let n = if wide >= 2 { wide } else { run(&u8::is_ascii_digit) };
        if n > 0 {
            found = Some(&text[i..from + n]);
        }
        i = if n > 0 { from + n } else { i + 1 };
    }
    found
}

/// What lm-evaluation-harness compares of an answer to GSM8K: without commas and dollars, what follows the last `#### `,
/// without a full stop at the end, in lower case.
pub fn last_answer(text: &str) -> String {
    let bare: String = text.chars().filter(|c| !",$".contains(*c)).collect();
    let bare = bare.rsplit_once("#### ").map_or(bare.as_str(), |(_, rest)| rest);
    bare.strip_suffix('.').unwrap_or(bare).to_lowercase()
}

/// Without white space, in lower case.
pub fn bare(text: &str) -> String {
    text.to_lowercase().split_whitespace().collect()
}

/// The entries of an answer that is a list with semicolons, each once and [`bare`]; `none` is no entry.
pub fn list(answer: &str) -> Vec<String> {
    let entries = answer.split([';', '；']).map(|e| bare(e).trim_end_matches(['.', '。']).to_owned());
    distinct(entries.filter(|e| !e.is_empty() && e != "none"))
}

/// The values without repetitions, in order.
pub fn distinct(values: impl Iterator<Item = String>) -> Vec<String> {
    let mut out = Vec::new();
    for value in values {
        if !out.contains(&value) {
            out.push(value);
        }
    }
    out
}

/// Whether `entity` stands in `text`: upper and lower case are the same, so is any white space, and no letter or digit
/// touches it.
pub fn mentions(text: &str, entity: &str) -> bool {
    let plain = |s: &str| s.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
    let (text, entity) = (plain(text), plain(entity));
    if entity.is_empty() {
        return false;
    }
    let open = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric());
    // Every place, also overlapping ones, of which `match_indices` would skip some.
    text.char_indices().any(|(at, _)| {
        text[at..]
            .strip_prefix(entity.as_str())
            .is_some_and(|rest| open(text[..at].chars().next_back()) && open(rest.chars().next()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squad() {
        assert_eq!(normalise(" The  Quick, brown-fox!\nAn a "), "quick brownfox");
        assert!(exact_match("The Eiffel Tower.", "eiffel tower"));
        assert!(!exact_match("Eiffel", "eiffel tower"));
        // 2 common of 3 and of 4 words.
        assert!((f1("new york city", "York, new times square") - 4.0 / 7.0).abs() < 1e-12);
        // A word counts as often as it is in both: 2 common of 3 and 2.
        assert!((f1("b b b", "b b") - 0.8).abs() < 1e-12);
        assert_eq!((f1("", "x"), f1("the", "a"), f1("x", "y")), (0.0, 1.0, 0.0));
    }

    #[test]
    fn final_numbers() {
        for (text, number) in [
            ("so 3 + 4 = 7 apples", Some(7.0)),
            ("7\n#### 1,234.50 and 8", Some(1234.5)),
            ("costs -$12.", Some(-12.0)),
            ("it is -3", Some(-3.0)),
            ("a range 3-5", Some(5.0)),
            ("version 1.2.3", Some(3.0)),
            ("none", None),
            ("5\n#### none", None),
            ("1, 2, 3", Some(3.0)),
            ("é9", Some(9.0)),
        ] {
            assert_eq!(final_number(text), number, "{text}");
        }
    }

    #[test]
    fn extractions_of_the_harness() {
        // Python's re on the same texts.
        for (text, strict, flexible) in [
            ("so 18", None, Some("18")),
            ("#### 18", Some("18"), Some("18")),
            ("#### -1,2.5. x 7", Some("-1,2.5."), Some("7")),
            ("#### x #### 3", Some("3"), Some("3")),
            ("a-5 is -$3", None, Some("-$3")),
            ("the end.", None, None),
            ("the end..", None, Some("..")),
            ("7 apples.", None, Some("7")),
            ("-", None, None),
            ("5-", None, Some("5")),
            ("é9, x", None, Some("9,")),
        ] {
            assert_eq!((strict_match(text), flexible_extract(text)), (strict, flexible), "{text}");
        }
        assert_eq!(last_answer("x\n#### 1,234."), "1234");
        assert_eq!(last_answer("#### A #### $B"), "b");
    }

    #[test]
    fn whole_words() {
        assert!(mentions("He lives in BERN.", "Bern"));
        assert!(mentions("non-small\ncell lung  cancer", "small cell lung cancer"));
        assert!(!mentions("Bernard", "Bern"));
        assert!(!mentions("Oberbern", "Bern"));
        assert!(mentions("Bernard of Bern", "bern"));
        assert!(mentions("xa a a", "a a"));
        assert!(!mentions("anything", " "));
        assert!(mentions("Zürich ist", "ZÜRICH"));
    }
}
