//! `swiglu` and its gradient.

use crate::cpu::float::BLOCK;
use crate::cpu::simd::simd;
use crate::cpu::{Call, Kernel, math, par};
use kfc_graph::{DType, TensorType};

/// `swiglu`: `silu(gate) · up`.
pub(crate) struct Swiglu {
    n: usize,
    x: DType,
}

impl Swiglu {
    pub(crate) fn new(gate: &TensorType) -> Swiglu {
        Swiglu { n: gate.elements(), x: gate.dtype }
    }
}

impl Kernel for Swiglu {
    unsafe fn run(&self, call: &Call<'_>) {
        let (gate, up, y) = (call.src(0, self.x), call.src(1, self.x), call.dst(0, self.x));
        par::ranges(self.n, par::GRAIN, |r| {
            let (mut sg, mut su, mut sy) = ([0.0; BLOCK], [0.0; BLOCK], [0.0; BLOCK]);
            let end = r.end;
            for start in r.step_by(BLOCK) {
                let n = BLOCK.min(end - start);
                // SAFETY: blocks are disjoint and in bounds.
                unsafe {
                    let gate = gate.read_before(&[y], start, n, &mut sg);
                    let up = up.read_before(&[y], start, n, &mut su);
                    let out = y.begin(start, n, &mut sy);
                    forward(gate, up, out);
                    y.finish(start, out);
                }
            }
        });
    }

    fn may_inplace(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (1, 0)]
    }
}

/// `swiglu_bwd`.
pub(crate) struct SwigluBwd {
    n: usize,
    x: DType,
}

impl SwigluBwd {
    pub(crate) fn new(dy: &TensorType) -> SwigluBwd {
        SwigluBwd { n: dy.elements(), x: dy.dtype }
    }
}

impl Kernel for SwigluBwd {
    unsafe fn run(&self, call: &Call<'_>) {
        let (dy, gate, up) = (call.src(0, self.x), call.src(1, self.x), call.src(2, self.x));
        let (dgate, dup) = (call.dst(0, self.x), call.dst(1, self.x));
        par::ranges(self.n, par::GRAIN, |r| {
            let (mut sd, mut sg, mut su) = ([0.0; BLOCK], [0.0; BLOCK], [0.0; BLOCK]);
            let (mut s1, mut s2) = ([0.0; BLOCK], [0.0; BLOCK]);
            let end = r.end;
            for start in r.step_by(BLOCK) {
                let n = BLOCK.min(end - start);
                // SAFETY: blocks are disjoint and in bounds.
                unsafe {
                    let results = [dgate, dup];
                    let dy = dy.read_before(&results, start, n, &mut sd);
                    let gate = gate.read_before(&results, start, n, &mut sg);
                    let up = up.read_before(&results, start, n, &mut su);
                    let (dg, du) = (dgate.begin(start, n, &mut s1), dup.begin(start, n, &mut s2));
                    backward(dy, gate, up, dg, du);
                    dgate.finish(start, dg);
                    dup.finish(start, du);
                }
            }
        });
    }

    /// The gradients of gate and up over these, or over dy.
    fn may_inplace(&self) -> &'static [(usize, usize)] {
        &[(1, 0), (2, 1), (0, 0), (0, 1)]
    }
}

simd! {
    fn forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            *y = *g * math::sigmoid(*g) * *u;
        }
    }

    fn backward(dy: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        let n = dy.len();
        let (gate, up, dgate, dup) = (&gate[..n], &up[..n], &mut dgate[..n], &mut dup[..n]);
        for i in 0..n {
            let (d, g) = (dy[i], gate[i]);
            let s = math::sigmoid(g);
            dgate[i] = d * up[i] * s * (1.0 + g * (1.0 - s));
            dup[i] = d * g * s;
        }
    }
}
