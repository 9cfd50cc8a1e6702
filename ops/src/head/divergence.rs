//! The distillation losses and their gradients, over whole distributions (in logarithms) and over a few
//! outcomes (in probabilities, floored inside logarithms).

use super::Divergence;
use crate::common::{f32, row_sum, spread};
use kfc_graph::{Builder, CmpOp, Result, ValueId};

/// Least probability inside a logarithm of [`outcome_divergence`].
const FLOOR: f64 = 1e-9;

/// Divergence of each row, a column, of distributions given by their logarithms `[N,C]`.
pub(super) fn divergence(
    b: &mut Builder<'_>,
    kind: Divergence,
    log_p: ValueId,
    log_q: ValueId,
) -> Result<ValueId> {
    match kind {
        Divergence::ForwardKl => kl(b, log_q, log_p),
        Divergence::ReverseKl => kl(b, log_p, log_q),
        Divergence::Jsd => {
            let log_m = log_mean(b, log_p, log_q)?;
            let (from_q, from_p) = (kl(b, log_q, log_m)?, kl(b, log_p, log_m)?);
            let sum = b.add(from_q, from_p)?;
            b.scale(sum, 0.5)
        }
    }
}

/// Gradient of [`divergence`] with respect to the logits whose log-softmax is `log_p`: `[N,C]`.
pub(super) fn divergence_grad(
    b: &mut Builder<'_>,
    kind: Divergence,
    log_p: ValueId,
    log_q: ValueId,
) -> Result<ValueId> {
    let p = b.exp(log_p)?;
    match kind {
        Divergence::ForwardKl => {
            let q = b.exp(log_q)?;
            b.sub(p, q)
        }
        Divergence::ReverseKl => {
            let g = b.sub(log_p, log_q)?;
            through_softmax(b, p, g)
        }
        Divergence::Jsd => {
            let log_m = log_mean(b, log_p, log_q)?;
            let g = b.sub(log_p, log_m)?;
            let g = b.scale(g, 0.5)?;
            through_softmax(b, p, g)
        }
    }
}

/// `p (g − Σ p g)`: the softmax's Jacobian. Constants in g drop out.
fn through_softmax(b: &mut Builder<'_>, p: ValueId, g: ValueId) -> Result<ValueId> {
    let pg = b.mul(p, g)?;
    let sum = row_sum(b, pg)?;
    let extent = b.ty(p).last();
    let sum = spread(b, sum, extent)?;
    let centred = b.sub(g, sum)?;
    b.mul(p, centred)
}

/// `Σ a (log a − log b)` of each row.
fn kl(b: &mut Builder<'_>, log_a: ValueId, log_b: ValueId) -> Result<ValueId> {
    let a = b.exp(log_a)?;
    let ratio = b.sub(log_a, log_b)?;
    let terms = b.mul(a, ratio)?;
    row_sum(b, terms)
}

/// `log((e^x + e^y)/2)` without overflow or underflow.
fn log_mean(b: &mut Builder<'_>, x: ValueId, y: ValueId) -> Result<ValueId> {
    let max = b.max(x, y)?;
    let (x, y) = (b.sub(x, max)?, b.sub(y, max)?);
    let (x, y) = (b.exp(x)?, b.exp(y)?);
    let sum = b.add(x, y)?;
    let mean = b.scale(sum, 0.5)?;
    let log = b.log(mean)?;
    b.add(max, log)
}

/// Divergence of each row, a column, of probabilities `[N,K+1]`.
pub(super) fn outcome_divergence(
    b: &mut Builder<'_>,
    kind: Divergence,
    p: ValueId,
    q: ValueId,
) -> Result<ValueId> {
    match kind {
        Divergence::ForwardKl => floored_kl(b, q, p),
        Divergence::ReverseKl => floored_kl(b, p, q),
        Divergence::Jsd => {
            let m = mean(b, p, q)?;
            let (from_q, from_p) = (floored_kl(b, q, m)?, floored_kl(b, p, m)?);
            let sum = b.add(from_q, from_p)?;
            b.scale(sum, 0.5)
        }
    }
}

/// Gradient of [`outcome_divergence`] with respect to p: `[N,K+1]`. A floored logarithm is constant.
pub(super) fn outcome_divergence_grad(
    b: &mut Builder<'_>,
    kind: Divergence,
    p: ValueId,
    q: ValueId,
) -> Result<ValueId> {
    match kind {
        Divergence::ForwardKl => {
            let floor = b.full_like(p, FLOOR)?;
            let floored = b.max(p, floor)?;
            let ratio = b.div(q, floored)?;
            let ratio = b.neg(ratio)?;
            let live = above_floor(b, p)?;
            b.mul(ratio, live)
        }
        Divergence::ReverseKl => {
            let (log_p, log_q) = (floored_log(b, p)?, floored_log(b, q)?);
            let ratio = b.sub(log_p, log_q)?;
            let live = above_floor(b, p)?;
            b.add(ratio, live)
        }
        Divergence::Jsd => {
            let m = mean(b, p, q)?;
            let (log_p, log_m) = (floored_log(b, p)?, floored_log(b, m)?);
            let (live_p, live_m) = (above_floor(b, p)?, above_floor(b, m)?);
            let ratio = b.sub(log_p, log_m)?;
            let live = b.sub(live_p, live_m)?;
            let sum = b.add(ratio, live)?;
            b.scale(sum, 0.5)
        }
    }
}

fn mean(b: &mut Builder<'_>, p: ValueId, q: ValueId) -> Result<ValueId> {
    let sum = b.add(p, q)?;
    b.scale(sum, 0.5)
}

fn floored_log(b: &mut Builder<'_>, v: ValueId) -> Result<ValueId> {
    let floor = b.full_like(v, FLOOR)?;
    let v = b.max(v, floor)?;
    b.log(v)
}

/// 1.0 where the floor does not bind.
fn above_floor(b: &mut Builder<'_>, v: ValueId) -> Result<ValueId> {
    let floor = b.full_like(v, FLOOR)?;
    let above = b.compare(CmpOp::Lt, floor, v)?;
    f32(b, above)
}

fn floored_kl(b: &mut Builder<'_>, a: ValueId, other: ValueId) -> Result<ValueId> {
    let (log_a, log_other) = (floored_log(b, a)?, floored_log(b, other)?);
    let ratio = b.sub(log_a, log_other)?;
    let terms = b.mul(a, ratio)?;
    row_sum(b, terms)
}
