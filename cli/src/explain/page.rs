//! The explanation as one self-contained page: figures, drawings and tables; no script, nothing loaded.

use super::{Explanation, draw, text};
use crate::config::format_bytes;
use crate::report::{self, Table};

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
        // A plan without blocks has nothing to draw.
        if !plan.blocks.is_empty() {
            html.push_str(&draw::timeline(e, plan, memory));
            html.push_str(&draw::arena(e, plan));
        }
    }
    html.push_str(&draw::roofline(e).unwrap_or_default());
    for table in tables(e) {
        report::push_table(&mut html, &table);
    }
    html.push_str(report::TAIL);
    html
}

fn tables(e: &Explanation<'_>) -> Vec<Table> {
    let mut kernels = text::kernel_rows(e, usize::MAX);
    kernels[0].push("why".into());
    kernels.iter_mut().skip(1).zip(&e.kernels).for_each(|(row, k)| row.push(k.why().join("; ")));
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
    for m in e.memory.iter().filter(|m| !m.living.is_empty()) {
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
    let note = "All kernels, the slowest first; times and launches are those of a step.";
    tables.push(table("Kernels", note, kernels));
    tables
}

fn table(title: &str, note: &str, mut rows: Vec<Vec<String>>) -> Table {
    let columns = if rows.is_empty() { Vec::new() } else { rows.remove(0) };
    Table { title: title.into(), note: note.into(), columns, rows }
}
