//! `kfc tokenizer`

use super::parse;
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::path::PathBuf;

/// Arguments of `kfc tokenizer`.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizerArgs {
    /// Text and jsonl files, or folders of them.
    pub files: Vec<PathBuf>,
    /// Tokens at most.
    pub vocab_size: usize,
    /// Folder that gets the tokenizer.
    pub out: PathBuf,
}

const EXAMPLES: &str = "\
Example:
  kfc tokenizer --vocab-size 4096 --out tokenizer corpus.txt rows.jsonl

For models that are trained from random weights: name the folder as data.tokenizer.";

pub(super) fn command() -> Command {
    Command::new("tokenizer")
        .about("Learn a byte-level BPE tokenizer from text")
        .after_help(EXAMPLES)
        .arg(
            Arg::new("files")
                .value_name("FILE")
                .action(ArgAction::Append)
                .required(true)
                .num_args(1..)
                .value_parser(clap::builder::PathBufValueParser::new())
                .help("Text (.txt) and jsonl files, or folders of them"),
        )
        .arg(
            Arg::new("vocab-size")
                .long("vocab-size")
                .value_name("N")
                .value_parser(parse::count)
                .default_value("4096")
                .help("Tokens at most"),
        )
        .arg(super::path("out", "DIR", "Folder to write tokenizer.json to").required(true))
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<TokenizerArgs, clap::Error> {
    Ok(TokenizerArgs {
        files: super::all(matches, "files"),
        vocab_size: super::required(matches, "vocab-size")?,
        out: super::required(matches, "out")?,
    })
}
