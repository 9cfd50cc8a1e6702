//! How sure a measured number is: bootstrap intervals, and paired tests of two models on the same rows.
//!
//! Every metric is a function of sums over rows (a mean is a sum of values over a sum of ones; a corpus F1 a sum of twice
//! the hits over a sum of what was said and what is right), so that one bootstrap serves all of them.
//!
//! Invariants:
//! - rows are what is drawn, never tokens or choices: what belongs to a row stays together, and the two models of a
//!   comparison are drawn with the same rows;
//! - a resample depends on the seed and its own number alone, so a result is the same for any number of threads.

mod bootstrap;
mod mcnemar;
mod normal;

pub use bootstrap::{Bootstrap, Interval, Method, bootstrap};
pub use mcnemar::{McNemar, mcnemar};

/// What a row adds to a metric: the metric of many rows is `Σ num / Σ den`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Part {
    /// Added above the line.
    pub num: f64,
    /// Added below the line.
    pub den: f64,
}

impl Part {
    /// One row of a share: right or wrong.
    pub fn hit(right: bool) -> Part {
        Part { num: f64::from(u8::from(right)), den: 1.0 }
    }

    /// One row of a mean.
    pub fn mean(value: f64) -> Part {
        Part { num: value, den: 1.0 }
    }
}

/// How a metric follows from its ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// It is the ratio.
    Ratio,
    /// It is e to the ratio (perplexity).
    Exp,
}

impl Form {
    fn of(self, num: f64, den: f64) -> f64 {
        match self {
            Form::Ratio => num / den,
            Form::Exp => (num / den).exp(),
        }
    }
}

/// The metric of `parts`; NaN if they add up to nothing.
pub fn value(parts: &[Part], form: Form) -> f64 {
    let (num, den) = parts.iter().fold((0.0, 0.0), |(n, d), p| (n + p.num, d + p.den));
    form.of(num, den)
}

/// The confidence interval of [`value`].
pub fn interval(parts: &[Part], form: Form, settings: &Bootstrap) -> Interval {
    let rows: Vec<[f64; 4]> = parts.iter().map(|p| [p.num, p.den, 0.0, 0.0]).collect();
    bootstrap(&rows, &|s| form.of(s[0], s[1]), settings)
}

/// How the metric changed from one model to another on the same rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// After less before.
    pub value: f64,
    /// Its confidence interval.
    pub interval: Interval,
    /// Two-sided p-value of the paired bootstrap: twice the share of resamples on the rarer side of no difference, each side
    /// counted with one more (Davison and Hinkley 1997, 4.2.5), at most 1.
    pub p: f64,
}

/// The paired difference of a metric. `before` and `after` are of the same rows in the same order.
pub fn difference(before: &[Part], after: &[Part], form: Form, settings: &Bootstrap) -> Difference {
    let rows: Vec<[f64; 4]> = before.iter().zip(after).map(|(b, a)| [b.num, b.den, a.num, a.den]).collect();
    let of = |s: &[f64; 4]| form.of(s[2], s[3]) - form.of(s[0], s[1]);
    let interval = bootstrap(&rows, &of, settings);
    let side = interval.at_most_zero.min(interval.at_least_zero);
    let p = (2.0 * (1.0 + side as f64) / (1.0 + settings.resamples as f64)).min(1.0);
    Difference { value: value(after, form) - value(before, form), interval, p }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUICK: Bootstrap = Bootstrap { resamples: 400, confidence: 0.95, seed: 3 };

    proptest! {
        #[test]
        fn intervals_hold_the_value(values in prop::collection::vec(0.0f64..1.0, 2..60)) {
            let parts: Vec<Part> = values.iter().map(|v| Part::mean(*v)).collect();
            let (at, i) = (value(&parts, Form::Ratio), interval(&parts, Form::Ratio, &QUICK));
            prop_assert!(i.low <= at + 1e-12 && at <= i.high + 1e-12, "{i:?}, {at}");
            let (low, high) = values.iter().fold((1.0f64, 0.0f64), |(l, h), v| (l.min(*v), h.max(*v)));
            prop_assert!(i.low >= low - 1e-12 && i.high <= high + 1e-12);
        }

        #[test]
        fn a_model_beside_itself_does_not_differ(right in prop::collection::vec(any::<bool>(), 1..40)) {
            let parts: Vec<Part> = right.iter().map(|r| Part::hit(*r)).collect();
            let d = difference(&parts, &parts, Form::Ratio, &QUICK);
            prop_assert_eq!((d.value, d.p, d.interval.low, d.interval.high), (0.0, 1.0, 0.0, 0.0));
        }

        #[test]
        fn turning_a_comparison_around_turns_its_sign(
            pairs in prop::collection::vec((any::<bool>(), any::<bool>()), 2..40),
        ) {
            let (a, b): (Vec<Part>, Vec<Part>) =
                pairs.iter().map(|(a, b)| (Part::hit(*a), Part::hit(*b))).unzip();
            let there = difference(&a, &b, Form::Ratio, &QUICK);
            let back = difference(&b, &a, Form::Ratio, &QUICK);
            prop_assert_eq!(there.p, back.p);
            prop_assert!((there.value + back.value).abs() < 1e-12);
            prop_assert!((there.interval.low + back.interval.high).abs() < 1e-9, "{there:?} {back:?}");
        }
    }

    #[test]
    fn a_clear_difference_is_found() {
        let before: Vec<Part> = (0..100).map(|i| Part::hit(i % 10 < 5)).collect();
        let after: Vec<Part> = (0..100).map(|i| Part::hit(i % 10 < 8)).collect();
        let d = difference(&before, &after, Form::Ratio, &QUICK);
        assert!((d.value - 0.3).abs() < 1e-12 && d.interval.low > 0.15 && d.p < 0.01, "{d:?}");
    }

    #[test]
    fn forms() {
        let parts = [Part { num: 2.0, den: 4.0 }, Part { num: 1.0, den: 2.0 }];
        assert_eq!((value(&parts, Form::Ratio), value(&parts, Form::Exp)), (0.5, 0.5f64.exp()));
        assert!(value(&[], Form::Ratio).is_nan());
    }
}
