//! From a graph to a plan for the CPU: passes, schedule, memory plan.

use crate::KernelError;
use crate::cpu;
use crate::plan::{Place, Plan, PlanInput, PlanOutput, Step};
use kfc_graph::{Graph, Node, Op, TensorType, memory, passes, schedule};

/// Compiles a graph. `observer` sees the graph after every pass, with a name that sorts in order (`01-canonicalise`).
///
/// # Errors
/// If a pass breaks the graph, or an operation has no kernel.
pub fn compile(graph: Graph, observer: &mut dyn FnMut(&str, &Graph)) -> Result<Plan, KernelError> {
    let registry = kfc_ops::registry();
    let claims = |c: &kfc_graph::Composite, types: &[TensorType]| cpu::claims(c, types);
    let graph = passes::optimise(&graph, &registry, &claims, observer)?;
    lower(&graph)
}

/// Orders, places and packs a graph whose every operation has a kernel.
fn lower(graph: &Graph) -> Result<Plan, KernelError> {
    let mut kernels = Vec::with_capacity(graph.nodes().len());
    for node in graph.nodes() {
        kernels.push(kernel_facts(graph, node)?);
    }
    let facts = |node: &Node| {
        node.outputs.first().and_then(|v| match graph.def(*v) {
            kfc_graph::Def::Node(id, _) => kernels.get(id.index()),
            kfc_graph::Def::Input(_) => None,
        })
    };
    let options = memory::Options {
        inplace: &|node| facts(node).map_or(&[], |f| f.inplace),
        workspace: &|node| facts(node).map_or(0, |f| f.workspace),
    };
    let order = schedule::schedule(graph, options.inplace);
    let plan = memory::plan(graph, &order, &options);
    todo!("{plan:?}")
}

/// What the memory plan has to know of a kernel.
struct Facts {
    inplace: &'static [(usize, usize)],
    workspace: usize,
}

fn kernel_facts(graph: &Graph, node: &Node) -> Result<Facts, KernelError> {
    let (inputs, outputs) = types(graph, node);
    let kernel = cpu::build(&node.op, &inputs, &outputs)?;
    Ok(Facts { inplace: kernel.inplace(), workspace: kernel.workspace_bytes() })
}

fn types(graph: &Graph, node: &Node) -> (Vec<TensorType>, Vec<TensorType>) {
    let of = |ids: &[kfc_graph::ValueId]| ids.iter().map(|&v| graph.ty(v).clone()).collect();
    (of(&node.inputs), of(&node.outputs))
}
