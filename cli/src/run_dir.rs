//! The run directory: where it is, what is in it, and the rule that an earlier run is never overwritten by accident.

use crate::error::input_error;
use anyhow::Context;
use kfc_runtime::files;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The directory of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Accepts `path` for a new run if it does not exist or is empty, and for `resume` if it holds a run. Creates
    /// nothing, so that a job that is refused later leaves no trace; see [`RunDir::create`].
    ///
    /// # Errors
    /// An input error that says what to do.
    pub fn check(path: &Path, resume: bool) -> anyhow::Result<RunDir> {
        let shown = path.display();
        let entries = match std::fs::read_dir(path) {
            Ok(entries) => entries.filter(|entry| !is_first_leftover(entry)).count(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
                return Err(input_error(format!(
                    "{shown} is a file; give a folder for the run with --out DIR"
                )));
            }
            Err(error) => {
                return Err(error).with_context(|| format!("the run directory {shown} cannot be read"));
            }
        };
        let run = RunDir { path: path.to_owned() };
        if resume && !run.config().is_file() {
            return Err(input_error(format!(
                "{shown} holds no run to resume (there is no config.toml in it); leave out --resume, or name the run \
                 with --out DIR"
            )));
        }
        if !resume && entries > 0 {
            return Err(input_error(format!(
                "{shown} is not empty; go on with that run with --resume, choose another folder with --out DIR, or \
                 remove it"
            )));
        }
        Ok(run)
    }

    /// The run that is in `path`.
    ///
    /// # Errors
    /// An input error if there is none.
    pub fn open(path: &Path) -> anyhow::Result<RunDir> {
        let run = RunDir { path: path.to_owned() };
        if run.config().is_file() {
            Ok(run)
        } else {
            Err(input_error(format!("{} is no run directory: there is no config.toml in it", path.display())))
        }
    }

    /// Makes the directory.
    ///
    /// # Errors
    /// If that fails.
    pub fn create(&self) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.path)
            .with_context(|| format!("the run directory {} cannot be made", self.path.display()))
    }

    /// Makes the directory and takes it for this process, for as long as what this gives lives: two runs in one directory
    /// would mix their metrics and remove each other's checkpoints. File systems without locks do without.
    ///
    /// # Errors
    /// If another process has it, or has left a run in it since [`RunDir::check`].
    pub fn take(&self, resume: bool) -> anyhow::Result<Option<File>> {
        self.create()?;
        let Ok(folder) = File::open(&self.path) else { return Ok(None) };
        if matches!(folder.try_lock(), Err(TryLockError::WouldBlock)) {
            return Err(input_error(format!(
                "another kfc trains in {}; wait until it ends, or choose another folder with --out DIR",
                self.path.display()
            )));
        }
        if !resume {
            RunDir::check(&self.path, false)?;
        }
        Ok(Some(folder))
    }

    /// Removes the directory of a run that did not come about.
    ///
    /// # Errors
    /// If that fails.
    pub fn remove(&self) -> anyhow::Result<()> {
        Ok(files::remove_dir(&self.path)?)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// One JSON object a step.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// The trained adapter, in PEFT's layout.
    pub fn adapter(&self) -> PathBuf {
        self.path.join("adapter")
    }

    /// The state of what is trained, as it was before the first step.
    pub fn snapshot(&self) -> PathBuf {
        self.path.join("snapshot")
    }

    /// What a step consists of, and how long each part took.
    pub fn profile(&self) -> PathBuf {
        self.path.join(kfc_runtime::profile::FILE)
    }

    /// What the run came to.
    pub fn summary(&self) -> PathBuf {
        self.path.join("summary.json")
    }

    /// Answers to prompts before and after.
    pub fn samples(&self) -> PathBuf {
        self.path.join("samples.json")
    }

    /// Reports of evaluations of what was trained.
    pub fn evaluations(&self) -> PathBuf {
        self.path.join("eval")
    }

    /// Kernels of a GPU that the run uses in place of kfc's.
    pub fn kernels(&self) -> PathBuf {
        self.path.join("kernels")
    }

    /// The page with curves.
    pub fn report(&self) -> PathBuf {
        self.path.join("report.html")
    }
}

/// What a run leaves that was killed while it wrote its first file: no run yet.
fn is_first_leftover(entry: &std::io::Result<std::fs::DirEntry>) -> bool {
    entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("config.toml.tmp-"))
}

/// Writes `bytes` to `path` so that a reader finds the old file or the whole new one.
///
/// # Errors
/// If any step fails; nothing is left behind then.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    files::write_atomic(path, |file| file.write_all(bytes))?;
    Ok(())
}
