//! Pieces of the decompositions: logits, losses and their gradients with `[tokens, vocabulary]` values spelt
//! out.
//!
//! N is the number of tokens; a column is `f32 [N,1]`.

use super::divergence::{divergence, divergence_grad, outcome_divergence, outcome_divergence_grad};
use super::{HeadAttrs, HeadValues, Teacher};
use crate::common::{
    and, at_least, at_most_int, f32, row_max, row_sum, rows2d, spread, times_scalar, zero_unless,
};
use kfc_graph::{Builder, CmpOp, DType, Prim, Result, ValueId};

/// `h·wᵀ` as `f32 [N,V]`.
pub(crate) fn logits(b: &mut Builder<'_>, h: ValueId, w: ValueId) -> Result<ValueId> {
    let h = rows2d(b, h)?;
    b.matmul(h, w, false, true, DType::F32)
}

/// Log-sum-exp of each row, a column.
pub(crate) fn log_sum_exp(b: &mut Builder<'_>, z: ValueId) -> Result<ValueId> {
    let max = row_max(b, z)?;
    let extent = b.ty(z).last();
    let spread_max = spread(b, max, extent)?;
    let shifted = b.sub(z, spread_max)?;
    let weights = b.exp(shifted)?;
    let sum = row_sum(b, weights)?;
    let log = b.log(sum)?;
    b.add(max, log)
}

/// Logarithm of the softmax of each row.
fn log_softmax(b: &mut Builder<'_>, z: ValueId) -> Result<ValueId> {
    let lse = log_sum_exp(b, z)?;
    let extent = b.ty(z).last();
    let lse = spread(b, lse, extent)?;
    b.sub(z, lse)
}

/// A per-token tensor `[B,T]` as a column.
pub(crate) fn column(b: &mut Builder<'_>, v: ValueId) -> Result<ValueId> {
    let n = b.ty(v).elements();
    b.reshape(v, &[n, 1])
}

/// 1 at each row's label: `i32 [N,V]`; labels is a column.
fn at_label(b: &mut Builder<'_>, labels: ValueId, vocab: usize) -> Result<ValueId> {
    let labels = spread(b, labels, vocab)?;
    let dims = b.ty(labels).dims.clone();
    let index = b.iota(&dims, 1)?;
    b.compare(CmpOp::Eq, index, labels)
}

/// `lse − z[label]`, 0 where the label is ignored: a column.
pub(crate) fn negative_log_likelihood(b: &mut Builder<'_>, z: ValueId, labels: ValueId) -> Result<ValueId> {
    let labels = column(b, labels)?;
    let vocab = b.ty(z).last();
    let hit = at_label(b, labels, vocab)?;
    let z_label = zero_unless(b, hit, z)?;
    let z_label = row_sum(b, z_label)?;
    let lse = log_sum_exp(b, z)?;
    let nll = b.sub(lse, z_label)?;
    let counts = at_least(b, labels, 0.0)?;
    zero_unless(b, counts, nll)
}

/// Index of the largest element of each row, the first of equals: `i32 [N,1]`.
pub(crate) fn argmax(b: &mut Builder<'_>, z: ValueId) -> Result<ValueId> {
    let dims = b.ty(z).dims.clone();
    let max = row_max(b, z)?;
    let max = spread(b, max, dims[1])?;
    let is_max = b.compare(CmpOp::Eq, z, max)?;
    let index = b.iota(&dims, 1)?;
    let index = f32(b, index)?;
    let negated = b.neg(index)?;
    let beyond = b.full_like(negated, -(dims[1] as f64))?;
    let candidates = b.select(is_max, negated, beyond)?;
    let first = row_max(b, candidates)?;
    let first = b.neg(first)?;
    b.cast(first, DType::I32)
}

/// ce, (kd), correct from the student's logits.
pub(super) fn losses(
    b: &mut Builder<'_>,
    attrs: &HeadAttrs,
    v: &HeadValues,
    z: ValueId,
) -> Result<Vec<ValueId>> {
    let nll = negative_log_likelihood(b, z, v.labels)?;
    let w_ce = column(b, v.w_ce)?;
    let weighted = b.mul(nll, w_ce)?;
    let mut results = vec![b.sum_all(weighted)?];
    if let Some((teacher, w_kd)) = v.kd {
        let div = match teacher {
            Teacher::Logits { ht, wt } => {
                let (log_p, log_q) = common_prefix(b, attrs, z, ht, wt)?;
                divergence(b, attrs.divergence, log_p, log_q)?
            }
            Teacher::TopK { ids, logits, lse } => {
                let o = outcomes(b, attrs, z, ids, logits, lse)?;
                outcome_divergence(b, attrs.divergence, o.p, o.q)?
            }
        };
        let w_kd = column(b, w_kd)?;
        let weighted = b.mul(div, w_kd)?;
        let sum = b.sum_all(weighted)?;
        results.push(b.scale(sum, attrs.temperature * attrs.temperature)?);
    }
    results.push(count_correct(b, v, z)?);
    Ok(results)
}

fn count_correct(b: &mut Builder<'_>, v: &HeadValues, z: ValueId) -> Result<ValueId> {
    let best = argmax(b, z)?;
    let labels = column(b, v.labels)?;
    let hit = b.compare(CmpOp::Eq, best, labels)?;
    let w_ce = column(b, v.w_ce)?;
    let zero = b.full_like(w_ce, 0.0)?;
    let counted = b.compare(CmpOp::Lt, zero, w_ce)?;
    let correct = and(b, hit, counted)?;
    let correct = f32(b, correct)?;
    b.sum_all(correct)
}

/// Gradient of the logits, `f32 [N,V]`, for gradients of ce and kd `f32 [1]`.
pub(super) fn logits_grad(
    b: &mut Builder<'_>,
    attrs: &HeadAttrs,
    v: &HeadValues,
    z: ValueId,
    g_ce: ValueId,
    g_kd: Option<ValueId>,
) -> Result<ValueId> {
    let vocab = b.ty(z).last();
    let labels = column(b, v.labels)?;
    let counts = at_least(b, labels, 0.0)?;
    let w_ce = column(b, v.w_ce)?;
    let w_ce = zero_unless(b, counts, w_ce)?;
    let w_ce = times_scalar(b, w_ce, g_ce)?;
    let log_p = log_softmax(b, z)?;
    let p = b.exp(log_p)?;
    let hit = at_label(b, labels, vocab)?;
    let hit = f32(b, hit)?;
    let error = b.sub(p, hit)?;
    let w_ce = spread(b, w_ce, vocab)?;
    let dz = b.mul(error, w_ce)?;
    let (Some((teacher, w_kd)), Some(g_kd)) = (v.kd, g_kd) else { return Ok(dz) };

    let d = match teacher {
        Teacher::Logits { ht, wt } => {
            let (log_p, log_q) = common_prefix(b, attrs, z, ht, wt)?;
            let d = divergence_grad(b, attrs.divergence, log_p, log_q)?;
            let hi = vocab - b.ty(d).last();
            if hi == 0 { d } else { b.prim(Prim::Pad { axis: 1, lo: 0, hi }, &[d])? }
        }
        Teacher::TopK { ids, logits, lse } => {
            let o = outcomes(b, attrs, z, ids, logits, lse)?;
            outcomes_grad(b, attrs, z, &o)?
        }
    };
    // T² of the loss times 1/T of the softened logits.
    let w_kd = column(b, w_kd)?;
    let w_kd = times_scalar(b, w_kd, g_kd)?;
    let w_kd = b.scale(w_kd, attrs.temperature)?;
    let w_kd = spread(b, w_kd, vocab)?;
    let d = b.mul(d, w_kd)?;
    b.add(dz, d)
}

/// Log-softmax at the temperature of student and teacher over the prefix that both vocabularies have.
fn common_prefix(
    b: &mut Builder<'_>,
    attrs: &HeadAttrs,
    z: ValueId,
    ht: ValueId,
    wt: ValueId,
) -> Result<(ValueId, ValueId)> {
    let zt = logits(b, ht, wt)?;
    let common = b.ty(z).last().min(b.ty(zt).last());
    let mut softened = |v| {
        let v = b.slice(v, 1, 0, common)?;
        let v = b.scale(v, 1.0 / attrs.temperature)?;
        log_softmax(b, v)
    };
    Ok((softened(z)?, softened(zt)?))
}

/// Distributions over the K cached tokens and the rest of the vocabulary.
struct Outcomes {
    /// Student `f32 [N,K+1]`.
    p: ValueId,
    /// Teacher `f32 [N,K+1]`.
    q: ValueId,
    /// Softmax of the student over its vocabulary at the temperature, `f32 [N,V]`.
    softmax: ValueId,
    /// Index of each cached token in the flattened `[N·V]` logits, `i32 [N,K]`.
    index: ValueId,
}

fn outcomes(
    b: &mut Builder<'_>,
    attrs: &HeadAttrs,
    z: ValueId,
    ids: ValueId,
    top_logits: ValueId,
    top_lse: ValueId,
) -> Result<Outcomes> {
    let (n, vocab) = (b.ty(z).dims[0], b.ty(z).dims[1]);
    let k = b.ty(ids).last();
    let ids = b.reshape(ids, &[n, k])?;
    let not_negative = at_least(b, ids, 0.0)?;
    let end = b.full_like(ids, vocab as f64)?;
    let below_end = b.compare(CmpOp::Lt, ids, end)?;
    let known = and(b, not_negative, below_end)?;

    let zero = b.full_like(ids, 0.0)?;
    let safe = b.max(ids, zero)?;
    let safe = at_most_int(b, safe, vocab - 1)?;
    let row = b.iota(&[n, k], 0)?;
    let row = b.scale(row, vocab as f64)?;
    let index = b.add(row, safe)?;

    let softened = b.scale(z, 1.0 / attrs.temperature)?;
    let log_p = log_softmax(b, softened)?;
    let softmax = b.exp(log_p)?;
    let table = b.reshape(softmax, &[n * vocab, 1])?;
    let p = b.prim(Prim::Gather, &[table, index])?;
    let p = b.reshape(p, &[n, k])?;
    let p = zero_unless(b, known, p)?;
    let p_rest = rest(b, p)?;

    let top_logits = b.reshape(top_logits, &[n, k])?;
    let top_logits = b.scale(top_logits, 1.0 / attrs.temperature)?;
    let lse = column(b, top_lse)?;
    let lse = spread(b, lse, k)?;
    let log_q = b.sub(top_logits, lse)?;
    let q = b.exp(log_q)?;
    let q = zero_unless(b, known, q)?;
    let q_rest = rest(b, q)?;
    let zero = b.full_like(q_rest, 0.0)?;
    let q_rest = b.max(q_rest, zero)?;
    Ok(Outcomes { p: b.concat(&[p, p_rest], 1)?, q: b.concat(&[q, q_rest], 1)?, softmax, index })
}

/// `1 − Σ` of each row, a column.
fn rest(b: &mut Builder<'_>, v: ValueId) -> Result<ValueId> {
    let sum = row_sum(b, v)?;
    let one = b.full_like(sum, 1.0)?;
    b.sub(one, sum)
}

/// Gradient of the outcomes' divergence with respect to the softened logits, `f32 [N,V]`.
fn outcomes_grad(b: &mut Builder<'_>, attrs: &HeadAttrs, z: ValueId, o: &Outcomes) -> Result<ValueId> {
    let (n, vocab) = (b.ty(z).dims[0], b.ty(z).dims[1]);
    let k = b.ty(o.p).last() - 1;
    // The rest is 1 − Σ p_k, so p_k moves by g_k − g_rest; then the softmax: dz_j = p_j (c_j − Σ c p).
    let g = outcome_divergence_grad(b, attrs.divergence, o.p, o.q)?;
    let (g_top, g_rest) = (b.slice(g, 1, 0, k)?, b.slice(g, 1, k, k + 1)?);
    let g_rest = spread(b, g_rest, k)?;
    let c = b.sub(g_top, g_rest)?;
    let p = b.slice(o.p, 1, 0, k)?;
    let cp = b.mul(c, p)?;
    let rows = b.reshape(cp, &[n, k, 1])?;
    let direct = b.prim(Prim::ScatterAdd { rows: n * vocab }, &[o.index, rows])?;
    let direct = b.reshape(direct, &[n, vocab])?;
    let sum = row_sum(b, cp)?;
    let sum = spread(b, sum, vocab)?;
    let shared = b.mul(o.softmax, sum)?;
    b.sub(direct, shared)
}
