//! Where every value lives: one arena with static offsets.
//!
//! Rules, in order:
//! - a graph input is its own storage, outside the arena;
//! - a reshape is a view of its operand's storage, unless it is an output of (or updates a state from) an input's storage:
//!   then it is copied, so that no output changes when a state does;
//! - an operation that must work in place ([`Facts::inplace`]) takes over its operand's storage if the operand is not
//!   read afterwards and is either in the arena or a state that the result (or what is made in place of it) updates;
//!   otherwise the result has a place of its own, and whoever runs the plan copies the operand there first;
//! - an operation that may work in place ([`Facts::may_inplace`]) does so over the first such operand that is in the
//!   arena and not read afterwards;
//! - everything else gets a place in the arena from the step that makes it to the step that last reads it; outputs keep
//!   theirs to the end.
//!
//! When all steps have run, an output that updates a state and does not already live in it is copied there.
//! Invariant: no two places of the arena whose life spans meet overlap. The planner follows tinygrad's: liveness, then
//! greedy offsets; of several orders of placing the best is kept, and a bounded search tries to better it.

mod place;

use crate::graph::{Graph, InputKind, Node, NodeId, ValueId};
use crate::schedule::{is_view, roots, update_targets};

/// Offsets and sizes are multiples of this.
pub const ALIGN: usize = 64;

/// What a plan needs to know of the kernel of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Pairs (operand, result) that share storage because the operation updates the operand.
    pub inplace: &'static [(usize, usize)],
    /// Pairs (operand, result) of which the result may be written over the operand: any choice with one operand a result
    /// and one result an operand. None of their operands is also in [`Facts::inplace`].
    pub may_inplace: &'static [(usize, usize)],
    /// Bytes that the kernel needs while it runs.
    pub workspace: usize,
}

/// The backend's kernels as the planner sees them. `Facts::default()` is a kernel without needs.
pub type FactsOf<'a> = dyn Fn(&Graph, &Node) -> Facts + Sync + 'a;

/// A range of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// First byte, a multiple of [`ALIGN`].
    pub offset: usize,
    /// Size, a multiple of [`ALIGN`].
    pub bytes: usize,
}

/// Where a value lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the storage of the graph input of this position.
    Input(u32),
    /// In the arena.
    Arena(Slot),
}

/// A range of the arena and when it is in use, in positions of the order, both inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The range.
    pub slot: Slot,
    /// Position of the node that first writes it.
    pub first: usize,
    /// Position of the node that last uses it.
    pub last: usize,
}

/// The result of planning.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryPlan {
    /// Place of each value, by value index.
    pub places: Vec<Place>,
    /// Workspace of each node, by node index.
    pub workspaces: Vec<Option<Slot>>,
    /// Every range of the arena with its life span, for reports and checks.
    pub spans: Vec<Span>,
    /// Outputs (by position) that are copied into the state they update when all steps have run.
    pub copied_updates: Vec<usize>,
    /// Size of the arena.
    pub arena_bytes: usize,
    /// The most bytes in use at once: no arena can be smaller.
    pub lower_bound: usize,
}

/// Plans the memory of a graph whose nodes run in `order` (each node once, operands first). Takes near-linear time.
pub fn plan(graph: &Graph, order: &[NodeId], facts: &FactsOf<'_>) -> MemoryPlan {
    let facts: Vec<Facts> = graph.nodes().iter().map(|n| facts(graph, n)).collect();
    let storage = assign_storage(graph, order, &facts);
    let (mut spans, workspaces) = unplaced_spans(graph, order, &storage, &facts);
    let (arena_bytes, lower_bound) = place::place(&mut spans, order.len());

    let places: Vec<Place> = storage
        .of
        .iter()
        .map(|s| match *s {
            Storage::Input(i) => Place::Input(i),
            Storage::Arena(a) => Place::Arena(spans[a].slot),
        })
        .collect();
    let workspaces = workspaces.into_iter().map(|w| w.map(|i| spans[i].slot)).collect();
    let copied_updates = copied_updates(graph, &places);
    MemoryPlan { places, workspaces, spans, copied_updates, arena_bytes, lower_bound }
}

/// The most bytes in use at once when the nodes run in `order`: what [`plan`] reports as its lower bound, without the
/// search for places.
pub fn live_bytes(graph: &Graph, order: &[NodeId], facts: &FactsOf<'_>) -> usize {
    let facts: Vec<Facts> = graph.nodes().iter().map(|n| facts(graph, n)).collect();
    let storage = assign_storage(graph, order, &facts);
    place::live_bytes(&unplaced_spans(graph, order, &storage, &facts).0, order.len())
}

/// Ranges for values and workspaces, without offsets, and the range of each node's workspace.
fn unplaced_spans(
    graph: &Graph,
    order: &[NodeId],
    storage: &Assignment,
    facts: &[Facts],
) -> (Vec<Span>, Vec<Option<usize>>) {
    let mut spans: Vec<Span> = storage.arena.iter().map(|a| unplaced(a.bytes, a.first, a.last)).collect();
    let mut workspaces = vec![None; graph.nodes().len()];
    for (position, &id) in order.iter().enumerate() {
        let bytes = facts[id.index()].workspace;
        if bytes > 0 {
            workspaces[id.index()] = Some(spans.len());
            spans.push(unplaced(bytes, position, position));
        }
    }
    (spans, workspaces)
}

fn unplaced(bytes: usize, first: usize, last: usize) -> Span {
    Span { slot: Slot { offset: 0, bytes: bytes.next_multiple_of(ALIGN) }, first, last }
}

fn copied_updates(graph: &Graph, places: &[Place]) -> Vec<usize> {
    let copied = |o: &crate::Output| o.updates.is_some_and(|s| places[o.value.index()] != places[s.index()]);
    graph.outputs().iter().enumerate().filter(|(_, o)| copied(o)).map(|(i, _)| i).collect()
}

/// What holds a value: an input or an arena range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Storage {
    Input(u32),
    Arena(usize),
}

/// Size and life span of an arena range.
struct Lifetime {
    bytes: usize,
    first: usize,
    last: usize,
}

struct Assignment {
    of: Vec<Storage>,
    arena: Vec<Lifetime>,
}

/// Follows the order once and says for each value which storage holds it.
fn assign_storage(graph: &Graph, order: &[NodeId], facts: &[Facts]) -> Assignment {
    let reads = reads(graph);
    let targets = inplace_targets(graph, facts);
    let is_output = outputs(graph);
    let end = order.len().saturating_sub(1);

    // Reads to come of what each storage holds, counted as values enter it.
    let mut input_reads: Vec<u32> = graph.inputs().iter().map(|i| reads[i.value.index()]).collect();
    let mut arena_reads: Vec<u32> = vec![];
    let mut a = Assignment { of: vec![Storage::Input(0); graph.value_count()], arena: vec![] };
    for (i, input) in graph.inputs().iter().enumerate() {
        a.of[input.value.index()] = Storage::Input(i as u32);
    }
    for (position, &id) in order.iter().enumerate() {
        let node = graph.node(id);
        for v in &node.inputs {
            match a.of[v.index()] {
                Storage::Input(i) => input_reads[i as usize] -= 1,
                Storage::Arena(s) => {
                    arena_reads[s] -= 1;
                    a.arena[s].last = position;
                }
            }
        }
        for (j, &v) in node.outputs.iter().enumerate() {
            let shared = if is_view(node) {
                let s = a.of[node.inputs[0].index()];
                let escapes = matches!(s, Storage::Input(_)) && is_output[v.index()];
                let own = escapes && !updates_own(graph, v, s);
                (!own).then_some(s)
            } else {
                let dead = |s: Storage| match s {
                    Storage::Input(i) => {
                        let input = &graph.inputs()[i as usize];
                        let state = input.kind == InputKind::State;
                        state && input_reads[i as usize] == 0 && targets[v.index()] == Some(input.value)
                    }
                    Storage::Arena(s) => arena_reads[s] == 0,
                };
                let alone = |i: usize, s: Storage| {
                    node.inputs.iter().enumerate().all(|(k, u)| k == i || a.of[u.index()] != s)
                        && node.outputs[..j].iter().all(|u| a.of[u.index()] != s)
                };
                let shared = |i: usize| {
                    let operand = *node.inputs.get(i)?;
                    let s = a.of[operand.index()];
                    let fits = graph.ty(operand).bytes() == graph.ty(v).bytes();
                    (fits && dead(s) && alone(i, s)).then_some(s)
                };
                let Facts { inplace, may_inplace, .. } = facts[id.index()];
                match inplace.iter().find(|(_, result)| *result == j) {
                    Some(&(i, _)) => shared(i),
                    None => may_inplace
                        .iter()
                        .filter(|(_, result)| *result == j)
                        .filter_map(|&(i, _)| shared(i))
                        .find(|s| matches!(s, Storage::Arena(_))),
                }
            };
            let storage = shared.unwrap_or_else(|| {
                a.arena.push(Lifetime { bytes: graph.ty(v).bytes(), first: position, last: position });
                arena_reads.push(0);
                Storage::Arena(a.arena.len() - 1)
            });
            a.of[v.index()] = storage;
            match storage {
                Storage::Input(i) => input_reads[i as usize] += reads[v.index()],
                Storage::Arena(s) => {
                    arena_reads[s] += reads[v.index()];
                    a.arena[s].last = position.max(a.arena[s].last);
                }
            }
        }
    }
    for o in graph.outputs() {
        if let Storage::Arena(s) = a.of[o.value.index()] {
            a.arena[s].last = end;
        }
    }
    a
}

/// How often nodes read each value; being an output is one more read, at the end.
fn reads(graph: &Graph) -> Vec<u32> {
    let mut reads = vec![0; graph.value_count()];
    for node in graph.nodes() {
        node.inputs.iter().for_each(|v| reads[v.index()] += 1);
    }
    graph.outputs().iter().for_each(|o| reads[o.value.index()] += 1);
    reads
}

fn outputs(graph: &Graph) -> Vec<bool> {
    let mut is_output = vec![false; graph.value_count()];
    graph.outputs().iter().for_each(|o| is_output[o.value.index()] = true);
    is_output
}

/// Whether every output that this value is updates the very input that holds it.
fn updates_own(graph: &Graph, v: ValueId, s: Storage) -> bool {
    let Storage::Input(i) = s else { return false };
    let state = graph.inputs()[i as usize].value;
    graph.outputs().iter().filter(|o| o.value == v).all(|o| o.updates == Some(state))
}

/// For each value, the state whose storage it may take: the one it updates, or that the result made in place of it
/// updates (several accumulations into one state).
fn inplace_targets(graph: &Graph, facts: &[Facts]) -> Vec<Option<ValueId>> {
    let roots = roots(graph);
    let mut targets = update_targets(graph, &roots);
    let is_output = outputs(graph);
    for (node, facts) in graph.nodes().iter().zip(facts).rev() {
        for &(i, j) in facts.inplace {
            let (Some(operand), Some(result)) = (node.inputs.get(i), node.outputs.get(j)) else { continue };
            let root = roots[operand.index()];
            if targets[root.index()].is_none() && !is_output[root.index()] {
                targets[root.index()] = targets[result.index()];
            }
        }
    }
    targets
}
