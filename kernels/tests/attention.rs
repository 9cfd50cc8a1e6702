//! Attention and its gradient against the interpreter: odd shapes, packed rows, padding, caches.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{check, run_interp};
use kfc_graph::{Attrs, Composite, DType, Op, SampleInput, TensorType};
use kfc_ops::samples::{fill, round_to};

/// Segments and positions of queries and of keys.
type Marks = [Vec<f64>; 4];

#[derive(Clone, Copy, Debug)]
struct Shape {
    x: DType,
    batch: usize,
    tq: usize,
    tk: usize,
    kv_heads: usize,
    group: usize,
    d: usize,
    dv: usize,
}

impl Shape {
    /// As many queries as keys, and values as wide as keys.
    fn square(x: DType, batch: usize, t: usize, kv_heads: usize, group: usize, d: usize) -> Shape {
        Shape { x, batch, tq: t, tk: t, kv_heads, group, d, dv: d }
    }

    fn op(&self, name: &str) -> Op {
        let attrs = Attrs::new()
            .with("heads", self.kv_heads * self.group)
            .with("kv_heads", self.kv_heads)
            .with("scale", 1.5 / (self.d as f64).sqrt());
        Op::Composite(Composite { def: kfc_ops::registry().get(name).unwrap(), attrs })
    }

    fn rows(&self) -> [TensorType; 4] {
        [self.tq, self.tq, self.tk, self.tk].map(|t| TensorType::new(DType::I32, [self.batch, t]))
    }

    fn qkv(&self) -> [TensorType; 3] {
        let tensor = |t: usize, c: usize| TensorType::new(self.x, [self.batch, t, c]);
        let heads = self.kv_heads * self.group;
        [
            tensor(self.tq, heads * self.d),
            tensor(self.tk, self.kv_heads * self.d),
            tensor(self.tk, self.kv_heads * self.dv),
        ]
    }
}

/// Uniform in [-2, 2), so that some probabilities are near 1.
fn floats(types: &[TensorType], seed: u64) -> Vec<Vec<f64>> {
    let content = SampleInput::Uniform(-2.0, 2.0);
    types.iter().enumerate().map(|(i, t)| fill(t, &content, seed * 100 + i as u64)).collect()
}

/// Checks the forward pass, and the gradient where it was.
fn check_both(what: &str, s: Shape, marks: &Marks, backward: bool) {
    let what = format!("{what} {s:?}");
    let (forward, qkv, rows) = (s.op("attention"), s.qkv(), s.rows());
    let types = [&qkv[..], &rows].concat();
    let mut data = floats(&qkv, 5);
    data.extend(marks.clone());
    check(&what, &forward, &types, &data);
    if !backward {
        return;
    }
    let out = forward.infer(&types).unwrap();
    let results = run_interp(&forward, &types, &data);
    let round = |x: DType, v: &[f64]| v.iter().map(|v| round_to(x, *v)).collect::<Vec<_>>();
    let types = [&out[..1], &qkv, &out, &rows].concat();
    // With one key all gradients of scores are zero but for rounding: take the result of another row.
    let o = if s.tk == 1 { floats(&out[..1], 7).remove(0) } else { round(s.x, &results[0]) };
    let saved = [o, round(DType::F32, &results[1])];
    let data = [&floats(&out[..1], 6)[..], &data[..3], &saved, marks].concat();
    check(&what, &s.op("attention_bwd"), &types, &data);
}

/// One document a row.
fn causal(s: &Shape) -> Marks {
    let seg = |t: usize| vec![0.0; s.batch * t];
    let pos = |t: usize| (0..s.batch * t).map(|i| (i % t) as f64).collect();
    [seg(s.tq), pos(s.tq), seg(s.tk), pos(s.tk)]
}

/// Several documents a row, shorter in the first rows, and padding at the end; the queries are the last of the keys.
fn documents(s: &Shape) -> Marks {
    let (mut seg, mut pos) = (Vec::new(), Vec::new());
    for b in 0..s.batch {
        let len = 11 + 60 * b;
        for i in 0..s.tk {
            seg.push(if i + 5 >= s.tk { -1.0 } else { (i / len) as f64 });
            pos.push((i % len) as f64);
        }
    }
    let last = |x: &[f64]| x.chunks(s.tk).flat_map(|row| row[s.tk - s.tq..].to_vec()).collect();
    [last(&seg), last(&pos), seg, pos]
}

#[test]
fn odd_shapes() {
    for x in [DType::F32, DType::Bf16] {
        for (batch, t, kv_heads, group, d) in [
            (1, 1, 2, 1, 64),
            (3, 7, 2, 3, 40),
            (2, 7, 1, 8, 8),
            (1, 129, 2, 2, 96),
            (2, 129, 1, 3, 192),
            (1, 130, 1, 1, 1),
            (1, 513, 1, 1, 128),
            (1, 513, 1, 2, 64),
        ] {
            let s = Shape::square(x, batch, t, kv_heads, group, d);
            check_both("causal", s, &causal(&s), true);
            check_both("documents", s, &documents(&s), true);
        }
    }
}

#[test]
fn values_of_another_width() {
    for x in [DType::F32, DType::Bf16, DType::F16] {
        for (d, dv) in [(192, 128), (24, 56)] {
            let s = Shape { dv, ..Shape::square(x, 2, 140, 2, 2, d) };
            check_both("widths", s, &documents(&s), true);
        }
    }
}

#[test]
fn queries_at_the_end_of_a_cache() {
    for x in [DType::F32, DType::Bf16, DType::F16] {
        // One token, few, and a piece of a prompt.
        for (tq, group) in [(1, 1), (1, 8), (4, 3), (4, 5), (40, 2)] {
            let s = Shape { tq, ..Shape::square(x, 2, 700, 2, group, 64) };
            let mut marks = causal(&s);
            // The first row is in the middle of its cache, the second at the end.
            for i in 0..tq {
                marks[1][i] = (300 + i) as f64;
                marks[1][tq + i] = (s.tk - tq + i) as f64;
            }
            marks[2][300 + tq..s.tk].fill(-1.0);
            check_both("cache", s, &marks, tq > 4);
            check_both("documents", s, &documents(&s), tq > 4);
        }
    }
}

#[test]
fn any_mask() {
    for x in [DType::F32, DType::Bf16] {
        let s = Shape::square(x, 2, 300, 1, 2, 16);
        let [seg_q, pos_q, mut seg_k, mut pos_k] = causal(&s);
        // Documents that take turns, and keys in backward order.
        seg_k.iter_mut().enumerate().for_each(|(i, s)| *s = (i / 20 % 3) as f64);
        let seg_q: Vec<f64> = seg_q.iter().enumerate().map(|(i, _)| (i / 50 % 3) as f64).collect();
        pos_k.iter_mut().for_each(|p| *p = 299.0 - *p);
        check_both("turns", s, &[seg_q.clone(), pos_q.clone(), seg_k.clone(), pos_k.clone()], true);
        // A row of which nothing is seen.
        let mut none = seg_q;
        none[..300].fill(-1.0);
        check_both("nothing", s, &[none, pos_q.clone(), seg_k.clone(), pos_k], true);
        seg_k.fill(-1.0);
        check_both("negative", s, &[seg_k.clone(), pos_q.clone(), seg_k, pos_q], true);
    }
}

/// Blocks of rows and waves of heads follow each other.
#[test]
fn several_blocks_and_waves() {
    for x in [DType::F32, DType::Bf16] {
        let s = Shape::square(x, 3, 200, 3, 8, 8);
        check_both("blocks", s, &documents(&s), true);
    }
}

/// Scores that grow along the row raise the running maximum again and again.
#[test]
fn growing_scores() {
    for x in [DType::F32, DType::Bf16] {
        let s = Shape::square(x, 1, 400, 1, 1, 8);
        let types = [&s.qkv()[..], &s.rows()].concat();
        let mut data = floats(&s.qkv(), 9);
        let row = |v: f64| move |i: usize| v * (i / 8) as f64;
        data[0] = vec![1.0; 400 * 8];
        data[1] = (0..400 * 8).map(row(0.02)).map(|v| round_to(x, v)).collect();
        data.extend(causal(&s));
        check("growing", &s.op("attention"), &types, &data);
        data[1] = data[1].iter().map(|v| -v).collect();
        check("falling", &s.op("attention"), &types, &data);
    }
}
