//! Fuses the head's forward and backward: a `linear_cross_entropy_kd` and the `linear_cross_entropy_kd_bwd` over the same
//! operands become one `linear_cross_entropy_kd_fused`, which makes the logits of a tile once for both.
//!
//! The fused node stands where the forward one stood, in the phase of the backward one. The incoming gradients of the
//! losses (constants, as a rule) move before it; a pair whose gradients depend on its own losses stays as it is.

use super::Rewriter;
use crate::attrs::Attrs;
use crate::error::Result;
use crate::graph::{Def, Graph, Node, NodeId, ValueId};
use crate::op::{Composite, Op, OpDef, Registry};
use std::collections::{BTreeSet, HashMap, HashSet};

const FORWARD: &str = "linear_cross_entropy_kd";
const BACKWARD: &str = "linear_cross_entropy_kd_bwd";
const FUSED: &str = "linear_cross_entropy_kd_fused";

/// A forward node, its backward node, and the nodes that must move before the forward one.
struct Pair {
    forward: NodeId,
    backward: NodeId,
    moved: BTreeSet<NodeId>,
}

/// The graph with fused heads; unchanged if the registry has no fused head.
///
/// # Errors
/// If the fused definition does not fit the operands of its two halves.
pub fn run(graph: &Graph, registry: &Registry) -> Result<Graph> {
    let Some(fused) = registry.get(FUSED) else { return Ok(graph.clone()) };
    let pairs = find_pairs(graph);
    let at: HashMap<NodeId, &Pair> = pairs.iter().map(|p| (p.forward, p)).collect();

    let mut r = Rewriter::new(graph);
    let mut done: HashSet<NodeId> = pairs.iter().map(|p| p.backward).collect();
    for id in graph.node_ids() {
        if let Some(pair) = at.get(&id) {
            for &m in &pair.moved {
                if done.insert(m) {
                    r.keep(graph.node(m));
                }
            }
            emit(&mut r, graph, pair, fused)?;
        } else if done.insert(id) {
            r.keep(graph.node(id));
        }
    }
    Ok(r.finish())
}

fn emit(r: &mut Rewriter<'_>, graph: &Graph, pair: &Pair, fused: &'static dyn OpDef) -> Result<()> {
    let (forward, backward) = (graph.node(pair.forward), graph.node(pair.backward));
    let Op::Composite(c) = &backward.op else { return Ok(()) };
    let operands = r.values(&backward.inputs);
    let results = r.at(backward).composite(fused, c.attrs.clone(), &operands)?;
    let old = forward.outputs.iter().chain(&backward.outputs);
    old.zip(results).for_each(|(&old, new)| r.replace(old, new));
    Ok(())
}

fn find_pairs(graph: &Graph) -> Vec<Pair> {
    let mut forwards: HashMap<&[ValueId], Vec<NodeId>> = HashMap::new();
    let mut pairs: Vec<Pair> = vec![];
    for id in graph.node_ids() {
        let node = graph.node(id);
        if composite(node, FORWARD).is_some() {
            forwards.entry(&node.inputs).or_default().push(id);
        } else if let Some(c) = composite(node, BACKWARD) {
            let extra = if c.attrs.str("kd").is_ok_and(|kd| kd != "none") { 2 } else { 1 };
            let Some((grads, operands)) = node.inputs.split_at_checked(extra) else { continue };
            let Some(candidates) = forwards.get_mut(operands) else { continue };
            let same = |f: &NodeId| {
                composite(graph.node(*f), FORWARD).is_some_and(|f| same_but_need_dw(&f.attrs, &c.attrs))
            };
            let Some(i) = candidates.iter().position(same) else { continue };
            if let Some(moved) = ancestors_after(graph, grads, candidates[i]) {
                pairs.push(Pair { forward: candidates.remove(i), backward: id, moved });
            }
        }
    }
    pairs
}

fn composite<'a>(node: &'a Node, name: &str) -> Option<&'a Composite> {
    match &node.op {
        Op::Composite(c) if c.def.name() == name => Some(c),
        _ => None,
    }
}

fn same_but_need_dw(forward: &Attrs, backward: &Attrs) -> bool {
    forward.iter().all(|(name, value)| backward.get(name) == Some(value))
        && backward.iter().all(|(name, _)| name == "need_dw" || forward.get(name).is_some())
}

/// The nodes at or after `first` that `values` depend on; `None` if a head is among them.
fn ancestors_after(graph: &Graph, values: &[ValueId], first: NodeId) -> Option<BTreeSet<NodeId>> {
    let mut found = BTreeSet::new();
    let mut todo = values.to_vec();
    while let Some(v) = todo.pop() {
        let Def::Node(id, _) = graph.def(v) else { continue };
        if id < first || found.contains(&id) {
            continue;
        }
        let node = graph.node(id);
        if composite(node, FORWARD).is_some() || composite(node, BACKWARD).is_some() {
            return None;
        }
        found.insert(id);
        todo.extend(&node.inputs);
    }
    Some(found)
}
