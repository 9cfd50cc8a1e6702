//! What tile programs are tested with: the samples of every operation, cases with several tiles, runs and chunks, and
//! primitives.

#[path = "fused_cases.rs"]
mod fused_cases;

use crate::common;
use crate::programs::Case;
use kfc_graph::{Attrs, CmpOp, Composite, DType, Op, Prim, SampleInput, TensorType};
use kfc_kernels::tile::programs::Sizes;
use kfc_ops::samples::fill;

fn composite(name: &str, attrs: &Attrs) -> Op {
    Op::Composite(Composite { def: kfc_ops::registry().get(name).unwrap(), attrs: attrs.clone() })
}

/// Every sample of every composite.
pub(crate) fn samples() -> Vec<Case> {
    let mut cases = Vec::new();
    for def in kfc_ops::registry().iter() {
        for (s, sample) in def.samples().into_iter().enumerate() {
            let types = sample.inputs.iter().map(|(t, _)| t.clone()).collect();
            let data = (sample.inputs.iter().enumerate())
                .map(|(i, (t, c))| fill(t, c, (s * 100 + i) as u64))
                .collect();
            cases.push(Case {
                label: format!("{}-{s}", def.name()),
                op: composite(def.name(), &sample.attrs),
                types,
                data,
                sizes: Sizes::default(),
            });
        }
    }
    cases
}

fn t(dtype: DType, dims: &[usize]) -> TensorType {
    TensorType::new(dtype, dims)
}

/// Uniform operands in [-1, 1) for floats, and `0..9` for integers.
fn unit(types: &[TensorType], seed: u64) -> Vec<Vec<f64>> {
    let content = |t: &TensorType| match t.dtype {
        DType::I32 => SampleInput::Integers(0, 9),
        _ => SampleInput::Uniform(-1.0, 1.0),
    };
    types.iter().enumerate().map(|(i, t)| fill(t, &content(t), seed * 100 + i as u64)).collect()
}

fn case(label: String, op: Op, types: &[TensorType], data: Vec<Vec<f64>>) -> Case {
    Case { label, op, types: types.to_vec(), data, sizes: Sizes::default() }
}

/// Operations that need several tiles, runs or chunks.
pub(crate) fn large() -> Vec<Case> {
    let mut cases = Vec::new();
    for x in [DType::F32, DType::Bf16, DType::F16] {
        cases.extend(lora(x));
        cases.extend(attention(x));
    }
    for divergence in ["forward_kl", "reverse_kl", "jsd"] {
        cases.extend(head(DType::F32, "logits", divergence));
        cases.extend(head(DType::Bf16, "topk", divergence));
    }
    let f = |dims: &[usize]| t(DType::F32, dims);
    let big = [f(&[40_001]), f(&[3]), t(DType::F16, &[17_000])];
    let attrs = Attrs::new().with("tensors", 3usize);
    cases.push(case("big-sum".into(), composite("sum_squares", &attrs), &big, unit(&big, 1)));
    let param = |n: usize| vec![f(&[n]), f(&[n]), t(DType::F32, &[n]), f(&[n])];
    let types = [vec![f(&[1])], param(40_001), param(17_000)].concat();
    cases.push(case("big-norm".into(), composite("penalised_norm", &Attrs::new()), &types, unit(&types, 9)));
    cases.extend(groups());
    for x in [DType::F32, DType::Bf16, DType::F16] {
        cases.extend(fused(x, fused_cases::ODD, 32));
    }
    cases.extend(fused(DType::Bf16, fused_cases::ALIGNED, 128));
    let attrs = Attrs::new().with("scale", 0.5);
    for (o, i) in [(1100, 40), (40, 1100)] {
        let types = [f(&[1]), f(&[8, i]), f(&[o, 8]), t(DType::Bf16, &[o, i])];
        let data = unit(&types, 2);
        cases.push(case(format!("big-ewc-{o}"), composite("ewc_delta_bwd", &attrs), &types, data.clone()));
        cases.push(case(
            format!("big-ewc-fwd-{o}"),
            composite("ewc_delta", &attrs),
            &types[1..],
            data[1..].into(),
        ));
    }
    let types = [f(&[200, 33]), f(&[200, 33]), f(&[33]), f(&[200, 1])];
    let attrs = Attrs::new().with("need_dw", true);
    cases.push(case("rows".into(), composite("rms_norm_bwd", &attrs), &types, unit(&types, 3)));
    let types = [f(&[1, 70, 80]), f(&[90, 80]), f(&[1, 70, 90]), f(&[1, 70])];
    cases.push(case(
        "features".into(),
        composite("feature_alignment", &Attrs::new()),
        &types,
        unit(&types, 4),
    ));
    let types = [f(&[1, 50, 20]), f(&[2100, 20]), t(DType::I32, &[1, 50])];
    let op = composite("linear_token_scores", &Attrs::new());
    let sizes = Sizes { logits: 16 * 2100, ..Sizes::default() };
    cases.push(Case { sizes, ..case("scores".into(), op, &types, unit(&types, 5)) });
    cases
}

/// Fused groups: elements with broadcasts and truths, rows with reductions, rows in several tiles, 16-bit values.
fn groups() -> Vec<Case> {
    let bodies = [
        (
            "%0: f32[3,4,500], %1: f32[3,1,500], %2: i32[3,4,500], %3: f32[1,1,1]",
            "    %4: f32[3,4,500] = broadcast(%1)\n    %5: f32[3,4,500] = mul(%0, %4)\n    \
             %6: f32[3,4,500] = broadcast(%3)\n    %7: i32[3,4,500] = lt(%5, %6)\n    \
             %8: i32[3,4,500] = const() {value=3.0}\n    %9: i32[3,4,500] = lt(%2, %8)\n    \
             %10: i32[3,4,500] = mul(%7, %9)\n    %11: f32[3,4,500] = sigmoid(%5)\n    \
             %12: f32[3,4,500] = select(%10, %11, %0)\n",
            "f32[3,4,500]",
            "%12",
        ),
        (
            "%0: f32[5,1500], %1: f32[1,1500]",
            "    %2: f32[5,1500] = broadcast(%1)\n    %3: f32[5,1500] = mul(%0, %2)\n    \
             %4: f32[5,1500] = exp(%3)\n    %5: f32[5,1] = reduce_sum(%4) {axes=[1]}\n    \
             %6: f32[5,1] = reduce_max(%3) {axes=[1]}\n",
            "f32[5,1500], f32[5,1], f32[5,1]",
            "%4, %5, %6",
        ),
        (
            "%0: bf16[7,300], %1: bf16[7,1], %2: f32[7,300]",
            "    %3: bf16[7,300] = broadcast(%1)\n    %4: bf16[7,300] = add(%0, %3)\n    \
             %5: f32[7,300] = cast(%4)\n    %6: f32[7,300] = mul(%5, %2)\n    \
             %7: bf16[7,300] = cast(%6)\n    %8: bf16[7,1] = reduce_max(%7) {axes=[1]}\n",
            "bf16[7,300], bf16[7,1]",
            "%7, %8",
        ),
    ];
    bodies
        .into_iter()
        .enumerate()
        .map(|(i, (operands, body, types, results))| group(i, operands, body, types, results))
        .collect()
}

/// A group from the text of its operands, nodes, result types and results.
fn group(number: usize, operands: &str, body: &str, types: &str, results: &str) -> Case {
    let list: Vec<&str> = operands.split(", %").map(|o| o.trim_start_matches('%')).collect();
    let inputs: String =
        list.iter().map(|o| format!("  %{o} = data \"{}\"\n", o.split(':').next().unwrap())).collect();
    let names: Vec<String> = (0..list.len()).map(|i| format!("%{i}")).collect();
    let made: Vec<String> =
        types.split(", ").enumerate().map(|(j, t)| format!("%{}: {t}", list.len() + j)).collect();
    let text = format!(
        "graph g {{\n{inputs}  {} = group({}) @forward \"s\" {{\n    {operands} = operands\n{body}    results \
         {results}\n  }}\n  output \"y\" = %{}\n}}\n",
        made.join(", "),
        names.join(", "),
        list.len(),
    );
    let graph = kfc_graph::text::parse(&text, &kfc_ops::registry()).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let types: Vec<TensorType> = graph.inputs().iter().map(|i| graph.ty(i.value).clone()).collect();
    case(format!("group-{number}"), graph.nodes()[0].op.clone(), &types, unit(&types, 10))
}

/// Products with what is done to their results.
fn fused(x: DType, layer: fused_cases::Layer, head: usize) -> Vec<Case> {
    let pairs = fused_cases::pairs(x, layer, head);
    let nodes = fused_cases::pointwise(x, layer).into_iter().chain(pairs);
    let of = |n: fused_cases::Node| {
        let label = format!("{}-{}", n.label, layer.tokens);
        case(label, n.op, &n.types, unit(&n.types, 11))
    };
    nodes.map(of).collect()
}

/// More tokens than one program adds up for a gradient.
fn lora(x: DType) -> Vec<Case> {
    let (m, i, o, r) = (1100, 67, 70, 18);
    let attrs = Attrs::new()
        .with("scale", 2.0)
        .with("dropout", 0.3)
        .with("stream", 3usize)
        .with("bias", false)
        .with("need_dx", true);
    let f = |dims: &[usize]| t(DType::F32, dims);
    let seed = t(DType::I32, &[2]);
    let types = [t(x, &[m, i]), t(x, &[o, i]), f(&[r, i]), f(&[o, r]), seed.clone()];
    let back = [&[t(x, &[m, o])], &types[..4], &[f(&[m, r]), seed]].concat();
    [("lora_linear", types.to_vec()), ("lora_linear_bwd", back)]
        .map(|(name, types)| {
            case(format!("big-{name}-{x:?}"), composite(name, &attrs), &types, unit(&types, 6))
        })
        .into()
}

/// Packed rows: several segments, padding at the end, tiles of which some see nothing.
pub(crate) fn attention(x: DType) -> Vec<Case> {
    let (batch, tokens, heads, kv, d, dv) = (2, 150, 4, 2, 24, 16);
    let attrs = Attrs::new().with("heads", heads).with("kv_heads", kv).with("scale", 0.3);
    let (mut seg, mut pos) = (Vec::new(), Vec::new());
    for b in 0..batch {
        let len = 7 + 40 * (b + 1);
        for i in 0..tokens {
            seg.push(if i + 5 >= tokens { -1.0 } else { (i / len) as f64 });
            pos.push((i % len) as f64);
        }
    }
    let f = |c: usize| t(x, &[batch, tokens, c]);
    let rows = t(DType::I32, &[batch, tokens]);
    let qkv = [f(heads * d), f(kv * d), f(kv * dv)];
    let masks = vec![seg.clone(), pos.clone(), seg, pos];
    let types = [&qkv[..], &vec![rows.clone(); 4]].concat();
    let data = [unit(&qkv, 7), masks.clone()].concat();
    let op = composite("attention", &attrs);
    let out = op.infer(&types).unwrap();
    let results = common::run_interp(&op, &types, &data);
    let o = results[0].iter().map(|v| kfc_ops::samples::round_to(x, *v)).collect();
    let lse = results[1].iter().map(|v| f64::from(*v as f32)).collect();
    let back = [&[out[0].clone()], &qkv[..], &out[..], &vec![rows; 4]].concat();
    let back_data = [unit(&out[..1], 8), data[..3].to_vec(), vec![o, lse], masks].concat();
    vec![
        case(format!("packed-{x:?}"), op, &types, data),
        case(format!("packed-bwd-{x:?}"), composite("attention_bwd", &attrs), &back, back_data),
    ]
}

/// Attention of one sequence without a mask but the causal one, `q` and `kv` wide.
#[allow(dead_code)] // only tests of CUDA kernels ask
pub(crate) fn causal(x: DType, attrs: Attrs, tokens: usize, q: usize, kv: usize) -> Case {
    let rows = t(DType::I32, &[1, tokens]);
    let types = [[q, kv, kv].map(|c| t(x, &[1, tokens, c])).to_vec(), vec![rows; 4]].concat();
    let (same, along) = (vec![0.0; tokens], (0..tokens).map(|i| i as f64).collect::<Vec<f64>>());
    let data = [unit(&types[..3], 7), vec![same.clone(), along.clone(), same, along]].concat();
    case(format!("causal-{kv}-{x:?}"), composite("attention", &attrs), &types, data)
}

/// Chunks of 16 tokens, the last of them shorter.
fn head(x: DType, kd: &str, divergence: &str) -> Vec<Case> {
    let (n, v, vt, h, k) = (35, 70, 90, 20, 5);
    let attrs = Attrs::new()
        .with("kd", kd)
        .with("temperature", 2.0)
        .with("divergence", divergence)
        .with("need_dw", true);
    let f = |dims: &[usize]| t(DType::F32, dims);
    let ids = |dims: &[usize]| t(DType::I32, dims);
    let mut types = vec![f(&[1]), f(&[1]), t(x, &[1, n, h]), t(x, &[v, h]), ids(&[1, n]), f(&[1, n])];
    types.extend(if kd == "topk" {
        vec![ids(&[1, n, k]), f(&[1, n, k]), f(&[1, n]), f(&[1, n])]
    } else {
        vec![t(x, &[1, n, 3]), t(x, &[vt, 3]), f(&[1, n])]
    });
    let mut data = unit(&types, 8);
    let last = types.len() - 1;
    data[4] = (0..n).map(|i| if i % 3 == 2 { -100.0 } else { (i * 31 % v) as f64 }).collect();
    data[5].iter_mut().enumerate().for_each(|(i, w)| *w = if i % 4 == 1 { 0.0 } else { w.abs() });
    data[last].iter_mut().enumerate().for_each(|(i, w)| *w = if i % 5 <= 1 { 0.0 } else { w.abs() });
    if kd == "topk" {
        data[6] = (0..n * k).map(|i| (i * 13 % (v + 3)) as f64).collect();
        data[8].iter_mut().for_each(|lse| *lse = 2.5 + lse.abs());
    }
    let sizes = Sizes { logits: 16 * (v + if kd == "topk" { 0 } else { vt }), ..Sizes::default() };
    let label = |mode: &str| format!("chunks-{kd}-{divergence}-{mode}");
    let name = |mode: &str| composite(&format!("linear_cross_entropy_kd{mode}"), &attrs);
    vec![
        Case { sizes, ..case(label("fused"), name("_fused"), &types, data.clone()) },
        Case { sizes, ..case(label("bwd"), name("_bwd"), &types, data.clone()) },
        Case { sizes, ..case(label("fwd"), name(""), &types[2..], data[2..].to_vec()) },
    ]
}

/// Primitives, each in the types that it differs in.
pub(crate) fn prims() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |p: Prim, types: &[TensorType], lo: f64, hi: f64| {
        let data = (types.iter().enumerate())
            .map(|(i, t)| match t.dtype {
                DType::I32 => fill(t, &SampleInput::Integers(lo as i64, hi as i64), i as u64),
                _ => fill(t, &SampleInput::Uniform(lo, hi), i as u64),
            })
            .collect();
        let label = format!("{}-{}", p.name(), cases.len());
        cases.push(case(label, Op::Prim(p), types, data));
    };
    for x in [DType::F32, DType::Bf16, DType::F16] {
        let two = [t(x, &[3, 500]), t(x, &[3, 500])];
        for p in [Prim::Neg, Prim::Exp, Prim::Sigmoid, Prim::Erf] {
            add(p, &two[..1], -3.0, 3.0);
        }
        for p in [Prim::Log, Prim::Sqrt] {
            add(p, &two[..1], 0.1, 9.0);
        }
        for p in [Prim::Add, Prim::Sub, Prim::Mul, Prim::Max] {
            add(p, &two, -2.0, 2.0);
        }
        add(Prim::Div, &two, 0.5, 2.0);
        for c in [CmpOp::Eq, CmpOp::Lt, CmpOp::Le] {
            add(Prim::Compare(c), &two, -2.0, 2.0);
        }
        add(Prim::Select, &[t(DType::I32, &[3, 500]), two[0].clone(), two[1].clone()], -1.0, 2.0);
        for to in DType::ALL {
            add(Prim::Cast(to), &two[..1], -5.0, 5.0);
        }
        let a = [t(x, &[3, 4, 5, 70])];
        for axes in [vec![0], vec![3], vec![0, 2], vec![1, 3], vec![0, 1, 2, 3]] {
            add(Prim::ReduceSum { axes: axes.clone() }, &a, -1.0, 2.0);
            add(Prim::ReduceMax { axes }, &a, -1.0, 2.0);
        }
        add(Prim::ReduceSum { axes: vec![0] }, &[t(x, &[70, 130])], -1.0, 2.0);
        add(Prim::Gather, &[t(x, &[9, 300]), t(DType::I32, &[2, 10])], 0.0, 9.0);
        add(Prim::ScatterAdd { rows: 9 }, &[t(DType::I32, &[2, 10]), t(x, &[2, 10, 300])], 0.0, 9.0);
    }
    let two = [t(DType::I32, &[3, 400]), t(DType::I32, &[3, 400])];
    for p in [Prim::Add, Prim::Sub, Prim::Mul, Prim::Max, Prim::Div, Prim::Compare(CmpOp::Lt)] {
        add(p, &two, 1.0, 50.0);
    }
    for to in DType::ALL {
        add(Prim::Cast(to), &two[..1], -100.0, 100.0);
    }
    for x in [DType::F32, DType::Bf16, DType::I32] {
        let a = [t(x, &[3, 4, 5, 6])];
        add(Prim::Reshape { dims: vec![12, 30] }, &a, -9.0, 9.0);
        add(Prim::Transpose { perm: vec![0, 2, 1, 3] }, &a, -9.0, 9.0);
        add(Prim::Transpose { perm: vec![2, 3, 0, 1] }, &a, -9.0, 9.0);
        add(Prim::Slice { axis: 1, start: 1, end: 3 }, &a, -9.0, 9.0);
        add(Prim::Pad { axis: 2, lo: 2, hi: 1 }, &a, -9.0, 9.0);
        add(Prim::Concat { axis: 3 }, &[a[0].clone(), t(x, &[3, 4, 5, 2]), a[0].clone()], -9.0, 9.0);
        add(Prim::Broadcast { dims: vec![3, 4, 5, 6] }, &[t(x, &[1, 4, 1, 6])], -9.0, 9.0);
        add(Prim::Const { ty: t(x, &[700]), value: -2.5 }, &[], 0.0, 1.0);
    }
    add(Prim::Iota { dims: vec![3, 4, 5], axis: 1 }, &[], 0.0, 1.0);
    add(Prim::Random { dims: vec![3, 401], stream: 5 }, &[t(DType::I32, &[2])], -99.0, 99.0);
    for (a, b, out) in [
        (DType::F32, DType::F32, DType::F32),
        (DType::Bf16, DType::Bf16, DType::F32),
        (DType::F16, DType::F32, DType::F16),
    ] {
        for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
            let pair = |is_swapped: bool, r, c| if is_swapped { [2, c, r] } else { [2, r, c] };
            let types = [t(a, &pair(ta, 70, 40)), t(b, &pair(tb, 40, 33))];
            add(Prim::MatMul { ta, tb, out }, &types, -1.0, 1.0);
        }
    }
    cases
}

/// Operations at the extents of a model with 2048 hidden units, 32 heads of 64 and 8 of 128, which tiles of full size serve.
#[allow(dead_code)] // only one of the test files compiles them
pub(crate) fn realistic() -> Vec<(Op, Vec<TensorType>)> {
    let x = DType::Bf16;
    let (n, h, i, r) = (2048, 2048, 5632, 16);
    let f = |dims: &[usize]| t(DType::F32, dims);
    let w = |dims: &[usize]| t(x, dims);
    let ids = |dims: &[usize]| t(DType::I32, dims);
    let lora = Attrs::new()
        .with("scale", 2.0)
        .with("dropout", 0.1)
        .with("stream", 3usize)
        .with("bias", false)
        .with("need_dx", true);
    let adapter = [w(&[i, h]), f(&[r, h]), f(&[i, r])];
    let with_seed = |mut types: Vec<TensorType>| {
        types.push(ids(&[2]));
        types
    };
    let mut all = vec![
        (composite("linear", &Attrs::new().with("bias", true)), vec![w(&[n, h]), w(&[i, h]), w(&[i])]),
        (composite("linear", &Attrs::new().with("bias", false)), vec![f(&[n, h]), f(&[i, h])]),
        (composite("lora_linear", &lora), with_seed([&[w(&[n, h])], &adapter[..]].concat())),
        (
            composite("lora_linear_bwd", &lora),
            with_seed([&[w(&[n, i]), w(&[n, h])], &adapter[..], &[f(&[n, r])]].concat()),
        ),
        (composite("layer_norm", &Attrs::new().with("eps", 1e-5)), vec![w(&[n, h]), w(&[h]), w(&[h])]),
        (composite("rms_norm", &Attrs::new().with("eps", 1e-5)), vec![w(&[n, h]), w(&[h])]),
        (
            composite("rms_norm_bwd", &Attrs::new().with("need_dw", true)),
            vec![w(&[n, h]), w(&[n, h]), w(&[h]), f(&[n, 1])],
        ),
        (
            composite("feature_alignment", &Attrs::new()),
            vec![w(&[1, n, h]), f(&[h, h]), w(&[1, n, h]), f(&[1, n])],
        ),
        (composite("ewc_delta", &Attrs::new().with("scale", 2.0)), vec![f(&[r, h]), f(&[i, r]), w(&[i, h])]),
        (
            composite("ewc_delta_bwd", &Attrs::new().with("scale", 2.0)),
            vec![f(&[1]), f(&[r, h]), f(&[i, r]), w(&[i, h])],
        ),
        (composite("linear_token_scores", &Attrs::new()), vec![w(&[1, n, h]), w(&[32_000, h]), ids(&[1, n])]),
        (composite("swiglu_bwd", &Attrs::new()), vec![w(&[n, i]), w(&[n, i]), w(&[n, i])]),
    ];
    for (elem, heads, kv, d) in [(x, 32, 8, 64), (x, 16, 8, 128), (DType::F32, 16, 8, 128)] {
        let attrs = Attrs::new().with("heads", heads).with("kv_heads", kv).with("scale", 0.1);
        let f = |c: usize| t(elem, &[1, n, c]);
        let rows = vec![ids(&[1, n]); 4];
        let qkv = [f(heads * d), f(kv * d), f(kv * d)];
        let out = [f(heads * d), t(DType::F32, &[1, heads, n])];
        all.push((composite("attention", &attrs), [&qkv[..], &rows].concat()));
        all.push((composite("attention_bwd", &attrs), [&out[..1], &qkv, &out, &rows].concat()));
    }
    let layer = fused_cases::Layer { tokens: n, inputs: h, outputs: i, rank: r };
    let fused = fused_cases::pointwise(x, layer).into_iter().chain(fused_cases::pairs(x, layer, 128));
    all.extend(fused.map(|n| (n.op, n.types)));
    for kd in ["logits", "topk"] {
        let attrs = Attrs::new()
            .with("kd", kd)
            .with("temperature", 2.0)
            .with("divergence", "jsd")
            .with("need_dw", kd == "topk");
        let mut types = vec![f(&[1]), f(&[1]), w(&[1, n, h]), w(&[32_000, h]), ids(&[1, n]), f(&[1, n])];
        types.extend(if kd == "topk" {
            vec![ids(&[1, n, 64]), f(&[1, n, 64]), f(&[1, n]), f(&[1, n])]
        } else {
            vec![w(&[1, n, 4096]), w(&[32_000, 4096]), f(&[1, n])]
        });
        all.push((composite("linear_cross_entropy_kd_fused", &attrs), types));
    }
    all
}
