//! `kfc eval`

use crate::args::{EvalArgs, Global, Task};
use crate::error::Outcome;
use crate::gate::{self, Verdict};
use crate::output;
use crate::progress::Progress;
use kfc_runtime::eval::{self, Metrics, Observer, Options};
use kfc_runtime::inference::Served;
use serde_json::{Map, Value, json};

/// Runs `kfc eval`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &EvalArgs, global: &Global) -> anyhow::Result<Outcome> {
    let task = task_of(args.task);
    gate::check_known(&args.gates, &task.metrics(args.data.as_deref()))?;
    let served = Served::open(&args.model, args.adapter.as_deref(), None)?;
    let options = Options {
        task,
        data: args.data.clone(),
        limit: args.limit,
        batch: args.batch,
        seq_len: args.seq_len,
        max_new_tokens: args.max_new_tokens,
        seed: args.seed,
    };
    let mut display = Display { progress: None, global };
    let metrics = eval::evaluate(&served, &options, &mut display)?;
    display.finish();
    let named: Vec<(String, f64)> =
        metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    let verdicts = gate::evaluate(&args.gates, &named)?;
    if global.json {
        output::json_line(&to_json(args, &metrics, &verdicts))?;
    } else {
        output::write_stdout(&to_text(&metrics, &verdicts))?;
    }
    for missed in verdicts.iter().filter(|verdict| !verdict.met) {
        output::stderr_line(&missed.to_string());
    }
    Ok(gate::outcome(&verdicts))
}

fn task_of(task: Task) -> eval::Task {
    match task {
        Task::Ppl => eval::Task::Perplexity,
        Task::Choice => eval::Task::Choice,
        Task::Qa => eval::Task::Qa,
        Task::Entity => eval::Task::Entity,
        Task::Speed => eval::Task::Speed,
    }
}

/// Numbers that are not finite are null.
fn to_json(args: &EvalArgs, metrics: &Metrics, verdicts: &[Verdict]) -> Value {
    let metrics: Map<String, Value> =
        metrics.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    let gates: Vec<Value> = verdicts
        .iter()
        .map(|v| json!({"gate": v.gate.to_string(), "value": v.value, "passed": v.met}))
        .collect();
    json!({
        "task": args.task.name(),
        "model": args.model,
        "adapter": args.adapter,
        "data": args.data,
        "metrics": metrics,
        "gates": gates,
    })
}

fn to_text(metrics: &Metrics, verdicts: &[Verdict]) -> String {
    let rows: Vec<Vec<String>> =
        metrics.iter().map(|(name, value)| vec![(*name).to_owned(), number(*value)]).collect();
    let gates: Vec<String> = verdicts.iter().filter(|v| v.met).map(|v| format!("{v}\n")).collect();
    output::table(&rows) + &gates.concat()
}

/// Counts as they are, other numbers with as many digits as mean something.
fn number(value: f64) -> String {
    if !value.is_finite() {
        return "n/a".into();
    }
    if value == value.trunc() && value.abs() < 1e15 && value.abs() >= 1.0 {
        return format!("{value:.0}");
    }
    if value.abs() >= 1000.0 { format!("{value:.1}") } else { format!("{value:.4}") }
}

/// Shows rows as they are done.
struct Display<'a> {
    progress: Option<Progress>,
    global: &'a Global,
}

impl Display<'_> {
    fn finish(self) {
        if let Some(progress) = self.progress {
            progress.finish();
        }
    }
}

impl Observer for Display<'_> {
    fn progress(&mut self, done: usize, total: usize) {
        let global = self.global;
        self.progress.get_or_insert_with(|| Progress::new("row", 0, total, global)).update(done, "rows");
    }

    fn note(&mut self, text: &str) {
        match &self.progress {
            Some(progress) => progress.note(text),
            None if !self.global.quiet => output::stderr_line(text),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers() {
        let shown = [0.0, 1.0, 0.51236, 17.25, 12345.678, 4096.0, f64::NAN].map(number);
        assert_eq!(shown, ["0.0000", "1", "0.5124", "17.2500", "12345.7", "4096", "n/a"]);
    }
}
