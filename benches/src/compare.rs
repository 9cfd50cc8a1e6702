//! Whether a change made a benchmark slower: two sets of criterion's estimates, and a verdict that knows of noise.
//!
//! Criterion writes `estimates.json` a benchmark and baseline, with the mean, the median and their confidence intervals, in
//! nanoseconds. A benchmark is slower only if its median rose by more than the threshold *and* the intervals of the two
//! medians do not touch; faster, the same way round.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

/// A median time with its confidence interval, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The median of the samples.
    pub median: f64,
    /// Lower end of its confidence interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// What became of a benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Slower, beyond threshold and noise.
    Slower,
    /// Faster, beyond threshold and noise.
    Faster,
    /// A change beyond the threshold that noise may explain.
    Unclear,
    /// No change beyond the threshold.
    Same,
    /// Only the baseline has it.
    Gone,
    /// The baseline does not have it.
    New,
}

impl Verdict {
    /// A word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Slower => "SLOWER",
            Verdict::Faster => "faster",
            Verdict::Unclear => "unclear",
            Verdict::Same => "same",
            Verdict::Gone => "not run",
            Verdict::New => "new",
        }
    }
}

/// One benchmark, before and after.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Its name.
    pub name: String,
    /// In the baseline.
    pub before: Option<Estimate>,
    /// Now.
    pub after: Option<Estimate>,
    /// What to think of it.
    pub verdict: Verdict,
}

impl Change {
    /// Relative change of the median; above 0 is slower.
    pub fn relative(&self) -> Option<f64> {
        Some(self.after?.median / self.before?.median - 1.0)
    }
}

impl Estimate {
    /// Reads criterion's `estimates.json`; `None` if it is none.
    pub fn from_json(v: &Value) -> Option<Estimate> {
        let median = &v["median"];
        let interval = &median["confidence_interval"];
        let positive = |v: &Value| v.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        Some(Estimate {
            median: positive(&median["point_estimate"])?,
            low: positive(&interval["lower_bound"])?,
            high: positive(&interval["upper_bound"])?,
        })
    }
}

/// What to think of a change; `threshold` is relative, as in 0.05.
pub fn verdict(before: Option<Estimate>, after: Option<Estimate>, threshold: f64) -> Verdict {
    let (Some(b), Some(a)) = (before, after) else {
        return if before.is_some() { Verdict::Gone } else { Verdict::New };
    };
    let change = a.median / b.median - 1.0;
    match (change > threshold, change < -threshold) {
        (true, _) if a.low > b.high => Verdict::Slower,
        (_, true) if a.high < b.low => Verdict::Faster,
        (false, false) => Verdict::Same,
        _ => Verdict::Unclear,
    }
}

/// Every benchmark of either side, by name.
pub fn changes(
    before: &BTreeMap<String, Estimate>,
    after: &BTreeMap<String, Estimate>,
    threshold: f64,
) -> Vec<Change> {
    let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
    names.sort();
    names.dedup();
    let change = |name: &String| {
        let (b, a) = (before.get(name).copied(), after.get(name).copied());
        Change { name: name.clone(), before: b, after: a, verdict: verdict(b, a, threshold) }
    };
    names.into_iter().map(change).collect()
}

/// The estimates of all benchmarks under criterion's folder that have a baseline of this name, by their path; of a time on, if
/// one is given.
///
/// # Errors
/// If a folder or a file of estimates cannot be read.
pub fn read(
    folder: &Path,
    baseline: &str,
    since: Option<SystemTime>,
) -> std::io::Result<BTreeMap<String, Estimate>> {
    let mut found = BTreeMap::new();
    collect(folder, folder, (baseline, since), &mut found)?;
    Ok(found)
}

fn collect(
    root: &Path,
    folder: &Path,
    (baseline, since): (&str, Option<SystemTime>),
    found: &mut BTreeMap<String, Estimate>,
) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        let file = path.join("estimates.json");
        if path.file_name().is_some_and(|n| n == baseline) && file.is_file() {
            if since.is_some_and(|since| file.metadata().and_then(|m| m.modified()).is_ok_and(|m| m < since))
            {
                continue;
            }
            let value: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
            let damaged = || std::io::Error::other(format!("{}: no estimates of criterion", file.display()));
            let estimate = Estimate::from_json(&value).ok_or_else(damaged)?;
            let name = folder.strip_prefix(root).unwrap_or(folder).display().to_string();
            found.insert(name, estimate);
        } else {
            collect(root, &path, (baseline, since), found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::temp::TempFolder;
    use serde_json::json;

    fn estimate(median: f64, spread: f64) -> Option<Estimate> {
        Some(Estimate { median, low: median - spread, high: median + spread })
    }

    #[test]
    fn a_verdict_needs_a_change_and_no_noise() {
        let of = |after, spread| verdict(estimate(100.0, 1.0), estimate(after, spread), 0.05);
        assert_eq!(of(104.0, 0.1), Verdict::Same);
        assert_eq!(of(110.0, 1.0), Verdict::Slower);
        assert_eq!(of(110.0, 10.0), Verdict::Unclear);
        assert_eq!(of(90.0, 1.0), Verdict::Faster);
        assert_eq!(of(90.0, 10.0), Verdict::Unclear);
        assert_eq!(verdict(estimate(1.0, 0.1), None, 0.05), Verdict::Gone);
        assert_eq!(verdict(None, estimate(1.0, 0.1), 0.05), Verdict::New);
    }

    #[test]
    fn estimates_are_found_by_baseline() {
        let folder = TempFolder::new("compare").unwrap();
        let write = |bench: &str, baseline: &str, median: f64| {
            let dir = folder.path().join(bench).join(baseline);
            std::fs::create_dir_all(&dir).unwrap();
            let interval =
                json!({"confidence_level": 0.95, "lower_bound": median * 0.99, "upper_bound": median * 1.01});
            let file = json!({"median": {"point_estimate": median, "confidence_interval": interval}});
            std::fs::write(dir.join("estimates.json"), file.to_string()).unwrap();
        };
        for (bench, before, after) in [("gemm/f32/a", 100.0, 120.0), ("gemm/f32/b", 100.0, 101.0)] {
            write(bench, "main", before);
            write(bench, "new", after);
        }
        write("step/tiny", "main", 5.0);
        let (before, after) =
            (read(folder.path(), "main", None).unwrap(), read(folder.path(), "new", None).unwrap());
        let changes = changes(&before, &after, 0.05);
        let seen: Vec<(&str, Verdict)> = changes.iter().map(|c| (c.name.as_str(), c.verdict)).collect();
        assert_eq!(
            seen,
            [("gemm/f32/a", Verdict::Slower), ("gemm/f32/b", Verdict::Same), ("step/tiny", Verdict::Gone)]
        );
        let later = SystemTime::now() + std::time::Duration::from_secs(60);
        assert!(read(folder.path(), "new", Some(later)).unwrap().is_empty());
        assert_eq!(read(folder.path(), "new", Some(SystemTime::UNIX_EPOCH)).unwrap(), after);
        assert!((changes[0].relative().unwrap() - 0.2).abs() < 1e-12);
        std::fs::write(folder.path().join("step/tiny/main/estimates.json"), "{}").unwrap();
        assert!(read(folder.path(), "main", None).unwrap_err().to_string().contains("no estimates"));
    }
}
