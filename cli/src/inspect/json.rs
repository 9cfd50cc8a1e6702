//! As one JSON object; `docs/inspect.md` lists its keys.

use super::{Asked, Look, place};
use kfc_runtime::inspect::Of;
use kfc_runtime::inspect::{FisherTensor, Moved, Part, PartKind};
use serde_json::{Value, json};

/// The object. Parts that were not asked for are absent.
pub(crate) fn json(look: &Look) -> Value {
    let mut object = json!({ "model": look.model, "adapter": look.adapter, "dtype": look.dtype.name() });
    let mut put = |key: &str, value: Value| object[key] = value;
    if let Some(asked) = &look.asked {
        put("tokens", tokens(asked));
        put("position", json!(asked.question.position));
        put("gradient_of", json!(if asked.question.of == Of::Loss { "loss" } else { "logit" }));
        put("target", target(asked));
        let likeliest =
            |(id, text, p): &(i32, String, f64)| json!({"id": id, "text": text, "probability": p});
        put("likeliest", asked.likeliest.iter().map(likeliest).collect());
        put("cross_entropy", json!(asked.found.ce));
        put("contributions", asked.found.parts.iter().map(part).collect());
        put("attention", attention(asked));
    }
    if !look.moved.is_empty() {
        put("moved", look.moved.iter().map(moved).collect());
    }
    if !look.fisher.is_empty() {
        put("fisher", look.fisher.iter().map(fisher).collect());
    }
    object
}

fn tokens(asked: &Asked) -> Value {
    let found = &asked.found;
    let token = |i: usize| {
        json!({
            "id": asked.question.tokens[i],
            "text": asked.texts[i],
            "attribution": found.attribution[i],
            "sensitivity": found.sensitivity[i],
        })
    };
    (0..asked.texts.len()).map(token).collect()
}

fn target(asked: &Asked) -> Value {
    let found = &asked.found;
    json!({
        "id": found.target,
        "text": asked.target_text,
        "logit": found.logit,
        "probability": found.probability,
        "rank": found.rank + 1,
    })
}

fn part(part: &Part) -> Value {
    let (kind, layer) = match part.kind {
        PartKind::Embedding => ("embedding", None),
        PartKind::Attention(layer) => ("attention", Some(layer + 1)),
        PartKind::Mlp(layer) => ("mlp", Some(layer + 1)),
    };
    json!({ "part": kind, "layer": layer, "norm": part.norm, "logit": part.logit })
}

/// `[layer][head][query][key]`, keys up to the query.
fn attention(asked: &Asked) -> Value {
    let seq = asked.texts.len();
    let row = |weights: &[f32], query: usize| -> Value {
        weights[query * seq..][..=query].iter().copied().collect()
    };
    let head = |weights: &[f32]| -> Value { (0..seq).map(|query| row(weights, query)).collect() };
    let layer = |weights: &Vec<f32>| -> Value { weights.chunks(seq * seq).map(head).collect() };
    asked.found.attention.iter().map(layer).collect()
}

fn moved(m: &Moved) -> Value {
    json!({
        "module": m.module,
        "layer": place(&m.module).0,
        "change": m.change,
        "weight": m.weight,
        "relative": m.change / m.weight,
        "effective_rank": m.effective_rank,
    })
}

fn fisher(t: &FisherTensor) -> Value {
    json!({
        "name": t.name,
        "module": t.module,
        "layer": place(&t.module).0,
        "elements": t.elements,
        "mean": t.mean,
        "max": t.max,
        "max_at": t.max_at,
        "share": t.share,
    })
}
