//! From a graph to a plan for the CPU: passes, kernels, schedule, memory plan.

use crate::KernelError;
use crate::cpu;
use crate::plan::{Place, Plan, PlanInput, PlanOutput, Step};
use kfc_graph::memory::{self, MemoryPlan};
use kfc_graph::{Composite, Def, Graph, Node, NodeId, Op, Prim, TensorType, ValueId, passes, schedule};

/// Compiles a graph. `observer` sees the graph after every pass, with a name that sorts in order (`01-canonicalise`).
///
/// # Errors
/// If a pass breaks the graph, or an operation has no kernel.
pub fn compile(graph: &Graph, observer: &mut dyn FnMut(&str, &Graph)) -> Result<Plan, KernelError> {
    let claims = |c: &Composite, types: &[TensorType]| cpu::claims(c, types);
    let graph = passes::optimise(graph, &kfc_ops::registry(), &claims, observer)?;
    lower(&graph)
}

/// What the memory plan has to know of a kernel.
struct Facts {
    inplace: &'static [(usize, usize)],
    workspace: usize,
}

/// Orders and places a graph whose every operation has a kernel.
fn lower(graph: &Graph) -> Result<Plan, KernelError> {
    let facts =
        graph.nodes().iter().map(|n| kernel_facts(graph, n)).collect::<Result<Vec<Facts>, KernelError>>()?;
    let of = |node: &Node| match node.outputs.first().map(|&v| graph.def(v)) {
        Some(Def::Node(id, _)) => facts.get(id.index()),
        _ => None,
    };
    let options = memory::Options {
        inplace: &|node| of(node).map_or(Vec::new(), |f| f.inplace.to_vec()),
        workspace: &|node| of(node).map_or(0, |f| f.workspace),
    };
    let order = schedule::schedule(graph);
    let memory = memory::plan(graph, &order, &options);
    let steps = order
        .iter()
        .filter(|&&id| !is_free(graph, graph.node(id), &memory))
        .map(|&id| step(graph, id, &memory, facts[id.index()].inplace))
        .collect();
    Ok(Plan {
        name: graph.name.clone(),
        steps,
        inputs: inputs(graph),
        outputs: outputs(graph, &memory),
        epilogue: epilogue(graph, &memory),
        arena_bytes: memory.arena_bytes,
        live_bytes: memory.lower_bound,
    })
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

fn kernel_facts(graph: &Graph, node: &Node) -> Result<Facts, KernelError> {
    let (inputs, outputs) = types(graph, node);
    let kernel = cpu::build(&node.op, &inputs, &outputs)?;
    Ok(Facts { inplace: kernel.inplace(), workspace: kernel.workspace_bytes() })
}

fn types(graph: &Graph, node: &Node) -> (Vec<TensorType>, Vec<TensorType>) {
    let of = |ids: &[ValueId]| ids.iter().map(|&v| graph.ty(v).clone()).collect();
    (of(&node.inputs), of(&node.outputs))
}
