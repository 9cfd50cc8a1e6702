//! Which Python compiles Triton's kernels.

use super::VERSION;
use crate::RunError;
use std::fmt;
use std::path::{Path, PathBuf};

/// Environment variable with a Python.
const VARIABLE: &str = "KFC_PYTHON";

/// Where the repository's own toolchain has one.
const TOOLCHAIN: &str = ".gpu-toolchain/bin/python";

/// What a user names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Python {
    /// On the command line, with `--python`.
    pub on_command_line: Option<PathBuf>,
    /// In the job, as `kernels.python`.
    pub in_job: Option<PathBuf>,
}

impl Python {
    /// The one that a job names, if it does.
    pub fn of_job(job: &crate::config::JobConfig) -> Python {
        Python { on_command_line: None, in_job: job.kernels.as_ref().and_then(|k| k.python.clone()) }
    }

    /// The first of: `--python`, `KFC_PYTHON`, `kernels.python` of the job, `.gpu-toolchain/bin/python` in the current folder, `python3`.
    pub(super) fn find(&self) -> Interpreter {
        let of = |path: &Path, named: &'static str| Interpreter { path: path.into(), named };
        let in_environment = std::env::var_os(VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from);
        let toolchain = Path::new(TOOLCHAIN);
        match (&self.on_command_line, &in_environment, &self.in_job) {
            (Some(path), ..) => of(path, "--python"),
            (_, Some(path), _) => of(path, VARIABLE),
            (.., Some(path)) => of(path, "kernels.python"),
            _ if toolchain.exists() => of(toolchain, ""),
            _ => of(Path::new("python3"), ""),
        }
    }
}

/// A Python that was found or named.
#[derive(Clone, Debug)]
pub(super) struct Interpreter {
    pub(super) path: PathBuf,
    /// What names it; nothing if it was found.
    named: &'static str,
}

impl Interpreter {
    /// What to do about one that cannot compile.
    pub(super) fn missing(&self, what: &str) -> RunError {
        RunError::Input(format!(
            "{self}: {what}; compiling for Triton needs Python with Triton {VERSION}.x: pip install triton=={VERSION}.0 into a \
             virtual environment and name its Python with {VARIABLE}, with kernels.python in the job, or with --python PATH of \
             `kfc compile`"
        ))
    }
}

impl fmt::Display for Interpreter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        if self.named.is_empty() { write!(f, "{path}") } else { write!(f, "{path} ({})", self.named) }
    }
}
