//! A report as one self-contained page: verdict, tables, intervals as drawings, and examples of what went wrong.

use super::report::{Report, TaskReport};
use super::text::{self, number};
use crate::report::{self, Table, escape};
use serde_json::Value;
use std::fmt::Write;

/// Examples shown of each kind.
const EXAMPLES: usize = 5;
/// Characters of an example.
const EXCERPT: usize = 280;

/// The page.
pub(super) fn render(r: &Report) -> String {
    let title = format!("Evaluation of {}", subject(r, "model"));
    let mut html = report::head(&title);
    report::push_summary(&mut html, &cards(r));
    html.push_str("<section class=\"card\"><dl class=\"facts\">\n");
    for (name, value) in r.subject.iter().filter(|(_, value)| !value.is_null()) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let _ = writeln!(html, "<dt>{}</dt><dd>{}</dd>", escape(&name.replace('_', " ")), escape(&value));
    }
    html.push_str("</dl></section>\n");
    let shares = shares(r);
    if !shares.is_empty() {
        html.push_str(&intervals(&shares));
    }
    for table in text::tables(r) {
        report::push_table(&mut html, &table);
    }
    for table in r.tasks.iter().flat_map(examples) {
        html.push_str("<div class=\"reasons\">\n");
        report::push_table(&mut html, &table);
        html.push_str("</div>\n");
    }
    html.push_str(report::TAIL);
    html
}

fn subject(r: &Report, name: &str) -> String {
    let value = r.subject.iter().find(|(own, _)| *own == name).map(|(_, value)| value);
    value.and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn cards(r: &Report) -> Vec<(String, String)> {
    let missed = r.gates.iter().filter(|g| g.missed()).count();
    let verdict = match missed {
        0 => "all met".to_owned(),
        n => format!("{n} missed"),
    };
    let over = r.metrics.iter().filter(|(name, _)| !name.contains('.'));
    let over = over.map(|(name, value)| (name.replace('_', " "), number(*value)));
    std::iter::once(("gates".to_owned(), verdict)).chain(over).collect()
}

/// A share with its interval, and where it was before.
struct Share {
    name: String,
    value: f64,
    low: f64,
    high: f64,
    before: Option<f64>,
}

/// Every estimate that lies between 0 and 1.
fn shares(r: &Report) -> Vec<Share> {
    let of = |task: &TaskReport| {
        let estimates = task.measured.evaluation.estimates.iter().enumerate();
        let share = |(i, e): (usize, &kfc_runtime::eval::Estimate)| Share {
            name: format!("{}.{}", task.task.name, e.name),
            value: task.measured.evaluation.metrics[i].1,
            low: task.intervals[i].low,
            high: task.intervals[i].high,
            before: task.comparison.as_ref().map(|c| c.before.metrics[i].1),
        };
        let own: Vec<Share> = estimates.map(share).collect();
        own.into_iter().filter(|s| !["ppl", "nll", "bits_per_byte"].iter().any(|n| s.name.ends_with(n)))
    };
    let all = r.tasks.iter().flat_map(of);
    all.filter(|s| [s.value, s.low, s.high].iter().all(|x| (0.0..=1.0).contains(x))).collect()
}

/// Width of names, of the drawing, and height of a line.
const SIZE: (f64, f64, f64) = (230.0, 560.0, 24.0);

/// Each share as a dot on its interval; a ring is where it was before.
fn intervals(shares: &[Share]) -> String {
    let (left, width, line) = SIZE;
    let x = |share: f64| left + share * width;
    let height = line * (shares.len() as f64 + 1.0);
    let mut svg = format!(
        "<figure class=\"wide\"><figcaption><h2>Shares and their intervals</h2></figcaption>\n\
         <svg viewBox=\"0 0 {} {height}\" role=\"img\" aria-label=\"Shares with confidence intervals\">\n",
        left + width + 30.0
    );
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let (at, bottom) = (x(tick), height - line);
        let _ = writeln!(svg, "<line class=\"grid\" x1=\"{at}\" y1=\"0\" x2=\"{at}\" y2=\"{bottom}\"/>");
        let _ = writeln!(svg, "<text x=\"{at}\" y=\"{}\" text-anchor=\"middle\">{tick}</text>", height - 6.0);
    }
    for (i, share) in shares.iter().enumerate() {
        let y = line * (i as f64 + 0.5);
        let (name, end) = (escape(&share.name), left - 12.0);
        let _ = writeln!(svg, "<text x=\"{end}\" y=\"{}\" text-anchor=\"end\">{name}</text>", y + 4.0);
        let tip = format!("{name} {} [{}, {}]", number(share.value), number(share.low), number(share.high));
        let (low, high) = (x(share.low), x(share.high));
        let _ = writeln!(
            svg,
            "<g><title>{tip}</title><line x1=\"{low:.1}\" y1=\"{y}\" x2=\"{high:.1}\" y2=\"{y}\" \
             stroke=\"var(--c0)\" stroke-width=\"2\"/><circle cx=\"{:.1}\" cy=\"{y}\" r=\"4.5\" fill=\"var(--c0)\"/></g>",
            x(share.value)
        );
        if let Some(before) = share.before.filter(|b| (0.0..=1.0).contains(b)) {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{y}\" r=\"5.5\" fill=\"none\" stroke=\"var(--c1)\" stroke-width=\"2\">\
                 <title>before: {}</title></circle>",
                x(before),
                number(before)
            );
        }
    }
    svg.push_str("</svg></figure>\n");
    svg
}

/// Rows that were answered wrong, and perturbed questions that brought a right answer down.
fn examples(task: &TaskReport) -> Vec<Table> {
    let name = &task.task.name;
    let wrong = task.measured.evaluation.rows.iter().filter(|r| r.correct == Some(false)).take(EXAMPLES);
    let wrong = wrong.map(|r| {
        let text = |key: &str| r.detail.get(key).map_or(String::new(), shown);
        vec![format!("row {}", r.row), text("answer"), text("right"), text("prompt")]
    });
    let fell = task.measured.attacks.iter().flat_map(|attack| {
        let fell = attack.attacked.iter().filter_map(|a| a.fell.as_ref().map(|f| (a.row, f)));
        fell.take(EXAMPLES).map(|(row, (question, result))| {
            let text = |key: &str| result.detail.get(key).map_or(String::new(), shown);
            let first = format!("row {row}, {}", attack.kind.name());
            vec![first, text("answer"), text("right"), excerpt(question)]
        })
    });
    let table = |title: String, note: &str, last: &str, rows: Vec<Vec<String>>| Table {
        title,
        note: note.into(),
        columns: ["row", "answer", "right", last].map(String::from).into(),
        rows,
    };
    let tables = [
        table(format!("{name}: wrong answers"), "The first rows of them.", "prompt", wrong.collect()),
        table(
            format!("{name}: fell to a perturbation"),
            "Right before.",
            "perturbed question",
            fell.collect(),
        ),
    ];
    tables.into_iter().filter(|t| !t.rows.is_empty()).collect()
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => excerpt(text),
        Value::Array(list) => excerpt(&list.iter().map(shown).collect::<Vec<_>>().join("; ")),
        other => excerpt(&other.to_string()),
    }
}

/// The end of a long text, where the question is.
fn excerpt(text: &str) -> String {
    let text = text.trim();
    match text.chars().count().checked_sub(EXCERPT) {
        None | Some(0) => text.to_owned(),
        Some(more) => format!("…{}", text.chars().skip(more).collect::<String>()),
    }
}
