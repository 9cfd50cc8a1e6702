//! As text for a terminal: the tokens, the largest contributions, what moved most, where Fisher is largest.

use super::{Asked, Look, part_name};
use crate::output::table;
use kfc_runtime::inspect::Of;
use kfc_runtime::inspect::Part;

/// Rows of the tables that are cut.
const ROWS: usize = 12;

/// The text, with a line break at its end.
pub(crate) fn text(look: &Look) -> String {
    let mut sections = Vec::new();
    if let Some(asked) = &look.asked {
        sections.push(next_token(asked));
        sections.push(tokens(asked));
        sections.push(contributions(asked));
    }
    if !look.moved.is_empty() {
        sections.push(moved(look));
    }
    if !look.fisher.is_empty() {
        sections.push(fisher(look));
    }
    sections.join("\n")
}

fn section(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let head = head.iter().map(|s| s.to_string()).collect();
    table(&[vec![head], rows].concat())
}

fn next_token(asked: &Asked) -> String {
    let found = &asked.found;
    let mut rows: Vec<Vec<String>> =
        asked.likeliest.iter().take(5).map(|(_, text, p)| vec![format!("{text:?}"), percent(*p)]).collect();
    if found.rank >= rows.len() {
        rows.push(vec![
            format!("{:?} (no. {})", asked.target_text, found.rank + 1),
            percent(found.probability),
        ]);
    }
    let after = format!("after token {}", asked.question.position);
    section(&[&after, "probability"], rows)
}

fn tokens(asked: &Asked) -> String {
    let found = &asked.found;
    let of = match asked.question.of {
        Of::Logit => format!("of the logit of {:?}", asked.target_text),
        Of::Loss => format!("of the loss ({:.4} nats)", found.ce.unwrap_or(f64::NAN)),
    };
    let row = |i: usize| {
        vec![
            format!("{i} {:?}", asked.texts[i]),
            format!("{:+.4}", found.attribution[i]),
            format!("{:.4}", found.sensitivity[i]),
        ]
    };
    let rows = (0..asked.texts.len()).map(row).collect();
    format!("Gradient {of}\n{}", section(&["token", "gradient x input", "‖gradient‖"], rows))
}

fn contributions(asked: &Asked) -> String {
    let parts = &asked.found.parts;
    let mut largest: Vec<&Part> = parts.iter().collect();
    largest.sort_by(|a, b| b.logit.abs().total_cmp(&a.logit.abs()));
    let rows = largest
        .iter()
        .take(ROWS)
        .map(|p| vec![part_name(p), format!("{:+.4}", p.logit), format!("{:.4}", p.norm)])
        .collect();
    let sum: f64 = parts.iter().map(|p| p.logit).sum();
    format!(
        "The logit of {:?} is {:.4}; all parts together {sum:.4}\n{}{}",
        asked.target_text,
        asked.found.logit,
        section(&["part", "adds to the logit", "‖added‖"], rows),
        more(parts.len())
    )
}

fn moved(look: &Look) -> String {
    let mut largest: Vec<_> = look.moved.iter().collect();
    largest.sort_by(|a, b| (b.change / b.weight).total_cmp(&(a.change / a.weight)));
    let rows = largest
        .iter()
        .take(ROWS)
        .map(|m| {
            vec![
                m.module.clone(),
                format!("{:.4}", m.change),
                percent(m.change / m.weight),
                format!("{:.1}", m.effective_rank),
            ]
        })
        .collect();
    let head = ["moved by the adapter", "‖s·B·A‖", "of ‖W‖", "effective rank"];
    section(&head, rows) + &more(look.moved.len())
}

fn fisher(look: &Look) -> String {
    let mut largest: Vec<_> = look.fisher.iter().collect();
    largest.sort_by(|a, b| b.share.total_cmp(&a.share));
    let rows = largest
        .iter()
        .take(ROWS)
        .map(|t| vec![t.name.clone(), percent(t.share), format!("{:.3e}", t.mean), format!("{:.3e}", t.max)])
        .collect();
    section(&["Fisher diagonal", "share", "mean", "largest"], rows) + &more(look.fisher.len())
}

fn more(rows: usize) -> String {
    if rows > ROWS {
        format!("… and {} more; --json and --html have all\n", rows - ROWS)
    } else {
        String::new()
    }
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}
