//! Choosing a token from logits: the likeliest, or at random after temperature, top-k and top-p (in this order, as in
//! transformers). Random numbers depend on the seed, the request and the token's index alone.

use crate::random;
use std::cmp::Ordering;

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; 0 always takes the likeliest token.
    pub temperature: f64,
    /// Only this many likeliest tokens.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together reach this probability, at least one; in (0, 1].
    pub top_p: f64,
    /// Seed of the random choice.
    pub seed: u64,
}

impl Sampling {
    /// Always the likeliest token.
    pub const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: None, top_p: 1.0, seed: 0 };
}

/// Chooses tokens; its buffer is reused.
pub struct Sampler {
    sampling: Sampling,
    stream: u64,
    candidates: Vec<(f32, i32)>,
    weights: Vec<f64>,
}

impl Sampler {
    /// A sampler.
    pub fn new(sampling: Sampling) -> Sampler {
        let stream = random::stream_of("generate");
        Sampler { sampling, stream, candidates: Vec::new(), weights: Vec::new() }
    }

    /// The token at `index` of the answer to `request`; `None` if the logits are not finite.
    pub fn choose(&mut self, logits: &[f32], request: u64, index: u64) -> Option<i32> {
        if self.sampling.temperature <= 0.0 || self.sampling.top_k == Some(1) {
            return argmax(logits);
        }
        let best = argmax(logits)?;
        let top = f64::from(logits[best as usize]);
        self.candidates.clear();
        self.candidates.extend(logits.iter().copied().zip(0..));
        self.keep_top_k();
        let temperature = self.sampling.temperature;
        if self.sampling.top_p < 1.0 {
            self.candidates.sort_unstable_by(descending);
        }
        self.weights.clear();
        self.weights.extend(self.candidates.iter().map(|(z, _)| ((f64::from(*z) - top) / temperature).exp()));
        self.keep_top_p();
        let total: f64 = self.weights.iter().sum();
        let stream = self.stream ^ request.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut left = random::uniform(self.sampling.seed, stream, index) * total;
        for (w, (_, id)) in self.weights.iter().zip(&self.candidates) {
            left -= w;
            if left < 0.0 {
                return Some(*id);
            }
        }
        // Rounding can leave a crumb behind the last.
        Some(best)
    }

    fn keep_top_k(&mut self) {
        if let Some(k) = self.sampling.top_k.filter(|k| *k < self.candidates.len()) {
            self.candidates.select_nth_unstable_by(k, descending);
            self.candidates.truncate(k);
            self.candidates.sort_unstable_by(descending);
        }
    }

    /// Drops what follows the first candidates that reach `top_p`; the candidates are sorted if it is below 1.
    fn keep_top_p(&mut self) {
        if self.sampling.top_p >= 1.0 {
            return;
        }
        let enough = self.sampling.top_p * self.weights.iter().sum::<f64>();
        let mut sum = 0.0;
        let kept = self.weights.iter().take_while(|w| {
            let before = sum;
            sum += **w;
            before < enough
        });
        let kept = kept.count().max(1);
        self.weights.truncate(kept);
        self.candidates.truncate(kept);
    }
}

/// Largest logit first, the smaller id among equals.
fn descending(a: &(f32, i32), b: &(f32, i32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The index of the largest logit (the first of equals); `None` if it is not finite or one is NaN.
pub fn argmax(logits: &[f32]) -> Option<i32> {
    let mut best: Option<(f32, i32)> = None;
    for (&z, id) in logits.iter().zip(0..) {
        if z.is_nan() {
            return None;
        }
        if best.is_none_or(|(top, _)| z > top) {
            best = Some((z, id));
        }
    }
    best.filter(|(z, _)| z.is_finite()).map(|(_, id)| id)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn draws(sampling: Sampling, logits: &[f32], n: u64) -> Vec<i32> {
        let mut sampler = Sampler::new(sampling);
        (0..n).map(|i| sampler.choose(logits, 0, i).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(draws(Sampling::GREEDY, &[0.0, 2.0, 2.0, -1.0], 2), [1, 1]);
        assert_eq!(argmax(&[0.0, f32::NAN]), None);
        assert_eq!(argmax(&[f32::NEG_INFINITY]), None);
        assert_eq!(argmax(&[]), None);
    }

    #[test]
    fn frequencies_are_those_of_the_softmax() {
        let logits = [0.0f32, 1.0, -1.0, 0.5];
        let temperature = 0.7;
        let n = 20_000;
        let sampling = Sampling { temperature, seed: 3, ..Sampling::GREEDY };
        let drawn = draws(sampling, &logits, n);
        let weights = logits.map(|z| (f64::from(z) / temperature).exp());
        let total: f64 = weights.iter().sum();
        for (id, w) in weights.iter().enumerate() {
            let share = drawn.iter().filter(|d| **d == id as i32).count() as f64 / n as f64;
            assert!((share - w / total).abs() < 0.012, "{id}: {share} for {}", w / total);
        }
        assert_eq!(drawn, draws(sampling, &logits, n));
        assert_ne!(drawn, draws(Sampling { seed: 4, ..sampling }, &logits, n));
    }

    #[test]
    fn top_k_and_top_p_leave_the_rest_out() {
        let logits = [0.0f32, 3.0, 2.0, 1.0];
        let hot = Sampling { temperature: 5.0, seed: 1, ..Sampling::GREEDY };
        let seen = |sampling| {
            let mut ids = draws(sampling, &logits, 500);
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        assert_eq!(seen(hot), [0, 1, 2, 3]);
        assert_eq!(seen(Sampling { top_k: Some(2), ..hot }), [1, 2]);
        assert_eq!(seen(Sampling { top_k: Some(1), ..hot }), [1]);
        // Shares at temperature 1: 0.64, 0.24, 0.09, 0.03.
        let warm = Sampling { temperature: 1.0, ..hot };
        assert_eq!(seen(Sampling { top_p: 0.6, ..warm }), [1]);
        assert_eq!(seen(Sampling { top_p: 0.7, ..warm }), [1, 2]);
        assert_eq!(seen(Sampling { top_p: 0.7, top_k: Some(3), ..warm }), [1, 2]);
    }
}
