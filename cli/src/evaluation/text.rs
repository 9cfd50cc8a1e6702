//! A report as text: tables of tasks, attacks, changes and gates. The page shows the same tables.

use super::report::{Report, TaskReport};
use crate::output;
use crate::report::Table;
use kfc_runtime::eval::stats::Interval;

/// The report for a terminal.
pub(crate) fn render(report: &Report) -> String {
    let mut out = String::new();
    for table in tables(report) {
        let rows: Vec<Vec<String>> = std::iter::once(table.columns).chain(table.rows).collect();
        out.push_str(&format!("{}\n{}\n", table.title, output::table(&rows)));
    }
    out.pop();
    out
}

/// All tables that have something to say.
pub(super) fn tables(report: &Report) -> Vec<Table> {
    let all = [gates(report), results(report), attacks(report), changes(report)];
    all.into_iter().filter(|table| !table.rows.is_empty()).collect()
}

fn gates(report: &Report) -> Table {
    let rows = report.gates.iter().map(|judged| {
        let value = judged.verdict.as_ref().map_or("-".into(), |v| number(v.value));
        let whose = if judged.default { "default" } else { "asked for" };
        vec![judged.gate.to_string(), value, judged.word().into(), whose.into()]
    });
    let note = "A missed gate ends the command with exit code 3; one whose metric was not measured does not.";
    table("Gates", note, &["gate", "value", "result", "from"], rows.collect())
}

fn results(report: &Report) -> Table {
    let percent = report.bootstrap.confidence * 100.0;
    let rows = report.tasks.iter().flat_map(|task| {
        let own = task.measured.evaluation.metrics.iter().enumerate();
        own.map(|(i, (name, value))| {
            let interval = task.intervals.get(i).map_or(String::new(), ends);
            vec![format!("{}.{name}", task.task.name), number(*value), interval]
        })
    });
    let over = report.metrics.iter().filter(|(name, _)| !name.contains('.'));
    let over = over.map(|(name, value)| vec![name.clone(), number(*value), String::new()]);
    let note = format!(
        "Intervals hold the value with {percent} % confidence: BCa bootstrap over rows, {} resamples. Names without a task \
         are over all tasks that are not marked as old.",
        report.bootstrap.resamples
    );
    table("Results", &note, &["metric", "value", "interval"], over.chain(rows).collect())
}

fn attacks(report: &Report) -> Table {
    let rows = report.tasks.iter().flat_map(|task| {
        task.measured.attacks.iter().map(|a| {
            let attacked = a.attacked.len();
            vec![
                format!("{}, {}", task.task.name, a.kind.name()),
                number(a.rate()),
                format!("{} of {attacked}", a.fell()),
                a.queries().to_string(),
                number(a.queries() as f64 / attacked as f64),
            ]
        })
    });
    let note = "Rows that were answered right, asked again in other words until an answer is wrong.";
    let columns = ["task, perturbation", "attack success rate", "fell", "queries", "queries a row"];
    table("Robustness", note, &columns, rows.collect())
}

fn changes(report: &Report) -> Table {
    let rows = report.tasks.iter().flat_map(of_task);
    let note = "The same rows asked of both models. p of the differences is of the paired bootstrap, McNemar's of its exact \
                test on what was right and wrong.";
    let columns = ["metric", "before", "after", "difference", "interval", "p", "McNemar p", "forgetting"];
    table("Changes", note, &columns, rows.collect())
}

fn of_task(task: &TaskReport) -> Vec<Vec<String>> {
    let Some(c) = &task.comparison else { return Vec::new() };
    let after = &task.measured.evaluation;
    let row = |(i, d): (usize, &kfc_runtime::eval::stats::Difference)| {
        let first = i == 0;
        vec![
            format!("{}.{}", task.task.name, after.estimates[i].name),
            number(c.before.metrics[i].1),
            number(after.metrics[i].1),
            format!("{:+.4}", d.value),
            ends(&d.interval),
            p_value(d.p),
            c.mcnemar.filter(|_| first).map_or(String::new(), |m| p_value(m.p)),
            if first && task.task.old { number(c.forgetting) } else { String::new() },
        ]
    };
    c.differences.iter().enumerate().map(row).collect()
}

fn table(title: &str, note: &str, columns: &[&str], rows: Vec<Vec<String>>) -> Table {
    let columns = columns.iter().map(|c| c.to_string()).collect();
    Table { title: title.into(), note: note.into(), columns, rows }
}

/// `[low, high]`.
fn ends(i: &Interval) -> String {
    format!("[{}, {}]", number(i.low), number(i.high))
}

/// A probability, which is never nothing.
fn p_value(p: f64) -> String {
    if p < 1e-4 { "<0.0001".into() } else { number(p) }
}

/// Counts as they are, other numbers with as many digits as mean something.
pub(crate) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "n/a".into();
    }
    if value == value.trunc() && value.abs() < 1e15 && value.abs() >= 1.0 {
        return format!("{value:.0}");
    }
    if value.abs() >= 1000.0 { format!("{value:.1}") } else { format!("{value:.4}") }
}

#[cfg(test)]
mod tests {
    use super::{number, p_value};

    #[test]
    fn small_probabilities_are_not_zero() {
        assert_eq!(
            [0.0, 1e-65, 0.0002, 1.0, f64::NAN].map(p_value),
            ["<0.0001", "<0.0001", "0.0002", "1", "n/a"]
        );
    }

    #[test]
    fn numbers() {
        let shown = [0.0, 1.0, 0.51236, 17.25, 12345.678, 4096.0, f64::NAN].map(number);
        assert_eq!(shown, ["0.0000", "1", "0.5124", "17.2500", "12345.7", "4096", "n/a"]);
    }
}
