//! Files of knowledge, found and cut into items: a line of JSON, an element of a JSON array, a page, a piece of text.
//!
//! Reading is a stream with a [`Position`] after every item, from which another process goes on. No item is held that is
//! longer than the limit: its bytes are skipped, and it stands as [`Content::TooLarge`].

use crate::error::input_error;
use anyhow::Context;
use kfc_runtime::files::list_files;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const BUFFER: usize = 1 << 20;
const BOM: &[u8] = b"\xEF\xBB\xBF";

/// How a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A JSON object a line, or one array of objects.
    Jsonl,
    /// Plain text, cut as [`Split`] says.
    Text,
    /// One page a file.
    Html,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 3] = [Format::Jsonl, Format::Text, Format::Html];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Format::Jsonl => "jsonl",
            Format::Text => "text",
            Format::Html => "html",
        }
    }

    /// The format that a file's extension stands for.
    pub fn of(path: &Path) -> Option<Format> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" | "json" => Some(Format::Jsonl),
            "txt" | "text" | "md" => Some(Format::Text),
            "html" | "htm" | "xhtml" => Some(Format::Html),
            _ => None,
        }
    }
}

/// What of a text file is a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The whole file.
    Document,
    /// What stands between blank lines.
    Paragraph,
    /// Each line that is not blank.
    Line,
}

impl Split {
    /// Every way.
    pub const ALL: [Split; 3] = [Split::Document, Split::Paragraph, Split::Line];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Split::Document => "document",
            Split::Paragraph => "paragraph",
            Split::Line => "line",
        }
    }
}

/// What there is to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// The files, in the order in which they are read.
    pub files: Vec<InputFile>,
    /// How text files are cut.
    pub split: Split,
    /// Longest item, in bytes.
    pub max_bytes: u64,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputFile {
    /// Where it is.
    pub path: PathBuf,
    /// How it is read.
    pub format: Format,
    /// Its length.
    pub bytes: u64,
}

impl Inputs {
    /// The files that `paths` name: files, folders (all below, sorted, those of known extensions) and patterns with `*`,
    /// `?`, `[...]` and `**`. `format` says how to read all of them; without it their extensions do.
    ///
    /// # Errors
    /// If a path names nothing, or a file has an unknown extension.
    pub fn find(
        paths: &[PathBuf],
        format: Option<Format>,
        split: Split,
        max_bytes: u64,
    ) -> anyhow::Result<Inputs> {
        let mut files = Vec::new();
        for path in paths {
            for found in named_by(path)? {
                add(&mut files, &found, format)?;
            }
        }
        if files.is_empty() {
            return Err(input_error("no files are named; give files, folders or patterns"));
        }
        Ok(Inputs { files, split, max_bytes })
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Paths and lengths: what must not change while a run is interrupted.
    pub fn to_json(&self) -> Value {
        self.files.iter().map(|f| json!({"path": f.path.to_string_lossy(), "bytes": f.bytes})).collect()
    }

    /// Bytes of input before `at`.
    pub fn bytes_before(&self, at: &Position) -> u64 {
        let whole: u64 = self.files.iter().take(at.file).map(|file| file.bytes).sum();
        whole + at.offset
    }
}

fn named_by(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let text = path.to_string_lossy();
    if path.exists() || !text.contains(['*', '?', '[']) {
        return Ok(vec![path.to_owned()]);
    }
    let pattern = glob::glob(&text).map_err(|e| {
        input_error(format!("{text}: the pattern is wrong at character {}: {}", e.pos + 1, e.msg))
    })?;
    let mut found =
        pattern.collect::<Result<Vec<_>, _>>().with_context(|| format!("{text} cannot be listed"))?;
    found.retain(|path| path.is_file());
    if found.is_empty() {
        return Err(input_error(format!("{text}: no file has a name like this")));
    }
    found.sort();
    Ok(found)
}

fn add(files: &mut Vec<InputFile>, path: &Path, format: Option<Format>) -> anyhow::Result<()> {
    let shown = path.display();
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(input_error(format!("{shown}: there is no such file or folder")));
        }
        Err(e) => return Err(e).with_context(|| format!("{shown} cannot be read")),
    };
    if !meta.is_dir() {
        let Some(format) = format.or_else(|| Format::of(path)) else {
            return Err(input_error(format!(
                "{shown}: cannot tell the format by the name; use --format jsonl, text or html"
            )));
        };
        files.push(InputFile { path: path.to_owned(), format, bytes: meta.len() });
        return Ok(());
    }
    let before = files.len();
    for name in list_files(path)? {
        let file = path.join(name);
        if let Some(known) = Format::of(&file) {
            let bytes =
                std::fs::metadata(&file).with_context(|| format!("{} cannot be read", file.display()))?.len();
            files.push(InputFile { path: file, format: format.unwrap_or(known), bytes });
        }
    }
    if files.len() == before {
        return Err(input_error(format!(
            "{shown}: no file below has a known extension (.jsonl, .json, .ndjson, .txt, .md, .html); name the files one \
             by one and set --format"
        )));
    }
    Ok(())
}

/// What an item holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Its bytes.
    Bytes(Vec<u8>),
    /// It is longer than the limit.
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
}

/// A piece of a file that stands for one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The file's name, without folders.
    pub name: Arc<str>,
    /// The line it starts on, from 1.
    pub line: u64,
    /// What it is.
    pub format: Format,
    /// Its bytes.
    pub content: Content,
}

impl Item {
    /// `file:line`.
    pub fn place(&self) -> String {
        format!("{}:{}", self.name, self.line)
    }
}

/// Where reading goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Index of the file.
    pub file: usize,
    /// Bytes of it that are done.
    pub offset: u64,
    /// Lines of it that are done.
    pub line: u64,
    /// It is a JSON array, and its bracket is done.
    pub array: bool,
}

impl Position {
    /// For the state of a run.
    pub fn to_json(self) -> Value {
        json!({"file": self.file, "offset": self.offset, "line": self.line, "array": self.array})
    }

    /// What [`Position::to_json`] wrote; `None` if it is something else.
    pub fn from_json(value: &Value) -> Option<Position> {
        Some(Position {
            file: usize::try_from(value["file"].as_u64()?).ok()?,
            offset: value["offset"].as_u64()?,
            line: value["line"].as_u64()?,
            array: value["array"].as_bool()?,
        })
    }
}

/// The items of all files, one after another.
#[derive(Debug)]
pub struct Items<'a> {
    inputs: &'a Inputs,
    at: Position,
    open: Option<(BufReader<File>, Arc<str>)>,
}

impl<'a> Items<'a> {
    /// The items from `at` on.
    pub fn new(inputs: &'a Inputs, at: Position) -> Items<'a> {
        Items { inputs, at, open: None }
    }

    /// After the last item that was read.
    pub fn position(&self) -> Position {
        self.at
    }

    /// The next item, `None` at the end.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn next_item(&mut self) -> anyhow::Result<Option<Item>> {
        while let Some(file) = self.inputs.files.get(self.at.file) {
            let read =
                self.next_of(file).with_context(|| format!("{} cannot be read", file.path.display()))?;
            if read.is_some() {
                return Ok(read);
            }
            self.open = None;
            self.at = Position { file: self.at.file + 1, ..Position::default() };
        }
        Ok(None)
    }

    fn next_of(&mut self, file: &InputFile) -> io::Result<Option<Item>> {
        if self.open.is_none() {
            let mut opened = File::open(&file.path)?;
            opened.seek(SeekFrom::Start(self.at.offset))?;
            let name = file.path.file_name().unwrap_or(file.path.as_os_str()).to_string_lossy();
            self.open = Some((BufReader::with_capacity(BUFFER, opened), name.into()));
        }
        let Some((reader, name)) = &mut self.open else { return Ok(None) };
        let mut cut = Cut { reader, at: &mut self.at, limit: self.inputs.max_bytes };
        if cut.at.offset == 0 {
            cut.skip_bom()?;
        }
        let found = match (file.format, self.inputs.split) {
            (Format::Jsonl, _) => cut.json()?,
            (Format::Html, _) | (Format::Text, Split::Document) => cut.document()?,
            (Format::Text, Split::Paragraph) => cut.paragraph()?,
            (Format::Text, Split::Line) => cut.line()?,
        };
        let name = Arc::clone(name);
        Ok(found.map(|(line, content)| Item { name, line, format: file.format, content }))
    }
}

/// Cuts the next item off a file and moves the position behind it. Items come with the line that they start on.
struct Cut<'a, R> {
    reader: &'a mut R,
    at: &'a mut Position,
    limit: u64,
}

impl<R: BufRead> Cut<'_, R> {
    fn skip_bom(&mut self) -> io::Result<()> {
        if self.reader.fill_buf()?.starts_with(BOM) {
            self.consume(BOM.len());
        }
        Ok(())
    }

    fn consume(&mut self, bytes: usize) {
        self.reader.consume(bytes);
        self.at.offset += bytes as u64;
    }

    /// A line without its line break, or that it was too long; `None` at the end.
    fn raw_line(&mut self) -> io::Result<Option<Content>> {
        let mut bytes = Vec::new();
        let read = self.reader.by_ref().take(self.limit + 1).read_until(b'\n', &mut bytes)?;
        self.at.offset += read as u64;
        if read == 0 {
            return Ok(None);
        }
        self.at.line += 1;
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        } else if read as u64 > self.limit {
            self.at.offset += self.reader.skip_until(b'\n')? as u64;
            return Ok(Some(Content::TooLarge { limit: self.limit }));
        }
        Ok(Some(Content::Bytes(bytes)))
    }

    fn line(&mut self) -> io::Result<Option<(u64, Content)>> {
        while let Some(content) = self.raw_line()? {
            if !is_blank(&content) {
                return Ok(Some((self.at.line, content)));
            }
        }
        Ok(None)
    }

    fn paragraph(&mut self) -> io::Result<Option<(u64, Content)>> {
        let Some((first, content)) = self.line()? else { return Ok(None) };
        let (mut bytes, mut too_large) = match content {
            Content::Bytes(bytes) => (bytes, false),
            Content::TooLarge { .. } => (Vec::new(), true),
        };
        while let Some(content) = self.raw_line()? {
            match content {
                blank if is_blank(&blank) => break,
                Content::Bytes(line) if !too_large && (bytes.len() + line.len()) as u64 <= self.limit => {
                    bytes.push(b'\n');
                    bytes.extend(line);
                }
                _ => too_large = true,
            }
        }
        let content = if too_large { Content::TooLarge { limit: self.limit } } else { Content::Bytes(bytes) };
        Ok(Some((first, content)))
    }

    fn document(&mut self) -> io::Result<Option<(u64, Content)>> {
        let mut bytes = Vec::new();
        let read = self.reader.by_ref().take(self.limit + 1).read_to_end(&mut bytes)? as u64;
        self.at.offset += read;
        if read == 0 {
            return Ok(None);
        }
        if read > self.limit {
            self.at.offset += io::copy(self.reader, &mut io::sink())?;
            return Ok(Some((1, Content::TooLarge { limit: self.limit })));
        }
        Ok(Some((1, Content::Bytes(bytes))))
    }

    fn json(&mut self) -> io::Result<Option<(u64, Content)>> {
        if !self.at.array {
            let fresh = self.at.line == 0;
            if fresh && self.skip_space()? == Some(b'[') {
                self.consume(1);
                self.at.array = true;
            } else {
                return self.line();
            }
        }
        self.element()
    }

    /// Skips white space and counts its lines; the byte that follows.
    fn skip_space(&mut self) -> io::Result<Option<u8>> {
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(None);
            }
            let space = buffer.iter().take_while(|b| b.is_ascii_whitespace()).count();
            let (lines, next) = (newlines(&buffer[..space]), buffer.get(space).copied());
            self.at.line += lines;
            self.consume(space);
            if next.is_some() {
                return Ok(next);
            }
        }
    }

    /// An element of a JSON array: up to the comma or bracket that ends it. What is wrong in it shows when it is parsed.
    fn element(&mut self) -> io::Result<Option<(u64, Content)>> {
        while let Some(b',' | b']') = self.skip_space()? {
            self.consume(1);
        }
        let first = self.at.line + 1;
        let (mut bytes, mut length, mut nesting) = (Vec::new(), 0u64, Nesting::default());
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                break;
            }
            let end = buffer.iter().position(|&byte| nesting.ends_before(byte));
            let part = &buffer[..end.unwrap_or(buffer.len())];
            length += part.len() as u64;
            if length <= self.limit {
                bytes.extend_from_slice(part);
            }
            let (lines, size) = (newlines(part), part.len());
            self.at.line += lines;
            self.consume(size);
            if end.is_some() {
                break;
            }
        }
        let content =
            if length > self.limit { Content::TooLarge { limit: self.limit } } else { Content::Bytes(bytes) };
        Ok((length > 0).then_some((first, content)))
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&b| b == b'\n').count() as u64
}

fn is_blank(content: &Content) -> bool {
    matches!(content, Content::Bytes(bytes) if bytes.iter().all(u8::is_ascii_whitespace))
}

/// Where in a JSON value a byte stands.
#[derive(Default)]
struct Nesting {
    depth: usize,
    string: bool,
    escaped: bool,
}

impl Nesting {
    /// Whether the value is over before `byte`, which is a comma or a bracket of the array around it.
    fn ends_before(&mut self, byte: u8) -> bool {
        if self.string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.string = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.string = true,
            b'{' | b'[' => self.depth += 1,
            b',' | b']' if self.depth == 0 => return true,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        false
    }
}
