//! Files mapped into memory, and what is said when one can no longer be read.
//!
//! A read of a mapping is a read of memory: there is no place to report an error to. Where the file has become shorter meanwhile,
//! or its device fails, the system sends SIGBUS, which ends the process without a word. A handler says which file it was, and
//! ends the process as an error does; other causes of that signal end it as before.

use memmap2::{Mmap, UncheckedAdvice};
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};

/// A read-only map of a whole file.
#[derive(Debug)]
pub(crate) struct MappedFile {
    map: Mmap,
    entry: &'static Entry,
}

impl MappedFile {
    /// Maps a file; nothing of it is read yet. `path` is what is said if that fails later.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn new(file: &File, path: &Path) -> io::Result<MappedFile> {
        // SAFETY: the map is read-only. Its bytes would change under it only if another program wrote to the file in place, which
        // every reader of a mapped file asks not to do; kfc itself replaces files by renaming.
        let map = unsafe { Mmap::map(file) }?;
        static HANDLER: Once = Once::new();
        HANDLER.call_once(handle);
        let message = format!(
            "error: {}: can no longer be read: it became shorter while it was in use, or its device failed; put the file back \
             and start again\n",
            path.display()
        );
        let entry = Entry::take(map.as_ptr() as usize, map.len(), message);
        Ok(MappedFile { map, entry })
    }

    /// Lets the system have the pages that were read.
    pub(crate) fn let_go(&self) {
        // SAFETY: a read-only map of a file, whose pages are read again if they are touched again. A system that refuses keeps
        // them for as long as the map is there.
        let _ = unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) };
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        self.entry.free();
    }
}

/// A mapping that the handler knows, in a list that only grows: entries are used again.
#[derive(Debug)]
struct Entry {
    /// First byte; 0 if the entry is free.
    start: AtomicUsize,
    len: AtomicUsize,
    message: AtomicPtr<String>,
    next: *const Entry,
}

// SAFETY: `next` is set once, before the entry is shared, and points to an entry that lives as long as the process.
unsafe impl Send for Entry {}
// SAFETY: as above; all else is atomic.
unsafe impl Sync for Entry {}

/// The newest entry.
static NEWEST: AtomicPtr<Entry> = AtomicPtr::new(ptr::null_mut());

/// Held while entries change hands; the handler does without.
static CHANGES: Mutex<()> = Mutex::new(());

impl Entry {
    fn all() -> impl Iterator<Item = &'static Entry> {
        // SAFETY: entries live as long as the process.
        let at = |entry: *const Entry| unsafe { entry.as_ref() };
        std::iter::successors(at(NEWEST.load(Ordering::Acquire)), move |e| at(e.next))
    }

    fn take(start: usize, len: usize, message: String) -> &'static Entry {
        let _held = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
        let is_free = |e: &&Entry| e.start.load(Ordering::Relaxed) == 0;
        let entry = Entry::all().find(is_free).unwrap_or_else(|| {
            let entry = Box::leak(Box::new(Entry {
                start: AtomicUsize::new(0),
                len: AtomicUsize::new(0),
                message: AtomicPtr::new(ptr::null_mut()),
                next: NEWEST.load(Ordering::Relaxed),
            }));
            NEWEST.store(entry, Ordering::Release);
            entry
        });
        entry.message.store(Box::into_raw(Box::new(message)), Ordering::Relaxed);
        entry.len.store(len, Ordering::Relaxed);
        entry.start.store(start, Ordering::Release);
        entry
    }

    fn free(&self) {
        let _held = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
        self.start.store(0, Ordering::Relaxed);
        let message = self.message.swap(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: it came from a box, and only this takes it out. The handler reads the message of a mapping that some thread
        // reads at that moment, which is not one that is dropped.
        drop(unsafe { Box::from_raw(message) });
    }

    /// The message of the mapping that an address is in.
    fn message_at(address: usize) -> Option<&'static str> {
        let has = |e: &&Entry| {
            let start = e.start.load(Ordering::Acquire);
            start != 0 && (start..start + e.len.load(Ordering::Relaxed)).contains(&address)
        };
        let message = Entry::all().find(has)?.message.load(Ordering::Relaxed);
        // SAFETY: the mapping is in use, and so is its message.
        unsafe { message.as_ref() }.map(String::as_str)
    }
}

/// Has [`on_fault`] called from now on.
fn handle() {
    // SAFETY: the action is complete, and the handler calls nothing that a handler must not.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_fault;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());
    }
}

extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    /// As any error of the program.
    const FAILED: libc::c_int = 1;
    // SAFETY: the system hands over what it knows of the signal; `write`, `_exit` and `signal` may be called here.
    unsafe {
        match Entry::message_at((*info).si_addr() as usize) {
            Some(message) => {
                libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len());
                libc::_exit(FAILED);
            }
            // The instruction runs again and ends the process.
            None => drop(libc::signal(signal, libc::SIG_DFL)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::data::testing::TempDir;
    use std::process::Command;

    const CHILD: &str = "KFC_TEST_MAPPED_FILE";

    #[test]
    fn a_file_that_becomes_shorter_is_named() {
        if let Some(path) = std::env::var_os(CHILD) {
            let path = Path::new(&path);
            let map = MappedFile::new(&File::open(path).unwrap(), path).unwrap();
            File::options().write(true).open(path).unwrap().set_len(0).unwrap();
            std::process::exit(i32::from(std::hint::black_box(&map)[5000]));
        }
        let folder = TempDir::new("mapped");
        let path = folder.path().join("weights");
        std::fs::write(&path, vec![7u8; 10_000]).unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "mapped::tests::a_file_that_becomes_shorter_is_named", "--nocapture"])
            .env(CHILD, &path)
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(&format!("error: {}: can no longer be read", path.display())), "{stderr}");
    }

    #[test]
    fn entries_are_used_again_and_know_their_mappings() {
        let folder = TempDir::new("mapped-again");
        let map = |name: &str, len: usize| {
            let path = folder.path().join(name);
            std::fs::write(&path, vec![1u8; len]).unwrap();
            MappedFile::new(&File::open(&path).unwrap(), &path).unwrap()
        };
        let (a, b) = (map("a", 100), map("b", 5000));
        let said = |at: &u8| Entry::message_at(ptr::from_ref(at) as usize);
        assert!(said(&a[99]).unwrap().contains("/a: ") && said(&b[4999]).unwrap().contains("/b: "));
        let (at, entry) = (ptr::from_ref(&a[0]) as usize, ptr::from_ref(a.entry));
        drop(a);
        assert_eq!(Entry::message_at(at), None);
        let c = map("c", 10);
        assert!(ptr::eq(c.entry, entry) && said(&c[0]).unwrap().contains("/c: "));
        c.let_go();
        assert_eq!(c[9], 1);
    }
}
