//! Penalties on parameters, accumulation, the optimiser and the cache.

use super::{map, matrix_of};
use kfc_graph::Attrs;
use kfc_graph::interp::Tensor;

pub(super) fn ewc_penalty(_: &Attrs, x: &[Tensor]) -> Vec<Tensor> {
    let sum: f64 =
        (0..x[0].data.len()).map(|i| x[1].data[i] * (x[0].data[i] - x[2].data[i]).powi(2) / 2.0).sum();
    vec![Tensor::scalar(sum)]
}

pub(super) fn ewc_penalty_bwd(_: &Attrs, t: &[Tensor]) -> Vec<Tensor> {
    vec![map(&t[1], |i| t[0].data[0] * t[2].data[i] * (t[1].data[i] - t[3].data[i]))]
}

fn delta(attrs: &Attrs, a: &Tensor, b: &Tensor, o: usize, i: usize) -> f64 {
    let (rank, inner) = (a.dims[0], a.dims[1]);
    let dot: f64 = (0..rank).map(|r| b.data[o * rank + r] * a.data[r * inner + i]).sum();
    attrs.f64("scale").unwrap() * dot
}

pub(super) fn ewc_delta(attrs: &Attrs, x: &[Tensor]) -> Vec<Tensor> {
    let inner = x[0].dims[1];
    let sum: f64 = (0..x[2].data.len())
        .map(|e| x[2].data[e] * delta(attrs, &x[0], &x[1], e / inner, e % inner).powi(2) / 2.0)
        .sum();
    vec![Tensor::scalar(sum)]
}

pub(super) fn ewc_delta_bwd(attrs: &Attrs, t: &[Tensor]) -> Vec<Tensor> {
    let (a, b, fisher) = (&t[1], &t[2], &t[3]);
    let (rank, inner, out) = (a.dims[0], a.dims[1], b.dims[0]);
    let scale = attrs.f64("scale").unwrap() * t[0].data[0];
    let slope = |o: usize, i: usize| scale * fisher.data[o * inner + i] * delta(attrs, a, b, o, i);
    let da = matrix_of(rank, inner, |r, i| (0..out).map(|o| slope(o, i) * b.data[o * rank + r]).sum());
    let db = matrix_of(out, rank, |o, r| (0..inner).map(|i| slope(o, i) * a.data[r * inner + i]).sum());
    vec![da, db, ewc_delta(attrs, &t[1..]).remove(0)]
}

pub(super) fn accumulate(_: &Attrs, x: &[Tensor]) -> Vec<Tensor> {
    vec![map(&x[0], |i| x[0].data[i] + x[1].data[i])]
}

pub(super) fn accumulate_square(_: &Attrs, x: &[Tensor]) -> Vec<Tensor> {
    vec![map(&x[0], |i| x[0].data[i] + x[2].data[0] * x[1].data[i].powi(2))]
}

pub(super) fn sum_squares(_: &Attrs, x: &[Tensor]) -> Vec<Tensor> {
    vec![Tensor::scalar(x.iter().flat_map(|t| &t.data).map(|v| v * v).sum())]
}

pub(super) fn penalised_norm(_: &Attrs, x: &[Tensor]) -> Vec<Tensor> {
    let (mut norm, mut penalty) = (0.0, 0.0);
    for p in x[1..].chunks(4) {
        for i in 0..p[0].data.len() {
            let (fisher, drift) = (p[2].data[i], p[1].data[i] - p[3].data[i]);
            norm += (p[0].data[i] + x[0].data[0] * fisher * drift).powi(2);
            penalty += fisher * drift.powi(2) / 2.0;
        }
    }
    vec![Tensor::scalar(norm), Tensor::scalar(penalty)]
}

/// torch.optim.AdamW, one element at a time.
pub(super) fn adamw(attrs: &Attrs, t: &[Tensor]) -> Vec<Tensor> {
    let (attr, flag) = (|name| attrs.f64(name).unwrap(), |name| attrs.bool(name).unwrap());
    let n = attrs.usize("params").unwrap();
    let states = if attrs.str("cast").unwrap() == "none" { 3 } else { 4 };
    let others = 1 + usize::from(flag("lr_scale")) + 2 * usize::from(flag("ewc"));
    let shared = &t[n * (states + others)..];
    let mut results = t[..n * states].to_vec();
    if shared[3].data[0] == 0.0 {
        return results;
    }
    for (new, others) in results.chunks_mut(states).zip(t[n * states..].chunks(others)) {
        for i in 0..new[0].data.len() {
            let (mut p, m, v) = (new[0].data[i], new[1].data[i], new[2].data[i]);
            let mut rest = others[1..].iter();
            let lr = shared[0].data[0] * if flag("lr_scale") { rest.next().unwrap().data[i] } else { 1.0 };
            let mut g = others[0].data[i];
            if flag("ewc") {
                let (fisher, anchor) = (rest.next().unwrap(), rest.next().unwrap());
                g += shared[4].data[0] * fisher.data[i] * (p - anchor.data[i]);
            }
            g *= shared[1].data[0];
            p -= lr * attr("weight_decay") * p;
            let m = m + (1.0 - attr("beta1")) * (g - m);
            let v = attr("beta2") * v + (1.0 - attr("beta2")) * g * g;
            p -= lr * (m / shared[2].data[0]) / ((v / shared[2].data[1]).sqrt() + attr("eps"));
            for (state, value) in new.iter_mut().zip([p, m, v, p]) {
                state.data[i] = value;
            }
        }
    }
    results
}

pub(super) fn kv_append(_: &Attrs, x: &[Tensor]) -> Vec<Tensor> {
    let (rows, width, t) = (x[0].dims[1], x[0].dims[2], x[1].dims[1]);
    let mut cache = x[0].clone();
    for b in 0..x[0].dims[0] {
        for i in 0..t {
            let row = x[2].data[b] as usize + i;
            if row < rows {
                let new = &x[1].data[(b * t + i) * width..][..width];
                cache.data[(b * rows + row) * width..][..width].copy_from_slice(new);
            }
        }
    }
    vec![cache]
}

pub(super) fn select_rows(_: &Attrs, x: &[Tensor]) -> Vec<Tensor> {
    let (batch, t, h) = (x[0].dims[0], x[0].dims[1], x[0].dims[2]);
    let row = |b: usize| x[0].data[(b * t + x[1].data[b] as usize) * h..][..h].to_vec();
    vec![Tensor::new([batch, 1, h], (0..batch).flat_map(row).collect::<Vec<_>>())]
}
