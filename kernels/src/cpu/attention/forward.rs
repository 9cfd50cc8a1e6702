//! The forward pass over tiles: one task a panel of queries, over all tiles of keys that it sees.

use super::panels;
use super::results;
use super::sight::{Extent, Map};
use super::softmax::{self, Lanes};
use super::{Head, Shape, Tokens};
use crate::cpu::gemm::{Engine, Panels};
use crate::cpu::scratch::{self, LINE};
use crate::cpu::{Call, par};
use kfc_graph::DType;
use std::f32::consts::LOG2_E;

/// Bytes of packed keys and values that a wave of key heads may have.
const WAVE: usize = 16 << 20;

/// Attention over tiles.
pub(super) struct Forward {
    s: Shape,
    e: Engine,
    map: Map,
    /// Units of the keys of a head, and of the values of a tile of it.
    k_units: usize,
    v_tile: usize,
    /// Key heads that are packed together.
    wave: usize,
}

impl Forward {
    pub(super) fn new(s: Shape, e: Engine) -> Forward {
        let tile = panels::tile_keys(&e);
        let map = Map::new(s.tk, e.mr(), tile);
        let k_units = e.panel_units(s.tk, e.mr(), s.d).next_multiple_of(LINE);
        let v_tile = e.panel_units(s.dv, e.mr(), tile.min(s.tk)).next_multiple_of(LINE);
        let mut f = Forward { s, e, map, k_units, v_tile, wave: 1 };
        f.wave = (WAVE / f.head_bytes().max(1)).clamp(1, s.all_heads().max(1));
        f
    }

    fn head_bytes(&self) -> usize {
        panels::line_bytes(self.k_units + self.map.tiles() * self.v_tile)
    }

    /// Packed heads of a wave, then extents.
    pub(super) fn workspace_bytes(&self) -> usize {
        self.wave * self.head_bytes() + self.s.batch * self.map.len() * size_of::<Extent>()
    }

    /// Panels of queries of a head.
    fn query_panels(&self) -> usize {
        self.s.rows().div_ceil(self.e.nr())
    }

    /// # Safety
    /// As [`crate::cpu::Kernel::run`].
    pub(super) unsafe fn run(&self, call: &Call<'_>, tokens: Tokens<'_>) {
        let (s, tiles, query_panels) = (&self.s, self.map.tiles(), self.query_panels());
        let heads = s.all_heads();
        let units = self.head_bytes() / size_of::<u32>();
        // SAFETY: by contract; tasks write disjoint panels and disjoint rows of the results.
        unsafe {
            let extents = call.work::<Extent>(self.wave * self.head_bytes(), s.batch * self.map.len());
            self.map.fill(s, &tokens, extents);
            let extents = &*extents;
            let packed = par::Shared::new(call.work::<u32>(0, self.wave * units));
            for first in (0..heads).step_by(self.wave) {
                let n = self.wave.min(heads - first);
                // Keys and values are packed; then queries are taken, panels with many keys, at the end, first.
                let count = |step| if step == 0 { tiles } else { query_panels };
                par::run_lanes(n, 2, count, |step, lane, t| {
                    let (head, packed) = (s.head(first + lane.number), packed.at(lane.place * units));
                    if step == 0 {
                        return self.pack(call, head, t, packed);
                    }
                    let extents = &extents[head.batch * self.map.len()..][..self.map.len()];
                    self.panel(call, tokens, head, query_panels - 1 - t, packed, extents);
                });
            }
        }
    }

    /// Packs the keys and values of a tile.
    ///
    /// # Safety
    /// As [`Forward::run`]; `packed` are the panels of the head.
    unsafe fn pack(&self, call: &Call<'_>, at: Head, tile: usize, packed: *mut u32) {
        let (s, e) = (&self.s, &self.e);
        let (start, n) = (tile * self.map.tile, self.map.keys(tile));
        let mr = e.mr();
        scratch::with(n * s.d.max(s.dv), |scratch| {
            // SAFETY: by contract.
            unsafe {
                let (k, v) = (call.src(1, s.x), call.src(2, s.x));
                let (rows, stride) = panels::key_rows(s, e, k, at, (start, n), s.d, scratch);
                e.pack_rows(rows, stride, n, s.d, mr, packed.add(start * e.units(s.d)));
                let (rows, stride) = panels::key_rows(s, e, v, at, (start, n), s.dv, scratch);
                let out = packed.add(self.k_units + tile * self.v_tile);
                e.pack_columns(rows, stride, s.dv, n, mr, out);
            }
        });
    }

    /// One panel of queries.
    ///
    /// # Safety
    /// As [`Forward::run`], for these rows of the result.
    unsafe fn panel(
        &self,
        call: &Call<'_>,
        tokens: Tokens<'_>,
        at: Head,
        panel: usize,
        packed: *const u32,
        extents: &[Extent],
    ) {
        let (s, e) = (&self.s, &self.e);
        let (nr, mr, tile) = (e.nr(), e.mr(), self.map.tile);
        let first = panel * nr;
        let n = nr.min(s.rows() - first);
        let (d_units, pair_units) = (e.units(s.d), if e.is_pair() { tile / 2 * nr } else { 0 });
        let sizes = [tile * nr, pair_units, s.dv * nr, d_units * nr, nr * s.d.max(s.dv), nr, nr, nr];
        scratch::with(panels::scratch_len(&sizes), |scratch| {
            let mut rest = scratch::aligned(scratch);
            let mut take = |n: usize| panels::take(&mut rest, n);
            let [scores, pairs, acc, q, rows, max, sum, factor] = sizes.map(&mut take);
            let (pairs, q): (&mut [u32], &mut [u32]) =
                (bytemuck::cast_slice_mut(pairs), bytemuck::cast_slice_mut(q));
            let (seg, pos) = query_tokens(s, &tokens, at, first, n);
            let seen = Extent::of(&seg[..n], &pos[..n]);
            max.fill(f32::NEG_INFINITY);
            sum.fill(0.0);
            if n < nr {
                // Lanes without a query are not computed.
                scores.fill(0.0);
                acc.fill(0.0);
            }
            let mut lanes = Lanes { seg: &seg[..nr], pos: &pos[..nr], max, sum, factor };
            let mut is_begun = false;
            // SAFETY: by contract; extents are those of the scratch.
            unsafe {
                let (queries, stride) =
                    panels::query_rows(s, e, call.src(0, s.x), at, (first, n, nr), s.d, rows);
                e.pack_rows(queries, stride, nr, s.d, nr, q.as_mut_ptr());
                for t in 0..self.map.tiles() {
                    let Some(run) = self.map.run(extents, &seen, t) else { continue };
                    let (start, len) = (t * tile + run.lo, run.hi - run.lo);
                    let scores = &mut scores[..len * nr];
                    e.product(&Panels {
                        units: d_units,
                        a: packed.add(start * d_units),
                        a_panel: d_units * mr,
                        b: q.as_ptr(),
                        c: scores.as_mut_ptr(),
                        ldc: nr,
                        m: len,
                        n,
                        alpha: s.scale * LOG2_E,
                        add: false,
                    });
                    let mask = run.masked.then(|| tokens.keys(s, at.batch, start, len));
                    let raised = softmax::forward(e, scores, &mut lanes, mask, pairs);
                    if raised && is_begun {
                        softmax::rescale(e, lanes.factor, acc);
                    }
                    let v_units = e.units(self.map.keys(t));
                    e.product(&Panels {
                        units: e.units(len),
                        a: packed.add(self.k_units + t * self.v_tile + e.units(run.lo) * mr),
                        a_panel: v_units * mr,
                        b: if e.is_pair() { pairs.as_ptr() } else { scores.as_ptr().cast() },
                        c: acc.as_mut_ptr(),
                        ldc: nr,
                        m: s.dv,
                        n,
                        alpha: 1.0,
                        add: is_begun,
                    });
                    is_begun = true;
                }
                if !is_begun {
                    acc.fill(0.0);
                }
                softmax::finish(nr, lanes.max, lanes.sum, lanes.factor);
                softmax::rescale(e, lanes.factor, acc);
                results::store(s, e, at, (first, n), acc, call.dst(0, s.x), rows);
                results::store_lanes(s, at, (first, n), lanes.max, call.dst(1, DType::F32));
            }
        });
    }
}

/// Segments and positions of rows `first..first + n`; lanes after them have segment -1.
pub(super) fn query_tokens(
    s: &Shape,
    tokens: &Tokens<'_>,
    at: Head,
    first: usize,
    n: usize,
) -> ([i32; softmax::MOST], [i32; softmax::MOST]) {
    let (mut seg, mut pos) = ([-1; softmax::MOST], [0; softmax::MOST]);
    for r in 0..n {
        let token = at.batch * s.tq + (first + r) / s.group;
        (seg[r], pos[r]) = (tokens.seg_q[token], tokens.pos_q[token]);
    }
    (seg, pos)
}
