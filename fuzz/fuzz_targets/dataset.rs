//! Training and evaluation data: any bytes, read in every form there is, give rows or an error that names the file.
#![no_main]

use kfc_runtime::data::chat::ChatStyle;
use kfc_runtime::data::eval_data::{choice_of, entities_of, final_answer, iob_of, qa_of};
use kfc_runtime::data::rows::parse_row;
use kfc_runtime::data::source::JsonRows;
use kfc_runtime::data::tar::Walk;
use kfc_runtime::data::token_shard::TokenShard;
use kfc_runtime::data::webdataset::samples;
use kfc_runtime::data::{DataError, Documents};
use kfc_runtime::eval::perturb::{Lexicon, Perturbation};
use libfuzzer_sys::fuzz_target;
use std::io::Cursor;
use std::path::Path;

const NAME: &str = "rows.jsonl";
const VOCAB: usize = 1000;
const STYLES: [ChatStyle; 4] = [ChatStyle::DeepSeek, ChatStyle::ChatMl, ChatStyle::Llama3, ChatStyle::Plain];

fuzz_target!(|data: &[u8]| {
    json_rows(data);
    tokens(data);
    archive(data);
    token_shard(data);
    let names_the_file = |e: Option<DataError>| {
        let text = e.map_or(NAME.to_string(), |e| e.to_string());
        assert!(text.contains(NAME), "an error without a place: {text}");
    };
    names_the_file(choice_of(data, NAME).err());
    names_the_file(qa_of(data, NAME).err());
    names_the_file(entities_of(data, NAME).err());
    names_the_file(iob_of(data, NAME).err());
    if let Ok(text) = std::str::from_utf8(data) {
        final_answer(text);
        perturbed(text, &Lexicon::default());
        match Lexicon::of(text, NAME) {
            Ok(lexicon) => perturbed(text, &lexicon),
            Err(e) => names_the_file(Some(e)),
        }
    }
});

/// What is changed differs from what was there.
fn perturbed(text: &str, lexicon: &Lexicon) {
    for kind in Perturbation::ALL {
        assert!(kind.apply(text, &["1"], lexicon, 0, 0).is_none_or(|made| made != text));
    }
}

fn json_rows(data: &[u8]) {
    let rows = JsonRows::new(data, NAME);
    for index in 0..rows.len() {
        let (place, value) = rows.row(index);
        assert!(place.starts_with(NAME));
        let Ok(value) = value else { continue };
        for style in STYLES {
            if let Ok(row) = parse_row(&value, style, "</s>") {
                assert!(row.pieces.iter().any(|p| p.train), "nothing to train in {value}");
            }
        }
    }
}

/// Members lie inside the archive, one behind the other; samples come from them.
fn archive(data: &[u8]) {
    let mut at = 0;
    for entry in Walk::new(Cursor::new(data), data.len() as u64).map_while(Result::ok) {
        assert!(at <= entry.header && entry.header < entry.start && entry.start <= entry.end);
        assert!(entry.end <= data.len() as u64);
        at = entry.end;
    }
    for (place, _) in samples(data, NAME).unwrap_or_default() {
        assert!(place.starts_with(NAME));
    }
}

fn token_shard(data: &[u8]) {
    let Ok(shard) = TokenShard::parse(data, Path::new(NAME)) else { return };
    let documents = (0..shard.len()).map_while(|i| shard.document(i).ok());
    let tokens: usize = documents.map(|d| d.tokens.len()).sum();
    assert!(tokens as u64 <= shard.offset(shard.len()));
}

fn tokens(data: &[u8]) {
    let mut documents = Documents::new();
    let Ok((rows, columns)) = kfc_runtime::data::token_file::append_tokens(
        data,
        Path::new(NAME),
        VOCAB,
        0..usize::MAX,
        &mut documents,
    ) else {
        return;
    };
    assert_eq!((documents.len(), documents.total_tokens()), (rows, rows * columns));
    for i in 0..rows {
        assert!(documents.tokens(i).iter().all(|&t| usize::try_from(t).is_ok_and(|t| t < VOCAB)));
    }
}
