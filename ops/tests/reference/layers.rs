//! Layers of a model.

use super::{map, matrix, matrix_of, rows_like};
use kfc_graph::Attrs;
use kfc_graph::interp::{Tensor, philox4x32};

pub(super) fn embedding(_: &Attrs, x: &[Tensor]) -> Vec<Tensor> {
    let h = x[0].dims[1];
    let data: Vec<f64> =
        x[1].data.iter().flat_map(|&id| x[0].data[id as usize * h..][..h].to_vec()).collect();
    vec![Tensor::new([x[1].dims[0], x[1].dims[1], h], data)]
}

pub(super) fn linear(_: &Attrs, x: &[Tensor]) -> Vec<Tensor> {
    let inner = x[1].dims[1];
    vec![rows_like(&x[0], x[1].dims[0], |m, o| {
        let dot: f64 = (0..inner).map(|i| x[0].data[m * inner + i] * x[1].data[o * inner + i]).sum();
        dot + x.get(2).map_or(0.0, |b| b.data[o])
    })]
}

/// The factor of each element of the adapter's input.
fn keep(attrs: &Attrs, n: usize, seed: Option<&Tensor>) -> Vec<f64> {
    let p = attrs.f64("dropout").unwrap();
    let Some(seed) = seed else { return vec![1.0; n] };
    let key = [seed.data[0] as i32 as u32, seed.data[1] as i32 as u32];
    let stream = attrs.usize("stream").unwrap() as u32;
    (0..n)
        .map(|i| {
            let word = philox4x32([(i / 8) as u32, 0, stream, 0], key)[i / 2 % 4];
            let u = f64::from((word >> (16 * (i % 2))) as u16) / 65_536.0;
            if u >= p { 1.0 / (1.0 - p) } else { 0.0 }
        })
        .collect()
}

pub(super) fn lora_linear(attrs: &Attrs, x: &[Tensor]) -> Vec<Tensor> {
    let has_bias = attrs.bool("bias").unwrap();
    let seed = x.get(if has_bias { 5 } else { 4 });
    let (out, inner, rank) = (x[1].dims[0], x[1].dims[1], x[2].dims[0]);
    let keep = keep(attrs, x[0].data.len(), seed);
    let s = rows_like(&x[0], rank, |m, r| {
        (0..inner).map(|i| x[0].data[m * inner + i] * keep[m * inner + i] * x[2].data[r * inner + i]).sum()
    });
    let scale = attrs.f64("scale").unwrap();
    let y = rows_like(&x[0], out, |m, o| {
        let mut y = if has_bias { x[4].data[o] } else { 0.0 };
        for i in 0..inner {
            y += x[0].data[m * inner + i] * x[1].data[o * inner + i];
        }
        for r in 0..rank {
            y += scale * s.data[m * rank + r] * x[3].data[o * rank + r];
        }
        y
    });
    vec![y, s]
}

pub(super) fn lora_linear_bwd(attrs: &Attrs, t: &[Tensor]) -> Vec<Tensor> {
    let (dy, x, w, a, b, s) = (&t[0], &t[1], &t[2], &t[3], &t[4], &t[5]);
    let (out, inner, rank) = (w.dims[0], w.dims[1], a.dims[0]);
    let rows = matrix(x).0;
    let scale = attrs.f64("scale").unwrap();
    let keep = keep(attrs, x.data.len(), t.get(6));
    let ds = matrix_of(rows, rank, |m, r| {
        (0..out).map(|o| scale * dy.data[m * out + o] * b.data[o * rank + r]).sum()
    });
    let da = matrix_of(rank, inner, |r, i| {
        (0..rows).map(|m| ds.data[m * rank + r] * x.data[m * inner + i] * keep[m * inner + i]).sum()
    });
    let db = matrix_of(out, rank, |o, r| {
        (0..rows).map(|m| scale * dy.data[m * out + o] * s.data[m * rank + r]).sum()
    });
    if !attrs.bool("need_dx").unwrap() {
        return vec![da, db];
    }
    let dx = rows_like(x, inner, |m, i| {
        let base: f64 = (0..out).map(|o| dy.data[m * out + o] * w.data[o * inner + i]).sum();
        let adapter: f64 = (0..rank).map(|r| ds.data[m * rank + r] * a.data[r * inner + i]).sum();
        base + adapter * keep[m * inner + i]
    });
    vec![dx, da, db]
}

pub(super) fn layer_norm(attrs: &Attrs, x: &[Tensor]) -> Vec<Tensor> {
    let (_, h) = matrix(&x[0]);
    let y = rows_like(&x[0], h, |m, i| {
        let row = &x[0].data[m * h..][..h];
        let mean = row.iter().sum::<f64>() / h as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / h as f64;
        (row[i] - mean) * (variance + attrs.f64("eps").unwrap()).powf(-0.5) * x[1].data[i] + x[2].data[i]
    });
    vec![y]
}

pub(super) fn rms_norm(attrs: &Attrs, x: &[Tensor]) -> Vec<Tensor> {
    let (_, h) = matrix(&x[0]);
    let rstd = rows_like(&x[0], 1, |m, _| {
        let mean = x[0].data[m * h..][..h].iter().map(|v| v * v).sum::<f64>() / h as f64;
        (mean + attrs.f64("eps").unwrap()).powf(-0.5)
    });
    let y = rows_like(&x[0], h, |m, i| x[0].data[m * h + i] * rstd.data[m] * x[1].data[i]);
    vec![y, rstd]
}

pub(super) fn rms_norm_bwd(attrs: &Attrs, t: &[Tensor]) -> Vec<Tensor> {
    let (dy, x, w, rstd) = (&t[0].data, &t[1].data, &t[2].data, &t[3].data);
    let (rows, h) = matrix(&t[1]);
    // ∂y_j/∂x_i = w_j (rstd δ_ij − rstd³ x_i x_j / H)
    let dx = rows_like(&t[1], h, |m, i| {
        (0..h)
            .map(|j| {
                let direct = if i == j { rstd[m] } else { 0.0 };
                let through_mean = rstd[m].powi(3) * x[m * h + i] * x[m * h + j] / h as f64;
                dy[m * h + j] * w[j] * (direct - through_mean)
            })
            .sum()
    });
    let mut results = vec![dx];
    if attrs.bool("need_dw").unwrap() {
        let dw: Vec<f64> =
            (0..h).map(|i| (0..rows).map(|m| dy[m * h + i] * x[m * h + i] * rstd[m]).sum()).collect();
        results.push(Tensor::new([h], dw));
    }
    results
}

pub(super) fn rope(attrs: &Attrs, x: &[Tensor]) -> Vec<Tensor> {
    let d = attrs.usize("head_dim").unwrap();
    let half = d / 2;
    let sign = if attrs.bool("inverse").unwrap() { -1.0 } else { 1.0 };
    let (_, c) = matrix(&x[0]);
    vec![rows_like(&x[0], c, |m, j| {
        let (head, i) = (j / d * d, j % d);
        let pos = x[3].data[m] as usize;
        let (cos, sin) = (x[1].data[pos * half + i % half], sign * x[2].data[pos * half + i % half]);
        let (own, other) = (x[0].data[m * c + j], x[0].data[m * c + head + (i + half) % d]);
        if i < half { own * cos - other * sin } else { own * cos + other * sin }
    })]
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub(super) fn swiglu(_: &Attrs, x: &[Tensor]) -> Vec<Tensor> {
    vec![map(&x[0], |i| x[0].data[i] * sigmoid(x[0].data[i]) * x[1].data[i])]
}

pub(super) fn swiglu_bwd(_: &Attrs, t: &[Tensor]) -> Vec<Tensor> {
    let (dy, gate, up) = (&t[0].data, &t[1].data, &t[2].data);
    let slope = |g: f64| sigmoid(g) + g * sigmoid(g) * sigmoid(-g);
    vec![map(&t[0], |i| dy[i] * up[i] * slope(gate[i])), map(&t[0], |i| dy[i] * gate[i] * sigmoid(gate[i]))]
}

pub(super) fn feature_alignment(_: &Attrs, t: &[Tensor]) -> Vec<Tensor> {
    let (rows, hs) = matrix(&t[0]);
    let ht = t[1].dims[0];
    let mut total = 0.0;
    for m in 0..rows {
        for d in 0..ht {
            let projected: f64 = (0..hs).map(|i| t[1].data[d * hs + i] * t[0].data[m * hs + i]).sum();
            total += t[3].data[m] * (projected - t[2].data[m * ht + d]).powi(2);
        }
    }
    vec![Tensor::scalar(total)]
}
