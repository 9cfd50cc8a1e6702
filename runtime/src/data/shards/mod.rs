//! Rows written as shards: WebDataset archives, token shards, or JSON lines.
//!
//! Rows are read and tokenised in parallel and written in their order. Each shard is complete or not there. A manifest
//! beside the shards says after each of them what is written, so that an interrupted run can go on where its last whole
//! shard ends; the shards are the same bytes then. Same rows and settings, same bytes.

mod pattern;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use serde_json::{Value, json};

use super::chat::ChatStyle;
use super::error::DataError;
use super::intake::encode;
use super::load::OnError;
use super::report::remember;
use super::rows::parse_row;
use super::source::{Format, Placed, find};
use super::stream::cut::{Blocks, Shard, Texts, cut, shards};
use super::stream::read::raw_rows;
use super::tar;
use super::token_file::Layout;
use super::token_shard::TokenShardWriter;
use super::tokenizer::{Encoded, Tokenizer};
use crate::error::{Result, RunError};
use crate::files::{AtomicFile, Written, read_json, write_json};

pub use pattern::Pattern;

/// Row length by which blocks are cut: 512 KiB of text each.
const BLOCK_SEQ: usize = 2048;
/// Blocks that are worked on at once.
const AT_ONCE: usize = 16;

/// What shards hold.
#[derive(Clone, Copy, Debug)]
pub enum ShardFormat<'a> {
    /// Tar archives of a `.json` member a row.
    WebDataset,
    /// Token ids of this tokenizer.
    Tokens(&'a Tokenizer),
    /// A line of JSON a row.
    Jsonl,
}

impl ShardFormat<'_> {
    fn name(self) -> &'static str {
        match self {
            ShardFormat::WebDataset => "webdataset",
            ShardFormat::Tokens(_) => "tokens",
            ShardFormat::Jsonl => "jsonl",
        }
    }
}

/// When a shard is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The rows are divided evenly among all names of the pattern.
    Even,
    /// At so many rows.
    Rows(u64),
    /// Before it would be larger than so many bytes, with a row at least.
    Bytes(u64),
}

/// How shards are written.
#[derive(Clone, Debug)]
pub struct ShardConfig<'a> {
    /// Their names.
    pub pattern: Pattern,
    /// Their size.
    pub limit: Limit,
    /// Their content.
    pub format: ShardFormat<'a>,
    /// What a bad row does.
    pub on_error: OnError,
    /// Go on behind the shards that an interrupted run completed.
    pub resume: bool,
}

/// A shard that is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenShard {
    /// Its file.
    pub path: PathBuf,
    /// Its rows.
    pub rows: u64,
    /// Its length.
    pub bytes: u64,
    /// XXH64 of its bytes.
    pub hash: u64,
    /// Rows of the input up to its end, bad ones included.
    pub read: u64,
}

/// What was read and written so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The shards, in order.
    pub shards: Vec<WrittenShard>,
    /// Rows of the input that were bad and left out.
    pub skipped: u64,
    /// The first of these, with place and reason.
    pub skipped_examples: Vec<String>,
    /// Tokens written, in token shards.
    pub tokens: u64,
    /// All rows are written.
    pub complete: bool,
}

impl Manifest {
    /// Rows written.
    pub fn rows(&self) -> u64 {
        self.shards.iter().map(|s| s.rows).sum()
    }

    /// Bytes written.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.bytes).sum()
    }

    /// The manifest as its file has it, without settings and inputs.
    pub fn to_json(&self) -> Value {
        let shard = |s: &WrittenShard| json!({"path": s.path.to_string_lossy(), "rows": s.rows, "bytes": s.bytes, "xxh64": format!("{:016x}", s.hash), "read": s.read});
        json!({
            "shards": self.shards.iter().map(shard).collect::<Vec<_>>(), "rows": self.rows(), "bytes": self.bytes(),
            "skipped": self.skipped, "skipped_examples": self.skipped_examples, "tokens": self.tokens,
            "complete": self.complete,
        })
    }

    fn from_json(value: &Value) -> Option<Manifest> {
        let shard = |s: &Value| {
            Some(WrittenShard {
                path: s["path"].as_str()?.into(),
                rows: s["rows"].as_u64()?,
                bytes: s["bytes"].as_u64()?,
                hash: u64::from_str_radix(s["xxh64"].as_str()?, 16).ok()?,
                read: s["read"].as_u64()?,
            })
        };
        let examples = value["skipped_examples"].as_array()?.iter();
        Some(Manifest {
            shards: value["shards"].as_array()?.iter().map(shard).collect::<Option<_>>()?,
            skipped: value["skipped"].as_u64()?,
            skipped_examples: examples.map(|e| e.as_str().map(str::to_owned)).collect::<Option<_>>()?,
            tokens: value["tokens"].as_u64()?,
            complete: value["complete"].as_bool()?,
        })
    }
}

/// The rows that shards are made of.
#[derive(Debug)]
pub struct RowSource {
    files: Vec<Shard>,
    blocks: Blocks,
}

impl RowSource {
    /// Finds the files and where in them rows lie; `format` is that of all of them, or their extensions say it.
    ///
    /// # Errors
    /// If a file is missing, damaged, or holds tokens.
    pub fn open(paths: &[PathBuf], format: Option<Format>) -> Result<RowSource> {
        let sources = find(paths, format)?;
        if let Some(tokens) = sources.iter().find(|s| s.format == Format::Tokens) {
            let reason =
                format!("{} holds tokens already; name the text that it was made of", tokens.path.display());
            return Err(DataError::Config { setting: "IN", reason }.into());
        }
        let files = shards(sources)?;
        let blocks = cut(&files, Layout::Rows, BLOCK_SEQ, None, Texts::Whole)?;
        Ok(RowSource { files, blocks })
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }

    fn to_json(&self) -> Value {
        let file = |f: &Shard| json!({"path": f.source.path.to_string_lossy(), "bytes": f.bytes, "print": format!("{:016x}", f.print)});
        self.files.iter().map(file).collect()
    }

    fn block(&self, index: usize) -> Result<Vec<Placed<Value>>> {
        let mut rows = Vec::new();
        for span in self.blocks.spans(index) {
            rows.extend(raw_rows(&self.files[span.file as usize], span)?);
        }
        Ok(rows)
    }

    /// Rows, bad ones included.
    fn count(&self) -> Result<u64> {
        let counts = (0..self.blocks.len()).into_par_iter().map(|b| Ok(self.block(b)?.len() as u64));
        counts.sum::<Result<u64>>()
    }
}

/// A row in the form that a shard holds it in.
enum Made {
    Json(String),
    Tokens(Encoded),
}

fn make(row: &Value, format: ShardFormat<'_>) -> std::result::Result<Made, String> {
    match format {
        ShardFormat::Tokens(tokenizer) => {
            let row = parse_row(row, tokenizer.chat_style(), tokenizer.eos_text())?;
            Ok(Made::Tokens(encode(tokenizer, &row)?.0))
        }
        // A row that training could not use is no use in a shard.
        _ => parse_row(row, ChatStyle::Plain, "").map(|_| Made::Json(row.to_string())),
    }
}

/// Writes the rows of `source` as shards. `progress` gets the share of the work that is done, from 0 to 1, and what is
/// written.
///
/// # Errors
/// If shards are there already, there are more than the pattern has names for, a row is bad and `on_error` says to stop, a
/// file cannot be read or written, or `stop` was set. Shards that are complete then stay, for `resume`.
pub fn write_shards(
    source: &RowSource,
    config: &ShardConfig<'_>,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(f64, &Manifest),
) -> Result<Manifest> {
    let mut job = Job::open(source, config)?;
    let skip = job.manifest.shards.last().map_or(0, |s| s.read);
    let total = match config.limit {
        Limit::Even => source.count()?,
        _ => 0,
    };
    let blocks = source.blocks.len();
    let mut read = 0u64;
    for first in (0..blocks).step_by(AT_ONCE) {
        let made: Vec<_> = (first..blocks.min(first + AT_ONCE))
            .into_par_iter()
            .map(|b| {
                let rows = source.block(b)?.into_iter();
                Ok(rows.map(|(place, row)| (place, row.and_then(|row| make(&row, config.format)))).collect())
            })
            .collect::<Result<Vec<Vec<_>>>>()?;
        for (place, row) in made.into_iter().flatten() {
            read += 1;
            if read <= skip {
                continue;
            }
            job.row(place, row, read, total)?;
        }
        if stop.load(Ordering::Relaxed) {
            let m = "stopped; the shards that are complete stay, go on with --resume";
            return Err(RunError::Failed(m.into()));
        }
        progress((first + AT_ONCE).min(blocks) as f64 / blocks as f64, &job.manifest);
    }
    job.finish(read)
}

/// Shards being written.
struct Job<'a> {
    config: &'a ShardConfig<'a>,
    /// Settings and inputs, as the manifest's file has them.
    about: Value,
    manifest: Manifest,
    shard: Option<Shelf>,
    /// Rows of the shard that is being written.
    rows: u64,
    /// Rows left out since the last whole shard.
    pending: Vec<String>,
    pending_skipped: u64,
}

/// The shard that is being written.
enum Shelf {
    File(AtomicFile),
    Tokens(Box<TokenShardWriter>, PathBuf),
}

impl<'a> Job<'a> {
    fn open(source: &RowSource, config: &'a ShardConfig<'a>) -> Result<Job<'a>> {
        let input = |m: String| Err(RunError::Input(m));
        if config.limit == Limit::Even && config.pattern.limit().is_none() {
            return input(
                "--out has no end to its numbers: say with --rows or --size how large a shard is".into(),
            );
        }
        let tokenizer = match config.format {
            ShardFormat::Tokens(t) => Some(format!("{:016x}", t.fingerprint())),
            _ => None,
        };
        let about = json!({
            "settings": {
                "format": config.format.name(), "limit": format!("{:?}", config.limit), "tokenizer": tokenizer,
                "shards": config.pattern.limit(), "first": config.pattern.name(0),
            },
            "inputs": source.to_json(),
        });
        let path = config.pattern.manifest();
        let mut manifest = Manifest::default();
        match (path.is_file(), config.resume) {
            (true, true) => {
                let there = read_json(&path)?;
                if there["about"] != about {
                    return input(format!(
                        "{}: the interrupted run had other settings or files; give the same, or remove its shards",
                        path.display()
                    ));
                }
                manifest = Manifest::from_json(&there).ok_or_else(|| {
                    RunError::Input(format!("{} is damaged; remove the shards", path.display()))
                })?;
                let gone =
                    manifest.shards.iter().find(|s| s.path.metadata().map_or(true, |m| m.len() != s.bytes));
                if let Some(gone) = gone {
                    return input(format!(
                        "{} is not what {} says; remove the shards and start again",
                        gone.path.display(),
                        path.display()
                    ));
                }
            }
            (false, true) => {
                return input(format!("there is no {} to resume from; leave out --resume", path.display()));
            }
            (there, false) => {
                let first = config.pattern.name(0).filter(|p| p.exists());
                if let Some(there) = first.or(there.then_some(path)) {
                    return input(format!(
                        "{} exists already; give another name, remove it, or go on with an interrupted run with --resume",
                        there.display()
                    ));
                }
            }
        }
        let (rows, pending) = (0, Vec::new());
        Ok(Job { config, about, manifest, shard: None, rows, pending, pending_skipped: 0 })
    }

    /// Takes row `read` of the input, of `total` where that is known.
    fn row(
        &mut self,
        place: String,
        row: std::result::Result<Made, String>,
        read: u64,
        total: u64,
    ) -> Result<()> {
        let made = match (row, self.config.on_error) {
            (Ok(made), _) => made,
            (Err(reason), OnError::Stop) => return Err(DataError::BadRow { place, reason }.into()),
            (Err(reason), OnError::Skip) => {
                self.pending_skipped += 1;
                remember(&mut self.pending, format!("{place}: {reason}"));
                return Ok(());
            }
        };
        let made = match made {
            Made::Json(json) if matches!(self.config.format, ShardFormat::WebDataset) => {
                let key = self.manifest.rows() + self.rows;
                Packed::Bytes(tar::member(&format!("{key:09}.json"), json.as_bytes()))
            }
            Made::Json(json) => Packed::Bytes((json + "\n").into_bytes()),
            Made::Tokens(encoded) => Packed::Tokens(encoded),
        };
        if self.is_full(&made, read, total) {
            self.close(read - 1)?;
        }
        self.put(&made)
    }

    /// Whether a row belongs into the next shard.
    fn is_full(&self, row: &Packed, read: u64, total: u64) -> bool {
        let shards = self.manifest.shards.len() as u64;
        match self.config.limit {
            _ if self.rows == 0 => false,
            Limit::Rows(most) => self.rows >= most,
            Limit::Bytes(most) => self.bytes() + row.len() > most,
            Limit::Even => {
                let names = self.config.pattern.limit().unwrap_or(1) as u64;
                let of = |row: u64| u128::from(row) * u128::from(names) / u128::from(total.max(1));
                of(read - 1) > u128::from(shards)
            }
        }
    }

    /// Bytes of the shard that is being written.
    fn bytes(&self) -> u64 {
        match &self.shard {
            Some(Shelf::File(file)) => file.written(),
            Some(Shelf::Tokens(writer, _)) => writer.bytes(),
            None => 0,
        }
    }

    fn put(&mut self, row: &Packed) -> Result<()> {
        if self.shard.is_none() {
            let index = self.manifest.shards.len();
            let path = self.config.pattern.name(index).ok_or_else(|| {
                RunError::Input(format!(
                    "--out names {index} shards, but there are rows for more; name more, or make them larger with --rows \
                     or --size. The {index} are written; --resume with a longer pattern does not fit them, remove them"
                ))
            })?;
            self.shard = Some(match self.config.format {
                ShardFormat::Tokens(tokenizer) => {
                    Shelf::Tokens(Box::new(TokenShardWriter::new(tokenizer)), path)
                }
                _ => Shelf::File(AtomicFile::create(&path)?),
            });
        }
        match (&mut self.shard, row) {
            (Some(Shelf::File(file)), Packed::Bytes(bytes)) => file.put(bytes)?,
            (Some(Shelf::Tokens(writer, _)), Packed::Tokens(encoded)) => {
                writer.push(encoded);
                self.manifest.tokens += encoded.tokens.len() as u64;
            }
            _ => return Err(RunError::Failed("a row in another form than its shard".into())),
        }
        self.rows += 1;
        Ok(())
    }

    /// Completes the shard that is being written, which holds the input up to row `read`.
    fn close(&mut self, read: u64) -> Result<()> {
        let (path, Written { bytes, hash }) = match self.shard.take() {
            None => return Ok(()),
            Some(Shelf::File(mut file)) => {
                if matches!(self.config.format, ShardFormat::WebDataset) {
                    file.write_all(&tar::END).map_err(|e| file.error("write", e))?;
                }
                (file.path().to_path_buf(), file.finish()?)
            }
            Some(Shelf::Tokens(mut writer, path)) => {
                let written = writer.write(&path)?;
                (path, written)
            }
        };
        self.manifest.shards.push(WrittenShard { path, rows: self.rows, bytes, hash, read });
        self.rows = 0;
        self.manifest.skipped += std::mem::take(&mut self.pending_skipped);
        for example in std::mem::take(&mut self.pending) {
            remember(&mut self.manifest.skipped_examples, example);
        }
        self.save()
    }

    fn finish(mut self, read: u64) -> Result<Manifest> {
        self.close(read)?;
        self.manifest.skipped += self.pending_skipped;
        if self.manifest.shards.is_empty() {
            let reason = match self.pending.first() {
                Some(example) => format!("{} rows skipped, first: {example}", self.pending_skipped),
                None => "the files have no rows".into(),
            };
            return Err(DataError::Empty { sources: "IN".into(), reason }.into());
        }
        self.manifest.complete = true;
        self.save()?;
        Ok(self.manifest)
    }

    fn save(&self) -> Result<()> {
        let mut json = self.manifest.to_json();
        json["about"] = self.about.clone();
        write_json(&self.config.pattern.manifest(), &json)?;
        Ok(())
    }
}

/// A row as its shard takes it.
enum Packed {
    Bytes(Vec<u8>),
    Tokens(Encoded),
}

impl Packed {
    fn len(&self) -> u64 {
        match self {
            Packed::Bytes(bytes) => bytes.len() as u64,
            Packed::Tokens(encoded) => 3 * encoded.tokens.len() as u64,
        }
    }
}

/// The format that shards of this name have.
///
/// # Errors
/// If the extension stands for none.
pub fn format_of<'a>(path: &Path, tokenizer: Option<&'a Tokenizer>) -> Result<ShardFormat<'a>> {
    match (Format::of(path), tokenizer) {
        (Some(Format::WebDataset), None) => Ok(ShardFormat::WebDataset),
        (Some(Format::Jsonl), None) => Ok(ShardFormat::Jsonl),
        (Some(Format::Tokens), Some(tokenizer)) => Ok(ShardFormat::Tokens(tokenizer)),
        (Some(Format::Tokens), None) => Err(RunError::Input(
            "--tokenizer is missing: token shards (.safetensors) are made with the tokenizer of a model folder".into(),
        )),
        (Some(Format::WebDataset | Format::Jsonl), Some(_)) => Err(RunError::Input(format!(
            "--tokenizer is for token shards, but {} holds text; end --out in .safetensors, or leave it out",
            path.display()
        ))),
        _ => Err(RunError::Input(format!(
            "{} names no kind of shard; end --out in .tar, .safetensors or .jsonl",
            path.display()
        ))),
    }
}
