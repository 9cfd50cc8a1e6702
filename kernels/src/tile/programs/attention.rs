//! `attention`: a program takes a tile of queries of a head and goes through tiles of keys with an online softmax
//! (Milakov and Gimelshein 2018; Dao et al. 2022). What the gradient shares of that is here too.

use super::products::{Axis, Matrix, extent};
use super::{EmitError, Emitted, Kernel, Operation};
use crate::tile::ir::{Binary, Compare, Elem, Fold, Unary, Var};
use crate::tile::tiling::{Shape, Tiled};
use crate::tile::{Buffer, Builder};

/// Score of a masked pair: far below any real score, yet finite, so that differences stay finite.
pub(super) const MASKED: f32 = -1e30;

/// Extents of an application.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub(super) batch: usize,
    pub(super) tq: usize,
    pub(super) tk: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) d: usize,
    pub(super) dv: usize,
    pub(super) scale: f32,
    pub(super) elem: Elem,
}

impl Heads {
    /// `q` is the position of q among the operands; k and v follow.
    pub(super) fn new(o: &Operation<'_>, q: usize) -> Result<Heads, EmitError> {
        let (heads, kv_heads) = (o.attrs.usize("heads")?, o.attrs.usize("kv_heads")?);
        let [q, k, v] = [0, 1, 2].map(|i| &o.inputs[q + i]);
        Ok(Heads {
            batch: q.dims[0],
            tq: q.dims[1],
            tk: k.dims[1],
            heads,
            kv_heads,
            d: q.last() / heads,
            dv: v.last() / kv_heads,
            scale: o.attrs.f64("scale")? as f32,
            elem: q.dtype.into(),
        })
    }

    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// How a kernel of attention is cut that has a row of blocks for each of `heads` heads of a sequence.
    pub(super) fn tiled(&self, o: &Operation<'_>, kernel: &str, heads: usize) -> Tiled {
        let (m, n, k, parts) = (self.tq, self.tk, self.d.max(self.dv), heads * self.batch);
        let shape = Shape { kernel: kernel.into(), m, n, k, parts, elem: self.elem };
        Tiled { tiling: o.tilings.of(&shape), shape }
    }

    /// Tokens of this axis as a matrix `[tokens, width]` of head `head` of a tensor `[batch, tokens, heads · width]`.
    pub(super) fn matrix(
        b: &mut Builder,
        buffer: Buffer,
        (batch, tokens): (Var, usize),
        (head, heads): (Var, usize),
        width: usize,
    ) -> Matrix {
        let (first, within) = (b.times(batch, tokens * heads * width), b.times(head, width));
        Matrix { buffer, base: Some(b.add(first, within)), strides: (heads * width, 1) }
    }
}

/// Segments and positions of some tokens.
#[derive(Clone, Copy)]
pub(super) struct Tokens {
    pub(super) segment: Var,
    pub(super) position: Var,
}

/// Parameters that hold segments and positions of all tokens, `i32 [batch, tokens]`.
#[derive(Clone, Copy)]
pub(super) struct TokenLists {
    pub(super) segments: Buffer,
    pub(super) positions: Buffer,
    pub(super) tokens: usize,
}

impl TokenLists {
    /// Tokens of sequence `batch` at positions of an axis; those beyond it are in no segment.
    pub(super) fn load(self, b: &mut Builder, batch: Var, axis: Axis) -> Tokens {
        let first = b.times(batch, self.tokens);
        let index = b.add(axis.at, first);
        let mask = axis.mask(b);
        let [mut segment, position] = [self.segments, self.positions].map(|p| b.load(p, index, mask));
        if let Some(mask) = mask {
            let nowhere = b.integer(-1);
            segment = b.select(mask, segment, nowhere);
        }
        Tokens { segment, position }
    }
}

/// Which queries see which keys: `[queries, keys]`, or `[keys, queries]` if queries run along.
pub(super) fn visible(b: &mut Builder, queries: Tokens, keys: Tokens, queries_along: bool) -> Var {
    let (q, k) = if queries_along { (0, 1) } else { (1, 0) };
    let zero = b.int(0);
    let real = b.compare(Compare::Le, zero, queries.segment);
    let real = b.expand(real, q);
    let (seg_q, seg_k) = (b.expand(queries.segment, q), b.expand(keys.segment, k));
    let (pos_q, pos_k) = (b.expand(queries.position, q), b.expand(keys.position, k));
    let same = b.compare(Compare::Eq, seg_q, seg_k);
    let causal = b.compare(Compare::Le, pos_k, pos_q);
    let both = b.and(same, causal);
    let dims = b.ty(both).dims.clone();
    let real = b.broadcast(real, &dims);
    b.and(both, real)
}

/// Which end of an axis a search looks at.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Seeker {
    /// Queries look for keys: those not after their last position.
    Queries,
    /// Keys look for queries: those not before their first position.
    Keys,
}

/// The range of tiles of `step` tokens outside of which no token and none of `own` see each other: its first token and the
/// end of its last tile. A few comparisons a token decide it; most pairs of a packed or causal problem are never visited.
pub(super) fn range(
    b: &mut Builder,
    own: Tokens,
    seeker: Seeker,
    others: TokenLists,
    batch: Var,
    step: usize,
) -> (Var, Var) {
    let (zero, end) = (b.int(0), b.int(others.tokens));
    if others.tokens <= step {
        return (zero, end);
    }
    let least = b.integer(-i32::MAX);
    let real = b.compare(Compare::Le, zero, own.segment);
    let extreme = |b: &mut Builder, v: Var, largest: bool| {
        let v = if largest { v } else { b.unary(Unary::Neg, v) };
        let v = b.select(real, v, least);
        let found = b.reduce(Fold::Max, v, 0);
        if largest { found } else { b.unary(Unary::Neg, found) }
    };
    let (low, high) = (extreme(b, own.segment, false), extreme(b, own.segment, true));
    let reach = extreme(b, own.position, seeker == Seeker::Queries);
    let found = b.repeat(zero, end, step, &[end, zero], |b, at, found| {
        let axis = Axis::from(b, at, step, others.tokens);
        let t = others.load(b, batch, axis);
        let (from, to) = (b.compare(Compare::Le, low, t.segment), b.compare(Compare::Le, t.segment, high));
        let within = match seeker {
            Seeker::Queries => b.compare(Compare::Le, t.position, reach),
            Seeker::Keys => b.compare(Compare::Le, reach, t.position),
        };
        let both = b.and(from, to);
        let both = b.and(both, within);
        let (one, none) = (b.int(1), b.int(0));
        let hits = b.select(both, one, none);
        let hit = b.reduce(Fold::Max, hits, 0);
        let (size, is_hit) = (b.int(step), b.compare(Compare::Eq, hit, one));
        let last = b.add(at, size);
        let (first, last) = (b.select(is_hit, at, end), b.select(is_hit, last, none));
        vec![b.binary(Binary::Min, found[0], first), b.binary(Binary::Max, found[1], last)]
    });
    (found[0], b.binary(Binary::Min, found[1], end))
}

/// The four lists of tokens as parameters, the first of them operand `first`.
pub(super) fn token_lists(
    k: &mut Kernel,
    o: &Operation<'_>,
    first: usize,
    h: &Heads,
) -> (TokenLists, TokenLists) {
    let (seg_q, pos_q) = (k.input(o, first, "seg_q"), k.input(o, first + 1, "pos_q"));
    let (seg_k, pos_k) = (k.input(o, first + 2, "seg_k"), k.input(o, first + 3, "pos_k"));
    let queries = TokenLists { segments: seg_q, positions: pos_q, tokens: h.tq };
    (queries, TokenLists { segments: seg_k, positions: pos_k, tokens: h.tk })
}

/// Softmax attention and the logarithm of each row's denominator.
pub(super) fn attention(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let h = Heads::new(o, 0)?;
    let tiled = h.tiled(o, "attention", h.heads);
    let (m, n) = (tiled.tiling.m, tiled.tiling.n);
    let (d, dv) = (extent(h.d, usize::MAX), extent(h.dv, usize::MAX));
    let doc = "Attention of a tile of queries of a head, and the logarithm of each softmax denominator";
    let mut k = Kernel::tiled(tiled, doc, [h.tq.div_ceil(m), h.heads, h.batch]);
    let [q, keys, values] = [(0, "q"), (1, "k"), (2, "v")].map(|(i, name)| k.input(o, i, name));
    let (of_q, of_k) = token_lists(&mut k, o, 3, &h);
    let (out, lse) = (k.output(o, 0, "o"), k.output(o, 1, "lse"));
    let b = &mut k.b;
    let (block, head, batch) = (b.program_id(0), b.program_id(1), b.program_id(2));
    let (kv_head, group) = (head, b.int(h.group()));
    let kv_head = b.div(kv_head, group);
    let row = Axis::block(b, block, m, h.tq);
    let (depth, width) = (Axis::whole(b, d, h.d), Axis::whole(b, dv, h.dv));
    let q = Heads::matrix(b, q, (batch, h.tq), (head, h.heads), h.d).load(b, row, depth);
    let keys = Heads::matrix(b, keys, (batch, h.tk), (kv_head, h.kv_heads), h.d).transposed();
    let values = Heads::matrix(b, values, (batch, h.tk), (kv_head, h.kv_heads), h.dv);
    let queries = of_q.load(b, batch, row);
    let (from, to) = range(b, queries, Seeker::Queries, of_k, batch, n);
    let scale = b.float(h.scale);
    let start = [b.full(MASKED, &[m]), b.full(0.0, &[m]), b.full(0.0, &[m, dv])];
    let end = b.repeat(from, to, n, &start, |b, at, now| {
        let column = Axis::from(b, at, n, h.tk);
        let tokens = of_k.load(b, batch, column);
        let sees = visible(b, queries, tokens, false);
        let tile = keys.load(b, depth, column);
        let none = b.full(0.0, &[m, n]);
        let scores = b.dot(q, tile, none);
        let scores = b.mul(scores, scale);
        let masked = b.float(MASKED);
        let scores = b.select(sees, scores, masked);
        let best = b.reduce(Fold::Max, scores, 1);
        let best = b.binary(Binary::Max, now[0], best);
        let (rows, before) = (b.expand(best, 1), b.sub(now[0], best));
        let shifted = b.sub(scores, rows);
        let weights = b.unary(Unary::Exp, shifted);
        let zero = b.float(0.0);
        let weights = b.select(sees, weights, zero);
        let shrink = b.unary(Unary::Exp, before);
        let sum = b.reduce(Fold::Sum, weights, 1);
        let kept = b.mul(now[1], shrink);
        let sum = b.add(kept, sum);
        let shrink = b.expand(shrink, 1);
        let acc = b.mul(now[2], shrink);
        let tile = values.load(b, column, width);
        let weights = b.cast(weights, h.elem);
        vec![best, sum, b.dot(weights, tile, acc)]
    });
    let (best, sum, acc) = (end[0], end[1], end[2]);
    let (zero, one) = (b.float(0.0), b.float(1.0));
    let sees = b.compare(Compare::Lt, zero, sum);
    let sum = b.select(sees, sum, one);
    let rows = b.expand(sum, 1);
    let result = b.div(acc, rows);
    Heads::matrix(b, out, (batch, h.tq), (head, h.heads), h.dv).store(b, row, width, result);
    let log = b.unary(Unary::Log, sum);
    let total = b.add(best, log);
    let total = b.select(sees, total, zero);
    let (index, mask) = row_index(b, &h, batch, head, row);
    b.store(lse, index, total, mask);
    Ok(Emitted::one(k.finish()?))
}

/// Indices of a tile of queries in `[batch, heads, queries]`.
pub(super) fn row_index(b: &mut Builder, h: &Heads, batch: Var, head: Var, row: Axis) -> (Var, Option<Var>) {
    let (first, within) = (b.times(batch, h.heads * h.tq), b.times(head, h.tq));
    let start = b.add(first, within);
    (b.add(row.at, start), row.mask(b))
}
