//! `attention_bwd`: probabilities are made again from the saved logarithms (Dao et al. 2022, algorithm 4), once for the
//! gradients of keys and values and once for that of queries, so that no two programs add to one element.

use super::attention::{Heads, Seeker, TokenLists, Tokens, range, row_index, token_lists, visible};
use super::products::{Axis, Matrix, extent};
use super::{EmitError, Emitted, Kernel, Launch, Operation};
use crate::tile::ir::{Access, Elem, Fold, Unary, Var};
use crate::tile::{Buffer, Builder};

/// Launches: `Σ do·o` of each query into workspace 0; dk and dv; dq.
pub(super) fn attention_bwd(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let h = Heads::new(o, 1)?;
    let mut e = Emitted { workspaces: vec![(Elem::F32, h.batch * h.heads * h.tq)], ..Emitted::default() };
    let launches = [delta(o, &h, &e)?, keys_and_values(o, &h, &e)?, queries(o, &h, &e)?];
    e.launches.extend(launches);
    Ok(e)
}

/// `Σ do·o` of each query of each head.
fn delta(o: &Operation<'_>, h: &Heads, e: &Emitted) -> Result<Launch, EmitError> {
    let (m, dv) = (extent(h.tq, 32), extent(h.dv, usize::MAX));
    let doc = "The sum of do · o of each query of a tile";
    let mut k = Kernel::new("attention_delta", doc, [h.tq.div_ceil(m), h.heads, h.batch], 4);
    let (dout, out) = (k.input(o, 0, "do"), k.input(o, 4, "o"));
    let delta = k.work(e, 0, "delta", Access::Write);
    let b = &mut k.b;
    let (block, head, batch) = (b.program_id(0), b.program_id(1), b.program_id(2));
    let (row, width) = (Axis::block(b, block, m, h.tq), Axis::whole(b, dv, h.dv));
    let [dout, out] = [dout, out].map(|p| {
        let value = Heads::matrix(b, p, (batch, h.tq), (head, h.heads), h.dv).load(b, row, width);
        b.cast(value, Elem::F32)
    });
    let product = b.mul(dout, out);
    let sum = b.reduce(Fold::Sum, product, 1);
    let (index, mask) = row_index(b, h, batch, head, row);
    b.store(delta, index, sum, mask);
    k.finish()
}

/// Parameters that both products over pairs read.
struct Operands {
    dout: Buffer,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    lse: Buffer,
    delta: Buffer,
    of_q: TokenLists,
    of_k: TokenLists,
}

impl Operands {
    fn new(k: &mut Kernel, o: &Operation<'_>, h: &Heads, e: &Emitted) -> Operands {
        let [dout, q, keys, v, lse] =
            [(0, "do"), (1, "q"), (2, "k"), (3, "v"), (5, "lse")].map(|(i, name)| k.input(o, i, name));
        let delta = k.work(e, 0, "delta", Access::Read);
        let (of_q, of_k) = token_lists(k, o, 6, h);
        Operands { dout, q, k: keys, v, lse, delta, of_q, of_k }
    }

    /// lse and delta of a tile of queries, as a row if queries run along, else as a column.
    fn rows(&self, b: &mut Builder, h: &Heads, (batch, head): (Var, Var), at: Axis, along: bool) -> [Var; 2] {
        let (index, mask) = row_index(b, h, batch, head, at);
        [self.lse, self.delta].map(|p| {
            let v = b.load(p, index, mask);
            b.expand(v, if along { 0 } else { 1 })
        })
    }
}

/// Probabilities, and `ds = p · (dp − delta) · scale`, as the type of the factors.
fn pair(b: &mut Builder, h: &Heads, sees: Var, scores: Var, dp: Var, [lse, delta]: [Var; 2]) -> (Var, Var) {
    let (scale, zero) = (b.float(h.scale), b.float(0.0));
    let scores = b.mul(scores, scale);
    let log_p = b.sub(scores, lse);
    let p = b.unary(Unary::Exp, log_p);
    let p = b.select(sees, p, zero);
    let centred = b.sub(dp, delta);
    let ds = b.mul(p, centred);
    let ds = b.mul(ds, scale);
    (b.cast(p, h.elem), b.cast(ds, h.elem))
}

/// dk and dv: a program takes a tile of keys of a key head and goes through the queries of its heads.
fn keys_and_values(o: &Operation<'_>, h: &Heads, e: &Emitted) -> Result<Launch, EmitError> {
    let tiled = h.tiled(o, "attention_dkv", h.kv_heads);
    let (m, n) = (tiled.tiling.m, tiled.tiling.n);
    let (d, dv) = (extent(h.d, usize::MAX), extent(h.dv, usize::MAX));
    let doc = "Gradients of a tile of keys and values of a key head, summed over its query heads in order";
    let mut k = Kernel::tiled(tiled, doc, [h.tk.div_ceil(n), h.kv_heads, h.batch]);
    let p = Operands::new(&mut k, o, h, e);
    let (dk, dv_) = (k.output(o, 1, "dk"), k.output(o, 2, "dv"));
    let b = &mut k.b;
    let (block, kv_head, batch) = (b.program_id(0), b.program_id(1), b.program_id(2));
    let column = Axis::block(b, block, n, h.tk);
    let (depth, width) = (Axis::whole(b, d, h.d), Axis::whole(b, dv, h.dv));
    let of_kv = |b: &mut Builder, p: Buffer, w: usize| -> Matrix {
        Heads::matrix(b, p, (batch, h.tk), (kv_head, h.kv_heads), w)
    };
    let keys = of_kv(b, p.k, h.d).load(b, column, depth);
    let values = of_kv(b, p.v, h.dv).load(b, column, width);
    let tokens = p.of_k.load(b, batch, column);
    let (from, to) = range(b, tokens, Seeker::Keys, p.of_q, batch, m);
    let (zero, group) = (b.int(0), b.int(h.group()));
    let first = b.mul(kv_head, group);
    let start = [b.full(0.0, &[n, d]), b.full(0.0, &[n, dv])];
    let sums = b.repeat(zero, group, 1, &start, |b, member, sums| {
        let head = b.add(first, member);
        let q = Heads::matrix(b, p.q, (batch, h.tq), (head, h.heads), h.d);
        let dout = Heads::matrix(b, p.dout, (batch, h.tq), (head, h.heads), h.dv);
        b.repeat(from, to, m, sums, |b, at, sums| {
            let row = Axis::from(b, at, m, h.tq);
            let others: Tokens = p.of_q.load(b, batch, row);
            let sees = visible(b, others, tokens, true);
            let rows = p.rows(b, h, (batch, head), row, true);
            let (q, dout) = (q.load(b, row, depth), dout.load(b, row, width));
            let none = b.full(0.0, &[n, m]);
            let (across, dout_across) = (b.transpose(q), b.transpose(dout));
            let scores = b.dot(keys, across, none);
            let dp = b.dot(values, dout_across, none);
            let (prob, ds) = pair(b, h, sees, scores, dp, rows);
            vec![b.dot(ds, q, sums[0]), b.dot(prob, dout, sums[1])]
        })
    });
    of_kv(b, dk, h.d).store(b, column, depth, sums[0]);
    of_kv(b, dv_, h.dv).store(b, column, width, sums[1]);
    k.finish()
}

/// dq: a program takes a tile of queries of a head and goes through the keys.
fn queries(o: &Operation<'_>, h: &Heads, e: &Emitted) -> Result<Launch, EmitError> {
    let tiled = h.tiled(o, "attention_dq", h.heads);
    let (m, n) = (tiled.tiling.m, tiled.tiling.n);
    let (d, dv) = (extent(h.d, usize::MAX), extent(h.dv, usize::MAX));
    let doc = "The gradient of a tile of queries of a head";
    let mut k = Kernel::tiled(tiled, doc, [h.tq.div_ceil(m), h.heads, h.batch]);
    let p = Operands::new(&mut k, o, h, e);
    let dq = k.output(o, 0, "dq");
    let b = &mut k.b;
    let (block, head, batch) = (b.program_id(0), b.program_id(1), b.program_id(2));
    let group = b.int(h.group());
    let kv_head = b.div(head, group);
    let row = Axis::block(b, block, m, h.tq);
    let (depth, width) = (Axis::whole(b, d, h.d), Axis::whole(b, dv, h.dv));
    let q = Heads::matrix(b, p.q, (batch, h.tq), (head, h.heads), h.d).load(b, row, depth);
    let dout = Heads::matrix(b, p.dout, (batch, h.tq), (head, h.heads), h.dv).load(b, row, width);
    let keys = Heads::matrix(b, p.k, (batch, h.tk), (kv_head, h.kv_heads), h.d);
    let values = Heads::matrix(b, p.v, (batch, h.tk), (kv_head, h.kv_heads), h.dv).transposed();
    let own = p.of_q.load(b, batch, row);
    let rows = p.rows(b, h, (batch, head), row, false);
    let (from, to) = range(b, own, Seeker::Queries, p.of_k, batch, n);
    let start = b.full(0.0, &[m, d]);
    let sums = b.repeat(from, to, n, &[start], |b, at, sums| {
        let column = Axis::from(b, at, n, h.tk);
        let tokens = p.of_k.load(b, batch, column);
        let sees = visible(b, own, tokens, false);
        let (keys, values) = (keys.load(b, column, depth), values.load(b, width, column));
        let none = b.full(0.0, &[m, n]);
        let across = b.transpose(keys);
        let scores = b.dot(q, across, none);
        let dp = b.dot(dout, values, none);
        let (_, ds) = pair(b, h, sees, scores, dp, rows);
        vec![b.dot(ds, keys, sums[0])]
    });
    Heads::matrix(b, dq, (batch, h.tq), (head, h.heads), h.d).store(b, row, depth, sums[0]);
    k.finish()
}
