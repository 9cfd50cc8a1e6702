//! `report.html`: one self-contained page with a run's figures, curves and configuration.
//!
//! The page asks for nothing from anywhere: styles are inline, charts are SVG drawn by `svg`, and there is no script.
//! Everything that comes from outside (titles, names, configurations) is escaped.

pub mod axes;
mod metrics;
pub mod roofline;
pub mod scale;
mod svg;

pub use metrics::{comparison_charts, read_metrics, run_charts};

use crate::run_dir::write_atomically;
use std::fmt::Write;
use std::path::Path;

/// The contents of a page, from top to bottom; empty parts are left out.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Title and heading.
    pub title: String,
    /// Names and values of the header.
    pub summary: Vec<(String, String)>,
    /// Tables below the header.
    pub tables: Vec<Table>,
    /// Charts, two in a row where there is room.
    pub charts: Vec<Chart>,
    /// The resolved configuration.
    pub config_toml: String,
}

/// A table; the first column names the row, the others are figures.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Heading.
    pub title: String,
    /// A sentence below the heading that says how to read it.
    pub note: String,
    /// Heads of the columns.
    pub columns: Vec<String>,
    /// Cells.
    pub rows: Vec<Vec<String>>,
}

/// Curves over a common x.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// Heading.
    pub title: String,
    /// What x counts.
    pub x_label: String,
    /// How values are written.
    pub unit: Unit,
    /// Draw a running mean over noisy points.
    pub smooth: bool,
    /// The curves. Points that are not finite are left out.
    pub series: Vec<Series>,
}

/// How the values of a chart are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// Plain numbers.
    #[default]
    Number,
    /// Bytes, shown in MiB, GiB and so on.
    Bytes,
}

/// One curve.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// (x, y), x ascending.
    pub points: Vec<(f64, f64)>,
}

/// Writes `report` to `path`, whole or not at all.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, report: &Report) -> anyhow::Result<()> {
    write_atomically(path, page(report).as_bytes())
}

/// The page as text.
pub fn page(report: &Report) -> String {
    let mut html = head(&report.title);
    push_summary(&mut html, &report.summary);
    for table in &report.tables {
        push_table(&mut html, table);
    }
    push_charts(&mut html, &report.charts);
    if !report.config_toml.is_empty() {
        push_config(&mut html, &report.config_toml);
    }
    html.push_str(TAIL);
    html
}

/// Charts, two in a row where there is room.
pub(crate) fn push_charts(html: &mut String, charts: &[Chart]) {
    let charts: Vec<String> = charts.iter().filter_map(svg::figure).collect();
    if !charts.is_empty() {
        let _ = writeln!(html, "<div class=\"charts\">\n{}</div>", charts.concat());
    }
}

/// A configuration as it is.
pub(crate) fn push_config(html: &mut String, toml: &str) {
    let config = escape(toml);
    let _ = writeln!(html, "<details open><summary>Configuration</summary>\n<pre>{config}</pre></details>");
}

/// What a page begins with, up to its heading.
pub(crate) fn head(title: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{}</style>\n</head>\n\
         <body>\n<main>\n<h1>{title}</h1>\n",
        include_str!("style.css")
    )
}

/// What a page ends with.
pub(crate) const TAIL: &str = "</main>\n</body>\n</html>\n";

/// Names and values in small cards.
pub(crate) fn push_summary(html: &mut String, summary: &[(String, String)]) {
    if summary.is_empty() {
        return;
    }
    html.push_str("<dl class=\"summary\">\n");
    for (name, value) in summary {
        let wide = if value.chars().count() > 14 { " class=\"wide\"" } else { "" };
        let _ = writeln!(html, "<div{wide}><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
    }
    html.push_str("</dl>\n");
}

pub(crate) fn push_table(html: &mut String, table: &Table) {
    let _ = writeln!(html, "<section class=\"card\"><h2>{}</h2>", escape(&table.title));
    if !table.note.is_empty() {
        let _ = writeln!(html, "<p class=\"note\">{}</p>", escape(&table.note));
    }
    html.push_str("<div class=\"scroll\"><table>\n<thead><tr>");
    for column in &table.columns {
        let _ = write!(html, "<th scope=\"col\">{}</th>", escape(column));
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    for row in &table.rows {
        html.push_str("<tr>");
        for (index, cell) in row.iter().enumerate() {
            let cell = escape(cell);
            let _ = match index {
                0 => write!(html, "<th scope=\"row\">{cell}</th>"),
                _ => write!(html, "<td>{cell}</td>"),
            };
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table></div></section>\n");
}

/// Text inside HTML elements and quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
