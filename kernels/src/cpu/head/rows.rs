//! Passes over one token's logits.

#[cfg(target_arch = "x86_64")]
use super::rows_avx512;
use crate::cpu::simd::{self, simd};
use crate::cpu::{math, reduce};
use kfc_ops::head::Divergence;

/// Cross-entropy of one row.
#[derive(Clone, Copy)]
pub(super) struct CrossEntropy {
    /// Log-sum-exp.
    pub(super) lse: f64,
    /// The largest logit.
    pub(super) max: f32,
    /// `lse - z[label]`, 0 without a label.
    pub(super) loss: f64,
}

/// Cross-entropy of the logits `z`.
pub(super) fn cross_entropy(z: &[f32], label: Option<usize>) -> CrossEntropy {
    let max = reduce::max(z);
    let lse = f64::from(max) + sum_exp(1.0, max, z).ln();
    CrossEntropy { lse, max, loss: label.map_or(0.0, |l| lse - f64::from(z[l])) }
}

impl CrossEntropy {
    /// Index of the largest logit, the first of equals.
    pub(super) fn best(&self, z: &[f32]) -> usize {
        z.iter().position(|v| *v == self.max).unwrap_or(0)
    }

    /// Whether logit `i` is the largest, or the first of the largest.
    pub(super) fn is_best(&self, z: &[f32], i: usize) -> bool {
        is_best(self.max, z, i)
    }
}

/// Whether logit `i` is `max`, and the first of those.
fn is_best(max: f32, z: &[f32], i: usize) -> bool {
    z[i] == max && z[..i].iter().all(|v| *v != max)
}

/// Everything that forward KL needs of a row, from one pass after the maxima. `zt` becomes `e^((zt - max)·scale)`; so does `z`
/// where the temperature is a small power of two: the exponentials without a temperature are squares of these then.
///
/// `KL = Σ q (log q - log p)` is summed as `Σ q ((zt - max_t) - (z - max))·scale` and the logarithms of the two sums, in `f64`.
pub(super) struct Forward {
    pub(super) ce: CrossEntropy,
    /// Whether the label's logit is the largest.
    pub(super) is_best: bool,
    pub(super) loss: f64,
    scale: f32,
    squares: Option<Squares>,
    /// Log-sum-exp of the student's scaled logits.
    lse_s: f32,
    /// 1 over the sums that `e^z`, `e^(z·scale)` and `zt` are to be divided by.
    shares: [f32; 3],
}

/// How `e^(z/T)` becomes `e^z`.
#[derive(Clone, Copy)]
enum Squares {
    None,
    One,
    Two,
}

impl Squares {
    /// For a temperature of 1, 2 or 4.
    fn of(temperature: f32) -> Option<Squares> {
        match temperature {
            1.0 => Some(Squares::None),
            2.0 => Some(Squares::One),
            4.0 => Some(Squares::Two),
            _ => None,
        }
    }
}

/// A power that loops are compiled for: that of so many squares, one of the other.
pub(super) trait Power: Copy {
    const SQUARES: usize;

    /// Of `x`.
    #[inline(always)]
    fn of(self, x: f32) -> f32 {
        (0..Self::SQUARES).fold(x, |x, _| x * x)
    }
}

#[derive(Clone, Copy)]
pub(super) struct Squared<const SQUARES: usize>;

impl<const SQUARES: usize> Power for Squared<SQUARES> {
    const SQUARES: usize = SQUARES;
}

/// Calls a body with the power as a type.
macro_rules! with_power {
    ($squares:expr, |$power:ident| $body:expr) => {
        match $squares {
            Squares::None => {
                let $power = Squared::<0>;
                $body
            }
            Squares::One => {
                let $power = Squared::<1>;
                $body
            }
            Squares::Two => {
                let $power = Squared::<2>;
                $body
            }
        }
    };
}

/// The sums of [`Forward`], and exponentials in place of logits.
fn power_sums(
    power: impl Power,
    scale: f32,
    max: [f32; 2],
    z: &mut [f32],
    zt: &mut [f32],
    next: [usize; 2],
) -> [f64; 4] {
    #[cfg(target_arch = "x86_64")]
    if rows_avx512::has_sums() {
        // SAFETY: the level is there, and the teacher has as many logits.
        return unsafe { rows_avx512::sums(power, scale, max, z, zt, next) };
    }
    forward_powers(power, scale, max, z, zt, next)
}

impl Forward {
    /// Of logits of which the teacher has at least as many as the student. Those of the next token, `next` elements further, are
    /// asked for.
    pub(super) fn new(
        z: &mut [f32],
        zt: &mut [f32],
        next: [usize; 2],
        label: Option<usize>,
        temperature: f32,
    ) -> Forward {
        let scale = 1.0 / temperature;
        let zt = &mut zt[..z.len()];
        let (max, max_t) = (reduce::max(z), reduce::max(zt));
        let at_label = label.map(|l| f64::from(z[l]));
        let is_best = label.is_some_and(|l| is_best(max, z, l));
        let squares = Squares::of(temperature);
        let [all, student, teacher, gap] = match squares {
            None => forward_sums(scale, max, max_t, z, zt, next),
            Some(squares) => {
                with_power!(squares, |power| power_sums(power, scale, [max, max_t], z, zt, next))
            }
        };
        let lse = f64::from(max) + all.ln();
        let lse_s = f64::from(max) * f64::from(scale) + student.ln();
        Forward {
            ce: CrossEntropy { lse, max, loss: at_label.map_or(0.0, |z| lse - z) },
            is_best,
            loss: gap / teacher - teacher.ln() + student.ln(),
            scale,
            squares,
            lse_s: lse_s as f32,
            shares: [all, student, teacher].map(|sum| (1.0 / sum) as f32),
        }
    }

    /// `z = a · softmax(z) + b · (p - q)`.
    pub(super) fn gradient(&self, a: f32, b: f32, z: &mut [f32], zt: &[f32]) {
        let zt = &zt[..z.len()];
        let factors = self.factors(a, b);
        match self.squares {
            None => {
                let share = self.shares[2];
                forward_gradient([a, self.ce.lse as f32, b, self.scale, self.lse_s, share], z, zt);
            }
            Some(squares) => with_power!(squares, |power| power_gradient(power, factors, z, zt)),
        }
    }

    /// [`Forward::gradient`] less `a` at the label, rounded to `bf16` in the first half of `z`: whether the level does that in one
    /// pass.
    pub(super) fn rounded_gradient(
        &self,
        a: f32,
        b: f32,
        label: Option<usize>,
        z: &mut [f32],
        zt: &[f32],
    ) -> bool {
        #[cfg(target_arch = "x86_64")]
        if let (Some(squares), true) = (self.squares, rows_avx512::has_gradient()) {
            let (factors, label) = (self.factors(a, b), label.map(|l| (l, a)));
            // SAFETY: the level is there, and the teacher has as many exponentials.
            with_power!(squares, |power| unsafe {
                rows_avx512::rounded_gradient(power, factors, label, z, zt);
            });
            return true;
        }
        let _ = (a, b, label, z, zt);
        false
    }

    /// What [`power_gradient`] multiplies by.
    fn factors(&self, a: f32, b: f32) -> [f32; 3] {
        let [all, student, teacher] = self.shares;
        [a * all, b * student, b * teacher]
    }
}

/// Log-sum-exp of `scale · z`.
pub(super) fn log_sum_exp(scale: f32, z: &[f32]) -> f32 {
    let shift = scale * reduce::max(z);
    (f64::from(shift) + sum_exp(scale, shift, z).ln()) as f32
}

/// Log-probabilities of student and teacher at a temperature: `z·scale - lse`.
#[derive(Clone, Copy)]
pub(super) struct Softened {
    scale: f32,
    lse_s: f32,
    lse_t: f32,
}

impl Softened {
    /// Of logits over the vocabulary that both have.
    pub(super) fn new(z: &[f32], zt: &[f32], temperature: f32) -> Softened {
        let scale = 1.0 / temperature;
        Softened { scale, lse_s: log_sum_exp(scale, z), lse_t: log_sum_exp(scale, zt) }
    }

    /// Returns the divergence. With a gradient, `z` becomes `a · softmax(z) + b · d divergence / d (z / T)`.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn run(
        self,
        kind: Divergence,
        a: f32,
        b: f32,
        lse: f32,
        z: &mut [f32],
        zt: &[f32],
        with_gradient: bool,
    ) -> f64 {
        let common = z.len().min(zt.len());
        let (head, tail) = z.split_at_mut(common);
        let zt = &zt[..common];
        // `centre` is Σ p g of the gradient through the softmax.
        let (loss, centre) = match kind {
            Divergence::ForwardKl => (forward_kl(self, head, zt), 0.0),
            Divergence::ReverseKl => {
                let d = reverse_kl(self, head, zt);
                (d, d as f32)
            }
            Divergence::Jsd => {
                let from_p = jsd_from_p(self, head, zt);
                (jsd_from_q(self, head, zt) + from_p, from_p as f32)
            }
        };
        if with_gradient {
            match kind {
                Divergence::ForwardKl => forward_kl_gradient(self, a, b, lse, head, zt),
                Divergence::ReverseKl => reverse_kl_gradient(self, a, b, lse, centre, head, zt),
                Divergence::Jsd => jsd_gradient(self, a, b, lse, centre, head, zt),
            }
            scaled_softmax(a, lse, tail);
        }
        loss
    }

    /// Log-probabilities of a pair of logits.
    #[inline(always)]
    fn logs(self, z: f32, zt: f32) -> (f32, f32) {
        (z * self.scale - self.lse_s, zt * self.scale - self.lse_t)
    }
}

/// `log((e^lp + e^lq) / 2)`; where both underflow, their weight is 0 and any finite value does.
#[inline(always)]
fn log_mean(lp: f32, lq: f32) -> f32 {
    let m = 0.5 * (math::exp(lp) + math::exp(lq));
    math::log(if m > f32::MIN_POSITIVE { m } else { f32::MIN_POSITIVE })
}

/// `Σ f(x, y)`: 16 interleaved `f32` sums over runs of 4,096 elements, runs in `f64`.
#[inline(always)]
fn sum_pairs(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f64 {
    const LANES: usize = 16;
    const RUN: usize = 4096;
    let mut total = 0.0;
    for (x, y) in x.chunks(RUN).zip(y.chunks(RUN)) {
        let mut acc = [0.0f32; LANES];
        let (px, py) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
        let (rx, ry) = (px.remainder(), py.remainder());
        for (x, y) in px.zip(py) {
            for l in 0..LANES {
                acc[l] += f(x[l], y[l]);
            }
        }
        let rest: f64 = rx.iter().zip(ry).map(|(x, y)| f64::from(f(*x, *y))).sum();
        total += acc.iter().map(|a| f64::from(*a)).sum::<f64>() + rest;
    }
    total
}

/// Sums of four terms, as [`sum_pairs`], which may change the elements. Elements `next` further are asked for.
#[inline(always)]
fn sum_changed(
    x: &mut [f32],
    y: &mut [f32],
    next: [usize; 2],
    f: impl Fn(&mut f32, &mut f32) -> [f32; 4],
) -> [f64; 4] {
    const LANES: usize = 16;
    const RUN: usize = 4096;
    let mut totals = [0.0f64; 4];
    for (x, y) in x.chunks_mut(RUN).zip(y.chunks_mut(RUN)) {
        let mut acc = [[0.0f32; LANES]; 4];
        let (mut px, mut py) = (x.chunks_exact_mut(LANES), y.chunks_exact_mut(LANES));
        for (x, y) in (&mut px).zip(&mut py) {
            simd::prefetch(x.as_ptr().wrapping_add(next[0]));
            simd::prefetch(y.as_ptr().wrapping_add(next[1]));
            for l in 0..LANES {
                let t = f(&mut x[l], &mut y[l]);
                (0..4).for_each(|i| acc[i][l] += t[i]);
            }
        }
        for (x, y) in px.into_remainder().iter_mut().zip(py.into_remainder()) {
            let t = f(x, y);
            (0..4).for_each(|i| totals[i] += f64::from(t[i]));
        }
        for (total, acc) in totals.iter_mut().zip(&acc) {
            *total += acc.iter().map(|a| f64::from(*a)).sum::<f64>();
        }
    }
    totals
}

simd! {
    /// `Σ e^(scale·z - shift)`
    fn sum_exp(scale: f32, shift: f32, z: &[f32]) -> f64 {
        sum_pairs(z, z, |z, _| math::exp(z * scale - shift))
    }

    /// `z = a · e^(z - lse)`
    pub(super) fn scaled_softmax(a: f32, lse: f32, z: &mut [f32]) {
        for z in z {
            *z = a * math::exp(*z - lse);
        }
    }

    /// `z = a · e^(z - lse) + b · e^(z·scale - lse_s)`
    pub(super) fn two_softmaxes(a: f32, lse: f32, b: f32, scale: f32, lse_s: f32, z: &mut [f32]) {
        for z in z {
            *z = a * math::exp(*z - lse) + b * math::exp(*z * scale - lse_s);
        }
    }

    fn forward_sums(
        scale: f32, max: f32, max_t: f32, z: &mut [f32], zt: &mut [f32], next: [usize; 2]
    ) -> [f64; 4] {
        sum_changed(z, zt, next, |z, zt| {
            let (d, dt) = (*z - max, *zt - max_t);
            *zt = math::exp(dt * scale);
            [math::exp(d), math::exp(d * scale), *zt, *zt * ((dt - d) * scale)]
        })
    }

    /// The same sums; `z` becomes `e^((z - max)·scale)`, a power of which is `e^(z - max)`.
    fn forward_powers<P: Power>(
        power: P, scale: f32, max: [f32; 2], z: &mut [f32], zt: &mut [f32], next: [usize; 2]
    ) -> [f64; 4] {
        let [max, max_t] = max;
        sum_changed(z, zt, next, |z, zt| {
            let (d, dt) = ((*z - max) * scale, (*zt - max_t) * scale);
            *z = math::exp(d);
            *zt = math::exp(dt);
            [power.of(*z), *z, *zt, *zt * (dt - d)]
        })
    }

    fn power_gradient<P: Power>(power: P, factors: [f32; 3], z: &mut [f32], zt: &[f32]) {
        let [all, student, teacher] = factors;
        for (z, zt) in z.iter_mut().zip(zt) {
            *z = all * power.of(*z) + (student * *z - teacher * *zt);
        }
    }

    fn forward_gradient(factors: [f32; 6], z: &mut [f32], zt: &[f32]) {
        let [a, lse, b, scale, lse_s, share] = factors;
        for (z, zt) in z.iter_mut().zip(zt) {
            let (p, q) = (math::exp(*z * scale - lse_s), *zt * share);
            *z = a * math::exp(*z - lse) + b * (p - q);
        }
    }

    fn forward_kl(s: Softened, z: &[f32], zt: &[f32]) -> f64 {
        sum_pairs(z, zt, |z, zt| {
            let (lp, lq) = s.logs(z, zt);
            math::exp(lq) * (lq - lp)
        })
    }

    fn reverse_kl(s: Softened, z: &[f32], zt: &[f32]) -> f64 {
        sum_pairs(z, zt, |z, zt| {
            let (lp, lq) = s.logs(z, zt);
            math::exp(lp) * (lp - lq)
        })
    }

    fn jsd_from_p(s: Softened, z: &[f32], zt: &[f32]) -> f64 {
        sum_pairs(z, zt, |z, zt| {
            let (lp, lq) = s.logs(z, zt);
            0.5 * math::exp(lp) * (lp - log_mean(lp, lq))
        })
    }

    fn jsd_from_q(s: Softened, z: &[f32], zt: &[f32]) -> f64 {
        sum_pairs(z, zt, |z, zt| {
            let (lp, lq) = s.logs(z, zt);
            0.5 * math::exp(lq) * (lq - log_mean(lp, lq))
        })
    }

    fn forward_kl_gradient(s: Softened, a: f32, b: f32, lse: f32, z: &mut [f32], zt: &[f32]) {
        for (z, zt) in z.iter_mut().zip(zt) {
            let (lp, lq) = s.logs(*z, *zt);
            *z = a * math::exp(*z - lse) + b * (math::exp(lp) - math::exp(lq));
        }
    }

    fn reverse_kl_gradient(s: Softened, a: f32, b: f32, lse: f32, centre: f32, z: &mut [f32], zt: &[f32]) {
        for (z, zt) in z.iter_mut().zip(zt) {
            let (lp, lq) = s.logs(*z, *zt);
            *z = a * math::exp(*z - lse) + b * math::exp(lp) * (lp - lq - centre);
        }
    }

    fn jsd_gradient(s: Softened, a: f32, b: f32, lse: f32, centre: f32, z: &mut [f32], zt: &[f32]) {
        for (z, zt) in z.iter_mut().zip(zt) {
            let (lp, lq) = s.logs(*z, *zt);
            let g = 0.5 * (lp - log_mean(lp, lq)) - centre;
            *z = a * math::exp(*z - lse) + b * math::exp(lp) * g;
        }
    }
}
