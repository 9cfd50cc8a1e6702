//! What a report is to contain.

use super::suite_file;
use crate::args::EvalArgs;
use crate::error::input_error;
use crate::gate::Gate;
use kfc_runtime::eval::perturb::{Lexicon, Perturbation};
use kfc_runtime::eval::stats::Bootstrap;
use kfc_runtime::eval::{AttackOptions, Options, Subject, Task};
use std::path::PathBuf;

/// A task of a report.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SuiteTask {
    /// What its metrics are called by: no other task of the suite has this name.
    pub(crate) name: String,
    pub(crate) options: Options,
    /// Its questions are perturbed.
    pub(crate) perturb: bool,
    /// The model knew it before, and should not have forgotten it.
    pub(crate) old: bool,
}

impl SuiteTask {
    pub(crate) fn task(&self) -> Task {
        self.options.task
    }

    /// Whether it has questions that can be perturbed.
    fn has_questions(&self) -> bool {
        matches!(self.task().subject(), Subject::Quality | Subject::Knowledge)
    }
}

/// Tasks and what is done with them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Suite {
    pub(crate) tasks: Vec<SuiteTask>,
    /// How questions are perturbed; empty if they are not.
    pub(crate) kinds: Vec<Perturbation>,
    pub(crate) attack: AttackOptions,
    /// Gates of the suite; those of the command line replace them.
    pub(crate) gates: Vec<Gate>,
    /// Metrics without default gates, or `all`.
    pub(crate) no_gates: Vec<String>,
    pub(crate) bootstrap: Bootstrap,
    /// Results are compared with those of another model.
    pub(crate) compared: bool,
}

/// Variants of a question that are tried where nobody says how many.
pub(super) const TRIES: usize = 4;

impl Suite {
    /// What the arguments ask for.
    ///
    /// # Errors
    /// If a suite file or a list of synonyms is wrong, or names do not fit.
    pub(crate) fn of(args: &EvalArgs) -> anyhow::Result<Suite> {
        let mut suite = match &args.suite {
            Some(suite) => suite_file::read(suite, args)?,
            None => Suite::of_tasks(args),
        };
        suite.name_apart()?;
        suite.compared = args.against.is_some();
        suite.override_with(args)?;
        for task in suite.tasks.iter_mut() {
            task.perturb &= task.has_questions() && !suite.kinds.is_empty();
            if let Some(path) = &task.options.data {
                task.options.data = Some(task.options.task.find(path)?);
            }
        }
        Ok(suite)
    }

    fn of_tasks(args: &EvalArgs) -> Suite {
        let mut data = args.data.iter();
        let one = (args.data.len() == 1).then(|| args.data[0].clone());
        let tasks = args.tasks.iter().map(|&task| {
            let own = match task {
                Task::Speed => None,
                _ => one.clone().or_else(|| data.next().cloned()),
            };
            let name = task.name().to_owned();
            SuiteTask { name, options: options(task, own, args), perturb: true, old: false }
        });
        Suite::new(tasks.collect(), args)
    }

    pub(super) fn new(tasks: Vec<SuiteTask>, args: &EvalArgs) -> Suite {
        let lexicon = Lexicon::built_in();
        Suite {
            tasks,
            kinds: Vec::new(),
            attack: AttackOptions { tries: TRIES, rows: None, seed: args.seed, lexicon },
            gates: Vec::new(),
            no_gates: Vec::new(),
            bootstrap: Bootstrap { seed: args.seed, ..Bootstrap::default() },
            compared: false,
        }
    }

    /// The command line has the last word.
    fn override_with(&mut self, args: &EvalArgs) -> anyhow::Result<()> {
        if !args.perturb.is_empty() {
            self.kinds = args.perturb.clone();
        }
        let of_attacks = args.tries.is_some() || args.attack_rows.is_some() || args.synonyms.is_some();
        if of_attacks && self.kinds.is_empty() {
            let problem =
                "--tries, --attack-rows and --synonyms are for perturbed questions; say how with --perturb";
            return Err(input_error(problem));
        }
        if !args.no_gates.is_empty() && !args.is_report() {
            let problem =
                "--no-gate: a single --task has no default gates; leave it out, or make a report with --out";
            return Err(input_error(problem));
        }
        self.attack.tries = args.tries.unwrap_or(self.attack.tries);
        self.attack.rows = args.attack_rows.or(self.attack.rows);
        if let Some(path) = &args.synonyms {
            let more = Lexicon::read(path).map_err(kfc_runtime::RunError::from)?;
            self.attack.lexicon = std::mem::take(&mut self.attack.lexicon).with(&more);
        }
        self.bootstrap.resamples = args.resamples.unwrap_or(self.bootstrap.resamples);
        self.gates.retain(|gate| args.gates.iter().all(|own| own.metric != gate.metric));
        self.gates.extend(args.gates.iter().cloned());
        self.no_gates.extend(args.no_gates.iter().cloned());
        for old in &args.old {
            let names: Vec<&str> = self.tasks.iter().map(|t| t.name.as_str()).collect();
            let names = names.join(", ");
            match self.tasks.iter_mut().find(|t| t.name == *old && t.task() != Task::Speed) {
                Some(task) => task.old = true,
                None => {
                    let problem = format!("--old {old}: no task of that name; the tasks are {names}");
                    return Err(input_error(problem));
                }
            }
        }
        Ok(())
    }

    /// Gives tasks of the same name numbers: `qa`, `qa-2`.
    fn name_apart(&mut self) -> anyhow::Result<()> {
        if self.tasks.is_empty() {
            return Err(input_error("the suite has no task; add [[task]] with task = \"medqa\" or another"));
        }
        let mut taken: Vec<String> = Vec::new();
        for task in &mut self.tasks {
            let mut name = task.name.clone();
            let mut number = 2;
            while taken.contains(&name) {
                name = format!("{}-{number}", task.name);
                number += 1;
            }
            task.name = name.clone();
            taken.push(name);
        }
        Ok(())
    }

    /// Refuses gates on what will not be measured.
    ///
    /// # Errors
    /// An input error that lists the metrics there are.
    pub(crate) fn check_gates(&self) -> anyhow::Result<()> {
        super::gates::check(self)
    }

    /// Names of all metrics of the report, in order.
    pub(crate) fn metrics(&self) -> Vec<String> {
        let mut names: Vec<String> =
            Summary::ALL.iter().filter(|s| s.is_in(self)).map(|s| s.name().into()).collect();
        for task in &self.tasks {
            let own = task.task().metrics(task.options.data.as_deref());
            names.extend(own.iter().map(|name| format!("{}.{name}", task.name)));
            if task.perturb {
                names.extend(ATTACK.map(|name| format!("{}.{name}", task.name)));
            }
            if task.old && self.compared {
                names.push(format!("{}.forgetting", task.name));
            }
        }
        names
    }
}

/// What perturbed tasks have beside their own metrics.
pub(super) const ATTACK: [&str; 2] = ["attack_success_rate", "attack_queries"];

/// How a task is run with the arguments' settings.
pub(super) fn options(task: Task, data: Option<PathBuf>, args: &EvalArgs) -> Options {
    Options {
        task,
        data,
        shots: args.shots.unwrap_or(0),
        shots_from: args.shots_from.clone(),
        limit: args.limit,
        batch: args.batch,
        seq_len: args.seq_len,
        max_new_tokens: args.max_new_tokens,
        seed: args.seed,
    }
}

/// A number over several tasks. Tasks marked as old count for forgetting only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Summary {
    /// Mean of `acc` or `exact_match`.
    Accuracy,
    /// Mean of `f1` or `entity_f1`.
    F1,
    /// Mean of `acc_norm`.
    AccNorm,
    /// Mean of `entity_recall`.
    EntityRecall,
    /// Tokens made a second.
    TokensPerS,
    /// Rows that fell of all that were attacked, over tasks and kinds.
    AttackSuccessRate,
    /// Questions asked in attacks.
    AttackQueries,
    /// Mean of what the old tasks lost.
    Forgetting,
}

impl Summary {
    pub(crate) const ALL: [Summary; 8] = [
        Summary::Accuracy,
        Summary::F1,
        Summary::AccNorm,
        Summary::EntityRecall,
        Summary::TokensPerS,
        Summary::AttackSuccessRate,
        Summary::AttackQueries,
        Summary::Forgetting,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Summary::Accuracy => "accuracy",
            Summary::F1 => "f1",
            Summary::AccNorm => "acc_norm",
            Summary::EntityRecall => "entity_recall",
            Summary::TokensPerS => "tokens_per_s",
            Summary::AttackSuccessRate => "attack_success_rate",
            Summary::AttackQueries => "attack_queries",
            Summary::Forgetting => "forgetting",
        }
    }

    /// The metric of a task that counts, if one does.
    pub(crate) fn of(self, task: &SuiteTask) -> Option<&'static str> {
        let own = task.task().metrics(task.options.data.as_deref());
        let first = |names: &[&'static str]| names.iter().copied().find(|name| own.contains(name));
        let quality = task.task().subject() == Subject::Quality;
        match self {
            _ if task.old => None,
            Summary::Accuracy if quality => first(&["acc", "exact_match"]),
            Summary::F1 => first(&["f1", "entity_f1"]),
            Summary::AccNorm => first(&["acc_norm"]),
            Summary::EntityRecall => first(&["entity_recall"]),
            Summary::TokensPerS if task.task() == Task::Speed => first(&["tokens_per_s"]),
            _ => None,
        }
    }

    /// Whether a suite has anything of it.
    pub(crate) fn is_in(self, suite: &Suite) -> bool {
        match self {
            Summary::AttackSuccessRate | Summary::AttackQueries => suite.tasks.iter().any(|t| t.perturb),
            Summary::Forgetting => suite.compared && suite.tasks.iter().any(|t| t.old),
            _ => suite.tasks.iter().any(|t| self.of(t).is_some()),
        }
    }
}
