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
    /// Name in reports.
    pub fn name(&self) -> String {
        match self {
            Policy::None => "none".into(),
            Policy::EveryLayer => "every layer".into(),
            Policy::EveryK(k) => format!("every {k} layers"),
            Policy::AttentionOnly => "attention only".into(),
            Policy::FirstLayers(n) => format!("first {n} layers"),
            Policy::Selected(values) => format!("{} selected values", values.len()),
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
    fn layers_are_found_in_scopes() {
        assert_eq!(layer_of("student.layers.3.mlp"), Some(("student.", 3, "mlp")));
        assert_eq!(layer_of("layers.12"), Some(("", 12, "")));
        assert_eq!(layer_of("student.norm"), None);
        assert_eq!(layer_of("layers.x.mlp"), None);
    }
}
