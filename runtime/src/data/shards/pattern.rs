//! Names of shards: `train-{000..009}.tar` or `train-%06d.tar`.

use std::path::{Path, PathBuf};

use super::super::error::{DataError, Result};
use super::super::source::expand;

/// Where shards are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// These, in this order.
    Names(Vec<PathBuf>),
    /// As many as are needed: text before a number, its width, text behind it.
    Counted(String, usize, String),
}

impl Pattern {
    /// Reads a pattern. A path without a number is one shard.
    ///
    /// # Errors
    /// If it is not UTF-8.
    pub fn parse(path: &Path) -> Result<Pattern> {
        let Some(text) = path.to_str() else {
            let reason = format!("{} is not UTF-8; give another name", path.display());
            return Err(DataError::Config { setting: "--out", reason });
        };
        if let Some((before, rest)) = text.split_once('%')
            && let Some((width, after)) = rest.split_once('d')
            && let Ok(width @ 0..=20) =
                width.parse::<usize>().or(if width.is_empty() { Ok(0) } else { Err(()) })
        {
            return Ok(Pattern::Counted(before.into(), width, after.into()));
        }
        Ok(Pattern::Names(expand(path)))
    }

    /// How many shards there can be, if that is said.
    pub fn limit(&self) -> Option<usize> {
        match self {
            Pattern::Names(names) => Some(names.len()),
            Pattern::Counted(..) => None,
        }
    }

    /// The name of shard `index`.
    pub fn name(&self, index: usize) -> Option<PathBuf> {
        match self {
            Pattern::Names(names) => names.get(index).cloned(),
            Pattern::Counted(before, width, after) => {
                Some(PathBuf::from(format!("{before}{index:0width$}{after}")))
            }
        }
    }

    /// The first `count` shards as one pattern, for those who read them.
    pub fn of(&self, count: usize) -> Option<PathBuf> {
        let (first, last) = (self.name(0)?, self.name(count.checked_sub(1)?)?);
        let (first, last) = (first.to_str()?.to_owned(), last.to_str()?);
        if first == last {
            return Some(PathBuf::from(first));
        }
        let same = first.bytes().zip(last.bytes()).take_while(|(a, b)| a == b).count();
        // The number begins where the names differ, or at the digits before.
        let digits = first[..same].bytes().rev().take_while(u8::is_ascii_digit).count();
        let start = same - digits;
        let number = |name: &str| {
            let n = name[start..].bytes().take_while(u8::is_ascii_digit).count();
            (name[start..start + n].to_owned(), name[start + n..].to_owned())
        };
        let ((from, after), (to, end)) = (number(&first), number(last));
        let range = PathBuf::from(format!("{}{{{from}..{to}}}{after}", &first[..start]));
        (after == end && expand(&range).len() == count).then_some(range)
    }

    /// Where the manifest of these shards lies: `train-{00..09}.tar` has `train.tar.manifest`, `{00..09}.tar` has
    /// `shards.tar.manifest`.
    pub fn manifest(&self) -> PathBuf {
        let first = self.name(0).unwrap_or_default();
        let stem = first.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let stem = stem.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches(['-', '_', '.']);
        let kind = first.extension().unwrap_or_default().to_string_lossy();
        first.with_file_name(format!("{}.{kind}.manifest", if stem.is_empty() { "shards" } else { stem }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_ranges_and_manifests() {
        let check = |text: &str, third: Option<&str>, of: &str, manifest: &str| {
            let pattern = Pattern::parse(Path::new(text)).unwrap();
            assert_eq!(pattern.name(2), third.map(PathBuf::from), "{text}");
            let count = pattern.limit().unwrap_or(12).min(12);
            assert_eq!(pattern.of(count), Some(PathBuf::from(of)), "{text}");
            assert_eq!(pattern.manifest(), PathBuf::from(manifest), "{text}");
        };
        check("a/{000..019}.tar", Some("a/002.tar"), "a/{000..011}.tar", "a/shards.tar.manifest");
        check("a/t-{08..11}.tar", Some("a/t-10.tar"), "a/t-{08..11}.tar", "a/t.tar.manifest");
        check("t-%06d.tar", Some("t-000002.tar"), "t-{000000..000011}.tar", "t.tar.manifest");
        check("t%d.tar", Some("t2.tar"), "t{0..11}.tar", "t.tar.manifest");
        check("one.tar", None, "one.tar", "one.tar.manifest");
        check("100%/{1..9}.tar", Some("100%/3.tar"), "100%/{1..9}.tar", "100%/shards.tar.manifest");
    }
}
