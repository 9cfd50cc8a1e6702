//! Files that are either complete or not there: atomic writing, the error type of everything that reads or writes, and
//! small JSON helpers.
//!
//! Invariants:
//! - a file or folder of kfc appears under its name only once it is complete and on disk (temporary sibling, fsync,
//!   rename, fsync of the parent);
//! - an error names the path and the reason that the operating system gave;
//! - what a killed process left behind has a name of the form `NAME.tmp-PID-N` or `NAME.old-PID-N` and is recognised by
//!   [`clean_stale`].

mod atomic;
mod xxh64;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;
use thiserror::Error;

pub use atomic::{AtomicDir, AtomicFile, Written, clean_stale, clean_stale_of, remove_dir, write_atomic};
pub use xxh64::{Xxh64, xxh64};

/// What can go wrong with a file.
#[derive(Debug, Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {action} {}: {reason}", .path.display())]
    Io {
        /// What was tried, as a verb: `read`, `create`, ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// The file system (or the user's quota) is full.
    #[error(
        "disk full while writing {}: {}; nothing was left behind. Free space on that file system or choose another \
         output folder ({reason})", .path.display(), amount(*.written, *.expected)
    )]
    DiskFull {
        /// The file that could not be completed.
        path: PathBuf,
        /// Bytes handed over before it happened.
        written: u64,
        /// Bytes the whole file has, where that is known.
        expected: Option<u64>,
        /// The system's reason.
        reason: io::Error,
    },
    /// The file can be read, but what it holds is not what it has to be.
    #[error("{}: {message}", .path.display())]
    Invalid {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        message: String,
    },
}

/// Shorthand for results of the file side.
pub type Result<T> = std::result::Result<T, FileError>;

impl FileError {
    /// A [`FileError::Invalid`].
    pub fn invalid(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        FileError::Invalid { path: path.into(), message: message.into() }
    }

    /// A refusal by the operating system; a full disk becomes [`FileError::DiskFull`].
    pub fn io(action: &'static str, path: impl Into<PathBuf>, reason: io::Error) -> Self {
        FileError::write(action, path.into(), 0, None, reason)
    }

    fn write(
        action: &'static str,
        path: PathBuf,
        written: u64,
        expected: Option<u64>,
        reason: io::Error,
    ) -> Self {
        match reason.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                FileError::DiskFull { path, written, expected, reason }
            }
            _ => FileError::Io { action, path, reason },
        }
    }

    /// The file or folder that the error is about.
    pub fn path(&self) -> &Path {
        match self {
            FileError::Io { path, .. }
            | FileError::DiskFull { path, .. }
            | FileError::Invalid { path, .. } => path,
        }
    }
}

fn amount(written: u64, expected: Option<u64>) -> String {
    match expected {
        Some(n) => format!("it failed after {written} of {n} bytes"),
        None if written > 0 => format!("it failed after {written} bytes"),
        None => "no byte could be written".into(),
    }
}

/// Reads a whole file that is expected to be small (JSON, a tokenizer): at most `limit` bytes.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|e| FileError::io("open", path, e))?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| FileError::io("read", path, e))?;
    if bytes.len() as u64 > limit {
        return Err(FileError::invalid(
            path,
            format!("larger than {limit} bytes, which no file of this kind is; is it the right file?"),
        ));
    }
    Ok(bytes)
}

/// Largest JSON file that is read (an index of a model with a million tensors is about 100 MB).
const MAX_JSON: u64 = 256 << 20;

/// Reads a JSON file; a syntax error names line and column.
pub fn read_json(path: &Path) -> Result<Value> {
    let bytes = read_limited(path, MAX_JSON)?;
    serde_json::from_slice(&bytes).map_err(|e| FileError::invalid(path, format!("not valid JSON: {e}")))
}

/// Writes indented JSON with a final newline, atomically. Object keys come out sorted.
pub fn write_json(path: &Path, value: &Value) -> Result<Written> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|e| FileError::invalid(path, format!("cannot be written as JSON: {e}")))?;
    text.push('\n');
    write_atomic(path, |file| file.write_all(text.as_bytes()))
}

/// Lets a write beyond the limit of file sizes (`ulimit -f`) fail like one to a full disk. Without this the system ends the
/// process, and temporary files stay.
pub fn survive_size_limit() {
    // SAFETY: sets the disposition of one signal to "ignore"; no handler runs.
    #[cfg(unix)]
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Length and [`xxh64`] (seed 0) of a file's bytes.
pub fn hash_file(path: &Path) -> Result<Written> {
    let mut file = File::open(path).map_err(|e| FileError::io("open", path, e))?;
    let mut hash = Xxh64::new();
    let mut bytes = 0u64;
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Written { bytes, hash: hash.finish() }),
            Ok(n) => {
                hash.update(&buffer[..n]);
                bytes += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(FileError::io("read", path, e)),
        }
    }
}

/// Regular files below `folder`, as paths relative to it, sorted. Links are followed; a chain of folders deeper than 32
/// (a link loop) is an error.
pub fn list_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut open = vec![(PathBuf::new(), 0)];
    while let Some((relative, depth)) = open.pop() {
        let here = folder.join(&relative);
        if depth > 32 {
            return Err(FileError::invalid(here, "folders nested more than 32 deep; is there a link loop?"));
        }
        for entry in fs::read_dir(&here).map_err(|e| FileError::io("list", &here, e))? {
            let name = entry.map_err(|e| FileError::io("list", &here, e))?.file_name();
            let kind =
                fs::metadata(here.join(&name)).map_err(|e| FileError::io("read", here.join(&name), e))?;
            if kind.is_dir() {
                open.push((relative.join(&name), depth + 1));
            } else if kind.is_file() {
                files.push(relative.join(&name));
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Copies the regular files of a folder (links followed) to a new folder, which appears complete or not at all; a folder
/// that has that name is replaced.
pub fn snapshot(from: &Path, to: &Path) -> Result<()> {
    let files = list_files(from)?;
    let target = AtomicDir::create(to)?;
    for file in &files {
        copy_file(&from.join(file), &target.path().join(file))?;
    }
    target.commit()
}

/// Copies one file into a folder that is not visible yet (parents are created); errors as in atomic writing.
pub(crate) fn copy_file(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(|e| FileError::io("create", parent, e))?;
    }
    let expected = fs::metadata(from).map_err(|e| FileError::io("read", from, e))?.len();
    fs::copy(from, to)
        .map(|_| ())
        .map_err(|e| FileError::write("copy to", to.to_path_buf(), 0, Some(expected), e))
}

#[cfg(test)]
#[path = "files/tests.rs"]
pub(crate) mod tests;
