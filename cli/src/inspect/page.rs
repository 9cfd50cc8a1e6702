//! The findings as one self-contained page. Its only script shows attention maps, whose layer and head one chooses; all
//! else is there without it.

use super::text::percent;
use super::{Asked, Look, draw, part_name, place};
use crate::report::{self, Table};
use kfc_runtime::inspect::Of;
use kfc_runtime::inspect::{FisherTensor, Moved};

/// The page.
pub(crate) fn page(look: &Look) -> String {
    let title = match &look.adapter {
        Some(adapter) => format!("Inside {} with {adapter}", look.model),
        None => format!("Inside {}", look.model),
    };
    let mut html = report::head(&title);
    report::push_summary(&mut html, &cards(look));
    if let Some(asked) = &look.asked {
        html.push_str(&draw::tokens(asked));
        html.push_str(&draw::attention(asked));
        html.push_str(&draw::contributions(asked));
        report::push_table(&mut html, &likeliest(asked));
    }
    if !look.moved.is_empty() {
        let cells = look.moved.iter().map(|m| (place(&m.module), m.change / m.weight));
        let note = "‖s·B·A‖ as a share of ‖W‖, both Frobenius norms: how far the adapter moves each weight.";
        html.push_str(&draw::heat("What the adapter moves", note, cells));
        report::push_table(&mut html, &moved(&look.moved));
    }
    if !look.fisher.is_empty() {
        let cells = look.fisher.iter().map(|t| (place(&t.module), t.share));
        let note = "Each weight's part of the sum of the Fisher diagonal: where a change costs what was known before.";
        html.push_str(&draw::heat("Where Fisher is large", note, cells));
        report::push_table(&mut html, &fisher(&look.fisher));
    }
    html.push_str(report::TAIL);
    html
}

fn cards(look: &Look) -> Vec<(String, String)> {
    let mut cards = Vec::new();
    let mut card = |name: &str, value: String| cards.push((name.to_string(), value));
    if let Some(asked) = &look.asked {
        card("tokens", asked.texts.len().to_string());
        card("explained", format!("{:?}", asked.target_text));
        card("its probability", percent(asked.found.probability));
        card("its rank", (asked.found.rank + 1).to_string());
        if let Some(ce) = asked.found.ce {
            card("cross-entropy", format!("{ce:.3} nats"));
        }
    }
    if !look.moved.is_empty() {
        card("weights moved", look.moved.iter().filter(|m| m.change > 0.0).count().to_string());
    }
    card("computed in", look.dtype.name().to_string());
    cards
}

fn table(title: &str, note: &str, columns: &[&str], rows: Vec<Vec<String>>) -> Table {
    let columns = columns.iter().map(|c| c.to_string()).collect();
    Table { title: title.into(), note: note.into(), columns, rows }
}

fn likeliest(asked: &Asked) -> Table {
    let row = |(id, text, p): &(i32, String, f64)| vec![format!("{text:?}"), id.to_string(), percent(*p)];
    let note = format!("What the model expects after token {}.", asked.question.position);
    table("Next token", &note, &["token", "id", "probability"], asked.likeliest.iter().map(row).collect())
}

fn moved(moved: &[Moved]) -> Table {
    let mut sorted: Vec<&Moved> = moved.iter().collect();
    sorted.sort_by(|a, b| (b.change / b.weight).total_cmp(&(a.change / a.weight)));
    let row = |m: &&Moved| {
        vec![
            m.module.clone(),
            format!("{:.4}", m.change),
            format!("{:.4}", m.weight),
            percent(m.change / m.weight),
            format!("{:.2}", m.effective_rank),
        ]
    };
    table(
        "Moved weights",
        "Effective rank: how many directions carry the change, from its singular values.",
        &["weight", "‖s·B·A‖", "‖W‖", "moved by", "effective rank"],
        sorted.iter().map(row).collect(),
    )
}

fn fisher(tensors: &[FisherTensor]) -> Table {
    let mut sorted: Vec<&FisherTensor> = tensors.iter().collect();
    sorted.sort_by(|a, b| b.share.total_cmp(&a.share));
    let row = |t: &&FisherTensor| {
        vec![
            t.name.clone(),
            percent(t.share),
            format!("{:.3e}", t.mean),
            format!("{:.3e}", t.max),
            format!("{:?}", t.max_at),
        ]
    };
    let columns = ["tensor", "share of the sum", "mean", "largest", "at"];
    table("Fisher by tensor", "", &columns, sorted.iter().map(row).collect())
}

/// What the gradient is of, for a note.
pub(super) fn gradient_of(asked: &Asked) -> String {
    match asked.question.of {
        Of::Logit => {
            format!("the logit of {:?} after token {}", asked.target_text, asked.question.position)
        }
        Of::Loss => "the mean cross-entropy of the text".into(),
    }
}

/// Names of parts with what they add to the logit.
pub(super) fn contributions(asked: &Asked) -> Vec<(String, f64, f64)> {
    asked.found.parts.iter().map(|p| (part_name(p), p.logit, p.norm)).collect()
}
