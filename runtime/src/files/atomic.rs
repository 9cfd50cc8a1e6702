//! Files and folders that appear complete or not at all.
//!
//! A temporary sibling `NAME.tmp-PID-N` is built, fsynced and renamed; it carries an advisory lock while its writer
//! lives, so that a leftover of a killed process can be told from work in progress even where process ids repeat
//! (containers). Folders are replaced by two renames (`NAME` to `NAME.old-PID-N`, then the new one in); a kill between
//! the two is undone by [`clean_stale`].

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::xxh64::Xxh64;
use super::{FileError, Result};

/// Bytes gathered before a system call.
const BUFFER: usize = 1 << 20;

/// What a finished file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// Length in bytes.
    pub bytes: u64,
    /// [`super::xxh64`] of the bytes.
    pub hash: u64,
}

/// A file under construction. Dropped without [`AtomicFile::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct AtomicFile {
    out: BufWriter<File>,
    temp: PathBuf,
    path: PathBuf,
    written: u64,
    expected: Option<u64>,
    hash: Xxh64,
    finished: bool,
}

impl AtomicFile {
    /// Starts `path`, whose parent folders are created where missing. A file of that name stays as it is until
    /// [`AtomicFile::finish`]; anything but a regular file there (a folder, a device) is an error.
    pub fn create(path: &Path) -> Result<AtomicFile> {
        if let Ok(there) = fs::metadata(path)
            && !there.is_file()
        {
            return Err(FileError::invalid(
                path,
                "is there already and is no regular file; choose another name",
            ));
        }
        let parent = parent_of(path);
        fs::create_dir_all(&parent).map_err(|e| FileError::io("create", &parent, e))?;
        loop {
            let temp = sibling(path, "tmp")?;
            let file = match OpenOptions::new().write(true).create_new(true).open(&temp) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(FileError::io("create", path, e)),
            };
            if !hold(&file, &temp) {
                continue;
            }
            return Ok(AtomicFile {
                out: BufWriter::with_capacity(BUFFER, file),
                temp,
                path: path.to_path_buf(),
                written: 0,
                expected: None,
                hash: Xxh64::new(),
                finished: false,
            });
        }
    }

    /// States how long the file will be, for the message of a full disk.
    pub fn expect_bytes(&mut self, bytes: u64) {
        self.expected = Some(bytes);
    }

    /// Bytes so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Where the file will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends bytes; the error names the file.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_all(bytes).map_err(|e| self.error("write", e))
    }

    /// An I/O error of this file as a [`FileError`].
    pub fn error(&self, action: &'static str, reason: io::Error) -> FileError {
        FileError::write(action, self.path.clone(), self.written, self.expected, reason)
    }

    /// Flushes, fsyncs and renames into place.
    pub fn finish(mut self) -> Result<Written> {
        self.out.flush().map_err(|e| self.error("write", e))?;
        self.out.get_ref().sync_all().map_err(|e| self.error("sync", e))?;
        fs::rename(&self.temp, &self.path).map_err(|e| self.error("rename into place", e))?;
        self.finished = true;
        sync_dir(&parent_of(&self.path))?;
        Ok(Written { bytes: self.written, hash: self.hash.finish() })
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.finished {
            // The reason why the file was given up is already on its way to the user.
            let _ = fs::remove_file(&self.temp);
        }
    }
}

/// Writes `path` through `fill`; on an error nothing is left and a file that was there is untouched.
pub fn write_atomic(path: &Path, fill: impl FnOnce(&mut AtomicFile) -> io::Result<()>) -> Result<Written> {
    let mut file = AtomicFile::create(path)?;
    fill(&mut file).map_err(|e| file.error("write", e))?;
    file.finish()
}

/// A folder under construction. Dropped without [`AtomicDir::commit`], it leaves nothing behind.
#[derive(Debug)]
pub struct AtomicDir {
    temp: PathBuf,
    dest: PathBuf,
    _lock: Option<File>,
    committed: bool,
}

impl AtomicDir {
    /// Starts the folder `dest` (parents are created where missing) and removes what killed processes left of the same
    /// name. Files go below [`AtomicDir::path`]. Anything but a folder at `dest` is an error.
    pub fn create(dest: &Path) -> Result<AtomicDir> {
        if let Ok(there) = fs::symlink_metadata(dest)
            && !there.is_dir()
        {
            return Err(FileError::invalid(dest, "is there already and is no folder; choose another name"));
        }
        let parent = parent_of(dest);
        fs::create_dir_all(&parent).map_err(|e| FileError::io("create", &parent, e))?;
        clean(&parent, dest.file_name())?;
        loop {
            let temp = sibling(dest, "tmp")?;
            match fs::create_dir(&temp) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(FileError::io("create", dest, e)),
            }
            let lock = File::open(&temp).ok();
            if lock.as_ref().is_some_and(|lock| !hold(lock, &temp)) {
                continue;
            }
            return Ok(AtomicDir { temp, dest: dest.to_path_buf(), _lock: lock, committed: false });
        }
    }

    /// The temporary folder, to be filled.
    pub fn path(&self) -> &Path {
        &self.temp
    }

    /// Fsyncs everything below and renames into place; a folder that has the name is replaced.
    pub fn commit(mut self) -> Result<()> {
        for file in super::list_files(&self.temp)? {
            let path = self.temp.join(&file);
            let file = File::open(&path).map_err(|e| FileError::io("open", &path, e))?;
            file.sync_all().map_err(|e| FileError::io("sync", &path, e))?;
        }
        sync_dirs(&self.temp)?;
        let replaced = self.move_old_away()?;
        if let Err(e) = fs::rename(&self.temp, &self.dest) {
            if let Some((old, _)) = &replaced {
                // Best effort: the first error is the one to report.
                let _ = fs::rename(old, &self.dest);
            }
            return Err(FileError::io("rename into place", &self.dest, e));
        }
        self.committed = true;
        sync_dir(&parent_of(&self.dest))?;
        if let Some((old, lock)) = replaced {
            remove_tree(&old)?;
            drop(lock);
        }
        Ok(())
    }

    fn move_old_away(&self) -> Result<Option<(PathBuf, Option<File>)>> {
        if fs::symlink_metadata(&self.dest).is_err() {
            return Ok(None);
        }
        // Locked before it is renamed: a cleaner never finds it both nameless and unlocked while this process lives.
        let lock = File::open(&self.dest).ok();
        if let Some(lock) = &lock {
            // Where the file system has no locks, the process id in the name is the fallback.
            let _ = lock.lock();
        }
        loop {
            let old = sibling(&self.dest, "old")?;
            if fs::symlink_metadata(&old).is_ok() {
                continue;
            }
            return match fs::rename(&self.dest, &old) {
                Ok(()) => Ok(Some((old, lock))),
                Err(e) => Err(FileError::io("replace", &self.dest, e)),
            };
        }
    }
}

impl Drop for AtomicDir {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_dir_all(&self.temp);
        }
    }
}

/// Removes a folder so that a kill half-way leaves no half folder under its name: renamed to a temporary name first.
pub fn remove_dir(dir: &Path) -> Result<()> {
    loop {
        let temp = sibling(dir, "tmp")?;
        if fs::symlink_metadata(&temp).is_ok() {
            continue;
        }
        fs::rename(dir, &temp).map_err(|e| FileError::io("remove", dir, e))?;
        return remove_tree(&temp);
    }
}

/// Removes what killed processes left in `folder` (`*.tmp-PID-N`, and `*.old-PID-N` whose replacement arrived), and puts
/// back a folder whose replacement did not arrive. Work of living processes is left alone. Returns what was dealt with.
pub fn clean_stale(folder: &Path) -> Result<Vec<PathBuf>> {
    clean(folder, None)
}

/// The same for what was left of one file or folder alone.
pub fn clean_stale_of(path: &Path) -> Result<Vec<PathBuf>> {
    clean(&parent_of(path), path.file_name())
}

fn clean(folder: &Path, only: Option<&OsStr>) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| FileError::io("list", folder, e))? {
        let entry = entry.map_err(|e| FileError::io("list", folder, e))?;
        let name = entry.file_name();
        let Some(left) = Leftover::parse(&name) else { continue };
        if only.is_none_or(|only| only == OsStr::new(&left.name)) {
            found.push((folder.join(&name), folder.join(&left.name), left));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let mut done = Vec::new();
    for (path, named, left) in found {
        let Some(_lock) = abandoned(&path, left.pid) else { continue };
        if left.old && fs::symlink_metadata(&named).is_err() {
            fs::rename(&path, &named).map_err(|e| FileError::io("restore", &named, e))?;
        } else {
            remove_tree(&path)?;
        }
        done.push(path);
    }
    Ok(done)
}

/// The parts of a temporary name.
struct Leftover {
    name: String,
    old: bool,
    pid: u32,
}

impl Leftover {
    /// `NAME.tmp-PID-N` or `NAME.old-PID-N`.
    fn parse(name: &OsStr) -> Option<Leftover> {
        let (base, suffix) = name.to_str()?.rsplit_once('.')?;
        let mut parts = suffix.split('-');
        let old = match parts.next()? {
            "tmp" => false,
            "old" => true,
            _ => return None,
        };
        let pid = parts.next()?.parse().ok()?;
        let _count: u64 = parts.next()?.parse().ok()?;
        let complete = parts.next().is_none() && !base.is_empty();
        complete.then(|| Leftover { name: base.into(), old, pid })
    }
}

/// Whether nobody works on `path` any more; if so, the lock that keeps it that way.
fn abandoned(path: &Path, pid: u32) -> Option<Option<File>> {
    let file = File::open(path).ok();
    match file.as_ref().map(File::try_lock) {
        Some(Ok(())) => Some(file),
        Some(Err(TryLockError::WouldBlock)) => None,
        // No locks here: ask whether the process lives, and when that cannot be told, leave it.
        _ => {
            (Path::new("/proc/self").exists() && !Path::new(&format!("/proc/{pid}")).exists()).then_some(file)
        }
    }
}

/// Locks a fresh temporary. False if a cleaner was faster and removed it.
fn hold(file: &File, temp: &Path) -> bool {
    // A file system without locks is no reason not to write: the process id in the name is the fallback.
    let _ = file.lock();
    fs::symlink_metadata(temp).is_ok()
}

fn remove_tree(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(kind) if kind.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(FileError::io("remove", path, e)),
        _ => Ok(()),
    }
}

fn sibling(path: &Path, kind: &str) -> Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        return Err(FileError::invalid(
            path,
            "has no file name; give the path of the file or folder to write",
        ));
    };
    let mut name: OsString = name.to_os_string();
    name.push(format!(".{kind}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    Ok(path.with_file_name(name))
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Makes renames in `dir` durable. Only Unix can open a folder; elsewhere the rename is all there is.
fn sync_dir(dir: &Path) -> Result<()> {
    if cfg!(unix) {
        let handle = File::open(dir).map_err(|e| FileError::io("open", dir, e))?;
        match handle.sync_all() {
            // Some network file systems refuse to sync folders.
            Err(e) if !matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                return Err(FileError::io("sync", dir, e));
            }
            _ => {}
        }
    }
    Ok(())
}

fn sync_dirs(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| FileError::io("list", dir, e))? {
        let entry = entry.map_err(|e| FileError::io("list", dir, e))?;
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            sync_dirs(&entry.path())?;
        }
    }
    sync_dir(dir)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    /// A file whose device is always full.
    fn full(temp: &Path) -> AtomicFile {
        AtomicFile {
            out: BufWriter::new(OpenOptions::new().write(true).open("/dev/full").unwrap()),
            temp: temp.to_path_buf(),
            path: PathBuf::from("out/model.safetensors"),
            written: 0,
            expected: None,
            hash: Xxh64::new(),
            finished: false,
        }
    }

    #[test]
    fn a_full_disk_says_what_where_how_much_and_what_to_do() {
        let mut file = full(Path::new("/nonexistent/temp"));
        file.expect_bytes(9000);
        let error = loop {
            if let Err(e) = file.put(&[7; 3000]) {
                break e;
            }
            assert!(file.written() < 1 << 20, "a full device took everything");
        };
        let text = error.to_string();
        for part in ["disk full", "out/model.safetensors", "of 9000 bytes", "Free space", "os error 28"] {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
        // What fits the buffer fails at the end.
        let mut file = full(Path::new("/nonexistent/temp"));
        file.put(b"abc").unwrap();
        assert!(matches!(file.finish(), Err(FileError::DiskFull { written: 3, .. })));
    }

    #[test]
    fn only_our_own_names_are_leftovers() {
        let yes = Leftover::parse(OsStr::new("checkpoint-5.tmp-12-0")).unwrap();
        assert_eq!((yes.name.as_str(), yes.old, yes.pid), ("checkpoint-5", false, 12));
        assert!(Leftover::parse(OsStr::new("a.old-1-2")).is_some_and(|l| l.old));
        for no in
            ["a.tmp", "a.tmp-1", "a.tmp-1-2-3", "a.tmp-x-1", ".tmp-1-2", "a.tmpl-1-2", "a", "a.tmp-1-2.txt"]
        {
            assert!(Leftover::parse(OsStr::new(no)).is_none(), "{no}");
        }
    }
}
