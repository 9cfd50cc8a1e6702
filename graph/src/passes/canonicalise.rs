//! Brings primitives to a normal form: one way to say a thing, so that CSE, matching and fusion see it.
//!
//! Every rule keeps the result bit for bit for finite values, except that `x + 0` and a sum of one element may keep a
//! negative zero. Constants are folded in `f64`, the precision of the interpreter, and only where no rounding between
//! narrower types is lost.

use super::Rewriter;
use crate::error::Result;
use crate::graph::{Def, Graph, InputKind, Node, ValueId};
use crate::interp;
use crate::op::Op;
use crate::prim::Prim;
use crate::types::{DType, TensorType};

/// The graph in normal form. Nodes that nothing uses any more are left for DCE.
///
/// # Errors
/// Only if the graph is invalid.
pub fn run(graph: &Graph) -> Result<Graph> {
    let mut r = Rewriter::new(graph);
    let mut is_output = vec![false; graph.value_count()];
    graph.outputs().iter().for_each(|o| is_output[o.value.index()] = true);
    for node in graph.nodes() {
        match &node.op {
            Op::Composite(_) | Op::Group(_) | Op::Fused(_) => r.keep(node),
            Op::Prim(prim) => {
                let operands = r.values(&node.inputs);
                let ty = graph.ty(node.outputs[0]);
                let new = normal_form(&mut r, node, prim.clone(), operands, ty)?;
                // A state cannot be an output itself: its storage may take a new value before outputs are read.
                if is_output[node.outputs[0].index()] && is_state(&r.to, new) {
                    r.keep(node);
                } else {
                    r.replace(node.outputs[0], new);
                }
            }
        }
    }
    Ok(r.finish())
}

fn is_state(g: &Graph, v: ValueId) -> bool {
    matches!(g.def(v), Def::Input(i) if g.inputs()[i as usize].kind == InputKind::State)
}

/// What a rule makes of an application.
enum Step {
    /// It is this value.
    Same(ValueId),
    /// It is a constant.
    Constant(f64),
    /// It is this application.
    Apply(Prim, Vec<ValueId>),
    /// It is this primitive of the value and a constant of its type.
    WithConstant(Prim, ValueId, f64),
}

/// Applies rules until none fits. Each makes the term smaller or moves it towards the normal form, so this ends; the
/// bound only guards against a mistake in the table.
fn normal_form(
    r: &mut Rewriter<'_>,
    node: &Node,
    mut prim: Prim,
    mut x: Vec<ValueId>,
    ty: &TensorType,
) -> Result<ValueId> {
    for _ in 0..16 {
        match rule(&r.to, &prim, &x, ty) {
            None => break,
            Some(Step::Same(v)) => return Ok(v),
            Some(Step::Constant(value)) => return r.at(node).constant(ty.clone(), value),
            Some(Step::Apply(p, operands)) => (prim, x) = (p, operands),
            Some(Step::WithConstant(p, v, value)) => {
                let c = r.at(node).full_like(v, value)?;
                (prim, x) = (p, vec![v, c]);
            }
        }
    }
    r.at(node).prim(prim, &x)
}

/// The primitive and operands that make a value.
fn made_by(g: &Graph, v: ValueId) -> Option<(&Prim, &[ValueId])> {
    match g.def(v) {
        Def::Input(_) => None,
        Def::Node(id, _) => match &g.node(id).op {
            Op::Prim(p) => Some((p, &g.node(id).inputs)),
            Op::Composite(_) | Op::Group(_) | Op::Fused(_) => None,
        },
    }
}

/// The value of a constant.
fn constant(g: &Graph, v: ValueId) -> Option<f64> {
    match made_by(g, v) {
        Some((Prim::Const { value, .. }, _)) => Some(*value),
        _ => None,
    }
}

fn rule(g: &Graph, prim: &Prim, x: &[ValueId], ty: &TensorType) -> Option<Step> {
    if prim.is_pointwise() {
        fold(g, prim, x, ty).or_else(|| pointwise(g, prim, x))
    } else {
        movement(g, prim, x, ty).or_else(|| reduction(g, prim, x))
    }
}

/// A pointwise primitive of constants is a constant.
fn fold(g: &Graph, prim: &Prim, x: &[ValueId], ty: &TensorType) -> Option<Step> {
    let values: Vec<f64> = x.iter().map(|&v| constant(g, v)).collect::<Option<_>>()?;
    // A narrow constant is rounded when it is made; folding would skip that unless nothing is rounded.
    let narrow = |d: DType| matches!(d, DType::Bf16 | DType::F16);
    let exact = |v: f64| v.fract() == 0.0 && v.abs() <= 256.0;
    let rounds = match prim {
        Prim::Cast(_) => narrow(g.ty(x[0]).dtype) && !exact(values[0]),
        Prim::Neg | Prim::Select | Prim::Max => false,
        _ => narrow(ty.dtype) || x.iter().any(|&v| narrow(g.ty(v).dtype)),
    };
    let types: Vec<DType> = x.iter().map(|&v| g.ty(v).dtype).collect();
    let value = interp::pointwise(prim, &values, &types, ty.dtype)?;
    if rounds || !value.is_finite() { None } else { Some(Step::Constant(value)) }
}

fn pointwise(g: &Graph, prim: &Prim, x: &[ValueId]) -> Option<Step> {
    let constant = |i: usize| constant(g, x[i]);
    let made_by = |i: usize| made_by(g, x[i]);
    let float = g.ty(x[0]).dtype.is_float();
    match prim {
        Prim::Neg => match made_by(0)? {
            (Prim::Neg, inner) => Some(Step::Same(inner[0])),
            _ => None,
        },
        Prim::Cast(to) => match made_by(0) {
            _ if g.ty(x[0]).dtype == *to => Some(Step::Same(x[0])),
            Some((Prim::Cast(DType::F32), inner)) if g.ty(inner[0]).dtype.is_float() => {
                Some(Step::Apply(Prim::Cast(*to), inner.to_vec()))
            }
            _ => None,
        },
        // Constants stand on the right of what commutes.
        Prim::Add | Prim::Mul if constant(0).is_some() && constant(1).is_none() => {
            Some(Step::Apply(prim.clone(), vec![x[1], x[0]]))
        }
        Prim::Add => match (constant(1), made_by(1)) {
            (Some(0.0), _) => Some(Step::Same(x[0])),
            (_, Some((Prim::Neg, inner))) => Some(Step::Apply(Prim::Sub, vec![x[0], inner[0]])),
            _ => None,
        },
        Prim::Sub => match (constant(1), made_by(1)) {
            (Some(0.0), _) => Some(Step::Same(x[0])),
            (Some(c), _) if float => Some(Step::WithConstant(Prim::Add, x[0], -c)),
            (_, Some((Prim::Neg, inner))) => Some(Step::Apply(Prim::Add, vec![x[0], inner[0]])),
            _ => None,
        },
        Prim::Mul => match constant(1)? {
            1.0 => Some(Step::Same(x[0])),
            -1.0 if float => Some(Step::Apply(Prim::Neg, vec![x[0]])),
            _ => None,
        },
        Prim::Div => match constant(1)? {
            1.0 => Some(Step::Same(x[0])),
            c if float && small_power_of_two(c) => Some(Step::WithConstant(Prim::Mul, x[0], 1.0 / c)),
            _ => None,
        },
        Prim::Max if x[0] == x[1] => Some(Step::Same(x[0])),
        Prim::Select if x[1] == x[2] => Some(Step::Same(x[1])),
        Prim::Select => constant(0).map(|c| Step::Same(if c != 0.0 { x[1] } else { x[2] })),
        _ => None,
    }
}

/// Powers of two whose reciprocal is normal in every float type, `f16` included.
fn small_power_of_two(c: f64) -> bool {
    let mantissa = c.to_bits() & ((1 << 52) - 1);
    mantissa == 0 && (2f64.powi(-14)..=2f64.powi(14)).contains(&c.abs())
}

fn movement(g: &Graph, prim: &Prim, x: &[ValueId], ty: &TensorType) -> Option<Step> {
    let from = || &g.ty(x[0]).dims;
    let inner = x.first().and_then(|&v| made_by(g, v));
    let moves = matches!(
        prim,
        Prim::Reshape { .. } | Prim::Transpose { .. } | Prim::Broadcast { .. } | Prim::Slice { .. }
    );
    if moves && let Some((Prim::Const { value, .. }, _)) = inner {
        return Some(Step::Constant(*value));
    }
    match (prim, inner) {
        (Prim::Reshape { .. } | Prim::Broadcast { .. } | Prim::Slice { .. } | Prim::Pad { .. }, _)
            if *from() == ty.dims =>
        {
            Some(Step::Same(x[0]))
        }
        (Prim::Concat { .. }, _) if x.len() == 1 => Some(Step::Same(x[0])),
        (Prim::Reshape { .. }, Some((Prim::Reshape { .. }, inner)))
        | (Prim::Broadcast { .. }, Some((Prim::Broadcast { .. }, inner))) => {
            Some(Step::Apply(prim.clone(), inner.to_vec()))
        }
        (Prim::Transpose { perm }, _) if perm.iter().enumerate().all(|(i, &p)| i == p) => {
            Some(Step::Same(x[0]))
        }
        (Prim::Transpose { perm }, Some((Prim::Transpose { perm: first }, inner))) => {
            let perm = perm.iter().map(|&p| first[p]).collect();
            Some(Step::Apply(Prim::Transpose { perm }, inner.to_vec()))
        }
        // Moving axes of extent 1 about moves no element.
        (Prim::Transpose { perm }, _) if in_order(perm, from()) => {
            Some(Step::Apply(Prim::Reshape { dims: ty.dims.clone() }, x.to_vec()))
        }
        (Prim::MatMul { ta, tb, out }, _) => {
            if let Some(v) = transposed_matrix(g, x[0]) {
                Some(Step::Apply(Prim::MatMul { ta: !ta, tb: *tb, out: *out }, vec![v, x[1]]))
            } else {
                let v = transposed_matrix(g, x[1])?;
                Some(Step::Apply(Prim::MatMul { ta: *ta, tb: !tb, out: *out }, vec![x[0], v]))
            }
        }
        _ => None,
    }
}

fn in_order(perm: &[usize], dims: &[usize]) -> bool {
    let long: Vec<usize> = perm.iter().copied().filter(|&p| dims[p] != 1).collect();
    long.windows(2).all(|w| w[0] < w[1])
}

/// The operand of a transpose that swaps just the last two axes.
fn transposed_matrix(g: &Graph, v: ValueId) -> Option<ValueId> {
    let (Prim::Transpose { perm }, inner) = made_by(g, v)? else { return None };
    let r = perm.len();
    let swaps = r >= 2
        && perm[r - 2] == r - 1
        && perm[r - 1] == r - 2
        && perm[..r - 2].iter().enumerate().all(|(i, &p)| i == p);
    swaps.then(|| inner[0])
}

/// Reducing an axis of extent 1 does nothing.
fn reduction(g: &Graph, prim: &Prim, x: &[ValueId]) -> Option<Step> {
    let (Prim::ReduceSum { axes } | Prim::ReduceMax { axes }) = prim else { return None };
    let dims = &g.ty(x[0]).dims;
    let long: Vec<usize> = axes.iter().copied().filter(|&a| dims[a] != 1).collect();
    match long.len() {
        0 => Some(Step::Same(x[0])),
        n if n == axes.len() => None,
        _ => {
            let axes = long;
            let max = matches!(prim, Prim::ReduceMax { .. });
            let prim = if max { Prim::ReduceMax { axes } } else { Prim::ReduceSum { axes } };
            Some(Step::Apply(prim, x.to_vec()))
        }
    }
}
