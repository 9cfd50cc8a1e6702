//! Texts as an encoder reads them: token ids between the special tokens of its tokenizer.

use crate::data::{DataError, Tokenizer};
use crate::error::{Result, RunError};
use std::path::Path;

/// What becomes of a text with more tokens than the model has positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Long {
    /// Its beginning is read.
    Truncate,
    /// It is cut into pieces that are read one by one.
    Windows,
}

/// The tokenizer of an encoder with what stands around every text.
pub struct Texts {
    tokenizer: Tokenizer,
    before: Vec<i32>,
    after: Vec<i32>,
}

impl Texts {
    /// The tokenizer of a model folder: its `tokenizer.json`, or for BERT its `vocab.txt`.
    ///
    /// # Errors
    /// If neither is there or can be read.
    pub fn open(folder: &Path) -> Result<Texts> {
        let tokenizer = match (folder.join("tokenizer.json").is_file(), folder.join("vocab.txt").is_file()) {
            (true, _) => Tokenizer::load(folder)?,
            (false, true) => Tokenizer::load_word_piece(folder)?,
            (false, false) => {
                return Err(RunError::Input(format!(
                    "{} has neither tokenizer.json nor vocab.txt, which text needs; copy it there from the model's \
                     publisher",
                    folder.display()
                )));
            }
        };
        let (before, after) = surroundings(&tokenizer)?;
        Ok(Texts { tokenizer, before, after })
    }

    /// Token ids of a text in pieces of at most `longest` tokens, one piece unless it is longer and `long` asks for
    /// windows; and whether it was longer.
    ///
    /// # Errors
    /// If the tokenizer fails, or `longest` leaves no room beside the special tokens.
    pub fn encode(&self, text: &str, longest: usize, long: Long) -> Result<(Vec<Vec<i32>>, bool)> {
        let room = longest.saturating_sub(self.before.len() + self.after.len());
        if room == 0 {
            return Err(RunError::Input(format!(
                "{longest} tokens leave no room for text beside the {} special tokens of {}",
                self.before.len() + self.after.len(),
                self.tokenizer.path().display()
            )));
        }
        let tokens = self.tokenizer.encode_plain(text)?;
        let piece = |tokens: &[i32]| [&self.before, tokens, &self.after].concat();
        let is_long = tokens.len() > room;
        let pieces = match long {
            Long::Windows if is_long => tokens.chunks(room).map(piece).collect(),
            _ => vec![piece(&tokens[..tokens.len().min(room)])],
        };
        Ok((pieces, is_long))
    }
}

/// What the tokenizer puts before and after a text.
fn surroundings(tokenizer: &Tokenizer) -> Result<(Vec<i32>, Vec<i32>)> {
    let text = "a";
    let (plain, whole) = (tokenizer.encode_plain(text)?, tokenizer.encode_special(text)?);
    let at = whole.windows(plain.len().max(1)).position(|w| w == plain);
    match at {
        Some(at) if !plain.is_empty() => Ok((whole[..at].to_vec(), whole[at + plain.len()..].to_vec())),
        _ => Err(DataError::Tokenizer {
            path: tokenizer.path().to_path_buf(),
            reason: "the special tokens around a text cannot be told from the text".into(),
        }
        .into()),
    }
}
