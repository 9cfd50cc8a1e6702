//! `kfc merge`

use clap::{ArgMatches, Command};
use std::path::PathBuf;

/// Arguments of `kfc merge`.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeArgs {
    /// Model folder.
    pub model: PathBuf,
    /// Adapter folder.
    pub adapter: PathBuf,
    /// Folder that gets the merged model.
    pub out: PathBuf,
}

const EXAMPLES: &str = "\
Example:
  kfc merge --model model --adapter runs/job/adapter --out merged";

pub(super) fn command() -> Command {
    Command::new("merge")
        .about("Fold an adapter into a model's weights")
        .after_help(EXAMPLES)
        .arg(super::model())
        .arg(super::adapter().required(true).help("A PEFT adapter folder"))
        .arg(super::path("out", "DIR", "Model folder to write").required(true))
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<MergeArgs, clap::Error> {
    Ok(MergeArgs {
        model: super::required(matches, "model")?,
        adapter: super::required(matches, "adapter")?,
        out: super::required(matches, "out")?,
    })
}
