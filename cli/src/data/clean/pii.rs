//! What says who somebody is, replaced by the name of its kind: `[EMAIL]`, `[PHONE]`, `[ID]`, `[IP]`, `[CARD]`.
//!
//! Numbers are checked where they can be: the check digit of Chinese identity cards (GB 11643, ISO 7064 MOD 11-2) and
//! their date of birth, Luhn's sum of payment cards, the range of the parts of an IP address. What stands inside a longer
//! word or number is left alone. Names and addresses are not found: they need a model.

/// A kind of personal data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pii {
    /// E-mail addresses.
    Email,
    /// Phone numbers: Chinese mobiles and land lines, international ones with `+`, North American ones.
    Phone,
    /// Chinese identity cards.
    Id,
    /// Payment cards.
    Card,
    /// IP addresses, version 4 and 6.
    Ip,
}

impl Pii {
    /// Every kind.
    pub const ALL: [Pii; 5] = [Pii::Email, Pii::Phone, Pii::Id, Pii::Card, Pii::Ip];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Pii::Email => "email",
            Pii::Phone => "phone",
            Pii::Id => "id",
            Pii::Card => "card",
            Pii::Ip => "ip",
        }
    }

    const fn mask(self) -> &'static str {
        match self {
            Pii::Email => "[EMAIL]",
            Pii::Phone => "[PHONE]",
            Pii::Id => "[ID]",
            Pii::Card => "[CARD]",
            Pii::Ip => "[IP]",
        }
    }
}

/// Longest e-mail address, number or IP address, in bytes.
const LONGEST: usize = 320;

/// The text with everything of these kinds masked, and what was: kind by kind as in [`Pii::ALL`].
pub fn mask(text: &str, kinds: &[Pii]) -> (String, [u64; 5]) {
    let bytes = text.as_bytes();
    let (mut out, mut counts) = (String::new(), [0; 5]);
    let (mut at, mut copied) = (0, 0);
    while at < bytes.len() {
        let candidate = match bytes[at] {
            b'0'..=b'9' | b'+' | b'(' => number(bytes, at, kinds),
            b'@' if kinds.contains(&Pii::Email) => email(bytes, at, copied),
            b'a'..=b'f' | b'A'..=b'F' | b':' if kinds.contains(&Pii::Ip) => ip6(bytes, at),
            _ => None,
        };
        match candidate {
            Some((kind, from, to)) => {
                out.push_str(&text[copied..from]);
                out.push_str(kind.mask());
                counts[kind as usize] += 1;
                (at, copied) = (to, to);
            }
            None => at += 1,
        }
    }
    out.push_str(&text[copied..]);
    (out, counts)
}

type Found = Option<(Pii, usize, usize)>;

/// An address around the `@` at `at`, not before `start`.
fn email(bytes: &[u8], at: usize, start: usize) -> Found {
    let start = start.max(at.saturating_sub(64));
    let local = bytes[start..at]
        .iter()
        .rev()
        .take_while(|b| b.is_ascii_alphanumeric() || b"._%+-".contains(b))
        .count();
    let domain = bytes[at + 1..]
        .iter()
        .take(255)
        .take_while(|b| b.is_ascii_alphanumeric() || b".-".contains(b))
        .count();
    let mut domain = &bytes[at + 1..at + 1 + domain];
    while let [rest @ .., b'.' | b'-'] = domain {
        domain = rest;
    }
    let mut labels = domain.rsplit(|&b| b == b'.');
    let top = labels.next()?;
    let good_top = top.len() >= 2 && top.iter().all(u8::is_ascii_alphabetic);
    let good_rest = labels.clone().count() > 0 && labels.all(|label| !label.is_empty());
    (local > 0 && good_top && good_rest).then_some((Pii::Email, at - local, at + 1 + domain.len()))
}

/// What the number at `at` is, if it is one of `kinds`.
fn number(bytes: &[u8], at: usize, kinds: &[Pii]) -> Found {
    if at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_') {
        return None;
    }
    let asked = |kind: Pii, length: Option<usize>| {
        length.filter(|_| kinds.contains(&kind)).map(|length| (kind, at, at + length))
    };
    let rest = &bytes[at..bytes.len().min(at + LONGEST)];
    if rest[0].is_ascii_digit() && at > 0 && bytes[at - 1] == b'.' && at > 1 && bytes[at - 2].is_ascii_digit()
    {
        return None;
    }
    asked(Pii::Ip, ip4(rest))
        .or_else(|| ip6(bytes, at).filter(|_| kinds.contains(&Pii::Ip)))
        .or_else(|| asked(Pii::Id, id_card(rest)))
        .or_else(|| asked(Pii::Card, card(rest)))
        .or_else(|| asked(Pii::Phone, phone(rest)))
}

/// Whether `length` bytes are all there is: no letter, digit or decimals after them.
fn ends(rest: &[u8], length: usize) -> bool {
    match rest.get(length) {
        Some(b'.' | b',' | b'-') => !rest.get(length + 1).is_some_and(u8::is_ascii_digit),
        Some(b) => !b.is_ascii_alphanumeric() && *b != b'_',
        None => true,
    }
}

fn ip4(rest: &[u8]) -> Option<usize> {
    let mut at = 0;
    for part in 0..4 {
        let digits = rest[at..].iter().take_while(|b| b.is_ascii_digit()).count();
        let value = rest[at..at + digits.min(4)].iter().fold(0, |v, b| 10 * v + u32::from(b - b'0'));
        if digits == 0 || digits > 3 || value > 255 || (part < 3 && rest.get(at + digits) != Some(&b'.')) {
            return None;
        }
        at += digits + usize::from(part < 3);
    }
    ends(rest, at).then_some(at)
}

fn ip6(bytes: &[u8], at: usize) -> Found {
    let in_address = |b: u8| b.is_ascii_hexdigit() || b == b':';
    if at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || b":_.".contains(&bytes[at - 1])) {
        return None;
    }
    let mut length = bytes[at..].iter().take(40).take_while(|b| in_address(**b)).count();
    // A colon at the end is the sentence's, unless there are two.
    if bytes[at..at + length].ends_with(b":") && !bytes[at..at + length].ends_with(b"::") {
        length -= 1;
    }
    let text = std::str::from_utf8(&bytes[at..at + length]).ok()?;
    let address: std::net::Ipv6Addr = text.parse().ok()?;
    // `::` alone and `a::b` are more often code than addresses.
    let groups = text.split(':').filter(|group| !group.is_empty()).count();
    let whole = !bytes.get(at + length).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    (whole && (groups >= 3 || address.is_loopback())).then_some((Pii::Ip, at, at + length))
}

/// Eighteen digits, the last of which may be an X: region, date of birth, number, check digit.
fn id_card(rest: &[u8]) -> Option<usize> {
    const FACTORS: [u32; 17] = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2];
    let digits = rest.get(..17)?;
    if !digits.iter().all(u8::is_ascii_digit) || digits[0] == b'0' || !ends(rest, 18) {
        return None;
    }
    let part = |from: usize, to: usize| digits[from..to].iter().fold(0, |v, b| 10 * v + u32::from(b - b'0'));
    let (year, month, day) = (part(6, 10), part(10, 12), part(12, 14));
    if !(1850..=2100).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let sum: u32 = digits.iter().zip(FACTORS).map(|(b, factor)| u32::from(b - b'0') * factor).sum();
    let check = b"10X98765432"[(sum % 11) as usize];
    (rest.get(17)?.to_ascii_uppercase() == check).then_some(18)
}

/// Groups of digits with single spaces or hyphens between them: how long the text is and how many digits there are after
/// each group.
fn groups(rest: &[u8]) -> Vec<(usize, usize)> {
    let (mut all, mut at, mut digits) = (Vec::new(), 0, 0);
    loop {
        let group = rest[at..].iter().take(20).take_while(|b| b.is_ascii_digit()).count();
        if group == 0 || digits + group > 20 {
            return all;
        }
        (at, digits) = (at + group, digits + group);
        all.push((at, digits));
        if !matches!(rest.get(at), Some(b' ' | b'-')) {
            return all;
        }
        at += 1;
    }
}

/// Thirteen to nineteen digits with Luhn's sum, as payment cards start: in one run, or in groups of which the first has four.
fn card(rest: &[u8]) -> Option<usize> {
    let groups = groups(rest);
    let &(first, _) = groups.first()?;
    let whole = |&&(length, digits): &&(usize, usize)| {
        (13..=19).contains(&digits)
            && (digits == first || first == 4)
            && ends(rest, length)
            && luhn(&rest[..length])
    };
    groups.iter().find(whole).filter(|_| (b'2'..=b'6').contains(&rest[0])).map(|&(length, _)| length)
}

/// Whether the digits of a text have Luhn's sum. A row of one digit is no number of a card.
fn luhn(text: &[u8]) -> bool {
    let digits: Vec<u32> = text.iter().filter(|b| b.is_ascii_digit()).map(|b| u32::from(b - b'0')).collect();
    let doubled = |(i, &digit): (usize, &u32)| match digit * (1 + i as u32 % 2) {
        value @ 10.. => value - 9,
        value => value,
    };
    let sum: u32 = digits.iter().rev().enumerate().map(doubled).sum();
    sum.is_multiple_of(10) && digits.iter().any(|digit| *digit != digits[0])
}

fn phone(rest: &[u8]) -> Option<usize> {
    let all = [chinese_mobile(rest), international(rest), land_line(rest), north_american(rest)];
    all.into_iter().flatten().find(|&length| ends(rest, length))
}

/// `1xx xxxx xxxx`, with or without spaces or hyphens, also behind `86`, `+86` or `0086`.
fn chinese_mobile(rest: &[u8]) -> Option<usize> {
    let separator = |at: usize| usize::from(matches!(rest.get(at), Some(b' ' | b'-')));
    let prefix = [&b"+86"[..], b"0086", b"86"].into_iter().find(|prefix| rest.starts_with(prefix));
    let mut at = prefix.map_or(0, |prefix| prefix.len() + separator(prefix.len()));
    let good_start = rest.get(at) == Some(&b'1') && rest.get(at + 1).is_some_and(|b| *b >= b'3');
    for (index, length) in [3, 4, 4].into_iter().enumerate() {
        at += if index > 0 { separator(at) } else { 0 };
        let all_digits = rest.get(at..at + length)?.iter().all(u8::is_ascii_digit);
        if !all_digits {
            return None;
        }
        at += length;
    }
    good_start.then_some(at)
}

/// `+`, then 8 to 15 digits; as many groups as fit.
fn international(rest: &[u8]) -> Option<usize> {
    let groups = groups(rest.strip_prefix(b"+")?);
    let fits = |&&(_, digits): &&(usize, usize)| (8..=15).contains(&digits);
    groups.iter().rev().find(fits).filter(|_| rest[1] != b'0').map(|&(length, _)| 1 + length)
}

/// `010-12345678` and `0755-1234567`; also in brackets.
fn land_line(rest: &[u8]) -> Option<usize> {
    let open = usize::from(rest.first() == Some(&b'('));
    let area = rest[open..].iter().take_while(|b| b.is_ascii_digit()).count();
    let mut at = open + area;
    if !(3..=4).contains(&area) || rest[open] != b'0' {
        return None;
    }
    match (open, rest.get(at)?) {
        (1, b')') | (0, b'-') => at += 1,
        _ => return None,
    }
    at += usize::from(open == 1 && matches!(rest.get(at), Some(b' ' | b'-')));
    let local = rest[at..].iter().take_while(|b| b.is_ascii_digit()).count();
    (7..=8).contains(&local).then_some(at + local)
}

/// `(212) 555-0123`, `212-555-0123` and `212.555.0123`.
fn north_american(rest: &[u8]) -> Option<usize> {
    let open = usize::from(rest.first() == Some(&b'('));
    let digits = |from: usize, count: usize| {
        rest.get(from..from + count).is_some_and(|part| part.iter().all(u8::is_ascii_digit))
    };
    if !digits(open, 3) || rest[open] < b'2' {
        return None;
    }
    let mut at = open + 3;
    let separator = *rest.get(at)?;
    if open == 1 {
        at += 1 + usize::from(rest.get(at + 1) == Some(&b' '));
    } else {
        at += 1;
    }
    if (open == 1 && separator != b')')
        || (open == 0 && separator != b'-' && separator != b'.')
        || !digits(at, 3)
    {
        return None;
    }
    let second = *rest.get(at + 3)?;
    let same = second == separator || (open == 1 && second == b'-');
    (same && digits(at + 4, 4)).then_some(at + 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> String {
        mask(text, &Pii::ALL).0
    }

    #[test]
    fn masked() {
        for (text, masked) in [
            ("写信给zhang.san+x@mail.example.com.cn。", "写信给[EMAIL]。"),
            ("a@b.co, <c_d@e-f.org>.", "[EMAIL], <[EMAIL]>."),
            ("电话13812345678，或+86 138 1234 5678", "电话[PHONE]，或[PHONE]"),
            ("008613812345678 138-1234-5678", "[PHONE] [PHONE]"),
            ("010-12345678 (0755) 1234567", "[PHONE] [PHONE]"),
            ("(212) 555-0123, 212-555-0123 or 212.555.0123.", "[PHONE], [PHONE] or [PHONE]."),
            ("+44 20 7946 0958", "[PHONE]"),
            ("身份证11010519491231002X号", "身份证[ID]号"),
            ("4111 1111 1111 1111 and 5500-0000-0000-0004", "[CARD] and [CARD]"),
            ("6222021234567890128? 13812345678", "[CARD]? [PHONE]"),
            ("4111 1111 1111 1111 13812345678 2024", "[CARD] [PHONE] 2024"),
            ("from 192.168.1.254, 10.0.0.1:80 and 2001:db8::ff00:42:8329.", "from [IP], [IP]:80 and [IP]."),
            ("fe80:0:0:0:1:2:3:4", "[IP]"),
        ] {
            assert_eq!(all(text), masked, "{text}");
        }
    }

    #[test]
    fn left_alone() {
        for text in [
            "a@b, @user and x@1.2",
            "The year 1984, 3.14159265358979, 1,000,000,000 and 12345678901",
            "110105194912310021 has a wrong check digit",
            "11010519491331002X has no such month",
            "4111 1111 1111 1112 fails Luhn's sum, 0000 0000 0000 0000 is no card",
            "1.2.3.4.5 and 256.1.1.1 and v1.2.3",
            "std::vec a::b 12:30:45 ::",
            "x13812345678 138123456789 1381234567",
            "2 + 3 = 5, (1) and (2)",
            "",
        ] {
            assert_eq!(all(text), text);
        }
    }

    #[test]
    fn only_what_is_asked_for() {
        let text = "a@b.co 13812345678 4111111111111111";
        assert_eq!(
            mask(text, &[Pii::Phone]),
            ("a@b.co [PHONE] 4111111111111111".to_owned(), [0, 1, 0, 0, 0])
        );
        assert_eq!(mask(text, &Pii::ALL).1, [1, 1, 0, 1, 0]);
        assert_eq!(mask(text, &[]).0, text);
    }
}
