//! The drawings of the page: tokens by their attribution, attention maps, contributions as bars, weights as a grid.

use super::{Asked, page};
use crate::report::escape;
use crate::report::scale::number;
use std::fmt::Write;

/// The tokens of the text, tinted by gradient × input.
pub(super) fn tokens(asked: &Asked) -> String {
    let found = &asked.found;
    let largest = found.attribution.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let note = format!(
        "Gradient × input of {}: tokens in blue raise it, tokens in red lower it. Hover or focus a token for its number.",
        page::gradient_of(asked)
    );
    let mut html = section("Tokens", &note);
    html.push_str("<p class=\"tokens\">");
    for (i, text) in asked.texts.iter().enumerate() {
        let value = found.attribution[i];
        let strength = if largest > 0.0 { 70.0 * value.abs() / largest } else { 0.0 };
        let colour = if value < 0.0 { "c4" } else { "c0" };
        let _ = write!(
            html,
            "<span tabindex=\"0\" style=\"background:color-mix(in srgb,var(--{colour}) {strength:.0}%,transparent)\" \
             title=\"token {i}: {}\n‖gradient‖ {}\">{}</span>",
            signed(f64::from(value)),
            number(f64::from(found.sensitivity[i])),
            visible(text)
        );
    }
    html.push_str("</p></section>\n");
    html
}

/// Text of a token with its white space to be seen.
fn visible(text: &str) -> String {
    escape(&text.replace('\n', "⏎").replace('\t', "⇥").replace(' ', "·"))
}

/// What each part adds to the logit, as bars.
pub(super) fn contributions(asked: &Asked) -> String {
    const ROW: f64 = 17.0;
    const WIDTH: f64 = 1120.0;
    const LEFT: f64 = 150.0;
    const RIGHT: f64 = 90.0;
    let parts = page::contributions(asked);
    let low = parts.iter().map(|p| p.1).fold(0.0, f64::min);
    let high = parts.iter().map(|p| p.1).fold(0.0, f64::max);
    let span = (high - low).max(f64::MIN_POSITIVE);
    let x = |value: f64| LEFT + 50.0 + (value - low) / span * (WIDTH - LEFT - RIGHT - 50.0);
    let height = ROW * parts.len() as f64 + 8.0;
    let sum: f64 = parts.iter().map(|p| p.1).sum();
    let note = format!(
        "What each part adds to the logit of {:?} ({}), the scale of the last norm held fixed; together {}.",
        asked.target_text,
        number(asked.found.logit),
        number(sum)
    );
    let mut html = format!(
        "<figure class=\"wide\">\n<figcaption><h2>Contributions</h2></figcaption>\n<p class=\"note\">{}</p>\n\
         <svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"Contributions of parts to the logit\">\n",
        escape(&note)
    );
    for (i, (name, value, norm)) in parts.iter().enumerate() {
        let y = 4.0 + ROW * i as f64;
        let (from, to) = (x(value.min(0.0)), x(value.max(0.0)));
        let colour = if *value < 0.0 { "c4" } else { "c0" };
        let (end, anchor) = if *value < 0.0 { (from - 5.0, "end") } else { (to + 5.0, "start") };
        let _ = writeln!(
            html,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><rect class=\"bar\" x=\"{from:.1}\" y=\"{:.1}\" \
             width=\"{:.1}\" height=\"{:.1}\" style=\"fill:var(--{colour})\"><title>{}: {}\n‖added‖ {}</title></rect>\
             <text x=\"{end:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            LEFT - 8.0,
            y + 12.0,
            escape(name),
            y + 2.0,
            (to - from).max(0.8),
            ROW - 4.0,
            escape(name),
            signed(*value),
            number(*norm),
            y + 12.0,
            signed(*value)
        );
    }
    let _ = writeln!(
        html,
        "<line class=\"axis\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"0\" y2=\"{height}\"/>\n</svg>\n</figure>",
        x(0.0)
    );
    html
}

fn signed(value: f64) -> String {
    if value > 0.0 { format!("+{}", number(value)) } else { number(value) }
}

/// A grid of layers and kinds of weights, tinted by `value`, and what stands outside of layers below it. Values of one
/// cell are added.
pub(super) fn heat<'a>(
    title: &str,
    note: &str,
    cells: impl Iterator<Item = ((Option<usize>, &'a str), f64)>,
) -> String {
    let mut columns: Vec<&str> = Vec::new();
    let mut rows: Vec<(Option<usize>, Vec<f64>)> = Vec::new();
    for ((layer, name), value) in cells {
        let column = columns.iter().position(|c| *c == name).unwrap_or(columns.len());
        if column == columns.len() {
            columns.push(name);
        }
        let row = rows.iter().position(|(l, _)| *l == layer).unwrap_or(rows.len());
        if row == rows.len() {
            rows.push((layer, Vec::new()));
        }
        let values = &mut rows[row].1;
        values.resize(values.len().max(column + 1), 0.0);
        values[column] += value;
    }
    rows.sort_by_key(|(layer, _)| layer.unwrap_or(usize::MAX));
    let largest = rows.iter().flat_map(|(_, v)| v).fold(0.0f64, |m, v| m.max(*v));
    let mut html = section(title, note);
    html.push_str("<div class=\"scroll\"><table class=\"heat\"><thead><tr><th scope=\"col\">layer</th>");
    for column in &columns {
        let _ = write!(html, "<th scope=\"col\">{}</th>", escape(column));
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    for (layer, values) in &rows {
        let name = layer.map_or("outside".to_string(), |n| n.to_string());
        let _ = write!(html, "<tr><th scope=\"row\">{name}</th>");
        for column in 0..columns.len() {
            let value = values.get(column).copied().unwrap_or(0.0);
            let strength = if largest > 0.0 { 60.0 * value / largest } else { 0.0 };
            let text = if value == 0.0 { String::new() } else { super::text::percent(value) };
            let _ = write!(
                html,
                "<td style=\"background:color-mix(in srgb,var(--c0) {strength:.0}%,transparent)\">{text}</td>"
            );
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table></div></section>\n");
    html
}

/// The attention maps: numbers in the page, shown by a script.
pub(super) fn attention(asked: &Asked) -> String {
    let found = &asked.found;
    let seq = asked.texts.len();
    let note = "Row: the token that looks; column: the token that it looks at. Choose a layer and a head; point at the map, or \
                go along the tokens with Tab, to see where one looks.";
    let mut html = section("Attention", note);
    html.push_str("<div class=\"attention\" id=\"attention\"><p class=\"controls\">");
    let _ = write!(
        html,
        "<label>Layer <select id=\"layer\">{}</select></label>",
        options(found.attention.len(), 1)
    );
    let _ = write!(
        html,
        "<label>Head <select id=\"head\"><option value=\"-1\">mean of all</option>{}</select></label>\
         <output id=\"reading\" aria-live=\"polite\"></output></p>\n\
         <div class=\"map\"><canvas id=\"map\" role=\"img\" aria-label=\"Attention map\"></canvas></div>\n<p class=\"tokens\" id=\"words\">",
        options(found.heads, 1)
    );
    for text in &asked.texts {
        let _ = write!(html, "<button type=\"button\">{}</button>", visible(text));
    }
    html.push_str("</p></div>\n<noscript>Attention maps need scripts; `kfc inspect --json` has the numbers.</noscript>\n");
    // Weights up to each query in steps of 1/255, two hexadecimal digits each.
    let _ = write!(html, "<script>\nconst SEQ = {seq}, HEADS = {}, MAPS = [\n", found.heads);
    for layer in &found.attention {
        html.push('"');
        for head in layer.chunks(seq * seq) {
            for (query, row) in head.chunks(seq).enumerate() {
                row[..=query].iter().for_each(|w| {
                    let _ = write!(html, "{:02x}", (w * 255.0).round().clamp(0.0, 255.0) as u8);
                });
            }
        }
        html.push_str("\",\n");
    }
    html.push_str("];\n");
    html.push_str(include_str!("attention.js"));
    html.push_str("</script></section>\n");
    html
}

/// Options `first`, `first + 1`, … with values from 0.
fn options(count: usize, first: usize) -> String {
    (0..count).map(|i| format!("<option value=\"{i}\">{}</option>", i + first)).collect()
}

fn section(title: &str, note: &str) -> String {
    format!("<section class=\"card\"><h2>{}</h2>\n<p class=\"note\">{}</p>\n", escape(title), escape(note))
}
