//! The configuration file: TOML text to a [`JobConfig`] and back.
//!
//! `schema` is the one place that lists sections, keys, defaults, rules and doc lines; reading ([`parse`]), printing
//! ([`to_toml`]) and the reference ([`reference_markdown`], [`reference_text`]) all walk it. `node` is the TOML as a
//! tree whose every value remembers where it was written, so that every error can say so; `field` reads and prints one
//! value of each type; `relations` checks what spans several keys.
//!
//! Relative paths in a file are taken from the file's folder, so that a job can be started from anywhere. Relative
//! paths given with `--set` are taken from the current folder, like every other path on a command line.
//!
//! Invariants: a [`JobConfig`] that comes out of here has absolute paths, and `parse(to_toml(job)) == job`.

mod error;
mod field;
pub(crate) mod node;
mod print;
mod reference;
mod relations;
mod schema;
mod suggest;
mod units;

pub use error::ConfigError;
pub use print::{changes, to_toml};
pub use reference::{reference_markdown, reference_text};
pub use relations::warnings;
pub use schema::{
    data_defaults, distill_defaults, ewc_defaults, feature_defaults, lora_defaults, model_defaults,
    train_defaults,
};
pub(crate) use suggest::nearest;
pub use units::{format_bytes, parse_bytes};

use field::Context;
use kfc_runtime::config::JobConfig;
use std::path::Path;

/// Decodes the configuration `text`; `path` names the file in errors, and its folder is what relative paths start
/// from.
///
/// # Errors
/// The first thing that is wrong, with its line and field. Nothing is read from disk: whether the files that the
/// configuration names exist is found out when they are opened.
pub fn parse(text: &str, path: &Path) -> Result<JobConfig, ConfigError> {
    parse_with(text, path, &[])
}

/// [`parse`], with `--set` overrides (`section.key=value`) applied in order before decoding.
///
/// # Errors
/// As [`parse`]; errors in an override name the override instead of a line.
pub fn parse_with(text: &str, path: &Path, overrides: &[String]) -> Result<JobConfig, ConfigError> {
    let mut root = node::from_toml(text, path)?;
    for text in overrides {
        node::apply_override(&mut root, text)?;
    }
    relations::displace_length(&mut root);
    let context = Context::new(path)?;
    let job = schema::decode_job(&root, &context)?;
    relations::check(&job, &root, &context)?;
    Ok(job)
}

/// Reads the file `path` and decodes it with `overrides` applied.
///
/// # Errors
/// If the file cannot be read, and as [`parse_with`].
pub fn load(path: &Path, overrides: &[String]) -> Result<JobConfig, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError::unreadable(path, &error))?;
    parse_with(&text, path, overrides)
}

#[cfg(test)]
mod tests;
