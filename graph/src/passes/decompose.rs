//! Replaces the composites that no backend claims by their decompositions, down to primitives and claimed composites.
//! What comes out keeps the phase and the scope of the composite. Fused nodes are taken apart first:
//! they are made for a backend behind this pass ([`super::fuse_products`]).

use super::{Claims, Rewriter};
use crate::error::{GraphError, Result};
use crate::graph::{Graph, Node, ValueId};
use crate::op::{Composite, Op, decomposition};
use crate::types::TensorType;

/// Decompositions may contain composites; a chain longer than this is taken for an endless one.
const MAX_DEPTH: usize = 32;

/// The graph with only claimed composites.
///
/// # Errors
/// If a decomposition fails, contradicts its definition or does not end.
pub fn run(graph: &Graph, claims: &Claims<'_>) -> Result<Graph> {
    let apart = apart(graph)?;
    let graph = apart.as_ref().unwrap_or(graph);
    let mut r = Rewriter::new(graph);
    for node in graph.nodes() {
        match &node.op {
            Op::Composite(c) if !claimed(graph, node, c, claims) => {
                let operands = r.values(&node.inputs);
                let results = inline(&mut r.to, c, &operands, node, claims, 0)?;
                node.outputs.iter().zip(results).for_each(|(&old, new)| r.replace(old, new));
            }
            _ => r.keep(node),
        }
    }
    Ok(r.finish())
}

/// The graph without fused nodes, if it has any.
fn apart(graph: &Graph) -> Result<Option<Graph>> {
    if !graph.nodes().iter().any(|n| matches!(n.op, Op::Fused(_))) {
        return Ok(None);
    }
    let mut r = Rewriter::new(graph);
    for node in graph.nodes() {
        match &node.op {
            Op::Fused(f) => {
                let operands = r.values(&node.inputs);
                let results = f.inline(&mut r.at(node), &operands)?;
                node.outputs.iter().zip(results).for_each(|(&old, new)| r.replace(old, new));
            }
            _ => r.keep(node),
        }
    }
    Ok(Some(r.finish()))
}

fn claimed(graph: &Graph, node: &Node, c: &Composite, claims: &Claims<'_>) -> bool {
    claims(c, &types(graph, &node.inputs))
}

fn types(graph: &Graph, values: &[ValueId]) -> Vec<TensorType> {
    values.iter().map(|&v| graph.ty(v).clone()).collect()
}

/// Appends the decomposition of `c` to `to`; `place` gives phase and scope.
fn inline(
    to: &mut Graph,
    c: &Composite,
    operands: &[ValueId],
    place: &Node,
    claims: &Claims<'_>,
    depth: usize,
) -> Result<Vec<ValueId>> {
    if depth == MAX_DEPTH {
        return Err(GraphError::ty(c.def.name(), "the decomposition does not end"));
    }
    let body = decomposition(c, &types(to, operands))?;
    let mut map = vec![ValueId(u32::MAX); body.value_count()];
    body.inputs().iter().zip(operands).for_each(|(input, &v)| map[input.value.index()] = v);
    for node in body.nodes() {
        let inputs: Vec<ValueId> = node.inputs.iter().map(|v| map[v.index()]).collect();
        let results = match &node.op {
            Op::Composite(c) if !claimed(&body, node, c, claims) => {
                inline(to, c, &inputs, place, claims, depth + 1)?
            }
            op => to.add_node(op.clone(), inputs, types(&body, &node.outputs), place.phase, place.scope),
        };
        node.outputs.iter().zip(results).for_each(|(old, new)| map[old.index()] = new);
    }
    Ok(body.outputs().iter().map(|o| map[o.value.index()]).collect())
}
