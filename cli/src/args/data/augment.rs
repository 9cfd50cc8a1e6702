//! `kfc data augment`

use super::rows::{self, RowArgs};
use super::{all, count, flag, path, required, usage_error};
use crate::data::augment::Settings;
use crate::data::augment::translate::Step;
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::path::PathBuf;
use std::time::Duration;

/// Arguments of `kfc data augment`.
#[derive(Clone, Debug, PartialEq)]
pub struct AugmentArgs {
    /// What is read, and where rows go.
    pub rows: RowArgs,
    /// Tables of aliases.
    pub aliases: Vec<PathBuf>,
    /// A knowledge graph.
    pub graph: Option<PathBuf>,
    /// Relations of the graph by whose tails heads are replaced.
    pub relations: Vec<String>,
    /// Aliases are replaced by entities, too.
    pub both_ways: bool,
    /// Upper and lower case are the same.
    pub ignore_case: bool,
    /// Dependency parses.
    pub parses: Vec<PathBuf>,
    /// Steps of a translation there and back, as given.
    pub translate: Vec<String>,
    /// The same, read.
    pub steps: Vec<Step>,
    /// Translations at a time.
    pub workers: usize,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// How many and which.
    pub settings: Settings,
}

const EXAMPLES: &str = "\
Examples:
  kfc data augment clean.jsonl --aliases terms.tsv --variants 3 --out more.jsonl
  kfc data augment clean.jsonl --graph kg.tsv --relation same_as --both-ways --ignore-case --out more.jsonl
  kfc data augment clean.jsonl --clauses parses.conllu --out more.jsonl
  kfc data augment clean.jsonl --translate 'to-german --stdin' --translate http://127.0.0.1:5000/de-en --out more.jsonl

A table of aliases is TSV (CPU<TAB>中央处理器) or JSON ({\"CPU\": [\"中央处理器\"]}); a graph is head<TAB>relation<TAB>tail.
A translation step is a program that answers each line of its input with a line, a program with {} for the line, or an
http:// address that takes POST {\"text\": ...}. New rows name their parent, the method and what changed in their metadata.";

pub(super) fn command() -> Command {
    let paths = |name: &'static str, help: &'static str| path(name, "FILE", help).action(ArgAction::Append);
    rows::add(
        Command::new("augment")
            .about("Make new rows that say the same: other names, other order, back-translation")
            .after_help(EXAMPLES)
            .arg(paths("aliases", "Replace entities by their aliases in this table; may be repeated"))
            .arg(path("graph", "FILE", "Replace heads of triples in this knowledge graph by their tails"))
            .arg(
                Arg::new("relation")
                    .long("relation")
                    .value_name("NAME")
                    .action(ArgAction::Append)
                    .requires("graph")
                    .help("Relation of the graph to use; may be repeated"),
            )
            .arg(flag("both-ways", "Replace aliases by their entities, and tails by heads, too"))
            .arg(flag("ignore-case", "Find entities in upper and lower case (A to Z)"))
            .arg(paths(
                "clauses",
                "Reorder clauses of the sentences in these parses (CoNLL-U); may be repeated",
            ))
            .arg(
                Arg::new("translate").long("translate").value_name("STEP").action(ArgAction::Append).help(
                    "Back-translate through this program or http:// address; several are steps, in order",
                ),
            )
            .arg(count("workers", "Translations at a time").default_value("1"))
            .arg(
                Arg::new("timeout")
                    .long("timeout")
                    .value_name("SECONDS")
                    .value_parser(seconds)
                    .default_value("60")
                    .help("Longest wait for the answer of a translation step"),
            )
            .arg(count("variants", "New rows of a row by entities and by clauses, each").default_value("1"))
            .arg(
                Arg::new("share")
                    .long("share")
                    .value_name("SHARE")
                    .value_parser(share)
                    .default_value("1")
                    .help("Share of the entities found that are replaced"),
            )
            .arg(flag("keep-originals", "Write the rows that are read, too"))
            .arg(crate::args::seed()),
    )
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|s| *s > 0.0 && *s <= 86_400.0);
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "give seconds above 0, at most 86400".into())
}

/// A number above 0, at most 1.
fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("give a number above 0 and at most 1".into()),
    }
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<AugmentArgs, clap::Error> {
    let translate: Vec<String> = all(matches, "translate");
    let steps: Result<Vec<Step>, String> = translate.iter().map(|step| Step::parse(step)).collect();
    let args = AugmentArgs {
        rows: rows::from_matches(matches)?,
        aliases: all(matches, "aliases"),
        graph: matches.get_one("graph").cloned(),
        relations: all(matches, "relation"),
        both_ways: matches.get_flag("both-ways"),
        ignore_case: matches.get_flag("ignore-case"),
        parses: all(matches, "clauses"),
        steps: steps.map_err(|why| usage_error(&format!("--translate: {why}")))?,
        translate,
        workers: required(matches, "workers")?,
        timeout: required(matches, "timeout")?,
        settings: Settings {
            variants: required(matches, "variants")?,
            share: required(matches, "share")?,
            seed: required(matches, "seed")?,
            keep_originals: matches.get_flag("keep-originals"),
        },
    };
    if args.aliases.is_empty() && args.graph.is_none() && args.parses.is_empty() && args.steps.is_empty() {
        return Err(usage_error(
            "there is no way to make rows; give --aliases, --graph, --clauses or --translate",
        ));
    }
    if args.graph.is_some() && args.relations.is_empty() {
        return Err(usage_error("--graph needs the relations to use; name them with --relation NAME"));
    }
    Ok(args)
}
