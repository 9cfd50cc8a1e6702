//! Blocks: the files of a data set cut into pieces of about equal size, each of whole rows.
//!
//! A block is what is read, tokenised and packed at once, what the order of an epoch is an order of, and what ranks share
//! out. Where the cuts are depends on the files and `seq_len` alone. No row is read to find them: lines belong to the
//! piece that they begin in, samples and documents are found by their headers and offsets.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use super::super::error::{DataError, Result};
use super::super::source::{Format, Source, begins_as_array};
use super::super::token_file::{Layout, map};
use super::super::token_shard::TokenShard;
use super::super::tokenizer::Tokenizer;
use super::super::webdataset::{NO_SAMPLES, blocks};
use crate::files::Xxh64;
use crate::hf::header::Header;

/// Rows that a block should fill, so that little is lost where it ends.
const ROWS: u64 = 64;
/// Bytes of text that a token stands for, about.
const TOKEN_BYTES: u64 = 4;
/// The smallest block of text.
const LEAST: u64 = 64 << 10;
/// Bytes at either end of a file by which it is recognised.
const PRINTED: usize = 64 << 10;

/// A piece of a file: bytes of text and archives, documents of token shards, rows of token files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) file: u32,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// A file of the data set.
#[derive(Clone, Debug)]
pub(crate) struct Shard {
    pub(crate) source: Source,
    pub(crate) bytes: u64,
    /// A number that stands for its length and both its ends.
    pub(crate) print: u64,
}

/// All blocks, in the order of the files.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blocks {
    spans: Vec<Span>,
    /// Ends of the blocks in `spans`.
    ends: Vec<u32>,
}

impl Blocks {
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn spans(&self, block: usize) -> &[Span] {
        let start = if block == 0 { 0 } else { self.ends[block - 1] as usize };
        &self.spans[start..self.ends[block] as usize]
    }
}

/// Length and fingerprint of each file.
pub(crate) fn shards(sources: Vec<Source>) -> Result<Vec<Shard>> {
    let print = |source: Source| {
        let (bytes, print) = fingerprint(&source.path).map_err(DataError::io(&source.path))?;
        if bytes == 0 {
            let reason = "the file is empty; fetch it again, or leave it out".into();
            return Err(DataError::BadRow { place: source.path.display().to_string(), reason });
        }
        Ok(Shard { source, bytes, print })
    };
    sources.into_par_iter().map(print).collect()
}

fn fingerprint(path: &Path) -> std::io::Result<(u64, u64)> {
    use std::io::{Seek, SeekFrom};
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut hash = Xxh64::new();
    hash.update(&bytes.to_le_bytes());
    let mut ends = Vec::with_capacity(PRINTED);
    file.by_ref().take(PRINTED as u64).read_to_end(&mut ends)?;
    hash.update(&ends);
    if bytes > PRINTED as u64 {
        ends.clear();
        file.seek(SeekFrom::End(-(PRINTED as i64)))?;
        file.read_to_end(&mut ends)?;
        hash.update(&ends);
    }
    Ok((bytes, hash.finish()))
}

/// What becomes of text files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Texts {
    /// They are cut at line breaks.
    Cut,
    /// Each is one piece.
    Whole,
}

/// Cuts files into blocks for rows of `seq_len`. `layout` is that of token files.
pub(crate) fn cut(
    shards: &[Shard],
    layout: Layout,
    seq_len: usize,
    tokenizer: Option<&Tokenizer>,
    texts: Texts,
) -> Result<Blocks> {
    let tokens = ROWS * seq_len as u64;
    let target = match (shards.first().map(|s| s.source.format), layout) {
        (Some(Format::Tokens), Layout::Rows) => ROWS,
        (Some(Format::Tokens), Layout::Documents) => tokens,
        _ => (tokens * TOKEN_BYTES).max(LEAST),
    };
    let cuts: Vec<Vec<(Span, u64)>> = (0..shards.len())
        .into_par_iter()
        .map(|file| pieces(&shards[file], file as u32, layout, target, seq_len, tokenizer, texts))
        .collect::<Result<_>>()?;
    let (mut blocks, mut weight) = (Blocks::default(), 0);
    for (span, size) in cuts.into_iter().flatten() {
        blocks.spans.push(span);
        weight += size;
        if weight >= target {
            blocks.ends.push(blocks.spans.len() as u32);
            weight = 0;
        }
    }
    if weight > 0 {
        blocks.ends.push(blocks.spans.len() as u32);
    }
    if u32::try_from(blocks.spans.len()).is_err() {
        let reason =
            format!("{} pieces are more than can be addressed; join small files", blocks.spans.len());
        return Err(DataError::Config { setting: "data.train", reason });
    }
    Ok(blocks)
}

/// The pieces of one file, each with its size in the unit of `target`.
fn pieces(
    shard: &Shard,
    file: u32,
    layout: Layout,
    target: u64,
    seq_len: usize,
    tokenizer: Option<&Tokenizer>,
    texts: Texts,
) -> Result<Vec<(Span, u64)>> {
    let path = &shard.source.path;
    let even = |len: u64, size: u64| {
        let starts = (0..len).step_by(size as usize);
        starts
            .map(|start| (Span { file, start, end: len.min(start + size) }, len.min(start + size) - start))
            .collect()
    };
    match (shard.source.format, layout) {
        (Format::Jsonl, _) if begins_as_array(path)? => Ok(even(shard.bytes, shard.bytes)),
        (Format::Text, _) if texts == Texts::Whole => Ok(even(shard.bytes, shard.bytes)),
        (Format::Jsonl | Format::Text, _) => Ok(even(shard.bytes, target)),
        (Format::WebDataset, _) => archive(path, file, target),
        (Format::Tokens, Layout::Rows) => {
            let bytes = map(path)?;
            let wrong = |reason| DataError::Tokens { path: path.clone(), reason };
            let header = Header::from_file_bytes(&bytes).map_err(wrong)?;
            match header.tensors.get("input_ids").map(|ids| ids.dims.as_slice()) {
                Some(&[rows, columns]) if columns == seq_len && rows > 0 => Ok(even(rows as u64, target)),
                dims => Err(wrong(format!(
                    "input_ids is {dims:?}, rows have {seq_len} tokens; token files are taken as they are"
                ))),
            }
        }
        (Format::Tokens, Layout::Documents) => {
            let bytes = map(path)?;
            let documents = TokenShard::parse(&bytes, path)?;
            documents.check_tokenizer(tokenizer)?;
            if documents.is_empty() {
                let reason = "the shard has no documents; make it again, or leave it out".into();
                return Err(DataError::Tokens { path: path.clone(), reason });
            }
            Ok(token_pieces(&documents, file, target))
        }
    }
}

fn archive(path: &Path, file: u32, target: u64) -> Result<Vec<(Span, u64)>> {
    let blocks = blocks(path, target)?;
    if blocks.is_empty() {
        return Err(DataError::BadRow { place: path.display().to_string(), reason: NO_SAMPLES.into() });
    }
    let span = |Range { start, end }| (Span { file, start, end }, end - start);
    Ok(blocks.into_iter().map(span).collect())
}

fn token_pieces(shard: &TokenShard<'_>, file: u32, target: u64) -> Vec<(Span, u64)> {
    let mut out = Vec::new();
    let mut start = 0;
    while start < shard.len() {
        let wanted = shard.offset(start).saturating_add(target);
        // The first document that begins at or after what is wanted; offsets that are out of order give an error when read.
        let (mut low, mut high) = (start + 1, shard.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if shard.offset(middle) < wanted {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let size = shard.offset(low).saturating_sub(shard.offset(start)).max(1);
        out.push((Span { file, start: start as u64, end: low as u64 }, size));
        start = low;
    }
    out
}
