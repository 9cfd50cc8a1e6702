//! The tokenizer of a model folder: `tokenizer.json` and the ids that the files beside it name.
//!
//! Special tokens are handled here and not by the post-processor of `tokenizer.json`: BOS stands in front only if the
//! tokenizer puts it there (or `add_bos_token` says so), and whoever makes training rows appends EOS.
//! `tokenizer_class` is never read: the released configs of this family name wrong ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

use super::chat::{ChatStyle, Message, Piece};
use super::error::{DataError, Result};
use crate::files::Xxh64;

/// Files above this size are tokenised in pieces, in parallel, where that changes nothing.
const PIECE_BYTES: usize = 1 << 16;

/// A tokenizer and its special ids.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    vocab_size: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    stops: Vec<u32>,
    adds_bos: bool,
    cuts_at_newline: bool,
    style: ChatStyle,
    eos_text: String,
    fingerprint: OnceLock<u64>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({}, {} tokens)", self.path.display(), self.vocab_size)
    }
}

/// Token ids, and for each token the bytes `start..end` of the text that it stands for.
pub type WithOffsets = (Vec<i32>, Vec<(usize, usize)>);

/// Token ids of a text with what of it is trained.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub tokens: Vec<i32>,
    /// For each token the id itself if it is trained, else -100.
    pub labels: Vec<i32>,
}

impl Tokenizer {
    /// Loads the tokenizer of a model folder (or a `tokenizer.json` itself, with the files beside it).
    ///
    /// The special ids come from `tokenizer_config.json`, then `special_tokens_map.json` (both by the token's text), then
    /// `config.json`, then `generation_config.json`; the first that names a token of the vocabulary wins.
    pub fn load(path: &Path) -> Result<Tokenizer> {
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
        let folder = file.parent().map(Path::to_path_buf).unwrap_or_default();
        if !file.exists() {
            return Err(DataError::Tokenizer {
                path: file,
                reason:
                    "there is no such file; a model folder needs its tokenizer.json (or set data.tokenizer)"
                        .into(),
            });
        }
        let inner = tokenizers::Tokenizer::from_file(&file).map_err(|e| DataError::Tokenizer {
            path: file.clone(),
            reason: format!("not a tokenizer that can be read: {e}"),
        })?;
        let read = |name: &str| read_json(&folder.join(name));
        let [config, generation] = [read("config.json")?, read("generation_config.json")?];
        let by_text = [read("tokenizer_config.json")?, read("special_tokens_map.json")?];
        Ok(Tokenizer::build(inner, file, &by_text, &[config, generation]))
    }

    /// Loads the `vocab.txt` of a BERT folder: word pieces, lower case unless `tokenizer_config.json` says otherwise.
    pub fn load_word_piece(folder: &Path) -> Result<Tokenizer> {
        use tokenizers::models::wordpiece::WordPiece;
        use tokenizers::normalizers::BertNormalizer;
        use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
        use tokenizers::processors::bert::BertProcessing;
        let file = folder.join("vocab.txt");
        let failed = |reason: String| DataError::Tokenizer { path: file.clone(), reason };
        let model = WordPiece::from_file(&file.to_string_lossy())
            .unk_token("[UNK]".into())
            .build()
            .map_err(|e| failed(format!("no list of word pieces that can be read: {e}")))?;
        let config = read_json(&folder.join("tokenizer_config.json"))?;
        let is = |key: &str, default: bool| config[key].as_bool().unwrap_or(default);
        let mut inner = tokenizers::Tokenizer::new(model);
        // Setting a normaliser has nothing to check and cannot fail.
        let _ = inner.with_normalizer(Some(BertNormalizer::new(
            true,
            is("tokenize_chinese_chars", true),
            config["strip_accents"].as_bool(),
            is("do_lower_case", true),
        )));
        inner.with_pre_tokenizer(Some(BertPreTokenizer));
        let id = |token: &str| {
            inner
                .token_to_id(token)
                .map(|id| (token.to_string(), id))
                .ok_or_else(|| failed(format!("it has no `{token}`")))
        };
        let (sep, cls) = (id("[SEP]")?, id("[CLS]")?);
        inner.with_post_processor(Some(BertProcessing::new(sep, cls)));
        let model = read_json(&folder.join("config.json"))?;
        Ok(Tokenizer::build(inner, file.clone(), &[config, Value::Null], &[model, Value::Null]))
    }

    fn build(
        mut inner: tokenizers::Tokenizer,
        path: PathBuf,
        by_text: &[Value; 2],
        by_id: &[Value; 2],
    ) -> Tokenizer {
        // Some files carry the truncation or padding of whoever saved them.
        inner.with_padding(None);
        // Taking truncation away has nothing to check and cannot fail.
        let _ = inner.with_truncation(None);
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        let id = |text_key: &str, id_key: &str| {
            let named =
                by_text.iter().filter_map(|v| token_text(&v[text_key])).find_map(|t| inner.token_to_id(&t));
            named.or_else(|| {
                by_id.iter().flat_map(|v| ids(&v[id_key])).find(|&i| inner.id_to_token(i).is_some())
            })
        };
        let (bos, eos, pad) = (
            id("bos_token", "bos_token_id"),
            id("eos_token", "eos_token_id"),
            id("pad_token", "pad_token_id"),
        );
        let mut stops: Vec<u32> =
            eos.into_iter().chain(by_id.iter().flat_map(|v| ids(&v["eos_token_id"]))).collect();
        stops.sort_unstable();
        stops.dedup();
        let first = inner.encode_fast("a", true).ok().and_then(|e| e.get_ids().first().copied());
        let adds_bos = match by_text[0]["add_bos_token"].as_bool() {
            Some(said) => said && bos.is_some(),
            None => bos.is_some() && first == bos,
        };
        let ids_of =
            |text: &str| inner.encode_fast(text, false).map(|e| e.get_ids().to_vec()).unwrap_or_default();
        let cuts_at_newline = ids_of("ab.\ncd") == [ids_of("ab.\n"), ids_of("cd")].concat()
            && ids_of("ab\ncd") == [ids_of("ab\n"), ids_of("cd")].concat();
        let style = ChatStyle::choose(|token| inner.token_to_id(token).is_some());
        let eos_text = eos.and_then(|id| inner.id_to_token(id)).unwrap_or_default();
        Tokenizer {
            inner,
            path,
            vocab_size,
            bos,
            eos,
            pad,
            stops,
            adds_bos,
            cuts_at_newline,
            style,
            eos_text,
            fingerprint: OnceLock::new(),
        }
    }

    /// The file that this tokenizer was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One more than the largest token id (a model's vocabulary may be padded beyond it).
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// A number that changes with any token of the vocabulary, and not with how the files are written.
    pub fn fingerprint(&self) -> u64 {
        *self.fingerprint.get_or_init(|| {
            let mut hash = Xxh64::new();
            for id in 0..self.vocab_size as u32 {
                hash.update(&id.to_le_bytes());
                hash.update(self.token(id).unwrap_or_default().as_bytes());
            }
            hash.finish()
        })
    }

    /// The beginning-of-text id, if the files name one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The end-of-text id, if the files name one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The padding id, if the files name one.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// The ids at which generation stops: EOS and what `config.json` and `generation_config.json` list. Sorted.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stops
    }

    /// Whether [`Tokenizer::encode`] puts BOS in front.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// How conversations are written for this vocabulary.
    pub fn chat_style(&self) -> ChatStyle {
        self.style
    }

    /// The text of the end-of-text token; empty if there is none.
    pub fn eos_text(&self) -> &str {
        &self.eos_text
    }

    /// The token of an id.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text under which the model is asked to continue a conversation.
    pub fn chat_prompt(&self, messages: &[Message]) -> String {
        self.style.prompt(messages, &self.eos_text)
    }

    /// Token ids of a text, with BOS in front if the tokenizer adds it and it is not there. Never appends EOS.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>> {
        let mut tokens = Vec::new();
        self.put_bos(text, &mut tokens);
        for part in self.ids_in_pieces(text)? {
            tokens.extend_from_slice(&part);
        }
        Ok(tokens)
    }

    /// Token ids of a text, nothing added.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<i32>> {
        self.encode_as(text, false)
    }

    /// Token ids of a text with the special tokens that the tokenizer's own post-processor puts around it.
    pub fn encode_special(&self, text: &str) -> Result<Vec<i32>> {
        self.encode_as(text, true)
    }

    fn encode_as(&self, text: &str, special: bool) -> Result<Vec<i32>> {
        let encoding = self.inner.encode_fast(text, special).map_err(|e| self.failed(&e))?;
        Ok(encoding.get_ids().iter().map(|&id| id as i32).collect())
    }

    /// Token ids of a text without BOS, each with the bytes `start..end` of the text that it stands for.
    pub fn encode_with_offsets(&self, text: &str) -> Result<WithOffsets> {
        let encoding = self.inner.encode(text, false).map_err(|e| self.failed(&e))?;
        Ok((encoding.get_ids().iter().map(|&id| id as i32).collect(), encoding.get_offsets().to_vec()))
    }

    /// Tokens and labels of a row. The text is tokenised as a whole, so that tokens are those that inference would see;
    /// a token is trained if any byte of it lies in a trained piece. With `eos`, EOS follows unless it is there; it is
    /// trained if the last piece is.
    pub fn encode_row(&self, pieces: &[Piece], eos: bool) -> Result<Encoded> {
        let mut out = match pieces {
            [piece] if piece.train => {
                let tokens = self.encode(&piece.text)?;
                Encoded { labels: tokens.clone(), tokens }
            }
            _ => self.encode_masked(pieces)?,
        };
        if let (true, Some(id)) = (eos, self.eos)
            && out.tokens.last() != Some(&(id as i32))
        {
            out.tokens.push(id as i32);
            out.labels.push(if pieces.last().is_some_and(|p| p.train) { id as i32 } else { -100 });
        }
        Ok(out)
    }

    fn encode_masked(&self, pieces: &[Piece]) -> Result<Encoded> {
        let text: String = pieces.iter().map(|p| p.text.as_str()).collect();
        let mut out = Encoded::default();
        self.put_bos(&text, &mut out.tokens);
        out.labels.resize(out.tokens.len(), -100);
        let (tokens, offsets) = self.encode_with_offsets(&text)?;
        let mut trained: Vec<(usize, usize)> = Vec::new();
        let mut at = 0;
        for piece in pieces {
            if piece.train {
                trained.push((at, at + piece.text.len()));
            }
            at += piece.text.len();
        }
        let mut next = 0;
        for (token, (start, end)) in tokens.into_iter().zip(offsets) {
            while next < trained.len() && trained[next].1 <= start {
                next += 1;
            }
            let hit = next < trained.len() && trained[next].0 < end;
            out.tokens.push(token);
            out.labels.push(if hit { token } else { -100 });
        }
        Ok(out)
    }

    /// The text of token ids.
    pub fn decode(&self, ids: &[i32], skip_special: bool) -> Result<String> {
        let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        self.inner.decode(&ids, skip_special).map_err(|e| self.failed(&e))
    }

    /// Checks that every id that both know is the same token in both; the first that is not is the error.
    pub fn same_vocabulary(&self, other: &Tokenizer) -> Result<()> {
        for id in 0..self.vocab_size.min(other.vocab_size) as u32 {
            if let (Some(a_token), Some(b_token)) = (self.token(id), other.token(id))
                && a_token != b_token
            {
                let (a, b) = (self.path.clone(), other.path.clone());
                return Err(DataError::Vocabulary { id, a_token, b_token, a, b });
            }
        }
        Ok(())
    }

    fn put_bos(&self, text: &str, tokens: &mut Vec<i32>) {
        if let (true, Some(bos)) = (self.adds_bos, self.bos) {
            let there = self.token(bos).is_some_and(|t| !t.is_empty() && text.starts_with(&t));
            if !there {
                tokens.push(bos as i32);
            }
        }
    }

    /// Token ids of a text, in pieces that joined are what the whole text gives.
    fn ids_in_pieces(&self, text: &str) -> Result<Vec<Vec<i32>>> {
        use rayon::prelude::*;
        let pieces = if self.cuts_at_newline { cut_at_newlines(text, PIECE_BYTES) } else { vec![text] };
        let encode = |piece: &&str| {
            let encoding = self.inner.encode_fast(*piece, false).map_err(|e| self.failed(&e))?;
            Ok(encoding.get_ids().iter().map(|&id| id as i32).collect())
        };
        if pieces.len() == 1 {
            pieces.iter().map(encode).collect()
        } else {
            pieces.par_iter().map(encode).collect()
        }
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> DataError {
        DataError::Tokenizer { path: self.path.clone(), reason: error.to_string() }
    }
}

/// Cuts after single newlines between plain ASCII words, about every `size` bytes. Byte-level and word-level tokenizers
/// never join text over such a place; those that mark the start of a text do, which [`Tokenizer`] tests when loading.
fn cut_at_newlines(text: &str, size: usize) -> Vec<&str> {
    let bytes = text.as_bytes();
    let (mut pieces, mut start, mut at) = (Vec::new(), 0, size);
    while at + 1 < bytes.len() {
        let Some(found) = bytes[at..bytes.len() - 1].iter().position(|&b| b == b'\n') else { break };
        let newline = at + found;
        let plain = |b: u8| b.is_ascii_alphanumeric();
        if (plain(bytes[newline - 1]) || matches!(bytes[newline - 1], b'.' | b','))
            && plain(bytes[newline + 1])
        {
            pieces.push(&text[start..=newline]);
            start = newline + 1;
            at = start + size;
        } else {
            at = newline + 1;
        }
    }
    pieces.push(&text[start..]);
    pieces
}

/// A JSON file, or null if there is none.
fn read_json(path: &Path) -> Result<Value> {
    if !path.exists() {
        return Ok(Value::Null);
    }
    let text = fs::read(path).map_err(DataError::io(path))?;
    serde_json::from_slice(&text)
        .map_err(|e| DataError::Tokenizer { path: path.to_path_buf(), reason: format!("not JSON: {e}") })
}

/// `"eos_token"` is a string or an object with `content`.
fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// `"eos_token_id"` is a number or a list of them.
fn ids(value: &Value) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(one).collect(),
        other => one(other).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::TempDir;
    use super::super::word_level::save_word_level;
    use super::*;

    fn small() -> (TempDir, Tokenizer) {
        let dir = TempDir::new("tokenizer");
        let tokenizer = save_word_level(dir.path(), &["a", "b", "c", "."].map(String::from)).unwrap();
        (dir, tokenizer)
    }

    #[test]
    fn masks_follow_pieces() {
        let (_dir, t) = small();
        let eos = t.eos().unwrap() as i32;
        let id = |w: &str| t.id(w).unwrap() as i32;
        let row = t.encode_row(&[Piece::new("a b", false), Piece::new(" c.", true)], true).unwrap();
        assert_eq!(row.tokens, [id("a"), id("b"), id("c"), id("."), eos]);
        assert_eq!(row.labels, [-100, -100, id("c"), id("."), eos]);
        let row = t.encode_row(&[Piece::new("a", true), Piece::new(" b", false)], true).unwrap();
        assert_eq!(row.labels, [id("a"), -100, -100]);
    }

    #[test]
    fn eos_in_the_text_is_the_token_and_not_repeated() {
        let (_dir, t) = small();
        let row = t.encode_row(&[Piece::new(format!("a{}", t.eos_text()), true)], true).unwrap();
        assert_eq!(row.tokens, [t.id("a").unwrap() as i32, t.eos().unwrap() as i32]);
        assert_eq!(t.decode(&row.tokens, true).unwrap(), "a");
    }

    /// A byte-level BPE without merges: a token a byte.
    fn byte_level(dir: &TempDir) -> Tokenizer {
        use tokenizers::pre_tokenizers::byte_level::ByteLevel;
        let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
        alphabet.sort_unstable();
        let vocab: serde_json::Map<String, Value> =
            alphabet.iter().enumerate().map(|(i, c)| (c.to_string(), i.into())).collect();
        let byte_level = serde_json::json!(
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
        let markers = ["<|im_start|>", "<|im_end|>"].iter().enumerate().map(|(i, token)| {
            serde_json::json!(
            {"id": 256 + i, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true})
        });
        let json = serde_json::json!({"version": "1.0", "added_tokens": markers.collect::<Vec<_>>(),
            "pre_tokenizer": byte_level, "decoder": byte_level,
            "model": {"type": "BPE", "vocab": vocab, "merges": []}});
        dir.file("tokenizer.json", json.to_string());
        dir.file("config.json", r#"{"eos_token_id": 257}"#);
        Tokenizer::load(dir.path()).unwrap()
    }

    #[test]
    fn byte_level_masks_and_markers() {
        let dir = TempDir::new("bytes");
        let t = byte_level(&dir);
        assert_eq!(
            (t.chat_style(), t.eos_text(), t.cuts_at_newline),
            (ChatStyle::ChatMl, "<|im_end|>", true)
        );
        let row = serde_json::json!({"messages": [{"role": "user", "content": "é?"}, {"role": "assistant", "content": "naïve ß"}]});
        let row = super::super::rows::parse_row(&row, t.chat_style(), t.eos_text()).unwrap();
        let encoded = t.encode_row(&row.pieces, row.eos).unwrap();
        let trained: Vec<i32> = encoded.labels.iter().copied().filter(|&l| l != -100).collect();
        assert_eq!(t.decode(&trained, false).unwrap(), "naïve ß<|im_end|>");
        assert_eq!((trained.len(), trained.last()), ("naïve ß".len() + 1, Some(&257)));
        assert_eq!(encoded.tokens.iter().filter(|&&id| id == 256).count(), 2);
        assert_eq!(t.encode("naïve").unwrap().len(), "naïve".len());
    }

    #[test]
    fn text_is_cut_only_where_the_tokenizer_allows_it() {
        let dir = TempDir::new("metaspace");
        let vocab: serde_json::Map<String, Value> = ["<unk>", "▁", "a", "b", "c", "d", ".", "\n"]
            .iter()
            .enumerate()
            .map(|(i, c)| (c.to_string(), i.into()))
            .collect();
        let json = serde_json::json!({"version": "1.0", "added_tokens": [],
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false},
            "model": {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>"}});
        dir.file("tokenizer.json", json.to_string());
        assert!(!Tokenizer::load(dir.path()).unwrap().cuts_at_newline);
    }

    #[test]
    fn bos_only_where_the_files_say_so() {
        let (dir, t) = small();
        assert!(!t.adds_bos());
        let config = r#"{"bos_token": {"content": "c"}, "eos_token": "b", "add_bos_token": true}"#;
        fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        fs::write(
            dir.path().join("generation_config.json"),
            r#"{"eos_token_id": [3, 1], "pad_token_id": 0}"#,
        )
        .unwrap();
        let t = Tokenizer::load(dir.path()).unwrap();
        let id = |w: &str| t.id(w).unwrap() as i32;
        assert_eq!(t.encode("a b").unwrap(), [id("c"), id("a"), id("b")]);
        assert_eq!(t.encode("c b").unwrap(), [id("c"), id("b")]);
        assert_eq!((t.eos(), t.pad()), (t.id("b"), Some(0)));
        let mut stops = vec![1, 3, t.id("b").unwrap()];
        stops.sort();
        stops.dedup();
        assert_eq!(t.stop_ids(), stops);
    }

    #[test]
    fn another_vocabulary_is_named() {
        let (_dir, a) = small();
        let dir = TempDir::new("other");
        let b = save_word_level(dir.path(), &["a", "x", "c", "d", "e"].map(String::from)).unwrap();
        a.same_vocabulary(&a).unwrap();
        let error = a.same_vocabulary(&b).unwrap_err().to_string();
        assert!(
            error.contains(&format!("token {} is \"b\"", a.id("b").unwrap())) && error.contains("\"x\""),
            "{error}"
        );
    }

    #[test]
    fn a_missing_or_broken_file_is_named() {
        let dir = TempDir::new("broken");
        assert!(
            Tokenizer::load(dir.path())
                .unwrap_err()
                .to_string()
                .contains("tokenizer.json: there is no such file")
        );
        fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        assert!(Tokenizer::load(dir.path()).unwrap_err().to_string().contains("not a tokenizer"));
    }

    #[test]
    fn cuts_join_to_the_whole() {
        let text = "ab\ncd ef.\n\ngh\nij\n kl,\nmn\n".repeat(20);
        let pieces = cut_at_newlines(&text, 10);
        assert!(pieces.len() > 5 && pieces.concat() == text);
        for piece in &pieces[..pieces.len() - 1] {
            assert!(piece.ends_with('\n') && !piece.ends_with("\n\n"), "{piece:?}");
        }
        let (_dir, t) = small();
        assert!(t.cuts_at_newline);
        let text = "a b.\nc a\n\n".repeat(120_000);
        let (whole, _) = t.encode_with_offsets(&text).unwrap();
        assert_eq!(t.encode(&text).unwrap(), whole);
    }
}
