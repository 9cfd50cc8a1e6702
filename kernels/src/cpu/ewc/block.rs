//! A block of rows of the merged change `scale·B·A`, panel of columns after panel of columns: products whose depth or width is
//! the rank, with the micro-kernels of matrix products.
//!
//! What a product leaves in a tile has rows as long as a panel is wide: it is a packed right operand of the next one.

use super::Delta;
use crate::cpu::gemm::{Engine, Panels};
use crate::cpu::scratch::{Cut, LINE, aligned};
use kfc_graph::DType;

/// Rows of a block.
pub(super) const ROWS: usize = 64;

/// Panels of the adapter at a block, and a tile of the change.
pub(super) struct Block<'a> {
    delta: Delta,
    engine: Engine,
    /// First row, and how many there are.
    rows: (usize, usize),
    /// Rows of B, and B transposed, as left operands.
    b: &'a mut [f32],
    b_t: &'a mut [f32],
    /// Columns of A, and A transposed, as right operands.
    a: &'a mut [f32],
    a_t: &'a mut [f32],
    /// The tile's rows as a left operand.
    left: &'a mut [f32],
    tile: &'a mut [f32],
}

/// Floats of each of the parts of a block.
fn lengths(delta: Delta, engine: Engine) -> [usize; 6] {
    let (mr, nr, rank) = (engine.mr(), engine.nr(), delta.rank);
    [
        engine.panel_units(ROWS, mr, rank),
        engine.panel_units(rank, mr, ROWS),
        engine.panel_units(nr, nr, rank),
        engine.panel_units(rank, nr, nr),
        engine.panel_units(ROWS, mr, nr),
        ROWS * nr,
    ]
}

impl<'a> Block<'a> {
    /// Floats that a block keeps in scratch.
    pub(super) fn scratch(delta: Delta) -> usize {
        lengths(delta, Engine::new(DType::F32)).iter().map(|n| n + LINE).sum()
    }

    /// No rows yet.
    pub(super) fn new(delta: Delta, scratch: &'a mut [f32]) -> Block<'a> {
        let engine = Engine::new(DType::F32);
        let mut cut = Cut(scratch);
        let [b, b_t, a, a_t, left, tile] = lengths(delta, engine).map(|n| aligned(cut.take(n + LINE), n));
        Block { delta, engine, rows: (0, 0), b, b_t, a, a_t, left, tile }
    }

    /// Columns of a panel.
    pub(super) fn width(&self) -> usize {
        self.engine.nr()
    }

    /// The block of `m <= ROWS` rows from row `i` of `b [outputs, rank]` on.
    pub(super) fn begin(&mut self, b: &[f32], (i, m): (usize, usize)) {
        let Delta { rank, .. } = self.delta;
        self.rows = (i, m);
        let rows = b[i * rank..][..m * rank].as_ptr().cast();
        let (e, mr) = (self.engine, self.engine.mr());
        // SAFETY: the panels have room for `ROWS` rows and the rank.
        unsafe {
            e.pack_rows(rows, rank, m, rank, mr, self.b.as_mut_ptr().cast());
            e.pack_columns(rows, rank, rank, m, mr, self.b_t.as_mut_ptr().cast());
        }
    }

    /// Computes the tile of `n <= width` columns from column `j` of `a [rank, inputs]` on.
    pub(super) fn change(&mut self, a: &[f32], (j, n): (usize, usize)) -> Tile<'_> {
        let Delta { inputs, rank, scale, .. } = self.delta;
        let (e, mr, nr) = (self.engine, self.engine.mr(), self.engine.nr());
        // SAFETY: columns are within those of `a`; the panels have room for them, the tile for the rows of the block.
        unsafe {
            let columns = a[j..].as_ptr().cast();
            e.pack_columns(columns, inputs, n, rank, nr, self.a.as_mut_ptr().cast());
            e.product(&Panels {
                units: rank,
                a: self.b.as_ptr().cast(),
                a_panel: mr * rank,
                b: self.a.as_ptr().cast(),
                c: self.tile.as_mut_ptr(),
                ldc: nr,
                m: self.rows.1,
                n,
                alpha: scale,
                add: false,
            });
        }
        Tile { floats: &mut self.tile[..self.rows.1 * nr], width: nr, columns: n }
    }

    /// Adds what the tile, now `d loss / d (B·A)`, gives to `da [rank, inputs]` and to the block's rows of `db [rows, rank]`;
    /// these are written if they are the first columns.
    pub(super) fn add(&mut self, a: &[f32], (j, n): (usize, usize), da: &mut [f32], db: &mut [f32]) {
        let Delta { inputs, rank, .. } = self.delta;
        let (e, mr, nr, m) = (self.engine, self.engine.mr(), self.engine.nr(), self.rows.1);
        debug_assert!(db.len() == m * rank && da.len() == rank * inputs);
        // SAFETY: extents are within the operands, and panels have room for them.
        unsafe {
            let tile: *const f32 = self.tile.as_ptr();
            e.product(&Panels {
                units: m,
                a: self.b_t.as_ptr().cast(),
                a_panel: mr * m,
                b: tile.cast(),
                c: da[j..].as_mut_ptr(),
                ldc: inputs,
                m: rank,
                n,
                alpha: 1.0,
                add: true,
            });
            e.pack_rows(tile.cast(), nr, m, n, mr, self.left.as_mut_ptr().cast());
            e.pack_rows(a[j..].as_ptr().cast(), inputs, rank, n, nr, self.a_t.as_mut_ptr().cast());
            for k in (0..rank).step_by(nr) {
                e.product(&Panels {
                    units: n,
                    a: self.left.as_ptr().cast(),
                    a_panel: mr * n,
                    b: self.a_t.as_ptr().add(k * n).cast(),
                    c: db.as_mut_ptr().add(k),
                    ldc: rank,
                    m,
                    n: nr.min(rank - k),
                    alpha: 1.0,
                    add: j > 0,
                });
            }
        }
    }
}

/// Rows of a change, `width` floats apart.
pub(super) struct Tile<'a> {
    pub(super) floats: &'a mut [f32],
    pub(super) width: usize,
    pub(super) columns: usize,
}
