//! Tar archives, read and written: POSIX ustar with the GNU and pax long names, uncompressed.
//!
//! [`Walk`] goes from header to header and reads none of the members' bytes; whatever it is given, it yields members whose
//! bytes lie inside the archive, or an error.

use std::io::{BufReader, Read, Seek};

/// Headers and data start at multiples of this.
pub const BLOCK: usize = 512;
/// Longest name or pax header that is believed.
const MAX_NAME: u64 = 1 << 20;
/// Longest name that fits a header's own field.
const NAME_FIELD: usize = 100;

/// A regular file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name, with folders.
    pub path: String,
    /// Where its first header starts (a long name has headers of its own).
    pub header: u64,
    /// Where its bytes start.
    pub start: u64,
    /// Where they end.
    pub end: u64,
}

/// The regular files of an archive, in order.
#[derive(Debug)]
pub struct Walk<R> {
    reader: BufReader<R>,
    len: u64,
    at: u64,
    over: bool,
}

impl<R: Read + Seek> Walk<R> {
    /// Walks an archive of `len` bytes from its start, where `reader` stands.
    pub fn new(reader: R, len: u64) -> Walk<R> {
        Walk { reader: BufReader::with_capacity(1 << 16, reader), len, at: 0, over: false }
    }

    fn step(&mut self) -> Result<Option<Entry>, String> {
        let (mut header, mut long_name) = (self.at, None);
        loop {
            let Some(block) = self.block()? else { return Ok(None) };
            let (at, data) = (self.at, self.at + BLOCK as u64);
            check_sum(&block).ok_or_else(|| format!("no tar header at byte {at}; is this a tar file?"))?;
            let size =
                octal(&block[124..136]).ok_or_else(|| format!("the tar header at byte {at} has no size"))?;
            let end = data.checked_add(size).filter(|end| *end <= self.len);
            let end = end
                .ok_or_else(|| format!("the archive ends inside the member at byte {at}; fetch it again"))?;
            match block[156] {
                kind @ (b'L' | b'x') => {
                    let bytes = self.name(size, at)?;
                    let name = if kind == b'L' { Some(text(&bytes)) } else { pax_path(&bytes) };
                    long_name = name.or(long_name);
                    self.go(data + size, end)?;
                }
                kind => {
                    self.go(data, end)?;
                    if matches!(kind, b'0' | 0) {
                        let path = long_name.unwrap_or_else(|| ustar_path(&block));
                        return Ok(Some(Entry { path, header, start: data, end }));
                    }
                    (header, long_name) = (self.at, None);
                }
            }
        }
    }

    /// The header at the current place; none at the end of the archive.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, String> {
        let left = self.len.saturating_sub(self.at);
        if left == 0 {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        let there = left.min(BLOCK as u64) as usize;
        self.reader.read_exact(&mut block[..there]).map_err(|e| self.unreadable(&e))?;
        if self.at == 0 && block.starts_with(&[0x1f, 0x8b]) {
            return Err("the archive is compressed; unpack it with gunzip".into());
        }
        if there < BLOCK {
            return Err(format!("the archive ends inside the header at byte {}; fetch it again", self.at));
        }
        Ok((!block.iter().all(|&b| b == 0)).then_some(block))
    }

    fn name(&mut self, size: u64, at: u64) -> Result<Vec<u8>, String> {
        if size > MAX_NAME {
            return Err(format!("the name at byte {at} has {size} bytes; the archive is damaged"));
        }
        let mut bytes = vec![0; size as usize];
        self.reader.read_exact(&mut bytes).map_err(|e| self.unreadable(&e))?;
        Ok(bytes)
    }

    /// Goes from byte `from`, where the reader stands, to the header behind data that end at `end`.
    fn go(&mut self, from: u64, end: u64) -> Result<(), String> {
        self.at = end.next_multiple_of(BLOCK as u64);
        let forward = i64::try_from(self.at - from).map_err(|e| e.to_string())?;
        self.reader.seek_relative(forward).map_err(|e| self.unreadable(&e))
    }

    fn unreadable(&self, error: &std::io::Error) -> String {
        format!("cannot be read at byte {}: {error}", self.at)
    }
}

impl<R: Read + Seek> Iterator for Walk<R> {
    type Item = Result<Entry, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let entry = self.step().transpose();
        self.over = !matches!(entry, Some(Ok(_)));
        entry
    }
}

fn check_sum(header: &[u8; BLOCK]) -> Option<()> {
    (octal(&header[148..156])? == sum_of(header)).then_some(())
}

/// The sum of a header's bytes, with blanks for the sum itself.
fn sum_of(header: &[u8; BLOCK]) -> u64 {
    let blank = |i: usize, b: u8| if (148..156).contains(&i) { b' ' } else { b };
    header.iter().enumerate().map(|(i, &b)| u64::from(blank(i, b))).sum()
}

/// A number in octal, or in the binary form of large sizes (first bit set).
fn octal(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        return Some(field[field.len() - 8..].iter().fold(0, |n, &b| n << 8 | u64::from(b)));
    }
    let digits = text(field);
    u64::from_str_radix(digits.trim(), 8).ok()
}

fn ustar_path(header: &[u8; BLOCK]) -> String {
    let (name, prefix) = (text(&header[..NAME_FIELD]), text(&header[345..500]));
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

/// A member as an archive holds it: header and data, padded to whole blocks. Owner and time are 0, so that the same members
/// give the same archive; names beyond 100 bytes get a GNU long name.
pub fn member(path: &str, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 * BLOCK + data.len().next_multiple_of(BLOCK));
    if path.len() > NAME_FIELD {
        let name = [path.as_bytes(), &[0]].concat();
        put(&mut out, b"././@LongLink", b'L', &name);
    }
    put(&mut out, &path.as_bytes()[..path.len().min(NAME_FIELD)], b'0', data);
    out
}

/// What ends an archive: two empty blocks.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

fn put(out: &mut Vec<u8>, name: &[u8], kind: u8, data: &[u8]) {
    let mut header = [0u8; BLOCK];
    header[..name.len()].copy_from_slice(name);
    header[100..108].copy_from_slice(b"0000444\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    if data.len() < 1 << 33 {
        header[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
    } else {
        header[124] = 0x80;
        header[128..136].copy_from_slice(&(data.len() as u64).to_be_bytes());
    }
    header[136..148].copy_from_slice(b"00000000000\0");
    header[156] = kind;
    // GNU's magic where a GNU long name may stand.
    header[257..265].copy_from_slice(b"ustar  \0");
    let sum = sum_of(&header);
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Cursor;

    fn walk(tar: &[u8]) -> Result<Vec<Entry>, String> {
        Walk::new(Cursor::new(tar), tar.len() as u64).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let long = format!("d/{}.json", "n".repeat(250));
        let members = [("a.txt", &b"plain"[..]), (&long, b"{}"), ("b.bin", &[7; 1024]), ("c.txt", b"")];
        let mut tar: Vec<u8> = members.iter().flat_map(|(path, data)| member(path, data)).collect();
        tar.extend_from_slice(&END);
        let found = walk(&tar).unwrap();
        assert_eq!(found.len(), members.len());
        for (entry, (path, data)) in found.iter().zip(members) {
            assert_eq!((entry.path.as_str(), &tar[entry.start as usize..entry.end as usize]), (path, data));
        }
        assert_eq!((found[1].header, found[1].start), (1024, 1024 + 3 * 512));
    }

    #[test]
    fn a_cut_anywhere_is_an_error_or_an_end() {
        let tar = [member("a.txt", &[b'x'; 900]), member("b.txt", b"y")].concat();
        for cut in 0..tar.len() {
            let found = walk(&tar[..cut]);
            let whole = cut == 0 || cut == 1536 || (1536 + 512 + 1..).contains(&cut) || cut == 512 + 900;
            if whole || (512 + 900..1536).contains(&cut) {
                assert!(found.is_ok_and(|f| f.len() <= 2), "{cut}");
            } else {
                assert!(found.unwrap_err().contains("the archive ends inside"), "{cut}");
            }
        }
        assert!(walk(&[7; 600]).unwrap_err().contains("no tar header at byte 0"));
        assert!(walk(&[&[0x1f, 0x8b, 8][..], &[0; 600]].concat()).unwrap_err().contains("gunzip"));
    }
}
