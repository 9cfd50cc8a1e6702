//! Merges nodes that apply the same operation to the same operands; the first one stays.
//!
//! Two exceptions keep memory plans short. A [`Phase::Recompute`] node exists so that a forward value need not live
//! until the backward pass: it merges only with its kind. A large constant is made again in each phase for the same reason.

use super::Rewriter;
use crate::graph::{Graph, Node, Phase, ValueId};
use std::collections::HashMap;

/// Constants of more elements than this do not outlive their phase.
const LARGE: usize = 1024;

/// The graph without common subexpressions.
pub fn run(graph: &Graph) -> Graph {
    let mut r = Rewriter::new(graph);
    // The map is only looked up, never iterated.
    let mut seen: HashMap<Key, &Node> = HashMap::new();
    for node in graph.nodes() {
        let key = key(graph, node, r.values(&node.inputs));
        match seen.get(&key) {
            Some(first) => {
                for (&old, &same) in node.outputs.iter().zip(&first.outputs) {
                    let new = r.value(same);
                    r.replace(old, new);
                }
            }
            None => {
                r.keep(node);
                seen.insert(key, node);
            }
        }
    }
    r.finish()
}

/// Operation with its parameters (their debug text tells `-0.0` from `0.0`), operands, and what must not mix.
type Key = (String, Vec<ValueId>, Option<Phase>);

fn key(graph: &Graph, node: &Node, inputs: Vec<ValueId>) -> Key {
    let large_leaf = inputs.is_empty() && node.outputs.iter().any(|&v| graph.ty(v).elements() > LARGE);
    let apart = node.phase == Phase::Recompute || large_leaf;
    (format!("{:?}", node.op), inputs, apart.then_some(node.phase))
}
