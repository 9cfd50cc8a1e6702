//! `kfc report`

use clap::{Arg, ArgAction, ArgMatches, Command};
use std::path::PathBuf;

/// Arguments of `kfc report`.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportArgs {
    /// Run directory.
    pub run_dir: PathBuf,
    /// Reports of `kfc eval --out` to take in.
    pub eval: Vec<PathBuf>,
    /// Prompts to ask before and after; none keeps the samples there are.
    pub prompt: Vec<String>,
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
}

const EXAMPLES: &str = "\
Examples:
  kfc report runs/job
  kfc report runs/job --eval reports/medqa --eval reports/speed     with their gates
  kfc report runs/job --prompt 'Aspirin is used for' --prompt 'Q: What is insulin? A:'

`kfc train` writes runs/job/report.html when it ends; this writes it again with what came later. Evaluations are kept in
runs/job/eval, samples in runs/job/samples.json.";

pub(super) fn command() -> Command {
    Command::new("report")
        .about("Write a run's page again, with evaluations and samples")
        .after_help(EXAMPLES)
        .arg(super::run_dir())
        .arg(
            super::path("eval", "DIR", "A folder that `kfc eval --out` wrote; may be repeated")
                .action(ArgAction::Append),
        )
        .arg(
            Arg::new("prompt")
                .long("prompt")
                .value_name("TEXT")
                .action(ArgAction::Append)
                .help("Ask this before and after training; may be repeated [default: the samples there are]"),
        )
        .arg(
            super::count("max-new-tokens", "Longest answer to --prompt, in tokens")
                .default_value("48")
                .requires("prompt"),
        )
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<ReportArgs, clap::Error> {
    Ok(ReportArgs {
        run_dir: super::required(matches, "run")?,
        eval: super::all(matches, "eval"),
        prompt: super::all(matches, "prompt"),
        max_new_tokens: super::required(matches, "max-new-tokens")?,
    })
}
