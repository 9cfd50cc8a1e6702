//! Recompute: forward values that the backward pass reads are made again right before it reads them, so that they need
//! not live in between.
//!
//! Forward ends at the *turn*: the first backward node that reads what a forward node made (the fused head). A node after
//! it that is not forward is *late*; what forward nodes make and late nodes read is *saved*. The pass takes a set of saved
//! values to drop. Each is replaced, for late readers, by a copy of its node in [`Phase::Recompute`], placed before its
//! first late reader. A copy reads graph inputs, saved values that are not dropped, and copies of whatever else the
//! forward pass made.
//!
//! Invariants: a node is copied at most once, with all its results, and late nodes behind the copy read it rather than
//! the original; copies apply the same operation to the same values (random numbers come from a counter and an operand), so
//! every result of the graph stays the same bit for bit.

mod policy;

pub use policy::{Policy, dropped, layer_of};

use super::{Rewriter, dce};
use crate::graph::{Def, Graph, Node, NodeId, Phase, ValueId};
use std::collections::BTreeSet;

/// Constants of at most this many elements are kept: they cost less than a kernel call.
const SMALL: usize = 1024;

/// Forward and late nodes of a graph, and what the late ones read of the forward ones.
#[derive(Clone, Debug)]
pub struct Cut {
    late: Vec<bool>,
    saved: Vec<ValueId>,
    is_saved: Vec<bool>,
}

impl Cut {
    /// Finds the turn of `graph`.
    pub fn new(graph: &Graph) -> Cut {
        let turn = graph.nodes().iter().position(|n| {
            n.phase == Phase::Backward
                && n.inputs.iter().any(|&v| maker(graph, v).is_some() && graph.ty(v).elements() > 1)
        });
        let turn = turn.unwrap_or(graph.nodes().len());
        let is_late = |(i, n): (usize, &Node)| i > turn && matches!(n.phase, Phase::Backward | Phase::Update);
        let late: Vec<bool> = graph.nodes().iter().enumerate().map(is_late).collect();
        let mut is_saved = vec![false; graph.value_count()];
        for (node, _) in graph.nodes().iter().zip(&late).filter(|(_, late)| **late) {
            let made = node.inputs.iter().filter(|&&v| maker(graph, v).is_some());
            made.for_each(|v| is_saved[v.index()] = true);
        }
        let saved = (0..graph.value_count() as u32).map(ValueId).filter(|v| is_saved[v.index()]).collect();
        Cut { late, saved, is_saved }
    }

    /// Values that live until the backward pass unless they are dropped, in order of definition.
    pub fn saved(&self) -> &[ValueId] {
        &self.saved
    }

    /// Whether a node runs behind the turn.
    pub fn is_late(&self, id: NodeId) -> bool {
        self.late[id.index()]
    }

    /// Whether a value is saved.
    pub fn is_saved(&self, v: ValueId) -> bool {
        self.is_saved[v.index()]
    }
}

/// The forward node with operands that makes a value, if one does.
fn maker(graph: &Graph, v: ValueId) -> Option<NodeId> {
    match graph.def(v) {
        Def::Node(id, _) => {
            let node = graph.node(id);
            (node.phase == Phase::Forward && !node.inputs.is_empty()).then_some(id)
        }
        Def::Input(_) => None,
    }
}

/// The node that must be copied for a copy or a late node to read `v`; `None` if `v` itself can be read.
fn to_copy(
    graph: &Graph,
    cut: &Cut,
    dropped: &BTreeSet<ValueId>,
    is_output: &[bool],
    v: ValueId,
) -> Option<NodeId> {
    let id = maker(graph, v)?;
    let gone = dropped.contains(&v) || !(cut.is_saved(v) || is_output[v.index()]);
    gone.then_some(id)
}

/// The nodes that are copied to make one value again when `dropped` is dropped, operands first.
pub fn chain(graph: &Graph, cut: &Cut, dropped: &BTreeSet<ValueId>, v: ValueId) -> BTreeSet<NodeId> {
    let is_output = outputs(graph);
    let mut found = BTreeSet::new();
    let mut todo: Vec<NodeId> = maker(graph, v).into_iter().collect();
    while let Some(id) = todo.pop() {
        if found.insert(id) {
            let inputs = graph.node(id).inputs.iter();
            todo.extend(inputs.filter_map(|&u| to_copy(graph, cut, dropped, &is_output, u)));
        }
    }
    found
}

fn outputs(graph: &Graph) -> Vec<bool> {
    let mut is_output = vec![false; graph.value_count()];
    graph.outputs().iter().for_each(|o| is_output[o.value.index()] = true);
    is_output
}

/// The graph in which late nodes read copies of the values in `dropped`. Values that are not saved are ignored.
pub fn run(graph: &Graph, cut: &Cut, dropped: &BTreeSet<ValueId>) -> Graph {
    if dropped.is_empty() {
        return graph.clone();
    }
    let mut c = Copier {
        graph,
        cut,
        dropped,
        is_output: outputs(graph),
        r: Rewriter::new(graph),
        copies: vec![None; graph.value_count()],
    };
    for id in graph.node_ids() {
        let node = graph.node(id);
        if cut.is_late(id) {
            let inputs: Vec<ValueId> = node.inputs.iter().map(|&v| c.late_operand(v)).collect();
            c.r.keep_as(node, node.op.clone(), inputs);
        } else {
            c.r.keep(node);
        }
    }
    dce::run(&c.r.finish())
}

struct Copier<'a> {
    graph: &'a Graph,
    cut: &'a Cut,
    dropped: &'a BTreeSet<ValueId>,
    is_output: Vec<bool>,
    r: Rewriter<'a>,
    /// The copy of each value, in the new graph.
    copies: Vec<Option<ValueId>>,
}

impl Copier<'_> {
    fn needed(&self, v: ValueId) -> Option<NodeId> {
        to_copy(self.graph, self.cut, self.dropped, &self.is_output, v)
            .filter(|_| self.copies[v.index()].is_none())
    }

    /// What a late node reads for `v`.
    fn late_operand(&mut self, v: ValueId) -> ValueId {
        // Copies are made operands first, with a stack of their own: chains can be long.
        let mut stack: Vec<NodeId> = self.needed(v).into_iter().collect();
        while let Some(&id) = stack.last() {
            if self.copies[self.graph.node(id).outputs[0].index()].is_some() {
                stack.pop();
                continue;
            }
            let before = stack.len();
            let operands = self.graph.node(id).inputs.iter().rev();
            stack.extend(operands.filter_map(|&u| self.needed(u)));
            if stack.len() == before {
                stack.pop();
                self.copy(id);
            }
        }
        self.copies[v.index()].unwrap_or_else(|| self.r.value(v))
    }

    fn copy(&mut self, id: NodeId) {
        let graph = self.graph;
        let node = graph.node(id);
        let inputs: Vec<ValueId> = node.inputs.iter().map(|&v| self.copy_operand(v)).collect();
        let types = node.outputs.iter().map(|&v| graph.ty(v).clone()).collect();
        let made = self.r.to.add_node(node.op.clone(), inputs, types, Phase::Recompute, node.scope);
        node.outputs.iter().zip(made).for_each(|(v, new)| self.copies[v.index()] = Some(new));
    }

    /// What a copy reads for `v`. A large constant is made again for each reader, so that none lives between them.
    fn copy_operand(&mut self, v: ValueId) -> ValueId {
        if let Some(copy) = self.copies[v.index()] {
            return copy;
        }
        if let Def::Node(id, _) = self.graph.def(v) {
            let node = self.graph.node(id);
            if node.inputs.is_empty() && self.graph.ty(v).elements() > SMALL {
                let types = vec![self.graph.ty(v).clone()];
                return self.r.to.add_node(node.op.clone(), vec![], types, Phase::Recompute, node.scope)[0];
            }
        }
        self.r.value(v)
    }
}
