//! Gates: conditions on the metrics of an evaluation, for scripts and CI.

use crate::config::nearest;
use crate::error::{Outcome, input_error};
use std::fmt;

/// How a metric is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `>=`
    AtLeast,
    /// `<=`
    AtMost,
    /// `==`
    Equal,
    /// `>`
    Above,
    /// `<`
    Below,
}

impl Comparison {
    /// Two-character forms first, so that `>=` is not read as `>`.
    const ALL: [(&'static str, Comparison); 5] = [
        (">=", Comparison::AtLeast),
        ("<=", Comparison::AtMost),
        ("==", Comparison::Equal),
        (">", Comparison::Above),
        ("<", Comparison::Below),
    ];

    const fn symbol(self) -> &'static str {
        match self {
            Comparison::AtLeast => ">=",
            Comparison::AtMost => "<=",
            Comparison::Equal => "==",
            Comparison::Above => ">",
            Comparison::Below => "<",
        }
    }
}

/// `metric>=x`
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    /// Name of the metric.
    pub metric: String,
    /// How it is compared.
    pub comparison: Comparison,
    /// With what; finite.
    pub bound: f64,
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.metric, self.comparison.symbol(), self.bound)
    }
}

impl Gate {
    /// Reads `metric>=x` (or `<=`, `==`, `>`, `<`; spaces are allowed).
    ///
    /// # Errors
    /// A message that says what was expected.
    pub fn parse(text: &str) -> Result<Gate, String> {
        let operator = text.find(['>', '<', '=']).unwrap_or(text.len());
        let (metric, rest) = text.split_at(operator);
        let found = Comparison::ALL.iter().find(|(symbol, _)| rest.starts_with(symbol));
        let Some((symbol, comparison)) = found else {
            return Err("write METRIC, then >=, >, <=, < or ==, then a number, as in 'accuracy>=0.9'".into());
        };
        let (metric, bound) = (metric.trim(), rest[symbol.len()..].trim());
        if metric.is_empty() {
            return Err(format!("there is no metric before `{symbol}`; write e.g. 'accuracy{symbol}0.9'"));
        }
        match bound.parse::<f64>() {
            Ok(bound) if bound.is_finite() => {
                Ok(Gate { metric: metric.to_owned(), comparison: *comparison, bound })
            }
            _ => Err(format!("`{bound}` is not a number; write e.g. '{metric}{symbol}0.9'")),
        }
    }

    /// Whether `value` meets the gate. NaN meets none.
    pub fn holds(&self, value: f64) -> bool {
        match self.comparison {
            Comparison::AtLeast => value >= self.bound,
            Comparison::AtMost => value <= self.bound,
            Comparison::Equal => value == self.bound,
            Comparison::Above => value > self.bound,
            Comparison::Below => value < self.bound,
        }
    }
}

/// Refuses gates on metrics that the task does not have; worth calling before hours of evaluation.
///
/// # Errors
/// An input error that lists the metrics there are.
pub fn check_known(gates: &[Gate], metrics: &[&str]) -> anyhow::Result<()> {
    match gates.iter().find(|gate| !metrics.contains(&gate.metric.as_str())) {
        None => Ok(()),
        Some(gate) => {
            let hint = nearest(&gate.metric, metrics.iter().copied());
            let hint = hint.map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
            let list = metrics.join(", ");
            Err(input_error(format!(
                "--gate {gate}: there is no metric `{}`; {hint}the metrics are {list}",
                gate.metric
            )))
        }
    }
}

/// What became of one gate.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The gate.
    pub gate: Gate,
    /// The metric's value.
    pub value: f64,
    /// Whether the gate holds.
    pub met: bool,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.met { "met" } else { "MISSED" };
        write!(f, "gate {}: {word} ({} = {})", self.gate, self.gate.metric, self.value)
    }
}

/// Holds `gates` against `metrics`.
///
/// # Errors
/// As [`check_known`].
pub fn evaluate(gates: &[Gate], metrics: &[(String, f64)]) -> anyhow::Result<Vec<Verdict>> {
    let names: Vec<&str> = metrics.iter().map(|(name, _)| name.as_str()).collect();
    check_known(gates, &names)?;
    let verdict = |gate: &Gate| {
        let value =
            metrics.iter().find(|(name, _)| *name == gate.metric).map_or(f64::NAN, |(_, value)| *value);
        Verdict { gate: gate.clone(), value, met: gate.holds(value) }
    };
    Ok(gates.iter().map(verdict).collect())
}

/// How a command with these verdicts ends.
pub fn outcome(verdicts: &[Verdict]) -> Outcome {
    if verdicts.iter().all(|verdict| verdict.met) { Outcome::Done } else { Outcome::GateMissed }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn parses_every_comparison() {
        for (symbol, comparison) in Comparison::ALL {
            let gate = Gate::parse(&format!(" new_recall {symbol} 1e-1")).unwrap();
            assert_eq!(gate, Gate { metric: "new_recall".into(), comparison, bound: 0.1 });
            assert_eq!(Gate::parse(&gate.to_string()).unwrap(), gate);
        }
        for bad in ["", "ppl", ">=1", "ppl>=", "ppl>=x", "ppl=1", "ppl>=nan", "ppl>=inf", "ppl=>1", "ppl>>1"]
        {
            assert!(Gate::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn verdicts() {
        let metrics = [("ppl".to_owned(), 10.0), ("accuracy".to_owned(), f64::NAN)];
        let gates = |texts: &[&str]| texts.iter().map(|text| Gate::parse(text).unwrap()).collect::<Vec<_>>();
        let met = evaluate(&gates(&["ppl<=10", "ppl==10", "ppl>=10", "ppl<11", "ppl>9"]), &metrics).unwrap();
        assert_eq!(outcome(&met), Outcome::Done);
        let missed = evaluate(&gates(&["ppl<=10", "ppl<10"]), &metrics).unwrap();
        assert_eq!((missed[0].met, missed[1].met, outcome(&missed)), (true, false, Outcome::GateMissed));
        assert_eq!(missed[1].to_string(), "gate ppl<10: MISSED (ppl = 10)");
        let nan = evaluate(&gates(&["accuracy>=0", "accuracy<=0"]), &metrics).unwrap();
        assert!(nan.iter().all(|verdict| !verdict.met));
        let unknown = evaluate(&gates(&["acuracy>=1"]), &metrics).unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "--gate acuracy>=1: there is no metric `acuracy`; did you mean `accuracy`? the metrics are ppl, accuracy"
        );
        assert_eq!(crate::error::exit_code(&unknown), crate::error::BAD_INPUT);
    }
}
