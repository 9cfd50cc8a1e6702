//! Building a new graph from an old one.

use crate::builder::Builder;
use crate::graph::{Graph, Node, ValueId};
use crate::op::Op;

/// A new graph in the making, and where each value of the old one went.
pub struct Rewriter<'g> {
    from: &'g Graph,
    /// The new graph so far.
    pub to: Graph,
    map: Vec<ValueId>,
}

/// A value that no graph has: the verifier rejects a graph in which it is left.
const NOWHERE: ValueId = ValueId(u32::MAX);

impl<'g> Rewriter<'g> {
    /// Starts with the name, the scopes and the inputs of `from`.
    pub fn new(from: &'g Graph) -> Self {
        let mut to = Graph::new(from.name.clone());
        to.scopes.clone_from(&from.scopes);
        let mut map = vec![NOWHERE; from.value_count()];
        for input in from.inputs() {
            map[input.value.index()] =
                to.add_input(input.name.clone(), input.kind, from.ty(input.value).clone());
        }
        Rewriter { from, to, map }
    }

    /// Where an old value went.
    pub fn value(&self, old: ValueId) -> ValueId {
        self.map[old.index()]
    }

    /// Where old values went.
    pub fn values(&self, old: &[ValueId]) -> Vec<ValueId> {
        old.iter().map(|&v| self.value(v)).collect()
    }

    /// From now on `new` stands for `old`.
    pub fn replace(&mut self, old: ValueId, new: ValueId) {
        self.map[old.index()] = new;
    }

    /// Copies a node.
    pub fn keep(&mut self, node: &Node) {
        let inputs = self.values(&node.inputs);
        self.keep_as(node, node.op.clone(), inputs);
    }

    /// Copies a node with another operation of the same result types over new operands.
    pub fn keep_as(&mut self, node: &Node, op: Op, inputs: Vec<ValueId>) {
        let types = node.outputs.iter().map(|&v| self.from.ty(v).clone()).collect();
        let results = self.to.add_node(op, inputs, types, node.phase, node.scope);
        node.outputs.iter().zip(results).for_each(|(&old, new)| self.replace(old, new));
    }

    /// A builder at the end of the new graph that adds nodes in the phase and scope of `node`.
    pub fn at(&mut self, node: &Node) -> Builder<'_> {
        let mut b = Builder::new(&mut self.to);
        b.phase = node.phase;
        b.set_scope_index(node.scope);
        b
    }

    /// Ends with the outputs of the old graph.
    pub fn finish(mut self) -> Graph {
        for o in self.from.outputs() {
            let (value, updates) = (self.value(o.value), o.updates.map(|v| self.value(v)));
            self.to.add_output(o.name.clone(), value, updates);
        }
        self.to
    }
}
