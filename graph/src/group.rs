//! A fused group: pointwise primitives that run as one node, with the primitives as its body.
//!
//! A group is the unit that backends make one kernel of. Its body says what it computes and nothing about how: each result
//! element depends on one element of each operand (or, at the end, on one row), so that no intermediate needs memory.
//!
//! Invariants of a body, checked by [`Group::new`]:
//! - its inputs are the operands `0`, `1`, .. in order and its first values; its outputs are the results `0`, `1`, .., each
//!   made by another node;
//! - all nodes are primitives in the forward phase and the empty scope; all results have one shape, the group's, but those
//!   of reductions;
//! - a node is pointwise; or a constant; or a broadcast of an operand to the group's shape; or a reduction over the last
//!   axis, which no other node reads.

use crate::builder::Builder;
use crate::error::{GraphError, Result};
use crate::fused::{self, body_types, check_ends};
use crate::graph::{Def, Graph, Node, Phase, ValueId};
use crate::op::{Cost, Op};
use crate::prim::Prim;
use crate::types::TensorType;
use crate::verify::verify;
use std::sync::Arc;

/// Primitives that run as one node. Cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    body: Arc<Graph>,
}

/// Its name in `.kir` text.
pub const NAME: &str = "group";

impl Group {
    /// A group of this body.
    ///
    /// # Errors
    /// [`GraphError::Type`] if the body breaks an invariant.
    pub fn new(body: Graph) -> Result<Group> {
        check(&body).map_err(|m| GraphError::ty(NAME, m))?;
        Ok(Group { body: Arc::new(body) })
    }

    /// What it computes.
    pub fn body(&self) -> &Graph {
        &self.body
    }

    /// The shape of everything in the body but reductions and broadcast operands.
    pub fn dims(&self) -> &[usize] {
        shape(&self.body).unwrap_or(&[])
    }

    /// Result types for these operand types: exactly those of the body.
    ///
    /// # Errors
    /// [`GraphError::Type`] if the operands are others.
    pub fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let body = &self.body;
        body_types(NAME, body, inputs)?;
        Ok(body.outputs().iter().map(|o| body.ty(o.value).clone()).collect())
    }

    /// Work of one application: the arithmetic of the body; operands and results are moved once each.
    pub fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let flops = self.body.nodes().iter().map(|n| crate::cost::node_cost(&self.body, n).flops).sum();
        Cost::streaming(flops, inputs, outputs)
    }

    /// Appends the body's primitives; returns the results.
    ///
    /// # Errors
    /// If the operands do not fit.
    pub fn inline(&self, b: &mut Builder<'_>, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        fused::inline(&self.body, b, operands)
    }
}

/// Whether a primitive reduces the last axis, and no other, of an operand of this type.
pub fn reduces_rows(prim: &Prim, operand: &TensorType) -> bool {
    match prim {
        Prim::ReduceSum { axes } | Prim::ReduceMax { axes } => axes[..] == [operand.rank() - 1],
        _ => false,
    }
}

/// The shape of the first node's result, or of its operand if it is a reduction.
fn shape(body: &Graph) -> Option<&[usize]> {
    let node = body.nodes().first()?;
    let v = match &node.op {
        Op::Prim(Prim::ReduceSum { .. } | Prim::ReduceMax { .. }) => node.inputs.first()?,
        _ => node.outputs.first()?,
    };
    Some(&body.ty(*v).dims)
}

fn check(body: &Graph) -> std::result::Result<(), String> {
    verify(body).map_err(|e| e.to_string())?;
    let Some(shape) = shape(body) else { return Err("the body has no nodes".into()) };
    check_ends(body)?;
    body.nodes().iter().try_for_each(|node| check_node(body, node, shape))
}

fn check_node(body: &Graph, node: &Node, shape: &[usize]) -> std::result::Result<(), String> {
    let at = format!("%{} = {}", node.outputs[0].0, node.op.name());
    let Op::Prim(prim) = &node.op else { return Err(format!("{at} is no primitive")) };
    if node.phase != Phase::Forward || node.scope != 0 {
        return Err(format!("{at} has a phase or a scope of its own"));
    }
    let reduces = |v: ValueId| match made_by(body, v) {
        Some(maker) => matches!(maker.op, Op::Prim(Prim::ReduceSum { .. } | Prim::ReduceMax { .. })),
        None => false,
    };
    if node.inputs.iter().any(|&v| reduces(v)) {
        return Err(format!("{at} reads a reduction"));
    }
    let fits = match prim {
        Prim::Const { .. } => true,
        Prim::Broadcast { .. } => made_by(body, node.inputs[0]).is_none(),
        p if p.is_pointwise() => true,
        p => reduces_rows(p, body.ty(node.inputs[0])),
    };
    let reduction = matches!(prim, Prim::ReduceSum { .. } | Prim::ReduceMax { .. });
    let dims = &body.ty(if reduction { node.inputs[0] } else { node.outputs[0] }).dims;
    match fits {
        false => Err(format!("{at} cannot stand in a group")),
        true if dims != shape => Err(format!("{at} has shape {dims:?} in a group of {shape:?}")),
        true => Ok(()),
    }
}

fn made_by(body: &Graph, v: ValueId) -> Option<&Node> {
    match body.def(v) {
        Def::Node(id, _) => Some(body.node(id)),
        Def::Input(_) => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::op::Registry;
    use crate::text::{parse, print};

    /// A graph with one group of this body over `f32[2,3]` and `f32[1,3]`.
    fn group(body: &str) -> crate::Result<crate::Graph> {
        let text = format!(
            "graph g {{\n  %0: f32[2,3] = data \"x\"\n  %1: f32[1,3] = data \"y\"\n  %2: f32[2,3] = group(%0, %1) \
             @forward \"s\" {{\n    %0: f32[2,3], %1: f32[1,3] = operands\n{body}  }}\n  output \"z\" = %2\n}}\n"
        );
        let graph = parse(&text, &Registry::default())?;
        crate::verify::verify(&graph)?;
        assert_eq!(print(&graph), text);
        Ok(graph)
    }

    #[test]
    fn a_body_is_printed_and_read_back() {
        group("    %2: f32[2,3] = broadcast(%1)\n    %3: f32[2,3] = mul(%0, %2)\n    results %3\n").unwrap();
    }

    #[test]
    fn what_cannot_be_in_a_group_is_refused() {
        let error = |body: &str| group(body).unwrap_err().to_string();
        let moves = "    %2: f32[3,2] = transpose(%0) {perm=[1,0]}\n    results %2\n";
        assert!(error(moves).ends_with("%2 = transpose cannot stand in a group"), "{}", error(moves));
        let shapes = "    %2: f32[2,3] = neg(%0)\n    %3: f32[1,3] = neg(%1)\n    results %2\n";
        assert!(
            error(shapes).ends_with("%3 = neg has shape [1, 3] in a group of [2, 3]"),
            "{}",
            error(shapes)
        );
        let reduced =
            "    %2: f32[2,1] = reduce_sum(%0) {axes=[1]}\n    %3: f32[2,1] = neg(%2)\n    results %3\n";
        assert!(error(reduced).ends_with("%3 = neg reads a reduction"), "{}", error(reduced));
        let columns = "    %2: f32[1,3] = reduce_sum(%0) {axes=[0]}\n    results %2\n";
        assert!(error(columns).ends_with("%2 = reduce_sum cannot stand in a group"), "{}", error(columns));
        assert!(error("    results %0\n").ends_with("the body has no nodes"));
        let other = "    %2: bf16[2,3] = cast(%0)\n    results %2\n";
        assert!(
            error(other).contains("result 0 is bf16[2,3], but %2 is recorded as f32[2,3]"),
            "{}",
            error(other)
        );
        assert!(error("    %2: f32[2,3] = group(%0)\n").contains("no primitive `group`"));
    }
}
