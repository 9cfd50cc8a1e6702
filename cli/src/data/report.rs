//! What became of the rows: counts by reason, for people and as JSON. Saved with the state of a run, so that an
//! interrupted run reports as one.

use crate::config::format_bytes;
use crate::output;
use crate::progress::duration;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Counts of a run, those of earlier processes included.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Items read.
    pub rows_in: u64,
    /// Rows written. Commands that make several of one may write more than they read.
    pub rows_out: u64,
    /// Rows left out, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// What else the command counts.
    pub counts: BTreeMap<String, u64>,
    /// Bytes of input.
    pub bytes_in: u64,
    /// Bytes of rows written.
    pub bytes_out: u64,
    /// Wall time.
    pub seconds: f64,
}

impl Report {
    /// All rows left out.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }

    /// Adds `other`, the counts of a block.
    pub fn add(&mut self, other: &Report) {
        self.rows_in += other.rows_in;
        self.rows_out += other.rows_out;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.seconds += other.seconds;
        for (to, from) in [(&mut self.dropped, &other.dropped), (&mut self.counts, &other.counts)] {
            for (name, count) in from {
                *to.entry(name.clone()).or_default() += count;
            }
        }
    }

    /// The counts; rates are null before any time has passed.
    pub fn to_json(&self) -> Value {
        let rate = |amount: f64| (self.seconds > 0.0).then(|| amount / self.seconds);
        json!({
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "rows_dropped": self.dropped_total(),
            "dropped": self.dropped,
            "counts": self.counts,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "seconds": self.seconds,
            "rows_per_s": rate(self.rows_in as f64),
            "mb_per_s": rate(self.bytes_in as f64 / 1e6),
        })
    }

    /// What [`Report::to_json`] wrote; `None` if it is something else.
    pub fn from_json(value: &Value) -> Option<Report> {
        let number = |key: &str| value[key].as_u64();
        let counts = |key: &str| -> Option<BTreeMap<String, u64>> {
            let map: &Map<String, Value> = value[key].as_object()?;
            map.iter().map(|(name, count)| Some((name.clone(), count.as_u64()?))).collect()
        };
        Some(Report {
            rows_in: number("rows_in")?,
            rows_out: number("rows_out")?,
            dropped: counts("dropped")?,
            counts: counts("counts")?,
            bytes_in: number("bytes_in")?,
            bytes_out: number("bytes_out")?,
            seconds: value["seconds"].as_f64()?,
        })
    }

    /// A table for people.
    pub fn to_text(&self) -> String {
        let share = |count: u64| {
            let percent = if self.rows_in > 0 { 100.0 * count as f64 / self.rows_in as f64 } else { 0.0 };
            format!("{percent:.1} %")
        };
        let line = |name: &str, value: String, share: String| vec![name.to_owned(), value, share];
        let mut rows = vec![
            line("rows in", self.rows_in.to_string(), format_bytes(self.bytes_in)),
            line("rows out", self.rows_out.to_string(), format_bytes(self.bytes_out)),
        ];
        if self.dropped_total() > 0 {
            rows.push(line("dropped", self.dropped_total().to_string(), share(self.dropped_total())));
        }
        for (reason, count) in &self.dropped {
            rows.push(line(&format!("  {reason}"), count.to_string(), share(*count)));
        }
        for (name, count) in &self.counts {
            rows.push(line(name, count.to_string(), String::new()));
        }
        let rate = if self.seconds > 0.0 { self.rows_in as f64 / self.seconds } else { 0.0 };
        rows.push(line("time", duration(self.seconds), format!("{rate:.0} rows/s")));
        output::table(&rows)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn report() -> Report {
        Report {
            rows_in: 10,
            rows_out: 7,
            dropped: [("too_short".to_owned(), 2), ("bad_json".to_owned(), 1)].into(),
            counts: [("masked email".to_owned(), 4)].into(),
            bytes_in: 2048,
            bytes_out: 1024,
            seconds: 2.0,
        }
    }

    #[test]
    fn json_is_read_back() {
        let json = report().to_json();
        assert_eq!((&json["rows_dropped"], &json["rows_per_s"]), (&json!(3), &json!(5.0)));
        assert_eq!(Report::from_json(&json), Some(report()));
        assert_eq!(Report::from_json(&json!({"rows_in": 1})), None);
        assert_eq!(Report::default().to_json()["rows_per_s"], Value::Null);
    }

    #[test]
    fn counts_add_up() {
        let mut sum = report();
        sum.add(&report());
        assert_eq!((sum.rows_in, sum.dropped["too_short"], sum.counts["masked email"]), (20, 4, 8));
    }

    #[test]
    fn people_see_reasons() {
        let text = report().to_text();
        assert!(
            text.contains("  too_short") && text.contains("20.0 %") && text.contains("5 rows/s"),
            "{text}"
        );
    }
}
