//! `kfc eval`

use crate::args::{EvalArgs, Global};
use crate::error::Outcome;
use crate::evaluation::{self, Display, Report, Suite, number};
use crate::gate::{self, Verdict};
use crate::output;
use kfc_runtime::eval::stats::{self, Bootstrap};
use kfc_runtime::eval::{self, Evaluation};
use kfc_runtime::inference::Served;
use serde_json::{Map, Value, json};

/// Runs `kfc eval`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &EvalArgs, global: &Global) -> anyhow::Result<Outcome> {
    if args.is_report() { report(args, global) } else { single(args, global) }
}

/// Several tasks, a comparison or perturbed questions: a report.
fn report(args: &EvalArgs, global: &Global) -> anyhow::Result<Outcome> {
    let suite = Suite::of(args)?;
    suite.check_gates()?;
    // Both models are opened before hours of work on one of them; only one holds memory at a time.
    if let Some(against) = &args.against {
        Served::open(against, args.against_adapter.as_deref(), None)?;
    }
    let served = Served::open(&args.model, args.adapter.as_deref(), None)?;
    if let Some(folder) = &args.out {
        evaluation::prepare(folder)?;
    }
    let after = evaluation::measure(&served, &suite, false, global)?;
    drop(served);
    let before = match &args.against {
        None => None,
        Some(against) => {
            let served = Served::open(against, args.against_adapter.as_deref(), None)?;
            Some(evaluation::measure(&served, &suite, true, global)?)
        }
    };
    let report = Report::new(args, &suite, after, before);
    if let Some(folder) = &args.out {
        evaluation::write(&report, folder)?;
    }
    if global.json {
        output::json_line(&report.to_json())?;
    } else {
        output::write_stdout(&evaluation::render(&report))?;
    }
    for missed in report.gates.iter().filter_map(|g| g.verdict.as_ref()).filter(|v| !v.met) {
        output::stderr_line(&missed.to_string());
    }
    Ok(if report.missed() { Outcome::GateMissed } else { Outcome::Done })
}

/// One task: its numbers, and the gates that were asked for.
fn single(args: &EvalArgs, global: &Global) -> anyhow::Result<Outcome> {
    let suite = Suite::of(args)?;
    let options = &suite.tasks[0].options;
    gate::check_known(&args.gates, &options.task.metrics(options.data.as_deref()))?;
    let served = Served::open(&args.model, args.adapter.as_deref(), None)?;
    let mut display = Display::new("rows", global);
    let evaluation = eval::evaluate(&served, options, &mut display)?;
    display.finish();
    let named: Vec<(String, f64)> =
        evaluation.metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    let verdicts = gate::evaluate(&args.gates, &named)?;
    if global.json {
        output::json_line(&to_json(args, &evaluation, &suite.bootstrap, &verdicts))?;
    } else {
        output::write_stdout(&to_text(&evaluation, &suite.bootstrap, &verdicts))?;
    }
    for missed in verdicts.iter().filter(|verdict| !verdict.met) {
        output::stderr_line(&missed.to_string());
    }
    Ok(gate::outcome(&verdicts))
}

/// The ends of each estimate's interval.
fn intervals(evaluation: &Evaluation, bootstrap: &Bootstrap) -> Vec<stats::Interval> {
    let parts = |i: usize| evaluation.rows.iter().map(|r| r.parts[i]).collect::<Vec<_>>();
    let estimates = evaluation.estimates.iter().enumerate();
    estimates.map(|(i, e)| stats::interval(&parts(i), e.form, bootstrap)).collect()
}

/// Numbers that are not finite are null.
fn to_json(args: &EvalArgs, evaluation: &Evaluation, bootstrap: &Bootstrap, verdicts: &[Verdict]) -> Value {
    let metrics: Map<String, Value> =
        evaluation.metrics.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    let ends = intervals(evaluation, bootstrap);
    let ends: Map<String, Value> = evaluation
        .estimates
        .iter()
        .zip(ends)
        .map(|(e, i)| (e.name.to_owned(), json!({"low": i.low, "high": i.high, "method": i.method.name()})))
        .collect();
    let gates: Vec<Value> = verdicts
        .iter()
        .map(|v| json!({"gate": v.gate.to_string(), "value": v.value, "passed": v.met}))
        .collect();
    json!({
        "task": evaluation.task.name(),
        "model": output::shown(&args.model),
        "adapter": args.adapter.as_deref().map(output::shown),
        "data": args.data.first().map(|d| output::shown(d)),
        "metrics": metrics,
        "intervals": ends,
        "gates": gates,
    })
}

fn to_text(evaluation: &Evaluation, bootstrap: &Bootstrap, verdicts: &[Verdict]) -> String {
    let ends = intervals(evaluation, bootstrap);
    let ends = |i: usize| ends.get(i).map(|e| format!("[{}, {}]", number(e.low), number(e.high)));
    let row = |(i, (name, value)): (usize, &(&str, f64))| {
        [(*name).to_owned(), number(*value)].into_iter().chain(ends(i)).collect::<Vec<String>>()
    };
    let rows: Vec<Vec<String>> = evaluation.metrics.iter().enumerate().map(row).collect();
    let gates: Vec<String> = verdicts.iter().filter(|v| v.met).map(|v| format!("{v}\n")).collect();
    output::table(&rows) + &gates.concat()
}
