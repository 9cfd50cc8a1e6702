//! The explanation as one self-contained page: figures, drawings and tables; no script, nothing loaded.

use super::{Explanation, draw, text};
use crate::config::format_bytes;
use crate::report::{self, Table};
use kfc_runtime::profile::PlanProfile;

/// The page.
pub(crate) fn render(e: &Explanation<'_>, title: &str) -> String {
    let mut html = report::head(title);
    report::push_summary(&mut html, &text::cards(e));
    html.push_str("<section class=\"card\"><dl class=\"facts\">\n");
    for (name, value) in text::summary(e) {
        html.push_str(&format!("<dt>{}</dt><dd>{}</dd>\n", report::escape(&name), report::escape(&value)));
    }
    html.push_str("</dl></section>\n");
    for (plan, memory) in e.profile.plans.iter().zip(&e.memory) {
        if worth_drawing(e, plan) {
            html.push_str(&draw::timeline(e, plan, memory));
            html.push_str(&draw::arena(e, plan));
        }
    }
    html.push_str(&draw::roofline(e).unwrap_or_default());
    for table in tables(e) {
        report::push_table(&mut html, &table);
    }
    html.push_str("<div class=\"reasons\">\n");
    report::push_table(&mut html, &kernels(e));
    html.push_str("</div>\n");
    html.push_str(report::TAIL);
    html
}

/// Plans share one arena; one that takes next to nothing of it has nothing to show.
fn worth_drawing(e: &Explanation<'_>, plan: &PlanProfile) -> bool {
    let largest = e.profile.plans.iter().map(|p| p.arena_bytes).max().unwrap_or(0);
    !plan.blocks.is_empty() && plan.arena_bytes >= largest / 100
}

/// All kernels and why they are what they are.
fn kernels(e: &Explanation<'_>) -> Table {
    let mut rows = text::kernel_rows(e, usize::MAX);
    rows[0].push("why".into());
    rows.iter_mut().skip(1).zip(&e.kernels).for_each(|(row, k)| row.push(k.why().join("; ")));
    let note = "All kernels, the slowest first; times and launches are those of a step.";
    table("Kernels", note, rows)
}

fn tables(e: &Explanation<'_>) -> Vec<Table> {
    let mut tables = vec![
        table("Parts", "Times and launches are those of a step.", text::totals(e, &e.places)),
        table("Phases", "", text::totals(e, &e.phases)),
    ];
    if let Some(m) = &e.measured {
        let mut rows = vec![vec!["".to_string(), "ms a step".into()]];
        rows.extend(m.host.iter().map(|(what, ms)| vec![what.clone(), text::ms(*ms)]));
        rows.push(vec!["not attributed".into(), text::ms((m.step_ms * (1.0 - m.attributed)).max(0.0))]);
        tables.push(table("Outside of kernels", "", rows));
    }
    for (_, m) in e.profile.plans.iter().zip(&e.memory).filter(|(plan, _)| worth_drawing(e, plan)) {
        let row =
            |l: &super::memory::Living| vec![l.what(), l.blocks.to_string(), format_bytes(l.bytes as u64)];
        let head = || vec![["what", "blocks", "bytes"].map(String::from).to_vec()];
        let living = head().into_iter().chain(m.living.iter().map(row)).collect();
        let note = format!("{}: {} alive", m.peak_at, format_bytes(m.peak_bytes() as u64));
        tables.push(table(&format!("What lives at the peak of {}", m.name), &note, living));
        if !m.saved.is_empty() {
            let saved = head().into_iter().chain(m.saved.iter().map(row)).collect();
            tables.push(table("Kept for the backward pass", "", saved));
        }
    }
    tables
}

fn table(title: &str, note: &str, mut rows: Vec<Vec<String>>) -> Table {
    let columns = if rows.is_empty() { Vec::new() } else { rows.remove(0) };
    Table { title: title.into(), note: note.into(), columns, rows }
}
