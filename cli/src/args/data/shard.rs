//! `kfc data shard`

use super::{all, count, flag, inputs, path, required};
use crate::args::parse;
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches, Command};
use std::path::PathBuf;

/// Arguments of `kfc data shard`.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardArgs {
    /// Files, folders and ranges.
    pub inputs: Vec<PathBuf>,
    /// Names of the shards.
    pub out: PathBuf,
    /// Rows of a shard.
    pub rows: Option<usize>,
    /// Bytes of a shard.
    pub size: Option<u64>,
    /// The tokenizer of token shards.
    pub tokenizer: Option<PathBuf>,
    /// Leave bad rows out.
    pub skip_bad: bool,
    /// Go on with an interrupted run.
    pub resume: bool,
    /// How every input file is read.
    pub format: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  kfc data shard rows.jsonl --out 'shards/{000000..000009}.tar'       ten WebDataset archives
  kfc data shard rows.jsonl --out 'shards/%06d.tar' --size 64MiB      as many as it takes
  kfc data shard rows.jsonl --out 'tokens/{00..07}.safetensors' --tokenizer model
  kfc data shard 'shards/{000000..000009}.tar' --out rows.jsonl       and back

Shards are read by `data.train = [\"shards/{000000..000009}.tar\"]`, while training runs. The kind of shard goes by the
extension of --out: .tar (a .json member a row), .safetensors (token ids, mapped and not read) or .jsonl. Beside the shards
lies a manifest with rows, bytes and hash of each; docs/shards.md describes it and the formats.";

pub(super) fn command() -> Command {
    Command::new("shard")
        .about("Write rows as shards: WebDataset archives, token ids, or JSON lines")
        .after_help(EXAMPLES)
        .arg(inputs("Files (.jsonl, .json, .txt, .md, .tar), folders or ranges such as 'a-{00..09}.tar'"))
        .arg(
            path("out", "PATTERN", "Shards to write, as 'DIR/{000..009}.tar' or 'DIR/%03d.tar'")
                .required(true),
        )
        .arg(
            count("rows", "Rows of a shard [default: all rows, evenly among the names of PATTERN]")
                .conflicts_with("size"),
        )
        .arg(
            Arg::new("size")
                .long("size")
                .value_name("SIZE")
                .value_parser(parse::bytes)
                .help("Most bytes of a shard, as in 64MiB"),
        )
        .arg(path("tokenizer", "DIR", "Write token ids of the tokenizer of this model folder"))
        .arg(
            Arg::new("format")
                .long("format")
                .value_name("FORMAT")
                .value_parser(PossibleValuesParser::new(["jsonl", "text", "webdataset"]))
                .help("How to read every input file [default: by extension]"),
        )
        .arg(flag("skip-bad", "Leave out and count rows that cannot be used, instead of stopping"))
        .arg(flag("resume", "Go on behind the whole shards of an interrupted run"))
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<ShardArgs, clap::Error> {
    Ok(ShardArgs {
        inputs: all(matches, "inputs"),
        out: required(matches, "out")?,
        rows: matches.get_one("rows").copied(),
        size: matches.get_one("size").copied(),
        tokenizer: matches.get_one("tokenizer").cloned(),
        skip_bad: matches.get_flag("skip-bad"),
        resume: matches.get_flag("resume"),
        format: matches.get_one("format").cloned(),
    })
}
