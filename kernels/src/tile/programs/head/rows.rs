//! A program a token: from its logits to its losses and to the gradients of its logits, which take the logits' place.
//!
//! A row is gone through once for the sums of all softmaxes, once more for the divergence from a teacher with logits, and
//! once to write. A reduction over the row stands between reading and writing: no thread writes before all have read.

use super::{Chunk, Head, topk};
use crate::tile::ir::{Access, Binary, Compare, Fold, Unary, Var};
use crate::tile::programs::row::Row;
use crate::tile::programs::{EmitError, Emitted, Kernel, Launch, Operation, width};
use crate::tile::{Buffer, Builder};
use kfc_ops::head::{Divergence, KdKind};

/// Widest tile of a row of logits.
const TILE: usize = 2048;

/// Warps of a row.
const WARPS: usize = 8;

/// Where an online softmax begins: far below any logit, yet finite.
const LOWEST: f32 = -1e30;

/// The sums of a softmax, a lane of a tile each: the largest element so far, and the sum of the others' weights against it.
#[derive(Clone, Copy)]
struct Online {
    max: Var,
    sum: Var,
}

impl Online {
    fn start(b: &mut Builder, width: usize) -> Online {
        Online { max: b.full(LOWEST, &[width]), sum: b.full(0.0, &[width]) }
    }

    fn add(self, b: &mut Builder, x: Var) -> Online {
        let max = b.binary(Binary::Max, self.max, x);
        let (old, new) = (b.sub(self.max, max), b.sub(x, max));
        let (old, new) = (b.unary(Unary::Exp, old), b.unary(Unary::Exp, new));
        let kept = b.mul(self.sum, old);
        Online { max, sum: b.add(kept, new) }
    }

    /// The largest element, and the logarithm of the sum of all weights.
    fn finish(self, b: &mut Builder) -> (Var, Var) {
        let max = b.reduce(Fold::Max, self.max, 0);
        let shifted = b.sub(self.max, max);
        let weight = b.unary(Unary::Exp, shifted);
        let part = b.mul(self.sum, weight);
        let sum = b.reduce(Fold::Sum, part, 0);
        let log = b.unary(Unary::Log, sum);
        (max, b.add(max, log))
    }
}

/// Elements of a row's tile; the lowest value where there are none.
fn load(b: &mut Builder, z: Buffer, index: Var, mask: Option<Var>) -> Var {
    let x = b.load(z, index, mask);
    match mask {
        Some(mask) => {
            let lowest = b.float(LOWEST);
            b.select(mask, x, lowest)
        }
        None => x,
    }
}

/// A token's label: its logit, and whether it counts.
struct Label {
    id: Var,
    logit: Var,
    counts: Var,
}

impl Label {
    fn load(b: &mut Builder, labels: Buffer, z: Buffer, vocab: usize) -> Label {
        let (row, zero) = (b.program_id(0), b.int(0));
        let id = b.load(labels, row, None);
        let counts = b.compare(Compare::Le, zero, id);
        let exists = b.below(id, vocab);
        let exists = b.and(counts, exists);
        let start = b.times(row, vocab);
        let at = b.add(start, id);
        Label { id, logit: b.load(z, at, Some(exists)), counts }
    }

    /// `lse − z[label]`, 0 if the label does not count.
    fn nll(&self, b: &mut Builder, lse: Var) -> Var {
        let (nll, zero) = (b.sub(lse, self.logit), b.float(0.0));
        b.select(self.counts, nll, zero)
    }
}

/// The first column of the largest element, given for each lane its first.
fn first_best(b: &mut Builder, lanes: Online, best: Var, at: Var, vocab: usize) -> Var {
    let is_best = b.compare(Compare::Eq, lanes.max, best);
    let beyond = b.int(vocab);
    let candidates = b.select(is_best, at, beyond);
    let candidates = b.unary(Unary::Neg, candidates);
    let first = b.reduce(Fold::Max, candidates, 0);
    b.unary(Unary::Neg, first)
}

/// Goes once through a row: its softmax's sums and the column of each lane's largest element, and with `inverse_t` the sums
/// at the temperature.
fn sums(b: &mut Builder, row: Row, z: Buffer, inverse_t: Option<f32>) -> (Online, Var, Option<Online>) {
    let (plain, zero) = (Online::start(b, row.width), b.int(0));
    let at = b.splat(zero, &[row.width]);
    let mut init = vec![plain.max, plain.sum, at];
    if inverse_t.is_some() {
        let soft = Online::start(b, row.width);
        init.extend([soft.max, soft.sum]);
    }
    let end = row.tiles(b, &init, |b, column, index, mask, now| {
        let x = load(b, z, index, mask);
        let plain = Online { max: now[0], sum: now[1] }.add(b, x);
        let better = b.compare(Compare::Lt, now[0], x);
        let mut next = vec![plain.max, plain.sum, b.select(better, column, now[2])];
        if let Some(t) = inverse_t {
            let t = b.float(t);
            let x = b.mul(x, t);
            let soft = Online { max: now[3], sum: now[4] }.add(b, x);
            next.extend([soft.max, soft.sum]);
        }
        next
    });
    let soft = inverse_t.map(|_| Online { max: end[3], sum: end[4] });
    (Online { max: end[0], sum: end[1] }, end[2], soft)
}

/// Stores a scalar at this program's row.
fn store(b: &mut Builder, buffer: Buffer, value: Var) {
    let row = b.program_id(0);
    b.store(buffer, row, value, None);
}

/// The program of `linear_token_scores`.
pub(super) fn scores(o: &Operation<'_>, e: &Emitted, vocab: usize, c: Chunk) -> Result<Launch, EmitError> {
    let doc = "A token: the log-probability of its label, and its likeliest token";
    let mut k = Kernel::new("token_scores", doc, [c.n, 1, 1], WARPS);
    let z = k.work_part(e, 0, "z", 0, c.n * vocab, Access::Read);
    let labels = k.input_part(o, 2, "labels", c.start, c.n);
    let logp = k.output_part(o, 0, "logp", c.start, c.n);
    let greedy = k.output_part(o, 1, "greedy", c.start, c.n);
    let b = &mut k.b;
    let row = Row::prefix(b, vocab, vocab, width(vocab, TILE));
    let label = Label::load(b, labels, z, vocab);
    let (lanes, at, _) = sums(b, row, z, None);
    let (max, lse) = lanes.finish(b);
    let best = first_best(b, lanes, max, at, vocab);
    let nll = label.nll(b, lse);
    let value = b.unary(Unary::Neg, nll);
    store(b, logp, value);
    store(b, greedy, best);
    k.finish()
}

/// What a teacher's logits say: the student's and the teacher's normaliser at the temperature, the divergence, and the mean
/// under the student of the divergence's gradient before the softmax.
struct Teacher {
    z: Buffer,
    common: usize,
    lse: Var,
    teacher_lse: Var,
    divergence: Var,
    mean: Var,
}

/// The program that turns a chunk's logits into losses and gradients.
pub(super) fn rows(o: &Operation<'_>, head: &Head, e: &Emitted, c: Chunk) -> Result<Launch, EmitError> {
    let (v, kd) = (head.vocab, head.attrs.kd);
    let doc = "A token: its losses, and the gradients of its logits in their place";
    let mut k = Kernel::new("head_rows", doc, [c.n, 1, 1], WARPS);
    let access = if head.gives_gradients() { Access::ReadWrite } else { Access::Read };
    let z = k.work_part(e, head.works.logits, "z", 0, c.n * v, access);
    let token = |k: &mut Kernel, i: usize, name: &str| k.input_part(o, i, name, c.start, c.n);
    let (labels, w_ce) = (token(&mut k, head.h + 2, "labels"), token(&mut k, head.h + 3, "w_ce"));
    let w_kd = head.attrs.distils().then(|| token(&mut k, head.w_kd(), "w_kd"));
    let g_ce = head.gives_gradients().then(|| k.input(o, 0, "g_ce"));
    let g_kd = (head.gives_gradients() && head.attrs.distils()).then(|| k.input(o, 1, "g_kd"));
    let teacher = (kd == KdKind::Logits)
        .then(|| k.work_part(e, head.works.teacher, "zt", 0, c.n * head.teacher_vocab, Access::Read));
    let cached = (kd == KdKind::TopK).then(|| topk::Cached::bind(&mut k, o, head, e, c));
    let names = if head.attrs.distils() { vec!["ce", "kd", "correct"] } else { vec!["ce", "correct"] };
    let terms: Vec<Buffer> = (head.works.terms.iter().zip(names))
        .map(|(&work, name)| k.work_part(e, work, name, c.start, c.n, Access::Write))
        .collect();

    let b = &mut k.b;
    let row = Row::prefix(b, v, v, width(v, TILE));
    let label = Label::load(b, labels, z, v);
    let pid = b.program_id(0);
    let w_ce = b.load(w_ce, pid, None);
    let t = head.attrs.temperature as f32;
    let inverse_t = (1.0 / head.attrs.temperature) as f32;
    let gathered = cached.as_ref().map(|cached| cached.gather(b, z, v, inverse_t));
    let (lanes, at, soft) = sums(b, row, z, cached.as_ref().map(|_| inverse_t));
    let (max, lse) = lanes.finish(b);
    let nll = label.nll(b, lse);
    let ce = b.mul(nll, w_ce);
    let best = first_best(b, lanes, max, at, v);
    let (zero, one) = (b.float(0.0), b.float(1.0));
    let (hit, counted) = (b.compare(Compare::Eq, best, label.id), b.compare(Compare::Lt, zero, w_ce));
    let correct = b.and(hit, counted);
    let correct = b.select(correct, one, zero);
    if head.gives_losses() {
        store(b, terms[0], ce);
        store(b, terms[terms.len() - 1], correct);
    }

    // The factor of the gradient of the divergence: T² of the loss times 1/T of the softened logits.
    let w_kd = w_kd.map(|w| b.load(w, pid, None));
    let first = b.int(0);
    let kd_factor = w_kd.zip(g_kd).map(|(w, g)| {
        let g = b.load(g, first, None);
        let (g, t) = (b.mul(w, g), b.float(t));
        b.mul(g, t)
    });
    let teacher = teacher.map(|zt| with_logits(b, head, z, zt, inverse_t));
    let mut divergence = teacher.as_ref().map(|t| t.divergence);
    let mut shared = None;
    if let (Some(cached), Some(gathered), Some(soft)) = (cached, gathered, soft) {
        let (_, soft_lse) = soft.finish(b);
        let found = cached.divergence(b, head, gathered, soft_lse, kd_factor);
        divergence = Some(found.divergence);
        shared = Some((soft_lse, found.mean));
    }
    if let (Some(divergence), Some(w), true) = (divergence, w_kd, head.gives_losses()) {
        let (t2, weighted) = (b.float(t * t), b.mul(divergence, w));
        let kd = b.mul(weighted, t2);
        store(b, terms[1], kd);
    }
    let Some(g_ce) = g_ce else { return k.finish() };

    let g_ce = b.load(g_ce, first, None);
    let ce_factor = b.mul(w_ce, g_ce);
    let ce_factor = b.select(label.counts, ce_factor, zero);
    row.tiles(b, &[], |b, column, index, mask, _| {
        let x = b.load(z, index, mask);
        let shifted = b.sub(x, lse);
        let p = b.unary(Unary::Exp, shifted);
        let is_label = b.compare(Compare::Eq, column, label.id);
        let less = b.sub(p, one);
        let error = b.select(is_label, less, p);
        let mut dz = b.mul(error, ce_factor);
        if let (Some(teacher), Some(factor)) = (&teacher, kd_factor) {
            let d = teacher.gradient(b, head, x, column, inverse_t);
            let d = b.mul(d, factor);
            dz = b.add(dz, d);
        }
        if let (Some((soft_lse, mean)), Some(factor)) = (shared, kd_factor) {
            let inverse = b.float(inverse_t);
            let log_p = b.mul(x, inverse);
            let log_p = b.sub(log_p, soft_lse);
            let p = b.unary(Unary::Exp, log_p);
            let share = b.mul(mean, factor);
            let d = b.mul(p, share);
            dz = b.sub(dz, d);
        }
        b.store(z, index, dz, mask);
        Vec::new()
    });
    k.finish()
}

/// Goes through the logits that student and teacher both have, twice: for their normalisers, and for the divergence.
fn with_logits(b: &mut Builder, head: &Head, z: Buffer, zt: Buffer, inverse_t: f32) -> Teacher {
    let common = head.vocab.min(head.teacher_vocab);
    let w = width(common, TILE);
    let own = Row::prefix(b, common, head.vocab, w);
    let start = [Online::start(b, w), Online::start(b, w)];
    let (pid, inverse) = (b.program_id(0), b.float(inverse_t));
    let other = b.times(pid, head.teacher_vocab);
    let softened = |b: &mut Builder, column: Var, index: Var, mask: Option<Var>| {
        let at = b.add(column, other);
        let (x, y) = (load(b, z, index, mask), load(b, zt, at, mask));
        (b.mul(x, inverse), b.mul(y, inverse))
    };
    let init = [start[0].max, start[0].sum, start[1].max, start[1].sum];
    let end = own.tiles(b, &init, |b, column, index, mask, now| {
        let (x, y) = softened(b, column, index, mask);
        let p = Online { max: now[0], sum: now[1] }.add(b, x);
        let q = Online { max: now[2], sum: now[3] }.add(b, y);
        vec![p.max, p.sum, q.max, q.sum]
    });
    let (_, lse) = Online { max: end[0], sum: end[1] }.finish(b);
    let (_, teacher_lse) = Online { max: end[2], sum: end[3] }.finish(b);
    let none = b.full(0.0, &[w]);
    let kind = head.attrs.divergence;
    let end = own.tiles(b, &[none, none], |b, column, index, mask, now| {
        let (x, y) = softened(b, column, index, mask);
        let (log_p, log_q) = (b.sub(x, lse), b.sub(y, teacher_lse));
        let (p, q) = (b.unary(Unary::Exp, log_p), b.unary(Unary::Exp, log_q));
        let (term, slope) = divergence_terms(b, kind, (log_p, p), (log_q, q));
        let pg = b.mul(p, slope);
        vec![b.add(now[0], term), b.add(now[1], pg)]
    });
    let (divergence, mean) = (b.reduce(Fold::Sum, end[0], 0), b.reduce(Fold::Sum, end[1], 0));
    Teacher { z: zt, common, lse, teacher_lse, divergence, mean }
}

/// A term of the divergence, and the gradient of the divergence with respect to p, up to a constant. Forward KL has a
/// gradient with respect to logits that needs none.
fn divergence_terms(
    b: &mut Builder,
    kind: Divergence,
    (log_p, p): (Var, Var),
    (log_q, q): (Var, Var),
) -> (Var, Var) {
    let ratio = b.sub(log_p, log_q);
    match kind {
        Divergence::ForwardKl => {
            let term = b.mul(q, ratio);
            let zero = b.float(0.0);
            (b.unary(Unary::Neg, term), zero)
        }
        Divergence::ReverseKl => (b.mul(p, ratio), ratio),
        Divergence::Jsd => {
            let log_m = log_mean(b, log_p, log_q);
            let half = b.float(0.5);
            let (from_p, from_q) = (b.sub(log_p, log_m), b.sub(log_q, log_m));
            let (p_term, q_term) = (b.mul(p, from_p), b.mul(q, from_q));
            let sum = b.add(p_term, q_term);
            (b.mul(sum, half), b.mul(from_p, half))
        }
    }
}

/// `log((e^x + e^y)/2)` without overflow or underflow.
fn log_mean(b: &mut Builder, x: Var, y: Var) -> Var {
    let max = b.binary(Binary::Max, x, y);
    let (x, y) = (b.sub(x, max), b.sub(y, max));
    let (x, y) = (b.unary(Unary::Exp, x), b.unary(Unary::Exp, y));
    let (sum, half) = (b.add(x, y), b.float(0.5));
    let mean = b.mul(sum, half);
    let log = b.unary(Unary::Log, mean);
    b.add(max, log)
}

impl Teacher {
    /// The gradient of the divergence with respect to the softened logits of a tile, 0 outside of what both have.
    fn gradient(&self, b: &mut Builder, head: &Head, x: Var, column: Var, inverse_t: f32) -> Var {
        let (pid, inverse) = (b.program_id(0), b.float(inverse_t));
        let start = b.times(pid, head.teacher_vocab);
        let at = b.add(column, start);
        let is_common = b.below(column, self.common);
        let y = b.load(self.z, at, Some(is_common));
        let (x, y) = (b.mul(x, inverse), b.mul(y, inverse));
        let (log_p, log_q) = (b.sub(x, self.lse), b.sub(y, self.teacher_lse));
        let p = b.unary(Unary::Exp, log_p);
        let q = b.unary(Unary::Exp, log_q);
        let d = match head.attrs.divergence {
            Divergence::ForwardKl => b.sub(p, q),
            kind => {
                let (_, slope) = divergence_terms(b, kind, (log_p, p), (log_q, q));
                let centred = b.sub(slope, self.mean);
                b.mul(p, centred)
            }
        };
        let zero = b.float(0.0);
        b.select(is_common, d, zero)
    }
}
