//! `kfc eval`

use crate::gate::Gate;
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command};
use kfc_runtime::eval::Task;
use kfc_runtime::eval::perturb::Perturbation;
use std::path::PathBuf;

/// Arguments of `kfc eval`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EvalArgs {
    /// Model folder.
    pub model: PathBuf,
    /// Adapter folder.
    pub adapter: Option<PathBuf>,
    /// What is measured; empty where a suite says it.
    pub tasks: Vec<Task>,
    /// Rows: one file or folder for all tasks, or one for each that needs rows.
    pub data: Vec<PathBuf>,
    /// A suite file, or the name of a built-in suite.
    pub suite: Option<String>,
    /// Another model to compare with, as it was before.
    pub against: Option<PathBuf>,
    /// The adapter of that one.
    pub against_adapter: Option<PathBuf>,
    /// Names of tasks that the model should not have forgotten.
    pub old: Vec<String>,
    /// How questions are perturbed.
    pub perturb: Vec<Perturbation>,
    /// Variants of a question that are tried at most.
    pub tries: Option<usize>,
    /// Most rows of a task that are perturbed.
    pub attack_rows: Option<usize>,
    /// Synonyms beside the built-in ones.
    pub synonyms: Option<PathBuf>,
    /// Folder for the report.
    pub out: Option<PathBuf>,
    /// Conditions on the results.
    pub gates: Vec<Gate>,
    /// Metrics without gates.
    pub no_gates: Vec<String>,
    /// Solved rows before each question.
    pub shots: Option<usize>,
    /// Where these come from.
    pub shots_from: Option<PathBuf>,
    /// Only the first N rows.
    pub limit: Option<usize>,
    /// Longest answer, in tokens.
    pub max_new_tokens: Option<usize>,
    /// Rows at a time.
    pub batch: usize,
    /// Longest row, in tokens; `None` is the model's limit, at most 4096.
    pub seq_len: Option<usize>,
    /// Resamples of the bootstrap.
    pub resamples: Option<usize>,
    /// Seed of everything random.
    pub seed: u64,
}

impl EvalArgs {
    /// Whether a report is made, with the default gates, rather than the numbers of a single task printed.
    pub fn is_report(&self) -> bool {
        self.suite.is_some()
            || self.tasks.len() > 1
            || self.out.is_some()
            || self.against.is_some()
            || !self.perturb.is_empty()
    }
}

const EXAMPLES: &str = "\
Examples:
  kfc eval --model model --task ppl --data held-out.jsonl
  kfc eval --model model --adapter runs/job/adapter --task qa --data questions.jsonl --gate 'exact_match>=0.9'
  kfc eval --model model --task choice --data exam.jsonl --limit 100 --json
  kfc eval --model model --suite standard --data ../data --out report
  kfc eval --model model --adapter runs/job/adapter --against model --task qa --data old.jsonl --old qa
  kfc eval --model model --task medqa --data ../data --perturb all --no-gate accuracy

A gate is METRIC, then >=, >, <=, < or ==, then a number; a missed gate ends with exit code 3. With --suite, several
--task, --out, --against or --perturb, a report is made, which has gates of its own: accuracy>=0.85, entity_recall>=0.92,
tokens_per_s>=15, attack_success_rate<=0.15, forgetting<=0.15, each if it is measured. docs/eval.md has the rest.";

/// Stands for every perturbation.
const ALL: &str = "all";

pub(super) fn command() -> Command {
    let tasks: Vec<&'static str> = Task::ALL.iter().map(|task| task.name()).collect();
    let kinds: Vec<&'static str> = Perturbation::ALL.iter().map(|kind| kind.name()).chain([ALL]).collect();
    Command::new("eval")
        .about("Measure a model: perplexity, questions, recall, speed, robustness, forgetting")
        .after_help(EXAMPLES)
        .arg(super::model())
        .arg(super::adapter())
        .arg(
            Arg::new("task")
                .long("task")
                .value_name("TASK")
                .action(ArgAction::Append)
                .required_unless_present("suite")
                .value_parser(PossibleValuesParser::new(tasks))
                .help("What to measure; may be repeated"),
        )
        .arg(
            super::path(
                "data",
                "PATH",
                "Rows to measure on (not needed for speed); one for all tasks, or one for each",
            )
            .action(ArgAction::Append),
        )
        .arg(
            Arg::new("suite")
                .long("suite")
                .value_name("FILE.toml")
                .conflicts_with("task")
                .help("A file that lists tasks, perturbations and gates, or `standard`, which is built in"),
        )
        .arg(super::path(
            "against",
            "DIR",
            "A model to compare with, as it was before: paired tests, forgetting",
        ))
        .arg(super::path("against-adapter", "DIR", "The adapter of that model").requires("against"))
        .arg(text("old", "TASK", "A task that should not be forgotten; may be repeated").requires("against"))
        .arg(
            Arg::new("perturb")
                .long("perturb")
                .value_name("KIND")
                .action(ArgAction::Append)
                .value_parser(PossibleValuesParser::new(kinds))
                .help("Ask what was right again with the question perturbed; may be repeated"),
        )
        .arg(super::count("tries", "Perturbed variants of a question that are asked at most [default: 4]"))
        .arg(super::count("attack-rows", "Most rows of a task that are perturbed [default: all]"))
        .arg(super::path("synonyms", "FILE", "More synonyms: a line a group of words, separated by commas"))
        .arg(super::path("out", "DIR", "Write report.json, report.html and what came of every row here"))
        .arg(
            Arg::new("gate")
                .long("gate")
                .value_name("METRIC>=X")
                .action(ArgAction::Append)
                .value_parser(Gate::parse)
                .help("Exit with 3 unless this holds; may be repeated"),
        )
        .arg(text(
            "no-gate",
            "METRIC",
            "Leave out the default gate on this metric, or `all`; may be repeated",
        ))
        .arg(
            Arg::new("shots")
                .long("shots")
                .value_name("N")
                .value_parser(clap::value_parser!(usize))
                .help("Solved rows before each question [default: 0]"),
        )
        .arg(super::path(
            "shots-from",
            "FILE",
            "Where solved rows come from [default: train beside the data]",
        ))
        .arg(super::count("limit", "Only the first N rows of a task"))
        .arg(super::count(
            "max-new-tokens",
            "Longest answer, in tokens [default: 64, gsm8k 256, at most half a row]",
        ))
        .arg(super::count("batch", "Rows at a time").default_value("8"))
        .arg(super::count("seq-len", "Longest row, in tokens [default: the model's limit, at most 4096]"))
        .arg(super::count("resamples", "Resamples of the bootstrap that makes intervals [default: 10000]"))
        .arg(super::seed())
}

fn text(name: &'static str, value_name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value_name).action(ArgAction::Append).help(help)
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<EvalArgs, clap::Error> {
    let names: Vec<String> = super::all(matches, "task");
    let tasks: Vec<Task> = names.iter().filter_map(|name| Task::named(name)).collect();
    let data: Vec<PathBuf> = super::all(matches, "data");
    let need = tasks.iter().filter(|task| **task != Task::Speed).count();
    if let (Some(task), true) = (tasks.iter().find(|task| **task != Task::Speed), data.is_empty()) {
        let name = task.name();
        return Err(super::usage_error(&format!("--task {name} needs rows; give them with --data FILE")));
    }
    let suite: Option<String> = matches.get_one("suite").cloned();
    let fits = if suite.is_some() { data.len() <= 1 } else { data.len() <= 1 || data.len() == need };
    if !fits {
        return Err(super::usage_error(&format!(
            "{} --data for {need} tasks with rows; give one for all of them, or one for each in their order",
            data.len()
        )));
    }
    let kinds: Vec<String> = super::all(matches, "perturb");
    let perturb =
        Perturbation::ALL.into_iter().filter(|kind| kinds.iter().any(|k| k == ALL || k == kind.name()));
    Ok(EvalArgs {
        model: super::required(matches, "model")?,
        adapter: matches.get_one("adapter").cloned(),
        tasks,
        data,
        suite,
        against: matches.get_one("against").cloned(),
        against_adapter: matches.get_one("against-adapter").cloned(),
        old: super::all(matches, "old"),
        perturb: perturb.collect(),
        tries: matches.get_one("tries").copied(),
        attack_rows: matches.get_one("attack-rows").copied(),
        synonyms: matches.get_one("synonyms").cloned(),
        out: matches.get_one("out").cloned(),
        gates: super::all(matches, "gate"),
        no_gates: super::all(matches, "no-gate"),
        shots: matches.get_one("shots").copied(),
        shots_from: matches.get_one("shots-from").cloned(),
        limit: matches.get_one("limit").copied(),
        max_new_tokens: matches.get_one("max-new-tokens").copied(),
        batch: super::required(matches, "batch")?,
        seq_len: matches.get_one("seq-len").copied(),
        resamples: matches.get_one("resamples").copied(),
        seed: super::required(matches, "seed")?,
    })
}
