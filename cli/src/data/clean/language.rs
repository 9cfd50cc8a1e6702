//! Which language a text is in.
//!
//! Chinese, Japanese and Korean are told by their characters, an ideograph counting as much as three letters, so that
//! Chinese with English terms in it stays Chinese. Everything else is whatlang's answer.

use super::text::{is_han, is_hangul, is_kana};
use whatlang::Lang;

/// Characters that are looked at.
const SAMPLE: usize = 2000;

/// Codes of two letters (ISO 639-1) for whatlang's languages, which have three (639-3).
const CODES: [(&str, Lang); 30] = [
    ("ar", Lang::Ara),
    ("bn", Lang::Ben),
    ("cs", Lang::Ces),
    ("da", Lang::Dan),
    ("de", Lang::Deu),
    ("el", Lang::Ell),
    ("en", Lang::Eng),
    ("es", Lang::Spa),
    ("fa", Lang::Pes),
    ("fi", Lang::Fin),
    ("fr", Lang::Fra),
    ("he", Lang::Heb),
    ("hi", Lang::Hin),
    ("hu", Lang::Hun),
    ("id", Lang::Ind),
    ("it", Lang::Ita),
    ("ja", Lang::Jpn),
    ("ko", Lang::Kor),
    ("nl", Lang::Nld),
    ("pl", Lang::Pol),
    ("pt", Lang::Por),
    ("ro", Lang::Ron),
    ("ru", Lang::Rus),
    ("sv", Lang::Swe),
    ("th", Lang::Tha),
    ("tr", Lang::Tur),
    ("uk", Lang::Ukr),
    ("ur", Lang::Urd),
    ("vi", Lang::Vie),
    ("zh", Lang::Cmn),
];

/// Reads `en`, `zh`, or one of whatlang's three-letter codes.
///
/// # Errors
/// If there is no such language.
pub fn parse(code: &str) -> Result<&'static str, String> {
    if let Some((known, _)) = CODES.iter().find(|(known, _)| *known == code) {
        return Ok(known);
    }
    match Lang::from_code(code) {
        Some(lang) => Ok(name(lang)),
        None => Err(format!("there is no language `{code}`; use codes such as en, zh, ja, de or fra")),
    }
}

fn name(lang: Lang) -> &'static str {
    CODES.iter().find(|(_, known)| *known == lang).map_or(lang.code(), |(code, _)| code)
}

/// The code of a text's language, `None` if it has no letters to tell by.
pub fn detect(text: &str) -> Option<&'static str> {
    let (mut han, mut kana, mut hangul, mut other) = (0, 0, 0, 0);
    let mut end = text.len();
    for (count, (at, c)) in text.char_indices().enumerate() {
        if count == SAMPLE {
            end = at;
            break;
        }
        if c.is_ascii() {
            other += usize::from(c.is_ascii_alphabetic());
        } else if is_han(c) {
            han += 1;
        } else if is_kana(c) {
            kana += 1;
        } else if is_hangul(c) {
            hangul += 1;
        } else {
            other += usize::from(c.is_alphabetic());
        }
    }
    if 3 * (han + kana + hangul) > other {
        return Some(if hangul > han + kana {
            "ko"
        } else if 8 * kana >= han {
            "ja"
        } else {
            "zh"
        });
    }
    whatlang::detect_lang(&text[..end]).map(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages() {
        for (code, text) in [
            ("zh", "缓存保存最近使用过的数据。"),
            ("zh", "使用 CPU 和 GPU 的 TensorFlow 框架进行深度学习模型的训练"),
            ("zh", "電腦的記憶體比硬碟快得多"),
            ("ja", "キャッシュは最近使用されたデータを保存します。"),
            ("ko", "캐시는 최근에 사용한 데이터를 저장합니다."),
            ("en", "A cache holds copies of the data that was used lately, and it is faster than memory."),
            ("en", "The Chinese word for computer is 电脑, and the one for memory is 内存."),
            ("de", "Ein Zwischenspeicher enthält Kopien der Daten, die zuletzt verwendet worden sind."),
            ("ru", "Кэш хранит копии данных, которые недавно использовались."),
        ] {
            assert_eq!(detect(text), Some(code), "{text}");
        }
        assert_eq!(detect("123 !?"), None);
    }

    #[test]
    fn codes() {
        assert_eq!((parse("zh"), parse("cmn"), parse("fra")), (Ok("zh"), Ok("zh"), Ok("fr")));
        assert_eq!(parse("lat"), Ok("lat"));
        assert!(parse("english").is_err_and(|e| e.contains("use codes such as en, zh")));
    }
}
