//! Reverse-mode differentiation: appends the backward pass to a graph.
//!
//! Invariants:
//! - only values on a path from `wrt` to a seed get a gradient; frozen weights cause no work;
//! - a backward node has [`Phase::Backward`] and the scope of the forward node it belongs to;
//! - existing nodes and ids stay as they are.
//!
//! The gradient of a value is any float tensor of its shape (gradients of weights are `f32` whatever the weight is); sums
//! of gradients of different types are taken in `f32`. Before an operation is differentiated the gradient of its result is
//! cast to the type of the result.

use crate::builder::Builder;
use crate::error::{GraphError, Result};
use crate::graph::{Def, Graph, Node, Phase, ValueId};
use crate::op::{Op, Vjp, VjpArgs};
use crate::prim::{CmpOp, Prim};
use crate::types::DType;
use std::ops::Range;

/// Decompositions may contain composites; a chain longer than this is taken for an endless one.
const MAX_DEPTH: usize = 32;

/// Differentiates: `seeds` are values with their incoming gradients, the result is the gradient of each of `wrt`
/// (`None` where no seed depends on it).
///
/// # Errors
/// [`GraphError::Gradient`] if a needed gradient passes an operation that has none, a seed does not fit its value, or an
/// explicit gradient is malformed.
pub fn backward(
    graph: &mut Graph,
    seeds: &[(ValueId, ValueId)],
    wrt: &[ValueId],
) -> Result<Vec<Option<ValueId>>> {
    let mut b = Builder::new(graph);
    b.phase = Phase::Backward;
    let values = b.graph().value_count();
    let mut tape = Tape { b, needs: vec![false; values], grads: vec![None; values] };
    wrt.iter().for_each(|v| tape.needs[v.index()] = true);
    let nodes = 0..tape.b.graph().nodes().len();
    tape.mark(nodes.clone());
    for &(value, grad) in seeds {
        tape.accumulate(value, grad)
            .map_err(|e| GraphError::Gradient(format!("seed of %{}: {e}", value.0)))?;
    }
    tape.sweep(nodes, 0)?;
    Ok(wrt.iter().map(|v| tape.grads[v.index()]).collect())
}

/// State of one differentiation: per value, whether it needs a gradient and the gradient so far.
struct Tape<'g> {
    b: Builder<'g>,
    needs: Vec<bool>,
    grads: Vec<Option<ValueId>>,
}

impl Tape<'_> {
    /// Forward over `nodes`: a float result needs a gradient if an operand does.
    fn mark(&mut self, nodes: Range<usize>) {
        let graph = self.b.graph();
        self.needs.resize(graph.value_count(), false);
        self.grads.resize(graph.value_count(), None);
        for node in &graph.nodes()[nodes] {
            if node.inputs.iter().any(|v| self.needs[v.index()]) {
                for v in &node.outputs {
                    self.needs[v.index()] = graph.ty(*v).dtype.is_float();
                }
            }
        }
    }

    /// Adds `grad` to the gradient of `value`, if that needs one.
    fn accumulate(&mut self, value: ValueId, grad: ValueId) -> Result<()> {
        if !self.needs[value.index()] {
            return Ok(());
        }
        let (want, got) = (self.b.ty(value), self.b.ty(grad));
        if want.dims != got.dims || !got.dtype.is_float() {
            return Err(GraphError::Gradient(format!("the gradient of a {want} is a {got}")));
        }
        let sum = match self.grads[value.index()] {
            None => grad,
            Some(old) if self.b.ty(old).dtype == self.b.ty(grad).dtype => self.b.add(old, grad)?,
            Some(old) => {
                let (old, new) = (self.b.cast(old, DType::F32)?, self.b.cast(grad, DType::F32)?);
                self.b.add(old, new)?
            }
        };
        self.grads[value.index()] = Some(sum);
        Ok(())
    }

    /// Backward over `nodes`, from the gradients of their results to those of their operands.
    fn sweep(&mut self, nodes: Range<usize>, depth: usize) -> Result<()> {
        for i in nodes.rev() {
            let node = &self.b.graph().nodes()[i];
            let flows = node.outputs.iter().any(|v| self.grads[v.index()].is_some());
            if !flows || !node.inputs.iter().any(|v| self.needs[v.index()]) {
                continue;
            }
            let node = node.clone();
            self.b.set_scope_index(node.scope);
            let grads = self.result_grads(&node)?;
            self.differentiate(&node, &grads, depth).map_err(|e| {
                let at = format!("%{} = {}", node.outputs[0].0, node.op.name());
                match e {
                    // Already placed: it comes from inside a decomposition.
                    GraphError::Gradient(m) if m.starts_with('%') => GraphError::Gradient(m),
                    GraphError::Gradient(m) => GraphError::Gradient(format!("{at}: {m}")),
                    e => GraphError::Gradient(format!("{at}: {e}")),
                }
            })?;
        }
        Ok(())
    }

    /// The gradient of each result, in the type of the result.
    fn result_grads(&mut self, node: &Node) -> Result<Vec<Option<ValueId>>> {
        let grad = |v: &ValueId| match self.grads[v.index()] {
            None => Ok(None),
            Some(g) => {
                let dtype = self.b.ty(*v).dtype;
                self.b.cast(g, dtype).map(Some)
            }
        };
        node.outputs.iter().map(grad).collect()
    }

    fn differentiate(&mut self, node: &Node, grads: &[Option<ValueId>], depth: usize) -> Result<()> {
        let needs: Vec<bool> = node.inputs.iter().map(|v| self.needs[v.index()]).collect();
        let operand_grads = match &node.op {
            Op::Prim(p) => match grads[0] {
                Some(g) => prim_vjp(&mut self.b, p, &node.inputs, node.outputs[0], g, &needs)?,
                None => return Ok(()),
            },
            Op::Group(_) | Op::Fused(_) => return self.via_decompose(node, grads, depth),
            Op::Composite(c) => match c.def.vjp() {
                Vjp::Zero => return Err(GraphError::Gradient("this operation has no gradient".into())),
                Vjp::ViaDecompose => return self.via_decompose(node, grads, depth),
                Vjp::Explicit(f) => {
                    let (inputs, outputs) = (&node.inputs[..], &node.outputs[..]);
                    f(&mut self.b, &VjpArgs { attrs: &c.attrs, inputs, outputs, grads, needs: &needs })?
                }
            },
        };
        if operand_grads.len() != node.inputs.len() {
            let (want, got) = (node.inputs.len(), operand_grads.len());
            return Err(GraphError::Gradient(format!("{got} gradients for {want} operands")));
        }
        for (&v, grad) in node.inputs.iter().zip(operand_grads) {
            if let Some(g) = grad {
                self.accumulate(v, g)?;
            }
        }
        Ok(())
    }

    /// Emits the decomposition once more, in the backward phase, and differentiates that. Its operands are the
    /// node's own, so their gradients arrive where they belong.
    fn via_decompose(&mut self, node: &Node, grads: &[Option<ValueId>], depth: usize) -> Result<()> {
        if depth == MAX_DEPTH {
            return Err(GraphError::Gradient("the decomposition does not end".into()));
        }
        let start = self.b.graph().nodes().len();
        let results = match &node.op {
            Op::Composite(c) => c.def.decompose(&mut self.b, &c.attrs, &node.inputs)?,
            Op::Group(g) => g.inline(&mut self.b, &node.inputs)?,
            Op::Fused(f) => f.inline(&mut self.b, &node.inputs)?,
            Op::Prim(_) => return Ok(()),
        };
        let body = start..self.b.graph().nodes().len();
        self.mark(body.clone());
        for (&v, &grad) in results.iter().zip(grads) {
            if let Some(g) = grad {
                self.accumulate(v, g)?;
            }
        }
        self.sweep(body, depth + 1)
    }
}

/// The table of primitive gradients: `y = prim(x)`, `g` the gradient of `y`; one entry an operand.
fn prim_vjp(
    b: &mut Builder<'_>,
    prim: &Prim,
    x: &[ValueId],
    y: ValueId,
    g: ValueId,
    needs: &[bool],
) -> Result<Vec<Option<ValueId>>> {
    let dims = |b: &Builder<'_>, i: usize| b.ty(x[i]).dims.clone();
    let need = |i: usize| needs.get(i).copied().unwrap_or(false);
    let one = |r: Result<ValueId>| r.map(|v| vec![Some(v)]);
    match prim {
        Prim::Const { .. } | Prim::Iota { .. } | Prim::Random { .. } | Prim::Compare(_) => {
            Ok(vec![None; x.len()])
        }
        Prim::Neg => one(b.neg(g)),
        Prim::Exp => one(b.mul(g, y)),
        Prim::Log => one(b.div(g, x[0])),
        Prim::Sqrt => {
            let twice = b.scale(y, 2.0)?;
            one(b.div(g, twice))
        }
        Prim::Sigmoid => {
            let one_ = b.full_like(y, 1.0)?;
            let rest = b.sub(one_, y)?;
            let slope = b.mul(y, rest)?;
            one(b.mul(g, slope))
        }
        Prim::Erf => {
            // 2/√π · e^(-x²)
            let square = b.mul(x[0], x[0])?;
            let power = b.neg(square)?;
            let bell = b.exp(power)?;
            let slope = b.scale(bell, std::f64::consts::FRAC_2_SQRT_PI)?;
            one(b.mul(g, slope))
        }
        Prim::Cast(_) => {
            let dtype = b.ty(x[0]).dtype;
            if dtype.is_float() { one(b.cast(g, dtype)) } else { Ok(vec![None]) }
        }
        Prim::Add => Ok(vec![Some(g), Some(g)]),
        Prim::Sub => Ok(vec![Some(g), if need(1) { Some(b.neg(g)?) } else { None }]),
        Prim::Mul => {
            let da = if need(0) { Some(b.mul(g, x[1])?) } else { None };
            let db = if need(1) { Some(b.mul(g, x[0])?) } else { None };
            Ok(vec![da, db])
        }
        Prim::Div => {
            let da = b.div(g, x[1])?;
            if !need(1) {
                return Ok(vec![Some(da), None]);
            }
            let day = b.mul(da, y)?;
            Ok(vec![Some(da), Some(b.neg(day)?)])
        }
        Prim::Max => {
            // Ties go to the first operand.
            let first = b.compare(CmpOp::Le, x[1], x[0])?;
            route(b, first, g, need(0), need(1)).map(|[da, db]| vec![da, db])
        }
        Prim::Select => route(b, x[0], g, need(1), need(2)).map(|[da, db]| vec![None, da, db]),
        Prim::Reshape { .. } => one(b.reshape(g, &dims(b, 0))),
        Prim::Transpose { perm } => {
            let mut inverse = vec![0; perm.len()];
            perm.iter().enumerate().for_each(|(i, &p)| inverse[p] = i);
            one(b.transpose(g, &inverse))
        }
        Prim::Broadcast { dims: to } => {
            let from = dims(b, 0);
            let axes: Vec<usize> = (0..to.len()).filter(|&i| from[i] != to[i]).collect();
            if axes.is_empty() { Ok(vec![Some(g)]) } else { one(b.reduce_sum(g, &axes)) }
        }
        Prim::Slice { axis, start, end } => {
            let hi = dims(b, 0)[*axis] - end;
            one(b.prim(Prim::Pad { axis: *axis, lo: *start, hi }, &[g]))
        }
        Prim::Pad { axis, lo, .. } => one(b.slice(g, *axis, *lo, lo + dims(b, 0)[*axis])),
        Prim::Concat { axis } => {
            let mut start = 0;
            (0..x.len())
                .map(|i| {
                    let end = start + dims(b, i)[*axis];
                    let part = if need(i) { Some(b.slice(g, *axis, start, end)?) } else { None };
                    start = end;
                    Ok(part)
                })
                .collect()
        }
        Prim::ReduceSum { .. } => one(b.broadcast(g, &dims(b, 0))),
        Prim::ReduceMax { axes } => {
            // Ties share evenly.
            let (to, dtype) = (dims(b, 0), b.ty(x[0]).dtype);
            let top = b.broadcast(y, &to)?;
            let hit = b.compare(CmpOp::Eq, x[0], top)?;
            let hit = b.cast(hit, dtype)?;
            let count = b.reduce_sum(hit, axes)?;
            let share = b.div(g, count)?;
            let share = b.broadcast(share, &to)?;
            one(b.mul(hit, share))
        }
        Prim::MatMul { ta, tb, .. } => {
            let [left, right] = [x[0], x[1]];
            let (da_type, db_type) = (leaf_f32(b, left), leaf_f32(b, right));
            let da = match (need(0), ta) {
                (false, _) => None,
                (true, false) => Some(b.matmul(g, right, false, !tb, da_type)?),
                (true, true) => Some(b.matmul(right, g, *tb, true, da_type)?),
            };
            let db = match (need(1), tb) {
                (false, _) => None,
                (true, false) => Some(b.matmul(left, g, !ta, false, db_type)?),
                (true, true) => Some(b.matmul(g, left, true, *ta, db_type)?),
            };
            Ok(vec![da, db])
        }
        Prim::Gather => {
            let rows = dims(b, 0)[0];
            Ok(vec![Some(b.prim(Prim::ScatterAdd { rows }, &[x[1], g])?), None])
        }
        Prim::ScatterAdd { .. } => {
            let dtype = b.ty(x[1]).dtype;
            let rows = b.prim(Prim::Gather, &[g, x[0]])?;
            Ok(vec![None, Some(b.cast(rows, dtype)?)])
        }
    }
}

/// `g` where `cond`, and `g` where not.
fn route(
    b: &mut Builder<'_>,
    cond: ValueId,
    g: ValueId,
    then: bool,
    other: bool,
) -> Result<[Option<ValueId>; 2]> {
    let zero = b.full_like(g, 0.0)?;
    let da = if then { Some(b.select(cond, g, zero)?) } else { None };
    let db = if other { Some(b.select(cond, zero, g)?) } else { None };
    Ok([da, db])
}

/// Gradients of graph inputs (weights) are `f32`; those of activations keep the activation's type.
fn leaf_f32(b: &mut Builder<'_>, v: ValueId) -> DType {
    match b.graph().def(v) {
        Def::Input(_) => DType::F32,
        Def::Node(..) => b.ty(v).dtype,
    }
}
