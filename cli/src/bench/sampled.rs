//! A kernel's time by criterion: samples, a confidence interval, and the change against an earlier run.
//!
//! Criterion keeps its samples in `$CRITERION_HOME`, or else `bench/` in the cache of kfc, one folder for each kernel, and what is
//! reported here is read from there. What it prints meanwhile goes to standard error.

use crate::app::panic_text;
use crate::args::KernelArgs;
use crate::error::input_error;
use anyhow::Context;
use criterion::Criterion;
use kfc_runtime::calibration::cache_folder;
use kfc_runtime::files::{read_json, xxh64};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long criterion samples unless told otherwise, and how many times as long as it warms up.
const SECONDS: f64 = 2.0;
const WARM_UP: u32 = 4;

/// Samples: fewer of long kernels, ten at least.
const SAMPLES: u32 = 60;
const LEAST: u32 = 10;

/// Resamples of the bootstrap.
const RESAMPLES: usize = 20_000;

/// Change that is none: criterion's own threshold.
const NOISE: f64 = 0.01;

/// A value with the bounds of its confidence interval of 95 %.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    pub(super) low: f64,
    pub(super) value: f64,
    pub(super) high: f64,
}

impl Estimate {
    fn read(v: &Value) -> Option<Estimate> {
        let bounds = &v["confidence_interval"];
        Some(Estimate {
            low: bounds["lower_bound"].as_f64()?,
            value: v["point_estimate"].as_f64()?,
            high: bounds["upper_bound"].as_f64()?,
        })
    }

    /// In microseconds, from nanoseconds.
    fn us(&self) -> Value {
        json!({"low": self.low * 1e-3, "value": self.value * 1e-3, "high": self.high * 1e-3})
    }
}

/// What criterion found.
#[derive(Clone, Debug)]
pub(super) struct Sampled {
    /// Nanoseconds of a run.
    pub(super) time: Estimate,
    /// Median of the samples' mean times, nanoseconds.
    pub(super) median: f64,
    /// Runs that were timed.
    pub(super) runs: u64,
    /// Change of the mean time against the earlier run, as a share of it; none if there is no earlier one.
    pub(super) change: Option<Estimate>,
    /// What it is compared with, or why with nothing.
    against: String,
}

/// Samples of one kernel: where they are kept and what they are compared with.
pub(super) struct Samples<'a> {
    /// Names its folder, with letters, digits, dots and dashes alone.
    name: String,
    folder: PathBuf,
    kernel: &'a KernelArgs,
    is_quiet: bool,
}

impl<'a> Samples<'a> {
    /// Of the kernel `name`; runs are compared where `work` is the same text: everything that makes another kernel of it.
    pub(super) fn of(
        name: &str,
        work: &str,
        kernel: &'a KernelArgs,
        is_quiet: bool,
    ) -> anyhow::Result<Samples<'a>> {
        let home = std::env::var_os("CRITERION_HOME").map(PathBuf::from);
        let Some(folder) = home.or_else(|| Some(cache_folder()?.join("bench"))) else {
            return Err(input_error(
                "no place for samples: set CRITERION_HOME to a folder; neither XDG_CACHE_HOME nor HOME is set",
            ));
        };
        let plain: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '.' }).take(40).collect();
        let name = format!("{}-{:016x}", plain.to_ascii_lowercase(), xxh64(work.as_bytes()));
        let samples = Samples { name, folder, kernel, is_quiet };
        if let Some(baseline) = &kernel.baseline
            && !samples.path(baseline).join("sample.json").is_file()
        {
            return Err(input_error(format!(
                "--baseline {baseline}: this kernel has none of that name here; run it with --save-baseline {baseline} first"
            )));
        }
        Ok(samples)
    }

    fn path(&self, part: &str) -> PathBuf {
        self.folder.join(&self.name).join(part)
    }

    /// Times `run`, which runs the kernel so many times and says how long all took. One run takes about `one`.
    ///
    /// # Errors
    /// As `run`; and if the samples cannot be kept.
    pub(super) fn take(
        &self,
        one: Duration,
        run: &mut dyn FnMut(u64) -> kfc_runtime::Result<Duration>,
    ) -> anyhow::Result<Sampled> {
        std::fs::create_dir_all(&self.folder)
            .with_context(|| format!("{}: cannot be made; set CRITERION_HOME", self.folder.display()))?;
        let earlier = self.path("change");
        if earlier.exists() {
            std::fs::remove_dir_all(&earlier)
                .with_context(|| format!("{}: cannot be removed", earlier.display()))?;
        }
        let mut failed = None;
        let mut timed = |n: u64| match run(n) {
            // Criterion takes no time of zero.
            Ok(time) => time.max(Duration::from_nanos(1)),
            Err(error) => {
                failed.get_or_insert(error);
                Duration::from_nanos(n.max(1))
            }
        };
        apart(self.is_quiet, || {
            self.criterion(one).bench_function(&self.name, |b| b.iter_custom(&mut timed));
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        self.read()
    }

    fn criterion(&self, one: Duration) -> Criterion {
        let budget = Duration::from_secs_f64(self.kernel.seconds.unwrap_or(SECONDS));
        let samples = (budget.as_nanos() / one.as_nanos().max(1)).clamp(LEAST.into(), SAMPLES.into());
        let criterion = Criterion::default()
            .without_plots()
            .output_directory(&self.folder)
            .sample_size(samples as usize)
            .nresamples(RESAMPLES)
            .noise_threshold(NOISE)
            .warm_up_time(budget / WARM_UP)
            .measurement_time(budget);
        match (&self.kernel.save_baseline, &self.kernel.baseline) {
            (Some(name), _) => criterion.save_baseline(name.clone()),
            (None, Some(name)) => criterion.retain_baseline(name.clone(), false),
            (None, None) => criterion,
        }
    }

    /// Reads what criterion kept.
    fn read(&self) -> anyhow::Result<Sampled> {
        let read = |path: &Path| -> anyhow::Result<Value> {
            Ok(read_json(path).map_err(kfc_runtime::RunError::from)?)
        };
        let new = self.path("new");
        // Criterion says nothing of what it cannot write.
        let kept = |name: &str| {
            read(&new.join(name)).map_err(|e| {
                anyhow::anyhow!("{e:#}: criterion could not keep its samples; CRITERION_HOME names a folder with room for them")
            })
        };
        let (estimates, sample) = (kept("estimates.json")?, kept("sample.json")?);
        let change = self.path("change").join("estimates.json");
        let change = if change.is_file() { Estimate::read(&read(&change)?["mean"]) } else { None };
        let against = match (&self.kernel.save_baseline, &self.kernel.baseline, change) {
            (Some(name), _, None) => format!("kept as baseline {name}"),
            (Some(name), ..) | (None, Some(name), _) => format!("baseline {name}"),
            (None, None, Some(_)) => "the last run".into(),
            (None, None, None) => "first run of this work here".into(),
        };
        let damaged = || anyhow::anyhow!("{}: is no sample of criterion; remove it", new.display());
        let of = if estimates["slope"].is_object() { "slope" } else { "mean" };
        Ok(Sampled {
            time: Estimate::read(&estimates[of]).ok_or_else(damaged)?,
            median: estimates["median"]["point_estimate"].as_f64().ok_or_else(damaged)?,
            runs: sample["iters"]
                .as_array()
                .ok_or_else(damaged)?
                .iter()
                .filter_map(Value::as_f64)
                .sum::<f64>() as u64,
            change,
            against,
        })
    }
}

impl Sampled {
    /// `12.30 µs (12.10 to 12.61 µs)`.
    pub(super) fn time_told(&self) -> String {
        let Estimate { low, value, high } = self.time;
        format!("{} ({} to {})", time(value), time(low), time(high))
    }

    /// What it does in a second.
    pub(super) fn rates_told(&self, flops: f64, bytes: f64) -> String {
        format!("{:.1} GFLOP/s, {:.1} GB/s", flops / self.time.value, bytes / self.time.value)
    }

    /// What became of it since the earlier run.
    pub(super) fn change_told(&self) -> String {
        let Some(c) = self.change else { return format!("none: {}", self.against) };
        format!(
            "{:+.1} % ({:+.1} to {:+.1}) against {}: {}",
            c.value * 100.0,
            c.low * 100.0,
            c.high * 100.0,
            self.against,
            verdict(c)
        )
    }

    /// The object that `--json` has of it; `limit` in nanoseconds.
    pub(super) fn json(&self, limit: f64) -> Value {
        let change = self.change.map(|c| {
            json!({"low": c.low, "value": c.value, "high": c.high, "against": self.against, "verdict": verdict(c)})
        });
        json!({
            "time_us": self.time.us(), "median_us": self.median * 1e-3, "runs": self.runs, "change": change,
            "of_limit": limit / self.time.value,
        })
    }
}

/// Nanoseconds in the unit that suits them: `22.75 ns`, `12.34 µs`, `142.43 ms`.
pub(super) fn time(ns: f64) -> String {
    let (scale, unit) = match ns {
        ns if ns < 1e3 => (1.0, "ns"),
        ns if ns < 1e6 => (1e-3, "µs"),
        _ => (1e-6, "ms"),
    };
    format!("{:.2} {unit}", ns * scale)
}

/// A change counts if its whole interval lies beyond the noise.
fn verdict(change: Estimate) -> &'static str {
    if change.low > NOISE {
        "slower"
    } else if change.high < -NOISE {
        "faster"
    } else {
        "no change beyond the noise"
    }
}

/// Calls `f` with what it prints to standard output on standard error instead, or with nothing that it prints anywhere.
fn apart(is_quiet: bool, f: impl FnOnce()) -> anyhow::Result<()> {
    let flushed = || io::stdout().flush();
    flushed()?;
    let kept = (io::stdout().as_fd().try_clone_to_owned()?, io::stderr().as_fd().try_clone_to_owned()?);
    if is_quiet {
        let nowhere = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&nowhere)?;
        rustix::stdio::dup2_stderr(&nowhere)?;
    } else {
        rustix::stdio::dup2_stdout(io::stderr())?;
    }
    let done = panic::catch_unwind(AssertUnwindSafe(f));
    flushed()?;
    rustix::stdio::dup2_stdout(kept.0)?;
    rustix::stdio::dup2_stderr(kept.1)?;
    if let Err(panic) = done {
        if is_quiet {
            // What the hook said of it went nowhere.
            anyhow::bail!("the kernel could not be timed: {}", panic_text(&*panic));
        }
        panic::resume_unwind(panic);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_change_is_told_where_all_of_its_interval_is_beyond_the_noise() {
        let change = |low, high| Estimate { low, value: (low + high) / 2.0, high };
        assert_eq!(verdict(change(0.02, 0.05)), "slower");
        assert_eq!(verdict(change(-0.05, -0.011)), "faster");
        for (low, high) in [(0.005, 0.2), (-0.2, -0.005), (-0.1, 0.1)] {
            assert!(verdict(change(low, high)).starts_with("no change"), "{low} {high}");
        }
    }
}
