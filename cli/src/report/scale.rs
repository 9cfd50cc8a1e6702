//! From values to pixels: ranges, round tick values, and how numbers are written.

/// A map from values to `[start, end]` pixels.
pub struct Scale {
    low: f64,
    high: f64,
    log: bool,
    start: f64,
    end: f64,
    /// Values of the ticks, ascending, all inside the range.
    pub ticks: Vec<f64>,
    /// Distance of two ticks; what decides how many digits they need.
    step: f64,
}

impl Scale {
    /// A linear scale over `low..=high`, widened to round values if `round`, with about `count` ticks.
    pub fn linear(low: f64, high: f64, count: usize, round: bool, start: f64, end: f64) -> Scale {
        let (low, high) = spread(low, high);
        let step = nice_step((high - low) / count.max(1) as f64);
        let (low, high) = match round {
            true => ((low / step + SLACK).floor() * step, (high / step - SLACK).ceil() * step),
            false => (low, high),
        };
        let (first, last) = ((low / step - SLACK).ceil(), (high / step + SLACK).floor());
        let ticks =
            (0..=((last - first).clamp(0.0, 50.0) as usize)).map(|i| (first + i as f64) * step).collect();
        Scale { low, high, log: false, start, end, ticks, step }
    }

    /// A logarithmic scale; `low` and `high` must be positive.
    pub fn logarithmic(low: f64, high: f64, start: f64, end: f64) -> Scale {
        let (first, last) =
            (low.log10().floor() as i32, (high.log10().ceil() as i32).max(low.log10().floor() as i32 + 1));
        let stride = ((last - first) / 6 + 1) as usize;
        let ticks = (first..=last).step_by(stride).map(|exponent| 10f64.powi(exponent)).collect();
        Scale { low: 10f64.powi(first), high: 10f64.powi(last), log: true, start, end, ticks, step: 0.0 }
    }

    /// The smallest value.
    pub fn low(&self) -> f64 {
        self.low
    }

    /// The largest value.
    pub fn high(&self) -> f64 {
        self.high
    }

    /// The pixel of `value`.
    pub fn at(&self, value: f64) -> f64 {
        let share = if self.log {
            (value.max(self.low) / self.low).log10() / (self.high / self.low).log10()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.start + share * (self.end - self.start)
    }

    /// How the tick `value` is written.
    pub fn label(&self, value: f64) -> String {
        if self.log { number(value) } else { tick_label(value, self.step) }
    }
}

/// Share of a step that absorbs rounding when values are divided by it.
const SLACK: f64 = 5e-4;

/// A range that is never empty.
fn spread(low: f64, high: f64) -> (f64, f64) {
    if high > low && (high - low) > 1e-9 * low.abs().max(high.abs()) {
        return (low, high);
    }
    let margin = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
    (low - margin, high + margin)
}

/// The smallest of 1, 2 or 5 times a power of ten that is at least `rough`.
/// Source: P. Heckbert, "Nice numbers for graph labels", Graphics Gems, 1990.
fn nice_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= rough * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

/// A tick with just the digits that `step` needs.
fn tick_label(value: f64, step: f64) -> String {
    let value = if value.abs() < step * 1e-6 { 0.0 } else { value };
    if !(1e-3..1e7).contains(&value.abs().max(step)) || (value == 0.0 && !(1e-3..1e3).contains(&step)) {
        return number(value);
    }
    if step >= 1000.0 && value != 0.0 {
        let (scaled, suffix, unit) =
            if step >= 1e6 { (value / 1e6, "M", 1e6) } else { (value / 1e3, "k", 1e3) };
        let digits = decimals(step / unit);
        return format!("{scaled:.digits$}{suffix}");
    }
    let digits = decimals(step);
    format!("{value:.digits$}")
}

/// Decimals that tell multiples of `step` apart.
fn decimals(step: f64) -> usize {
    if step <= 0.0 { 0 } else { (-(step * (1.0 + 1e-9)).log10().floor()).clamp(0.0, 9.0) as usize }
}

/// A single value with four significant digits.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        return "0".into();
    }
    if !(1e-3..1e7).contains(&size) {
        let text = format!("{value:.3e}");
        // 1.500e-5 is easier to read as 1.5e-5.
        return match text.split_once('e') {
            Some((mantissa, exponent)) => {
                format!("{}e{exponent}", mantissa.trim_end_matches('0').trim_end_matches('.'))
            }
            None => text,
        };
    }
    let digits = (3 - size.log10().floor() as i32).max(0) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(low: f64, high: f64) -> Vec<String> {
        let scale = Scale::linear(low, high, 5, true, 0.0, 100.0);
        scale.ticks.iter().map(|tick| scale.label(*tick)).collect()
    }

    #[test]
    fn ticks_are_round_and_told_apart() {
        assert_eq!(ticks(0.0, 9.7), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(ticks(0.113, 0.187), ["0.10", "0.12", "0.14", "0.16", "0.18", "0.20"]);
        assert_eq!(ticks(0.0, 3e-5), ["0", "1e-5", "2e-5", "3e-5"]);
        assert_eq!(ticks(0.0, 12_345.0), ["0", "5k", "10k", "15k"]);
        assert_eq!(ticks(5.0, 5.0), ["4.4", "4.6", "4.8", "5.0", "5.2", "5.4", "5.6"]);
        assert_eq!(ticks(-1.0, 1.0), ["-1.0", "-0.5", "0.0", "0.5", "1.0"]);
    }

    #[test]
    fn scales_map_their_ends() {
        let linear = Scale::linear(0.0, 10.0, 5, true, 200.0, 0.0);
        assert_eq!((linear.at(0.0), linear.at(10.0), linear.at(5.0)), (200.0, 0.0, 100.0));
        let log = Scale::logarithmic(0.02, 7.0, 0.0, 3.0);
        assert_eq!(log.ticks.len(), 4);
        assert!((log.at(0.1) - 1.0).abs() < 1e-12 && (log.at(10.0) - 3.0).abs() < 1e-12);
    }

    #[test]
    fn numbers() {
        let shown: Vec<String> =
            [0.0, 1.0, 2.34567, 0.000015, 123456.7, 1.5e9].into_iter().map(number).collect();
        assert_eq!(shown, ["0", "1", "2.346", "1.5e-5", "123457", "1.5e9"]);
    }
}
