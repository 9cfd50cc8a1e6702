//! `kfc eval`

use crate::gate::Gate;
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::path::PathBuf;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Perplexity of text.
    Ppl,
    /// Multiple choice by log-likelihood.
    Choice,
    /// Free answers, exact match and F1.
    Qa,
    /// Entity recall: which of a prompt's entities its completion mentions.
    Entity,
    /// Speed of generation.
    Speed,
}

impl Task {
    /// Every task.
    pub const ALL: [Task; 5] = [Task::Ppl, Task::Choice, Task::Qa, Task::Entity, Task::Speed];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Task::Ppl => "ppl",
            Task::Choice => "choice",
            Task::Qa => "qa",
            Task::Entity => "entity",
            Task::Speed => "speed",
        }
    }
}

/// Arguments of `kfc eval`.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalArgs {
    /// Model folder.
    pub model: PathBuf,
    /// Adapter folder.
    pub adapter: Option<PathBuf>,
    /// What is measured.
    pub task: Task,
    /// Rows; there for every task but [`Task::Speed`], which can do without.
    pub data: Option<PathBuf>,
    /// Conditions on the results.
    pub gates: Vec<Gate>,
    /// Only the first N rows.
    pub limit: Option<usize>,
    /// Longest answer, in tokens.
    pub max_new_tokens: Option<usize>,
    /// Rows at a time.
    pub batch: usize,
    /// Longest row, in tokens; `None` is the model's limit, at most 4096.
    pub seq_len: Option<usize>,
    /// Seed of everything random.
    pub seed: u64,
}

const EXAMPLES: &str = "\
Examples:
  kfc eval --model model --task ppl --data held-out.jsonl
  kfc eval --model model --adapter runs/job/adapter --task qa --data questions.jsonl --gate 'exact_match>=0.9'
  kfc eval --model model --task choice --data exam.jsonl --limit 100 --json

A gate is METRIC, then >=, >, <=, < or ==, then a number; a missed gate ends with exit code 3.";

pub(super) fn command() -> Command {
    let names: Vec<&'static str> = Task::ALL.iter().map(|task| task.name()).collect();
    Command::new("eval")
        .about("Measure a model: perplexity, questions, recall, speed")
        .after_help(EXAMPLES)
        .arg(super::model())
        .arg(super::adapter())
        .arg(
            Arg::new("task")
                .long("task")
                .value_name("TASK")
                .required(true)
                .value_parser(PossibleValuesParser::new(names))
                .help("What to measure"),
        )
        .arg(super::path("data", "FILE", "Rows to measure on (not needed for speed)"))
        .arg(
            Arg::new("gate")
                .long("gate")
                .value_name("METRIC>=X")
                .action(ArgAction::Append)
                .value_parser(Gate::parse)
                .help("Exit with 3 unless this holds; may be repeated"),
        )
        .arg(super::count("limit", "Only the first N rows"))
        .arg(super::count("max-new-tokens", "Longest answer, in tokens [default: 64, at most half a row]"))
        .arg(super::count("batch", "Rows at a time").default_value("8"))
        .arg(super::count("seq-len", "Longest row, in tokens [default: the model's limit, at most 4096]"))
        .arg(super::seed())
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<EvalArgs, clap::Error> {
    let name: String = super::required(matches, "task")?;
    let task = Task::ALL.into_iter().find(|task| task.name() == name);
    let task = task.ok_or_else(|| super::usage_error("--task is missing"))?;
    let data: Option<PathBuf> = matches.get_one("data").cloned();
    if data.is_none() && task != Task::Speed {
        return Err(super::usage_error(&format!("--task {name} needs rows; give them with --data FILE")));
    }
    Ok(EvalArgs {
        model: super::required(matches, "model")?,
        adapter: matches.get_one("adapter").cloned(),
        task,
        data,
        gates: super::all(matches, "gate"),
        limit: matches.get_one("limit").copied(),
        max_new_tokens: matches.get_one("max-new-tokens").copied(),
        batch: super::required(matches, "batch")?,
        seq_len: matches.get_one("seq-len").copied(),
        seed: super::required(matches, "seed")?,
    })
}
