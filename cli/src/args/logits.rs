//! `kfc logits`

use clap::{ArgMatches, Command};
use kfc_graph::DType;
use std::path::PathBuf;

/// Arguments of `kfc logits`.
#[derive(Clone, Debug, PartialEq)]
pub struct LogitsArgs {
    /// Model folder.
    pub model: PathBuf,
    /// Adapter folder.
    pub adapter: Option<PathBuf>,
    /// Safetensors file with `input_ids` `[N,T]`.
    pub tokens: PathBuf,
    /// File that gets `logits` `[N,T,V]`.
    pub out: PathBuf,
    /// Element type that the model computes in; `None` takes that of the stored weights. The logits are f32.
    pub dtype: Option<DType>,
}

const EXAMPLES: &str = "\
Example:
  kfc logits --model model --adapter runs/job/adapter --tokens rows.safetensors --out logits.safetensors

rows.safetensors holds `input_ids` [N,T]; logits.safetensors gets `logits` [N,T,V] in f32.";

pub(super) fn command() -> Command {
    Command::new("logits")
        .about("Write a model's logits for given tokens")
        .after_help(EXAMPLES)
        .arg(super::model())
        .arg(super::adapter())
        .arg(super::path("tokens", "FILE", "Safetensors file with `input_ids` [N,T]").required(true))
        .arg(super::path("out", "FILE", "Safetensors file to write").required(true))
        .arg(super::dtype())
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<LogitsArgs, clap::Error> {
    Ok(LogitsArgs {
        model: super::required(matches, "model")?,
        adapter: matches.get_one("adapter").cloned(),
        tokens: super::required(matches, "tokens")?,
        out: super::required(matches, "out")?,
        dtype: matches.get_one("dtype").copied(),
    })
}
