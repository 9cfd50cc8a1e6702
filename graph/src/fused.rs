//! Operations that one kernel runs: a product and what is done to its result before it is written, with these operations as
//! its body.
//!
//! A fused node means its body, one operation after the other, in their own types: where it is taken apart, no bit of a result
//! changes. What may stand together is a backend's business ([`crate::passes::fuse_products`] asks it); values of the body that
//! are no results never go to memory.
//!
//! Invariants of a body, checked by [`Fused::new`]:
//! - its inputs are the operands `0`, `1`, .. in order and its first values; its outputs are the results `0`, `1`, .., each
//!   made by a node, no value twice;
//! - nodes are primitives and composites in the forward phase and the empty scope, one composite at least.

use crate::builder::Builder;
use crate::cost::node_cost;
use crate::error::{GraphError, Result};
use crate::graph::{Def, Graph, InputKind, Phase, ValueId};
use crate::op::{Cost, Op};
use crate::types::TensorType;
use crate::verify::verify;
use std::sync::Arc;

/// Operations that run as one node. Cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub struct Fused {
    body: Arc<Graph>,
}

/// Its name in `.kir` text.
pub const NAME: &str = "fused";

impl Fused {
    /// A fused node of this body.
    ///
    /// # Errors
    /// [`GraphError::Type`] if the body breaks an invariant.
    pub fn new(body: Graph) -> Result<Fused> {
        check(&body).map_err(|m| GraphError::ty(NAME, m))?;
        Ok(Fused { body: Arc::new(body) })
    }

    /// What it computes.
    pub fn body(&self) -> &Graph {
        &self.body
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

    /// Work of one application: that of all its operations, but for what of their memory traffic falls away. Values inside are
    /// neither written nor read; an operand that several operations read is read once.
    pub fn cost(&self) -> Cost {
        let body = &self.body;
        let mut cost = Cost::default();
        let mut reads = vec![0u64; body.value_count()];
        for node in body.nodes() {
            let of = node_cost(body, node);
            cost.flops += of.flops;
            cost.bytes += of.bytes;
            node.inputs.iter().for_each(|v| reads[v.index()] += 1);
        }
        let mut is_result = vec![false; body.value_count()];
        body.outputs().iter().for_each(|o| is_result[o.value.index()] = true);
        let saved = |v: ValueId| {
            let moves = match body.def(v) {
                Def::Input(_) => reads[v.index()].saturating_sub(1),
                Def::Node(..) => reads[v.index()] + u64::from(!is_result[v.index()]),
            };
            moves * body.ty(v).bytes() as u64
        };
        let saved: u64 = (0..body.value_count() as u32).map(|v| saved(ValueId(v))).sum();
        cost.bytes = cost.bytes.saturating_sub(saved);
        cost
    }

    /// Appends the body's operations; returns the results.
    ///
    /// # Errors
    /// If the operands do not fit.
    pub fn inline(&self, b: &mut Builder<'_>, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        inline(&self.body, b, operands)
    }
}

/// Whether operands are of the types that a body says, for an operation of this name.
pub(crate) fn body_types(name: &str, body: &Graph, inputs: &[TensorType]) -> Result<()> {
    if inputs.len() != body.inputs().len() {
        let m = format!("takes {} operands, got {}", body.inputs().len(), inputs.len());
        return Err(GraphError::ty(name, m));
    }
    for (i, (input, ty)) in body.inputs().iter().zip(inputs).enumerate() {
        let want = body.ty(input.value);
        if want != ty {
            return Err(GraphError::ty(name, format!("operand {i} must be {want}, is {ty}")));
        }
    }
    Ok(())
}

/// Appends the nodes of a body; returns its outputs.
pub(crate) fn inline(body: &Graph, b: &mut Builder<'_>, operands: &[ValueId]) -> Result<Vec<ValueId>> {
    let mut map = vec![ValueId(u32::MAX); body.value_count()];
    body.inputs().iter().zip(operands).for_each(|(input, &v)| map[input.value.index()] = v);
    for node in body.nodes() {
        let inputs: Vec<ValueId> = node.inputs.iter().map(|v| map[v.index()]).collect();
        let results = b.op(node.op.clone(), &inputs)?;
        node.outputs.iter().zip(results).for_each(|(old, new)| map[old.index()] = new);
    }
    Ok(body.outputs().iter().map(|o| map[o.value.index()]).collect())
}

/// Whether inputs and outputs of a body are numbered in order, and all outputs are made by nodes.
pub(crate) fn check_ends(body: &Graph) -> std::result::Result<(), String> {
    if body.inputs().is_empty() || body.outputs().is_empty() {
        return Err("the body needs an operand and a result".into());
    }
    for (i, input) in body.inputs().iter().enumerate() {
        if input.value.index() != i || input.kind != InputKind::Data || input.name != i.to_string() {
            return Err(format!("operand {i} of the body is \"{}\", %{}", input.name, input.value.0));
        }
    }
    let mut seen = vec![false; body.value_count()];
    for (i, output) in body.outputs().iter().enumerate() {
        let v = output.value;
        let again = std::mem::replace(&mut seen[v.index()], true);
        let is_made = matches!(body.def(v), Def::Node(..));
        if output.updates.is_some() || output.name != i.to_string() || again || !is_made {
            return Err(format!("result {i} of the body is \"{}\", %{}", output.name, v.0));
        }
    }
    Ok(())
}

fn check(body: &Graph) -> std::result::Result<(), String> {
    verify(body).map_err(|e| e.to_string())?;
    check_ends(body)?;
    for node in body.nodes() {
        let at = || format!("%{} = {}", node.outputs[0].0, node.op.name());
        match node.op {
            Op::Prim(_) | Op::Composite(_) => {}
            Op::Group(_) | Op::Fused(_) => return Err(format!("{} has a body of its own", at())),
        }
        if node.phase != Phase::Forward || node.scope != 0 {
            return Err(format!("{} has a phase or a scope of its own", at()));
        }
    }
    match body.nodes().iter().any(|n| matches!(n.op, Op::Composite(_))) {
        true => Ok(()),
        false => Err("the body has no composite".into()),
    }
}
