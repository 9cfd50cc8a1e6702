//! Attention, one query and one head at a time.

use kfc_graph::Attrs;
use kfc_graph::interp::Tensor;

/// One head of one sequence: how to index the operands, which stand in the order q, k, v, seg_q, pos_q,
/// seg_k, pos_k.
struct Head<'a> {
    x: [&'a Tensor; 7],
    batch: usize,
    head: usize,
    kv_head: usize,
    d: usize,
    dv: usize,
    scale: f64,
}

impl Head<'_> {
    fn q(&self, i: usize, c: usize) -> usize {
        (self.batch * self.x[0].dims[1] + i) * self.x[0].dims[2] + self.head * self.d + c
    }
    fn k(&self, j: usize, c: usize) -> usize {
        (self.batch * self.x[1].dims[1] + j) * self.x[1].dims[2] + self.kv_head * self.d + c
    }
    fn v(&self, j: usize, c: usize) -> usize {
        (self.batch * self.x[2].dims[1] + j) * self.x[2].dims[2] + self.kv_head * self.dv + c
    }
    fn o(&self, heads: usize, i: usize, c: usize) -> usize {
        ((self.batch * self.x[0].dims[1] + i) * heads + self.head) * self.dv + c
    }
    /// Keys that query i sees, with their scores.
    fn scores(&self, i: usize) -> Vec<(usize, f64)> {
        let (tq, tk) = (self.x[0].dims[1], self.x[1].dims[1]);
        let (iq, ik) = (self.batch * tq + i, self.batch * tk);
        (0..tk)
            .filter(|j| {
                self.x[3].data[iq] >= 0.0
                    && self.x[3].data[iq] == self.x[5].data[ik + j]
                    && self.x[6].data[ik + j] <= self.x[4].data[iq]
            })
            .map(|j| {
                let dot: f64 =
                    (0..self.d).map(|c| self.x[0].data[self.q(i, c)] * self.x[1].data[self.k(j, c)]).sum();
                (j, self.scale * dot)
            })
            .collect()
    }
}

fn each_head(attrs: &Attrs, x: [&Tensor; 7], mut f: impl FnMut(&Head<'_>)) {
    let (heads, kv_heads) = (attrs.usize("heads").unwrap(), attrs.usize("kv_heads").unwrap());
    for batch in 0..x[0].dims[0] {
        for head in 0..heads {
            f(&Head {
                x,
                batch,
                head,
                kv_head: head / (heads / kv_heads),
                d: x[0].dims[2] / heads,
                dv: x[2].dims[2] / kv_heads,
                scale: attrs.f64("scale").unwrap(),
            });
        }
    }
}

pub(super) fn forward(attrs: &Attrs, x: &[Tensor]) -> Vec<Tensor> {
    let heads = attrs.usize("heads").unwrap();
    let dv = x[2].dims[2] / attrs.usize("kv_heads").unwrap();
    let (batch, tq) = (x[0].dims[0], x[0].dims[1]);
    let mut o = Tensor::full(&[batch, tq, heads * dv], 0.0);
    let mut lse = Tensor::full(&[batch, heads, tq], 0.0);
    each_head(attrs, [&x[0], &x[1], &x[2], &x[3], &x[4], &x[5], &x[6]], |h| {
        for i in 0..tq {
            let scores = h.scores(i);
            let sum: f64 = scores.iter().map(|s| s.1.exp()).sum();
            if scores.is_empty() {
                continue;
            }
            lse.data[(h.batch * heads + h.head) * tq + i] = sum.ln();
            for c in 0..dv {
                o.data[h.o(heads, i, c)] =
                    scores.iter().map(|(j, s)| s.exp() / sum * x[2].data[h.v(*j, c)]).sum();
            }
        }
    });
    vec![o, lse]
}

pub(super) fn backward(attrs: &Attrs, t: &[Tensor]) -> Vec<Tensor> {
    let heads = attrs.usize("heads").unwrap();
    let (dout, o, lse) = (&t[0].data, &t[4].data, &t[5].data);
    let zeros = |t: &Tensor| Tensor::full(&t.dims, 0.0);
    let (mut dq, mut dk, mut dv) = (zeros(&t[1]), zeros(&t[2]), zeros(&t[3]));
    let tq = t[1].dims[1];
    each_head(attrs, [&t[1], &t[2], &t[3], &t[6], &t[7], &t[8], &t[9]], |h| {
        for i in 0..tq {
            let delta: f64 = (0..h.dv).map(|c| dout[h.o(heads, i, c)] * o[h.o(heads, i, c)]).sum();
            for (j, score) in h.scores(i) {
                let p = (score - lse[(h.batch * heads + h.head) * tq + i]).exp();
                let mut dp = 0.0;
                for c in 0..h.dv {
                    dv.data[h.v(j, c)] += p * dout[h.o(heads, i, c)];
                    dp += dout[h.o(heads, i, c)] * t[3].data[h.v(j, c)];
                }
                let ds = p * (dp - delta) * h.scale;
                for c in 0..h.d {
                    dq.data[h.q(i, c)] += ds * t[2].data[h.k(j, c)];
                    dk.data[h.k(j, c)] += ds * t[1].data[h.q(i, c)];
                }
            }
        }
    });
    vec![dq, dk, dv]
}
