//! Which keys a panel of queries sees, judged by the extremes of blocks.

use super::{Shape, Tokens};
use crate::cpu::par;

/// Smallest and largest segment and position of some tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Extent {
    seg: [i32; 2],
    pos: [i32; 2],
}

/// What queries see of a block of keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sight {
    Nothing,
    Part,
    All,
}

impl Extent {
    const EMPTY: Extent = Extent { seg: [i32::MAX, i32::MIN], pos: [i32::MAX, i32::MIN] };

    pub(super) fn of(seg: &[i32], pos: &[i32]) -> Extent {
        seg.iter()
            .zip(pos)
            .fold(Extent::EMPTY, |e, (&seg, &pos)| e.join(Extent { seg: [seg; 2], pos: [pos; 2] }))
    }

    fn join(self, other: Extent) -> Extent {
        let join = |a: [i32; 2], b: [i32; 2]| [a[0].min(b[0]), a[1].max(b[1])];
        Extent { seg: join(self.seg, other.seg), pos: join(self.pos, other.pos) }
    }

    /// What queries of this extent see of keys: never less than there is to see, and `All` only if it is all.
    pub(super) fn sees(&self, keys: &Extent) -> Sight {
        if self.seg[1] < 0
            || self.seg[1] < keys.seg[0]
            || keys.seg[1] < self.seg[0]
            || keys.pos[0] > self.pos[1]
        {
            Sight::Nothing
        } else if self.seg[0] >= 0
            && self.seg[0] == self.seg[1]
            && self.seg == keys.seg
            && keys.pos[1] <= self.pos[0]
        {
            Sight::All
        } else {
            Sight::Part
        }
    }
}

/// Keys of a tile that queries see, cut to whole blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    /// First key and end within the tile; the end is at most the tile's.
    pub(super) lo: usize,
    pub(super) hi: usize,
    /// Whether some pairs are hidden.
    pub(super) masked: bool,
}

impl Run {
    /// The least run with both.
    pub(super) fn join(self, other: Run) -> Run {
        Run { lo: self.lo.min(other.lo), hi: self.hi.max(other.hi), masked: self.masked || other.masked }
    }
}

/// Extents of the keys of all batch entries, by tile and by block.
#[derive(Clone, Copy)]
pub(super) struct Map {
    /// Keys of a block and of a tile, which is whole blocks.
    pub(super) block: usize,
    pub(super) tile: usize,
    tk: usize,
}

impl Map {
    pub(super) fn new(tk: usize, block: usize, tile: usize) -> Map {
        Map { block, tile, tk }
    }

    pub(super) fn tiles(&self) -> usize {
        self.tk.div_ceil(self.tile)
    }

    /// Keys of a tile.
    pub(super) fn keys(&self, tile: usize) -> usize {
        self.tile.min(self.tk - tile * self.tile)
    }

    fn blocks(&self) -> usize {
        self.tk.div_ceil(self.block)
    }

    /// Extents of a batch entry: of tiles, then of blocks.
    pub(super) fn len(&self) -> usize {
        self.tiles() + self.blocks()
    }

    /// Computes the extents of all batch entries, [`Map::len`] each.
    pub(super) fn fill(&self, s: &Shape, tokens: &Tokens<'_>, out: &mut [Extent]) {
        let shared = par::Shared::new(out);
        par::ranges(s.batch, par::rows_grain(s.tk), |range| {
            for batch in range {
                // SAFETY: batch entries have parts of their own.
                let out = unsafe { shared.slice(batch * self.len(), self.len()) };
                let (seg, pos) = tokens.keys(s, batch, 0, s.tk);
                let (tiles, blocks) = out.split_at_mut(self.tiles());
                for ((e, seg), pos) in
                    blocks.iter_mut().zip(seg.chunks(self.block)).zip(pos.chunks(self.block))
                {
                    *e = Extent::of(seg, pos);
                }
                for (e, blocks) in tiles.iter_mut().zip(blocks.chunks(self.tile / self.block)) {
                    *e = blocks.iter().fold(Extent::EMPTY, |e, b| e.join(*b));
                }
            }
        });
    }

    /// What queries see of a tile, given the extents of their batch entry.
    pub(super) fn run(&self, extents: &[Extent], queries: &Extent, tile: usize) -> Option<Run> {
        let (tiles, blocks) = extents.split_at(self.tiles());
        let n = self.keys(tile);
        match queries.sees(&tiles[tile]) {
            Sight::Nothing => return None,
            Sight::All => return Some(Run { lo: 0, hi: n, masked: false }),
            Sight::Part => {}
        }
        let per = self.tile / self.block;
        let mut run: Option<Run> = None;
        let mut last = 0;
        for (i, keys) in blocks[tile * per..].iter().take(n.div_ceil(self.block)).enumerate() {
            let sight = queries.sees(keys);
            if sight == Sight::Nothing {
                continue;
            }
            let (lo, hi) = (i * self.block, n.min((i + 1) * self.block));
            run = Some(match run {
                None => Run { lo, hi, masked: sight == Sight::Part },
                Some(r) => Run { hi, masked: r.masked || sight == Sight::Part || last + 1 < i, ..r },
            });
            last = i;
        }
        run
    }
}
