//! Sums over whole tensors: `sum_squares`, `ewc_penalty` and `penalised_norm`; and the gradient of the penalty.
//!
//! A sum goes over blocks in order within a task, and over tasks in order.

use crate::cpu::elem::{Elem, of_type};
use crate::cpu::float::blocks;
use crate::cpu::list::List;
use crate::cpu::reduce::sum_squares;
use crate::cpu::simd::simd;
use crate::cpu::{Call, Kernel, par};
use kfc_graph::{DType, TensorType};

/// Elements of one partial sum.
const PARTIAL: usize = 64 * 1024;

/// Sums what `f(tensor, start, len)` gives for the blocks of a list, in the list's order; `N` sums side by side.
fn ordered_sum<const N: usize>(
    list: &List,
    partials: &mut [[f64; N]],
    f: impl Fn(usize, usize, usize) -> [f64; N] + Sync + Send,
) -> [f64; N] {
    let add = |a: [f64; N], b: [f64; N]| std::array::from_fn(|i| a[i] + b[i]);
    let shared = par::Shared::new(partials);
    list.each(|task, tensor, range| {
        // SAFETY: each partial sum is written by one task.
        let total = unsafe { shared.slice(task, 1) };
        total[0] = blocks(range).map(|(start, n)| f(tensor, start, n)).fold([0.0; N], add);
    });
    partials.iter().copied().fold([0.0; N], add)
}

fn lengths<'a>(tensors: impl Iterator<Item = &'a TensorType>) -> List {
    List::new(tensors.map(TensorType::elements).collect(), PARTIAL)
}

/// `sum_squares`.
pub(crate) struct SumSquares {
    list: List,
    types: Vec<DType>,
}

impl SumSquares {
    pub(crate) fn new(inputs: &[TensorType]) -> SumSquares {
        SumSquares { list: lengths(inputs.iter()), types: inputs.iter().map(|t| t.dtype).collect() }
    }
}

impl Kernel for SumSquares {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract of `run`; the workspace has the size asked for; blocks are in bounds.
        unsafe {
            let [total] = ordered_sum(&self.list, call.work(0, self.list.tasks()), |i, start, n| {
                let x = call.src(i, self.types[i]);
                of_type!(x.dtype(), T => [sum_squares(x.raw::<T>(start, n))])
            });
            call.output::<f32>(0)[0] = total as f32;
        }
    }

    fn workspace_bytes(&self) -> usize {
        self.list.tasks() * size_of::<f64>()
    }
}

/// `ewc_penalty`: `½ Σ F (θ − θ*)²`.
pub(crate) struct EwcPenalty {
    list: List,
    fisher: DType,
}

impl EwcPenalty {
    pub(crate) fn new(inputs: &[TensorType]) -> EwcPenalty {
        EwcPenalty { list: lengths(inputs[..1].iter()), fisher: inputs[1].dtype }
    }
}

impl Kernel for EwcPenalty {
    unsafe fn run(&self, call: &Call<'_>) {
        let (theta, fisher) = (call.src(0, DType::F32), call.src(1, self.fisher));
        let anchor = call.src(2, DType::F32);
        // SAFETY: by contract of `run`; the workspace has the size asked for; blocks are in bounds.
        unsafe {
            let [total] = ordered_sum(&self.list, call.work(0, self.list.tasks()), |_, start, n| {
                let (theta, anchor) = (theta.raw(start, n), anchor.raw(start, n));
                of_type!(self.fisher, F => [penalty(theta, fisher.raw::<F>(start, n), anchor)])
            });
            call.output::<f32>(0)[0] = (0.5 * total) as f32;
        }
    }

    fn workspace_bytes(&self) -> usize {
        self.list.tasks() * size_of::<f64>()
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
        let (theta, fisher) = (call.src(1, DType::F32), call.src(2, self.fisher));
        let (anchor, out) = (call.src(3, DType::F32), call.dst(0, DType::F32));
        // SAFETY: by contract of `run`; ranges are disjoint and in bounds.
        unsafe {
            let g = call.input::<f32>(0)[0];
            par::ranges(self.n, par::GRAIN, |r| {
                let (start, n) = (r.start, r.len());
                let (theta, anchor, out) = (theta.raw(start, n), anchor.raw(start, n), out.raw(start, n));
                of_type!(self.fisher, F => pull_all(g, theta, fisher.raw::<F>(start, n), anchor, out));
            });
        }
    }
}

/// `penalised_norm`: `Σ (g + weight·F·(θ−θ*))²` and `½ Σ F·(θ−θ*)²`.
pub(crate) struct PenalisedNorm {
    list: List,
    /// Element type of each parameter's Fisher diagonal.
    fishers: Vec<DType>,
}

impl PenalisedNorm {
    pub(crate) fn new(inputs: &[TensorType]) -> PenalisedNorm {
        let params = || inputs[1..].chunks(4);
        PenalisedNorm {
            list: lengths(params().map(|p| &p[0])),
            fishers: params().map(|p| p[2].dtype).collect(),
        }
    }
}

impl Kernel for PenalisedNorm {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract of `run`; the workspace has the size asked for; blocks are in bounds.
        unsafe {
            let weight = call.input::<f32>(0)[0];
            let [norm, value] = ordered_sum(&self.list, call.work(0, self.list.tasks()), |i, start, n| {
                let f32 = |k: usize| call.src(1 + 4 * i + k, DType::F32).raw(start, n);
                let (g, theta, anchor) = (f32(0), f32(1), f32(3));
                let fisher = call.src(3 + 4 * i, self.fishers[i]);
                of_type!(fisher.dtype(), F => penalised(weight, g, theta, fisher.raw::<F>(start, n), anchor))
            });
            call.output::<f32>(0)[0] = norm as f32;
            call.output::<f32>(1)[0] = (0.5 * value) as f32;
        }
    }

    fn workspace_bytes(&self) -> usize {
        self.list.tasks() * size_of::<[f64; 2]>()
    }
}

/// Gradient of the penalty at one element.
#[inline(always)]
pub(crate) fn pull(weight: f32, theta: f32, fisher: f32, anchor: f32) -> f32 {
    weight * fisher * (theta - anchor)
}

/// Twice the penalty of one element, of weight one.
#[inline(always)]
fn drawn(theta: f32, fisher: f32, anchor: f32) -> f32 {
    let drift = theta - anchor;
    fisher * (drift * drift)
}

/// Lanes of the sums below.
const LANES: usize = 16;

simd! {
    /// `Σ F (θ − θ*)²`
    fn penalty<F: Elem>(theta: &[f32], fisher: &[F], anchor: &[f32]) -> f64 {
        let (theta, theta_rest) = theta.as_chunks::<LANES>();
        let (fisher, fisher_rest) = fisher.as_chunks::<LANES>();
        let (anchor, anchor_rest) = anchor.as_chunks::<LANES>();
        let mut acc = [0.0f64; LANES];
        for ((theta, fisher), anchor) in theta.iter().zip(fisher).zip(anchor) {
            for l in 0..LANES {
                acc[l] += f64::from(drawn(theta[l], fisher[l].get(), anchor[l]));
            }
        }
        let rest = theta_rest.iter().zip(fisher_rest).zip(anchor_rest);
        acc.iter().sum::<f64>() + rest.map(|((t, f), a)| f64::from(drawn(*t, f.get(), *a))).sum::<f64>()
    }

    fn pull_all<F: Elem>(weight: f32, theta: &[f32], fisher: &[F], anchor: &[f32], out: &mut [f32]) {
        let n = out.len();
        let (theta, fisher, anchor) = (&theta[..n], &fisher[..n], &anchor[..n]);
        for i in 0..n {
            out[i] = pull(weight, theta[i], fisher[i].get(), anchor[i]);
        }
    }

    /// `Σ (g + weight·F·(θ−θ*))²` and `Σ F·(θ−θ*)²`
    fn penalised<F: Elem>(weight: f32, g: &[f32], theta: &[f32], fisher: &[F], anchor: &[f32]) -> [f64; 2] {
        let (g, g_rest) = g.as_chunks::<LANES>();
        let (theta, theta_rest) = theta.as_chunks::<LANES>();
        let (fisher, fisher_rest) = fisher.as_chunks::<LANES>();
        let (anchor, anchor_rest) = anchor.as_chunks::<LANES>();
        let (mut norm, mut value) = ([0.0f64; LANES], [0.0f64; LANES]);
        for (((g, theta), fisher), anchor) in g.iter().zip(theta).zip(fisher).zip(anchor) {
            for l in 0..LANES {
                let f = fisher[l].get();
                let g = f64::from(g[l] + pull(weight, theta[l], f, anchor[l]));
                norm[l] += g * g;
                value[l] += f64::from(drawn(theta[l], f, anchor[l]));
            }
        }
        let mut sums = [norm.iter().sum::<f64>(), value.iter().sum::<f64>()];
        for (((g, theta), fisher), anchor) in g_rest.iter().zip(theta_rest).zip(fisher_rest).zip(anchor_rest) {
            let g = f64::from(g + pull(weight, *theta, fisher.get(), *anchor));
            sums[0] += g * g;
            sums[1] += f64::from(drawn(*theta, fisher.get(), *anchor));
        }
        sums
    }
}
