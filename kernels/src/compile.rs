//! From a graph to a plan: passes, kernels, schedule, memory plan.

use crate::KernelError;
use crate::cpu;
use crate::plan::{Place, Plan, PlanInput, PlanOutput, Step};
use crate::tile;
use kfc_graph::budget::{Decision, Frontier, decisions};
use kfc_graph::cost::{Rates, SecondsOf};
use kfc_graph::memory::{self, Facts, FactsOf, MemoryPlan};
use kfc_graph::passes::fuse_products;
use kfc_graph::passes::recompute::{self, Cut, Policy};
use kfc_graph::{
    Composite, Def, Graph, Node, NodeId, Op, Prim, TensorType, ValueId, passes, schedule, verify,
};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

/// What is made again in the backward pass instead of being kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Recompute {
    /// Nothing.
    #[default]
    Off,
    /// What a policy names.
    Named(Policy),
    /// What costs the least time for an arena of at most this many bytes, and what costs next to nothing in any case.
    WithinBudget(usize),
    /// These saved values, if the graph has them and the arena then has at most this many bytes; else as within the budget.
    Values(BTreeSet<ValueId>, usize),
}

/// Whose kernels a plan runs: what is claimed, in place and workspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// [`crate::cpu`].
    #[default]
    Cpu,
    /// [`crate::tile::programs`].
    Tile,
}

/// How to compile.
#[derive(Clone)]
pub struct CompileOptions<'a> {
    /// Whose kernels run.
    pub backend: Backend,
    /// What is made again in the backward pass.
    pub recompute: Recompute,
    /// How long an operation takes: what recomputation is weighed with.
    pub seconds: &'a SecondsOf<'a>,
}

impl Default for CompileOptions<'_> {
    /// On the CPU, no recomputation, and the default rates.
    fn default() -> Self {
        CompileOptions {
            backend: Backend::Cpu,
            recompute: Recompute::Off,
            seconds: &|op, inputs, outputs| Rates::default().seconds(op.cost(inputs, outputs)),
        }
    }
}

/// A plan, and what else there was to choose from.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The plan.
    pub plan: Plan,
    /// All choices, where there was a budget.
    pub frontier: Option<Frontier>,
}

/// Compiles a graph without recomputation. `observer` sees the graph after every pass, with a name that sorts in order
/// (`01-canonicalise`).
///
/// # Errors
/// If a pass breaks the graph, or an operation has no kernel.
pub fn compile(graph: &Graph, observer: &mut dyn FnMut(&str, &Graph)) -> Result<Plan, KernelError> {
    Ok(compile_with(graph, &CompileOptions::default(), observer)?.plan)
}

/// Compiles a graph. `observer` is as in [`compile`].
///
/// # Errors
/// As [`compile`]; and [`KernelError::Budget`] if the budget is smaller than any choice needs.
pub fn compile_with(
    graph: &Graph,
    options: &CompileOptions<'_>,
    observer: &mut dyn FnMut(&str, &Graph),
) -> Result<Compiled, KernelError> {
    let graph = optimised(graph, options.backend, observer)?;
    let facts = FactsTable::new(options.backend);
    let facts_of = |graph: &Graph, node: &Node| facts.of(graph, node);
    let (dropped, frontier) = match &options.recompute {
        Recompute::Off => (BTreeSet::new(), None),
        Recompute::Named(policy) => (recompute::dropped(&graph, &Cut::new(&graph), policy), None),
        Recompute::Values(values, bytes) if fits(&graph, values, *bytes, options.backend, &facts_of) => {
            (values.clone(), None)
        }
        Recompute::WithinBudget(bytes) | Recompute::Values(_, bytes) => {
            let finish = |graph| finished(graph, options.backend);
            let frontier = Frontier::new(&graph, &finish, &facts_of, options.seconds);
            (frontier.within(*bytes)?.dropped.clone(), Some(frontier))
        }
    };
    let decisions = decisions(&graph, &dropped, options.seconds);
    let graph = if dropped.is_empty() { graph } else { recomputed(&graph, &dropped, observer)? };
    let graph = fused(graph, options.backend, observer)?;
    Ok(Compiled { plan: lower(&graph, &facts_of, decisions), frontier })
}

/// Whether these are saved values of the graph, and what is left fits into so many bytes when they are made again.
fn fits(
    graph: &Graph,
    values: &BTreeSet<ValueId>,
    bytes: usize,
    backend: Backend,
    facts_of: &FactsOf<'_>,
) -> bool {
    let cut = Cut::new(graph);
    let is_saved = |v: &ValueId| v.index() < graph.value_count() && cut.is_saved(*v);
    let arena = || {
        let graph = finished(recompute::run(graph, &cut, values), backend);
        memory::plan(&graph, &schedule::schedule(&graph), facts_of).arena_bytes
    };
    values.iter().all(is_saved) && arena() <= bytes
}

/// The choices between memory and time that a graph leaves with the kernels of a backend.
///
/// # Errors
/// As [`compile`].
pub fn frontier(graph: &Graph, backend: Backend, seconds: &SecondsOf<'_>) -> Result<Frontier, KernelError> {
    let facts = FactsTable::new(backend);
    let graph = optimised(graph, backend, &mut |_, _| ())?;
    let finish = |graph| finished(graph, backend);
    Ok(Frontier::new(&graph, &finish, &|graph, node| facts.of(graph, node), seconds))
}

/// The graph after the device-independent passes; every operation in it has a kernel.
fn optimised(
    graph: &Graph,
    backend: Backend,
    observer: &mut dyn FnMut(&str, &Graph),
) -> Result<Graph, KernelError> {
    let claims = |c: &Composite, types: &[TensorType]| match backend {
        Backend::Cpu => cpu::claims(c, types),
        Backend::Tile => tile::programs::claims(c),
    };
    let graph = passes::optimise(graph, &kfc_ops::registry(), &claims, observer)?;
    graph.nodes().iter().try_for_each(|n| kernel_facts(&graph, n, backend).map(|_| ()))?;
    Ok(graph)
}

fn recomputed(
    graph: &Graph,
    dropped: &BTreeSet<ValueId>,
    observer: &mut dyn FnMut(&str, &Graph),
) -> Result<Graph, KernelError> {
    let graph = recompute::run(graph, &Cut::new(graph), dropped);
    verify::verify(&graph)?;
    observer("10-recompute", &graph);
    Ok(graph)
}

/// The graph with what this backend runs as one kernel fused, if it is one that does: the CPU's kernels stay apart.
fn fused(
    graph: Graph,
    backend: Backend,
    observer: &mut dyn FnMut(&str, &Graph),
) -> Result<Graph, KernelError> {
    if backend == Backend::Cpu {
        return Ok(graph);
    }
    let graph = fuse_products::run(&graph, &tile::programs::TileFuses)?;
    verify::verify(&graph)?;
    observer("11-fuse-products", &graph);
    graph.nodes().iter().try_for_each(|n| kernel_facts(&graph, n, backend).map(|_| ()))?;
    Ok(graph)
}

/// [`fused`] of a graph whose memory is to be known. A pass that fails does so again where the graph is compiled.
fn finished(graph: Graph, backend: Backend) -> Graph {
    match backend {
        Backend::Cpu => graph,
        Backend::Tile => fuse_products::run(&graph, &tile::programs::TileFuses).unwrap_or(graph),
    }
}

/// Orders and places a graph whose every operation has a kernel.
fn lower(graph: &Graph, facts_of: &FactsOf<'_>, decisions: Vec<Decision>) -> Plan {
    let order = schedule::schedule(graph);
    let memory = memory::plan(graph, &order, facts_of);
    let steps = order
        .iter()
        .filter(|&&id| !is_free(graph, graph.node(id), &memory))
        .map(|&id| step(graph, id, &memory, facts_of(graph, graph.node(id)).inplace))
        .collect();
    Plan {
        name: graph.name.clone(),
        steps,
        inputs: inputs(graph),
        outputs: outputs(graph, &memory),
        epilogue: epilogue(graph, &memory),
        arena_bytes: memory.arena_bytes,
        live_bytes: memory.lower_bound,
        decisions,
    }
}

/// A reshape whose result is its operand's storage: nothing to run.
fn is_free(graph: &Graph, node: &Node, memory: &MemoryPlan) -> bool {
    matches!(node.op, Op::Prim(Prim::Reshape { .. }))
        && place(graph, memory, node.inputs[0]) == place(graph, memory, node.outputs[0])
}

fn step(graph: &Graph, id: NodeId, memory: &MemoryPlan, inplace: &[(usize, usize)]) -> Step {
    let node = graph.node(id);
    let (input_types, output_types) = types(graph, node);
    let places = |ids: &[ValueId]| ids.iter().map(|&v| place(graph, memory, v)).collect::<Vec<_>>();
    let (inputs, outputs) = (places(&node.inputs), places(&node.outputs));
    let copies = inplace
        .iter()
        .filter(|&&(i, j)| i < inputs.len() && j < outputs.len() && inputs[i] != outputs[j])
        .map(|&(i, j)| (inputs[i], outputs[j]))
        .collect();
    let workspace = memory.workspaces[id.index()]
        .map_or(Place::Arena { offset: 0, bytes: 0 }, |s| Place::Arena { offset: s.offset, bytes: s.bytes });
    Step {
        op: node.op.clone(),
        phase: node.phase,
        scope: graph.scope(node).to_string(),
        input_types,
        output_types,
        inputs,
        outputs,
        workspace,
        copies,
    }
}

fn inputs(graph: &Graph) -> Vec<PlanInput> {
    let input = |i: &kfc_graph::Input| PlanInput {
        name: i.name.clone(),
        ty: graph.ty(i.value).clone(),
        kind: i.kind,
    };
    graph.inputs().iter().map(input).collect()
}

fn outputs(graph: &Graph, memory: &MemoryPlan) -> Vec<PlanOutput> {
    let output = |o: &kfc_graph::Output| PlanOutput {
        name: o.name.clone(),
        ty: graph.ty(o.value).clone(),
        place: place(graph, memory, o.value),
        updates: o.updates.and_then(|v| input_index(graph, v)),
    };
    graph.outputs().iter().map(output).collect()
}

fn epilogue(graph: &Graph, memory: &MemoryPlan) -> Vec<(Place, Place)> {
    let copy = |&o: &usize| {
        let output = &graph.outputs()[o];
        let target = output.updates.and_then(|v| input_index(graph, v))?;
        Some((place(graph, memory, output.value), Place::Input(target)))
    };
    memory.copied_updates.iter().filter_map(copy).collect()
}

fn input_index(graph: &Graph, v: ValueId) -> Option<usize> {
    match graph.def(v) {
        Def::Input(i) => Some(i as usize),
        Def::Node(..) => None,
    }
}

/// The place of a value, with its exact size (slots are rounded up).
fn place(graph: &Graph, memory: &MemoryPlan, v: ValueId) -> Place {
    match memory.places[v.index()] {
        memory::Place::Input(i) => Place::Input(i as usize),
        memory::Place::Arena(slot) => Place::Arena { offset: slot.offset, bytes: graph.ty(v).bytes() },
    }
}

fn kernel_facts(graph: &Graph, node: &Node, backend: Backend) -> Result<Facts, KernelError> {
    let (inputs, outputs) = types(graph, node);
    Ok(match backend {
        Backend::Cpu => {
            let kernel = cpu::build(&node.op, &inputs, &outputs)?;
            Facts {
                inplace: kernel.inplace(),
                may_inplace: kernel.may_inplace(),
                workspace: kernel.workspace_bytes(),
            }
        }
        Backend::Tile => {
            let programs = tile::programs::emit(&node.op, &inputs, &outputs)?;
            Facts {
                inplace: programs.updates,
                may_inplace: programs.may_share,
                workspace: programs.workspace_bytes(),
            }
        }
    })
}

/// What the memory plan has to know of nodes' kernels. Writing programs takes time, and a plan may be tried many times:
/// theirs are kept by operation.
struct FactsTable {
    backend: Backend,
    known: Mutex<HashMap<String, Facts>>,
}

impl FactsTable {
    fn new(backend: Backend) -> FactsTable {
        FactsTable { backend, known: Mutex::default() }
    }

    /// [`optimised`] has seen that every node has a kernel.
    fn of(&self, graph: &Graph, node: &Node) -> Facts {
        if self.backend == Backend::Cpu {
            return kernel_facts(graph, node, self.backend).unwrap_or_default();
        }
        let attrs = kfc_graph::text::attrs(&node.op);
        let key = format!("{} {attrs:?} {:?}", node.op.name(), types(graph, node));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known.entry(key).or_insert_with(|| kernel_facts(graph, node, self.backend).unwrap_or_default())
    }
}

fn types(graph: &Graph, node: &Node) -> (Vec<TensorType>, Vec<TensorType>) {
    let of = |ids: &[ValueId]| ids.iter().map(|&v| graph.ty(v).clone()).collect();
    (of(&node.inputs), of(&node.outputs))
}
