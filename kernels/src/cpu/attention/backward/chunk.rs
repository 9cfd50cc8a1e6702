//! What a task does: a chunk of keys with a block of rows of queries, part by part and tile by tile.

use super::{AttentionBwd, Block, MOST};
use crate::cpu::attention::sight::Run;
use crate::cpu::attention::{Tokens, panels, softmax};
use crate::cpu::gemm::Panels;
use crate::cpu::{Call, scratch};
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Scratch of a chunk.
struct Tile<'a> {
    /// Scores, then probabilities, and their gradients, of a panel of queries: keys are rows.
    scores: &'a mut [f32],
    grads: &'a mut [f32],
    /// Gradients as pairs of keys.
    pairs: &'a mut [u32],
    /// Probabilities and gradients of a part: panels of keys, queries as depth.
    p: &'a mut [u32],
    ds: &'a mut [u32],
    /// Panels of queries whose slot is written.
    begun: [bool; MOST],
    chunk: usize,
}

impl AttentionBwd {
    /// Adds what a chunk of keys contributes.
    ///
    /// # Safety
    /// As [`crate::cpu::Kernel::run`]; the block is packed, and the chunk is computed by one task.
    pub(super) unsafe fn chunk(&self, call: &Call<'_>, tokens: &Tokens<'_>, b: &Block<'_>, chunk: usize) {
        let (tiles, chunks) = self.tiles(tokens, b);
        if chunk >= chunks {
            return;
        }
        let cut = |c: usize| tiles.start + tiles.len() * c / chunks;
        let (nr, mr) = (self.e.nr(), self.e.mr());
        let panels = b.rows.div_ceil(nr);
        let kept = (self.map.tile / mr) * self.part * self.e.units(nr) * mr;
        let lanes = if self.e.is_pair() { self.map.tile / 2 * nr } else { 0 };
        let sizes = [self.map.tile * nr, self.map.tile * nr, lanes, kept, kept];
        scratch::with(panels::scratch_len(&sizes), |scratch| {
            let mut rest = scratch::aligned(scratch);
            let [scores, grads, pairs, p, ds] = sizes.map(|n| panels::take(&mut rest, n));
            let mut tile = Tile {
                scores,
                grads,
                pairs: bytemuck::cast_slice_mut(pairs),
                p: bytemuck::cast_slice_mut(p),
                ds: bytemuck::cast_slice_mut(ds),
                begun: [false; MOST],
                chunk,
            };
            // SAFETY: by contract.
            unsafe {
                for first in (0..panels).step_by(self.part) {
                    let part = first..panels.min(first + self.part);
                    for t in cut(chunk)..cut(chunk + 1) {
                        self.pair(call, tokens, b, part.clone(), t, &mut tile);
                    }
                }
                for panel in (0..panels).filter(|p| !tile.begun[*p]) {
                    std::slice::from_raw_parts_mut(self.slot(b, chunk, panel), self.s.d * nr).fill(0.0);
                }
            }
        });
    }

    /// Adds what a part of the rows and a tile of keys contribute.
    ///
    /// # Safety
    /// As [`AttentionBwd::chunk`].
    unsafe fn pair(
        &self,
        call: &Call<'_>,
        tokens: &Tokens<'_>,
        b: &Block<'_>,
        part: Range<usize>,
        t: usize,
        tile: &mut Tile<'_>,
    ) {
        let (s, e, at) = (&self.s, &self.e, &self.at);
        let (nr, mr) = (e.nr(), e.mr());
        let mut runs = [None; MOST];
        for (panel, run) in part.clone().zip(&mut runs) {
            let queries = self.extent(tokens, b, self.panel_rows(b, panel));
            *run = self.map.run(b.extents, &queries, t);
        }
        let runs = &runs[..part.len()];
        let Some(seen) = runs.iter().flatten().copied().reduce(Run::join) else { return };
        // Units of a panel of queries in a panel of keys that is kept.
        let units = e.units(nr);
        let depth = self.part * units;
        // SAFETY: by contract; extents are those of the scratch.
        unsafe {
            for (i, run) in runs.iter().enumerate() {
                let run = run.unwrap_or(Run { lo: seen.hi, hi: seen.hi, masked: false });
                for key_panel in
                    (seen.lo / mr..run.lo.div_ceil(mr)).chain(run.hi.div_ceil(mr)..seen.hi.div_ceil(mr))
                {
                    let range =
                        (key_panel * depth + i * units) * mr..(key_panel * depth + (i + 1) * units) * mr;
                    tile.p[range.clone()].fill(0);
                    tile.ds[range].fill(0);
                }
                if run.lo < run.hi {
                    self.scores(tokens, b, part.start + i, i, (t, run), tile);
                }
            }
            for (j, width, kept, columns, alpha) in
                [(2, s.dv, &*tile.p, at.do_columns, 1.0), (1, s.d, &*tile.ds, at.q_columns, s.scale)]
            {
                for (i, c) in self.columns(width).enumerate() {
                    for key in (seen.lo..seen.hi).step_by(mr) {
                        let sees = |run: &Option<Run>| run.is_some_and(|r| r.lo <= key && key < r.hi);
                        let (Some(lo), Some(hi)) = (runs.iter().position(sees), runs.iter().rposition(sees))
                        else {
                            continue;
                        };
                        let (sums, ldc) = self.sums(call, b, j, t * self.map.tile + key);
                        e.product(&Panels {
                            units: (hi - lo) * units + e.units(self.panel_rows(b, part.start + hi).len()),
                            a: kept.as_ptr().add((key / mr * depth + lo * units) * mr),
                            a_panel: 0,
                            b: b.work.add(columns + (i * self.block + part.start + lo) * units * nr),
                            c: sums.add(c.start),
                            ldc,
                            m: mr.min(seen.hi - key),
                            n: c.len(),
                            alpha,
                            add: true,
                        });
                    }
                }
            }
        }
    }

    /// Probabilities of a panel of queries and a run of keys and their gradients, kept for the sums of keys and values, and
    /// the gradients of the queries.
    ///
    /// # Safety
    /// As [`AttentionBwd::chunk`].
    unsafe fn scores(
        &self,
        tokens: &Tokens<'_>,
        b: &Block<'_>,
        panel: usize,
        kept: usize,
        (t, run): (usize, Run),
        tile: &mut Tile<'_>,
    ) {
        let (s, e, at) = (&self.s, &self.e, &self.at);
        let (nr, mr, n) = (e.nr(), e.mr(), self.panel_rows(b, panel).len());
        let (start, len) = (t * self.map.tile + run.lo, run.hi - run.lo);
        let whole = len.next_multiple_of(mr).min(self.map.tile);
        let (p, ds) = (&mut tile.scores[..whole * nr], &mut tile.grads[..whole * nr]);
        if n < nr {
            // Lanes without a query are not computed.
            p.fill(0.0);
            ds.fill(0.0);
        }
        // SAFETY: by contract.
        unsafe {
            for (width, keys, lanes, out, alpha) in
                [(s.d, at.k, at.q, &mut *p, s.scale * LOG2_E), (s.dv, at.v, at.d_o, &mut *ds, 1.0)]
            {
                let units = e.units(width);
                e.product(&Panels {
                    units,
                    a: b.work.add(keys + start * units),
                    a_panel: units * mr,
                    b: b.work.add(lanes + panel * nr * units),
                    c: out.as_mut_ptr(),
                    ldc: nr,
                    m: len,
                    n,
                    alpha,
                    add: false,
                });
            }
            // Keys that are not there have no weight.
            p[len * nr..].fill(f32::NEG_INFINITY);
            ds[len * nr..].fill(0.0);
            let mask = run.masked.then(|| tokens.keys(s, b.head.batch, start, len));
            let rows = softmax::Rows {
                lse: self.row_values(b, at.lse, panel),
                delta: self.row_values(b, at.delta, panel),
                seg: self.row_values(b, at.seg, panel),
                pos: self.row_values(b, at.pos, panel),
            };
            let stride = self.part * e.units(nr) * mr;
            let first = run.lo / mr * stride + kept * e.units(nr) * mr;
            let out = softmax::Kept {
                p: &mut tile.p[first..],
                ds: &mut tile.ds[first..],
                stride,
                pairs: tile.pairs,
            };
            softmax::backward(e, (p, ds), &rows, mask, out);
            let kt_units = e.units(self.map.keys(t));
            e.product(&Panels {
                units: e.units(len),
                a: b.work.add(at.kt + t * at.kt_tile + e.units(run.lo) * mr),
                a_panel: kt_units * mr,
                b: if e.is_pair() { tile.pairs.as_ptr() } else { ds.as_ptr().cast() },
                c: self.slot(b, tile.chunk, panel),
                ldc: nr,
                m: s.d,
                n,
                alpha: s.scale,
                add: tile.begun[panel],
            });
            tile.begun[panel] = true;
        }
    }
}
