//! Passes over scores that lie with keys as rows and queries as lanes.
//!
//! Scores are in units of `log₂`: scaled by `scale · log₂e`. Exponentials are taken relative to a running maximum that is only
//! raised by more than [`SLACK`], so that earlier sums are rarely rescaled. The code with AVX-512 (`softmax_avx512`) uses fused
//! multiplications, so the last bits of results are those of the instruction set, as with matrix products.

use crate::cpu::gemm::Engine;
use crate::cpu::math;
use crate::cpu::simd::simd;
use std::f32::consts::LN_2;

/// How far scores may exceed the running maximum: exponentials stay below 2⁸.
pub(super) const SLACK: f32 = 8.0;

/// A panel of queries: one value a lane.
pub(super) struct Lanes<'a> {
    /// Lanes without a query have segment -1.
    pub(super) seg: &'a [i32],
    pub(super) pos: &'a [i32],
    /// What exponentials are relative to; -inf before the first visible key.
    pub(super) max: &'a mut [f32],
    /// Sum of exponentials.
    pub(super) sum: &'a mut [f32],
    /// What earlier sums were multiplied by in the last pass.
    pub(super) factor: &'a mut [f32],
}

/// Segments and positions of keys, if some pairs are hidden.
pub(super) type Mask<'a> = Option<(&'a [i32], &'a [i32])>;

/// Turns the scores of some keys into exponentials and adds them to the sums: in place, or if the engine takes pairs, as
/// pairs of consecutive keys into `pairs`. Returns whether earlier sums have to be multiplied by `factor`.
pub(super) fn forward(
    e: &Engine,
    scores: &mut [f32],
    lanes: &mut Lanes<'_>,
    mask: Mask<'_>,
    pairs: &mut [u32],
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if super::softmax_avx512::fits(e) {
        // SAFETY: the CPU has these instructions.
        return unsafe { super::softmax_avx512::forward(e, scores, lanes, mask, pairs) };
    }
    let nr = e.nr();
    if let Some((segs, poss)) = mask {
        hide(nr, lanes.seg, lanes.pos, segs, poss, scores);
    }
    let raised = raise(nr, scores, lanes.max, lanes.sum, lanes.factor);
    exponentials(nr, scores, lanes.max, lanes.sum);
    if e.is_pair() {
        join(e, scores, pairs);
    }
    raised
}

/// Rows of queries in the backward pass: one value a lane.
pub(super) struct Rows<'a> {
    /// Log-sum-exp in units of `log₂`.
    pub(super) lse: &'a [f32],
    /// `Σ do·o`.
    pub(super) delta: &'a [f32],
    pub(super) seg: &'a [i32],
    pub(super) pos: &'a [i32],
}

/// Where probabilities and their gradients are kept as panels of keys, whose depth are the lanes.
pub(super) struct Kept<'a> {
    pub(super) p: &'a mut [u32],
    pub(super) ds: &'a mut [u32],
    /// Units from one panel to the next.
    pub(super) stride: usize,
    /// Gradients as pairs of keys, if the engine takes pairs.
    pub(super) pairs: &'a mut [u32],
}

/// Turns scores of whole panels of keys into probabilities `p` and `ds`, which holds the gradients of the probabilities,
/// into those of the scores, `p · (ds - delta)`. Both are kept as panels. `ds` itself is what it
/// says afterwards if the engine takes single `f32`, else undefined; `p` is undefined.
pub(super) fn backward(
    e: &Engine,
    (p, ds): (&mut [f32], &mut [f32]),
    rows: &Rows<'_>,
    mask: Mask<'_>,
    kept: Kept<'_>,
) {
    let (nr, mr) = (e.nr(), e.mr());
    if let Some((segs, poss)) = mask {
        hide(nr, rows.seg, rows.pos, segs, poss, p);
    }
    #[cfg(target_arch = "x86_64")]
    if super::softmax_avx512::fits(e) {
        // SAFETY: the CPU has these instructions.
        return unsafe { super::softmax_avx512::backward(e, (p, ds), rows, kept) };
    }
    gradients(nr, p, ds, rows.lse, rows.delta);
    if e.is_pair() {
        join(e, ds, kept.pairs);
    }
    for (x, out) in [(&*p, kept.p), (&*ds, kept.ds)] {
        for (keys, out) in x.chunks(mr * nr).zip(out.chunks_mut(kept.stride)) {
            let mut rounded = [half::bf16::ZERO; MOST * MOST];
            let lines = if e.is_pair() {
                let rounded = &mut rounded[..keys.len()];
                rounded.iter_mut().zip(keys).for_each(|(r, x)| *r = half::bf16::from_f32(*x));
                rounded.as_ptr().cast()
            } else {
                keys.as_ptr().cast()
            };
            // SAFETY: `keys` are rows of `nr` elements, and a panel has a unit of each key for each unit of them.
            unsafe { e.pack_rows(lines, nr, keys.len() / nr, nr, mr, out.as_mut_ptr()) }
        }
    }
}

/// `x *= factor`, lane by lane.
pub(super) fn rescale(e: &Engine, factor: &[f32], x: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if super::softmax_avx512::fits(e) {
        // SAFETY: the CPU has these instructions.
        return unsafe { super::softmax_avx512::rescale(factor, x) };
    }
    rescale_rows(e.nr(), factor, x);
}

/// Pairs of rows as units, of an engine that takes pairs: `bf16` of the first in the low half; an odd last row is paired with
/// zeros.
pub(super) fn join(e: &Engine, x: &[f32], out: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if super::softmax_avx512::fits(e) && e.is_pair() {
        // SAFETY: the CPU has these instructions.
        return unsafe { super::softmax_avx512::join_rows(x, out) };
    }
    join_rows(e.nr(), x, out);
}

/// Calls a body with the number of lanes as a constant, for those that there are.
macro_rules! with_lanes {
    ($nr:ident, $body:expr) => {
        match $nr {
            48 => {
                let $nr = 48;
                $body
            }
            16 => {
                let $nr = 16;
                $body
            }
            8 => {
                let $nr = 8;
                $body
            }
            _ => $body,
        }
    };
}

/// Most lanes of a panel.
pub(super) const MOST: usize = 64;

/// `2^x`.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    math::exp(x * LN_2)
}

#[inline(always)]
fn round_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if x.is_nan() { (bits >> 16) | 0x40 } else { rounded }
}

#[inline(always)]
fn hide_lanes(nr: usize, seg: &[i32], pos: &[i32], segs: &[i32], poss: &[i32], scores: &mut [f32]) {
    let (seg, pos) = (&seg[..nr], &pos[..nr]);
    for ((row, &key_seg), &key_pos) in scores.chunks_exact_mut(nr).zip(segs).zip(poss) {
        for l in 0..nr {
            let visible = (seg[l] >= 0) & (seg[l] == key_seg) & (key_pos <= pos[l]);
            row[l] = if visible { row[l] } else { f32::NEG_INFINITY };
        }
    }
}

#[inline(always)]
fn raise_lanes(nr: usize, scores: &[f32], max: &mut [f32], sum: &mut [f32], factor: &mut [f32]) -> bool {
    let mut new = [f32::NEG_INFINITY; MOST];
    let new = &mut new[..nr];
    for row in scores.chunks_exact(nr) {
        for l in 0..nr {
            new[l] = if row[l] > new[l] { row[l] } else { new[l] };
        }
    }
    let (max, sum, factor) = (&mut max[..nr], &mut sum[..nr], &mut factor[..nr]);
    let mut any = false;
    for l in 0..nr {
        let raised = new[l] > max[l] + SLACK;
        any |= raised;
        let to = if raised { new[l] } else { max[l] };
        // A lane that saw nothing has nothing to rescale.
        factor[l] = if raised { exp2(max[l] - to) } else { 1.0 };
        sum[l] *= factor[l];
        max[l] = to;
    }
    any
}

#[inline(always)]
fn exp_lanes(nr: usize, scores: &mut [f32], max: &[f32], sum: &mut [f32]) {
    let (max, sum) = (&max[..nr], &mut sum[..nr]);
    for row in scores.chunks_exact_mut(nr) {
        for l in 0..nr {
            // Lanes that see nothing have scores of -inf only.
            let shift = if max[l] == f32::NEG_INFINITY { 0.0 } else { max[l] };
            row[l] = exp2(row[l] - shift);
            sum[l] += row[l];
        }
    }
}

#[inline(always)]
fn gradient_lanes(nr: usize, p: &mut [f32], ds: &mut [f32], lse: &[f32], delta: &[f32]) {
    let (lse, delta) = (&lse[..nr], &delta[..nr]);
    for (p, ds) in p.chunks_exact_mut(nr).zip(ds.chunks_exact_mut(nr)) {
        for l in 0..nr {
            p[l] = exp2(p[l] - lse[l]);
            ds[l] = p[l] * (ds[l] - delta[l]);
        }
    }
}

#[inline(always)]
fn join_lanes(nr: usize, x: &[f32], out: &mut [u32]) {
    for (x, out) in x.chunks(2 * nr).zip(out.chunks_exact_mut(nr)) {
        let (low, high) = x.split_at(nr);
        for l in 0..nr {
            let high = if high.is_empty() { 0 } else { round_bf16(high[l]) };
            out[l] = round_bf16(low[l]) | high << 16;
        }
    }
}

simd! {
    /// Sets the scores of invisible keys to -inf.
    fn hide(nr: usize, seg: &[i32], pos: &[i32], segs: &[i32], poss: &[i32], scores: &mut [f32]) {
        with_lanes!(nr, hide_lanes(nr, seg, pos, segs, poss, scores))
    }

    /// Raises the running maxima where scores exceed them by more than the slack; returns whether any was.
    fn raise(nr: usize, scores: &[f32], max: &mut [f32], sum: &mut [f32], factor: &mut [f32]) -> bool {
        with_lanes!(nr, raise_lanes(nr, scores, max, sum, factor))
    }

    fn exponentials(nr: usize, scores: &mut [f32], max: &[f32], sum: &mut [f32]) {
        with_lanes!(nr, exp_lanes(nr, scores, max, sum))
    }

    fn gradients(nr: usize, p: &mut [f32], ds: &mut [f32], lse: &[f32], delta: &[f32]) {
        with_lanes!(nr, gradient_lanes(nr, p, ds, lse, delta))
    }

    fn join_rows(nr: usize, x: &[f32], out: &mut [u32]) {
        with_lanes!(nr, join_lanes(nr, x, out))
    }

    /// What ends the forward pass: sums become factors that rows are multiplied by, maxima log-sum-exps; both are 0 for lanes
    /// that saw nothing.
    pub(super) fn finish(nr: usize, max: &mut [f32], sum: &[f32], factor: &mut [f32]) {
        let (max, sum, factor) = (&mut max[..nr], &sum[..nr], &mut factor[..nr]);
        for l in 0..nr {
            let sees = sum[l] > 0.0;
            factor[l] = if sees { 1.0 / sum[l] } else { 0.0 };
            let lse = max[l] * LN_2 + math::log(sum[l]);
            max[l] = if sees { lse } else { 0.0 };
        }
    }

    fn rescale_rows(nr: usize, factor: &[f32], x: &mut [f32]) {
        with_lanes!(nr, {
            let factor = &factor[..nr];
            for row in x.chunks_exact_mut(nr) {
                for l in 0..nr {
                    row[l] *= factor[l];
                }
            }
        })
    }
}
