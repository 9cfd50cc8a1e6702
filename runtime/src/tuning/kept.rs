//! The file in which a tuning is kept, and when it is written: also while a search goes on, so that one that is killed has
//! lost seconds. Searches that go on beside each other write one after the other, each beside what the others found.

use super::VARIABLE;
use crate::calibration::cache_folder;
use crate::files::{self, AtomicFile, FileError, xxh64};
use crate::profile::Machine;
use crate::{Result, RunError};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time between two times that a search keeps what it found so far.
const EVERY: Duration = Duration::from_secs(1);

/// The least share of a search's time that does not go into writing.
const RARELY: u32 = 20;

/// The name that the environment gives, if it gives one.
pub(super) fn named() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).filter(|name| !name.is_empty()).map(PathBuf::from)
}

/// Where it is kept: the file that the environment names, or one of this machine's in the cache.
pub(super) fn file(machine: &Machine) -> Option<PathBuf> {
    match named() {
        Some(name) if name.as_os_str() == "off" => None,
        Some(path) => Some(path),
        None => {
            let Machine { cpu, isa, threads, version } = machine;
            let key = format!("{cpu}\n{isa}\n{threads}\n{version}");
            Some(cache_folder()?.join(format!("tuning-{:016x}.json", xxh64(key.as_bytes()))))
        }
    }
}

/// The file, whose folder is there.
///
/// # Errors
/// If there is no place for one, or the folder cannot be made.
pub(super) fn place(machine: &Machine) -> Result<PathBuf> {
    let Some(path) = file(machine) else {
        return Err(RunError::Input(format!(
            "no place for what is found: {VARIABLE} is off, or neither XDG_CACHE_HOME nor HOME is set"
        )));
    };
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| FileError::io("create", folder, e))?;
    }
    Ok(path)
}

/// Whether the file could be written now. What a killed process left of it is removed; a file that is there stays.
///
/// # Errors
/// As [`place`], and if it could not.
pub(super) fn try_place(machine: &Machine) -> Result<PathBuf> {
    let path = place(machine)?;
    drop(AtomicFile::create(&path)?);
    files::clean_stale_of(&path)?;
    Ok(path)
}

/// Does `work`, which reads and writes the file, while no other process does.
pub(super) fn alone<T>(path: &Path, work: impl FnOnce() -> T) -> T {
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Where the file system has no locks, what another search finds in this moment may be lost.
    let lock = File::open(folder).ok().filter(|folder| folder.lock().is_ok());
    let done = work();
    drop(lock);
    done
}

/// When a search keeps what it found so far.
#[derive(Debug)]
pub(super) struct Pace {
    last: Instant,
    pause: Duration,
}

impl Pace {
    /// The first time is a pause from now.
    pub(super) fn new() -> Pace {
        Pace { last: Instant::now(), pause: EVERY }
    }

    /// Saves if it is time. That it cannot be is told at the end of the search, which tries it again.
    pub(super) fn save(&mut self, save: impl FnOnce() -> Result<PathBuf>) {
        if self.last.elapsed() < self.pause {
            return;
        }
        let start = Instant::now();
        let _ = save();
        self.pause = EVERY.max(start.elapsed() * RARELY);
        self.last = Instant::now();
    }
}
