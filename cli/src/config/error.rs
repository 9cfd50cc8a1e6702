//! What is wrong with a configuration, and where.

use std::fmt;
use std::path::Path;

/// One error in a configuration, printed as `file:line: section.field: what is wrong; what to do`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    place: String,
    field: Option<String>,
    problem: String,
}

impl ConfigError {
    pub(crate) fn new(place: String, field: Option<String>, problem: impl Into<String>) -> Self {
        ConfigError { place, field, problem: problem.into() }
    }

    pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> Self {
        let problem = match error.kind() {
            std::io::ErrorKind::NotFound => {
                "there is no such file; give the path of a configuration (TOML)".into()
            }
            std::io::ErrorKind::InvalidData => {
                "the file is not UTF-8 text; give a configuration (TOML)".into()
            }
            std::io::ErrorKind::IsADirectory => {
                "is a directory; give the path of the configuration (TOML) in it".into()
            }
            _ => format!("cannot be read: {error}"),
        };
        ConfigError::new(path.display().to_string(), None, problem)
    }

    /// Where: `file:line`, or the `--set` argument.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// `section.field`, if the error is about one.
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }

    /// What is wrong and what to do.
    pub fn problem(&self) -> &str {
        &self.problem
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.field {
            Some(field) => write!(f, "{}: {field}: {}", self.place, self.problem),
            None => write!(f, "{}: {}", self.place, self.problem),
        }
    }
}

impl std::error::Error for ConfigError {}
