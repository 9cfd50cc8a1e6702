//! Initial values from a counter: the same for any order or number of threads.

use kfc_graph::interp::philox4x32;
use std::f64::consts::PI;

/// 64-bit FNV-1a of a name: which stream of random numbers a tensor draws from.
pub fn stream_of(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// Uniform doubles in (0, 1): element `i` depends only on seed, stream and `i`.
pub fn uniform(seed: u64, stream: u64, i: u64) -> f64 {
    let block = i / 2;
    let counter = [block as u32, (block >> 32) as u32, stream as u32, (stream >> 32) as u32];
    let words = philox4x32(counter, [seed as u32, (seed >> 32) as u32]);
    let (hi, lo) = if i.is_multiple_of(2) { (words[0], words[1]) } else { (words[2], words[3]) };
    let bits = (u64::from(hi) << 21) ^ u64::from(lo >> 11);
    ((bits & ((1 << 53) - 1)) as f64 + 0.5) / (1u64 << 53) as f64
}

/// Standard normal doubles (Box and Muller 1958).
pub fn normal(seed: u64, stream: u64, i: u64) -> f64 {
    let (u, v) = (uniform(seed, stream, 2 * i), uniform(seed, stream, 2 * i + 1));
    (-2.0 * u.ln()).sqrt() * (2.0 * PI * v).cos()
}

/// `n` normal values with standard deviation `std`, from the stream of `name`.
pub fn normal_tensor(seed: u64, name: &str, n: usize, std: f64) -> Vec<f32> {
    let stream = stream_of(name);
    (0..n as u64).map(|i| (normal(seed, stream, i) * std) as f32).collect()
}

/// `n` values uniform in `±bound`, from the stream of `name`.
pub fn uniform_tensor(seed: u64, name: &str, n: usize, bound: f64) -> Vec<f32> {
    let stream = stream_of(name);
    (0..n as u64).map(|i| ((uniform(seed, stream, i) * 2.0 - 1.0) * bound) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_distributions() {
        let n = 20_000;
        let x = normal_tensor(7, "w", n, 2.0);
        let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
        let var = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.06 && (var - 4.0).abs() < 0.15, "mean {mean}, variance {var}");
        let u = uniform_tensor(7, "u", n, 3.0);
        assert!(u.iter().all(|v| v.abs() < 3.0));
        assert_ne!(normal_tensor(7, "w", 8, 1.0), normal_tensor(8, "w", 8, 1.0));
        assert_ne!(normal_tensor(7, "w", 8, 1.0), normal_tensor(7, "v", 8, 1.0));
    }
}
