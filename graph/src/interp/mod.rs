//! The meaning of a graph: a plain f64 interpreter.
//!
//! Every float type is computed in `f64` without rounding, so a result is what a kernel would give with infinite
//! precision; [`crate::Prim::Random`] gives exactly its `f32` values. `i32` values are exact and wrap.
//! A composite means what its decomposition means. Speed does not matter here, clarity does.

mod erf;
pub mod philox;
mod prims;

pub use erf::erf;
pub use philox::{philox4x32, uniform_block};

use crate::error::{GraphError, Result};
use crate::graph::{Graph, Node, ValueId};
use crate::op::{self, Op};
use crate::prim::Prim;
use crate::types::{DType, TensorType};
use std::borrow::Cow;

/// Decompositions may contain composites; a chain longer than this is taken for an endless one.
const MAX_DEPTH: usize = 32;

/// A dense row-major tensor of any element type, held as `f64`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Extent of each axis.
    pub dims: Vec<usize>,
    /// Elements, row-major.
    pub data: Vec<f64>,
}

impl Tensor {
    /// A tensor of these elements.
    pub fn new(dims: impl Into<Vec<usize>>, data: impl Into<Vec<f64>>) -> Self {
        Tensor { dims: dims.into(), data: data.into() }
    }

    /// A tensor filled with `value`.
    pub fn full(dims: &[usize], value: f64) -> Self {
        Tensor { dims: dims.to_vec(), data: vec![value; dims.iter().product()] }
    }

    /// A `[1]` tensor.
    pub fn scalar(value: f64) -> Self {
        Tensor { dims: vec![1], data: vec![value] }
    }
}

/// Runs a graph; `inputs` stand in the order of [`Graph::inputs`]. Returns its outputs in order.
///
/// # Errors
/// [`GraphError::Interp`] if the inputs do not fit, an id is out of range or an integer is divided by zero.
pub fn run(graph: &Graph, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    let wanted: Vec<ValueId> = graph.outputs().iter().map(|o| o.value).collect();
    run_values(graph, inputs, &wanted)
}

/// Runs a graph and returns any of its values.
///
/// # Errors
/// As [`run`].
pub fn run_values(graph: &Graph, inputs: &[Tensor], wanted: &[ValueId]) -> Result<Vec<Tensor>> {
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    run_at_depth(graph, &inputs, wanted, 0)
}

/// A pointwise primitive of single elements; `None` if it is no pointwise primitive or has no result.
pub(crate) fn pointwise(prim: &Prim, operands: &[f64], types: &[DType], result: DType) -> Option<f64> {
    if !prim.is_pointwise() {
        return None;
    }
    let types: Vec<TensorType> = types.iter().map(|&t| TensorType::new(t, [1])).collect();
    let operands: Vec<Tensor> = operands.iter().map(|&v| Tensor::scalar(v)).collect();
    let operands: Vec<&Tensor> = operands.iter().collect();
    let result = TensorType::new(result, [1]);
    prims::eval(prim, &operands, &types.iter().collect::<Vec<_>>(), &result).ok()?.data.first().copied()
}

fn run_at_depth(graph: &Graph, inputs: &[&Tensor], wanted: &[ValueId], depth: usize) -> Result<Vec<Tensor>> {
    let mut values: Vec<Option<Cow<'_, Tensor>>> = vec![None; graph.value_count()];
    bind(graph, inputs, &mut values)?;

    let (needed, mut uses) = needed_nodes(graph, wanted);
    for (node, needed) in graph.nodes().iter().zip(needed) {
        if !needed {
            continue;
        }
        let operands: Vec<&Tensor> = node.inputs.iter().map(|&v| get(&values, v)).collect::<Result<_>>()?;
        let types: Vec<&TensorType> = node.inputs.iter().map(|&v| graph.ty(v)).collect();
        let results = eval(graph, node, &operands, &types, depth)?;
        for (&v, t) in node.outputs.iter().zip(results) {
            values[v.index()] = Some(Cow::Owned(t));
        }
        for &v in &node.inputs {
            uses[v.index()] -= 1;
            if uses[v.index()] == 0 {
                values[v.index()] = None;
            }
        }
    }
    wanted.iter().map(|&v| get(&values, v).cloned()).collect()
}

/// Which nodes the wanted values need, and how often each value is read (a wanted value once more).
fn needed_nodes(graph: &Graph, wanted: &[ValueId]) -> (Vec<bool>, Vec<u32>) {
    let mut uses = vec![0; graph.value_count()];
    wanted.iter().for_each(|v| uses[v.index()] += 1);
    let mut needed = vec![false; graph.nodes().len()];
    for (i, node) in graph.nodes().iter().enumerate().rev() {
        needed[i] = node.outputs.iter().any(|v| uses[v.index()] > 0);
        if needed[i] {
            node.inputs.iter().for_each(|v| uses[v.index()] += 1);
        }
    }
    (needed, uses)
}

fn bind<'a>(graph: &Graph, inputs: &[&'a Tensor], values: &mut [Option<Cow<'a, Tensor>>]) -> Result<()> {
    if inputs.len() != graph.inputs().len() {
        let (want, got) = (graph.inputs().len(), inputs.len());
        return Err(GraphError::Interp(format!("graph {} has {want} inputs, {got} were given", graph.name)));
    }
    for (input, &tensor) in graph.inputs().iter().zip(inputs) {
        let ty = graph.ty(input.value);
        if ty.dims != tensor.dims || ty.elements() != tensor.data.len() {
            let (dims, n) = (&tensor.dims, tensor.data.len());
            let m = format!("input \"{}\" is {ty}, given was {dims:?} with {n} elements", input.name);
            return Err(GraphError::Interp(m));
        }
        values[input.value.index()] = Some(Cow::Borrowed(tensor));
    }
    Ok(())
}

fn get<'a>(values: &'a [Option<Cow<'_, Tensor>>], v: ValueId) -> Result<&'a Tensor> {
    values[v.index()]
        .as_deref()
        .ok_or_else(|| GraphError::Interp(format!("%{} is used before it is defined", v.0)))
}

fn eval(
    graph: &Graph,
    node: &Node,
    operands: &[&Tensor],
    types: &[&TensorType],
    depth: usize,
) -> Result<Vec<Tensor>> {
    match &node.op {
        Op::Prim(p) => {
            let result = node.outputs[0];
            let t = prims::eval(p, operands, types, graph.ty(result)).map_err(|m| {
                GraphError::Interp(format!("%{} = {} in \"{}\": {m}", result.0, p.name(), graph.scope(node)))
            })?;
            Ok(vec![t])
        }
        Op::Fused(f) => {
            let wanted: Vec<ValueId> = f.body().outputs().iter().map(|o| o.value).collect();
            run_at_depth(f.body(), operands, &wanted, depth + 1)
        }
        Op::Group(g) => {
            let wanted: Vec<ValueId> = g.body().outputs().iter().map(|o| o.value).collect();
            run_at_depth(g.body(), operands, &wanted, depth + 1)
        }
        Op::Composite(c) => {
            if depth == MAX_DEPTH {
                return Err(GraphError::Interp(format!("{}: the decomposition does not end", c.def.name())));
            }
            let types: Vec<TensorType> = types.iter().map(|&t| t.clone()).collect();
            let body = op::decomposition(c, &types)?;
            let wanted: Vec<ValueId> = body.outputs().iter().map(|o| o.value).collect();
            run_at_depth(&body, operands, &wanted, depth + 1)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
