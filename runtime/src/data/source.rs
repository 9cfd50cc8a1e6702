//! Finding and reading the files of a data set: which format a file has, and its rows with their places.
//!
//! | format       | extensions                 | content                                                             |
//! |--------------|----------------------------|---------------------------------------------------------------------|
//! | `jsonl`      | `.jsonl` `.ndjson` `.json` | a JSON object a line, or one JSON array of objects                  |
//! | `text`       | `.txt` `.text` `.md`       | one document a file                                                 |
//! | `tokens`     | `.safetensors`             | `input_ids`, `labels`: `[N,T]` (see [`super::token_file`])           |
//! | `webdataset` | `.tar`                     | samples of a `.json` or `.txt` member (see [`super::webdataset`])    |

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::{DataError, Result};

/// A range of millions is a slip of the pen, not a data set.
const MOST_FILES: usize = 1_000_000;

/// How a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JSON rows.
    Jsonl,
    /// Plain text.
    Text,
    /// Token ids in safetensors.
    Tokens,
    /// Tar archives of samples.
    WebDataset,
}

impl Format {
    /// The format of this name, as `data.format` has it.
    pub fn parse(name: &str) -> Result<Format> {
        match name {
            "jsonl" | "json" => Ok(Format::Jsonl),
            "text" => Ok(Format::Text),
            "tokens" => Ok(Format::Tokens),
            "webdataset" => Ok(Format::WebDataset),
            _ => Err(DataError::Config {
                setting: "data.format",
                reason: format!("there is no format \"{name}\"; use jsonl, text, tokens or webdataset"),
            }),
        }
    }

    /// The format that an extension stands for.
    pub fn of(path: &Path) -> Option<Format> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" | "json" => Some(Format::Jsonl),
            "txt" | "text" | "md" => Some(Format::Text),
            "safetensors" => Some(Format::Tokens),
            "tar" => Some(Format::WebDataset),
            _ => None,
        }
    }
}

/// A file to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// How it is read.
    pub format: Format,
}

/// The files of a list of paths. A folder stands for its files in the order of their names, those of known extensions
/// (or, with a `format`, those whose extension stands for it) and not those of folders in it. `{000..009}` in a name
/// stands for each number, `{a,b}` for each name. A file whose extension is unknown is an error unless `format` says what it is.
pub fn find(paths: &[PathBuf], format: Option<Format>) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for (named, path) in paths.iter().flat_map(|p| expand(p).into_iter().map(move |path| (p, path))) {
        let meta = fs::metadata(&path).map_err(|source| match source.kind() {
            ErrorKind::NotFound if *named != path => {
                DataError::MissingShard { path: path.clone(), pattern: named.clone() }
            }
            ErrorKind::NotFound if path.to_string_lossy().contains(['*', '?']) => {
                let reason = "there is no such file, and patterns are not looked up here; name the folder, or write \
                              {000..009} or {a,b} for several files";
                DataError::Empty { sources: path.display().to_string(), reason: reason.into() }
            }
            _ => DataError::Io { path: path.clone(), source },
        })?;
        if !meta.is_dir() && !meta.is_file() {
            // Files are read more than once, and a pipe may never end.
            let reason = "it is a pipe or a device; write what it gives to a file and name that";
            return Err(DataError::Empty { sources: path.display().to_string(), reason: reason.into() });
        }
        if !meta.is_dir() {
            let format = format.or_else(|| Format::of(&path));
            let format = format.ok_or_else(|| DataError::UnknownFormat { path: path.clone() })?;
            sources.push(Source { path, format });
            continue;
        }
        let mut files = Vec::new();
        for entry in fs::read_dir(&path).map_err(DataError::io(&path))? {
            let file = entry.map_err(DataError::io(&path))?.path();
            let known = Format::of(&file).filter(|&f| format.is_none_or(|asked| asked == f));
            if let (true, Some(format)) = (file.is_file(), known) {
                files.push(Source { path: file, format });
            }
        }
        if files.is_empty() {
            let reason = "the folder has no file of a known extension; add .jsonl, .json, .txt, .safetensors or .tar \
                          files, or name the files one by one and set data.format";
            return Err(DataError::Empty { sources: path.display().to_string(), reason: reason.into() });
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        sources.extend(files);
    }
    if sources.is_empty() {
        let reason = "no files are named; set data.train to files or folders".into();
        return Err(DataError::Empty { sources: "data.train".into(), reason });
    }
    Ok(sources)
}

/// `shard-{000..002}.tar` as three paths and `{a,b}.tar` as two, as many braces as there are; other paths as they are.
pub fn expand(path: &Path) -> Vec<PathBuf> {
    let Some(text) = path.to_str() else { return vec![path.to_path_buf()] };
    let mut done = vec![String::new()];
    let mut rest = text;
    while let Some((before, (names, after))) =
        rest.split_once('{').and_then(|(before, inner)| Some((before, inner.split_once('}')?)))
    {
        let names = alternatives(names).unwrap_or_else(|| vec![format!("{{{names}}}")]);
        if done.len() * names.len() > MOST_FILES {
            return vec![path.to_path_buf()];
        }
        done = done.iter().flat_map(|d| names.iter().map(move |n| format!("{d}{before}{n}"))).collect();
        rest = after;
    }
    done.into_iter().map(|d| PathBuf::from(d + rest)).collect()
}

/// What stands in braces: numbers from the first to the last, as wide as the first is written, or names between commas.
fn alternatives(names: &str) -> Option<Vec<String>> {
    if let Some((from, to)) = names.split_once("..") {
        let (first, last): (u64, u64) = (from.parse().ok()?, to.parse().ok()?);
        let sensible = last >= first && last - first < MOST_FILES as u64;
        return sensible
            .then(|| (first..=last).map(|n| format!("{n:0width$}", width = from.len())).collect());
    }
    names.contains(',').then(|| names.split(',').map(str::to_owned).collect())
}

/// Where a row stands and what it is, or what is wrong with it.
pub type Placed<T> = (String, std::result::Result<T, String>);

/// The JSON rows of a file's content, parsed one by one so that a large file is never held as values.
#[derive(Debug)]
pub struct JsonRows<'a> {
    name: &'a str,
    content: Content<'a>,
}

#[derive(Debug)]
enum Content<'a> {
    /// Lines that are not blank, with their numbers.
    Lines(Vec<(usize, &'a [u8])>),
    Array(Vec<Value>),
    /// An array that cannot be read: the line and why.
    Broken(usize, String),
}

impl<'a> JsonRows<'a> {
    /// Lines of JSON, or one array; `name` is what places start with. Blank lines are no rows.
    pub fn new(bytes: &'a [u8], name: &'a str) -> JsonRows<'a> {
        let bytes = bytes.strip_prefix(BOM).unwrap_or(bytes);
        if !is_array(bytes) {
            return JsonRows::lines(bytes, name, 1);
        }
        let content = match serde_json::from_slice(bytes) {
            Ok(rows) => Content::Array(rows),
            Err(e) => Content::Broken(e.line(), format!("the JSON array cannot be read: {e}")),
        };
        JsonRows { name, content }
    }

    /// Lines of JSON of which the first is line `first` of its file.
    pub fn lines(bytes: &'a [u8], name: &'a str, first: usize) -> JsonRows<'a> {
        let lines = (first..).zip(bytes.split(|&b| b == b'\n'));
        let lines = lines.filter(|(_, line)| line.iter().any(|b| !b.is_ascii_whitespace()));
        JsonRows { name, content: Content::Lines(lines.collect()) }
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        match &self.content {
            Content::Lines(lines) => lines.len(),
            Content::Array(rows) => rows.len(),
            Content::Broken(..) => 1,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The line of row `index`, as [`JsonRows::lines`] counts; 0 in an array.
    pub(crate) fn line(&self, index: usize) -> usize {
        match &self.content {
            Content::Lines(lines) => lines[index].0,
            _ => 0,
        }
    }

    /// Row `index`, below [`JsonRows::len`], with its place: `file:line`, or the row of an array (from 1).
    pub fn row(&self, index: usize) -> Placed<Value> {
        let name = self.name;
        match &self.content {
            Content::Lines(lines) => {
                let (number, line) = lines[index];
                (format!("{name}:{number}"), serde_json::from_slice(line).map_err(|e| broken(line, &e)))
            }
            Content::Array(rows) => (format!("{name}, row {}", index + 1), Ok(rows[index].clone())),
            Content::Broken(line, reason) => (format!("{name}:{line}"), Err(reason.clone())),
        }
    }
}

/// Whether a JSON file is one array.
pub(crate) fn begins_as_array(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(DataError::io(path))?;
    file.take(4096).read_to_end(&mut start).map_err(DataError::io(path))?;
    Ok(is_array(&start))
}

/// Bytes of a file.
pub(crate) fn read_range(path: &Path, start: u64, end: u64) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = vec![0; (end - start) as usize];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A file of lines, block by block, each of whole lines: a large file is never held.
pub(crate) struct LineBlocks {
    file: File,
    block: usize,
    /// What is read, and how much of it is in the block that was given last.
    bytes: Vec<u8>,
    given: usize,
    /// The number of the next line.
    line: usize,
    is_done: bool,
}

impl LineBlocks {
    /// Blocks of about so many bytes, one line at least.
    pub(crate) fn new(file: File, block: usize) -> LineBlocks {
        LineBlocks { file, block, bytes: Vec::new(), given: 0, line: 1, is_done: false }
    }

    /// The next block, which begins with line `.1` of the file; none after the last.
    pub(crate) fn next(&mut self) -> std::io::Result<Option<(&[u8], usize)>> {
        self.bytes.drain(..self.given);
        self.given = 0;
        let is_break = |b: &u8| *b == b'\n';
        let mut looked_at = 0;
        while !self.is_done && !self.bytes[looked_at..].iter().any(is_break) {
            looked_at = self.bytes.len();
            let read = (&self.file).take(self.block as u64).read_to_end(&mut self.bytes)?;
            self.is_done = read < self.block;
        }
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let end = self.bytes.iter().rposition(|b| *b == b'\n').map_or(self.bytes.len(), |at| at + 1);
        self.given = if self.is_done { self.bytes.len() } else { end };
        let given = &self.bytes[..self.given];
        let first = self.line;
        self.line += given.iter().filter(|b| is_break(b)).count();
        Ok(Some((given.strip_prefix(BOM).filter(|_| first == 1).unwrap_or(given), first)))
    }
}

/// A byte order mark in UTF-8.
const BOM: &[u8] = b"\xEF\xBB\xBF";

/// Whether the beginning of a JSON file says that it is one array.
fn is_array(bytes: &[u8]) -> bool {
    let bytes = bytes.strip_prefix(BOM).unwrap_or(bytes);
    bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[')
}

fn broken(line: &[u8], error: &serde_json::Error) -> String {
    if std::str::from_utf8(line).is_err() {
        return "the line is not UTF-8; save the file as UTF-8".into();
    }
    // A line's own line number is always 1 and would only confuse.
    let text = error.to_string();
    let text = text.replace(" at line 1 column", " at column");
    if text.starts_with("EOF") || text.starts_with("trailing") || line.trim_ascii() == b"{" {
        return format!("{text}; a row must be one JSON object on one line");
    }
    format!("not JSON: {text}")
}

/// The text of a file, without a byte order mark.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(DataError::io(path))?;
    let bytes = bytes.strip_prefix(BOM).map(<[u8]>::to_vec).unwrap_or(bytes);
    String::from_utf8(bytes).map_err(|e| {
        let before = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|&&b| b == b'\n').count();
        DataError::BadRow {
            place: format!("{}:{line}", path.display()),
            reason: "not UTF-8; save the file as UTF-8".into(),
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::TempDir;
    use super::*;

    #[test]
    fn folders_and_lists() {
        let dir = TempDir::new("find");
        for name in ["b.jsonl", "a.txt", "README", "c.JSON"] {
            dir.file(name, "x");
        }
        let found = find(&[dir.path().to_path_buf()], None).unwrap();
        let names: Vec<_> = found.iter().map(|s| s.path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.txt", "b.jsonl", "c.JSON"]);
        assert_eq!(find(&[dir.path().to_path_buf()], Some(Format::Text)).unwrap().len(), 1);
        let readme = [dir.path().join("README")];
        assert!(find(&readme, None).unwrap_err().to_string().contains("cannot tell the format"));
        assert_eq!(find(&readme, Some(Format::Text)).unwrap()[0].format, Format::Text);
        assert!(
            find(&[dir.path().join("none.txt")], None)
                .unwrap_err()
                .to_string()
                .contains("none.txt: No such file")
        );
        let empty = TempDir::new("empty");
        assert!(
            find(&[empty.path().into()], None)
                .unwrap_err()
                .to_string()
                .contains("no file of a known extension")
        );
        assert!(find(&[], None).unwrap_err().to_string().contains("no files are named"));
        let pattern = find(&[dir.path().join("*.jsonl")], None).unwrap_err().to_string();
        assert!(pattern.contains("patterns are not looked up"), "{pattern}");
    }

    #[cfg(unix)]
    #[test]
    fn pipes_are_refused_before_they_are_opened() {
        let dir = TempDir::new("pipe");
        let path = dir.path().join("rows.jsonl");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let error = find(&[path], None).unwrap_err().to_string();
        assert!(error.contains("pipe"), "{error}");
    }

    #[test]
    fn braces() {
        let names: Vec<_> =
            expand(Path::new("s-{08..11}.tar")).iter().map(|p| p.display().to_string()).collect();
        assert_eq!(names, ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]);
        for other in ["a.tar", "{a..b}", "{3..1}", "{1}", "{0..99999999999}", "a{", "}{"] {
            assert_eq!(expand(Path::new(other)), [PathBuf::from(other)]);
        }
        let names: Vec<_> =
            expand(Path::new("{a,b}/{1..2}.tar")).iter().map(|p| p.display().to_string()).collect();
        assert_eq!(names, ["a/1.tar", "a/2.tar", "b/1.tar", "b/2.tar"]);
        let error = find(&["/nowhere/s-{08..11}.tar".into()], None).unwrap_err().to_string();
        assert!(error.contains("/nowhere/s-08.tar is missing") && error.contains("{08..11}"), "{error}");
    }

    /// Blocks of any size have the rows of the whole file, with their lines.
    #[test]
    fn lines_of_blocks_are_those_of_the_file() {
        let dir = TempDir::new("blocks");
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(40));
        let text = format!("\u{feff}{{\"a\":1}}\r\n\n{long}\n{{\"b\":\n\n\n{long}\n{{\"c\":2}}");
        for text in [text.clone(), text + "\n", "\n\n".into(), String::new(), "{}".into()] {
            let path = dir.file("a.jsonl", &text);
            let all = JsonRows::new(text.as_bytes(), "f");
            let all: Vec<_> = (0..all.len()).map(|i| all.row(i)).collect();
            for block in [1, 2, 3, 7, 8, 16, 41, text.len().max(1), 1000] {
                let mut blocks = LineBlocks::new(File::open(&path).unwrap(), block);
                let mut got = Vec::new();
                while let Some((lines, first)) = blocks.next().unwrap() {
                    assert!(!lines.is_empty());
                    let rows = JsonRows::lines(lines, "f", first);
                    got.extend((0..rows.len()).map(|i| rows.row(i)));
                }
                assert_eq!(got, all, "blocks of {block} of {text:?}");
            }
        }
    }

    fn json_rows(bytes: &[u8], name: &str) -> Vec<Placed<Value>> {
        let rows = JsonRows::new(bytes, name);
        (0..rows.len()).map(|i| rows.row(i)).collect()
    }

    #[test]
    fn lines_and_arrays() {
        let rows = json_rows(b"\xEF\xBB\xBF{\"a\":1}\r\n\n{\"a\":\n{\xff}\n", "f");
        let places: Vec<_> = rows.iter().map(|r| (r.0.as_str(), r.1.is_ok())).collect();
        assert_eq!(places, [("f:1", true), ("f:3", false), ("f:4", false)]);
        assert!(rows[1].1.as_ref().unwrap_err().contains("on one line"));
        assert!(rows[2].1.as_ref().unwrap_err().contains("not UTF-8"));
        let rows = json_rows(b" [{\"a\": 1},\n {\"a\": 2}]", "f");
        assert_eq!(rows.iter().map(|r| r.0.as_str()).collect::<Vec<_>>(), ["f, row 1", "f, row 2"]);
        assert!(json_rows(b"[1,\n2", "f")[0].1.as_ref().unwrap_err().contains("array cannot be read"));
    }

    #[test]
    fn text_that_is_not_utf8_names_the_line() {
        let dir = TempDir::new("utf8");
        let path = dir.file("x.txt", b"one\ntwo \xff");
        assert!(read_text(&path).unwrap_err().to_string().contains("x.txt:2: not UTF-8"));
    }
}
