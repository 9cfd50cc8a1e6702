//! Text of tokens as they come: what a token adds is known only with its neighbours (blanks, characters of several
//! tokens), so a few tokens before it are decoded along.

use crate::data::Tokenizer;
use crate::data::error::Result;

/// Tokens of context that are enough for any decoder.
const CONTEXT: usize = 6;

/// Turns tokens into pieces of text that add up to the text of all.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<i32>,
    /// First token that is decoded along.
    from: usize,
    /// Tokens whose text was handed out.
    done: usize,
}

impl<'a> TextStream<'a> {
    /// The text that follows `prompt`.
    pub fn new(tokenizer: &'a Tokenizer, prompt: &[i32]) -> TextStream<'a> {
        let tokens = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        TextStream { tokenizer, done: tokens.len(), from: 0, tokens }
    }

    /// What `token` adds; empty while a character is incomplete.
    ///
    /// # Errors
    /// If the tokenizer cannot decode the tokens.
    pub fn push(&mut self, token: i32) -> Result<String> {
        self.tokens.push(token);
        let text = self.pending()?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.from = self.done;
        self.done = self.tokens.len();
        Ok(text)
    }

    /// What is left at the end: the bytes of an incomplete character, as replacement characters.
    ///
    /// # Errors
    /// As [`TextStream::push`].
    pub fn finish(&mut self) -> Result<String> {
        let text = self.pending()?;
        self.done = self.tokens.len();
        Ok(text)
    }

    fn pending(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.tokens[self.from..self.done], true)?;
        let all = self.tokenizer.decode(&self.tokens[self.from..], true)?;
        Ok(all.get(before.len()..).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::data::testing::TempDir;
    use crate::data::{save_word_level, words_of};

    #[test]
    fn pieces_add_up_to_the_text() {
        let text = "Ada lives in Bern . Bern is small .";
        let dir = TempDir::new("stream");
        let tokenizer = save_word_level(dir.path(), &words_of([text]).unwrap()).unwrap();
        let tokens = tokenizer.encode(text).unwrap();
        for cut in 0..tokens.len() {
            let mut stream = TextStream::new(&tokenizer, &tokens[..cut]);
            let mut made: String = tokens[cut..].iter().map(|t| stream.push(*t).unwrap()).collect();
            made.push_str(&stream.finish().unwrap());
            let before = tokenizer.decode(&tokens[..cut], true).unwrap();
            assert_eq!(format!("{before}{made}"), text, "cut at {cut}");
        }
    }
}
