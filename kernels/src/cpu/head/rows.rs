//! Passes over one token's logits.

use crate::cpu::simd::simd;
use crate::cpu::{math, reduce};
use kfc_ops::head::Divergence;

/// Cross-entropy of one row.
pub(super) struct CrossEntropy {
    /// Log-sum-exp.
    pub(super) lse: f64,
    /// Index of the largest logit, the first of equals.
    pub(super) argmax: usize,
    /// `lse - z[label]`, 0 without a label.
    pub(super) loss: f64,
}

/// Cross-entropy of the logits `z`.
pub(super) fn cross_entropy(z: &[f32], label: Option<usize>) -> CrossEntropy {
    let max = reduce::max(z);
    let argmax = z.iter().position(|v| *v == max).unwrap_or(0);
    let lse = f64::from(max) + sum_exp(1.0, max, z).ln();
    CrossEntropy { lse, argmax, loss: label.map_or(0.0, |l| lse - f64::from(z[l])) }
}

/// Log-sum-exp of `scale · z`.
pub(super) fn log_sum_exp(scale: f32, z: &[f32]) -> f32 {
    let shift = scale * reduce::max(z);
    (f64::from(shift) + sum_exp(scale, shift, z).ln()) as f32
}

/// Log-probabilities of student and teacher at a temperature: `z·scale - lse`.
#[derive(Clone, Copy)]
pub(super) struct Softened {
    scale: f32,
    lse_s: f32,
    lse_t: f32,
}

impl Softened {
    /// Of logits over the vocabulary that both have.
    pub(super) fn new(z: &[f32], zt: &[f32], temperature: f32) -> Softened {
        let scale = 1.0 / temperature;
        Softened { scale, lse_s: log_sum_exp(scale, z), lse_t: log_sum_exp(scale, zt) }
    }

    /// Returns the divergence. With a gradient, `z` becomes `a · softmax(z) + b · d divergence / d (z / T)`.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn run(
        self,
        kind: Divergence,
        a: f32,
        b: f32,
        lse: f32,
        z: &mut [f32],
        zt: &[f32],
        with_gradient: bool,
    ) -> f64 {
        let common = z.len().min(zt.len());
        let (head, tail) = z.split_at_mut(common);
        let zt = &zt[..common];
        // `centre` is Σ p g of the gradient through the softmax.
        let (loss, centre) = match kind {
            Divergence::ForwardKl => (forward_kl(self, head, zt), 0.0),
            Divergence::ReverseKl => {
                let d = reverse_kl(self, head, zt);
                (d, d as f32)
            }
            Divergence::Jsd => {
                let from_p = jsd_from_p(self, head, zt);
                (jsd_from_q(self, head, zt) + from_p, from_p as f32)
            }
        };
        if with_gradient {
            match kind {
                Divergence::ForwardKl => forward_kl_gradient(self, a, b, lse, head, zt),
                Divergence::ReverseKl => reverse_kl_gradient(self, a, b, lse, centre, head, zt),
                Divergence::Jsd => jsd_gradient(self, a, b, lse, centre, head, zt),
            }
            scaled_softmax(a, lse, tail);
        }
        loss
    }

    /// Log-probabilities of a pair of logits.
    #[inline(always)]
    fn logs(self, z: f32, zt: f32) -> (f32, f32) {
        (z * self.scale - self.lse_s, zt * self.scale - self.lse_t)
    }
}

/// `log((e^lp + e^lq) / 2)`; where both underflow, their weight is 0 and any finite value does.
#[inline(always)]
fn log_mean(lp: f32, lq: f32) -> f32 {
    let m = 0.5 * (math::exp(lp) + math::exp(lq));
    math::log(if m > f32::MIN_POSITIVE { m } else { f32::MIN_POSITIVE })
}

/// `Σ f(x, y)`: 16 interleaved `f32` sums over runs of 4,096 elements, runs in `f64`.
#[inline(always)]
fn sum_pairs(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f64 {
    const LANES: usize = 16;
    const RUN: usize = 4096;
    let mut total = 0.0;
    for (x, y) in x.chunks(RUN).zip(y.chunks(RUN)) {
        let mut acc = [0.0f32; LANES];
        let (px, py) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
        let (rx, ry) = (px.remainder(), py.remainder());
        for (x, y) in px.zip(py) {
            for l in 0..LANES {
                acc[l] += f(x[l], y[l]);
            }
        }
        let rest: f64 = rx.iter().zip(ry).map(|(x, y)| f64::from(f(*x, *y))).sum();
        total += acc.iter().map(|a| f64::from(*a)).sum::<f64>() + rest;
    }
    total
}

simd! {
    /// `Σ e^(scale·z - shift)`
    fn sum_exp(scale: f32, shift: f32, z: &[f32]) -> f64 {
        sum_pairs(z, z, |z, _| math::exp(z * scale - shift))
    }

    /// `z = a · e^(z - lse)`
    pub(super) fn scaled_softmax(a: f32, lse: f32, z: &mut [f32]) {
        for z in z {
            *z = a * math::exp(*z - lse);
        }
    }

    /// `z = a · e^(z - lse) + b · e^(z·scale - lse_s)`
    pub(super) fn two_softmaxes(a: f32, lse: f32, b: f32, scale: f32, lse_s: f32, z: &mut [f32]) {
        for z in z {
            *z = a * math::exp(*z - lse) + b * math::exp(*z * scale - lse_s);
        }
    }

    fn forward_kl(s: Softened, z: &[f32], zt: &[f32]) -> f64 {
        sum_pairs(z, zt, |z, zt| {
            let (lp, lq) = s.logs(z, zt);
            math::exp(lq) * (lq - lp)
        })
    }

    fn reverse_kl(s: Softened, z: &[f32], zt: &[f32]) -> f64 {
        sum_pairs(z, zt, |z, zt| {
            let (lp, lq) = s.logs(z, zt);
            math::exp(lp) * (lp - lq)
        })
    }

    fn jsd_from_p(s: Softened, z: &[f32], zt: &[f32]) -> f64 {
        sum_pairs(z, zt, |z, zt| {
            let (lp, lq) = s.logs(z, zt);
            0.5 * math::exp(lp) * (lp - log_mean(lp, lq))
        })
    }

    fn jsd_from_q(s: Softened, z: &[f32], zt: &[f32]) -> f64 {
        sum_pairs(z, zt, |z, zt| {
            let (lp, lq) = s.logs(z, zt);
            0.5 * math::exp(lq) * (lq - log_mean(lp, lq))
        })
    }

    fn forward_kl_gradient(s: Softened, a: f32, b: f32, lse: f32, z: &mut [f32], zt: &[f32]) {
        for (z, zt) in z.iter_mut().zip(zt) {
            let (lp, lq) = s.logs(*z, *zt);
            *z = a * math::exp(*z - lse) + b * (math::exp(lp) - math::exp(lq));
        }
    }

    fn reverse_kl_gradient(s: Softened, a: f32, b: f32, lse: f32, centre: f32, z: &mut [f32], zt: &[f32]) {
        for (z, zt) in z.iter_mut().zip(zt) {
            let (lp, lq) = s.logs(*z, *zt);
            *z = a * math::exp(*z - lse) + b * math::exp(lp) * (lp - lq - centre);
        }
    }

    fn jsd_gradient(s: Softened, a: f32, b: f32, lse: f32, centre: f32, z: &mut [f32], zt: &[f32]) {
        for (z, zt) in z.iter_mut().zip(zt) {
            let (lp, lq) = s.logs(*z, *zt);
            let g = 0.5 * (lp - log_mean(lp, lq)) - centre;
            *z = a * math::exp(*z - lse) + b * math::exp(lp) * g;
        }
    }
}
