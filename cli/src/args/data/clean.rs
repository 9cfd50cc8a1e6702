//! `kfc data clean`

use super::rows::{self, RowArgs};
use super::{all, count, flag, required, usage_error};
use crate::data::clean::pii::Pii;
use crate::data::clean::text::Form;
use crate::data::clean::{Copies, Markup, Settings, language};
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

/// Arguments of `kfc data clean`.
#[derive(Clone, Debug, PartialEq)]
pub struct CleanArgs {
    /// What is read, and where rows go.
    pub rows: RowArgs,
    /// What is done with rows.
    pub settings: Settings,
}

const EXAMPLES: &str = "\
Examples:
  kfc data clean pages/ 'crawl/*.jsonl' --out clean.jsonl --lang zh --lang en
  kfc data clean exam.jsonl --text-field question --text-field answer --domain medicine --out clean.jsonl
  kfc data clean mail.txt --split paragraph --mask-pii all --dropped dropped.jsonl --out clean.jsonl --resume

Characters are counted so that Chinese and English are equal: an ideograph as 3, kana and Korean syllables as 2, other
letters and digits as 1. Reasons of dropped rows: too_large, not_utf8, bad_json, no_text, empty, bad_html, no_content,
too_short, too_long, too_many_symbols, other_language, duplicate, near_duplicate.";

pub(super) fn command() -> Command {
    let choice = |name: &'static str, value: &'static str, names: Vec<&'static str>, help: &'static str| {
        Arg::new(name).long(name).value_name(value).value_parser(PossibleValuesParser::new(names)).help(help)
    };
    let kinds = Pii::ALL.iter().map(|kind| kind.name()).chain(["all"]).collect();
    rows::add(
        Command::new("clean")
            .about("Turn pages and rows into clean text, each text once")
            .after_help(EXAMPLES)
            .arg(
                choice(
                    "html",
                    "WHICH",
                    Markup::ALL.map(Markup::name).to_vec(),
                    "Which rows are pages of HTML",
                )
                .default_value(Markup::Auto.name()),
            )
            .arg(flag("keep-boilerplate", "Keep navigation, link lists and the like of pages"))
            .arg(
                choice("unicode", "FORM", Form::ALL.map(Form::name).to_vec(), "Normal form of characters")
                    .default_value(Form::Nfc.name()),
            )
            .arg(flag("keep-symbols", "Keep decoration, invisible characters and white space as they are"))
            .arg(
                Arg::new("lang")
                    .long("lang")
                    .value_name("CODE")
                    .action(ArgAction::Append)
                    .value_parser(language::parse)
                    .help("Keep rows in this language, as in zh; may be repeated [default: all]"),
            )
            .arg(count("min-chars", "Fewest characters of a row").default_value("20"))
            .arg(count("max-chars", "Most characters of a row [default: no limit]"))
            .arg(
                Arg::new("max-symbols")
                    .long("max-symbols")
                    .value_name("SHARE")
                    .value_parser(share)
                    .default_value("0.5")
                    .help("Largest share of a row that is neither letters nor digits"),
            )
            .arg(
                choice(
                    "duplicates",
                    "HOW",
                    Copies::ALL.map(Copies::name).to_vec(),
                    "Which copies of earlier rows go",
                )
                .default_value(Copies::Near.name()),
            )
            .arg(
                Arg::new("similarity")
                    .long("similarity")
                    .value_name("S")
                    .value_parser(share)
                    .default_value("0.8")
                    .help("Jaccard similarity of 5-character pieces from which a row is a near copy"),
            )
            .arg(
                choice("mask-pii", "KIND", kinds, "Mask personal data of this kind; may be repeated")
                    .action(ArgAction::Append),
            ),
    )
}

/// A number from 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("give a number from 0 to 1".into()),
    }
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<CleanArgs, clap::Error> {
    fn named<T: Copy>(
        matches: &ArgMatches,
        key: &str,
        all: &[T],
        name: fn(T) -> &'static str,
    ) -> Result<T, clap::Error> {
        let wanted: String = required(matches, key)?;
        let found = all.iter().copied().find(|value| name(*value) == wanted);
        found.ok_or_else(|| usage_error(&format!("--{key} cannot be {wanted}")))
    }
    let kinds: Vec<String> = all(matches, "mask-pii");
    let asked = |kind: &Pii| kinds.iter().any(|name| name == "all" || name == kind.name());
    let similarity: f64 = required(matches, "similarity")?;
    if similarity == 0.0 {
        return Err(usage_error("--similarity must be above 0: every row would be a copy of the first"));
    }
    let (min_chars, max_chars): (usize, Option<usize>) =
        (required(matches, "min-chars")?, matches.get_one("max-chars").copied());
    if max_chars.is_some_and(|most| most < min_chars) {
        return Err(usage_error("--max-chars is below --min-chars: no row would be left"));
    }
    Ok(CleanArgs {
        rows: rows::from_matches(matches)?,
        settings: Settings {
            markup: named(matches, "html", &Markup::ALL, Markup::name)?,
            keep_boilerplate: matches.get_flag("keep-boilerplate"),
            form: named(matches, "unicode", &Form::ALL, Form::name)?,
            keep_symbols: matches.get_flag("keep-symbols"),
            languages: all(matches, "lang"),
            min_chars,
            max_chars,
            max_symbols: required(matches, "max-symbols")?,
            copies: named(matches, "duplicates", &Copies::ALL, Copies::name)?,
            similarity,
            pii: Pii::ALL.into_iter().filter(asked).collect(),
        },
    })
}
