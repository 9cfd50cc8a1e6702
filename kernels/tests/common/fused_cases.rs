//! Products with what is done to their results, as the compiler fuses them for tile programs.

use kfc_graph::passes::fuse_products;
use kfc_graph::{Attrs, Builder, DType, Graph, InputKind, Op, Result, TensorType, ValueId};
use kfc_kernels::tile::programs::TileFuses;

/// Operands and results of nodes that are to be fused.
type Build<'a> = &'a dyn Fn(&mut Builder<'_>, &[ValueId]) -> Result<Vec<ValueId>>;

/// A fused node with its operands' types.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) label: String,
    pub(crate) op: Op,
    pub(crate) types: Vec<TensorType>,
}

fn t(dtype: DType, dims: &[usize]) -> TensorType {
    TensorType::new(dtype, dims)
}

/// The one node that is made of what `build` appends.
fn fused(label: String, types: &[TensorType], build: Build<'_>) -> Node {
    let mut graph = Graph::new("g");
    let inputs: Vec<ValueId> = (types.iter().enumerate())
        .map(|(i, t)| graph.add_input(format!("x{i}"), InputKind::Data, t.clone()))
        .collect();
    let results = build(&mut Builder::new(&mut graph), &inputs).unwrap();
    results.iter().enumerate().for_each(|(i, v)| graph.add_output(format!("y{i}"), *v, None));
    let graph = fuse_products::run(&graph, &TileFuses).unwrap();
    let [node] = graph.nodes() else { panic!("{label}: {}", kfc_graph::text::print(&graph)) };
    assert!(matches!(node.op, Op::Fused(_)), "{label}");
    let types = node.inputs.iter().map(|v| graph.ty(*v).clone()).collect();
    Node { label: format!("{label}-{:?}", graph.ty(node.outputs[0]).dtype), op: node.op.clone(), types }
}

fn apply(b: &mut Builder<'_>, name: &str, attrs: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
    b.composite(kfc_ops::registry().get(name).unwrap(), attrs.clone(), inputs)
}

fn bias(with: bool) -> Attrs {
    Attrs::new().with("bias", with)
}

fn adapter(dropout: f64, bias: bool) -> Attrs {
    let attrs = Attrs::new().with("scale", 2.0).with("dropout", dropout).with("stream", 3usize);
    attrs.with("bias", bias).with("need_dx", true)
}

/// Extents of a layer: tokens, width of its input, of its result, rank of its adapter.
#[derive(Clone, Copy)]
pub(crate) struct Layer {
    pub(crate) tokens: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) rank: usize,
}

/// Odd extents, and some whose rows are multiples of 16 bytes.
#[allow(dead_code)] // not all tests ask
pub(crate) const ODD: Layer = Layer { tokens: 83, inputs: 67, outputs: 70, rank: 18 };
#[allow(dead_code)] // not all tests ask
pub(crate) const ALIGNED: Layer = Layer { tokens: 192, inputs: 128, outputs: 256, rank: 16 };

/// Pointwise operations behind products: a residual, what is kept beside, gradients that are summed, the gate's gradient.
pub(crate) fn pointwise(x: DType, l: Layer) -> Vec<Node> {
    let Layer { tokens: n, inputs: i, outputs: o, rank: r } = l;
    let f = |dims: &[usize]| t(DType::F32, dims);
    let (rows, out) = (t(x, &[1, n, i]), t(x, &[1, n, o]));
    let (w, seed) = (t(x, &[o, i]), t(DType::I32, &[2]));
    let factors = [f(&[r, i]), f(&[o, r])];
    let layer = [&[rows.clone(), w.clone()][..], &factors].concat();
    let back = [&[out.clone()][..], &layer, &[f(&[1, n, r]), seed.clone()]].concat();
    let with = |types: &[TensorType], more: &[TensorType]| [types, more].concat();
    let residual = with(&[rows, w, t(x, &[o])], std::slice::from_ref(&out));
    let kept = with(&residual, &[t(x, &[1, 1, o])]);
    let lora = with(&layer, &[t(x, &[o]), seed, out]);
    let sum = with(&back, &[t(x, &[1, n, i])]);
    let gate = with(&back, &[t(x, &[1, n, i]), t(x, &[1, n, i])]);
    vec![
        fused("fused-residual".into(), &residual, &|b, v| {
            let y = apply(b, "linear", &bias(true), &v[..3])?;
            Ok(vec![b.add(v[3], y[0])?])
        }),
        fused("fused-kept".into(), &kept, &|b, v| {
            let y = apply(b, "linear", &bias(true), &v[..3])?[0];
            // A group, as the compiler makes it: here its primitives are one node's each.
            let dims = b.ty(y).dims.clone();
            let body = {
                let mut body = Graph::new("group");
                let ty = b.ty(y).clone();
                let row = b.ty(v[4]).clone();
                let a = body.add_input("0", InputKind::Data, ty);
                let s = body.add_input("1", InputKind::Data, row);
                let mut inner = Builder::new(&mut body);
                let s = inner.broadcast(s, &dims)?;
                let half = inner.full_like(a, 0.5)?;
                let shifted = inner.mul(a, half)?;
                let gated = inner.sigmoid(shifted)?;
                let sum = inner.mul(gated, s)?;
                let z = inner.sub(sum, a)?;
                body.add_output("0", z, None);
                kfc_graph::Group::new(body)?
            };
            let z = b.op(Op::Group(body), &[y, v[4]])?[0];
            Ok(vec![z, y])
        }),
        fused("fused-lora".into(), &lora, &|b, v| {
            let y = apply(b, "lora_linear", &adapter(0.3, true), &v[..6])?;
            Ok(vec![b.add(v[6], y[0])?, y[1]])
        }),
        fused("fused-sum".into(), &sum, &|b, v| {
            let d = apply(b, "lora_linear_bwd", &adapter(0.3, false), &v[..7])?;
            Ok(vec![b.add(v[7], d[0])?, d[1], d[2]])
        }),
        fused("fused-gate".into(), &gate, &|b, v| {
            let d = apply(b, "lora_linear_bwd", &adapter(0.0, false), &v[..6])?;
            let g = apply(b, "swiglu_bwd", &Attrs::new(), &[d[0], v[7], v[8]])?;
            Ok(vec![g[0], g[1], d[1], d[2]])
        }),
    ]
}

/// Two products in one kernel: the gated activation of two layers, with and without what it is computed from; layers whose
/// heads, `d` wide, are rotated.
pub(crate) fn pairs(x: DType, l: Layer, d: usize) -> Vec<Node> {
    let Layer { tokens: n, inputs: i, outputs: o, rank: r } = l;
    let f = |dims: &[usize]| t(DType::F32, dims);
    let (rows, seed) = (t(x, &[1, n, i]), t(DType::I32, &[2]));
    let weights = |o: usize| [t(x, &[o, i]), t(x, &[o])];
    let factors = |o: usize| [f(&[r, i]), f(&[o, r])];
    let plain = [&[rows.clone()][..], &weights(o), &weights(o)].concat();
    let adapted = [&[rows.clone(), t(x, &[o, i])][..], &factors(o), &[t(x, &[o, i])], &factors(o), &[seed]];
    let adapted = adapted.concat();
    // At least three heads.
    let wide = o.next_multiple_of(d).max(3 * d);
    let tables = [f(&[9, d / 2]), f(&[9, d / 2]), t(DType::I32, &[1, n])];
    let heads = [&[rows.clone()][..], &weights(wide), &tables].concat();
    let adapted_heads = [&[rows, t(x, &[wide, i])][..], &factors(wide), &[t(x, &[wide])], &tables].concat();
    let rope = |inverse: bool| Attrs::new().with("head_dim", d).with("inverse", inverse);
    vec![
        fused("fused-gated".into(), &plain, &|b, v| {
            let gate = apply(b, "linear", &bias(true), &v[..3])?[0];
            let up = apply(b, "linear", &bias(true), &[v[0], v[3], v[4]])?[0];
            apply(b, "swiglu", &Attrs::new(), &[gate, up])
        }),
        fused("fused-gated-lora".into(), &adapted, &|b, v| {
            // The second layer is the gate.
            let attrs = adapter(0.3, false);
            let up = apply(b, "lora_linear", &attrs, &[v[0], v[1], v[2], v[3], v[7]])?;
            let gate = apply(b, "lora_linear", &attrs, &[v[0], v[4], v[5], v[6], v[7]])?;
            let h = apply(b, "swiglu", &Attrs::new(), &[gate[0], up[0]])?[0];
            Ok(vec![h, gate[0], up[0], gate[1], up[1]])
        }),
        fused("fused-rotated".into(), &heads, &|b, v| {
            let y = apply(b, "linear", &bias(true), &v[..3])?[0];
            apply(b, "rope", &rope(false), &[y, v[3], v[4], v[5]])
        }),
        fused("fused-rotated-lora".into(), &adapted_heads, &|b, v| {
            let y = apply(b, "lora_linear", &adapter(0.0, true), &v[..5])?;
            let z = apply(b, "rope", &rope(true), &[y[0], v[5], v[6], v[7]])?;
            Ok(vec![z[0], y[1]])
        }),
    ]
}
