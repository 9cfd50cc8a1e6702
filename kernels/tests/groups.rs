//! Fused groups against the primitives that they are made of: the same bits, in any memory plan and with any number of
//! threads; and against the interpreter.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::decode;
use common::exec::{run_apart, run_plan};
use kfc_graph::interp::{self, Tensor};
use kfc_graph::passes::fuse_pointwise;
use kfc_graph::text::print;
use kfc_graph::verify::verify;
use kfc_graph::{Builder, CmpOp, DType, Graph, InputKind, Op, Prim, TensorType, ValueId};
use kfc_kernels::compile::compile;

/// A random number generator (Knuth's constants).
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// A few rows, many rows, one long row, and a shape of three axes.
const SHAPES: [&[usize]; 5] = [&[3, 5], &[40, 1500], &[1, 200_001], &[4, 3, 70], &[17, 1]];

/// A graph of pointwise primitives, broadcasts and row reductions. A tame one is of `f32` alone and has no operation that
/// makes large errors of small ones.
fn random(seed: u64, tame: bool) -> Graph {
    let mut rng = Rng(seed);
    let dims = SHAPES[rng.below(SHAPES.len())];
    let mut g = Graph::new(format!("pointwise {seed}"));
    let types = if tame { vec![DType::F32; 3] } else { [&DType::ALL[..], &[DType::F32]].concat() };
    let kinds = [InputKind::Data, InputKind::Weight];
    let input = |g: &mut Graph, dtype, dims: &[usize]| {
        g.add_input(
            format!("x{}", g.inputs().len()),
            kinds[g.inputs().len() % 2],
            TensorType::new(dtype, dims),
        )
    };
    let mut values: Vec<ValueId> = types.iter().map(|&t| input(&mut g, t, dims)).collect();
    let small: Vec<ValueId> = (0..1usize << dims.len())
        .map(|mask| {
            let dims: Vec<usize> =
                dims.iter().enumerate().map(|(i, &d)| if mask >> i & 1 == 1 { d } else { 1 }).collect();
            input(&mut g, types[rng.below(types.len())], &dims)
        })
        .collect();
    let mut b = Builder::new(&mut g);
    let mut sums = vec![];
    for _ in 0..12 + rng.below(20) {
        let x = values[values.len() - 1 - rng.below(values.len().min(6))];
        let ty = b.ty(x).clone();
        let alike: Vec<ValueId> = values.iter().copied().filter(|&v| *b.ty(v) == ty).collect();
        let y = alike[alike.len() - 1 - rng.below(alike.len().min(4))];
        let float = ty.dtype.is_float();
        let made = match rng.below(if tame { 9 } else { 16 }) {
            0 => b.add(x, y),
            1 => b.mul(x, y),
            2 => b.sub(x, y),
            3 => b.prim(Prim::Max, &[x, y]),
            4 if float => b.sigmoid(x),
            5 if float => b.neg(x),
            6 => b.broadcast(small[rng.below(small.len())], dims),
            7 => b.constant(ty, [2.0, -1.0, 0.5][rng.below(if float { 3 } else { 2 })]),
            8 if float => {
                let axis = dims.len() - 1;
                sums.push(if tame || rng.below(2) == 0 {
                    b.reduce_sum(x, &[axis]).unwrap()
                } else {
                    b.reduce_max(x, &[axis]).unwrap()
                });
                continue;
            }
            9 => b.cast(x, DType::ALL[rng.below(4)]),
            10 => b.cast(x, DType::Bf16),
            11 => b.compare([CmpOp::Eq, CmpOp::Lt, CmpOp::Le][rng.below(3)], x, y),
            12 => match values.iter().rev().find(|&&v| b.ty(v).dtype == DType::I32) {
                Some(&c) => b.select(c, x, y),
                None => continue,
            },
            13 if float => b.exp(x),
            14 if float => b.div(x, y),
            15 if float => b.log(x),
            _ => continue,
        };
        values.push(made.unwrap());
    }
    let last = values.len();
    for v in values.drain(last - 2..).chain(sums) {
        if matches!(g.def(v), kfc_graph::Def::Node(..)) {
            g.add_output(format!("y{}", g.outputs().len()), v, None);
        }
    }
    g
}

fn contents(g: &Graph, seed: u64) -> Vec<Vec<f64>> {
    let mut rng = Rng(seed ^ 0x5555);
    let value = |dtype: DType, rng: &mut Rng| {
        let u = rng.below(4096) as f64 / 1024.0 - 2.0;
        kfc_ops::samples::round_to(dtype, if dtype == DType::I32 { 2.0 * u } else { u })
    };
    let of = |i: &kfc_graph::Input| {
        let ty = g.ty(i.value);
        (0..ty.elements()).map(|_| value(ty.dtype, &mut rng)).collect()
    };
    g.inputs().iter().map(of).collect()
}

fn groups(g: &Graph) -> usize {
    g.nodes().iter().filter(|n| matches!(n.op, Op::Group(_))).count()
}

/// Same numbers, where NaN equals itself.
fn same(a: &[Tensor], b: &[Tensor]) -> bool {
    let bits = |t: &[Tensor]| -> Vec<u64> {
        t.iter().flat_map(|t| &t.data).map(|v| if v.is_nan() { 1 } else { v.to_bits() }).collect()
    };
    bits(a) == bits(b)
}

#[test]
fn groups_give_the_bits_of_their_primitives() {
    let (mut found, mut reduced, mut wide) = (0, 0, 0);
    for seed in 0..120 {
        let g = random(seed, false);
        verify(&g).unwrap();
        let fused = fuse_pointwise::run(&g).unwrap();
        verify(&fused).unwrap();
        let data = contents(&g, seed);
        let apart = run_apart(&g, &data);
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let got = pool.install(|| run_apart(&fused, &data));
            assert!(got == apart, "seed {seed}, {threads} threads:\n{}\n{}", print(&g), print(&fused));
        }
        found += groups(&fused);
        for n in &fused.nodes().to_vec() {
            let Op::Group(group) = &n.op else { continue };
            let has = |f: fn(&Prim) -> bool| {
                group.body().nodes().iter().any(|n| matches!(&n.op, Op::Prim(p) if f(p)))
            };
            reduced += usize::from(has(|p| matches!(p, Prim::ReduceSum { .. } | Prim::ReduceMax { .. })));
            wide += usize::from(has(|p| matches!(p, Prim::Broadcast { .. })));
        }
    }
    assert!(
        found > 200 && reduced > 15 && wide > 30,
        "{found} groups, {reduced} reductions, {wide} broadcasts"
    );
}

#[test]
fn plans_with_groups_in_place_give_the_same_bytes() {
    let mut found = 0;
    for seed in 200..280 {
        let g = random(seed, false);
        let mut before = None;
        let mut keep = |name: &str, g: &Graph| {
            if name == "08-dce" {
                before = Some(g.clone());
            }
        };
        let plan = compile(&g, &mut keep).unwrap();
        let before = before.unwrap();
        let data = contents(&g, seed);
        found += plan
            .steps
            .iter()
            .filter(|s| matches!(s.op, Op::Group(_)) && s.inputs.contains(&s.outputs[0]))
            .count();
        assert!(run_plan(&plan, &data) == run_apart(&before, &data), "seed {seed}:\n{}", print(&before));
    }
    assert!(found > 3, "{found} groups in place");
}

#[test]
fn the_interpreter_runs_groups_as_their_primitives() {
    for seed in 300..340 {
        let g = random(seed, true);
        let fused = fuse_pointwise::run(&g).unwrap();
        let data = contents(&g, seed);
        let inputs: Vec<Tensor> = g
            .inputs()
            .iter()
            .zip(&data)
            .map(|(i, d)| Tensor::new(g.ty(i.value).dims.clone(), d.clone()))
            .collect();
        let exact = interp::run(&g, &inputs).unwrap();
        assert!(same(&exact, &interp::run(&fused, &inputs).unwrap()), "seed {seed}");
        for ((_, got), (output, exact)) in
            run_apart(&fused, &data).iter().zip(fused.outputs().iter().zip(&exact))
        {
            let scale = exact.data.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
            for (got, exact) in decode(fused.ty(output.value), got).iter().zip(&exact.data) {
                let close = (got - exact).abs() <= 1e-4 * scale || got == exact || exact.abs() > 1e38;
                assert!(close, "seed {seed}: {got} instead of {exact}\n{}", print(&fused));
            }
        }
    }
}
