//! WebDataset archives: tar files whose members of one sample stand together and share a key, the path up to the first
//! dot of the base name. A sample is trained on its `.json` member (any row form) or else its `.txt` member. Where both are
//! there, the `.txt` is the text of a `.json` object that has none; the number of a `.cls` is kept with the row. Members of
//! other extensions are left alone, as are files without an extension and those of names like `__meta__`.

use std::fs::File;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

use serde_json::{Value, json};

use super::error::{DataError, Result};
use super::source::Placed;
use super::tar::{Entry, Walk};

/// What is wrong with an archive that has no sample.
pub(crate) const NO_SAMPLES: &str =
    "the archive has no sample with a .json or .txt member; fetch it again, or leave it out";

/// The rows of an archive, or of whole samples cut from one; places are `name, sample key`.
pub fn samples(tar: &[u8], name: &str) -> std::result::Result<Vec<Placed<Value>>, String> {
    let mut rows: Vec<Placed<Value>> = Vec::new();
    let mut open: Option<Sample> = None;
    for entry in Walk::new(Cursor::new(tar), tar.len() as u64) {
        let entry = entry?;
        let Some((key, extension)) = split_key(&entry.path) else { continue };
        if open.as_ref().is_none_or(|s| s.key != key) {
            rows.extend(open.take().and_then(|s| s.row(name)));
        }
        let sample = open.get_or_insert_with(|| Sample { key: key.to_owned(), ..Sample::default() });
        let data = &tar[entry.start as usize..entry.end as usize];
        match extension {
            "json" => sample.json = Some(data),
            "txt" => sample.text = Some(data),
            "cls" => sample.class = Some(data),
            _ => {}
        }
    }
    rows.extend(open.and_then(|s| s.row(name)));
    Ok(rows)
}

/// Where the samples of an archive lie that have a `.json` or `.txt` member: `each` gets the range of one after the other in
/// the file, headers included. Reads headers only.
pub fn walk_samples(path: &Path, mut each: impl FnMut(Range<u64>)) -> Result<()> {
    let file = File::open(path).map_err(DataError::io(path))?;
    let len = file.metadata().map_err(DataError::io(path))?.len();
    let damaged = |reason| DataError::BadRow { place: path.display().to_string(), reason };
    let mut open: Option<(String, Range<u64>, bool)> = None;
    for entry in Walk::new(file, len) {
        let Entry { path, header, end, .. } = entry.map_err(damaged)?;
        let Some((key, extension)) = split_key(&path) else { continue };
        let usable = matches!(extension, "json" | "txt");
        let end = end.next_multiple_of(super::tar::BLOCK as u64).min(len);
        match &mut open {
            Some((of, range, any)) if of == key => {
                range.end = end;
                *any |= usable;
            }
            _ => {
                if let Some((_, range, true)) = open.replace((key.to_owned(), header..end, usable)) {
                    each(range);
                }
            }
        }
    }
    if let Some((_, range, true)) = open {
        each(range);
    }
    Ok(())
}

/// Where blocks of whole samples lie in an archive, each of `target` bytes or a little more, the last of fewer.
pub(crate) fn blocks(path: &Path, target: u64) -> Result<Vec<Range<u64>>> {
    let mut blocks: Vec<Range<u64>> = Vec::new();
    walk_samples(path, |range| match blocks.last_mut() {
        Some(block) if block.end - block.start < target => block.end = range.end,
        _ => blocks.push(range),
    })?;
    Ok(blocks)
}

#[derive(Default)]
struct Sample<'a> {
    key: String,
    json: Option<&'a [u8]>,
    text: Option<&'a [u8]>,
    class: Option<&'a [u8]>,
}

impl Sample<'_> {
    fn row(self, name: &str) -> Option<Placed<Value>> {
        let text = |bytes| match std::str::from_utf8(bytes) {
            Ok(text) => Ok(json!(text)),
            Err(_) => Err("the .txt member is not UTF-8; save it as UTF-8".to_owned()),
        };
        let row = match (self.json, self.text) {
            (Some(json), None) => parse(json),
            (Some(json), Some(bytes)) => parse(json).and_then(|mut row| {
                if let Value::Object(row) = &mut row
                    && !row.contains_key("text")
                {
                    row.insert("text".into(), text(bytes)?);
                }
                Ok(row)
            }),
            (None, Some(bytes)) => text(bytes).map(|text| json!({"text": text})),
            (None, None) => return None,
        };
        let class = self.class.and_then(|c| std::str::from_utf8(c).ok()?.trim().parse::<i64>().ok());
        let row = row.map(|mut row| {
            if let (Value::Object(row), Some(class)) = (&mut row, class) {
                row.entry("cls").or_insert(json!(class));
            }
            row
        });
        Some((format!("{name}, sample {}", self.key), row))
    }
}

fn parse(json: &[u8]) -> std::result::Result<Value, String> {
    serde_json::from_slice(json).map_err(|e| format!("the .json member is not JSON: {e}"))
}

/// `a/b.c.json` → (`a/b`, `c.json`); none for what the format leaves out.
pub(crate) fn split_key(path: &str) -> Option<(&str, &str)> {
    let base = path.rfind('/').map_or(0, |at| at + 1);
    let dot = base + path[base..].find('.').filter(|dot| *dot > 0)?;
    let special = path[base..dot].starts_with("__") && path[base..].ends_with("__");
    (!special).then_some((&path[..dot], &path[dot + 1..]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tar::BLOCK;
    use super::*;

    fn entry(path: &str, kind: u8, data: &[u8]) -> Vec<u8> {
        let mut header = vec![0u8; BLOCK];
        header[..path.len()].copy_from_slice(path.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        header[148..156].copy_from_slice(b"        ");
        header[156] = kind;
        header[257..263].copy_from_slice(b"ustar\0");
        let sum: u64 = header.iter().map(|&b| u64::from(b)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        header.extend_from_slice(data);
        header.resize(header.len().div_ceil(BLOCK) * BLOCK, 0);
        header
    }

    #[test]
    fn samples_of_contiguous_members() {
        let long = format!("d/{}.json", "n".repeat(150));
        let tar = [
            entry("d/", b'5', b""),
            entry("d/a.txt", b'0', b"plain"),
            entry("d/a.json", b'0', br#"{"text": "row"}"#),
            entry("d/b.x.png", b'0', &[1; 700]),
            entry("d/b.txt", b'0', b"only text"),
            entry("d/c.json", b'0', b"{"),
            entry("d/e.cls", b'0', b"3"),
            entry("././@LongLink", b'L', long.as_bytes()),
            entry("d/nnn", b'0', br#"{"text": "long"}"#),
            vec![0; 1024],
        ]
        .concat();
        let rows = samples(&tar, "f.tar").unwrap();
        let shown: Vec<_> =
            rows.iter().map(|(p, r)| (p.as_str(), r.as_ref().map(|v| v["text"].clone()).ok())).collect();
        assert_eq!(shown[0], ("f.tar, sample d/a", Some(json!("row"))));
        assert_eq!(shown[1], ("f.tar, sample d/b", Some(json!("only text"))));
        assert_eq!(shown[2], ("f.tar, sample d/c", None));
        assert_eq!((shown.len(), &shown[3].1), (4, &Some(json!("long"))));
    }

    #[test]
    fn broken_archives() {
        let error = |tar: &[u8]| samples(tar, "f").err().unwrap();
        assert!(error(&[7; 600]).contains("no tar header at byte 0"));
        assert!(error(&entry("a.txt", b'0', &[b'x'; 900])[..1000]).contains("ends inside"));
        assert!(error(&[0x1f, 0x8b, 8]).contains("gunzip"));
        assert!(samples(&[], "f").unwrap().is_empty());
    }
}
