//! Suites in TOML.
//!
//! Keys: `data` and `limit` of all tasks; `[[task]]` with `task`, `name`, `data`, `limit`, `shots`, `shots_from`,
//! `max_new_tokens`, `seq_len`, `perturb`, `old`; `[robustness]` with `perturbations`, `tries`, `rows`, `synonyms`;
//! `[intervals]` with `resamples`, `confidence`; `[gates]` with `METRIC = ">=0.9"`, or `false` for no default gate. Paths
//! are from the file's folder. Arguments of the command line override what a file says.

use super::suite::{Suite, SuiteTask, options};
use crate::args::EvalArgs;
use crate::config::node::{Node, Origin, Value, from_toml};
use crate::config::{ConfigError, nearest};
use crate::gate::Gate;
use kfc_runtime::RunError;
use kfc_runtime::eval::Task;
use kfc_runtime::eval::perturb::{Lexicon, Perturbation};
use std::path::{Path, PathBuf};

/// The suite that is built in.
const STANDARD: (&str, &str) = ("standard", include_str!("standard.toml"));

/// Reads a file, or takes a built-in suite by its name.
pub(super) fn read(suite: &str, args: &EvalArgs) -> anyhow::Result<Suite> {
    let (name, built_in) = STANDARD;
    if suite == name {
        if args.data.is_empty() {
            return Err(crate::error::input_error(format!(
                "--suite {name} reads medqa, gsm8k and ncbi-disease below a folder; name it with --data DIR"
            )));
        }
        return Reader { path: Path::new(suite), folder: Path::new(""), args }.suite(built_in);
    }
    let path = Path::new(suite);
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError::unreadable(path, &error))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    Reader { path, folder, args }.suite(&text)
}

struct Reader<'a> {
    path: &'a Path,
    folder: &'a Path,
    args: &'a EvalArgs,
}

/// A table of the file with its name.
struct Section<'a> {
    reader: &'a Reader<'a>,
    name: &'a str,
    node: &'a Node,
}

impl Reader<'_> {
    fn suite(&self, text: &str) -> anyhow::Result<Suite> {
        let root = from_toml(text, self.path)?;
        let top = Section { reader: self, name: "", node: &root };
        top.known(&["data", "limit", "task", "robustness", "intervals", "gates"])?;
        // One --data is the folder or file of every task that names none.
        let data = self.args.data.first().cloned().or(top.path("data")?);
        let limit = top.count("limit")?;
        let tasks = match root.get("task") {
            None => Vec::new(),
            Some(Node { value: Value::Array(list), .. }) => list.iter().collect(),
            Some(other) => {
                return Err(self.wrong(other, "task", "must be a list of tables; write [[task]]").into());
            }
        };
        let mut read = Vec::new();
        for node in tasks {
            read.push(self.task(node, data.as_ref(), limit)?);
        }
        let mut suite = Suite::new(read, self.args);
        if let Some(node) = root.get("robustness") {
            self.robustness(node, &mut suite)?;
        }
        if let Some(node) = root.get("intervals") {
            let section = Section { reader: self, name: "intervals", node };
            section.known(&["resamples", "confidence"])?;
            suite.bootstrap.resamples = section.count("resamples")?.unwrap_or(suite.bootstrap.resamples);
            suite.bootstrap.confidence = section.share("confidence")?.unwrap_or(suite.bootstrap.confidence);
        }
        if let Some(node) = root.get("gates") {
            self.gates(node, &mut suite)?;
        }
        Ok(suite)
    }

    fn task(&self, node: &Node, data: Option<&PathBuf>, limit: Option<usize>) -> anyhow::Result<SuiteTask> {
        let section = Section { reader: self, name: "task", node };
        section.known(&[
            "task",
            "name",
            "data",
            "limit",
            "shots",
            "shots_from",
            "max_new_tokens",
            "seq_len",
            "perturb",
            "old",
        ])?;
        let Some(kind) = section.text("task")? else {
            return Err(self
                .wrong(node, "task.task", "is missing; set it to \"medqa\" or another task")
                .into());
        };
        let task = Task::named(&kind).ok_or_else(|| {
            let names: Vec<&str> = Task::ALL.iter().map(|t| t.name()).collect();
            let near = nearest(&kind, names.iter().copied());
            let near = near.map(|n| format!("did you mean `{n}`? ")).unwrap_or_default();
            let problem = format!("there is no task `{kind}`; {near}the tasks are {}", names.join(", "));
            self.wrong(node.get("task").unwrap_or(node), "task.task", &problem)
        })?;
        let own = section.path("data")?.or_else(|| data.cloned());
        if own.is_none() && task != Task::Speed {
            let problem = format!("{kind} needs rows; set data here or above, or give --data");
            return Err(self.wrong(node, "task.data", &problem).into());
        }
        let mut options = options(task, own.filter(|_| task != Task::Speed), self.args);
        options.limit = self.args.limit.or(section.count("limit")?).or(limit);
        options.shots = self.args.shots.or(section.count_or_none("shots")?).unwrap_or(0);
        options.shots_from = self.args.shots_from.clone().or(section.path("shots_from")?);
        options.max_new_tokens = self.args.max_new_tokens.or(section.count("max_new_tokens")?);
        options.seq_len = self.args.seq_len.or(section.count("seq_len")?);
        Ok(SuiteTask {
            name: section.text("name")?.unwrap_or(kind),
            options,
            perturb: section.flag("perturb")?.unwrap_or(true),
            old: section.flag("old")?.unwrap_or(false),
        })
    }

    fn robustness(&self, node: &Node, suite: &mut Suite) -> anyhow::Result<()> {
        let section = Section { reader: self, name: "robustness", node };
        section.known(&["perturbations", "tries", "rows", "synonyms"])?;
        suite.kinds = Perturbation::ALL.to_vec();
        if let Some(list) = node.get("perturbations") {
            let Value::Array(items) = &list.value else {
                return Err(self.wrong(list, "robustness.perturbations", "must be a list").into());
            };
            let kind = |item: &Node| match &item.value {
                Value::Str(name) => Perturbation::named(name),
                _ => None,
            };
            suite.kinds = Vec::new();
            for item in items {
                suite.kinds.push(kind(item).ok_or_else(|| {
                    let names = Perturbation::ALL.map(Perturbation::name).join(", ");
                    let problem = format!("{} is no perturbation; they are {names}", item.describe());
                    self.wrong(item, "robustness.perturbations", &problem)
                })?);
            }
        }
        suite.attack.tries = section.count("tries")?.unwrap_or(suite.attack.tries);
        suite.attack.rows = section.count("rows")?;
        if let Some(path) = section.path("synonyms")? {
            let more = Lexicon::read(&path).map_err(RunError::from)?;
            suite.attack.lexicon = std::mem::take(&mut suite.attack.lexicon).with(&more);
        }
        Ok(())
    }

    /// `METRIC = ">=0.9"` or a number (at least), and `METRIC = false`.
    fn gates(&self, node: &Node, suite: &mut Suite) -> anyhow::Result<()> {
        let Value::Table(entries) = &node.value else {
            return Err(self.wrong(node, "gates", "must be a table; write [gates]").into());
        };
        for entry in entries {
            let metric = &entry.key;
            let wrong = |problem: &str| self.wrong(&entry.node, &format!("gates.{metric}"), problem);
            match &entry.node.value {
                Value::Bool(false) => suite.no_gates.push(metric.clone()),
                Value::Str(bound) => {
                    suite.gates.push(Gate::parse(&format!("{metric}{bound}")).map_err(|e| wrong(&e))?);
                }
                _ => return Err(wrong("must be text as in \">=0.9\", or false").into()),
            }
        }
        Ok(())
    }

    fn wrong(&self, node: &Node, field: &str, problem: &str) -> ConfigError {
        let line = match &node.at {
            Origin::Line(line) => *line,
            Origin::Set(_) => 1,
        };
        ConfigError::new(format!("{}:{line}", self.path.display()), Some(field.to_owned()), problem)
    }
}

impl Section<'_> {
    /// Refuses keys that mean nothing.
    fn known(&self, keys: &[&str]) -> Result<(), ConfigError> {
        let Value::Table(entries) = &self.node.value else {
            return Err(self.reader.wrong(self.node, self.name, "must be a table"));
        };
        match entries.iter().find(|e| !keys.contains(&e.key.as_str())) {
            None => Ok(()),
            Some(entry) => {
                let near = nearest(&entry.key, keys.iter().copied());
                let near = near.map(|n| format!("did you mean `{n}`? ")).unwrap_or_default();
                let problem = format!("there is no such key; {near}the keys are {}", keys.join(", "));
                Err(self.reader.wrong(&entry.node, &self.field(&entry.key), &problem))
            }
        }
    }

    fn field(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    fn value<T>(
        &self,
        key: &str,
        what: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(node) = self.node.get(key) else { return Ok(None) };
        match read(&node.value) {
            Some(value) => Ok(Some(value)),
            None => {
                let problem = format!("must be {what}, it is {}", node.describe());
                Err(self.reader.wrong(node, &self.field(key), &problem))
            }
        }
    }

    fn text(&self, key: &str) -> Result<Option<String>, ConfigError> {
        self.value(key, "text", |v| match v {
            Value::Str(text) if !text.trim().is_empty() => Some(text.clone()),
            _ => None,
        })
    }

    fn path(&self, key: &str) -> Result<Option<PathBuf>, ConfigError> {
        Ok(self.text(key)?.map(|path| self.reader.folder.join(path)))
    }

    fn count(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.value(key, "a whole number above 0", |v| match v {
            Value::Int(n) if *n > 0 => usize::try_from(*n).ok(),
            _ => None,
        })
    }

    fn count_or_none(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.value(key, "a whole number", |v| match v {
            Value::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        })
    }

    fn share(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.value(key, "a number between 0 and 1", |v| match v {
            Value::Float(x) if *x > 0.0 && *x < 1.0 => Some(*x),
            _ => None,
        })
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.value(key, "true or false", |v| match v {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }
}
