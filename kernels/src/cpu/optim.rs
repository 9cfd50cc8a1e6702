//! The optimiser and sums over whole tensors: `adamw`, `sum_squares`, `ewc_penalty` and its gradient.

use crate::cpu::elem::of_type;
use crate::cpu::float::{BLOCK, Src};
use crate::cpu::reduce::{sum, sum_squares};
use crate::cpu::simd::simd;
use crate::cpu::{Call, Kernel, KernelError, par};
use kfc_graph::{Attrs, DType, TensorType};

/// Elements of one partial sum.
const PARTIAL: usize = 64 * 1024;

/// Sums `f(start, len)` over blocks of `0..n`: blocks in order within a partial sum, partial sums in order.
fn ordered_sum(n: usize, partials: &mut [f64], f: impl Fn(usize, usize) -> f64 + Sync + Send) -> f64 {
    let shared = par::Shared::new(partials);
    par::ranges(n, PARTIAL, |r| {
        let (task, end) = (r.start / PARTIAL, r.end);
        // SAFETY: each partial sum is written by one task.
        let total = unsafe { shared.slice(task, 1) };
        total[0] = r.step_by(BLOCK).map(|start| f(start, BLOCK.min(end - start))).sum();
    });
    partials.iter().sum()
}

/// `sum_squares`.
pub(crate) struct SumSquares {
    n: usize,
    x: DType,
}

impl SumSquares {
    pub(crate) fn new(x: &TensorType) -> SumSquares {
        SumSquares { n: x.elements(), x: x.dtype }
    }
}

impl Kernel for SumSquares {
    unsafe fn run(&self, call: &Call<'_>) {
        let x = call.src(0, self.x);
        // SAFETY: by contract of `run`; the workspace has the size asked for; blocks are in bounds.
        unsafe {
            let total = ordered_sum(
                self.n,
                call.work(0, self.n.div_ceil(PARTIAL)),
                |start, n| of_type!(x.dtype(), T => sum_squares(x.raw::<T>(start, n))),
            );
            call.output::<f32>(0)[0] = total as f32;
        }
    }

    fn workspace_bytes(&self) -> usize {
        self.n.div_ceil(PARTIAL) * size_of::<f64>()
    }
}

/// `ewc_penalty`: `½ Σ F (θ − θ*)²`.
pub(crate) struct EwcPenalty {
    n: usize,
    fisher: DType,
}

impl EwcPenalty {
    pub(crate) fn new(inputs: &[TensorType]) -> EwcPenalty {
        EwcPenalty { n: inputs[0].elements(), fisher: inputs[1].dtype }
    }
}

impl Kernel for EwcPenalty {
    unsafe fn run(&self, call: &Call<'_>) {
        let (theta, fisher, anchor) =
            (call.src(0, DType::F32), call.src(1, self.fisher), call.src(2, DType::F32));
        // SAFETY: by contract of `run`; the workspace has the size asked for; blocks are in bounds.
        unsafe {
            let total = ordered_sum(self.n, call.work(0, self.n.div_ceil(PARTIAL)), |start, n| {
                let (mut f, mut d) = ([0.0; BLOCK], [0.0; BLOCK]);
                weighted_square(
                    theta.raw(start, n),
                    fisher.read(start, n, &mut f),
                    anchor.raw(start, n),
                    &mut d[..n],
                );
                sum(&d[..n])
            });
            call.output::<f32>(0)[0] = (0.5 * total) as f32;
        }
    }

    fn workspace_bytes(&self) -> usize {
        self.n.div_ceil(PARTIAL) * size_of::<f64>()
    }
}

/// `ewc_penalty_bwd`: `g F (θ − θ*)`.
pub(crate) struct EwcPenaltyBwd {
    n: usize,
    fisher: DType,
}

impl EwcPenaltyBwd {
    pub(crate) fn new(inputs: &[TensorType]) -> EwcPenaltyBwd {
        EwcPenaltyBwd { n: inputs[1].elements(), fisher: inputs[2].dtype }
    }
}

impl Kernel for EwcPenaltyBwd {
    unsafe fn run(&self, call: &Call<'_>) {
        let (theta, fisher, anchor) =
            (call.src(1, DType::F32), call.src(2, self.fisher), call.src(3, DType::F32));
        let out = call.dst(0, DType::F32);
        // SAFETY: by contract of `run`.
        let g = unsafe { call.input::<f32>(0)[0] };
        par::ranges(self.n, par::GRAIN, |r| {
            let mut f = [0.0; BLOCK];
            let end = r.end;
            for start in r.step_by(BLOCK) {
                let n = BLOCK.min(end - start);
                // SAFETY: blocks are disjoint and in bounds.
                unsafe {
                    let f = fisher.read(start, n, &mut f);
                    weighted_difference(g, theta.raw(start, n), f, anchor.raw(start, n), out.raw(start, n));
                }
            }
        });
    }
}

/// `adamw`, in place.
pub(crate) struct AdamW {
    n: usize,
    step: Step,
    lr_scale: bool,
    cast: Option<DType>,
}

/// Hyperparameters of a step.
#[derive(Clone, Copy)]
struct Step {
    beta1: f32,
    beta2: f32,
    eps: f32,
    weight_decay: f32,
    /// Learning rate.
    lr: f32,
    /// Factor of the gradient.
    coef: f32,
    /// Bias corrections.
    bc: [f32; 2],
}

impl AdamW {
    pub(crate) fn new(attrs: &Attrs, inputs: &[TensorType]) -> Result<AdamW, KernelError> {
        let cast = match attrs.str("cast")? {
            "bf16" => Some(DType::Bf16),
            "f16" => Some(DType::F16),
            _ => None,
        };
        let step = Step {
            beta1: attrs.f64("beta1")? as f32,
            beta2: attrs.f64("beta2")? as f32,
            eps: attrs.f64("eps")? as f32,
            weight_decay: attrs.f64("weight_decay")? as f32,
            lr: 0.0,
            coef: 1.0,
            bc: [1.0; 2],
        };
        Ok(AdamW { n: inputs[0].elements(), step, lr_scale: attrs.bool("lr_scale")?, cast })
    }
}

impl Kernel for AdamW {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract of `run`: results hold their operands.
        unsafe {
            if call.input::<i32>(7)[0] == 0 {
                return;
            }
            let bc = call.input::<f32>(6);
            let step = Step {
                lr: call.input::<f32>(4)[0],
                coef: call.input::<f32>(5)[0],
                bc: [bc[0], bc[1]],
                ..self.step
            };
            let f = |j| call.dst(j, DType::F32);
            let (p, m, v, g) = (f(0), f(1), f(2), call.src(3, DType::F32));
            let lr_scale: Option<Src> = self.lr_scale.then(|| call.src(8, DType::F32));
            let copy = self.cast.map(|t| call.dst(3, t));
            par::ranges(self.n, par::GRAIN, |r| {
                let end = r.end;
                for start in r.step_by(BLOCK) {
                    let n = BLOCK.min(end - start);
                    let p = p.raw::<f32>(start, n);
                    let (m, v, g) = (m.raw(start, n), v.raw(start, n), g.raw(start, n));
                    match lr_scale {
                        Some(s) => adamw_scaled(step, p, m, v, g, s.raw(start, n)),
                        None => adamw(step, p, m, v, g),
                    }
                    if let Some(copy) = copy {
                        copy.store(start, p);
                    }
                }
            });
        }
    }

    fn inplace(&self) -> &'static [(usize, usize)] {
        match (self.cast.is_some(), self.lr_scale) {
            (false, _) => &[(0, 0), (1, 1), (2, 2)],
            (true, false) => &[(0, 0), (1, 1), (2, 2), (8, 3)],
            (true, true) => &[(0, 0), (1, 1), (2, 2), (9, 3)],
        }
    }
}

/// One element's update, as `torch.optim.AdamW`.
#[inline(always)]
fn update(s: Step, lr: f32, p: &mut f32, m: &mut f32, v: &mut f32, g: f32) {
    let g = g * s.coef;
    *m = s.beta1 * *m + (1.0 - s.beta1) * g;
    *v = s.beta2 * *v + (1.0 - s.beta2) * (g * g);
    let denominator = v.sqrt() / s.bc[1].sqrt() + s.eps;
    *p = *p * (1.0 - lr * s.weight_decay) - lr / s.bc[0] * (*m / denominator);
}

simd! {
    fn adamw(s: Step, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
        let n = p.len();
        let (m, v, g) = (&mut m[..n], &mut v[..n], &g[..n]);
        for i in 0..n {
            update(s, s.lr, &mut p[i], &mut m[i], &mut v[i], g[i]);
        }
    }

    fn adamw_scaled(s: Step, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], lr_scale: &[f32]) {
        let n = p.len();
        let (m, v, g, lr_scale) = (&mut m[..n], &mut v[..n], &g[..n], &lr_scale[..n]);
        for i in 0..n {
            update(s, s.lr * lr_scale[i], &mut p[i], &mut m[i], &mut v[i], g[i]);
        }
    }

    fn weighted_square(theta: &[f32], fisher: &[f32], anchor: &[f32], out: &mut [f32]) {
        let n = out.len();
        let (theta, fisher, anchor) = (&theta[..n], &fisher[..n], &anchor[..n]);
        for i in 0..n {
            let d = theta[i] - anchor[i];
            out[i] = fisher[i] * (d * d);
        }
    }

    fn weighted_difference(g: f32, theta: &[f32], fisher: &[f32], anchor: &[f32], out: &mut [f32]) {
        let n = out.len();
        let (theta, fisher, anchor) = (&theta[..n], &fisher[..n], &anchor[..n]);
        for i in 0..n {
            out[i] = g * fisher[i] * (theta[i] - anchor[i]);
        }
    }
}
