//! `attention_bwd`: probabilities are recomputed from the saved log-sum-exp, tile by tile (Dao et al. 2022, algorithm 4).
//!
//! Rows of queries are taken in blocks, in order. For a block, the tiles of keys that it sees are cut into chunks; a task
//! takes a chunk. It adds to the gradients of its keys and values, which no other task of the block has, and keeps gradients
//! of the queries in a slot of its own; slots are then added in order. So each of the five products is computed once, and the
//! cut depends on shapes and masks only.

use super::panels;
use super::sight::{Extent, Map, Sight};
use super::{Head, Shape, Tokens, forward, results};
use crate::cpu::elem::of_type;
use crate::cpu::float::Dst;
use crate::cpu::gemm::Engine;
use crate::cpu::reduce::{axpy, dot};
use crate::cpu::scratch::{self, LINE};
use crate::cpu::{Call, Kernel, KernelError, par};
use kfc_graph::{Attrs, DType, TensorType};
use std::f32::consts::LOG2_E;
use std::ops::Range;

mod chunk;

/// Bytes of panels and sums that a wave of key heads may have.
const WAVE: usize = 32 << 20;

/// Tasks wanted of a block of rows, to occupy many cores.
const TASKS: usize = 32;

/// Rows of a block, and of the part of it whose probabilities are kept until they are multiplied.
const BLOCK: usize = 384;
const PART: usize = 192;

/// Most panels of queries of a block.
const MOST: usize = BLOCK / 4;

/// `attention_bwd`.
pub(crate) struct AttentionBwd {
    s: Shape,
    e: Engine,
    map: Map,
    /// Panels of queries of a block and of a part.
    block: usize,
    part: usize,
    /// Key heads that are computed together, and chunks of keys.
    wave: usize,
    chunks: usize,
    at: Layout,
}

/// Where the pieces of a head's workspace begin, in units, and its length.
#[derive(Clone, Copy, Default)]
struct Layout {
    /// Keys and values as panels of rows; transposed keys as panels of rows, by tile.
    k: usize,
    v: usize,
    kt: usize,
    kt_tile: usize,
    /// Sums of the gradients of keys and values, if these are not `f32`.
    dk: usize,
    dv: usize,
    /// Of a block of rows: queries and gradients of the result as panels of lanes, and as panels of columns.
    q: usize,
    d_o: usize,
    q_columns: usize,
    do_columns: usize,
    /// Of a block of rows, one value a row: log-sum-exp in units of `log₂`, `Σ do·o`, segments and positions.
    lse: usize,
    delta: usize,
    seg: usize,
    pos: usize,
    /// Gradients of queries: by chunk, panel, and element of a head; lanes are innermost.
    slots: usize,
    len: usize,
}

/// A block of rows of a head, and the head's workspace.
#[derive(Clone, Copy)]
struct Block<'a> {
    head: Head,
    work: *mut u32,
    /// Extents of the keys of its batch entry.
    extents: &'a [Extent],
    /// First row and rows.
    first: usize,
    rows: usize,
}

impl AttentionBwd {
    pub(crate) fn new(attrs: &Attrs, inputs: &[TensorType]) -> Result<AttentionBwd, KernelError> {
        let s = Shape::new(attrs, &inputs[1], &inputs[2], &inputs[3])?;
        Ok(AttentionBwd::with_engine(s, Engine::new(s.x)))
    }

    pub(super) fn with_engine(s: Shape, e: Engine) -> AttentionBwd {
        let map = Map::new(s.tk, e.mr(), panels::tile_keys(&e));
        let panels = s.rows().div_ceil(e.nr()).max(1);
        let (block, part) = ((BLOCK / e.nr()).min(panels), (PART / e.nr()).min(panels));
        let mut b = AttentionBwd { s, e, map, block, part, wave: 1, chunks: 1, at: Layout::default() };
        b.at = b.layout();
        b.wave = (WAVE / (b.at.len * size_of::<u32>())).clamp(1, s.all_heads().max(1));
        b.chunks = TASKS.div_ceil(b.wave).clamp(1, map.tiles().max(1));
        b.at = b.layout();
        b
    }

    fn layout(&self) -> Layout {
        let (s, e) = (&self.s, &self.e);
        let (mr, nr, rows) = (e.mr(), e.nr(), self.block * e.nr());
        let mut len = 0;
        let mut take = |n: usize| {
            let at = len;
            len += n.next_multiple_of(LINE);
            at
        };
        let kt_tile = e.panel_units(s.d, mr, self.map.tile.min(s.tk)).next_multiple_of(LINE);
        let sums = if s.x == DType::F32 { 0 } else { s.tk };
        Layout {
            k: take(e.panel_units(s.tk, mr, s.d)),
            v: take(e.panel_units(s.tk, mr, s.dv)),
            kt: take(self.map.tiles() * kt_tile),
            kt_tile,
            dk: take(sums * s.d),
            dv: take(sums * s.dv),
            q: take(e.panel_units(rows, nr, s.d)),
            d_o: take(e.panel_units(rows, nr, s.dv)),
            q_columns: take(e.panel_units(s.d, nr, rows)),
            do_columns: take(e.panel_units(s.dv, nr, rows)),
            lse: take(rows),
            delta: take(rows),
            seg: take(rows),
            pos: take(rows),
            slots: take(self.chunks * self.block * s.d * nr),
            len,
        }
    }

    /// Sums of gradients of keys (`j` is 1) or values (2) from a key on, and the elements from one key to the next.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn sums(&self, call: &Call<'_>, b: &Block<'_>, j: usize, key: usize) -> (*mut f32, usize) {
        let s = &self.s;
        let (width, at) = if j == 1 { (s.d, self.at.dk) } else { (s.dv, self.at.dv) };
        // SAFETY: by contract.
        unsafe {
            if s.x == DType::F32 {
                let start = s.key_row(b.head, key) * width;
                (call.dst(j, s.x).raw::<f32>(start, width).as_mut_ptr(), s.kv_heads * width)
            } else {
                (b.work.add(at + key * width).cast(), width)
            }
        }
    }

    /// Packs a tile of keys and values and clears its sums.
    ///
    /// # Safety
    /// As [`Kernel::run`]; the tile is used by one task.
    unsafe fn pack_keys(&self, call: &Call<'_>, b: &Block<'_>, tile: usize) {
        let (s, e, at) = (&self.s, &self.e, &self.at);
        let (start, n, mr) = (tile * self.map.tile, self.map.keys(tile), e.mr());
        scratch::with(n * s.d.max(s.dv), |scratch| {
            // SAFETY: by contract.
            unsafe {
                let (k, v) = (call.src(2, s.x), call.src(3, s.x));
                let (rows, stride) = panels::key_rows(s, e, v, b.head, (start, n), s.dv, scratch);
                e.pack_rows(rows, stride, n, s.dv, mr, b.work.add(at.v + start * e.units(s.dv)));
                let (rows, stride) = panels::key_rows(s, e, k, b.head, (start, n), s.d, scratch);
                e.pack_rows(rows, stride, n, s.d, mr, b.work.add(at.k + start * e.units(s.d)));
                e.pack_columns(rows, stride, s.d, n, mr, b.work.add(at.kt + tile * at.kt_tile));
                for (j, width) in [(1, s.d), (2, s.dv)] {
                    let (rows, stride) = self.sums(call, b, j, start);
                    for key in 0..n {
                        std::slice::from_raw_parts_mut(rows.add(key * stride), width).fill(0.0);
                    }
                }
            }
        });
    }

    /// Packs one panel of queries of a block and what belongs to its rows.
    ///
    /// # Safety
    /// As [`Kernel::run`]; the panel is used by one task.
    unsafe fn pack_queries(&self, call: &Call<'_>, tokens: &Tokens<'_>, b: &Block<'_>, panel: usize) {
        let (s, e, at) = (&self.s, &self.e, &self.at);
        let nr = e.nr();
        let (first, n) = (b.first + panel * nr, nr.min(b.rows - panel * nr));
        let room = nr * s.d.max(s.dv);
        scratch::with(panels::scratch_len(&[room]), |scratch| {
            let mut rest = scratch::aligned(scratch);
            let room = panels::take(&mut rest, room);
            // SAFETY: by contract.
            unsafe {
                let (d_o, q, o) = (call.src(0, s.x), call.src(1, s.x), call.src(4, s.x));
                for (x, width, lanes, columns) in
                    [(q, s.d, at.q, at.q_columns), (d_o, s.dv, at.d_o, at.do_columns)]
                {
                    let (rows, stride) = panels::query_rows(s, e, x, b.head, (first, n, nr), width, room);
                    let out = b.work.add(lanes + panel * nr * e.units(width));
                    e.pack_rows(rows, stride, nr, width, nr, out);
                    for (i, c) in self.columns(width).enumerate() {
                        let from = rows.add(c.start * e.element().size());
                        let units = e.units(nr);
                        let out = b.work.add(columns + (i * self.block + panel) * units * nr);
                        e.pack_columns(from, stride, c.len(), nr, nr, out);
                    }
                }
                let lse: &mut [f32] = self.row_values(b, at.lse, panel);
                let delta: &mut [f32] = self.row_values(b, at.delta, panel);
                let saved = call.input::<f32>(5);
                lse.fill(0.0);
                delta.fill(0.0);
                for r in 0..n {
                    let row = s.tensor_row(b.head, first + r) * s.dv;
                    delta[r] = of_type!(s.x, T => dot::<T>(d_o.raw(row, s.dv), o.raw(row, s.dv)));
                    lse[r] = saved[s.lse_index(b.head, first + r)] * LOG2_E;
                }
                let (seg, pos) = forward::query_tokens(s, tokens, b.head, first, n);
                self.row_values(b, at.seg, panel).copy_from_slice(&seg[..nr]);
                self.row_values(b, at.pos, panel).copy_from_slice(&pos[..nr]);
            }
        });
    }

    /// Values of the rows of a panel.
    ///
    /// # Safety
    /// `at` is where such values begin; none that is written is referred to elsewhere.
    #[allow(clippy::mut_from_ref)]
    unsafe fn row_values<T>(&self, b: &Block<'_>, at: usize, panel: usize) -> &mut [T] {
        let nr = self.e.nr();
        // SAFETY: by contract; values have the size of a unit.
        unsafe { std::slice::from_raw_parts_mut(b.work.add(at + panel * nr).cast(), nr) }
    }

    /// Columns of queries, or of gradients of the result, in panels: of nearly equal widths, whole vectors, for a register tile
    /// of one vector is slow.
    fn columns(&self, width: usize) -> impl Iterator<Item = Range<usize>> {
        let nr = self.e.nr();
        let step = width.div_ceil(width.div_ceil(nr).max(1)).next_multiple_of(LINE).clamp(1, nr);
        (0..width).step_by(step).map(move |c| c..width.min(c + step))
    }

    /// The extent of rows of a block.
    fn extent(&self, tokens: &Tokens<'_>, b: &Block<'_>, rows: Range<usize>) -> Extent {
        let (s, at) = (&self.s, b.head.batch * self.s.tq);
        let queries = at + (b.first + rows.start) / s.group..at + (b.first + rows.end).div_ceil(s.group);
        Extent::of(&tokens.seg_q[queries.clone()], &tokens.pos_q[queries])
    }

    /// The rows of a panel of queries of a block.
    fn panel_rows(&self, b: &Block<'_>, panel: usize) -> Range<usize> {
        panel * self.e.nr()..b.rows.min((panel + 1) * self.e.nr())
    }

    /// The tiles that a block sees some of, and into how many chunks they are cut.
    fn tiles(&self, tokens: &Tokens<'_>, b: &Block<'_>) -> (Range<usize>, usize) {
        let queries = self.extent(tokens, b, 0..b.rows);
        let is_seen = |t: &usize| queries.sees(&b.extents[*t]) != Sight::Nothing;
        let first = (0..self.map.tiles()).find(is_seen);
        let last = (0..self.map.tiles()).rev().find(is_seen);
        let tiles = first.zip(last).map_or(0..0, |(a, b)| a..b + 1);
        let chunks = self.chunks.min(tiles.len());
        (tiles, chunks)
    }

    /// Where a chunk keeps the gradients of a panel of queries.
    fn slot(&self, b: &Block<'_>, chunk: usize, panel: usize) -> *mut f32 {
        let len = self.s.d * self.e.nr();
        b.work.wrapping_add(self.at.slots + (chunk * self.block + panel) * len).cast()
    }

    /// Adds the slots of a panel of queries in order and writes its gradients.
    ///
    /// # Safety
    /// As [`Kernel::run`]; all chunks are computed.
    unsafe fn store_queries(&self, call: &Call<'_>, tokens: &Tokens<'_>, b: &Block<'_>, panel: usize) {
        let (s, e) = (&self.s, &self.e);
        let nr = e.nr();
        let (first, n) = (b.first + panel * nr, nr.min(b.rows - panel * nr));
        scratch::with(panels::scratch_len(&[nr * s.d]), |scratch| {
            let mut rest = scratch::aligned(scratch);
            let room = panels::take(&mut rest, nr * s.d);
            // SAFETY: by contract.
            unsafe {
                let (_, chunks) = self.tiles(tokens, b);
                let slot = |c: usize| std::slice::from_raw_parts_mut(self.slot(b, c, panel), s.d * nr);
                let total = slot(0);
                if chunks == 0 {
                    total.fill(0.0);
                }
                (1..chunks).for_each(|c| axpy(1.0, slot(c), total));
                results::store(s, e, b.head, (first, n), total, call.dst(0, s.x), room);
            }
        });
    }

    /// Writes the gradients of a tile of keys and values, if they were summed in the workspace.
    ///
    /// # Safety
    /// As [`Kernel::run`]; all blocks are computed.
    unsafe fn store_keys(&self, call: &Call<'_>, b: &Block<'_>, tile: usize) {
        let s = &self.s;
        let start = tile * self.map.tile;
        for (j, width) in [(1, s.d), (2, s.dv)] {
            let out: Dst = call.dst(j, s.x);
            let keys = self.map.keys(tile);
            // SAFETY: by contract.
            unsafe {
                let rows = std::slice::from_raw_parts(self.sums(call, b, j, start).0, keys * width);
                out.store_rows(s.key_row(b.head, start) * width, s.kv_heads * width, width, rows);
            }
        }
    }

    /// All blocks of a wave of heads.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn wave(&self, call: &Call<'_>, tokens: &Tokens<'_>, heads: Range<usize>, extents: &[Extent]) {
        let (s, n, tiles) = (&self.s, heads.len(), self.map.tiles());
        // SAFETY: by contract; the workspace has the size asked for.
        let work = par::Shared::new(unsafe { call.work::<u32>(0, n * self.at.len) });
        let rows = self.block * self.e.nr();
        let blocks = s.rows().div_ceil(rows);
        let block = |lane: par::Lane, i: usize| {
            let at = s.head(heads.start + lane.number);
            Block {
                head: at,
                // SAFETY: in bounds.
                work: unsafe { work.at(lane.place * self.at.len) },
                extents: &extents[at.batch * self.map.len()..][..self.map.len()],
                first: i * rows,
                rows: rows.min(s.rows() - i * rows),
            }
        };
        let panels = |i: usize| rows.min(s.rows() - i * rows).div_ceil(self.e.nr());
        // Of a head: keys and the queries of the first block are packed; a block is computed; its queries are written and those
        // of the next are packed; and so on. In the end the gradients of keys are written.
        let last = 2 * blocks + 1;
        let count = |step: usize| match step {
            0 => tiles + panels(0),
            _ if step == last => {
                if s.x == DType::F32 {
                    0
                } else {
                    tiles
                }
            }
            _ if step % 2 == 1 => self.chunks,
            _ => panels(step / 2 - 1) + if step / 2 < blocks { panels(step / 2) } else { 0 },
        };
        par::run_lanes(n, last + 1, count, |step, lane, t| {
            // SAFETY: by contract; tasks write disjoint tiles, panels, and chunks.
            unsafe {
                if step == last {
                    return self.store_keys(call, &block(lane, 0), t);
                }
                if step % 2 == 1 {
                    return self.chunk(call, tokens, &block(lane, step / 2), t);
                }
                let before = if step == 0 { tiles } else { panels(step / 2 - 1) };
                match t.checked_sub(before) {
                    Some(t) => self.pack_queries(call, tokens, &block(lane, step / 2), t),
                    None if step == 0 => self.pack_keys(call, &block(lane, 0), t),
                    None => self.store_queries(call, tokens, &block(lane, step / 2 - 1), t),
                }
            }
        });
    }
}

impl Kernel for AttentionBwd {
    unsafe fn run(&self, call: &Call<'_>) {
        let s = &self.s;
        // SAFETY: by contract; the workspace has the size asked for.
        unsafe {
            let tokens = Tokens::new(call, 6);
            let bytes = self.wave * self.at.len * size_of::<u32>();
            let extents = call.work::<Extent>(bytes, s.batch * self.map.len());
            self.map.fill(s, &tokens, extents);
            let heads = s.all_heads();
            for first in (0..heads).step_by(self.wave) {
                self.wave(call, &tokens, first..heads.min(first + self.wave), extents);
            }
        }
    }

    fn workspace_bytes(&self) -> usize {
        self.wave * self.at.len * size_of::<u32>() + self.s.batch * self.map.len() * size_of::<Extent>()
    }
}
