//! The checker of the IR's invariants. It runs between passes, and no consumer checks them again.
//!
//! Invariants it establishes:
//! - every value is defined exactly once, by the input or node that its [`Def`] names, before its first use;
//! - recorded types are what [`Op::infer`] says; extents are at least 1 and sizes stay below [`MAX_BYTES`];
//! - names of inputs and of outputs are unique and not empty;
//! - `updates` names a state input of the same type, each state at most once, with a value that a node computes; the
//!   old value of an updated state is not an output at the same time;
//! - attributes are finite and words.
//!
//! The body of a group or of a fused node was checked when that was made ([`crate::group`], [`crate::fused`]).

use crate::attrs::AttrValue;
use crate::error::{GraphError, Result};
use crate::graph::{Def, Graph, InputKind, Node, NodeId, ValueId};
use crate::op::Op;
use crate::prim::Prim;
use crate::types::{DType, TensorType};
use std::collections::HashSet;

/// No tensor may be larger (256 TiB): products of extents never overflow.
pub const MAX_BYTES: usize = 1 << 48;

/// Checks every invariant.
///
/// # Errors
/// [`GraphError::Verify`] that names the first broken invariant and where it is broken.
pub fn verify(graph: &Graph) -> Result<()> {
    let mut defined = vec![false; graph.value_count()];
    check_inputs(graph, &mut defined)?;
    for id in graph.node_ids() {
        check_node(graph, id, &mut defined)?;
    }
    if let Some(v) = defined.iter().position(|d| !d) {
        return fail(format!("%{v} is defined by no node"));
    }
    check_outputs(graph)
}

fn fail<T>(message: String) -> Result<T> {
    Err(GraphError::Verify(message))
}

fn check_inputs(graph: &Graph, defined: &mut [bool]) -> Result<()> {
    let mut names = HashSet::new();
    for (i, input) in graph.inputs().iter().enumerate() {
        let name = &input.name;
        if name.is_empty() || !names.insert(name.as_str()) {
            return fail(format!("input name \"{name}\" is empty or used twice"));
        }
        define(graph, input.value, Def::Input(i as u32), defined)?;
        check_type(graph.ty(input.value))
            .map_err(|m| GraphError::Verify(format!("input \"{name}\": {m}")))?;
    }
    Ok(())
}

fn check_node(graph: &Graph, id: NodeId, defined: &mut [bool]) -> Result<()> {
    let node = graph.node(id);
    let at = || format!("node {} ({} in \"{}\")", id.0, node.op.name(), graph.scope(node));
    for v in &node.inputs {
        if !defined.get(v.index()).copied().unwrap_or(false) {
            return fail(format!("{}: operand %{} is not defined before", at(), v.0));
        }
    }
    if node.outputs.is_empty() {
        return fail(format!("{}: has no results", at()));
    }
    if node.scope as usize >= graph.scopes.len() {
        return fail(format!("{}: scope {} does not exist", at(), node.scope));
    }
    check_constants(node).map_err(|m| GraphError::Verify(format!("{}: {m}", at())))?;

    let operands: Vec<TensorType> = node.inputs.iter().map(|&v| graph.ty(v).clone()).collect();
    let inferred = node.op.infer(&operands).map_err(|e| GraphError::Verify(format!("{}: {e}", at())))?;
    if inferred.len() != node.outputs.len() {
        return fail(format!("{}: has {} results, should have {}", at(), node.outputs.len(), inferred.len()));
    }
    for (i, (&v, ty)) in node.outputs.iter().zip(&inferred).enumerate() {
        define(graph, v, Def::Node(id, i as u32), defined)?;
        if graph.ty(v) != ty {
            return fail(format!(
                "{}: result {i} is {ty}, but %{} is recorded as {}",
                at(),
                v.0,
                graph.ty(v)
            ));
        }
        check_type(ty).map_err(|m| GraphError::Verify(format!("{}: {m}", at())))?;
    }
    Ok(())
}

fn define(graph: &Graph, v: ValueId, def: Def, defined: &mut [bool]) -> Result<()> {
    match defined.get_mut(v.index()) {
        None => fail(format!("%{} does not exist", v.0)),
        Some(true) => fail(format!("%{} is defined twice", v.0)),
        Some(_) if graph.def(v) != def => {
            fail(format!("%{} is recorded as {:?} but defined by {def:?}", v.0, graph.def(v)))
        }
        Some(slot) => {
            *slot = true;
            Ok(())
        }
    }
}

/// Whether a type is one that a graph may hold.
pub(crate) fn check_type(ty: &TensorType) -> std::result::Result<(), String> {
    if ty.dims.is_empty() {
        return Err(format!("{ty} has no axes; a scalar is [1]"));
    }
    if ty.dims.contains(&0) {
        return Err(format!("{ty} has an extent of 0"));
    }
    let bytes =
        ty.dims.iter().try_fold(ty.dtype.size(), |n, &d| n.checked_mul(d).filter(|&n| n <= MAX_BYTES));
    bytes.map(|_| ()).ok_or_else(|| format!("{ty} is larger than 2^48 bytes"))
}

fn check_constants(node: &Node) -> std::result::Result<(), String> {
    match &node.op {
        Op::Prim(Prim::Const { ty, value }) if ty.dtype == DType::I32 => {
            let exact = *value == f64::from(*value as i32);
            if exact { Ok(()) } else { Err(format!("{value:?} is no 32-bit integer")) }
        }
        Op::Prim(Prim::Const { value, .. }) if value.is_nan() => Err("a constant is NaN".into()),
        Op::Prim(_) | Op::Group(_) | Op::Fused(_) => Ok(()),
        Op::Composite(c) => c.attrs.iter().try_for_each(|(name, value)| check_attr(name, value)),
    }
}

fn check_attr(name: &str, value: &AttrValue) -> std::result::Result<(), String> {
    if !is_word(name) {
        return Err(format!("attribute name \"{name}\" is no word"));
    }
    match value {
        AttrValue::Float(v) if !v.is_finite() => Err(format!("attribute {name} is {v}, not finite")),
        AttrValue::Str(v) if !is_word(v) => Err(format!("attribute {name} is \"{v}\", not a word")),
        _ => Ok(()),
    }
}

fn is_word(s: &str) -> bool {
    !s.is_empty() && s.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-'))
}

fn check_outputs(graph: &Graph) -> Result<()> {
    let mut names = HashSet::new();
    let mut updated = HashSet::new();
    for output in graph.outputs() {
        let name = &output.name;
        if name.is_empty() || !names.insert(name.as_str()) {
            return fail(format!("output name \"{name}\" is empty or used twice"));
        }
        if output.value.index() >= graph.value_count() {
            return fail(format!("output \"{name}\": %{} does not exist", output.value.0));
        }
        let Some(state) = output.updates else { continue };
        let kind = match state.index() < graph.value_count() {
            true => match graph.def(state) {
                Def::Input(i) => Some(graph.inputs()[i as usize].kind),
                Def::Node(..) => None,
            },
            false => None,
        };
        if kind != Some(InputKind::State) {
            return fail(format!("output \"{name}\" updates %{}, which is no state input", state.0));
        }
        if graph.ty(state) != graph.ty(output.value) {
            let (new, old) = (graph.ty(output.value), graph.ty(state));
            return fail(format!("output \"{name}\" is {new}, but the state it updates is {old}"));
        }
        if !updated.insert(state) {
            return fail(format!("output \"{name}\" updates %{}, which another output updates too", state.0));
        }
        if matches!(graph.def(output.value), Def::Input(_)) {
            return fail(format!(
                "output \"{name}\" updates a state with an input, not with a computed value"
            ));
        }
    }
    match graph.outputs().iter().find(|o| o.updates.is_none() && updated.contains(&o.value)) {
        Some(o) => {
            fail(format!("output \"{}\" is the old value of a state that another output updates", o.name))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::Builder;
    use crate::graph::Phase;

    fn small() -> Graph {
        let mut g = Graph::new("t");
        let x = g.add_input("x", InputKind::State, TensorType::new(DType::F32, [2]));
        let mut b = Builder::new(&mut g);
        let y = b.exp(x).unwrap();
        let z = b.add(x, y).unwrap();
        g.add_output("z", z, Some(x));
        g
    }

    fn error(g: &Graph) -> String {
        verify(g).unwrap_err().to_string()
    }

    #[test]
    fn accepts_a_sound_graph() {
        verify(&small()).unwrap();
    }

    #[test]
    fn order_and_definitions() {
        let mut g = small();
        g.nodes.swap(0, 1);
        assert_eq!(error(&g), "invalid graph: node 0 (add in \"\"): operand %1 is not defined before");
        let mut g = small();
        g.nodes[1].outputs[0] = ValueId(1);
        assert_eq!(error(&g), "invalid graph: %1 is defined twice");
        let mut g = small();
        g.nodes.pop();
        g.outputs.clear();
        assert_eq!(error(&g), "invalid graph: %2 is defined by no node");
        let mut g = small();
        g.nodes[0].inputs[0] = ValueId(99);
        assert!(error(&g).contains("operand %99 is not defined before"));
    }

    #[test]
    fn recorded_types_and_scopes() {
        let mut g = small();
        g.values[1].ty = TensorType::new(DType::F32, [3]);
        assert!(error(&g).contains("result 0 is f32[2], but %1 is recorded as f32[3]"));
        let mut g = small();
        g.nodes[0].scope = 7;
        assert!(error(&g).contains("scope 7 does not exist"));
        let mut g = small();
        let huge = TensorType::new(DType::F32, [1 << 40, 1 << 40]);
        g.add_node(
            Op::Prim(Prim::Const { ty: huge.clone(), value: 0.0 }),
            vec![],
            vec![huge],
            Phase::Forward,
            0,
        );
        assert!(error(&g).contains("larger than 2^48 bytes"));
    }
}
