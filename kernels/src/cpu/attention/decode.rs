//! Few queries over many keys: dot products, without panels. Keys and values are read once, which is most of the work.
//!
//! Keys are cut into chunks; each chunk has its own maximum, sum and weighted values in the workspace, and these are joined
//! in order.

use super::forward::query_tokens;
use super::panels;
use super::{Head, Shape, Tokens};
use crate::cpu::float::{Dst, Src};
use crate::cpu::simd::{Level, simd};
use crate::cpu::{Call, math, par, reduce, scratch};
use kfc_graph::DType;

/// Most rows of queries of a key head.
const ROWS: usize = 16;

/// Keys of a chunk.
const CHUNK: usize = 256;

/// Keys that are converted to `f32` at once.
const STEP: usize = 32;

/// Attention by dot products.
pub(super) struct Decode {
    s: Shape,
    level: Level,
}

impl Decode {
    /// Whether a shape has few enough queries: without the loops that share what is read, only one.
    pub(super) fn fits(s: &Shape, level: Level) -> bool {
        s.rows() <= if level.has_avx512() { ROWS } else { 1 }
    }

    pub(super) fn new(s: Shape, level: Level) -> Decode {
        Decode { s, level }
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
        let s = &self.s;
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
        let sizes = [s.rows() * n, s.rows() * s.d, STEP * s.d.max(s.dv)];
        scratch::with(panels::scratch_len(&sizes), |scratch| {
            let mut rest = scratch::aligned(scratch);
            let [scores, q, rows] = sizes.map(|n| panels::take(&mut rest, n));
            // SAFETY: by contract.
            unsafe {
                for (r, row) in q.chunks_exact_mut(s.d).enumerate() {
                    call.src(0, s.x).load(s.tensor_row(at, r) * s.d, row);
                }
                for j in (0..n).step_by(STEP) {
                    let keys = (start + lo + j, STEP.min(n - j));
                    let (k, stride) = self.floats(call.src(1, s.x), at, keys, s.d, rows);
                    dots(self.level, q, k, stride, s.d, &mut scores[j..], n);
                }
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
                for j in (0..n).step_by(STEP) {
                    let keys = (start + lo + j, STEP.min(n - j));
                    let (v, stride) = self.floats(call.src(2, s.x), at, keys, s.dv, rows);
                    weighted(self.level, &scores[j..], n, v, stride, s.dv, out, self.part());
                }
            }
        });
    }

    /// Rows of keys or values as `f32`, and the elements from one to the next.
    ///
    /// # Safety
    /// As [`panels::key_rows`].
    unsafe fn floats<'a>(
        &self,
        x: Src,
        at: Head,
        (first, n): (usize, usize),
        width: usize,
        scratch: &'a mut [f32],
    ) -> (&'a [f32], usize) {
        let s = &self.s;
        // SAFETY: by contract.
        unsafe {
            if x.dtype() == DType::F32 {
                let stride = s.kv_heads * width;
                return (x.raw(s.key_row(at, first) * width, (n - 1) * stride + width), stride);
            }
            for (i, row) in scratch[..n * width].chunks_exact_mut(width).enumerate() {
                x.load(s.key_row(at, first + i) * width, row);
            }
        }
        (&scratch[..n * width], width)
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

/// Divides a row by its sum of exponentials, which are relative to `max`, and writes it with its log-sum-exp.
///
/// # Safety
/// The row lies within the results.
unsafe fn finish_row(
    s: &Shape,
    (o, lse): (Dst, Dst),
    at: Head,
    r: usize,
    row: &mut [f32],
    (max, sum): (f32, f32),
) {
    let sees = sum > 0.0;
    let inverse = if sees { 1.0 / sum } else { 0.0 };
    reduce::scale(inverse, row);
    let row_lse = if sees { max + math::log(sum) } else { 0.0 };
    // SAFETY: by contract.
    unsafe {
        o.store(s.tensor_row(at, r) * s.dv, row);
        lse.store(s.lse_index(at, r), &[row_lse]);
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

    /// `y += x`, weighted.
    fn add(w: f32, x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += w * *x;
        }
    }
}

/// Dot products of each row of `q` with rows that are `stride` apart; those of a row of `q` are `n` apart in `out`.
fn dots(level: Level, q: &[f32], keys: &[f32], stride: usize, d: usize, out: &mut [f32], n: usize) {
    #[cfg(target_arch = "x86_64")]
    if level.has_avx512() {
        // SAFETY: the CPU has these instructions.
        return unsafe { super::decode_avx512::dots(q, keys, stride, d, out, n) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = level;
    for (q, out) in q.chunks_exact(d).zip(out.chunks_mut(n)) {
        for (key, out) in keys.chunks(stride).zip(out) {
            *out = reduce::dot(q, &key[..d]);
        }
    }
}

/// Adds rows that are `stride` apart, weighted by each row of weights, which are `n` apart, to what follows the first two
/// floats of each row of `out`.
#[allow(clippy::too_many_arguments)]
fn weighted(
    level: Level,
    weights: &[f32],
    n: usize,
    values: &[f32],
    stride: usize,
    dv: usize,
    out: &mut [f32],
    part: usize,
) {
    #[cfg(target_arch = "x86_64")]
    if level.has_avx512() {
        // SAFETY: the CPU has these instructions.
        return unsafe { super::decode_avx512::weighted(weights, n, values, stride, dv, out, part) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = level;
    for (w, out) in weights.chunks(n).zip(out.chunks_exact_mut(part)) {
        for (v, &w) in values.chunks(stride).zip(w) {
            add(w, &v[..dv], &mut out[2..]);
        }
    }
}
