//! The output layer, one position at a time, with probabilities and Jacobians spelt out.

use super::matrix;
use kfc_graph::Attrs;
use kfc_graph::interp::Tensor;

const FLOOR: f64 = 1e-9;

/// Operands from h on.
struct Operands<'a> {
    x: &'a [Tensor],
    kd: String,
    divergence: String,
    temperature: f64,
}

impl<'a> Operands<'a> {
    fn new(attrs: &Attrs, x: &'a [Tensor]) -> Self {
        let text = |name| attrs.str(name).unwrap().to_string();
        Operands {
            x,
            kd: text("kd"),
            divergence: text("divergence"),
            temperature: attrs.f64("temperature").unwrap(),
        }
    }

    fn row_weight_kd(&self, m: usize) -> f64 {
        self.x.last().unwrap().data[m]
    }

    fn logits(&self, m: usize) -> Vec<f64> {
        logits(&self.x[0], &self.x[1], m)
    }

    /// The student's and the teacher's probabilities of the outcomes, and the Jacobian of the student's with
    /// respect to its logits, an outcome a row.
    fn outcomes(&self, m: usize) -> (Vec<f64>, Vec<f64>, Vec<Vec<f64>>) {
        let z = self.logits(m);
        if self.kd == "logits" {
            let zt = logits(&self.x[4], &self.x[5], m);
            let common = z.len().min(zt.len());
            let p = softmax(&z[..common], self.temperature);
            let jacobian = (0..common).map(|i| softmax_row(&p, i, z.len(), self.temperature)).collect();
            return (p, softmax(&zt[..common], self.temperature), jacobian);
        }
        let k = *self.x[4].dims.last().unwrap();
        let all = softmax(&z, self.temperature);
        let (mut p, mut q, mut jacobian) = (Vec::new(), Vec::new(), Vec::new());
        for i in m * k..(m + 1) * k {
            let id = self.x[4].data[i];
            if id >= 0.0 && id < z.len() as f64 {
                p.push(all[id as usize]);
                q.push((self.x[5].data[i] / self.temperature - self.x[6].data[m]).exp());
                jacobian.push(softmax_row(&all, id as usize, z.len(), self.temperature));
            }
        }
        let rest = (0..z.len()).map(|j| -jacobian.iter().map(|row: &Vec<f64>| row[j]).sum::<f64>()).collect();
        p.push(1.0 - p.iter().sum::<f64>());
        q.push((1.0 - q.iter().sum::<f64>()).max(0.0));
        jacobian.push(rest);
        (p, q, jacobian)
    }

    fn divergence(&self, m: usize) -> f64 {
        let (p, q, _) = self.outcomes(m);
        let log = |v: f64| v.max(FLOOR).ln();
        let kl =
            |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * (log(*a) - log(*b))).sum() };
        match self.divergence.as_str() {
            "forward_kl" => kl(&q, &p),
            "reverse_kl" => kl(&p, &q),
            _ => {
                let mean: Vec<f64> = p.iter().zip(&q).map(|(p, q)| (p + q) / 2.0).collect();
                (kl(&q, &mean) + kl(&p, &mean)) / 2.0
            }
        }
    }

    /// Gradient of the divergence with respect to the logits of position m.
    fn divergence_grad(&self, m: usize) -> Vec<f64> {
        let (p, q, jacobian) = self.outcomes(m);
        // Slope of an outcome's term in p; below the floor a logarithm is constant.
        let live = |v: f64| if v > FLOOR { 1.0 } else { 0.0 };
        let log = |v: f64| v.max(FLOOR).ln();
        let slope = |p: f64, q: f64| match self.divergence.as_str() {
            "forward_kl" => -q / p * live(p),
            "reverse_kl" => log(p) - log(q) + live(p),
            _ => {
                let m = (p + q) / 2.0;
                0.5 * (log(p) - log(m) + live(p)) - 0.25 * (p + q) / m * live(m)
            }
        };
        (0..self.logits(m).len())
            .map(|j| p.iter().zip(&q).zip(&jacobian).map(|((p, q), row)| slope(*p, *q) * row[j]).sum())
            .collect()
    }
}

fn logits(h: &Tensor, w: &Tensor, m: usize) -> Vec<f64> {
    let (v, inner) = matrix(w);
    (0..v).map(|o| (0..inner).map(|i| h.data[m * inner + i] * w.data[o * inner + i]).sum()).collect()
}

fn softmax(z: &[f64], temperature: f64) -> Vec<f64> {
    let sum: f64 = z.iter().map(|z| (z / temperature).exp()).sum();
    z.iter().map(|z| (z / temperature).exp() / sum).collect()
}

/// ∂p_i/∂z_j for all j below `vocab`.
fn softmax_row(p: &[f64], i: usize, vocab: usize, temperature: f64) -> Vec<f64> {
    let delta = |j| if i == j { 1.0 } else { 0.0 };
    (0..vocab).map(|j| if j < p.len() { p[i] * (delta(j) - p[j]) / temperature } else { 0.0 }).collect()
}

fn argmax(z: &[f64]) -> usize {
    (0..z.len()).fold(0, |best, j| if z[j] > z[best] { j } else { best })
}

fn log_sum_exp(z: &[f64]) -> f64 {
    z.iter().map(|z| z.exp()).sum::<f64>().ln()
}

pub(super) fn forward(attrs: &Attrs, x: &[Tensor]) -> Vec<Tensor> {
    let o = Operands::new(attrs, x);
    let (mut ce, mut kd, mut correct) = (0.0, 0.0, 0.0);
    for m in 0..matrix(&x[0]).0 {
        let (z, label, w_ce) = (o.logits(m), x[2].data[m], x[3].data[m]);
        if label != -100.0 {
            ce += w_ce * (log_sum_exp(&z) - z[label as usize]);
        }
        if w_ce > 0.0 && argmax(&z) as f64 == label {
            correct += 1.0;
        }
        if o.kd != "none" {
            kd += o.row_weight_kd(m) * o.temperature.powi(2) * o.divergence(m);
        }
    }
    let scalars = if o.kd == "none" { vec![ce, correct] } else { vec![ce, kd, correct] };
    scalars.into_iter().map(Tensor::scalar).collect()
}

pub(super) fn backward(attrs: &Attrs, t: &[Tensor]) -> Vec<Tensor> {
    let scalars = if attrs.str("kd").unwrap() == "none" { 1 } else { 2 };
    let x = &t[scalars..];
    let o = Operands::new(attrs, x);
    let (v, inner) = matrix(&x[1]);
    let (mut dh, mut dw) = (Tensor::full(&x[0].dims, 0.0), Tensor::full(&[v, inner], 0.0));
    for m in 0..matrix(&x[0]).0 {
        let (z, label) = (o.logits(m), x[2].data[m]);
        let p = softmax(&z, 1.0);
        let kd = if scalars == 2 { o.divergence_grad(m) } else { vec![0.0; v] };
        for j in 0..v {
            let mut dz = 0.0;
            if label != -100.0 {
                dz += t[0].data[0] * x[3].data[m] * (p[j] - if label == j as f64 { 1.0 } else { 0.0 });
            }
            if scalars == 2 {
                dz += t[1].data[0] * o.row_weight_kd(m) * o.temperature.powi(2) * kd[j];
            }
            for i in 0..inner {
                dh.data[m * inner + i] += dz * x[1].data[j * inner + i];
                dw.data[j * inner + i] += dz * x[0].data[m * inner + i];
            }
        }
    }
    if attrs.bool("need_dw").unwrap() { vec![dh, dw] } else { vec![dh] }
}

pub(super) fn fused(attrs: &Attrs, t: &[Tensor]) -> Vec<Tensor> {
    let scalars = if attrs.str("kd").unwrap() == "none" { 1 } else { 2 };
    [forward(attrs, &t[scalars..]), backward(attrs, t)].concat()
}

pub(super) fn token_scores(_: &Attrs, x: &[Tensor]) -> Vec<Tensor> {
    let rows = matrix(&x[0]).0;
    let z: Vec<Vec<f64>> = (0..rows).map(|m| logits(&x[0], &x[1], m)).collect();
    let logp: Vec<f64> = (0..rows)
        .map(|m| {
            let label = x[2].data[m];
            if label == -100.0 { 0.0 } else { z[m][label as usize] - log_sum_exp(&z[m]) }
        })
        .collect();
    let greedy: Vec<f64> = z.iter().map(|z| argmax(z) as f64).collect();
    let dims = &x[2].dims;
    vec![Tensor::new(dims.clone(), logp), Tensor::new(dims.clone(), greedy)]
}
