//! How fast a disk reads, from up to 64 MiB of a file that is there, or of one written for it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Bytes that are read.
const SAMPLE: usize = 64 << 20;
/// Bytes of a read.
const PIECE: usize = 4 << 20;
/// Less than this says nothing about a disk.
const LEAST: usize = 1 << 20;
/// No disk is faster: what is read at this rate came from the page cache.
const CACHED: f64 = 8e9;

/// A speed that was measured.
#[derive(Clone, Debug)]
pub(crate) struct Speed {
    /// What was read, or where a file was written for it.
    pub(crate) path: PathBuf,
    /// How much was read.
    pub(crate) bytes: usize,
    /// Bytes a second.
    pub(crate) read: f64,
    /// Bytes a second until it was on disk, if a file was written.
    pub(crate) written: Option<f64>,
    /// Whether it surely came from the page cache.
    pub(crate) cached: bool,
}

impl Speed {
    /// In words.
    pub(crate) fn text(&self) -> String {
        let read = format!("{:.2} GB/s reading", self.read * 1e-9);
        let bytes = crate::config::format_bytes(self.bytes as u64);
        if self.bytes < LEAST {
            return format!("{} has {bytes}, too little to time", self.path.display());
        }
        match self.written {
            Some(written) => format!(
                "{:.2} GB/s writing {bytes} into {}; read back at {:.2} GB/s, from the page cache",
                written * 1e-9,
                self.path.display(),
                self.read * 1e-9
            ),
            None if self.cached => format!("{read} {bytes} of {}, from the page cache", self.path.display()),
            None => format!("{read} {bytes} of {} (what was cached counts)", self.path.display()),
        }
    }
}

/// Reads the start of the largest file at or in `path`.
pub(crate) fn read(path: &Path) -> io::Result<Speed> {
    let file = largest(path)?;
    let (bytes, seconds) = timed_read(&file)?;
    let rate = bytes as f64 / seconds.max(1e-9);
    Ok(Speed { path: file, bytes, read: rate, written: None, cached: rate > CACHED })
}

/// Writes a file into `folder`, reads it and removes it.
pub(crate) fn write(folder: &Path) -> io::Result<Speed> {
    let path = folder.join(format!(".kfc-doctor.{}.tmp", std::process::id()));
    let measure = || -> io::Result<Speed> {
        let piece = vec![0x5au8; PIECE];
        let start = Instant::now();
        let mut file = File::create(&path)?;
        for _ in 0..SAMPLE / PIECE {
            file.write_all(&piece)?;
        }
        file.sync_all()?;
        let written = SAMPLE as f64 / start.elapsed().as_secs_f64().max(1e-9);
        let (bytes, seconds) = timed_read(&path)?;
        let read = bytes as f64 / seconds.max(1e-9);
        Ok(Speed { path: folder.to_owned(), bytes, read, written: Some(written), cached: true })
    };
    let speed = measure();
    // A file that could not be made need not go.
    let _ = std::fs::remove_file(&path);
    speed
}

fn timed_read(path: &Path) -> io::Result<(usize, f64)> {
    let mut file = File::open(path)?;
    let mut piece = vec![0; PIECE];
    let (start, mut bytes) = (Instant::now(), 0);
    while bytes < SAMPLE {
        match file.read(&mut piece)? {
            0 => break,
            n => bytes += n,
        }
    }
    Ok((bytes, start.elapsed().as_secs_f64()))
}

fn largest(path: &Path) -> io::Result<PathBuf> {
    if path.is_file() {
        return Ok(path.to_owned());
    }
    let files = std::fs::read_dir(path)?.filter_map(|e| {
        let e = e.ok()?;
        let meta = std::fs::metadata(e.path()).ok().filter(|m| m.is_file())?;
        Some((meta.len(), e.path()))
    });
    let found = files.max().map(|(_, path)| path);
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no file to read"))
}
