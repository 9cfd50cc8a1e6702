//! Few queries over many keys: dot products, without panels. Keys and values are read once, which is most of the work.
//!
//! Keys are cut into chunks; each chunk has its own maximum, sum and weighted values in the workspace, and these are joined
//! in order.

use super::forward::{finish_row, query_tokens};
use super::panels;
use super::{Head, Shape, Tokens};
use crate::cpu::gemm::Engine;
use crate::cpu::simd::simd;
use crate::cpu::{Call, math, par, reduce, scratch};
use kfc_graph::DType;

/// Most rows of queries of a key head.
const ROWS: usize = 16;

/// Keys of a chunk.
const CHUNK: usize = 256;

/// Attention by dot products.
pub(super) struct Decode {
    s: Shape,
    e: Engine,
}

impl Decode {
    /// Whether a shape has few enough queries.
    pub(super) fn fits(s: &Shape) -> bool {
        s.rows() <= ROWS
    }

    pub(super) fn new(s: Shape, e: Engine) -> Decode {
        Decode { s, e }
    }

    fn chunks(&self) -> usize {
        self.s.tk.div_ceil(CHUNK)
    }

    /// Floats of a row of a chunk: maximum, sum, weighted values.
    fn part(&self) -> usize {
        2 + self.s.dv
    }

    pub(super) fn workspace_bytes(&self) -> usize {
        self.s.all_heads() * self.chunks() * self.s.rows() * self.part() * size_of::<f32>()
    }

    /// # Safety
    /// As [`crate::cpu::Kernel::run`].
    pub(super) unsafe fn run(&self, call: &Call<'_>, tokens: Tokens<'_>) {
        let (s, chunks) = (&self.s, self.chunks());
        let (heads, floats) = (s.all_heads(), s.rows() * self.part());
        // SAFETY: by contract; tasks have parts of the workspace and rows of the results of their own.
        unsafe {
            let parts = par::Shared::new(call.work::<f32>(0, heads * chunks * floats));
            let work = CHUNK.min(s.tk) * s.rows() * (s.d + s.dv) / 8;
            par::ranges(heads * chunks, par::rows_grain(work), |range| {
                for t in range {
                    let out = parts.slice(t * floats, floats);
                    self.chunk(call, tokens, s.head(t / chunks), t % chunks * CHUNK, out);
                }
            });
            par::ranges(heads, par::rows_grain(chunks * floats), |range| {
                for h in range {
                    let parts = parts.slice(h * chunks * floats, chunks * floats);
                    self.join(call, s.head(h), parts);
                }
            });
        }
    }

    /// Maxima, sums and weighted values of the keys of a chunk.
    ///
    /// # Safety
    /// As [`Decode::run`].
    unsafe fn chunk(&self, call: &Call<'_>, tokens: Tokens<'_>, at: Head, start: usize, out: &mut [f32]) {
        let (s, e) = (&self.s, &self.e);
        let (seg_q, pos_q) = query_tokens(s, &tokens, at, 0, s.rows());
        let (segs, poss) = tokens.keys(s, at.batch, start, CHUNK.min(s.tk - start));
        let sees = |r: usize, j: usize| seg_q[r] >= 0 && seg_q[r] == segs[j] && poss[j] <= pos_q[r];
        let is_seen = |j: &usize| (0..s.rows()).step_by(s.group).any(|r| sees(r, *j));
        out.fill(0.0);
        out.chunks_exact_mut(self.part()).for_each(|row| row[0] = f32::NEG_INFINITY);
        let (Some(lo), Some(hi)) = ((0..segs.len()).find(is_seen), (0..segs.len()).rev().find(is_seen))
        else {
            return;
        };
        let n = hi + 1 - lo;
        let is_hidden = (lo..=hi).any(|j| (0..s.rows()).step_by(s.group).any(|r| !sees(r, j)));
        let sizes = [s.rows() * n, s.rows() * s.d, n * s.d.max(s.dv)];
        scratch::with(panels::scratch_len(&sizes), |scratch| {
            let mut rest = panels::aligned(scratch);
            let [scores, q, floats] = sizes.map(|n| panels::take(&mut rest, n));
            // SAFETY: by contract.
            unsafe {
                panels::query_rows(s, e, call.src(0, s.x), at, (0, s.rows(), s.rows()), s.d, q);
                let k = panels::key_rows(s, e, call.src(1, s.x), at, (start + lo, n), s.d, floats);
                e.dots((q.as_ptr().cast(), s.d, s.rows()), (k.0, k.1, n), s.d, scores);
                for (r, scores) in scores.chunks_exact_mut(n).enumerate() {
                    scores.iter_mut().for_each(|x| *x *= s.scale);
                    if is_hidden {
                        let hidden = |j: usize| !sees(r, lo + j);
                        (0..n).filter(|&j| hidden(j)).for_each(|j| scores[j] = f32::NEG_INFINITY);
                    }
                    let row = &mut out[r * self.part()..][..self.part()];
                    row[0] = reduce::max(scores);
                    if row[0] > f32::NEG_INFINITY {
                        row[1] = exponentials(row[0], scores);
                    } else {
                        scores.fill(0.0);
                    }
                }
                let v = call.src(2, s.x);
                let (values, stride) = if s.x == DType::F32 {
                    (
                        v.raw(s.key_row(at, start + lo) * s.dv, (n - 1) * s.kv_heads * s.dv + s.dv),
                        s.kv_heads * s.dv,
                    )
                } else {
                    for (j, row) in floats.chunks_exact_mut(s.dv).take(n).enumerate() {
                        v.load(s.key_row(at, start + lo + j) * s.dv, row);
                    }
                    (&*floats, s.dv)
                };
                weighted(scores, n, values, stride, out, self.part());
            }
        });
    }

    /// Joins the chunks of a head in order and writes its rows.
    ///
    /// # Safety
    /// As [`Decode::run`].
    unsafe fn join(&self, call: &Call<'_>, at: Head, parts: &mut [f32]) {
        let (s, part) = (&self.s, self.part());
        let (o, lse) = (call.dst(0, s.x), call.dst(1, DType::F32));
        let (all, others) = parts.split_at_mut(s.rows() * part);
        for (r, all) in all.chunks_exact_mut(part).enumerate() {
            for other in others.chunks_exact(part).skip(r).step_by(s.rows()) {
                let max = all[0].max(other[0]);
                if other[0] == f32::NEG_INFINITY {
                    continue;
                }
                let (mine, theirs) = (math::exp(all[0] - max), math::exp(other[0] - max));
                all[0] = max;
                for (x, y) in all[1..].iter_mut().zip(&other[1..]) {
                    *x = *x * mine + *y * theirs;
                }
            }
            let (state, row) = all.split_at_mut(2);
            // SAFETY: by contract.
            unsafe { finish_row(s, (o, lse), at, r, row, (state[0], state[1])) }
        }
    }
}

simd! {
    /// `x = e^(x - shift)`; returns the sum.
    fn exponentials(shift: f32, x: &mut [f32]) -> f32 {
        const LANES: usize = 16;
        let mut acc = [0.0f32; LANES];
        let mut parts = x.chunks_exact_mut(LANES);
        for part in parts.by_ref() {
            for l in 0..LANES {
                part[l] = math::exp(part[l] - shift);
                acc[l] += part[l];
            }
        }
        let mut total: f32 = acc.iter().sum();
        for x in parts.into_remainder() {
            *x = math::exp(*x - shift);
            total += *x;
        }
        total
    }

    /// Adds values, weighted by each row of `n` weights, to what follows the first two floats of each row of `out`.
    fn weighted(weights: &[f32], n: usize, values: &[f32], stride: usize, out: &mut [f32], width: usize) {
        for (w, out) in weights.chunks_exact(n).zip(out.chunks_exact_mut(width)) {
            let out = &mut out[2..];
            for (v, &w) in values.chunks(stride).zip(w) {
                for (o, v) in out.iter_mut().zip(v) {
                    *o += w * v;
                }
            }
        }
    }
}
