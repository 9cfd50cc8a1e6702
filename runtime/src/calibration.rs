//! How fast this machine is: rates for predictions, and measured times of kernels.
//!
//! A calibration belongs to a CPU, a level of instructions, a number of threads and a version of kfc, and is kept in a file
//! named after the hash of the four. Times are kept by signature of the work, so that jobs share them. Nothing here ever fails a run: without a
//! file, or with a damaged one, predictions are rough.

use crate::Result;
use crate::device::cuda::{self, Gpu};
use crate::files::{self, xxh64};
use crate::profile::{Kind, Machine, PlanProfile};
use crate::train::Trainer;
use kfc_graph::{Cost, DType};
use kfc_kernels::calibrate::rates;
use kfc_kernels::cpu::simd;
use kfc_kernels::cuda::Arch;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Seconds that a launch takes without work: a step in a walk over a list.
const LAUNCH: f64 = 1e-7;

/// The same on a GPU, one kernel of a graph after the other: a guess, until kernels are timed.
const GPU_LAUNCH: f64 = 2e-6;

/// Seconds that a launch takes without work.
fn launch_seconds(machine: &Machine) -> f64 {
    if machine.is_gpu() { GPU_LAUNCH } else { LAUNCH }
}

/// Slices of the time that a job is timed for, each of a step at least.
const SLICES: u32 = 7;

/// Measurements of rates of which the best count.
const TRIES: usize = 4;

/// What a device can do at best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Floating-point operations a second of a large f32 product.
    pub flops_f32: f64,
    /// The same with bf16 operands.
    pub flops_16: f64,
    /// Bytes a second that a long sum reads and writes.
    pub bytes: f64,
}

/// How a predicted time was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// This work was timed on this machine.
    Calibrated,
    /// The operation was timed at other shapes; the roofline, times how far it stayed below it at similar amounts of work.
    Scaled,
    /// The roofline alone.
    Roofline,
}

impl Source {
    /// A word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Source::Calibrated => "calibrated",
            Source::Scaled => "scaled",
            Source::Roofline => "roofline",
        }
    }
}

/// The time of a kernel, and its work.
#[derive(Clone, Debug, PartialEq)]
struct Timed {
    op: String,
    ns: f64,
    /// Time over that of the roofline.
    ratio: f64,
}

impl Timed {
    /// Seconds that the roofline allows when a launch takes `launch`; 0 if its work is not counted.
    fn bound(&self, launch: f64) -> f64 {
        if self.ratio > 0.0 { (self.ns * 1e-9 - launch) / self.ratio } else { 0.0 }
    }
}

/// How far predicted times are from measured ones, relative to the measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Errors {
    /// Median over the kernels.
    pub median: f64,
    /// The same, each kernel weighted by its measured time.
    pub weighted: f64,
}

impl Errors {
    /// Of pairs of a predicted and a measured time; what took no time is left out.
    pub fn of(pairs: impl Iterator<Item = (f64, f64)>) -> Errors {
        let measured = pairs.filter(|(_, measured)| *measured > 0.0);
        let mut errors: Vec<(f64, f64)> = measured.map(|(p, m)| ((p / m - 1.0).abs(), m)).collect();
        errors.sort_by(|a, b| a.0.total_cmp(&b.0));
        let half = errors.iter().map(|(_, ms)| ms).sum::<f64>() / 2.0;
        let mut passed = 0.0;
        let weighted = errors.iter().find(|(_, ms)| {
            passed += ms;
            passed >= half
        });
        Errors {
            weighted: weighted.map_or(0.0, |(error, _)| *error),
            median: median(&mut errors.iter().map(|(error, _)| *error).collect::<Vec<_>>()).unwrap_or(0.0),
        }
    }
}

/// What a calibration was worth on steps that it was not made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Check {
    /// Steps taken.
    pub steps: usize,
    /// Errors of the kernels' mean times.
    pub errors: Errors,
}

/// What is known of a machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    machine: Machine,
    rates: Option<Rates>,
    /// What a GPU says of itself; it is never kept.
    stated: Option<Rates>,
    kernels: BTreeMap<String, Timed>,
}

/// Guesses for a machine that nobody measured: of a thread, from figures of recent server cores; of a GPU, what its maker
/// says it does at best (A100, H100 and B200 with HBM).
fn guess(machine: &Machine) -> Rates {
    if let Ok(arch) = machine.isa.parse::<Arch>() {
        let (f32, narrow, bytes) = match arch {
            Arch::Sm80 => (1.8e11, 2.9e12, 2.0e12),
            Arch::Sm90a => (5.1e11, 7.5e12, 3.35e12),
            Arch::Sm100a => (5.0e11, 1.5e13, 8.0e12),
        };
        let processors = machine.threads as f64;
        return Rates { flops_f32: f32 * processors, flops_16: narrow * processors, bytes };
    }
    let level = simd::Level::named(&machine.isa).unwrap_or(simd::Level::Portable);
    let (f32, narrow) = match level {
        simd::Level::Avx512Bf16 => (9e10, 1.7e11),
        simd::Level::Avx512 => (9e10, 9e10),
        simd::Level::Avx2 => (5e10, 5e10),
        simd::Level::NeonBf16 => (3e10, 8e10),
        simd::Level::Neon => (3e10, 3e10),
        simd::Level::Portable => (1e10, 1e10),
    };
    let threads = machine.threads as f64;
    Rates { flops_f32: f32 * threads, flops_16: narrow * threads, bytes: 1.5e10 * threads.min(8.0) }
}

impl Rates {
    /// As kept in files.
    pub fn to_json(&self) -> Value {
        json!({"flops_f32": self.flops_f32, "flops_16": self.flops_16, "bytes": self.bytes})
    }

    /// From what [`Rates::to_json`] gives; `None` if it is damaged.
    pub fn from_json(v: &Value) -> Option<Rates> {
        let positive = |name: &str| v[name].as_f64().filter(|x| x.is_finite() && *x > 0.0);
        Some(Rates {
            flops_f32: positive("flops_f32")?,
            flops_16: positive("flops_16")?,
            bytes: positive("bytes")?,
        })
    }

    /// The better of each: a limit is what was reached at best.
    fn best(self, other: Rates) -> Rates {
        Rates {
            flops_f32: self.flops_f32.max(other.flops_f32),
            flops_16: self.flops_16.max(other.flops_16),
            bytes: self.bytes.max(other.bytes),
        }
    }

    /// The least time that so much work can take.
    pub fn roofline(&self, cost: Cost, is_16_bit: bool) -> f64 {
        let flops = if is_16_bit { self.flops_16 } else { self.flops_f32 };
        (cost.flops as f64 / flops).max(cost.bytes as f64 / self.bytes)
    }
}

impl Calibration {
    /// Nothing known.
    pub fn empty(machine: Machine) -> Calibration {
        Calibration { machine, rates: None, stated: None, kernels: BTreeMap::new() }
    }

    /// The same with what a GPU says of itself, which counts where nothing was measured.
    pub fn with_stated(mut self, stated: Option<Rates>) -> Calibration {
        self.stated = stated;
        self
    }

    /// What was measured on a machine like this one; empty if nothing was, or it cannot be read.
    pub fn load(machine: &Machine) -> Calibration {
        let read = || from_json(&files::read_json(&file(machine)?).ok()?, machine);
        read().unwrap_or_else(|| Calibration::empty(machine.clone()))
    }

    /// Keeps what is known, beside what other jobs left meanwhile. Returns the file.
    ///
    /// # Errors
    /// If there is no place for it, or it cannot be written; the caller tells and goes on.
    pub fn save(&self) -> Result<PathBuf> {
        let Some(path) = file(&self.machine) else {
            return Err(crate::RunError::Failed(
                "no place for the calibration: neither XDG_CACHE_HOME nor HOME is set".into(),
            ));
        };
        let mut all = Calibration::load(&self.machine);
        all.rates = match (self.rates, all.rates) {
            (Some(now), Some(before)) => Some(now.best(before)),
            (now, before) => now.or(before),
        };
        all.kernels.extend(self.kernels.clone());
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| files::FileError::io("create", folder, e))?;
        }
        files::write_json(&path, &to_json(&all))?;
        Ok(path)
    }

    /// Whether the machine's rates were measured.
    pub fn is_measured(&self) -> bool {
        self.rates.is_some()
    }

    /// Whether nothing says how fast the machine is.
    pub fn is_guessed(&self) -> bool {
        self.rates.or(self.stated).is_none()
    }

    /// Kernels that were timed.
    pub fn kernels(&self) -> usize {
        self.kernels.len()
    }

    /// Rates, measured, as the device says, or guessed.
    pub fn rates(&self) -> Rates {
        self.rates.or(self.stated).unwrap_or_else(|| guess(&self.machine))
    }

    /// Where the rates are from, in a word: `measured`, `stated` by the device's clocks, or `guessed`.
    pub fn rates_are(&self) -> &'static str {
        match (self.rates, self.stated) {
            (Some(_), _) => "measured",
            (None, Some(_)) => "stated",
            (None, None) => "guessed",
        }
    }

    /// Seconds that a launch is expected to take.
    pub fn predict(&self, kind: &Kind) -> (f64, Source) {
        if let Some(t) = self.kernels.get(&kind.signature()) {
            return (t.ns * 1e-9, Source::Calibrated);
        }
        let rates = self.rates();
        let bound = rates.roofline(kind.cost, kind.is_16_bit());
        let launch = launch_seconds(&self.machine);
        match scaled(self.kernels.values().filter(|t| t.op == kind.op), bound, launch) {
            Some(seconds) => (seconds, Source::Scaled),
            None => (bound + launch, Source::Roofline),
        }
    }

    /// Median error of [`Source::Scaled`] predictions: of each kernel from the others of its operation. `None` if there are
    /// no others.
    pub fn scaled_error(&self) -> Option<f64> {
        let from_others = |(signature, t): (&String, &Timed)| {
            let others = self.kernels.iter().filter(|(s, o)| *s != signature && o.op == t.op);
            let launch = launch_seconds(&self.machine);
            let seconds = scaled(others.map(|(_, o)| o), t.bound(launch), launch)?;
            (t.ns > 0.0).then(|| (seconds * 1e9 / t.ns - 1.0).abs())
        };
        median(&mut self.kernels.iter().filter_map(from_others).collect::<Vec<_>>())
    }

    /// Measures the rates, each the best of a few tries: other programs only ever slow them. Takes a second or two.
    ///
    /// # Errors
    /// If an operation has no kernel.
    pub fn measure_rates(&mut self) -> Result<()> {
        for _ in 0..TRIES {
            let (wide, narrow) = (rates(DType::F32)?, rates(DType::Bf16)?);
            let now = Rates {
                flops_f32: wide.flops_per_s,
                flops_16: narrow.flops_per_s,
                bytes: wide.bytes_per_s.max(narrow.bytes_per_s),
            };
            self.rates = Some(self.rates.map_or(now, |before| now.best(before)));
        }
        Ok(())
    }

    /// The rates of a GPU, measured with kernels of ours. Takes seconds.
    ///
    /// # Errors
    /// If its kernels cannot be had, or memory does not suffice.
    pub fn of_device(gpu: &Arc<Gpu>) -> Result<Calibration> {
        let rates = Some(cuda::measure_rates(gpu)?);
        Ok(Calibration { rates, ..Calibration::empty(gpu.info.machine()) })
    }

    /// Times every kernel of a job where it runs: takes steps (whose results nobody keeps) for about `budget` after two of
    /// warm-up (`time_job`). The rates are measured before. Returns the number of steps.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn measure_job(&mut self, trainer: &mut Trainer, budget: Duration) -> Result<usize> {
        let (steps, times) = time_job(trainer, budget)?;
        let mut sums: BTreeMap<String, (Kind, f64, f64)> = BTreeMap::new();
        for t in times {
            let sum = sums.entry(t.kind.signature()).or_insert_with(|| (t.kind, 0.0, 0.0));
            *sum = (sum.0.clone(), sum.1 + t.ns * t.launches, sum.2 + t.launches);
        }
        let rates = self.rates();
        for (signature, (kind, ns, launches)) in sums {
            let ns = ns / launches.max(1.0);
            let bound = rates.roofline(kind.cost, kind.is_16_bit()) * 1e9;
            let launch = launch_seconds(&self.machine) * 1e9;
            let ratio = if bound > 0.0 { (ns - launch).max(0.0) / bound } else { 1.0 };
            self.kernels.insert(signature, Timed { op: kind.op, ns, ratio });
        }
        Ok(steps)
    }

    /// Takes steps as [`Calibration::measure_job`] does, but to compare times with what is predicted. A trainer of its own
    /// tells what predictions are worth in another run.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn check_job(&self, trainer: &mut Trainer, budget: Duration) -> Result<Check> {
        let (steps, times) = time_job(trainer, budget)?;
        let of_step = |t: &JobTime| (self.predict(&t.kind).0 * 1e9 * t.launches, t.ns * t.launches);
        Ok(Check { steps, errors: Errors::of(times.iter().map(of_step)) })
    }
}

/// How long a kernel of a job takes.
struct JobTime {
    kind: Kind,
    /// Launches a step.
    launches: f64,
    /// Nanoseconds of a launch.
    ns: f64,
}

/// Takes steps for about `budget`, in slices, and finds the time of each kernel: the median over the slices of its mean, so
/// that it is what runs report on average, less what other programs did meanwhile. Returns the number of steps, too.
fn time_job(trainer: &mut Trainer, budget: Duration) -> Result<(usize, Vec<JobTime>)> {
    for _ in 0..2 {
        trainer.step()?;
    }
    let mut steps = 0;
    let mut means: Vec<(JobTime, Vec<f64>)> = Vec::new();
    for _ in 0..SLICES {
        trainer.forget_times();
        let (start, mut taken) = (Instant::now(), 0);
        while taken == 0 || start.elapsed() < budget / SLICES {
            trainer.step()?;
            taken += 1;
        }
        steps += taken;
        let profile = trainer.profile();
        // The clock leaves out its own steps of warm-up, in each slice.
        let covered = profile.measured.as_ref().map_or(0, |m| m.steps).max(1) as f64;
        let times: Vec<JobTime> = profile.plans.iter().flat_map(|plan| job_times(plan, covered)).collect();
        for (i, time) in times.into_iter().enumerate() {
            let ns = time.ns;
            match means.get_mut(i) {
                Some((_, all)) => all.push(ns),
                None => means.push((time, vec![ns])),
            }
        }
    }
    let middle =
        |(time, mut all): (JobTime, Vec<f64>)| JobTime { ns: median(&mut all).unwrap_or(0.0), ..time };
    Ok((steps, means.into_iter().map(middle).collect()))
}

/// The time at `bound` seconds of the roofline, from times of the same operation: the share of the roofline that they
/// reach, the more like `bound` theirs is the more it counts. `None` if nothing is known.
fn scaled<'a>(known: impl Iterator<Item = &'a Timed>, bound: f64, launch: f64) -> Option<f64> {
    let (mut sum, mut weights) = (0.0, 0.0);
    for t in known.filter(|t| t.ratio > 0.0) {
        let distance = if bound > 0.0 { (bound / t.bound(launch)).ln().abs() } else { 0.0 };
        let weight = 1.0 / (0.1 + distance).powi(2);
        sum += weight * t.ratio.ln();
        weights += weight;
    }
    (weights > 0.0).then(|| bound * (sum / weights).exp() + launch)
}

/// Mean times of a plan's kernels over so many steps.
fn job_times(plan: &PlanProfile, steps: f64) -> Vec<JobTime> {
    let mut times: Vec<JobTime> =
        plan.kinds.iter().map(|kind| JobTime { kind: kind.clone(), launches: 0.0, ns: 0.0 }).collect();
    for l in &plan.launches {
        times[l.kind].launches += plan.runs_per_step as f64;
        times[l.kind].ns += l.ns as f64 / steps;
    }
    times.iter_mut().for_each(|t| t.ns /= t.launches.max(1.0));
    times
}

/// The middle value; the mean of the two middle ones of an even number.
pub fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let upper = *values.get(n / 2)?;
    Some(if n.is_multiple_of(2) { (values[n / 2 - 1] + upper) / 2.0 } else { upper })
}

/// Where caches go: `$XDG_CACHE_HOME/kfc`, or `~/.cache/kfc`.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    base.map(|b| b.join("kfc"))
}

fn file(machine: &Machine) -> Option<PathBuf> {
    cache_folder().map(|folder| folder.join(file_name(machine)))
}

fn file_name(Machine { cpu, isa, threads, version }: &Machine) -> String {
    let key = format!("{cpu}\n{isa}\n{threads}\n{version}");
    format!("calibration-{:016x}.json", xxh64(key.as_bytes()))
}

fn to_json(c: &Calibration) -> Value {
    let kernels: Map<String, Value> = c
        .kernels
        .iter()
        .map(|(signature, t)| (signature.clone(), json!({"op": t.op, "ns": t.ns, "ratio": t.ratio})))
        .collect();
    let rates = c.rates.map(|r| r.to_json());
    let m = &c.machine;
    json!({
        "cpu": m.cpu, "isa": m.isa, "threads": m.threads, "version": m.version, "rates": rates, "kernels": kernels,
    })
}

/// `None` if it is not of this machine (hashes may collide) or damaged.
fn from_json(v: &Value, machine: &Machine) -> Option<Calibration> {
    let same = v["cpu"] == machine.cpu.as_str()
        && v["isa"] == machine.isa.as_str()
        && v["threads"] == machine.threads
        && v["version"] == machine.version.as_str();
    if !same {
        return None;
    }
    let rates = match &v["rates"] {
        Value::Null => None,
        rates => Some(Rates::from_json(rates)?),
    };
    let timed = |(signature, t): (&String, &Value)| {
        let number = |name: &str| t[name].as_f64().filter(|x| x.is_finite() && *x >= 0.0);
        let timed = Timed { op: t["op"].as_str()?.into(), ns: number("ns")?, ratio: number("ratio")? };
        Some((signature.clone(), timed))
    };
    let kernels = v["kernels"].as_object()?.iter().map(timed).collect::<Option<_>>()?;
    Some(Calibration { machine: machine.clone(), rates, stated: None, kernels })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn kind(op: &str, flops: u64) -> Kind {
        Kind {
            op: op.into(),
            prim: false,
            attrs: String::new(),
            inputs: vec![format!("f32[{flops}]")],
            outputs: vec![],
            cost: Cost { flops, bytes: 8 },
        }
    }

    #[test]
    fn errors_are_of_the_middle_kernel_and_of_the_middle_millisecond() {
        let pairs = [(1.1, 1.0), (1.0, 1.0), (150.0, 100.0), (3.0, 0.0)];
        let errors = Errors::of(pairs.into_iter());
        assert!((errors.median - 0.1).abs() < 1e-9 && (errors.weighted - 0.5).abs() < 1e-9, "{errors:?}");
        assert_eq!(Errors::of([].into_iter()), Errors::default());
    }

    #[test]
    fn what_was_timed_is_predicted_as_timed_and_scales() {
        let mut c = Calibration::empty(Machine::this());
        let rates = Rates { flops_f32: 1e9, flops_16: 1e9, bytes: 1e9 };
        assert_eq!(c.predict(&kind("a", 1_000)).1, Source::Roofline);
        c.rates = Some(rates);
        c.kernels.insert(kind("a", 1_000).signature(), Timed { op: "a".into(), ns: 4_100.0, ratio: 4.0 });
        let (seconds, source) = c.predict(&kind("a", 1_000));
        assert!((seconds - 4.1e-6).abs() < 1e-12 && source == Source::Calibrated);
        let (seconds, source) = c.predict(&kind("a", 2_000));
        assert!((seconds - 8e-6 - LAUNCH).abs() < 1e-12 && source == Source::Scaled);
        // Of two shapes the nearer one counts more.
        c.kernels.insert("big".into(), Timed { op: "a".into(), ns: 1_000_100.0, ratio: 1.0 });
        assert!(c.predict(&kind("a", 1_500)).0 > 1.5e-6 * 3.5);
        assert!(c.predict(&kind("a", 900_000)).0 < 9e-4 * 1.1);
        assert!(c.scaled_error().unwrap() > 0.5);
        let (seconds, source) = c.predict(&kind("b", 2_000));
        assert!((seconds - 2e-6 - LAUNCH).abs() < 1e-12 && source == Source::Roofline);
        assert_eq!(from_json(&to_json(&c), &c.machine).unwrap(), c);
        let other = |change: fn(&mut Machine)| {
            let mut machine = c.machine.clone();
            change(&mut machine);
            machine
        };
        for other in [other(|m| m.threads = 99), other(|m| m.isa = "none".into())] {
            assert!(from_json(&to_json(&c), &other).is_none());
            assert_ne!(file_name(&other), file_name(&c.machine));
        }
        assert!(from_json(&json!({"cpu": 1}), &c.machine).is_none());
    }
}
