//! Byte-level BPE tokenizers learned from text (Sennrich et al. 2016; bytes as in GPT-2), for models trained from scratch.
//!
//! Ids: `<pad>` 0, `<bos>` 1, `<eos>` 2, then the 256 bytes, then merges by frequency. Nothing is ever unknown.

use std::path::Path;

use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, TokenizerBuilder};

use super::chat::ChatStyle;
use super::error::{DataError, Result};
use super::rows::parse_row;
use super::source::{Format, JsonRows, find, read_text};
use super::tokenizer::Tokenizer;
use crate::files::{AtomicDir, FileError, write_json};

const SPECIAL: [&str; 3] = ["<pad>", "<bos>", "<eos>"];
/// The smallest vocabulary: special tokens and bytes.
pub const MIN_VOCAB: usize = 256 + SPECIAL.len();

/// Learns a vocabulary of at most `vocab` tokens from text and jsonl files and writes `tokenizer.json` and
/// `tokenizer_config.json` to the new folder `out`. The same files give the same tokenizer.
///
/// # Errors
/// If a file cannot be read, there is no text, or `vocab` is below [`MIN_VOCAB`].
pub fn train_byte_level(files: &[std::path::PathBuf], vocab: usize, out: &Path) -> Result<Tokenizer> {
    let config = |setting, reason: String| DataError::Config { setting, reason };
    if vocab < MIN_VOCAB {
        return Err(config(
            "--vocab-size",
            format!("{vocab} is below {MIN_VOCAB}, the bytes and special tokens"),
        ));
    }
    let texts = texts(files)?;
    if texts.iter().all(String::is_empty) {
        return Err(config("files", "there is no text in them".into()));
    }
    let failed = |e: Box<dyn std::error::Error + Send + Sync>| config("tokenizer", e.to_string());
    let special: Vec<AddedToken> = SPECIAL.iter().map(|t| AddedToken::from(*t, true)).collect();
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(vocab)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(special)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer =
        TokenizerBuilder::<_, tokenizers::NormalizerWrapper, _, tokenizers::PostProcessorWrapper, _>::new()
            .with_model(BPE::default())
            .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
            .with_decoder(Some(ByteLevelDecoder::default()))
            .build()
            .map_err(failed)?;
    tokenizer.train(&mut trainer, texts.iter()).map_err(failed)?;

    let file = |e: FileError| match e {
        FileError::DiskFull { path, reason, .. } => DataError::Io { path, source: reason },
        other => config("tokenizer", other.to_string()),
    };
    crate::hf::folder::require_free(out).map_err(file)?;
    let dir = AtomicDir::create(out).map_err(file)?;
    let text = tokenizer.to_string(true).map_err(failed)?;
    let path = dir.path().join("tokenizer.json");
    std::fs::write(&path, text).map_err(DataError::io(&path))?;
    let settings = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": false, "pad_token": SPECIAL[0],
        "bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "clean_up_tokenization_spaces": false,
    });
    write_json(&dir.path().join("tokenizer_config.json"), &settings).map_err(file)?;
    dir.commit().map_err(file)?;
    Tokenizer::load(out)
}

/// The texts of text and jsonl files; of a row all pieces, trained or not.
fn texts(files: &[std::path::PathBuf]) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for source in find(files, None)? {
        match source.format {
            Format::Text => texts.extend(read_text(&source.path)?.split_inclusive('\n').map(String::from)),
            Format::Jsonl => {
                let bytes = std::fs::read(&source.path).map_err(DataError::io(&source.path))?;
                let name = source.path.display().to_string();
                let rows = JsonRows::new(&bytes, &name);
                for i in 0..rows.len() {
                    let (place, value) = rows.row(i);
                    let row = value.and_then(|v| parse_row(&v, ChatStyle::Plain, ""));
                    let row = row.map_err(|reason| DataError::BadRow { place, reason })?;
                    texts.push(row.pieces.into_iter().map(|p| p.text).collect());
                }
            }
            Format::Tokens | Format::WebDataset => {
                let reason = format!("{} is no text; name .txt and .jsonl files", source.path.display());
                return Err(DataError::Config { setting: "files", reason });
            }
        }
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::TempDir;
    use super::*;

    #[test]
    fn learns_merges_and_round_trips() {
        let dir = TempDir::new("bytes");
        let text = dir.path().join("a.txt");
        std::fs::write(&text, "the cat and the dog and the bird\n".repeat(20)).unwrap();
        let t = train_byte_level(std::slice::from_ref(&text), 300, &dir.path().join("tok")).unwrap();
        assert!(t.vocab_size() > MIN_VOCAB && t.vocab_size() <= 300, "{}", t.vocab_size());
        let ids = t.encode("the cat, naïve 中文\n").unwrap();
        assert!(ids.len() < "the cat, naïve 中文\n".len());
        assert_eq!(t.decode(&ids, true).unwrap(), "the cat, naïve 中文\n");
        assert_eq!((t.pad(), t.bos(), t.eos()), (Some(0), Some(1), Some(2)));
        let again = train_byte_level(std::slice::from_ref(&text), 300, &dir.path().join("tok2")).unwrap();
        again.same_vocabulary(&t).unwrap();
        let err = train_byte_level(&[text], 100, &dir.path().join("tok3")).unwrap_err().to_string();
        assert!(err.contains("259"), "{err}");
    }
}
