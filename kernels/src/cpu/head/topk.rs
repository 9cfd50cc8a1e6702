//! Distillation from a cache of the teacher's largest logits: K tokens and one more outcome for all the others.

use super::rows::{log_sum_exp, two_softmaxes};
use crate::cpu::scratch::{self, Cut};
use kfc_ops::head::Divergence;

/// Least probability inside a logarithm.
const FLOOR: f64 = 1e-9;

/// What is cached of one position.
pub(super) struct Cache<'a> {
    /// Token ids; those outside the vocabulary join the rest.
    pub(super) ids: &'a [i32],
    /// The teacher's logits of these tokens.
    pub(super) logits: &'a [f32],
    /// Log-sum-exp of all the teacher's logits over the temperature.
    pub(super) lse: f32,
}

/// Returns the divergence. With a gradient, `z` becomes `a · softmax(z) + b · d divergence / d (z / T)`.
#[allow(clippy::too_many_arguments)]
pub(super) fn run(
    kind: Divergence,
    temperature: f64,
    cache: &Cache<'_>,
    a: f32,
    b: f32,
    lse: f32,
    z: &mut [f32],
    with_gradient: bool,
) -> f64 {
    let scale = (1.0 / temperature) as f32;
    let lse_s = log_sum_exp(scale, z);
    let k = cache.ids.len();
    let vocab = z.len();
    let token = |id: i32| usize::try_from(id).ok().filter(|i| *i < vocab);
    scratch::with(2 * k, |s| {
        let mut cut = Cut(s);
        let (p, c) = (cut.take(k), cut.take(k));
        let (mut p_rest, mut q_rest, mut loss) = (1.0f64, 1.0f64, 0.0f64);
        for (j, id) in cache.ids.iter().enumerate() {
            let (pj, qj) = match token(*id) {
                Some(i) => (
                    f64::from(z[i] * scale - lse_s).exp(),
                    (f64::from(cache.logits[j]) / temperature - f64::from(cache.lse)).exp(),
                ),
                None => (0.0, 0.0),
            };
            p_rest -= pj;
            q_rest -= qj;
            loss += term(kind, pj, qj);
            p[j] = pj as f32;
            c[j] = slope(kind, pj, qj) as f32;
        }
        q_rest = q_rest.max(0.0);
        loss += term(kind, p_rest, q_rest);
        if with_gradient {
            // The rest is 1 - Σ p: raising a token's probability lowers it.
            let rest = slope(kind, p_rest, q_rest) as f32;
            c.iter_mut().for_each(|c| *c -= rest);
            let centre: f32 = p.iter().zip(&*c).map(|(p, c)| p * c).sum();
            two_softmaxes(a, lse, -b * centre, scale, lse_s, z);
            for (j, id) in cache.ids.iter().enumerate() {
                if let Some(i) = token(*id) {
                    z[i] += b * p[j] * c[j];
                }
            }
        }
        loss
    })
}

fn log(x: f64) -> f64 {
    x.max(FLOOR).ln()
}

/// 1 where the floor does not bind.
fn live(x: f64) -> f64 {
    f64::from(u8::from(x > FLOOR))
}

/// An outcome's term of the divergence.
fn term(kind: Divergence, p: f64, q: f64) -> f64 {
    match kind {
        Divergence::ForwardKl => q * (log(q) - log(p)),
        Divergence::ReverseKl => p * (log(p) - log(q)),
        Divergence::Jsd => {
            let m = 0.5 * (p + q);
            0.5 * (q * (log(q) - log(m)) + p * (log(p) - log(m)))
        }
    }
}

/// Its derivative by p.
fn slope(kind: Divergence, p: f64, q: f64) -> f64 {
    match kind {
        Divergence::ForwardKl => -q / p.max(FLOOR) * live(p),
        Divergence::ReverseKl => log(p) - log(q) + live(p),
        Divergence::Jsd => {
            let m = 0.5 * (p + q);
            0.5 * (log(p) - log(m) + live(p) - live(m))
        }
    }
}
