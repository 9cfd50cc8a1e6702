//! How a command ends: exit codes, and which errors are the user's to mend.
//!
//! Commands return `anyhow::Result<Outcome>`. An error whose chain holds an [`InputError`], a
//! [`ConfigError`] or a [`RunError`] about its input ends with exit code 2 (bad usage or input); any other error with 1.

use crate::config::ConfigError;
use kfc_runtime::RunError;
use std::fmt;

/// How a command that did not fail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Done,
    /// Everything ran, but a gate was missed: exit code 3.
    GateMissed,
}

impl Outcome {
    /// The process exit code.
    pub const fn code(self) -> u8 {
        match self {
            Outcome::Done => 0,
            Outcome::GateMissed => 3,
        }
    }
}

/// Exit code of a failure that is not the user's input.
pub const FAILED: u8 = 1;
/// Exit code of bad usage or input.
pub const BAD_INPUT: u8 = 2;

/// Marks an error as the user's to mend: a wrong argument, file or model. Printed like any other.
#[derive(Debug)]
pub struct InputError {
    message: String,
    source: Option<anyhow::Error>,
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for InputError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().and_then(|error| error.source())
    }
}

/// An error about the user's input that says `message`.
pub fn input_error(message: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(InputError { message: message.into(), source: None })
}

/// Marks errors of other layers as errors of the input.
pub trait InputResult<T> {
    /// The same result, whose error ends the command with exit code 2.
    ///
    /// # Errors
    /// The error of `self`, its message and causes unchanged.
    fn or_bad_input(self) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> InputResult<T> for Result<T, E> {
    fn or_bad_input(self) -> anyhow::Result<T> {
        self.map_err(|error| {
            let error = error.into();
            anyhow::Error::new(InputError { message: error.to_string(), source: Some(error) })
        })
    }
}

/// The exit code that `error` ends the program with.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let input = error.chain().any(|cause| {
        cause.is::<InputError>()
            || cause.is::<ConfigError>()
            || cause.downcast_ref::<RunError>().is_some_and(RunError::is_input)
    });
    if input { BAD_INPUT } else { FAILED }
}

/// The message with its causes, on one line: `what: why: why`. A cause that its parent already quotes is left out.
pub fn message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !cause.is_empty() && !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use anyhow::Context;

    #[test]
    fn codes() {
        assert_eq!(exit_code(&anyhow::anyhow!("disk full")), FAILED);
        assert_eq!(exit_code(&input_error("no such task")), BAD_INPUT);
        let nested = Err::<(), _>(std::io::Error::other("gone"))
            .or_bad_input()
            .context("reading rows.jsonl")
            .unwrap_err();
        assert_eq!(exit_code(&nested), BAD_INPUT);
        assert_eq!(message(&nested), "reading rows.jsonl: gone");
        let config = crate::config::parse("x = 1", std::path::Path::new("job.toml")).unwrap_err();
        assert_eq!(exit_code(&anyhow::Error::new(config).context("train")), BAD_INPUT);
        assert_eq!((Outcome::Done.code(), Outcome::GateMissed.code()), (0, 3));
    }

    #[test]
    fn causes_are_kept() {
        let inner = anyhow::anyhow!("bad header").context("adapter_model.safetensors");
        assert_eq!(
            message(&Err::<(), _>(inner).or_bad_input().unwrap_err()),
            "adapter_model.safetensors: bad header"
        );
    }
}
