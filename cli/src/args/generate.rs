//! `kfc generate`

use super::parse;
use clap::{Arg, ArgMatches, Command};
use std::path::PathBuf;

/// Arguments of `kfc generate`.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateArgs {
    /// Model folder.
    pub model: PathBuf,
    /// Adapter folder.
    pub adapter: Option<PathBuf>,
    /// Text to go on from.
    pub prompt: String,
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
    /// 0 always takes the likeliest token.
    pub temperature: f64,
    /// Sample from the likeliest tokens that together have this probability.
    pub top_p: f64,
    /// Sample from this many likeliest tokens; `None` is no limit.
    pub top_k: Option<usize>,
    /// Seed of the sampling.
    pub seed: u64,
}

const EXAMPLES: &str = "\
Examples:
  kfc generate --model model --adapter runs/job/adapter --prompt 'Aspirin is used for'
  kfc generate --model model --prompt 'Once upon a time' --temperature 0.8 --top-p 0.95 --seed 1";

pub(super) fn command() -> Command {
    Command::new("generate")
        .about("Go on from a prompt")
        .after_help(EXAMPLES)
        .arg(super::model())
        .arg(super::adapter())
        .arg(Arg::new("prompt").long("prompt").value_name("TEXT").required(true).help("Text to go on from"))
        .arg(super::count("max-new-tokens", "Longest answer, in tokens").default_value("64"))
        .arg(
            Arg::new("temperature")
                .long("temperature")
                .value_name("T")
                .value_parser(parse::temperature)
                .default_value("0")
                .help("Flatten the choice of tokens; 0 always takes the likeliest"),
        )
        .arg(
            Arg::new("top-p")
                .long("top-p")
                .value_name("P")
                .value_parser(parse::top_p)
                .default_value("1")
                .help("Choose among the likeliest tokens of this joint probability"),
        )
        .arg(super::count("top-k", "Choose among this many likeliest tokens [default: all]"))
        .arg(super::seed())
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<GenerateArgs, clap::Error> {
    Ok(GenerateArgs {
        model: super::required(matches, "model")?,
        adapter: matches.get_one("adapter").cloned(),
        prompt: super::required(matches, "prompt")?,
        max_new_tokens: super::required(matches, "max-new-tokens")?,
        temperature: super::required(matches, "temperature")?,
        top_p: super::required(matches, "top-p")?,
        top_k: matches.get_one("top-k").copied(),
        seed: super::required(matches, "seed")?,
    })
}
