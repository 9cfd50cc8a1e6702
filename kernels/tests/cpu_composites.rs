//! Every sample of every composite on the CPU against the interpreter.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{ROUNDED, check, check_sample, check_within, precise};
use kfc_graph::{Attrs, Composite, DType, Op, SampleInput, TensorType};
use kfc_kernels::cpu;
use kfc_ops::samples::fill;

fn op(name: &str, attrs: &Attrs) -> Op {
    Op::Composite(Composite { def: kfc_ops::registry().get(name).unwrap(), attrs: attrs.clone() })
}

#[test]
fn samples_match_the_interpreter() {
    for def in kfc_ops::registry().iter() {
        for (i, sample) in def.samples().iter().enumerate() {
            let composite = Composite { def, attrs: sample.attrs.clone() };
            let types: Vec<TensorType> = sample.inputs.iter().map(|(t, _)| t.clone()).collect();
            assert!(cpu::claims(&composite, &types), "{} is not claimed", def.name());
            for seed in [1, 2] {
                check_sample(
                    &format!("sample {i} seed {seed}"),
                    &Op::Composite(composite.clone()),
                    sample,
                    seed,
                );
            }
        }
    }
}

/// Uniform operands in [-1, 1) for floats.
fn unit(types: &[TensorType], seed: u64) -> Vec<Vec<f64>> {
    let content = SampleInput::Uniform(-1.0, 1.0);
    types.iter().enumerate().map(|(i, t)| fill(t, &content, seed * 100 + i as u64)).collect()
}

/// Rounds values to `bf16`.
fn round(values: &mut [f64]) {
    values.iter_mut().for_each(|x| *x = half::bf16::from_f64(*x).to_f64());
}

const FLOATS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

#[test]
fn linear_at_odd_shapes() {
    for x in FLOATS {
        for (m, k, n) in [(1, 700, 33), (70, 129, 300), (300, 520, 17)] {
            let types = [(m, k), (n, k)].map(|(a, b)| TensorType::new(x, [a, b]));
            check("odd", &op("linear", &Attrs::new().with("bias", false)), &types, &unit(&types, 1));
            let types = [&types[..], &[TensorType::new(x, [n])]].concat();
            check("odd", &op("linear", &Attrs::new().with("bias", true)), &types, &unit(&types, 2));
        }
    }
}

#[test]
fn lora_at_odd_shapes() {
    let f = |x, dims: &[usize]| TensorType::new(x, dims);
    for x in FLOATS {
        // Even extents go through kernels for narrow matrices, where there are any; more than 16 lines are two panels.
        let odd = [(70, 600, 131, 5, 0.0), (290, 67, 300, 8, 0.3)];
        let even = [(70, 600, 132, 5, 0.0), (291, 66, 300, 20, 0.3), (33, 130, 98, 16, 0.0)];
        for (m, i, o, r, dropout) in odd.into_iter().chain(even) {
            let attrs = Attrs::new()
                .with("scale", 2.0)
                .with("dropout", dropout)
                .with("stream", 3usize)
                .with("bias", false)
                .with("need_dx", true);
            let mut types =
                vec![f(x, &[m, i]), f(x, &[o, i]), f(DType::F32, &[r, i]), f(DType::F32, &[o, r])];
            let mut data = unit(&types, 3);
            let mut back_types = [&[f(x, &[m, o])], &types[..], &[f(DType::F32, &[m, r])]].concat();
            let mut back = unit(&back_types, 4);
            if dropout > 0.0 {
                let seed = TensorType::new(DType::I32, [2]);
                types.push(seed.clone());
                back_types.push(seed);
                data.push(vec![17.0, -5.0]);
                back.push(vec![17.0, -5.0]);
            }
            if x == DType::Bf16 {
                // Nothing of A, B and S is rounded then, so that S and the gradient of B are as precise as `f32`.
                [&mut data[2..4], &mut back[3..6]].into_iter().flatten().for_each(|x| round(x));
            }
            // S is the second result of the one; the gradients of A and B are the second and third of the other.
            let gradients = |i: usize, ty: &TensorType| {
                if x == DType::Bf16 && i == 1 { ROUNDED } else { precise(ty) }
            };
            check_within("odd", &op("lora_linear", &attrs), &types, &data, |_, ty| precise(ty));
            check_within("odd", &op("lora_linear_bwd", &attrs), &back_types, &back, gradients);
        }
    }
}

/// Segments and positions of packed rows: several segments, padding at the end.
fn packed(batch: usize, t: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut seg, mut pos) = (Vec::new(), Vec::new());
    for b in 0..batch {
        let len = 7 + 40 * (b + 1);
        for i in 0..t {
            let is_padding = i + 5 >= t;
            seg.push(if is_padding { -1.0 } else { (i / len) as f64 });
            pos.push((i % len) as f64);
        }
    }
    (seg, pos)
}

#[test]
fn attention_over_several_tiles() {
    for x in FLOATS {
        for (batch, t, heads, kv, d, dv) in
            [(2, 300, 4, 2, 16, 16), (1, 150, 3, 3, 9, 5), (1, 140, 8, 1, 4, 8)]
        {
            let attrs = Attrs::new().with("heads", heads).with("kv_heads", kv).with("scale", 0.3);
            let f = |c: usize| TensorType::new(x, [batch, t, c]);
            let rows = TensorType::new(DType::I32, [batch, t]);
            let (seg, pos) = packed(batch, t);
            let qkv = [f(heads * d), f(kv * d), f(kv * dv)];
            let mut data = unit(&qkv, 5);
            let masks = [seg.clone(), pos.clone(), seg, pos];
            data.extend(masks.clone());
            let types = [&qkv[..], &vec![rows.clone(); 4]].concat();
            let forward = op("attention", &attrs);
            check("packed", &forward, &types, &data);

            let out = forward.infer(&types).unwrap();
            let results = common::run_interp(&forward, &types, &data);
            let o: Vec<f64> = results[0].iter().map(|v| kfc_ops::samples::round_to(x, *v)).collect();
            let lse: Vec<f64> = results[1].iter().map(|v| f64::from(*v as f32)).collect();
            let types = [&[out[0].clone()], &qkv[..], &out[..], &vec![rows; 4]].concat();
            let mut back = vec![unit(&[out[0].clone()], 6).remove(0)];
            back.extend(data[..3].to_vec());
            back.extend([o, lse]);
            back.extend(masks);
            check("packed", &op("attention_bwd", &attrs), &types, &back);
        }
    }
}

#[test]
fn decoding_sees_the_cache_alone() {
    let (tk, heads, d) = (400, 4, 8);
    let attrs = Attrs::new().with("heads", heads).with("kv_heads", 2usize).with("scale", 0.5);
    let f = |t: usize, c: usize| TensorType::new(DType::F32, [2, t, c]);
    let rows = |t: usize| TensorType::new(DType::I32, [2, t]);
    let types = [f(1, heads * d), f(tk, 2 * d), f(tk, 2 * d), rows(1), rows(1), rows(tk), rows(tk)];
    let mut data = unit(&types[..3], 7);
    let pos: Vec<f64> = (0..2 * tk).map(|i| (i % tk) as f64).collect();
    data.extend([vec![0.0, 0.0], vec![130.0, 260.0], vec![0.0; 2 * tk], pos]);
    check("decode", &op("attention", &attrs), &types, &data);
}

#[test]
fn head_over_several_chunks() {
    // 66,017 logits a token make chunks of at most 128 tokens; a small vocabulary makes one chunk.
    for (n, v, vt, h, temperature) in [
        (3, 70, 90, 20, 2.0),
        // Temperatures with and without exponentials that are powers of others.
        (3, 70, 90, 20, 1.0),
        (3, 70, 90, 20, 3.0),
        (3, 70, 70, 20, 4.0),
        (260, 66_000, 17, 1, 2.0),
    ] {
        for divergence in ["forward_kl", "reverse_kl", "jsd"] {
            let x = DType::F32;
            let attrs = Attrs::new()
                .with("kd", "logits")
                .with("temperature", temperature)
                .with("divergence", divergence)
                .with("need_dw", true);
            let f = |dims: &[usize]| TensorType::new(x, dims);
            let labels = TensorType::new(DType::I32, [1, n]);
            let types = [
                f(&[1]),
                f(&[1]),
                f(&[1, n, h]),
                f(&[v, h]),
                labels.clone(),
                f(&[1, n]),
                f(&[1, n, 3]),
                f(&[vt, 3]),
                f(&[1, n]),
            ];
            let mut data = unit(&types, 8);
            data[4] = (0..n).map(|i| if i % 3 == 2 { -100.0 } else { (i * 31 % v) as f64 }).collect();
            // Some rows have no loss at all, some only one of the two.
            data[5].iter_mut().enumerate().for_each(|(i, w)| *w = if i % 4 == 1 { 0.0 } else { w.abs() });
            data[8].iter_mut().enumerate().for_each(|(i, w)| *w = if i % 5 <= 1 { 0.0 } else { w.abs() });
            if v > 1000 && divergence != "forward_kl" {
                continue;
            }
            check("chunks", &op("linear_cross_entropy_kd_fused", &attrs), &types, &data);
            check("chunks", &op("linear_cross_entropy_kd_bwd", &attrs), &types, &data);
            check("chunks", &op("linear_cross_entropy_kd", &attrs), &types[2..], &data[2..]);
        }
    }
}

#[test]
fn a_head_without_any_loss_gives_zeros() {
    let attrs = Attrs::new()
        .with("kd", "none")
        .with("temperature", 1.0)
        .with("divergence", "forward_kl")
        .with("need_dw", true);
    let f = |dims: &[usize]| TensorType::new(DType::F32, dims);
    let types = [f(&[1]), f(&[1, 4, 3]), f(&[7, 3]), TensorType::new(DType::I32, [1, 4]), f(&[1, 4])];
    let mut data = unit(&types, 9);
    data[3] = vec![-100.0; 4];
    check("nothing", &op("linear_cross_entropy_kd_fused", &attrs), &types, &data);
}

#[test]
fn large_sums_are_ordered() {
    let n = 200_001;
    let f = |dims: &[usize]| TensorType::new(DType::F32, dims);
    let types = [f(&[n]), TensorType::new(DType::Bf16, [n]), f(&[n])];
    let mut data = unit(&types, 10);
    data[1].iter_mut().for_each(|v| *v = v.abs());
    check("large", &op("ewc_penalty", &Attrs::new()), &types, &data);
    check("large", &op("sum_squares", &Attrs::new().with("tensors", 3usize)), &types, &data);
    let many =
        [&[f(&[1]), f(&[n])], &types[..], &[f(&[70_000]), f(&[70_000])], &[f(&[70_000]), f(&[70_000])]]
            .concat();
    let mut operands = unit(&many, 13);
    operands[3].iter_mut().for_each(|v| *v = v.abs());
    operands[7].iter_mut().for_each(|v| *v = v.abs());
    check("many", &op("penalised_norm", &Attrs::new()), &many, &operands);
    // Ranks within one panel of rows, of columns, and of several of these.
    for (x, rank) in [DType::F32, DType::Bf16].into_iter().flat_map(|x| [5, 8, 20, 100].map(|r| (x, r))) {
        let types = [f(&[rank, 701]), f(&[601, rank]), TensorType::new(x, [601, 701])];
        let mut data = unit(&types, 11);
        data[2].iter_mut().for_each(|v| *v = v.abs());
        let attrs = Attrs::new().with("scale", 0.5);
        check("large", &op("ewc_delta", &attrs), &types, &data);
        let types = [&[f(&[1])], &types[..]].concat();
        let data = [&[vec![0.7]], &data[..]].concat();
        check("large", &op("ewc_delta_bwd", &attrs), &types, &data);
    }
}

#[test]
fn penalty_of_a_change_at_odd_shapes() {
    let f = |dims: &[usize]| TensorType::new(DType::F32, dims);
    for rank in [1, 3, 16, 17, 64] {
        for (o, i) in [(1, 1), (5, 63), (63, 5), (65, 130), (130, 65), (1, 130), (300, 1), (33, 257)] {
            for x in [DType::F32, DType::Bf16] {
                let types = [f(&[rank, i]), f(&[o, rank]), TensorType::new(x, [o, i])];
                let mut data = unit(&types, 14);
                data[2].iter_mut().for_each(|v| *v = v.abs());
                let attrs = Attrs::new().with("scale", 0.5);
                let what = format!("rank {rank}, {o} x {i}");
                check(&what, &op("ewc_delta", &attrs), &types, &data);
                let types = [&[f(&[1])], &types[..]].concat();
                let data = [&[vec![0.7]], &data[..]].concat();
                check(&what, &op("ewc_delta_bwd", &attrs), &types, &data);
            }
        }
    }
}

#[test]
fn norm_gradient_of_the_weight_over_many_rows() {
    for x in FLOATS {
        let types = [
            TensorType::new(x, [500, 33]),
            TensorType::new(x, [500, 33]),
            TensorType::new(x, [33]),
            TensorType::new(DType::F32, [500, 1]),
        ];
        let mut data = unit(&types, 12);
        data[3].iter_mut().for_each(|v| *v = v.abs() + 0.5);
        check("rows", &op("rms_norm_bwd", &Attrs::new().with("need_dw", true)), &types, &data);
    }
}

#[test]
fn the_same_at_lower_levels() {
    common::levels::at_lower_levels("the_same_at_lower_levels");
}
