//! Fuses products with what is done to their results, for backends that can do it before a result is written: a product's
//! tile goes through the operations that read it while it is in registers.
//!
//! An *epilogue* is a pointwise primitive, a group, or a composite that the backend names. It takes the products that make its
//! operands, one or two, of its own phase, scope and shape, into a [`Fused`] node if the backend claims that. A product's result
//! that something else reads too is a result of the node; so are a product's other results.
//!
//! A fused node stands where its epilogue stood: a product does not join if something reads it before that. It applies the
//! same operations in the same types as before, so no bit of a result changes by what the node means. The pass runs behind
//! recomputation, which may want an epilogue again without its products; who plans memory for a set of values that are made
//! again has to plan it for what this pass makes of it.

use super::Rewriter;
use crate::builder::Builder;
use crate::error::Result;
use crate::fused::{self, Fused};
use crate::graph::{Def, Graph, InputKind, Node, NodeId, ValueId};
use crate::op::{Composite, Op};
use std::collections::HashMap;

/// What a backend can run as one kernel.
pub trait Fuses {
    /// Whether a composite's first result is a product to which more can be done before it is written.
    fn is_product(&self, c: &Composite) -> bool;
    /// Whether a composite can be done to products.
    fn is_epilogue(&self, c: &Composite) -> bool;
    /// Whether these operations can run as one kernel.
    fn claims(&self, f: &Fused) -> bool;
}

/// The graph with fused products.
///
/// # Errors
/// Only if the graph is invalid.
pub fn run(graph: &Graph, fuses: &dyn Fuses) -> Result<Graph> {
    let mut found = Finder::new(graph, fuses);
    for id in graph.node_ids() {
        found.root(id)?;
    }
    if found.fusions.is_empty() {
        return Ok(graph.clone());
    }
    let mut r = Rewriter::new(graph);
    for id in graph.node_ids() {
        let node = graph.node(id);
        match found.fusions.remove(&id) {
            Some(fusion) => {
                let inputs = r.values(&fusion.operands);
                let types = fusion.results.iter().map(|&v| graph.ty(v).clone()).collect();
                let made = r.to.add_node(Op::Fused(fusion.op), inputs, types, node.phase, node.scope);
                fusion.results.iter().zip(made).for_each(|(&old, new)| r.replace(old, new));
            }
            None if found.taken[id.index()] => {}
            None => r.keep(node),
        }
    }
    Ok(r.finish())
}

/// Nodes that become one: its operation, operands and results in the old graph.
struct Fusion {
    op: Fused,
    operands: Vec<ValueId>,
    results: Vec<ValueId>,
}

struct Finder<'a> {
    graph: &'a Graph,
    fuses: &'a dyn Fuses,
    readers: Vec<Vec<NodeId>>,
    is_output: Vec<bool>,
    /// Products that stand in a fused node.
    taken: Vec<bool>,
    /// Fused nodes by their epilogue.
    fusions: HashMap<NodeId, Fusion>,
}

impl<'a> Finder<'a> {
    fn new(graph: &'a Graph, fuses: &'a dyn Fuses) -> Finder<'a> {
        let mut readers: Vec<Vec<NodeId>> = vec![vec![]; graph.value_count()];
        for id in graph.node_ids() {
            graph.node(id).inputs.iter().for_each(|v| readers[v.index()].push(id));
        }
        let mut is_output = vec![false; graph.value_count()];
        graph.outputs().iter().for_each(|o| is_output[o.value.index()] = true);
        let taken = vec![false; graph.nodes().len()];
        Finder { graph, fuses, readers, is_output, taken, fusions: HashMap::new() }
    }

    /// Fuses an epilogue with its products, if it is one: with both of two, or else with the last one that can be had.
    fn root(&mut self, id: NodeId) -> Result<()> {
        let node = self.graph.node(id);
        let is_epilogue = match &node.op {
            Op::Prim(p) => p.is_pointwise(),
            Op::Group(_) => true,
            Op::Composite(c) => self.fuses.is_epilogue(c),
            Op::Fused(_) => false,
        };
        if !is_epilogue {
            return Ok(());
        }
        let mut products: Vec<NodeId> = vec![];
        for &v in &node.inputs {
            if let Some(p) = self.product(v, id).filter(|p| !products.contains(p)) {
                products.push(p);
            }
        }
        products.sort_unstable();
        let mut tries: Vec<Vec<NodeId>> = products.iter().rev().map(|&p| vec![p]).collect();
        if products.len() == 2 {
            tries.insert(0, products);
        }
        for products in tries {
            let fusion = self.fusion(&products, id)?;
            if self.fuses.claims(&fusion.op) {
                products.iter().for_each(|p| self.taken[p.index()] = true);
                self.fusions.insert(id, fusion);
                break;
            }
        }
        Ok(())
    }

    /// The product that makes `v`, if it can move to its reader `root`.
    fn product(&self, v: ValueId, root: NodeId) -> Option<NodeId> {
        let Def::Node(id, 0) = self.graph.def(v) else { return None };
        let (node, epilogue) = (self.graph.node(id), self.graph.node(root));
        let Op::Composite(c) = &node.op else { return None };
        let mut others = node.outputs.iter().flat_map(|v| &self.readers[v.index()]).filter(|r| **r != root);
        (self.fuses.is_product(c)
            && !self.taken[id.index()]
            && (node.phase, node.scope) == (epilogue.phase, epilogue.scope)
            && self.graph.ty(v).dims == self.graph.ty(epilogue.outputs[0]).dims
            && others.all(|r| *r > root))
        .then_some(id)
    }

    /// These products and their epilogue as one node.
    fn fusion(&self, products: &[NodeId], root: NodeId) -> Result<Fusion> {
        let graph = self.graph;
        let epilogue = graph.node(root);
        let nodes: Vec<&Node> = products.iter().map(|&p| graph.node(p)).collect();
        let operands = self.operands(&nodes, epilogue);
        let mut body = Graph::new(fused::NAME);
        // Where values of the graph are in the body.
        let mut map: HashMap<ValueId, ValueId> = HashMap::new();
        for (i, &v) in operands.iter().enumerate() {
            map.insert(v, body.add_input(i.to_string(), InputKind::Data, graph.ty(v).clone()));
        }
        let mut results = vec![];
        let mut b = Builder::new(&mut body);
        for node in nodes.iter().copied().chain([epilogue]) {
            let inputs: Vec<ValueId> = node.inputs.iter().map(|v| map[v]).collect();
            let made = match &node.op {
                Op::Group(g) => g.inline(&mut b, &inputs)?,
                op => b.op(op.clone(), &inputs)?,
            };
            node.outputs.iter().zip(made).for_each(|(&old, new)| {
                map.insert(old, new);
            });
        }
        results.extend(&epilogue.outputs);
        for node in nodes {
            let is_read =
                |v: ValueId| self.is_output[v.index()] || self.readers[v.index()].iter().any(|r| *r != root);
            let rest = node.outputs.iter().enumerate();
            results.extend(rest.filter(|&(i, &v)| i > 0 || is_read(v)).map(|(_, &v)| v));
        }
        for (i, v) in results.iter().enumerate() {
            body.add_output(i.to_string(), map[v], None);
        }
        Ok(Fusion { op: Fused::new(body)?, operands, results })
    }

    /// What the nodes read and do not make; first what results of the epilogue may be written over: what it alone reads,
    /// and as large as they.
    fn operands(&self, products: &[&Node], epilogue: &Node) -> Vec<ValueId> {
        let made = |v: &ValueId| products.iter().any(|p| p.outputs.contains(v));
        let read = |v: &ValueId| products.iter().any(|p| p.inputs.contains(v));
        let result = self.graph.ty(epilogue.outputs[0]);
        let over = |v: &ValueId| {
            let ty = self.graph.ty(*v);
            !read(v) && ty.dims == result.dims && ty.dtype.size() == result.dtype.size()
        };
        let own: Vec<ValueId> = epilogue.inputs.iter().copied().filter(|v| !made(v)).collect();
        let (first, rest): (Vec<ValueId>, Vec<ValueId>) = own.into_iter().partition(over);
        let mut all: Vec<ValueId> = vec![];
        let of_products = products.iter().flat_map(|p| p.inputs.iter().copied());
        for v in first.into_iter().chain(rest).chain(of_products) {
            if !all.contains(&v) {
                all.push(v);
            }
        }
        all
    }
}
