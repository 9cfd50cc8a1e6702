//! Programs of fused nodes: what may stand together, and which program that is.

use super::epilogue::{Behind, Epilogue, Spread};
use super::{EmitError, Emitted, Operation, Places, lora, pairs, products};
use crate::over;
use kfc_graph::passes::fuse_products::Fuses;
use kfc_graph::{Attrs, Composite, Fused, Node, Op, Prim, TensorType};

/// The least half of a head that is a tile.
const LEAST_HALF: usize = 16;

/// Two results over two operands.
static BESIDE: [(usize, usize); 2] = [(0, 0), (1, 1)];

/// What tile programs can run as one kernel.
pub struct TileFuses;

impl Fuses for TileFuses {
    fn is_product(&self, c: &Composite) -> bool {
        match c.def.name() {
            "linear" | "lora_linear" => true,
            "lora_linear_bwd" => c.attrs.bool("need_dx").unwrap_or(false),
            _ => false,
        }
    }

    fn is_epilogue(&self, c: &Composite) -> bool {
        matches!(c.def.name(), "rope" | "swiglu" | "swiglu_bwd")
    }

    fn claims(&self, f: &Fused) -> bool {
        Form::of(f).is_some()
    }
}

/// How the operations of a node go together.
enum Form<'a> {
    /// A product, and what is done to each element of its first result.
    Pointwise(&'a Node, Vec<&'a Node>),
    /// Gate and up of a gated activation, both of one x.
    Gated([&'a Node; 2]),
    /// A layer, and the rotation of its result.
    Rotated(&'a Node, &'a Node),
}

/// The composite that a node applies.
fn composite(node: &Node) -> Option<&Composite> {
    match &node.op {
        Op::Composite(c) => Some(c),
        _ => None,
    }
}

impl<'a> Form<'a> {
    /// The form of a node, if it is one for which there are programs.
    fn of(f: &'a Fused) -> Option<Form<'a>> {
        let body = f.body();
        let is_product = |n: &&Node| composite(n).is_some_and(|c| TileFuses.is_product(c));
        let (products, rest): (Vec<&Node>, Vec<&Node>) = body.nodes().iter().partition(is_product);
        let product = match (&products[..], &rest[..]) {
            ([one, other], [last]) => return Form::gated([one, other], last),
            ([product], [last]) if last.op.name() == "rope" => return Form::rotated(f, product, last),
            ([product], _) => *product,
            _ => return None,
        };
        let y = product.outputs[0];
        let dims = &body.ty(y).dims;
        let is_operand = |v: &kfc_graph::ValueId| body.inputs().iter().any(|i| i.value == *v);
        let fits = |n: &Node| {
            n.outputs.iter().all(|v| body.ty(*v).dims == *dims)
                && match &n.op {
                    Op::Prim(Prim::Const { .. }) => true,
                    Op::Prim(Prim::Broadcast { dims }) => {
                        is_operand(&n.inputs[0]) && Spread::of(&body.ty(n.inputs[0]).dims, dims).is_some()
                    }
                    Op::Prim(p) => p.is_pointwise(),
                    Op::Composite(c) => matches!(c.def.name(), "swiglu" | "swiglu_bwd"),
                    Op::Group(_) | Op::Fused(_) => false,
                }
        };
        // Other results of the product are written by programs of their own: only the first one is at hand.
        let others = &product.outputs[1..];
        let reads_others = rest.iter().any(|n| n.inputs.iter().any(|v| others.contains(v)));
        let reads = rest.iter().any(|n| n.inputs.contains(&y));
        (reads && !reads_others && rest.iter().all(|n| fits(n))).then_some(Form::Pointwise(product, rest))
    }

    /// Two layers of one kind and one x, whose results are gate and up.
    fn gated(products: [&'a Node; 2], last: &Node) -> Option<Form<'a>> {
        let of = |v: kfc_graph::ValueId| products.into_iter().find(|p| p.outputs[0] == v);
        let [gate, up] = last.inputs[..] else { return None };
        let (gate, up) = (of(gate)?, of(up)?);
        let is_layer = |n: &Node| matches!(n.op.name(), "linear" | "lora_linear");
        let alike = gate.op.name() == up.op.name() && gate.inputs[0] == up.inputs[0];
        let apart = gate.outputs != up.outputs;
        (last.op.name() == "swiglu" && is_layer(gate) && alike && apart).then_some(Form::Gated([gate, up]))
    }

    /// A layer of which nobody wants the result as it was, in heads whose halves fill tiles.
    fn rotated(f: &'a Fused, layer: &'a Node, rope: &'a Node) -> Option<Form<'a>> {
        let half = composite(rope)?.attrs.usize("head_dim").ok()? / 2;
        let y = layer.outputs[0];
        let is_kept = f.body().outputs().iter().any(|o| o.value == y);
        let fills = half.is_power_of_two() && half >= LEAST_HALF;
        let is_layer = matches!(layer.op.name(), "linear" | "lora_linear");
        (is_layer && fills && !is_kept && rope.inputs[0] == y && !rope.inputs[1..].contains(&y))
            .then_some(Form::Rotated(layer, rope))
    }
}

/// Where operands and results of an operation of the body stand in the node. What is no result of the node is never asked for.
fn places(f: &Fused, node: &Node) -> Places {
    let operand = |v: &kfc_graph::ValueId| f.body().inputs().iter().position(|i| i.value == *v);
    let result = |v: &kfc_graph::ValueId| f.body().outputs().iter().position(|o| o.value == *v);
    Places {
        operands: node.inputs.iter().map(|v| operand(v).unwrap_or(0)).collect(),
        results: node.outputs.iter().map(|v| result(v).unwrap_or(0)).collect(),
    }
}

/// The programs of a fused node.
pub(super) fn fused(f: &Fused, o: &Operation<'_>) -> Result<Emitted, EmitError> {
    match Form::of(f) {
        Some(Form::Pointwise(product, nodes)) => pointwise(f, o, product, nodes),
        Some(Form::Gated([gate, up])) => {
            let is_kept = |n: &Node| f.body().outputs().iter().any(|o| o.value == n.outputs[0]);
            let kept = [gate, up].map(is_kept);
            part(f, o, gate, |g| part(f, o, up, |u| pairs::gated_pair(o, g, u, kept)))
        }
        Some(Form::Rotated(layer, rope)) => {
            part(f, o, layer, |l| part(f, o, rope, |r| pairs::rotated_pair(o, l, r)))
        }
        None => Err(EmitError::Unclaimed(kfc_graph::fused::NAME.into())),
    }
}

/// Types of values of the body.
fn types(f: &Fused, values: &[kfc_graph::ValueId]) -> Vec<TensorType> {
    values.iter().map(|v| f.body().ty(*v).clone()).collect()
}

fn pointwise(f: &Fused, o: &Operation<'_>, product: &Node, nodes: Vec<&Node>) -> Result<Emitted, EmitError> {
    let may_share = sharing(f, o, product, &nodes);
    let behind = Behind { whole: o, body: f.body(), nodes, product: product.outputs[0] };
    let epilogue = Epilogue::Behind(&behind);
    let e = part(f, o, product, |p| match product.op.name() {
        "linear" => products::linear(p, epilogue),
        "lora_linear" => lora::lora_linear(p, epilogue),
        "lora_linear_bwd" => lora::lora_linear_bwd(p, epilogue),
        other => Err(EmitError::Unclaimed(other.into())),
    })?;
    Ok(Emitted { may_share, ..e })
}

/// Writes programs of an operation of the body, whose buffers are those of the node.
fn part<R>(
    f: &Fused,
    o: &Operation<'_>,
    node: &Node,
    write: impl FnOnce(&Operation<'_>) -> Result<R, EmitError>,
) -> Result<R, EmitError> {
    let none = Attrs::new();
    let attrs = composite(node).map_or(&none, |c| &c.attrs);
    let (inputs, outputs, places) = (types(f, &node.inputs), types(f, &node.outputs), places(f, node));
    let p =
        Operation { attrs, inputs: &inputs, outputs: &outputs, tilings: o.tilings, places: Some(&places) };
    write(&p)
}

/// Results that may be written over operands which the epilogue alone reads, element by element.
fn sharing(f: &Fused, o: &Operation<'_>, product: &Node, nodes: &[&Node]) -> &'static [(usize, usize)] {
    let body = f.body();
    let made = |v| nodes.iter().any(|n| n.outputs.contains(&v));
    let count = body.outputs().iter().filter(|r| made(r.value)).count();
    let first = &o.outputs[0];
    let fits = |i: &usize| {
        let v = body.inputs()[*i].value;
        let reads = |n: &Node| n.inputs.contains(&v);
        let whole = |n: &Node| !matches!(n.op, Op::Prim(Prim::Broadcast { .. }));
        !reads(product)
            && nodes.iter().all(|n| !reads(n) || whole(n))
            && o.inputs[*i].dims == first.dims
            && o.inputs[*i].dtype.size() == first.dtype.size()
    };
    let leading = (0..o.inputs.len()).take_while(fits).count();
    let alike = |j: usize| o.outputs.get(j).is_some_and(|t| t == first);
    match count {
        1 => over::leading(leading),
        2 if alike(1) && leading >= 2 => &BESIDE,
        _ => &[],
    }
}
