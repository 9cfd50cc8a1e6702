//! `kfc data filter`

use super::rows::{self, RowArgs};
use super::{count, path, required, usage_error};
use crate::args::parse;
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgGroup, ArgMatches, Command};
use kfc_graph::DType;
use kfc_runtime::encoder::{Kind, Long};
use std::path::PathBuf;

/// What judges rows.
#[derive(Clone, Debug, PartialEq)]
pub enum Judge {
    /// An encoder with a classification head.
    Classifier {
        /// Its folder.
        model: PathBuf,
        /// The label whose score counts.
        label: Option<String>,
        /// How logits become a score.
        kind: Option<Kind>,
    },
    /// The perplexity under a language model.
    Perplexity {
        /// Its folder.
        model: PathBuf,
    },
}

/// Which rows stay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keep {
    /// Those with a score from here on, 0.7 if nothing is said.
    Score(Option<f64>),
    /// Those with a perplexity up to here.
    Perplexity(f64),
    /// This share of each block of rows, the best.
    Share(f64),
}

/// Arguments of `kfc data filter`.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterArgs {
    /// What is read, and where rows go.
    pub rows: RowArgs,
    /// What judges rows.
    pub judge: Judge,
    /// Which rows stay.
    pub keep: Keep,
    /// What becomes of long texts.
    pub long: Long,
    /// Longest text, in tokens.
    pub seq_len: Option<usize>,
    /// Element type of the model.
    pub dtype: Option<DType>,
}

/// Names of [`Long`].
const LONG: [(&str, Long); 2] = [("truncate", Long::Truncate), ("windows", Long::Windows)];

impl FilterArgs {
    /// The name of what becomes of long texts.
    pub fn long_name(&self) -> &'static str {
        LONG.into_iter().find(|(_, long)| *long == self.long).map_or("", |(name, _)| name)
    }
}

const EXAMPLES: &str = "\
Examples:
  kfc data filter clean.jsonl --model quality-bert --out good.jsonl
  kfc data filter clean.jsonl --model topics --label medicine --threshold 0.5 --out medicine.jsonl
  kfc data filter clean.jsonl --perplexity base-model --max-perplexity 200 --out fluent.jsonl

The model is a Hugging Face folder: BERT, RoBERTa, XLM-RoBERTa or CamemBERT with a classification head for --model, what
`kfc eval` reads for --perplexity. Scores are written to metadata.quality or metadata.perplexity.";

pub(super) fn command() -> Command {
    let named = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let number = |name: &'static str, value: &'static str, help: &'static str| {
        named(name, value, help).allow_negative_numbers(true).value_parser(finite)
    };
    rows::add(
        Command::new("filter")
            .about("Leave out text that a model finds poor: a BERT's score, or perplexity")
            .after_help(EXAMPLES)
            .arg(path("model", "DIR", "Encoder that scores text; what scores too little goes"))
            .arg(path("perplexity", "DIR", "Language model instead; what surprises it too much goes"))
            .group(ArgGroup::new("judge").args(["model", "perplexity"]).required(true))
            .arg(number("threshold", "X", "Least score of a row [default: 0.7]").conflicts_with("perplexity"))
            .arg(named("label", "NAME", "Label that counts, by name or number").conflicts_with("perplexity"))
            .arg(
                named("score", "KIND", "What the score is [default: as the model was trained]")
                    .value_parser(PossibleValuesParser::new(Kind::ALL.map(Kind::name)))
                    .conflicts_with("perplexity"),
            )
            .arg(number("max-perplexity", "X", "Largest perplexity of a row").conflicts_with("model"))
            .arg(
                number("keep-share", "P", "Keep this share of every 512 rows, the best, whatever they score")
                    .conflicts_with_all(["threshold", "max-perplexity"]),
            )
            .arg(
                named(
                    "long",
                    "HOW",
                    "Texts longer than the model reads: their beginning, or all of it in windows",
                )
                .value_parser(PossibleValuesParser::new(LONG.map(|(name, _)| name)))
                .default_value("truncate"),
            )
            .arg(count("seq-len", "Longest text, in tokens [default: the model's limit, at most 4096]"))
            .arg(
                named("dtype", "DTYPE", "Element type to run in: bf16 or f32 [default: that of the weights]")
                    .value_parser(parse::dtype),
            ),
    )
}

fn finite(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x.is_finite() => Ok(x),
        _ => Err("must be a number".into()),
    }
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<FilterArgs, clap::Error> {
    let number = |name: &str| matches.get_one::<f64>(name).copied();
    let (judge, keep) = match matches.get_one::<PathBuf>("model").cloned() {
        Some(model) => {
            let kind = matches.get_one::<String>("score");
            let kind = kind.and_then(|name| Kind::ALL.into_iter().find(|kind| kind.name() == name));
            let label = matches.get_one("label").cloned();
            (Judge::Classifier { model, label, kind }, Keep::Score(number("threshold")))
        }
        None => {
            let model = required(matches, "perplexity")?;
            let keep = match (number("max-perplexity"), number("keep-share")) {
                (Some(most), _) if most < 1.0 => {
                    return Err(usage_error(&format!("--max-perplexity {most}: no perplexity is below 1")));
                }
                (Some(most), _) => Keep::Perplexity(most),
                (None, Some(share)) => Keep::Share(share),
                (None, None) => {
                    return Err(usage_error(
                        "--perplexity needs a limit: --max-perplexity X or --keep-share P",
                    ));
                }
            };
            (Judge::Perplexity { model }, keep)
        }
    };
    let keep = number("keep-share").map_or(keep, Keep::Share);
    if let Keep::Share(share) = keep
        && !(share > 0.0 && share <= 1.0)
    {
        return Err(usage_error(&format!("--keep-share {share} must be above 0 and at most 1")));
    }
    let long: String = required(matches, "long")?;
    let long = LONG.into_iter().find(|(name, _)| *name == long).map_or(Long::Truncate, |(_, long)| long);
    Ok(FilterArgs {
        rows: rows::from_matches(matches)?,
        judge,
        keep,
        long,
        seq_len: matches.get_one("seq-len").copied(),
        dtype: matches.get_one("dtype").copied(),
    })
}
