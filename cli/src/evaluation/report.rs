//! The results of a suite, with what follows from them: intervals, comparisons, numbers over tasks, gates.

use super::gates::{self, Judged};
use super::run::Measured;
use super::suite::{Suite, SuiteTask, Summary};
use crate::args::EvalArgs;
use crate::output;
use kfc_runtime::eval::stats::{self, Bootstrap, Difference, Form, Interval, McNemar, Part, mcnemar};
use kfc_runtime::eval::{Attack, Evaluation};
use serde_json::{Map, Value, json};

/// A task with what was made of it.
pub(crate) struct TaskReport {
    pub(crate) task: SuiteTask,
    pub(crate) measured: Measured,
    /// One for each estimate.
    pub(crate) intervals: Vec<Interval>,
    pub(crate) comparison: Option<Comparison>,
}

/// What changed from another model.
pub(crate) struct Comparison {
    pub(crate) before: Evaluation,
    /// One for each estimate.
    pub(crate) differences: Vec<Difference>,
    /// Of tasks with right and wrong.
    pub(crate) mcnemar: Option<McNemar>,
    /// The share of the first estimate that was lost, 0 if it became better.
    pub(crate) forgetting: f64,
}

/// All of it.
pub(crate) struct Report {
    pub(crate) tasks: Vec<TaskReport>,
    pub(crate) metrics: Vec<(String, f64)>,
    pub(crate) gates: Vec<Judged>,
    pub(crate) bootstrap: Bootstrap,
    /// What was run, for the header.
    pub(crate) subject: Vec<(&'static str, Value)>,
}

impl Report {
    /// Puts results together; `before` is of the other model, if there is one.
    pub(crate) fn new(
        args: &EvalArgs,
        suite: &Suite,
        after: Vec<Option<Measured>>,
        before: Option<Vec<Option<Measured>>>,
    ) -> Report {
        let mut before = before.unwrap_or_default().into_iter();
        let mut tasks = Vec::new();
        for (task, measured) in suite.tasks.iter().zip(after) {
            let before = before.next().flatten();
            let Some(measured) = measured else { continue };
            let estimates = measured.evaluation.estimates.iter().enumerate();
            let intervals = estimates
                .map(|(i, e)| stats::interval(&parts(&measured.evaluation, i), e.form, &suite.bootstrap));
            let intervals = intervals.collect();
            let comparison = before.map(|b| compare(b.evaluation, &measured.evaluation, &suite.bootstrap));
            tasks.push(TaskReport { task: task.clone(), measured, intervals, comparison });
        }
        let metrics = metrics(suite, &tasks);
        let gates = gates::judge(suite, &metrics);
        let subject = vec![
            ("model", json!(output::shown(&args.model))),
            ("adapter", json!(args.adapter.as_deref().map(output::shown))),
            ("against", json!(args.against.as_deref().map(output::shown))),
            ("against_adapter", json!(args.against_adapter.as_deref().map(output::shown))),
            ("seed", json!(args.seed)),
        ];
        Report { tasks, metrics, gates, bootstrap: suite.bootstrap, subject }
    }

    /// Whether a gate was missed.
    pub(crate) fn missed(&self) -> bool {
        self.gates.iter().any(Judged::missed)
    }

    /// The report for programs. Numbers that are not finite are null.
    pub(crate) fn to_json(&self) -> Value {
        let mut out: Map<String, Value> =
            self.subject.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let bootstrap = json!({
            "confidence": self.bootstrap.confidence, "resamples": self.bootstrap.resamples, "method": "bca",
        });
        let (measured, not): (Vec<&Judged>, Vec<&Judged>) =
            self.gates.iter().partition(|g| g.verdict.is_some());
        let gate = |g: &Judged| {
            let value = g.verdict.as_ref().map(|v| v.value);
            json!({"gate": g.gate.to_string(), "value": value, "passed": !g.missed(), "default": g.default})
        };
        out.insert("metrics".into(), object(self.metrics.iter().map(|(name, v)| (name.as_str(), json!(v)))));
        out.insert("gates".into(), measured.into_iter().map(gate).collect());
        out.insert("gates_not_measured".into(), not.into_iter().map(|g| json!(g.gate.to_string())).collect());
        out.insert("intervals".into(), bootstrap);
        out.insert("tasks".into(), self.tasks.iter().map(TaskReport::to_json).collect());
        Value::Object(out)
    }
}

impl TaskReport {
    fn to_json(&self) -> Value {
        let evaluation = &self.measured.evaluation;
        let names = evaluation.estimates.iter().map(|e| e.name);
        json!({
            "name": self.task.name,
            "task": self.task.task().name(),
            "data": self.task.options.data.as_deref().map(output::shown),
            "shots": self.task.options.shots,
            "rows": evaluation.rows.len(),
            "old": self.task.old,
            "metrics": object(evaluation.metrics.iter().map(|(name, v)| (*name, json!(v)))),
            "intervals": object(names.zip(self.intervals.iter().map(interval))),
            "attacks": self.measured.attacks.iter().map(attack).collect::<Vec<_>>(),
            "comparison": self.comparison.as_ref().map(|c| c.to_json(evaluation)),
        })
    }
}

impl Comparison {
    fn to_json(&self, after: &Evaluation) -> Value {
        let of = |i: usize| {
            let d = &self.differences[i];
            json!({
                "before": self.before.metrics[i].1, "after": after.metrics[i].1, "difference": d.value,
                "interval": interval(&d.interval), "p": d.p,
            })
        };
        let names = after.estimates.iter().map(|e| e.name);
        let mcnemar =
            self.mcnemar.map(|m| json!({"only_before": m.only_before, "only_after": m.only_after, "p": m.p}));
        json!({
            "metrics": object(names.enumerate().map(|(i, name)| (name, of(i)))),
            "mcnemar": mcnemar,
            "forgetting": self.forgetting,
        })
    }
}

/// JSON of an interval.
pub(super) fn interval(i: &Interval) -> Value {
    json!({"low": i.low, "high": i.high, "method": i.method.name()})
}

fn attack(a: &Attack) -> Value {
    json!({
        "perturbation": a.kind.name(), "attacked": a.attacked.len(), "succeeded": a.fell(),
        "attack_success_rate": a.rate(), "queries": a.queries(), "unchangeable": a.unchangeable,
    })
}

fn object<'a>(pairs: impl Iterator<Item = (&'a str, Value)>) -> Value {
    Value::Object(pairs.map(|(name, value)| (name.to_owned(), value)).collect())
}

pub(super) fn parts(evaluation: &Evaluation, estimate: usize) -> Vec<Part> {
    evaluation.rows.iter().map(|r| r.parts[estimate]).collect()
}

fn compare(before: Evaluation, after: &Evaluation, bootstrap: &Bootstrap) -> Comparison {
    let of = |i: usize, form: Form| stats::difference(&parts(&before, i), &parts(after, i), form, bootstrap);
    let differences: Vec<Difference> =
        after.estimates.iter().enumerate().map(|(i, e)| of(i, e.form)).collect();
    let pairs = before.rows.iter().zip(&after.rows).filter_map(|(b, a)| Some((b.correct?, a.correct?)));
    let pairs: Vec<(bool, bool)> = pairs.collect();
    let mcnemar = (!pairs.is_empty()).then(|| mcnemar(pairs.into_iter()));
    let values = |e: &Evaluation| e.metrics.first().map_or(f64::NAN, |(_, value)| *value);
    let rises = after.estimates.first().is_some_and(|e| e.form == Form::Exp);
    let forgetting = lost(values(&before), values(after), rises);
    Comparison { before, differences, mcnemar, forgetting }
}

/// The share of `before` that is gone; of a number that is better when it is small, by how much of itself it rose. 0 where
/// there was nothing to lose.
fn lost(before: f64, after: f64, smaller_is_better: bool) -> f64 {
    let loss = if smaller_is_better { after - before } else { before - after };
    if before == 0.0 || loss <= 0.0 { 0.0 } else { loss / before }
}

/// In the order of [`Suite::metrics`].
fn metrics(suite: &Suite, tasks: &[TaskReport]) -> Vec<(String, f64)> {
    let summaries = Summary::ALL.iter().filter(|s| s.is_in(suite));
    let mut out: Vec<(String, f64)> = summaries.map(|s| (s.name().to_owned(), summary(*s, tasks))).collect();
    for report in tasks {
        let name = &report.task.name;
        let own = report.measured.evaluation.metrics.iter();
        out.extend(own.map(|(metric, value)| (format!("{name}.{metric}"), *value)));
        if report.task.perturb {
            let (rate, queries) = attacked(std::slice::from_ref(report));
            out.push((format!("{name}.attack_success_rate"), rate));
            out.push((format!("{name}.attack_queries"), queries));
        }
        if let (true, Some(comparison)) = (report.task.old, &report.comparison) {
            out.push((format!("{name}.forgetting"), comparison.forgetting));
        }
    }
    out
}

fn summary(summary: Summary, tasks: &[TaskReport]) -> f64 {
    match summary {
        Summary::AttackSuccessRate => attacked(tasks).0,
        Summary::AttackQueries => attacked(tasks).1,
        Summary::Forgetting => {
            let old = tasks.iter().filter(|t| t.task.old);
            mean(old.filter_map(|t| t.comparison.as_ref().map(|c| c.forgetting)))
        }
        _ => mean(tasks.iter().filter_map(|t| {
            let name = summary.of(&t.task)?;
            t.measured.evaluation.metrics.iter().find(|(own, _)| *own == name).map(|(_, value)| *value)
        })),
    }
}

/// Attack success rate over all attacks, and their queries.
fn attacked(tasks: &[TaskReport]) -> (f64, f64) {
    let attacks = || tasks.iter().flat_map(|t| &t.measured.attacks);
    let fell: usize = attacks().map(Attack::fell).sum();
    let rows: usize = attacks().map(|a| a.attacked.len()).sum();
    let queries: usize = attacks().map(Attack::queries).sum();
    (fell as f64 / rows as f64, queries as f64)
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0), |(sum, n), v| (sum + v, n + 1));
    sum / f64::from(n)
}

#[cfg(test)]
mod tests {
    use super::lost;

    #[test]
    fn what_was_lost() {
        assert_eq!(lost(0.8, 0.6, false), (0.8 - 0.6) / 0.8);
        assert_eq!((lost(0.5, 0.6, false), lost(0.0, 0.0, false)), (0.0, 0.0));
        assert_eq!((lost(10.0, 15.0, true), lost(10.0, 9.0, true)), (0.5, 0.0));
        assert!(lost(f64::NAN, 0.5, false).is_nan());
    }
}
