//! One block: from its pieces of files to packed rows.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use serde_json::{Value, json};

use super::super::error::{DataError, Result};
use super::super::intake::{Intake, encode, tokenise};
use super::super::load::DataConfig;
use super::super::pack::RowSet;
use super::super::report::DataReport;
use super::super::rows::Row;
use super::super::source::{Format, JsonRows, Placed, read_range, read_text};
use super::super::token_file::{Layout, append_tokens, map};
use super::super::token_shard::TokenShard;
use super::super::tokenizer::Tokenizer;
use super::super::webdataset::samples;
use super::cut::{Shard, Span};

/// Bytes that are read at once beyond a piece, to the end of its last line.
const BEYOND: usize = 16 << 10;

/// Packed rows and what was counted on the way.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) rows: RowSet,
    pub(crate) report: DataReport,
}

/// What reading needs to know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading<'a> {
    pub(crate) config: &'a DataConfig,
    pub(crate) seq_len: usize,
    pub(crate) layout: Layout,
    pub(crate) tokenizer: Option<&'a Tokenizer>,
}

impl Reading<'_> {
    /// Reads a block.
    pub(crate) fn block(&self, shards: &[Shard], spans: &[Span]) -> Result<Block> {
        let mut intake = Intake::new(self.config, self.tokenizer, self.seq_len);
        for span in spans {
            self.span(&shards[span.file as usize], span, &mut intake)?;
        }
        let Intake { mut documents, mut report, .. } = intake;
        documents.shrink();
        report.documents = documents.len();
        report.tokens = documents.total_tokens();
        let packing = self.config.packing && !self.as_they_are(shards, spans);
        let rows = RowSet::new(documents, self.seq_len, packing)?;
        report.rows = rows.len();
        // Their places count lines from the piece's start.
        report.truncated_examples.clear();
        report.unlabelled_examples.clear();
        Ok(Block { rows, report })
    }

    /// Whether the rows are those of token files, which are training rows already.
    fn as_they_are(&self, shards: &[Shard], spans: &[Span]) -> bool {
        let tokens = spans.first().is_some_and(|s| shards[s.file as usize].source.format == Format::Tokens);
        tokens && self.layout == Layout::Rows
    }

    fn span(&self, shard: &Shard, span: &Span, intake: &mut Intake<'_>) -> Result<()> {
        let path = &shard.source.path;
        let now = std::fs::metadata(path).map_err(DataError::io(path))?.len();
        if now != shard.bytes {
            let reason = format!(
                "had {} bytes when training began and has {now} now; restore it and resume",
                shard.bytes
            );
            return Err(DataError::BadRow { place: path.display().to_string(), reason });
        }
        match shard.source.format {
            Format::Jsonl => self.json(shard, span, intake),
            Format::Text => self.text(shard, span, intake),
            Format::WebDataset => {
                let bytes = read_range(path, span.start, span.end).map_err(DataError::io(path))?;
                let name = path.display().to_string();
                let rows =
                    samples(&bytes, &name).map_err(|reason| DataError::BadRow { place: name, reason })?;
                rows.into_iter().try_for_each(|row| self.row(row, intake))
            }
            Format::Tokens if self.layout == Layout::Documents => {
                let bytes = map(path)?;
                let documents = TokenShard::parse(&bytes, path)?;
                (span.start..span.end).try_for_each(|d| intake.admit(documents.tokenised(d as usize)?))
            }
            Format::Tokens => {
                let range = span.start as usize..span.end as usize;
                intake.report.read += range.len();
                let into = &mut intake.documents;
                append_tokens(&map(path)?, path, self.config.vocab, range, into).map(|_| ())
            }
        }
    }

    fn row(&self, row: Placed<Value>, intake: &mut Intake<'_>) -> Result<()> {
        match self.tokenizer {
            Some(tokenizer) => intake.admit(tokenise(tokenizer, row)),
            None => Ok(()),
        }
    }

    fn json(&self, shard: &Shard, span: &Span, intake: &mut Intake<'_>) -> Result<()> {
        let (path, Some(tokenizer)) = (&shard.source.path, self.tokenizer) else { return Ok(()) };
        let bytes = lines_of(path, span, shard.bytes).map_err(DataError::io(path))?;
        let name = path.display().to_string();
        if span.start == 0 {
            let rows = JsonRows::new(&bytes, &name);
            return (0..rows.len()).try_for_each(|i| self.row(rows.row(i), intake));
        }
        // Lines before the piece are counted only for a row that has to be named.
        let rows = JsonRows::lines(&bytes, &name, 0);
        let mut before = None;
        let mut place = |i: usize| -> Result<String> {
            let known =
                before.map_or_else(|| lines_before(path, span.start).map_err(DataError::io(path)), Ok)?;
            before = Some(known);
            Ok(format!("{name}:{}", known + rows.line(i) + 1))
        };
        for i in 0..rows.len() {
            let mut row = tokenise(tokenizer, rows.row(i));
            if row.1.is_err() {
                row.0 = place(i)?;
            }
            if let Err(error) = intake.admit(row) {
                return Err(error.at(place(i)?));
            }
        }
        Ok(())
    }

    /// A text file is one document: its first piece may begin with BOS, its last ends with EOS.
    fn text(&self, shard: &Shard, span: &Span, intake: &mut Intake<'_>) -> Result<()> {
        let (path, Some(tokenizer)) = (&shard.source.path, self.tokenizer) else { return Ok(()) };
        let bytes = lines_of(path, span, shard.bytes).map_err(DataError::io(path))?;
        let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").filter(|_| span.start == 0).unwrap_or(&bytes);
        let last = span.end == shard.bytes;
        if bytes.is_empty() {
            return Ok(());
        }
        let row = match std::str::from_utf8(bytes) {
            Ok(text) => encode(tokenizer, &Row { eos: last, ..Row::plain(text) }),
            Err(e) => {
                Err(format!("not UTF-8 at byte {}; save it as UTF-8", span.start as usize + e.valid_up_to()))
            }
        };
        let row = row.map(|(mut encoded, masked)| {
            if span.start > 0
                && tokenizer.adds_bos()
                && encoded.tokens.first() == tokenizer.bos().map(|b| b as i32).as_ref()
            {
                encoded.tokens.remove(0);
                encoded.labels.remove(0);
            }
            (encoded, masked)
        });
        intake.admit((path.display().to_string(), row))
    }
}

/// The JSON rows of a piece of a file that is no token file; a text is a row `{"text": ...}`.
pub(crate) fn raw_rows(shard: &Shard, span: &Span) -> Result<Vec<Placed<Value>>> {
    let path = &shard.source.path;
    let name = path.display().to_string();
    match shard.source.format {
        Format::WebDataset => {
            let bytes = read_range(path, span.start, span.end).map_err(DataError::io(path))?;
            samples(&bytes, &name).map_err(|reason| DataError::BadRow { place: name, reason })
        }
        Format::Text => {
            let text = read_text(path);
            Ok(vec![(name, text.map(|text| json!({"text": text})).map_err(|e| e.to_string()))])
        }
        Format::Jsonl | Format::Tokens => {
            let bytes = lines_of(path, span, shard.bytes).map_err(DataError::io(path))?;
            let rows = |first| match span.start {
                0 => JsonRows::new(&bytes, &name),
                _ => JsonRows::lines(&bytes, &name, first),
            };
            let all = |rows: JsonRows<'_>| (0..rows.len()).map(|i| rows.row(i)).collect::<Vec<_>>();
            let read = all(rows(1));
            if span.start == 0 || read.iter().all(|(_, row)| row.is_ok()) {
                return Ok(read);
            }
            let before = lines_before(path, span.start).map_err(DataError::io(path))?;
            Ok(all(rows(before + 1)))
        }
    }
}

/// The lines that begin in a piece of a file of `len` bytes, to the end of the last.
fn lines_of(path: &Path, span: &Span, len: u64) -> std::io::Result<Vec<u8>> {
    // A line begins behind a line break, so the byte before the piece tells whether one begins with it.
    let from = span.start.saturating_sub(1);
    let mut bytes = read_range(path, from, span.end)?;
    let begin = if span.start == 0 { Some(0) } else { after_break(&bytes) };
    let Some(begin) = begin.filter(|&at| at < bytes.len()) else { return Ok(Vec::new()) };
    bytes.drain(..begin);
    if bytes.last() != Some(&b'\n') {
        let mut at = span.end;
        while at < len {
            let next = read_range(path, at, len.min(at + BEYOND as u64))?;
            if let Some(end) = after_break(&next) {
                bytes.extend_from_slice(&next[..end]);
                break;
            }
            bytes.extend_from_slice(&next);
            at += next.len() as u64;
        }
    }
    Ok(bytes)
}

fn after_break(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|&b| b == b'\n').map(|at| at + 1)
}

/// Line breaks before the first line that begins at or behind byte `start`.
fn lines_before(path: &Path, start: u64) -> std::io::Result<usize> {
    let mut left = start.saturating_sub(1);
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path)?);
    let (mut count, mut buffer) = (0, vec![0; 1 << 16]);
    while left > 0 {
        let n = reader.read(&mut buffer[..left.min(1 << 16) as usize])?;
        if n == 0 {
            break;
        }
        count += buffer[..n].iter().filter(|&&b| b == b'\n').count();
        left -= n as u64;
    }
    // The break at which the piece's first line begins stands at `start - 1` or behind it.
    Ok(count + 1)
}
