//! A word-level tokenizer made from a list of words, for models trained from scratch on a small world (the demo).
//!
//! Text is cut at white space and every punctuation character stands alone; unknown words become `<unk>`.
//! Ids: `<pad>` 0, `<unk>` 1, `<eos>` 2, then the words in the order given.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper};

use super::error::{DataError, Result};
use super::tokenizer::Tokenizer;

const SPECIAL: [&str; 3] = ["<pad>", "<unk>", "<eos>"];

/// Writes `tokenizer.json` and `tokenizer_config.json` into `folder` (made if it is not there) and loads them.
/// Errors if a word is there twice or is not one word.
pub fn save_word_level(folder: &Path, words: &[String]) -> Result<Tokenizer> {
    let mut vocab = serde_json::Map::new();
    for (id, word) in SPECIAL.iter().copied().chain(words.iter().map(String::as_str)).enumerate() {
        if vocab.insert(word.to_owned(), json!(id)).is_some() {
            return Err(bad_words(format!("the word {word:?} is there twice")));
        }
    }
    let pre_tokenizer = pre_tokenizer()?;
    if let Some(word) = words.iter().find(|w| split(&pre_tokenizer, w) != [w.as_str()]) {
        return Err(bad_words(format!(
            "{word:?} is not one word: white space and punctuation separate words"
        )));
    }
    let added: Vec<Value> = SPECIAL.iter().enumerate().map(|(id, token)| added_token(id, token)).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": pre_tokenizer_json(), "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": SPECIAL[1]},
    });
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": false,
        "pad_token": SPECIAL[0], "unk_token": SPECIAL[1], "eos_token": SPECIAL[2],
    });
    fs::create_dir_all(folder).map_err(DataError::io(folder))?;
    write_json(&folder.join("tokenizer.json"), &tokenizer)?;
    write_json(&folder.join("tokenizer_config.json"), &config)?;
    Tokenizer::load(folder)
}

/// The distinct words of texts, in order of first use, cut as the word-level tokenizer cuts.
pub fn words_of<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<String>> {
    let pre_tokenizer = pre_tokenizer()?;
    let (mut seen, mut words) = (HashSet::new(), Vec::new());
    for text in texts {
        for word in split(&pre_tokenizer, text) {
            if seen.insert(word.clone()) {
                words.push(word);
            }
        }
    }
    Ok(words)
}

fn pre_tokenizer_json() -> Value {
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "WhitespaceSplit"}, {"type": "Punctuation", "behavior": "Isolated"},
    ]})
}

fn pre_tokenizer() -> Result<PreTokenizerWrapper> {
    serde_json::from_value(pre_tokenizer_json()).map_err(|e| bad_words(e.to_string()))
}

fn split(pre_tokenizer: &PreTokenizerWrapper, text: &str) -> Vec<String> {
    let mut parts = PreTokenizedString::from(text);
    match pre_tokenizer.pre_tokenize(&mut parts) {
        Ok(()) => parts
            .get_splits(OffsetReferential::Original, OffsetType::Byte)
            .into_iter()
            .map(|(word, _, _)| word.to_owned())
            .collect(),
        Err(_) => Vec::new(),
    }
}

fn added_token(id: usize, token: &str) -> Value {
    json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
           "special": true})
}

fn bad_words(reason: String) -> DataError {
    DataError::Config { setting: "word-level vocabulary", reason }
}

/// Writes beside the final name and renames, so that no reader sees half a file.
fn write_json(path: &Path, value: &Value) -> Result<()> {
    let part = path.with_extension("json.part");
    let text = serde_json::to_string_pretty(value).map_err(|e| bad_words(e.to_string()))?;
    fs::write(&part, text).map_err(DataError::io(&part))?;
    fs::rename(&part, path).map_err(DataError::io(path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::TempDir;
    use super::*;

    #[test]
    fn words_come_back() {
        let texts = ["Ada lives in Bern.", "Bern, in short."];
        let words = words_of(texts).unwrap();
        assert_eq!(words, ["Ada", "lives", "in", "Bern", ".", ",", "short"]);
        let dir = TempDir::new("words");
        let t = save_word_level(dir.path(), &words).unwrap();
        assert_eq!(t.vocab_size(), 3 + 7);
        assert_eq!(t.encode("Ada lives in Rome.").unwrap(), [3, 4, 5, 1, 7]);
        assert_eq!(t.decode(&[3, 4, 5, 6, 7, 2], true).unwrap(), "Ada lives in Bern .");
        assert_eq!((t.pad(), t.eos(), t.bos()), (Some(0), Some(2), None));
    }

    #[test]
    fn bad_lists_are_named() {
        let dir = TempDir::new("bad-words");
        let error = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|w| w.to_string()).collect();
            save_word_level(dir.path(), &words).unwrap_err().to_string()
        };
        assert!(error(&["a", "a"]).contains("\"a\" is there twice"));
        assert!(error(&["two words"]).contains("is not one word"));
        assert!(error(&["it's"]).contains("is not one word"));
        assert!(error(&["<eos>"]).contains("twice"));
    }
}
