//! Pages and rows of knowledge: any bytes become text that stays as it is when it is cleaned again, or have a reason.
#![no_main]

use kfc::data::clean::{dedup, html, language, pii, text};
use kfc::data::input::{Content, Format, Item};
use kfc::data::row::{Fields, Row, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for format in Format::ALL {
        let item = Item { name: "f".into(), line: 1, format, content: Content::Bytes(data.to_vec()) };
        match parse(&item, &Fields::default()) {
            Ok(row) => work(row),
            Err(rejected) => assert!(!rejected.reason.is_empty()),
        }
    }
});

fn work(mut row: Row) {
    html::looks_like_html(&row.text);
    for boilerplate in [false, true] {
        if let Ok(page) = html::to_text(&row.text, boilerplate) {
            clean(&page.text);
        }
    }
    clean(&row.text);
    row.identify();
    let line = row.to_line();
    assert_eq!(Row::from_line(line.trim_end().as_bytes()).as_ref(), Ok(&row));
}

fn clean(given: &str) {
    let tidy = text::tidy_space(&text::strip_symbols(given));
    assert_eq!(text::tidy_space(&tidy), tidy);
    let (masked, counts) = pii::mask(&tidy, &pii::Pii::ALL);
    assert_eq!(masked == tidy, counts.iter().sum::<u64>() == 0);
    language::detect(&masked);
    let weight = text::weight(&masked);
    assert_eq!(dedup::signature(&masked).is_some(), weight > 0);
    assert!((0.0..=1.0).contains(&text::symbol_share(&masked)));
}
