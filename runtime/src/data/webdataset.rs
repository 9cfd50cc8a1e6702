//! WebDataset archives: tar files whose members of one sample stand together and share a key, the path up to the first
//! dot of the base name. A sample is trained on its `.json` member (any row form) or else its `.txt` member; members of
//! other extensions are left alone. Format: POSIX ustar with the GNU and pax long names, uncompressed.

use serde_json::{Value, json};

use super::source::Placed;

const BLOCK: usize = 512;

/// The rows of an archive; places are `name, sample key`.
pub fn samples(tar: &[u8], name: &str) -> std::result::Result<Vec<Placed<Value>>, String> {
    let mut rows: Vec<Placed<Value>> = Vec::new();
    let mut open: Option<Sample> = None;
    for member in members(tar)? {
        let (key, extension) = split_key(&member.path);
        if open.as_ref().is_none_or(|s| s.key != key) {
            rows.extend(open.take().and_then(|s| s.row(name)));
        }
        let sample = open.get_or_insert_with(|| Sample { key: key.to_owned(), json: None, text: None });
        match extension {
            "json" => sample.json = Some(member.data),
            "txt" => sample.text = Some(member.data),
            _ => {}
        }
    }
    rows.extend(open.and_then(|s| s.row(name)));
    Ok(rows)
}

struct Sample<'a> {
    key: String,
    json: Option<&'a [u8]>,
    text: Option<&'a [u8]>,
}

impl Sample<'_> {
    fn row(self, name: &str) -> Option<Placed<Value>> {
        let row = match (self.json, self.text) {
            (Some(json), _) => {
                serde_json::from_slice(json).map_err(|e| format!("the .json member is not JSON: {e}"))
            }
            (None, Some(text)) => match std::str::from_utf8(text) {
                Ok(text) => Ok(json!({"text": text})),
                Err(_) => Err("the .txt member is not UTF-8; save it as UTF-8".into()),
            },
            (None, None) => return None,
        };
        Some((format!("{name}, sample {}", self.key), row))
    }
}

/// `a/b.c.json` → (`a/b`, `c.json`).
fn split_key(path: &str) -> (&str, &str) {
    let base = path.rfind('/').map_or(0, |at| at + 1);
    match path[base..].find('.') {
        Some(dot) => (&path[..base + dot], &path[base + dot + 1..]),
        None => (path, ""),
    }
}

struct Member<'a> {
    path: String,
    data: &'a [u8],
}

fn members(tar: &[u8]) -> std::result::Result<Vec<Member<'_>>, String> {
    if tar.starts_with(&[0x1f, 0x8b]) {
        return Err("the archive is compressed; unpack it with gunzip".into());
    }
    let (mut out, mut at, mut long_name) = (Vec::new(), 0, None);
    while at + BLOCK <= tar.len() {
        let header = &tar[at..at + BLOCK];
        if header.iter().all(|&b| b == 0) {
            break;
        }
        check_sum(header).ok_or_else(|| format!("no tar header at byte {at}; is this a tar file?"))?;
        let size =
            octal(&header[124..136]).ok_or_else(|| format!("the tar header at byte {at} has no size"))?;
        let start = at + BLOCK;
        let data = usize::try_from(size).ok().and_then(|n| tar.get(start..start.checked_add(n)?));
        let data =
            data.ok_or_else(|| format!("the archive ends inside the member at byte {at}; fetch it again"))?;
        match header[156] {
            b'L' => long_name = Some(text(data)),
            b'x' => long_name = pax_path(data).or(long_name),
            b'0' | 0 => {
                let path = long_name.take().unwrap_or_else(|| ustar_path(header));
                out.push(Member { path, data });
            }
            _ => long_name = None,
        }
        at = start + data.len().div_ceil(BLOCK) * BLOCK;
    }
    Ok(out)
}

fn check_sum(header: &[u8]) -> Option<()> {
    let blank = |i: usize, b: u8| if (148..156).contains(&i) { b' ' } else { b };
    let sum: u64 = header.iter().enumerate().map(|(i, &b)| u64::from(blank(i, b))).sum();
    (octal(&header[148..156])? == sum).then_some(())
}

/// A number in octal, or in the binary form of large sizes (first bit set).
fn octal(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        return Some(field[field.len() - 8..].iter().fold(0, |n, &b| n << 8 | u64::from(b)));
    }
    let digits = text(field);
    u64::from_str_radix(digits.trim(), 8).ok()
}

fn ustar_path(header: &[u8]) -> String {
    let (name, prefix) = (text(&header[..100]), text(&header[345..500]));
    if header[257..262] == *b"ustar" && header[262] == 0 && !prefix.is_empty() {
        format!("{prefix}/{name}")
    } else {
        name
    }
}

/// The `path` record of a pax header: lines of `length key=value`.
fn pax_path(data: &[u8]) -> Option<String> {
    let records = String::from_utf8_lossy(data);
    records.lines().find_map(|line| line.split_once(' ')?.1.strip_prefix("path=").map(str::to_owned))
}

/// Text up to the first zero byte.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
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
