//! McNemar's exact test: do two models differ in which rows they get right?

/// Rows on which two models disagree, and how surprising that is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct McNemar {
    /// Rows that only the first has right.
    pub only_before: usize,
    /// Rows that only the second has right.
    pub only_after: usize,
    /// Two-sided p-value: under no difference the smaller count is binomial with share one half (McNemar 1947, exact
    /// form); 1 if they never disagree.
    pub p: f64,
}

/// The test on pairs of (first right, second right).
pub fn mcnemar(pairs: impl Iterator<Item = (bool, bool)>) -> McNemar {
    let (mut before, mut after) = (0, 0);
    for (a, b) in pairs {
        before += usize::from(a && !b);
        after += usize::from(b && !a);
    }
    McNemar { only_before: before, only_after: after, p: exact(before.min(after), before + after) }
}

/// min(1, 2·P(X ≤ k)) for X of `n` throws of a coin; terms in logarithms, so that no count is too large.
fn exact(k: usize, n: usize) -> f64 {
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut sum = log_term.exp();
    for i in 1..=k {
        log_term += ((n - i + 1) as f64 / i as f64).ln();
        sum += log_term.exp();
    }
    (2.0 * sum).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // statsmodels' mcnemar(exact=True), which is scipy's binomtest(k, n).
        for (k, n, p) in [
            (0, 0, 1.0),
            (0, 1, 1.0),
            (0, 5, 0.0625),
            (1, 10, 0.021_484_375),
            (6, 22, 0.052_478_790_283_203_125),
            (5, 10, 1.0),
            (480, 1000, 0.217_448_293_2),
        ] {
            assert!((exact(k, n) - p).abs() < 1e-9, "{k} of {n}: {}", exact(k, n));
        }
        let pairs = [(true, false), (true, true), (false, true), (true, false), (false, false)];
        let test = mcnemar(pairs.into_iter());
        assert_eq!((test.only_before, test.only_after, test.p), (2, 1, 1.0));
    }
}
