//! The order in which nodes run: a topological order with memory in mind.
//!
//! List scheduling. Among the nodes that are ready, program order decides, except that
//! - a node that frees more than it allocates runs as soon as it is ready (a gradient is accumulated when it is made);
//! - nodes without operands (constants, indices) run just before their first user;
//! - forward nodes that little saved for the backward pass depends on come first: a teacher runs before the student's
//!   activations pile up, not on top of them.
//!
//! State rule: a node that takes a state and makes the value that updates it may work in place, so the reads of the
//! state that stand before it in program order (through reshapes too) run before it. A read that stands after it keeps its
//! place in program order at the latest; the memory plan sees it and does not let that update be in place.

use crate::graph::{Def, Graph, InputKind, Node, NodeId, Phase, ValueId};
use crate::op::Op;
use crate::passes::recompute::Cut;
use crate::prim::Prim;
use std::collections::BTreeSet;

/// A deterministic topological order of all nodes. Takes `O(n log n)`.
pub fn schedule(graph: &Graph) -> Vec<NodeId> {
    let mut s = Scheduler::new(graph);
    while let Some(id) = s.choose() {
        s.run(id);
    }
    // Leaves that no node uses (they can be outputs).
    for id in graph.node_ids() {
        if !s.done[id.index()] {
            s.order.push(id);
        }
    }
    s.order
}

/// Whether the result is the operand's storage under another shape.
pub(crate) fn is_view(node: &Node) -> bool {
    matches!(node.op, Op::Prim(Prim::Reshape { .. }))
}

/// For each value, the state that takes it when the graph has run, if any; seen through reshapes.
pub(crate) fn update_targets(graph: &Graph, roots: &[ValueId]) -> Vec<Option<ValueId>> {
    let mut target = vec![None; graph.value_count()];
    for o in graph.outputs() {
        let root = roots[o.value.index()];
        if let (Some(state), None) = (o.updates, target[root.index()]) {
            target[root.index()] = Some(state);
        }
    }
    target
}

/// For each value, the one whose elements it shows through reshapes: a reshape is a view.
pub(crate) fn roots(graph: &Graph) -> Vec<ValueId> {
    let mut roots: Vec<ValueId> = (0..graph.value_count() as u32).map(ValueId).collect();
    for node in graph.nodes().iter().filter(|n| is_view(n)) {
        roots[node.outputs[0].index()] = roots[node.inputs[0].index()];
    }
    roots
}

/// What decides between ready nodes: whether they come second, then program order.
type Rank = (bool, NodeId);

/// A forward node comes first if the chain of operands behind it saves at most one part in so many of what the longest
/// chain saves.
const FIRST: u128 = 4;

/// For each node, whether it comes second.
fn second(graph: &Graph) -> Vec<bool> {
    let cut = Cut::new(graph);
    let mut kept = vec![false; graph.value_count()];
    for id in graph.node_ids() {
        let node = graph.node(id);
        if cut.is_late(id) || node.phase == Phase::Recompute {
            node.inputs.iter().for_each(|v| kept[v.index()] = true);
        }
    }
    // Bytes saved along the chain of operands that saves the most.
    let mut saved: Vec<u128> = vec![0; graph.nodes().len()];
    for id in graph.node_ids().filter(|&id| graph.node(id).phase == Phase::Forward) {
        let node = graph.node(id);
        let behind = node.inputs.iter().filter_map(|&v| match graph.def(v) {
            Def::Node(from, _) => Some(saved[from.index()]),
            Def::Input(_) => None,
        });
        let own = node.outputs.iter().filter(|v| kept[v.index()]).map(|&v| graph.ty(v).bytes() as u128);
        saved[id.index()] = behind.max().unwrap_or(0) + own.sum::<u128>();
    }
    let most = saved.iter().copied().max().unwrap_or(0);
    let is_second = |id: NodeId| graph.node(id).phase != Phase::Forward || saved[id.index()] * FIRST > most;
    graph.node_ids().map(is_second).collect()
}

struct Scheduler<'g> {
    graph: &'g Graph,
    roots: Vec<ValueId>,
    targets: Vec<Option<ValueId>>,
    /// Nodes that read a storage and have not run; the storage is freed with the last.
    readers: Vec<Vec<NodeId>>,
    unread: Vec<u32>,
    /// Storage of outputs and inputs is never freed.
    pinned: Vec<bool>,
    /// Predecessors that have not run, and successors.
    waiting: Vec<u32>,
    next: Vec<Vec<NodeId>>,
    ready: BTreeSet<Rank>,
    /// The ready nodes that free more than they allocate.
    gains: BTreeSet<Rank>,
    /// Nodes that come after the others that are ready.
    second: Vec<bool>,
    done: Vec<bool>,
    order: Vec<NodeId>,
}

impl<'g> Scheduler<'g> {
    fn new(graph: &'g Graph) -> Self {
        let (values, nodes) = (graph.value_count(), graph.nodes().len());
        let roots = roots(graph);
        let targets = update_targets(graph, &roots);
        let mut pinned = vec![false; values];
        graph.inputs().iter().for_each(|i| pinned[i.value.index()] = true);
        graph.outputs().iter().for_each(|o| pinned[roots[o.value.index()].index()] = true);
        let mut s = Scheduler {
            graph,
            roots,
            targets,
            readers: vec![vec![]; values],
            unread: vec![0; values],
            pinned,
            waiting: vec![0; nodes],
            next: vec![vec![]; nodes],
            ready: BTreeSet::new(),
            gains: BTreeSet::new(),
            second: second(graph),
            done: vec![false; nodes],
            order: Vec::with_capacity(nodes),
        };
        for id in graph.node_ids().filter(|&id| !is_leaf(graph.node(id))) {
            for storage in s.storages(id) {
                s.readers[storage.index()].push(id);
                s.unread[storage.index()] += 1;
            }
            for v in &graph.node(id).inputs {
                if let Def::Node(from, _) = graph.def(*v)
                    && !is_leaf(graph.node(from))
                {
                    s.edge(from, id);
                }
            }
        }
        s.order_state_reads();
        for id in graph.node_ids() {
            if !is_leaf(graph.node(id)) && s.waiting[id.index()] == 0 {
                s.make_ready(id);
            }
        }
        s
    }

    fn edge(&mut self, from: NodeId, to: NodeId) {
        self.next[from.index()].push(to);
        self.waiting[to.index()] += 1;
    }

    /// The state rule: earlier readers of a state come before the node that updates it. These edges go forward in
    /// program order, so they close no cycle.
    fn order_state_reads(&mut self) {
        let graph = self.graph;
        for state in graph.inputs().iter().filter(|i| i.kind == InputKind::State) {
            let readers = self.readers[state.value.index()].clone();
            let updates = |id: &NodeId| {
                let outputs = &graph.node(*id).outputs;
                outputs.iter().any(|v| self.targets[v.index()] == Some(state.value))
            };
            if let Some(update) = readers.iter().copied().find(updates) {
                readers.iter().take_while(|&&r| r < update).for_each(|&r| self.edge(r, update));
            }
        }
    }

    /// The distinct storages that a node reads.
    fn storages(&self, id: NodeId) -> Vec<ValueId> {
        let mut out: Vec<ValueId> =
            self.graph.node(id).inputs.iter().map(|v| self.roots[v.index()]).collect();
        out.sort_unstable();
        out.dedup();
        out
    }

    fn rank(&self, id: NodeId) -> Rank {
        (self.second[id.index()], id)
    }

    fn make_ready(&mut self, id: NodeId) {
        self.ready.insert(self.rank(id));
        if self.gain(id) {
            self.gains.insert(self.rank(id));
        }
    }

    /// Whether running `id` now frees more than it allocates.
    fn gain(&self, id: NodeId) -> bool {
        let node = self.graph.node(id);
        if is_view(node) {
            return false;
        }
        let storages = self.storages(id);
        let bytes = |v: &ValueId| self.graph.ty(*v).bytes() as u128;
        // A leaf that has not run takes no memory yet.
        let exists = |v: ValueId| matches!(self.graph.def(v), Def::Node(id, _) if self.done[id.index()]);
        let dies = |v: &&ValueId| !self.pinned[v.index()] && self.unread[v.index()] == 1 && exists(**v);
        let freed: u128 = storages.iter().filter(dies).map(bytes).sum();
        // What updates a state that the node reads goes into the state's own storage.
        let in_place =
            |v: &ValueId| self.targets[v.index()].is_some_and(|s| storages.binary_search(&s).is_ok());
        let allocated: u128 = node.outputs.iter().filter(|v| !in_place(v)).map(bytes).sum();
        freed > allocated
    }

    fn choose(&mut self) -> Option<NodeId> {
        let rank = self.gains.first().or(self.ready.first()).copied()?;
        self.gains.remove(&rank);
        self.ready.remove(&rank);
        Some(rank.1)
    }

    fn run(&mut self, id: NodeId) {
        let graph = self.graph;
        for v in &graph.node(id).inputs {
            if let Def::Node(leaf, _) = graph.def(*v)
                && is_leaf(graph.node(leaf))
                && !self.done[leaf.index()]
            {
                self.done[leaf.index()] = true;
                self.order.push(leaf);
            }
        }
        self.done[id.index()] = true;
        self.order.push(id);
        for storage in self.storages(id) {
            self.unread[storage.index()] -= 1;
            if self.unread[storage.index()] == 1 {
                self.last_reader_left(storage);
            }
        }
        for to in std::mem::take(&mut self.next[id.index()]) {
            self.waiting[to.index()] -= 1;
            if self.waiting[to.index()] == 0 {
                self.make_ready(to);
            }
        }
    }

    /// The one reader that is left would free the storage: it may gain by that now.
    fn last_reader_left(&mut self, storage: ValueId) {
        let last = self.readers[storage.index()].iter().copied().find(|r| !self.done[r.index()]);
        if let Some(last) = last
            && self.ready.contains(&self.rank(last))
            && self.gain(last)
        {
            self.gains.insert(self.rank(last));
        }
    }
}

fn is_leaf(node: &Node) -> bool {
    node.inputs.is_empty()
}
