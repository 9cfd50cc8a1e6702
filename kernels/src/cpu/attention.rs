//! `attention`: tiles of queries against tiles of keys with an online softmax (Milakov and Gimelshein 2018; Dao et al.,
//! "FlashAttention", 2022). Memory is linear in the length; pairs of tiles without a visible pair are skipped.
//!
//! A task takes one tile of queries of all query heads that share a key head, so that keys and values are converted
//! once for the group.

use crate::cpu::float::Src;
use crate::cpu::scratch::{self, Cut};
use crate::cpu::simd::simd;
use crate::cpu::{Call, Kernel, KernelError, gemm, math, par, reduce};
use kfc_graph::{Attrs, DType, TensorType};

/// Keys of a tile.
pub(super) const KEYS: usize = 128;

/// Query rows (queries times heads of a group) that a tile aims at.
const ROWS: usize = 128;

/// Shapes of an attention, shared with its gradient.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) batch: usize,
    pub(super) tq: usize,
    pub(super) tk: usize,
    pub(super) kv_heads: usize,
    /// Query heads of a key head.
    pub(super) group: usize,
    /// Head sizes of queries and keys, and of values.
    pub(super) d: usize,
    pub(super) dv: usize,
    /// Queries of a tile.
    pub(super) queries: usize,
    pub(super) scale: f32,
    pub(super) x: DType,
}

impl Shape {
    /// # Errors
    /// If heads do not divide the widths.
    pub(super) fn new(
        attrs: &Attrs,
        q: &TensorType,
        k: &TensorType,
        v: &TensorType,
    ) -> Result<Shape, KernelError> {
        let (heads, kv_heads) = (attrs.usize("heads")?, attrs.usize("kv_heads")?);
        let divides = |n: usize, by: usize| by > 0 && n.is_multiple_of(by);
        if !divides(heads, kv_heads) || !divides(q.last(), heads) || !divides(v.last(), kv_heads) {
            return Err(KernelError::Operand {
                op: "attention".into(),
                operand: 0,
                found: format!("{q}, {k}, {v}"),
                expected: format!("{heads} query heads and {kv_heads} key heads that divide them"),
            });
        }
        let group = heads / kv_heads;
        Ok(Shape {
            batch: q.dims[0],
            tq: q.dims[1],
            tk: k.dims[1],
            kv_heads,
            group,
            d: q.last() / heads,
            dv: v.last() / kv_heads,
            queries: (ROWS / group).clamp(16, 64).min(q.dims[1].max(1)),
            scale: attrs.f64("scale")? as f32,
            x: q.dtype,
        })
    }

    pub(super) fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    /// Copies the rows of a tile of a `[B, Tq, heads·width]` tensor: heads of the group outermost, then queries.
    ///
    /// # Safety
    /// The tile lies within the tensor.
    pub(super) unsafe fn load_rows(&self, x: Src, at: Tile, width: usize, out: &mut [f32]) {
        for (r, row) in out[..self.group * at.n * width].chunks_exact_mut(width).enumerate() {
            let (g, i) = (r / at.n, r % at.n);
            let token = at.batch * self.tq + at.start + i;
            // SAFETY: by contract.
            unsafe { x.load((token * self.heads() + at.kv_head * self.group + g) * width, row) }
        }
    }

    /// Copies `n` key rows from `start` on of a `[B, Tk, kv_heads·width]` tensor.
    ///
    /// # Safety
    /// They lie within the tensor.
    pub(super) unsafe fn load_keys(&self, x: Src, at: Tile, width: usize, out: &mut [f32]) {
        for (i, row) in out[..at.n * width].chunks_exact_mut(width).enumerate() {
            let token = at.batch * self.tk + at.start + i;
            // SAFETY: by contract.
            unsafe { x.load((token * self.kv_heads + at.kv_head) * width, row) }
        }
    }
}

/// A run of queries or of keys of one batch entry and key head.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) batch: usize,
    pub(super) kv_head: usize,
    pub(super) start: usize,
    pub(super) n: usize,
}

/// Segments and positions of the tokens of a tile.
#[derive(Clone, Copy)]
pub(super) struct Tokens<'a> {
    seg: &'a [i32],
    pos: &'a [i32],
}

/// What a pair of tiles shows of each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sight {
    Nothing,
    Part,
    All,
}

impl<'a> Tokens<'a> {
    pub(super) fn new(seg: &'a [i32], pos: &'a [i32], start: usize, n: usize) -> Tokens<'a> {
        Tokens { seg: &seg[start..start + n], pos: &pos[start..start + n] }
    }

    /// What these queries see of `keys`, judged by extremes.
    pub(super) fn sees(&self, keys: &Tokens<'_>) -> Sight {
        let range = |x: &[i32]| x.iter().fold((i32::MAX, i32::MIN), |(lo, hi), &v| (lo.min(v), hi.max(v)));
        let (q_seg, k_seg) = (range(self.seg), range(keys.seg));
        let (q_pos, k_pos) = (range(self.pos), range(keys.pos));
        if q_seg.1 < 0 || q_seg.1 < k_seg.0 || k_seg.1 < q_seg.0 || k_pos.0 > q_pos.1 {
            Sight::Nothing
        } else if q_seg.0 >= 0 && q_seg.0 == q_seg.1 && q_seg == k_seg && k_pos.1 <= q_pos.0 {
            Sight::All
        } else {
            Sight::Part
        }
    }

    /// Overwrites the scores of invisible keys; rows of `scores` are heads times these queries.
    pub(super) fn mask(&self, keys: &Tokens<'_>, hidden: f32, scores: &mut [f32]) {
        for (r, row) in scores.chunks_exact_mut(keys.seg.len()).enumerate() {
            let i = r % self.seg.len();
            mask_row(self.seg[i], self.pos[i], keys.seg, keys.pos, hidden, row);
        }
    }
}

/// `attention`.
pub(crate) struct Attention(Shape);

impl Attention {
    pub(crate) fn new(attrs: &Attrs, inputs: &[TensorType]) -> Result<Attention, KernelError> {
        Shape::new(attrs, &inputs[0], &inputs[1], &inputs[2]).map(Attention)
    }
}

impl Kernel for Attention {
    unsafe fn run(&self, call: &Call<'_>) {
        let s = self.0;
        let tiles = s.tq.div_ceil(s.queries);
        let work = s.group * s.queries * s.tk * (s.d + s.dv) / 8;
        par::ranges(s.batch * s.kv_heads * tiles, par::rows_grain(work), |range| {
            for t in range {
                let (start, rest) = (t % tiles * s.queries, t / tiles);
                let n = s.queries.min(s.tq - start);
                let at = Tile { batch: rest / s.kv_heads, kv_head: rest % s.kv_heads, start, n };
                // SAFETY: by contract of `run`; tiles of the result are disjoint.
                unsafe { self.tile(call, at) }
            }
        });
    }
}

impl Attention {
    /// # Safety
    /// As [`Kernel::run`], for this tile of the result.
    unsafe fn tile(&self, call: &Call<'_>, at: Tile) {
        let s = self.0;
        let rows = s.group * at.n;
        let [q, k, v] = [0, 1, 2].map(|i| call.src(i, s.x));
        // SAFETY: by contract.
        let [seg_q, pos_q, seg_k, pos_k] = [3, 4, 5, 6].map(|i| unsafe { call.input::<i32>(i) });
        let queries = Tokens::new(seg_q, pos_q, at.batch * s.tq + at.start, at.n);
        let size = rows * (s.d + s.dv + KEYS + 2) + KEYS * (s.d + s.dv);
        scratch::with(size, |scratch| {
            let mut cut = Cut(scratch);
            let (qt, acc, scores) = (cut.take(rows * s.d), cut.take(rows * s.dv), cut.take(rows * KEYS));
            let (max, sum) = (cut.take(rows), cut.take(rows));
            let (kt, vt) = (cut.take(KEYS * s.d), cut.take(KEYS * s.dv));
            // SAFETY: by contract; extents are those of the scratch.
            unsafe {
                s.load_rows(q, at, s.d, qt);
                acc.fill(0.0);
                max.fill(f32::NEG_INFINITY);
                sum.fill(0.0);
                for start in (0..s.tk).step_by(KEYS) {
                    let n = KEYS.min(s.tk - start);
                    let keys = Tokens::new(seg_k, pos_k, at.batch * s.tk + start, n);
                    let sight = queries.sees(&keys);
                    if sight == Sight::Nothing {
                        continue;
                    }
                    let key_tile = Tile { start, n, ..at };
                    s.load_keys(k, key_tile, s.d, kt);
                    s.load_keys(v, key_tile, s.dv, vt);
                    let scores = &mut scores[..rows * n];
                    let (p, strides) = (scores.as_mut_ptr(), (s.d, 1));
                    gemm::kernel(
                        rows,
                        n,
                        s.d,
                        p,
                        n,
                        false,
                        qt.as_ptr(),
                        strides,
                        kt.as_ptr(),
                        (1, s.d),
                        s.scale,
                    );
                    if sight == Sight::Part {
                        queries.mask(&keys, f32::NEG_INFINITY, scores);
                    }
                    for r in 0..rows {
                        let acc = &mut acc[r * s.dv..(r + 1) * s.dv];
                        softmax_row(&mut scores[r * n..(r + 1) * n], acc, &mut max[r], &mut sum[r]);
                    }
                    let acc = acc.as_mut_ptr();
                    gemm::kernel(
                        rows,
                        s.dv,
                        n,
                        acc,
                        s.dv,
                        true,
                        scores.as_ptr(),
                        (n, 1),
                        vt.as_ptr(),
                        (s.dv, 1),
                        1.0,
                    );
                }
                self.store(call, at, acc, max, sum);
            }
        });
    }

    /// # Safety
    /// As [`Attention::tile`].
    unsafe fn store(&self, call: &Call<'_>, at: Tile, acc: &mut [f32], max: &[f32], sum: &[f32]) {
        let s = self.0;
        let (o, lse) = (call.dst(0, s.x), call.dst(1, DType::F32));
        for (r, row) in acc[..s.group * at.n * s.dv].chunks_exact_mut(s.dv).enumerate() {
            let (head, i) = (at.kv_head * s.group + r / at.n, at.start + r % at.n);
            let sees = sum[r] > 0.0;
            let inverse = if sees { 1.0 / sum[r] } else { 0.0 };
            row.iter_mut().for_each(|x| *x *= inverse);
            let row_lse = if sees { max[r] + math::log(sum[r]) } else { 0.0 };
            // SAFETY: by contract.
            unsafe {
                o.store(((at.batch * s.tq + i) * s.heads() + head) * s.dv, row);
                lse.store((at.batch * s.heads() + head) * s.tq + i, &[row_lse]);
            }
        }
    }
}

/// Turns a row of scores into exponentials relative to the running maximum and rescales what was summed before.
fn softmax_row(scores: &mut [f32], acc: &mut [f32], max: &mut f32, sum: &mut f32) {
    let new = reduce::max(scores).max(*max);
    if new == f32::NEG_INFINITY {
        scores.fill(0.0);
        return;
    }
    if new > *max {
        let factor = math::exp(*max - new);
        acc.iter_mut().for_each(|x| *x *= factor);
        *sum *= factor;
        *max = new;
    }
    *sum += exp_in_place(new, scores);
}

simd! {
    /// `x = e^(x - shift)`; returns the sum.
    pub(super) fn exp_in_place(shift: f32, x: &mut [f32]) -> f32 {
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

    fn mask_row(seg: i32, pos: i32, segs: &[i32], poss: &[i32], hidden: f32, row: &mut [f32]) {
        let n = row.len();
        let (segs, poss) = (&segs[..n], &poss[..n]);
        for j in 0..n {
            let visible = (seg >= 0) & (segs[j] == seg) & (poss[j] <= pos);
            row[j] = if visible { row[j] } else { hidden };
        }
    }
}
