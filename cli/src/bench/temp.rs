//! A folder that is removed when its owner goes.

use std::io;
use std::path::{Path, PathBuf};

/// A fresh folder under the system's one for temporary files.
#[derive(Debug)]
pub struct TempFolder(PathBuf);

impl TempFolder {
    /// Makes the folder; `name` and the process tell it from others.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(name: &str) -> io::Result<TempFolder> {
        let path = std::env::temp_dir().join(format!("kfc-bench-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(TempFolder(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        // What cannot be removed is left to whoever cleans the system's temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
