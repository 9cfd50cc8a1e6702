//! Which values to drop, by name: whole blocks of the model keep only what leaves them.

use super::{Cut, outputs};
use crate::graph::{Def, Graph, ValueId};
use std::collections::BTreeSet;

/// What is made again in the backward pass. Layers are found by scopes such as `student.layers.3.mlp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Nothing.
    None,
    /// Everything inside a layer; the inputs of layers are kept.
    EveryLayer,
    /// Everything inside groups of this many layers; the inputs of groups are kept.
    EveryK(usize),
    /// Everything inside attention blocks (scopes `layers.N.attn`); what they add to the residual stream is kept.
    AttentionOnly,
    /// Everything inside the first layers, so many of them.
    FirstLayers(usize),
    /// These values.
    Selected(BTreeSet<ValueId>),
}

impl Policy {
    /// Forms that [`Policy::from_name`] reads, for messages.
    pub const NAMES: &str = "none, attention-only, every-layer, every-K-layers, first-N-layers";

    /// Name in configurations and reports.
    pub fn name(&self) -> String {
        match self {
            Policy::None => "none".into(),
            Policy::EveryLayer => "every-layer".into(),
            Policy::EveryK(k) => format!("every-{k}-layers"),
            Policy::AttentionOnly => "attention-only".into(),
            Policy::FirstLayers(n) => format!("first-{n}-layers"),
            Policy::Selected(values) => format!("{} selected values", values.len()),
        }
    }

    /// The policy of this name, if it is one of [`Policy::NAMES`]. A selection has no name to read.
    pub fn from_name(name: &str) -> Option<Policy> {
        let number = |prefix: &str| -> Option<usize> {
            name.strip_prefix(prefix)?.strip_suffix("-layers")?.parse().ok().filter(|&n| n > 0)
        };
        match name {
            "none" => Some(Policy::None),
            "every-layer" => Some(Policy::EveryLayer),
            "attention-only" => Some(Policy::AttentionOnly),
            _ => number("every-").map(Policy::EveryK).or(number("first-").map(Policy::FirstLayers)),
        }
    }
}

/// The layer that a scope belongs to: what stands before it, its number, what stands behind it
/// (`student.layers.3.mlp`: `student.`, 3, `mlp`).
pub fn layer_of(scope: &str) -> Option<(&str, usize, &str)> {
    const WORD: &str = "layers.";
    let at = scope.find(WORD)?;
    let (number, rest) = {
        let tail = &scope[at + WORD.len()..];
        tail.split_once('.').unwrap_or((tail, ""))
    };
    Some((&scope[..at], number.parse().ok()?, rest))
}

/// The saved values that a policy drops.
pub fn dropped(graph: &Graph, cut: &Cut, policy: &Policy) -> BTreeSet<ValueId> {
    let block = |scope: &str| {
        let (model, layer, part) = layer_of(scope)?;
        let number = match policy {
            Policy::EveryLayer => layer,
            Policy::EveryK(k) => layer / (*k).max(1),
            Policy::AttentionOnly if part == "attn" => layer,
            Policy::FirstLayers(n) if layer < *n => layer,
            _ => return None,
        };
        Some((model.to_string(), number))
    };
    if let Policy::Selected(values) = policy {
        return values.iter().copied().filter(|&v| cut.is_saved(v)).collect();
    }
    let of_scope: Vec<Option<(String, usize)>> = graph.scopes.iter().map(|s| block(s)).collect();
    let leaves = leaving(graph, cut, &of_scope);
    let inside = |v: ValueId| match graph.def(v) {
        Def::Node(id, _) => of_scope[graph.node(id).scope as usize].is_some(),
        Def::Input(_) => false,
    };
    cut.saved().iter().copied().filter(|&v| inside(v) && !leaves[v.index()]).collect()
}

/// For each value, whether the forward pass reads it outside the block that makes it, or the graph gives it.
fn leaving(graph: &Graph, cut: &Cut, of_scope: &[Option<(String, usize)>]) -> Vec<bool> {
    let mut leaves = outputs(graph);
    for id in graph.node_ids().filter(|&id| !cut.is_late(id)) {
        let reader = graph.node(id);
        for v in &reader.inputs {
            if let Def::Node(from, _) = graph.def(*v)
                && of_scope[graph.node(from).scope as usize] != of_scope[reader.scope as usize]
            {
                leaves[v.index()] = true;
            }
        }
    }
    leaves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        let all = [
            Policy::None,
            Policy::EveryLayer,
            Policy::EveryK(3),
            Policy::AttentionOnly,
            Policy::FirstLayers(7),
        ];
        for policy in all {
            assert_eq!(Policy::from_name(&policy.name()), Some(policy));
        }
        for wrong in ["", "every-0-layers", "every-x-layers", "first--layers", "all", "every-2-layers "] {
            assert_eq!(Policy::from_name(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn layers_are_found_in_scopes() {
        assert_eq!(layer_of("student.layers.3.mlp"), Some(("student.", 3, "mlp")));
        assert_eq!(layer_of("layers.12"), Some(("", 12, "")));
        assert_eq!(layer_of("student.norm"), None);
        assert_eq!(layer_of("layers.x.mlp"), None);
    }
}
