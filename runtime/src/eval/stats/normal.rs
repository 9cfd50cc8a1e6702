//! The normal distribution.

use std::f64::consts::PI;

/// Beyond this many standard deviations a double cannot tell the distribution from 0 or 1.
const FAR: f64 = 8.2;

/// Φ(x), by the series of Marsaglia (2004); the absolute error is below 1e-14.
pub(super) fn cdf(x: f64) -> f64 {
    if x.abs() > FAR {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    let (mut sum, mut term, mut i) = (x, x, 1.0);
    loop {
        i += 2.0;
        term *= x * x / i;
        let next = sum + term;
        if next == sum {
            return 0.5 + sum * (-0.5 * x * x).exp() / (2.0 * PI).sqrt();
        }
        sum = next;
    }
}

/// Φ⁻¹(p) by bisection; infinite at 0 and 1.
pub(super) fn quantile(p: f64) -> f64 {
    if p <= 0.0 || p >= 1.0 {
        return if p <= 0.0 { f64::NEG_INFINITY } else { f64::INFINITY };
    }
    let (mut low, mut high) = (-FAR, FAR);
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        if cdf(middle) < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_values() {
        // scipy.stats.norm.cdf and ppf.
        for (x, p) in [
            (0.0, 0.5),
            (1.0, 0.841_344_746_068_543),
            (1.959_963_984_540_054, 0.975),
            (-1.644_853_626_951_473, 0.05),
            (-3.0, 0.001_349_898_031_630_094_6),
        ] {
            assert!((cdf(x) - p).abs() < 1e-14, "{x}");
            assert!((quantile(p) - x).abs() < 1e-10, "{p}");
        }
        assert_eq!((cdf(9.0), cdf(-9.0), quantile(0.0)), (1.0, 0.0, f64::NEG_INFINITY));
    }
}
