//! Fuses trees of pointwise primitives into [`Group`]s, so that intermediate values never go to memory.
//!
//! A primitive joins the group that reads it if that group alone reads it: nothing is computed twice, only the last value
//! of a group leaves it, and no group depends on itself. Broadcasts and constants that a group reads become part of it;
//! copies of them stay where others read them. A reduction over the last axis can be the last of a group, never in the
//! middle. Groups do not cross phases or scopes, which recomputation goes by.
//!
//! Each element goes through the same operations in the same types as before: no bit of a result changes.

use super::{Rewriter, dce};
use crate::error::Result;
use crate::graph::{Def, Graph, InputKind, Node, NodeId, Phase, ValueId};
use crate::group::{Group, reduces_rows};
use crate::op::Op;
use crate::prim::Prim;
use std::collections::HashMap;

/// Primitives of a group: so many need no more than caches hold.
const MOST: usize = 64;

/// The graph with groups.
///
/// # Errors
/// Only if the graph is invalid.
pub fn run(graph: &Graph) -> Result<Graph> {
    let members = find(graph);
    let mut r = Rewriter::new(graph);
    let mut fused = false;
    for id in graph.node_ids() {
        match &members[id.index()] {
            Place::Root(group) => {
                emit(&mut r, graph, group)?;
                fused = true;
            }
            Place::Outside => r.keep(graph.node(id)),
            Place::Inside => {}
        }
    }
    if fused { Ok(dce::run(&r.finish())) } else { Ok(graph.clone()) }
}

/// Where a node is.
enum Place {
    /// In no group.
    Outside,
    /// In a group, not its last.
    Inside,
    /// The last of a group, with all members in order.
    Root(Vec<NodeId>),
}

/// The group of each node, from the last node to the first.
fn find(graph: &Graph) -> Vec<Place> {
    let mut readers: Vec<Vec<NodeId>> = vec![vec![]; graph.value_count()];
    for id in graph.node_ids() {
        graph.node(id).inputs.iter().for_each(|v| readers[v.index()].push(id));
    }
    let mut is_output = vec![false; graph.value_count()];
    graph.outputs().iter().for_each(|o| is_output[o.value.index()] = true);

    let mut root: Vec<Option<NodeId>> = vec![None; graph.nodes().len()];
    let mut members: HashMap<NodeId, Vec<NodeId>> = HashMap::new();
    for id in graph.node_ids().rev() {
        let node = graph.node(id);
        let Op::Prim(prim) = &node.op else { continue };
        let last_only = !node.inputs.is_empty() && reduces_rows(prim, graph.ty(node.inputs[0]));
        if !(prim.is_pointwise() || last_only) {
            continue;
        }
        let result = node.outputs[0];
        let mut reading = readers[result.index()].iter().map(|r| root[r.index()]);
        let only = reading.next().flatten().filter(|g| reading.all(|other| other == Some(*g)));
        let joins = only.filter(|g| {
            !last_only
                && !is_output[result.index()]
                && members[g].len() < MOST
                && alike(graph, node, graph.node(*g))
        });
        let group = joins.unwrap_or(id);
        root[id.index()] = Some(group);
        members.entry(group).or_default().push(id);
    }
    members.values_mut().for_each(|group| group.reverse());
    members.retain(|_, group| {
        let keep = worth(graph, group);
        if !keep {
            group.iter().for_each(|id| root[id.index()] = None);
        }
        keep
    });
    let place = |id: NodeId| match members.remove(&id) {
        Some(group) => Place::Root(group),
        None if root[id.index()].is_some() => Place::Inside,
        None => Place::Outside,
    };
    graph.node_ids().map(place).collect()
}

/// Whether a node may stand in the group of `root`. Where members read it, its shape is the group's; a reduction apart,
/// which only roots can be, so do all roots.
fn alike(graph: &Graph, node: &Node, root: &Node) -> bool {
    let whole = if is_reduction(root) { root.inputs[0] } else { root.outputs[0] };
    node.phase == root.phase
        && node.scope == root.scope
        && graph.ty(node.outputs[0]).dims == graph.ty(whole).dims
}

fn is_reduction(node: &Node) -> bool {
    matches!(node.op, Op::Prim(Prim::ReduceSum { .. } | Prim::ReduceMax { .. }))
}

/// The constant or broadcast that makes a value, which can be a part of each group that reads it.
fn leaf(graph: &Graph, v: ValueId) -> Option<&Node> {
    let Def::Node(id, _) = graph.def(v) else { return None };
    let node = graph.node(id);
    matches!(node.op, Op::Prim(Prim::Const { .. } | Prim::Broadcast { .. })).then_some(node)
}

/// Whether a group saves anything: two primitives, or one that reads a broadcast or a constant; and an operand.
fn worth(graph: &Graph, group: &[NodeId]) -> bool {
    let inputs = || group.iter().flat_map(|&id| &graph.node(id).inputs);
    let leaves = !is_reduction(graph.node(group[0])) && inputs().any(|&v| leaf(graph, v).is_some());
    let made = |v: ValueId| matches!(graph.def(v), Def::Node(id, _) if group.contains(&id));
    let constant = |v: ValueId| leaf(graph, v).is_some_and(|n| n.inputs.is_empty());
    (group.len() > 1 || leaves) && inputs().any(|&v| !made(v) && !constant(v))
}

fn emit(r: &mut Rewriter<'_>, graph: &Graph, members: &[NodeId]) -> Result<()> {
    let root = graph.node(members[members.len() - 1]);
    let operands = operands(graph, members);
    let mut body = Graph::new("group");
    // Where values of the graph are in the body.
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    for (i, &v) in operands.iter().enumerate() {
        map.insert(v, body.add_input(i.to_string(), InputKind::Data, graph.ty(v).clone()));
    }
    let mut append = |node: &Node, map: &mut HashMap<ValueId, ValueId>| {
        let inputs = node.inputs.iter().map(|v| map[v]).collect();
        let types = vec![graph.ty(node.outputs[0]).clone()];
        let made = body.add_node(node.op.clone(), inputs, types, Phase::Forward, 0);
        map.insert(node.outputs[0], made[0]);
    };
    for &id in members {
        let node = graph.node(id);
        for v in &node.inputs {
            if let Some(leaf) = leaf(graph, *v).filter(|_| !map.contains_key(v)) {
                append(leaf, &mut map);
            }
        }
        append(node, &mut map);
    }
    body.add_output("0", map[&root.outputs[0]], None);
    let inputs = r.values(&operands);
    r.keep_as(root, Op::Group(Group::new(body)?), inputs);
    Ok(())
}

/// What members read and neither make nor, as a leaf, take in; first those that the result may be written over.
fn operands(graph: &Graph, members: &[NodeId]) -> Vec<ValueId> {
    let root = graph.node(members[members.len() - 1]);
    let result = graph.ty(root.outputs[0]);
    let mut found: Vec<ValueId> = vec![];
    for &id in members {
        for &v in &graph.node(id).inputs {
            if matches!(graph.def(v), Def::Node(maker, _) if members.binary_search(&maker).is_ok()) {
                continue;
            }
            let read = match leaf(graph, v) {
                Some(leaf) => leaf.inputs.first().copied(),
                None => Some(v),
            };
            found.extend(read.filter(|v| !found.contains(v)));
        }
    }
    let over = |v: &ValueId| {
        let ty = graph.ty(*v);
        ty.dims == result.dims && ty.dtype.size() == result.dtype.size()
    };
    found.sort_by_key(|v| !over(v));
    found
}
