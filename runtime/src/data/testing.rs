//! What the tests of this folder share.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder that goes away with the value.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new(name: &str) -> TempDir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("kfc-{name}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(unique);
        fs::create_dir_all(&path).unwrap();
        TempDir(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file into the folder.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A file under `$KFC_DATA`, or none with a line that says what is skipped; under CI that is a failure.
pub(crate) fn real_data(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("KFC_DATA").map(|root| PathBuf::from(root).join(name)).filter(|p| p.exists());
    if path.is_none() {
        assert!(std::env::var_os("CI").is_none(), "KFC_DATA lacks {name}");
        eprintln!("skipped: {name} is not under $KFC_DATA");
    }
    path
}
