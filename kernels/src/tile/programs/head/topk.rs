//! A teacher given by its largest logits: divergences over these tokens and the rest of the vocabulary as one outcome.

use super::{Chunk, Head};
use crate::tile::ir::{Access, Compare, Fold, Unary, Var};
use crate::tile::programs::{EmitError, Emitted, Kernel, Launch, Operation, warps};
use crate::tile::{Buffer, Builder};
use kfc_ops::head::Divergence;

/// Least probability inside a logarithm.
const FLOOR: f32 = 1e-9;

/// Parameters of the cache.
pub(super) struct Cached {
    ids: Buffer,
    logits: Buffer,
    lse: Buffer,
    /// Where the gradients of cached logits go, if they are wanted.
    direct: Option<Buffer>,
    k: usize,
}

/// A row's cached tokens, in a tile that may be wider than they are many.
pub(super) struct Gathered {
    at: Var,
    exists: Option<Var>,
    /// Which tokens the student knows.
    known: Var,
    /// Their logits over the temperature.
    softened: Var,
}

/// What the row needs of the divergence.
pub(super) struct Found {
    pub(super) divergence: Var,
    /// `Σ c·p` over the cached tokens, with c the gradient of the divergence with respect to p.
    pub(super) mean: Var,
}

impl Cached {
    pub(super) fn bind(k: &mut Kernel, o: &Operation<'_>, head: &Head, e: &Emitted, c: Chunk) -> Cached {
        let n = o.inputs[head.h + 4].last();
        let part = |k: &mut Kernel, i: usize, name: &str| k.input_part(o, i, name, c.start * n, c.n * n);
        Cached {
            ids: part(k, head.h + 4, "top_ids"),
            logits: part(k, head.h + 5, "top_logits"),
            lse: k.input_part(o, head.h + 6, "top_lse", c.start, c.n),
            direct: head
                .gives_gradients()
                .then(|| k.work_part(e, head.works.direct, "direct", 0, c.n * n, Access::Write)),
            k: n,
        }
    }

    /// Indices of this row's cached tokens.
    fn places(&self, b: &mut Builder) -> (Var, Option<Var>) {
        row_places(b, self.k)
    }

    /// Reads the student's logits of the cached tokens, before the row is written.
    pub(super) fn gather(&self, b: &mut Builder, z: Buffer, vocab: usize, inverse_t: f32) -> Gathered {
        let (at, exists) = self.places(b);
        let ids = b.load(self.ids, at, exists);
        let known = known(b, ids, exists, vocab);
        let row = b.program_id(0);
        let start = b.times(row, vocab);
        let index = b.add(ids, start);
        let z = b.load(z, index, Some(known));
        let inverse = b.float(inverse_t);
        Gathered { at, exists, known, softened: b.mul(z, inverse) }
    }

    /// The divergence, and the gradients of the cached logits times `factor` into the workspace.
    pub(super) fn divergence(
        &self,
        b: &mut Builder,
        head: &Head,
        g: Gathered,
        soft_lse: Var,
        factor: Option<Var>,
    ) -> Found {
        let (zero, one) = (b.float(0.0), b.float(1.0));
        let log_p = b.sub(g.softened, soft_lse);
        let p = b.unary(Unary::Exp, log_p);
        let p = b.select(g.known, p, zero);
        let logits = b.load(self.logits, g.at, g.exists);
        let (inverse, row) = (b.float((1.0 / head.attrs.temperature) as f32), b.program_id(0));
        let lse = b.load(self.lse, row, None);
        let log_q = b.mul(logits, inverse);
        let log_q = b.sub(log_q, lse);
        let q = b.unary(Unary::Exp, log_q);
        let q = b.select(g.known, q, zero);
        let (p_sum, q_sum) = (b.reduce(Fold::Sum, p, 0), b.reduce(Fold::Sum, q, 0));
        let (p_rest, q_rest) = (b.sub(one, p_sum), b.sub(one, q_sum));
        let negative = b.compare(Compare::Lt, q_rest, zero);
        let q_rest = b.select(negative, zero, q_rest);

        let kind = head.attrs.divergence;
        let (terms, slopes) = outcome(b, kind, p, q);
        let (term_rest, slope_rest) = outcome(b, kind, p_rest, q_rest);
        let sum = b.reduce(Fold::Sum, terms, 0);
        let divergence = b.add(sum, term_rest);
        // The rest is 1 − Σ p, so p moves by the difference of the two gradients.
        let c = b.sub(slopes, slope_rest);
        let cp = b.mul(c, p);
        let mean = b.reduce(Fold::Sum, cp, 0);
        if let (Some(direct), Some(factor)) = (self.direct, factor) {
            let value = b.mul(cp, factor);
            b.store(direct, g.at, value, g.exists);
        }
        Found { divergence, mean }
    }
}

/// Indices of this program's row of `k` elements.
fn row_places(b: &mut Builder, k: usize) -> (Var, Option<Var>) {
    let (row, range) = (b.program_id(0), b.range(k.next_power_of_two()));
    let start = b.times(row, k);
    let at = b.add(range, start);
    (at, (!k.is_power_of_two()).then(|| b.below(range, k)))
}

/// Which ids are in the student's vocabulary.
fn known(b: &mut Builder, ids: Var, exists: Option<Var>, vocab: usize) -> Var {
    let zero = b.int(0);
    let (from, to) = (b.compare(Compare::Le, zero, ids), b.below(ids, vocab));
    let known = b.and(from, to);
    match exists {
        Some(exists) => b.and(known, exists),
        None => known,
    }
}

/// A term of the divergence of probabilities, and the gradient with respect to p. A floored logarithm is constant.
fn outcome(b: &mut Builder, kind: Divergence, p: Var, q: Var) -> (Var, Var) {
    let (log_p, live_p) = floored_log(b, p);
    match kind {
        Divergence::ForwardKl => {
            let (log_q, _) = floored_log(b, q);
            let ratio = b.sub(log_q, log_p);
            let floored = floored(b, p);
            let slope = b.div(q, floored);
            let slope = b.mul(slope, live_p);
            (b.mul(q, ratio), b.unary(Unary::Neg, slope))
        }
        Divergence::ReverseKl => {
            let (log_q, _) = floored_log(b, q);
            let ratio = b.sub(log_p, log_q);
            (b.mul(p, ratio), b.add(ratio, live_p))
        }
        Divergence::Jsd => {
            let (sum, half) = (b.add(p, q), b.float(0.5));
            let m = b.mul(sum, half);
            let ((log_q, _), (log_m, live_m)) = (floored_log(b, q), floored_log(b, m));
            let (from_p, from_q) = (b.sub(log_p, log_m), b.sub(log_q, log_m));
            let (p_term, q_term) = (b.mul(p, from_p), b.mul(q, from_q));
            let sum = b.add(p_term, q_term);
            let live = b.sub(live_p, live_m);
            let slope = b.add(from_p, live);
            (b.mul(sum, half), b.mul(slope, half))
        }
    }
}

fn floored(b: &mut Builder, v: Var) -> Var {
    let floor = b.float(FLOOR);
    b.binary(crate::tile::ir::Binary::Max, v, floor)
}

/// The logarithm with its floor, and 1 where the floor does not bind.
fn floored_log(b: &mut Builder, v: Var) -> (Var, Var) {
    let (floor, one, zero) = (b.float(FLOOR), b.float(1.0), b.float(0.0));
    let above = b.compare(Compare::Lt, floor, v);
    let live = b.select(above, one, zero);
    let floored = floored(b, v);
    (b.unary(Unary::Log, floored), live)
}

/// Adds the gradients of cached logits to those of all. A launch of its own: another thread may have written the element.
pub(super) fn scatter(o: &Operation<'_>, head: &Head, e: &Emitted, c: Chunk) -> Result<Launch, EmitError> {
    let n = o.inputs[head.h + 4].last();
    let doc = "A token: the gradients of its cached logits are added where they belong";
    let mut k = Kernel::new("head_topk_scatter", doc, [c.n, 1, 1], warps(n.next_power_of_two()));
    let ids = k.input_part(o, head.h + 4, "top_ids", c.start * n, c.n * n);
    let direct = k.work_part(e, head.works.direct, "direct", 0, c.n * n, Access::Read);
    let dz = k.work_part(e, head.works.logits, "dz", 0, c.n * head.vocab, Access::ReadWrite);
    let b = &mut k.b;
    let (at, exists) = row_places(b, n);
    let ids = b.load(ids, at, exists);
    let known = known(b, ids, exists, head.vocab);
    let row = b.program_id(0);
    let start = b.times(row, head.vocab);
    let index = b.add(ids, start);
    let (before, more) = (b.load(dz, index, Some(known)), b.load(direct, at, exists));
    let sum = b.add(before, more);
    b.store(dz, index, sum, Some(known));
    k.finish()
}
