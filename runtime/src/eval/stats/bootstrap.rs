//! The bias-corrected and accelerated bootstrap (BCa; Efron 1987), seeded.

use super::normal;
use rayon::prelude::*;

/// How intervals are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bootstrap {
    /// Resamples.
    pub resamples: usize,
    /// Probability that the interval is to hold, in 0..1.
    pub confidence: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Bootstrap { resamples: 10_000, confidence: 0.95, seed: 0 }
    }
}

/// Where the ends of an interval come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Quantiles of the resamples at levels corrected for bias and skewness.
    Bca,
    /// Plain quantiles, where the correction is not defined (all resamples on one side of the value).
    Percentile,
    /// Every resample gives the same value, as with one row, or with rows that are all right: the rows say nothing of how
    /// far the value may be off.
    Degenerate,
}

impl Method {
    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Method::Bca => "bca",
            Method::Percentile => "percentile",
            Method::Degenerate => "degenerate",
        }
    }
}

/// A confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// How it was made.
    pub method: Method,
    /// Resamples at or below zero.
    pub(super) at_most_zero: usize,
    /// Resamples at or above zero.
    pub(super) at_least_zero: usize,
}

/// The interval of `of(Σ rows)`. Resamples whose value is not a number (nothing below the line) are left out; without any
/// other the ends are NaN.
pub fn bootstrap(
    rows: &[[f64; 4]],
    of: &(dyn Fn(&[f64; 4]) -> f64 + Sync),
    settings: &Bootstrap,
) -> Interval {
    let total = rows.iter().fold([0.0; 4], |sum, row| add(sum, row, 1.0));
    let value = of(&total);
    let resample = |number: usize| {
        let mut draws = Draws::new(settings.seed, number as u64);
        of(&(0..rows.len()).fold([0.0; 4], |sum, _| add(sum, &rows[draws.below(rows.len())], 1.0)))
    };
    let mut drawn: Vec<f64> = (0..settings.resamples).into_par_iter().map(resample).collect();
    drawn.retain(|v| !v.is_nan());
    drawn.sort_by(f64::total_cmp);
    let at_most_zero = drawn.partition_point(|v| *v <= 0.0);
    let at_least_zero = drawn.len() - drawn.partition_point(|v| *v < 0.0);
    let ends = |low, high, method| Interval { low, high, method, at_most_zero, at_least_zero };
    let (Some(first), Some(last)) = (drawn.first(), drawn.last()) else {
        return ends(f64::NAN, f64::NAN, Method::Degenerate);
    };
    if first == last {
        return ends(*first, *last, Method::Degenerate);
    }
    let tail = 0.5 * (1.0 - settings.confidence);
    // Resamples equal to the value count half, as in scipy.
    let below = drawn.partition_point(|v| *v < value) + drawn.partition_point(|v| *v <= value);
    let bias = normal::quantile(0.5 * below as f64 / drawn.len() as f64);
    if !bias.is_finite() {
        return ends(quantile(&drawn, tail), quantile(&drawn, 1.0 - tail), Method::Percentile);
    }
    let acceleration = acceleration(rows, &total, of);
    let level = |tail: f64| {
        let z = bias + normal::quantile(tail);
        normal::cdf(bias + z / (1.0 - acceleration * z))
    };
    ends(quantile(&drawn, level(tail)), quantile(&drawn, level(1.0 - tail)), Method::Bca)
}

/// A sixth of the skewness of the values without one row each; 0 where that is not defined.
fn acceleration(rows: &[[f64; 4]], total: &[f64; 4], of: &dyn Fn(&[f64; 4]) -> f64) -> f64 {
    let without: Vec<f64> = rows.iter().map(|row| of(&add(*total, row, -1.0))).collect();
    let mean = without.iter().sum::<f64>() / without.len() as f64;
    let power = |p: i32| without.iter().map(|v| (mean - v).powi(p)).sum::<f64>();
    let acceleration = power(3) / (6.0 * power(2).powf(1.5));
    if acceleration.is_finite() { acceleration } else { 0.0 }
}

fn add(mut sum: [f64; 4], row: &[f64; 4], sign: f64) -> [f64; 4] {
    sum.iter_mut().zip(row).for_each(|(s, r)| *s += sign * r);
    sum
}

/// Linear between the order statistics, as numpy's default.
fn quantile(sorted: &[f64], level: f64) -> f64 {
    let at = level.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let high = (low + 1).min(sorted.len() - 1);
    if part == 0.0 { sorted[low] } else { sorted[low] + part * (sorted[high] - sorted[low]) }
}

/// Random indices of one resample: SplitMix64 (Steele, Lea and Flood 2014) from a start of its own.
struct Draws(u64);

impl Draws {
    fn new(seed: u64, resample: u64) -> Draws {
        let mut start = Draws(seed);
        let seed = start.next();
        let mut own = Draws(seed ^ resample.wrapping_mul(0xd134_2543_de82_ef95));
        Draws(own.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`, up to n / 2⁶⁴.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_interval(values: &[f64], settings: &Bootstrap) -> Interval {
        let rows: Vec<[f64; 4]> = values.iter().map(|v| [*v, 1.0, 0.0, 0.0]).collect();
        bootstrap(&rows, &|s| s[0] / s[1], settings)
    }

    #[test]
    fn ends_are_those_of_scipy() {
        // scipy.stats.bootstrap((x,), numpy.mean, n_resamples=200000, method="BCa"), whose own draws leave the last digit
        // open: a share of 37 in 50, and a skewed sample.
        let share: Vec<f64> = (0..50).map(|i| if i < 37 { 1.0 } else { 0.0 }).collect();
        let skewed: Vec<f64> = (0..40).map(|i| (f64::from(i) / 8.0).exp()).collect();
        let settings = Bootstrap { resamples: 200_000, ..Bootstrap::default() };
        let i = mean_interval(&share, &settings);
        assert_eq!(i.method, Method::Bca);
        assert!((i.low - SCIPY[0].0).abs() < 1e-9 && (i.high - SCIPY[0].1).abs() < 1e-9, "{i:?}");
        let i = mean_interval(&skewed, &settings);
        assert!((i.low - SCIPY[1].0).abs() < 0.1 && (i.high - SCIPY[1].1).abs() < 0.1, "{i:?}");
    }

    const SCIPY: [(f64, f64); 2] = [(0.6, 0.84), (18.7129, 40.4353)];

    #[test]
    fn acceleration_of_a_mean_is_its_skewness() {
        // For a mean a = Σ(x-m)³ / (6 (Σ(x-m)²)^1.5) (Efron 1987, 6.6).
        let x = [1.0, 2.0, 4.0, 9.0];
        let rows = x.map(|v| [v, 1.0, 0.0, 0.0]);
        let d: [f64; 4] = x.map(|v| v - 4.0);
        let expected =
            d.iter().map(|d| d.powi(3)).sum::<f64>() / (6.0 * d.iter().map(|d| d * d).sum::<f64>().powf(1.5));
        let a = acceleration(&rows, &[16.0, 4.0, 0.0, 0.0], &|s| s[0] / s[1]);
        assert!((a - expected).abs() < 1e-12, "{a}, {expected}");
    }

    #[test]
    fn what_cannot_vary_says_so() {
        let settings = Bootstrap { resamples: 100, ..Bootstrap::default() };
        let i = mean_interval(&[1.0; 20], &settings);
        assert_eq!((i.low, i.high, i.method), (1.0, 1.0, Method::Degenerate));
        assert!(mean_interval(&[], &settings).low.is_nan());
    }

    #[test]
    fn seeds_and_threads() {
        let values: Vec<f64> = (0..30).map(|i| f64::from(i % 7)).collect();
        let settings = Bootstrap { resamples: 500, ..Bootstrap::default() };
        let one = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .map(|pool| pool.install(|| mean_interval(&values, &settings)));
        assert_eq!(one.ok(), Some(mean_interval(&values, &settings)));
        assert_ne!(
            mean_interval(&values, &settings),
            mean_interval(&values, &Bootstrap { seed: 1, ..settings })
        );
    }
}
