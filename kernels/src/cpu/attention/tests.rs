//! Every instruction set that the CPU has against sums in `f64`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::cpu::simd::{self, Level};
use crate::cpu::{Buf, float::Dst};

/// A tensor as it is stored, in whole cache lines, and exactly.
struct Data {
    lines: Vec<[u64; 8]>,
    values: Vec<f64>,
}

impl Data {
    fn zeros(bytes: usize) -> Data {
        Data { lines: vec![[0; 8]; bytes.div_ceil(64) + 1], values: vec![] }
    }

    fn floats(x: DType, values: &[f64]) -> Data {
        let mut data = Data::zeros(values.len() * x.size());
        let dst = Dst::new(data.lines.as_mut_ptr().cast(), x);
        let floats: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        // SAFETY: in bounds.
        unsafe { dst.store(0, &floats) };
        data.values = data.read(x, values.len());
        data
    }

    fn random(x: DType, n: usize, seed: u32) -> Data {
        let mut state = seed.wrapping_mul(2_654_435_769) | 1;
        let values: Vec<f64> = (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f64::from(state >> 8) / f64::from(1 << 23) - 1.0
            })
            .collect();
        Data::floats(x, &values)
    }

    fn integers(values: &[i32]) -> Data {
        let mut data = Data::zeros(values.len() * 4);
        let bytes: &mut [i32] = bytemuck::cast_slice_mut(&mut data.lines);
        bytes[..values.len()].copy_from_slice(values);
        data
    }

    fn read(&self, x: DType, n: usize) -> Vec<f64> {
        let mut out = vec![0.0f32; n];
        // SAFETY: in bounds.
        unsafe { crate::cpu::float::Src::new(self.lines.as_ptr().cast(), x).load(0, &mut out) };
        out.into_iter().map(f64::from).collect()
    }

    fn buf(&mut self, bytes: usize) -> Buf {
        Buf { ptr: self.lines.as_mut_ptr().cast(), bytes }
    }
}

/// Operands of both passes, and what comes out in `f64`.
struct Case {
    s: Shape,
    /// q, k, v, do.
    floats: Vec<Data>,
    marks: [Vec<i32>; 4],
    /// o, lse, dq, dk, dv.
    exact: [Vec<f64>; 5],
}

impl Case {
    fn new(s: Shape) -> Case {
        let (q, k) = (s.batch * s.tq * s.heads(), s.batch * s.tk * s.kv_heads);
        let lengths = [q * s.d, k * s.d, k * s.dv, q * s.dv];
        let floats: Vec<Data> =
            lengths.iter().zip(1..).map(|(n, seed)| Data::random(s.x, *n, seed)).collect();
        // Two documents, and padding at the end of the keys; queries are the last tokens.
        let half = s.tk / 2;
        let seg: Vec<i32> = (0..s.tk).map(|i| if i + 2 >= s.tk { -1 } else { (i >= half) as i32 }).collect();
        let pos: Vec<i32> = (0..s.tk).map(|i| (i % half.max(1)) as i32).collect();
        let all = |x: &[i32]| x.repeat(s.batch);
        let last = s.tk - s.tq;
        let marks = [all(&seg[last..]), all(&pos[last..]), all(&seg), all(&pos)];
        let exact = [q * s.dv, q, q * s.d, k * s.d, k * s.dv].map(|n| vec![0.0; n]);
        let mut case = Case { s, floats, marks, exact };
        for h in 0..s.all_heads() {
            (0..s.rows()).for_each(|r| case.row(s.head(h), r));
        }
        case
    }

    /// Adds what one row of queries contributes.
    fn row(&mut self, at: Head, r: usize) {
        let s = self.s;
        let row = s.tensor_row(at, r);
        let [q, k, v, d_o] = [0, 1, 2, 3].map(|i| &self.floats[i].values);
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let q = &q[row * s.d..][..s.d];
        let d_o = &d_o[row * s.dv..][..s.dv];
        let seen: Vec<usize> = (0..s.tk).filter(|j| self.sees(at, r, *j)).map(|j| s.key_row(at, j)).collect();
        let scale = f64::from(s.scale);
        let scores: Vec<f64> = seen.iter().map(|j| (scale * dot(q, &k[j * s.d..][..s.d])).exp()).collect();
        let sum: f64 = scores.iter().sum();
        if seen.is_empty() {
            return;
        }
        self.exact[1][s.lse_index(at, r)] = sum.ln();
        let grads: Vec<f64> = seen.iter().map(|j| dot(d_o, &v[j * s.dv..][..s.dv])).collect();
        let delta: f64 = grads.iter().zip(&scores).map(|(g, p)| g * p / sum).sum();
        for ((&j, p), g) in seen.iter().zip(&scores).zip(&grads) {
            let p = p / sum;
            let ds = scale * p * (g - delta);
            for c in 0..s.dv {
                self.exact[0][row * s.dv + c] += p * v[j * s.dv + c];
                self.exact[4][j * s.dv + c] += p * d_o[c];
            }
            for c in 0..s.d {
                self.exact[2][row * s.d + c] += ds * k[j * s.d + c];
                self.exact[3][j * s.d + c] += ds * q[c];
            }
        }
    }

    /// Whether a row of queries sees a key.
    fn sees(&self, at: Head, r: usize, key: usize) -> bool {
        let s = &self.s;
        let (token, key) = (at.batch * s.tq + r / s.group, at.batch * s.tk + key);
        self.marks[0][token] >= 0
            && self.marks[0][token] == self.marks[2][key]
            && self.marks[3][key] <= self.marks[1][token]
    }

    /// Operands of the forward pass.
    fn operands(&self) -> Vec<Data> {
        let floats = [0, 1, 2].map(|i| Data::floats(self.s.x, &self.floats[i].values));
        floats.into_iter().chain(self.marks.iter().map(|m| Data::integers(m))).collect()
    }

    /// Runs a kernel on operands and returns results `first..` of the exact ones.
    fn run(&self, kernel: &dyn Kernel, inputs: &mut [Data], first: usize, results: usize) -> Vec<Vec<f64>> {
        let types = [self.s.x, DType::F32, self.s.x, self.s.x, self.s.x];
        let mut outs: Vec<Data> =
            (first..first + results).map(|i| Data::zeros(self.exact[i].len() * types[i].size())).collect();
        let mut work = Data::zeros(kernel.workspace_bytes());
        // Whatever is read before it is written shows.
        work.lines.fill([u64::MAX; 8]);
        let bufs = |data: &mut [Data]| -> Vec<Buf> {
            data.iter_mut()
                .map(|d| {
                    let n = d.lines.len() * 64;
                    d.buf(n)
                })
                .collect()
        };
        let (inputs, outputs) = (bufs(inputs), bufs(&mut outs));
        let workspace = work.buf(kernel.workspace_bytes());
        // SAFETY: buffers hold what the kernel was built for and do not overlap.
        unsafe { kernel.run(&Call { inputs: &inputs, outputs: &outputs, workspace, transposed: None }) };
        outs.iter().zip(first..).map(|(d, i)| d.read(types[i], self.exact[i].len())).collect()
    }

    fn check(&self, level: Level) {
        let (s, x) = (self.s, self.s.x);
        let copy = |i: usize| Data::floats(x, &self.floats[i].values);
        let marks = || self.marks.iter().map(|m| Data::integers(m));
        let forward = Attention::with_engine(s, Engine::at(level, x));
        let mut got = self.run(&forward, &mut self.operands(), 0, 2);
        let backward = AttentionBwd::with_engine(s, Engine::at(level, x));
        let saved = [Data::floats(x, &self.exact[0]), Data::floats(DType::F32, &self.exact[1])];
        let mut inputs: Vec<Data> = [3, 0, 1, 2].map(copy).into_iter().chain(saved).chain(marks()).collect();
        got.extend(self.run(&backward, &mut inputs, 2, 3));
        for (i, (got, exact)) in got.iter().zip(&self.exact).enumerate() {
            let most = exact.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            let tolerance = if i == 1 || x == DType::F32 { 1e-5 } else { 1e-2 };
            for (j, (g, e)) in got.iter().zip(exact).enumerate() {
                let is_close = (g - e).abs() <= tolerance * most;
                assert!(is_close, "{level:?} {x} result {i}, element {j}: {g} instead of {e}");
            }
        }
    }
}

#[test]
fn all_instruction_sets() {
    for x in [DType::F32, DType::Bf16] {
        for (tq, tk, kv_heads, group, d, dv) in [
            (150, 150, 2, 3, 24, 24),
            (33, 290, 1, 2, 17, 40),
            (1, 300, 2, 4, 24, 8),
            (137, 137, 1, 1, 64, 5),
            (100, 100, 3, 1, 16, 64),
        ] {
            let s = Shape { batch: 2, tq, tk, kv_heads, group, d, dv, scale: 0.7, x };
            let case = Case::new(s);
            simd::available().into_iter().for_each(|l| case.check(l));
        }
    }
}

#[test]
fn what_is_no_number_reaches_those_who_see_it() {
    let shapes = [(70, 70, 40), (4, 300, 160)];
    for (x, (tq, tk, bad)) in [DType::F32, DType::Bf16].into_iter().flat_map(|x| shapes.map(|s| (x, s))) {
        let s = Shape { batch: 1, tq, tk, kv_heads: 2, group: 2, d: 16, dv: 8, scale: 0.7, x };
        let mut case = Case::new(s);
        let at = s.head(1);
        case.floats[1].values[s.key_row(at, bad) * s.d] = f64::NAN;
        let mut seen = 0;
        for level in simd::available() {
            let forward = Attention::with_engine(s, Engine::at(level, x));
            let o = case.run(&forward, &mut case.operands(), 0, 2).remove(0);
            for (h, r) in (0..2).flat_map(|h| (0..s.rows()).map(move |r| (h, r))) {
                let is_none = h == 1 && case.sees(at, r, bad);
                seen += usize::from(is_none);
                let row = &o[s.tensor_row(s.head(h), r) * s.dv..][..s.dv];
                assert!(
                    row.iter().all(|o| o.is_nan() == is_none),
                    "{level:?} {x} head {h}, row {r}: {row:?}"
                );
            }
        }
        assert!(seen > 0);
    }
}
