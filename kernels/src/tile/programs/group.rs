//! Fused groups: a program walks the body for a tile of elements, so that values between primitives stay in registers. With a
//! reduction at the end, a program takes a row.

use super::elementwise::{flat, gated, gated_bwd, tile};
use super::epilogue::Spread;
use super::prims::{apply, offsets, strides};
use super::products::Axis;
use super::row::Row;
use super::{EmitError, Emitted, Kernel, Operation, warps, width};
use crate::over;
use crate::tile::ir::{Binary, Elem, Fold, Var};
use crate::tile::{Buffer, Builder};
use kfc_graph::{DType, Graph, Group, Node, Op, Prim, ValueId};
use std::collections::HashMap;

/// Elements of a tile of a row: bodies have many values.
const TILE: usize = 1024;

/// The programs of a group.
pub(super) fn group(g: &Group, o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let folds: Vec<Option<(Fold, ValueId)>> =
        g.body().outputs().iter().map(|out| reduction(g.body(), out.value)).collect();
    if folds.iter().any(Option::is_some) { by_row(g, o, &folds) } else { by_element(g, o) }
}

/// The reduction that makes a value, with what it reduces.
fn reduction(body: &Graph, v: ValueId) -> Option<(Fold, ValueId)> {
    body.nodes().iter().filter(|n| n.outputs[0] == v).find_map(|n| match &n.op {
        Op::Prim(Prim::ReduceSum { .. }) => Some((Fold::Sum, n.inputs[0])),
        Op::Prim(Prim::ReduceMax { .. }) => Some((Fold::Max, n.inputs[0])),
        _ => None,
    })
}

fn buffers(k: &mut Kernel, o: &Operation<'_>) -> (Vec<Buffer>, Vec<Buffer>) {
    let inputs = (0..o.inputs.len()).map(|i| k.input(o, i, &format!("x{i}"))).collect();
    let outputs = (0..o.outputs.len()).map(|j| k.output(o, j, &format!("y{j}"))).collect();
    (inputs, outputs)
}

/// The buffer of each operand of a body.
fn of_operands(g: &Group, inputs: &[Buffer]) -> HashMap<ValueId, Buffer> {
    g.body().inputs().iter().zip(inputs).map(|(i, b)| (i.value, *b)).collect()
}

fn by_element(g: &Group, o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let n = g.dims().iter().product();
    let mut k = flat("group", "Pointwise operations in one pass", n);
    let (inputs, outputs) = buffers(&mut k, o);
    let b = &mut k.b;
    let (at, mask) = tile(b, n);
    let buffers = of_operands(g, &inputs);
    let elements = Elements { at, mask, axes: None, buffers: &buffers };
    let values = walk(b, g.body(), g.body().nodes().iter(), &elements, HashMap::new())?;
    for (y, out) in outputs.into_iter().zip(g.body().outputs()) {
        b.store(y, at, values[&out.value], mask);
    }
    let fits =
        |i: &usize| o.inputs[*i].dims == g.dims() && o.inputs[*i].dtype.size() == o.outputs[0].dtype.size();
    let over = match o.outputs.len() {
        1 => (0..o.inputs.len()).take_while(fits).count(),
        _ => 0,
    };
    Ok(Emitted { may_share: over::leading(over), ..Emitted::one(k.finish()?) })
}

fn by_row(g: &Group, o: &Operation<'_>, folds: &[Option<(Fold, ValueId)>]) -> Result<Emitted, EmitError> {
    let h = g.dims().last().copied().unwrap_or(1);
    let rows = g.dims().iter().product::<usize>() / h.max(1);
    let doc = "Pointwise operations and reductions of a row in one pass";
    let wide = width(h, TILE);
    let mut k = Kernel::new("group_rows", doc, [rows, 1, 1], warps(wide));
    let (inputs, outputs) = buffers(&mut k, o);
    let b = &mut k.b;
    let start = |fold: Fold| if fold == Fold::Sum { 0.0 } else { f32::NEG_INFINITY };
    let reduced: Vec<(usize, Fold, ValueId)> =
        folds.iter().enumerate().filter_map(|(j, f)| f.map(|(fold, v)| (j, fold, v))).collect();
    let init: Vec<Var> = reduced.iter().map(|&(_, fold, _)| b.full(start(fold), &[wide])).collect();
    let row = Row::prefix(b, h, h, wide);
    let buffers = of_operands(g, &inputs);
    let mut failed = None;
    let ends = row.tiles(b, &init, |b, _, at, mask, now| {
        let elements = Elements { at, mask, axes: None, buffers: &buffers };
        let values = match walk(b, g.body(), g.body().nodes().iter(), &elements, HashMap::new()) {
            Ok(values) => values,
            Err(e) => {
                failed = Some(e);
                return now.to_vec();
            }
        };
        for (j, out) in g.body().outputs().iter().enumerate().filter(|(j, _)| folds[*j].is_none()) {
            b.store(outputs[j], at, values[&out.value], mask);
        }
        let next = reduced.iter().zip(now).map(|(&(_, fold, v), &now)| {
            let mut value = b.cast(values[&v], Elem::F32);
            if let Some(mask) = mask {
                let none = b.float(start(fold));
                value = b.select(mask, value, none);
            }
            b.binary(if fold == Fold::Sum { Binary::Add } else { Binary::Max }, now, value)
        });
        next.collect()
    });
    if let Some(e) = failed {
        return Err(e);
    }
    let pid = b.program_id(0);
    for (&(j, fold, _), end) in reduced.iter().zip(ends) {
        let value = b.reduce(fold, end, 0);
        b.store(outputs[j], pid, value, None);
    }
    Ok(Emitted::one(k.finish()?))
}

/// Elements of a shape: their indices, which of them there are, and the buffers of operands that are read.
pub(super) struct Elements<'a> {
    pub(super) at: Var,
    pub(super) mask: Option<Var>,
    /// Rows and columns, if they are those of a tile of a matrix.
    pub(super) axes: Option<(Axis, Axis)>,
    pub(super) buffers: &'a HashMap<ValueId, Buffer>,
}

/// The values that nodes of a body make at these elements, each in its own type, beside those that are known; without
/// reductions.
pub(super) fn walk<'a>(
    b: &mut Builder,
    body: &Graph,
    nodes: impl Iterator<Item = &'a Node> + Clone,
    e: &Elements<'_>,
    known: HashMap<ValueId, Var>,
) -> Result<HashMap<ValueId, Var>, EmitError> {
    let (at, mask) = (e.at, e.mask);
    let tile = b.ty(at).dims.clone();
    let mut values = known;
    for input in body.inputs() {
        let v = input.value;
        let is_whole = |n: &Node| !matches!(n.op, Op::Prim(Prim::Broadcast { .. }));
        if let Some(&x) = e.buffers.get(&v)
            && nodes.clone().any(|n| n.inputs.contains(&v) && is_whole(n))
        {
            values.insert(v, b.load(x, at, mask));
        }
    }
    for node in nodes {
        let made = match &node.op {
            Op::Prim(Prim::ReduceSum { .. } | Prim::ReduceMax { .. }) => continue,
            Op::Prim(Prim::Const { ty, value }) => {
                let v =
                    if ty.dtype == DType::I32 { b.integer(*value as i32) } else { b.float(*value as f32) };
                vec![b.splat(v, &tile)]
            }
            Op::Prim(Prim::Broadcast { dims }) => {
                let operand = node.inputs[0];
                let from = &body.ty(operand).dims;
                if let (Some(axes), Some(spread)) = (e.axes, Spread::of(from, dims)) {
                    let value = spread.load(b, e.buffers[&operand], axes);
                    values.insert(node.outputs[0], b.broadcast(value, &tile));
                    continue;
                }
                let steps: Vec<usize> =
                    strides(from).iter().zip(from).map(|(&s, &d)| if d == 1 { 0 } else { s }).collect();
                let place = offsets(b, at, dims, &[(&steps, 0)])[0];
                vec![b.load(e.buffers[&operand], place, mask)]
            }
            Op::Prim(p) => {
                let operands: Vec<Var> = node.inputs.iter().map(|v| values[v]).collect();
                vec![apply(b, p, &operands)?]
            }
            op => {
                let operands: Vec<Var> = node.inputs.iter().map(|v| b.cast(values[v], Elem::F32)).collect();
                match (op.name(), &operands[..]) {
                    ("swiglu", &[gate, up]) => vec![gated(b, gate, up)],
                    ("swiglu_bwd", &[dy, gate, up]) => gated_bwd(b, dy, gate, up).into(),
                    (other, _) => return Err(EmitError::Unclaimed(other.into())),
                }
            }
        };
        for (&v, value) in node.outputs.iter().zip(made) {
            values.insert(v, b.cast(value, Elem::from(body.ty(v).dtype)));
        }
    }
    Ok(values)
}
