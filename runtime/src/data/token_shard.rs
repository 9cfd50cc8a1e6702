//! Token shards: documents that were tokenised before, in safetensors files that are mapped and not read.
//!
//! | tensor    | type       | shape   |                                                                             |
//! |-----------|------------|---------|-----------------------------------------------------------------------------|
//! | `offsets` | U64        | `[N+1]` | document `i` is `tokens[offsets[i]..offsets[i+1]]`; the first is 0, the last T |
//! | `tokens`  | U16 or U32 | `[T]`   | ids; U16 where the vocabulary has at most 65,536 tokens                     |
//! | `trained` | U8         | `[T]`   | 1 where the token is a target, 0 where it is context; absent: all are       |
//!
//! The metadata has `format` = `kfc-token-shard`, `version` = `1`, `vocab_size` and `tokenizer`, the tokenizer's
//! [fingerprint](Tokenizer::fingerprint). Documents are whole: row length, packing and what happens to long ones are
//! decided when they are read. Same documents, same bytes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::documents::IGNORE;
use super::error::{DataError, Result};
use super::intake::Tokenised;
use super::tokenizer::{Encoded, Tokenizer};
use crate::files::Written;
use crate::hf::header::Header;
use crate::hf::{FileDType, TensorOut, TensorSpec, write_safetensors};

const FORMAT: &str = "kfc-token-shard";

/// The content of a token shard.
#[derive(Clone, Debug)]
pub struct TokenShard<'a> {
    path: &'a Path,
    offsets: &'a [[u8; 8]],
    tokens: Ids<'a>,
    trained: Option<&'a [u8]>,
    tokenizer: Option<String>,
}

#[derive(Clone, Copy, Debug)]
enum Ids<'a> {
    U16(&'a [[u8; 2]]),
    U32(&'a [[u8; 4]]),
}

impl Ids<'_> {
    fn len(self) -> usize {
        match self {
            Ids::U16(ids) => ids.len(),
            Ids::U32(ids) => ids.len(),
        }
    }
}

impl<'a> TokenShard<'a> {
    /// Reads the header of a file's content; `path` is what errors name. Safe on any bytes.
    pub fn parse(bytes: &'a [u8], path: &'a Path) -> Result<TokenShard<'a>> {
        let wrong = |reason: String| DataError::Tokens { path: path.to_path_buf(), reason };
        let header = Header::from_file_bytes(bytes).map_err(wrong)?;
        let tensor = |name: &str| {
            let entry = header.tensors.get(name).filter(|e| e.dims.len() == 1);
            entry.map(|e| (e.dtype, &bytes[e.start..e.start + e.len]))
        };
        let offsets = match tensor("offsets") {
            Some((FileDType::U64 | FileDType::I64, data)) => data.as_chunks::<8>().0,
            _ => return Err(wrong("is no token shard: it needs `offsets` [N+1] in uint64".into())),
        };
        let tokens = match tensor("tokens") {
            Some((FileDType::U16, data)) => Ids::U16(data.as_chunks::<2>().0),
            Some((FileDType::U32 | FileDType::I32, data)) => Ids::U32(data.as_chunks::<4>().0),
            _ => return Err(wrong("is no token shard: it needs `tokens` [T] in uint16 or uint32".into())),
        };
        let trained = match tensor("trained") {
            Some((FileDType::U8 | FileDType::BOOL, data)) if data.len() == tokens.len() => Some(data),
            None if !header.tensors.contains_key("trained") => None,
            _ => return Err(wrong("`trained` must be uint8 and as long as `tokens`".into())),
        };
        let tokenizer = header.metadata.get("tokenizer").cloned();
        let shard = TokenShard { path, offsets, tokens, trained, tokenizer };
        if offsets.is_empty() || shard.offset(0) != 0 || shard.offset(shard.len()) != tokens.len() as u64 {
            return Err(wrong(format!(
                "`offsets` must go from 0 to {}, the length of `tokens`",
                tokens.len()
            )));
        }
        Ok(shard)
    }

    /// Refuses a shard that was made with another tokenizer, where both are known.
    pub fn check_tokenizer(&self, tokenizer: Option<&Tokenizer>) -> Result<()> {
        let (Some(theirs), Some(ours)) = (&self.tokenizer, tokenizer) else { return Ok(()) };
        if *theirs == format!("{:016x}", ours.fingerprint()) {
            return Ok(());
        }
        let reason = format!(
            "was made with another tokenizer than {}; make it again with `kfc data shard --tokenizer`",
            ours.path().display()
        );
        Err(DataError::Tokens { path: self.path.to_path_buf(), reason })
    }

    /// The number of documents.
    pub fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where document `index` begins in the tokens; at [`TokenShard::len`], where the last one ends.
    pub fn offset(&self, index: usize) -> u64 {
        self.offsets.get(index).map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes))
    }

    /// Tokens and labels of document `index`.
    ///
    /// # Errors
    /// If the offsets do not lie inside the tokens, in order.
    pub fn document(&self, index: usize) -> Result<Encoded> {
        let (start, end) = (self.offset(index), self.offset(index.saturating_add(1)));
        if start > end || end > self.tokens.len() as u64 {
            let reason =
                format!("its offsets {start} to {end} are not in order; the file is damaged, make it again");
            return Err(DataError::BadRow { place: self.place(index), reason });
        }
        Ok(self.encoded(start as usize..end as usize))
    }

    /// Document `index` as it is taken in.
    pub(crate) fn tokenised(&self, index: usize) -> Result<Tokenised> {
        let encoded = self.document(index)?;
        if encoded.tokens.is_empty() {
            let reason = "the document has no tokens; make the file again without it".to_owned();
            return Ok((self.place(index), Err(reason)));
        }
        let masked = encoded.labels.contains(&IGNORE);
        Ok((self.place(index), Ok((encoded, masked))))
    }

    fn place(&self, index: usize) -> String {
        format!("{}, document {index}", self.path.display())
    }

    fn encoded(&self, range: Range<usize>) -> Encoded {
        let tokens: Vec<i32> = match self.tokens {
            Ids::U16(ids) => ids[range.clone()].iter().map(|b| i32::from(u16::from_le_bytes(*b))).collect(),
            Ids::U32(ids) => ids[range.clone()].iter().map(|b| i32::from_le_bytes(*b)).collect(),
        };
        let label = |(token, trained): (&i32, &u8)| if *trained == 0 { IGNORE } else { *token };
        let labels = match self.trained {
            Some(trained) => tokens.iter().zip(&trained[range]).map(label).collect(),
            None => tokens.clone(),
        };
        Encoded { tokens, labels }
    }
}

/// Documents on their way into a token shard; held in memory until the shard is written.
#[derive(Clone, Debug)]
pub struct TokenShardWriter {
    vocab_size: usize,
    tokenizer: u64,
    offsets: Vec<u64>,
    tokens: Vec<u32>,
    trained: Vec<u8>,
}

impl TokenShardWriter {
    /// An empty shard of documents of this tokenizer.
    pub fn new(tokenizer: &Tokenizer) -> TokenShardWriter {
        TokenShardWriter {
            vocab_size: tokenizer.vocab_size(),
            tokenizer: tokenizer.fingerprint(),
            offsets: vec![0],
            tokens: Vec::new(),
            trained: Vec::new(),
        }
    }

    /// Appends a document.
    pub fn push(&mut self, document: &Encoded) {
        self.tokens.extend(document.tokens.iter().map(|&t| t as u32));
        self.trained.extend(document.labels.iter().map(|&l| u8::from(l != IGNORE)));
        self.offsets.push(self.tokens.len() as u64);
    }

    /// Documents so far.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens so far.
    pub fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Bytes that the tensors take so far.
    pub fn bytes(&self) -> u64 {
        let id = if self.narrow() { 2 } else { 4 };
        (self.tokens.len() * id + self.masked() as usize * self.trained.len() + 8 * self.offsets.len()) as u64
    }

    fn narrow(&self) -> bool {
        self.vocab_size <= 1 << 16
    }

    fn masked(&self) -> bool {
        self.trained.contains(&0)
    }

    /// Writes the shard, complete or not at all, and starts the next.
    pub fn write(&mut self, path: &Path) -> crate::files::Result<Written> {
        let count = self.tokens.len();
        let dtype = if self.narrow() { FileDType::U16 } else { FileDType::U32 };
        let (tokens, narrow) = (&self.tokens, self.narrow());
        let mut tensors = vec![
            TensorOut::bytes(
                "offsets",
                FileDType::U64,
                &[self.offsets.len()],
                bytemuck::cast_slice(&self.offsets),
            ),
            TensorOut::new(TensorSpec::new("tokens", dtype, [count]), move |w| {
                tokens.chunks(1 << 16).try_for_each(|ids| {
                    if narrow {
                        let ids: Vec<u16> = ids.iter().map(|&t| t as u16).collect();
                        w.write_all(bytemuck::cast_slice(&ids))
                    } else {
                        w.write_all(bytemuck::cast_slice(ids))
                    }
                })
            }),
        ];
        if self.masked() {
            tensors.push(TensorOut::bytes("trained", FileDType::U8, &[count], &self.trained));
        }
        let metadata = BTreeMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("version".to_owned(), "1".to_owned()),
            ("vocab_size".to_owned(), self.vocab_size.to_string()),
            ("tokenizer".to_owned(), format!("{:016x}", self.tokenizer)),
        ]);
        let written = write_safetensors(path, tensors, &metadata)?;
        self.offsets.truncate(1);
        self.tokens.clear();
        self.trained.clear();
        Ok(written)
    }
}
