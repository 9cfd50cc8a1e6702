//! How fast this machine is: rates for predictions, and measured times of kernels.
//!
//! A calibration belongs to a CPU, a number of threads and a version of kfc, and is kept in a file named after the hash of
//! the three. Times are kept by signature of the work, so that jobs share them. Nothing here ever fails a run: without a
//! file, or with a damaged one, predictions are rough.

use crate::Result;
use crate::files::{self, xxh64};
use crate::profile::{Kind, Machine, PlanProfile};
use crate::train::Trainer;
use kfc_graph::{Cost, DType};
use kfc_kernels::calibrate::rates;
use kfc_kernels::cpu::simd;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Seconds that a launch takes without work: a step in a walk over a list.
const LAUNCH: f64 = 1e-7;

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
    /// The operation was timed at other shapes; the roofline, times how far it stayed below it there.
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

/// What is known of a machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    machine: Machine,
    rates: Option<Rates>,
    kernels: BTreeMap<String, Timed>,
}

/// Guesses for a machine that nobody measured, a thread: from figures of recent server cores.
fn guess(threads: usize) -> Rates {
    let (f32, narrow) = match simd::level() {
        simd::Level::Avx512Bf16 => (9e10, 1.7e11),
        simd::Level::Avx512 => (9e10, 9e10),
        simd::Level::Avx2 => (5e10, 5e10),
        simd::Level::Portable => (1e10, 1e10),
    };
    let threads = threads as f64;
    Rates { flops_f32: f32 * threads, flops_16: narrow * threads, bytes: 1.5e10 * threads.min(8.0) }
}

impl Rates {
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
        Calibration { machine, rates: None, kernels: BTreeMap::new() }
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

    /// Kernels that were timed.
    pub fn kernels(&self) -> usize {
        self.kernels.len()
    }

    /// Rates, measured or guessed.
    pub fn rates(&self) -> Rates {
        self.rates.unwrap_or_else(|| guess(self.machine.threads))
    }

    /// Seconds that a launch is expected to take.
    pub fn predict(&self, kind: &Kind) -> (f64, Source) {
        if let Some(t) = self.kernels.get(&kind.signature()) {
            return (t.ns * 1e-9, Source::Calibrated);
        }
        let rates = self.rates();
        let bound = rates.roofline(kind.cost, kind.is_16_bit());
        let mut ratios: Vec<f64> =
            self.kernels.values().filter(|t| t.op == kind.op).map(|t| t.ratio).collect();
        match median(&mut ratios) {
            Some(ratio) => (bound * ratio + LAUNCH, Source::Scaled),
            None => (bound + LAUNCH, Source::Roofline),
        }
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

    /// Times every kernel of a job where it runs: takes steps (whose results nobody keeps) for about `budget` after two of
    /// warm-up, at least five, and keeps of each kernel the median over the steps of its mean time in a step. Measures the
    /// rates before. Returns the number of steps.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn measure_job(&mut self, trainer: &mut Trainer, budget: Duration) -> Result<usize> {
        self.measure_rates()?;
        for _ in 0..2 {
            trainer.step()?;
        }
        let start = Instant::now();
        let mut samples: BTreeMap<String, (Kind, Vec<f64>)> = BTreeMap::new();
        let mut steps = 0;
        while steps < 5 || (start.elapsed() < budget && steps < 200) {
            trainer.forget_times();
            trainer.step()?;
            for plan in &trainer.profile().plans {
                add_samples(plan, &mut samples);
            }
            steps += 1;
        }
        let rates = self.rates();
        for (signature, (kind, mut ns)) in samples {
            let Some(ns) = median(&mut ns) else { continue };
            let bound = rates.roofline(kind.cost, kind.is_16_bit()) * 1e9;
            let ratio = if bound > 0.0 { (ns - LAUNCH * 1e9).max(0.0) / bound } else { 1.0 };
            self.kernels.insert(signature, Timed { op: kind.op, ns, ratio });
        }
        Ok(steps)
    }
}

/// Mean nanoseconds of a launch of each kind in one step.
fn add_samples(plan: &PlanProfile, samples: &mut BTreeMap<String, (Kind, Vec<f64>)>) {
    let mut sums = vec![(0u64, 0u64); plan.kinds.len()];
    for l in &plan.launches {
        sums[l.kind].0 += l.ns;
        sums[l.kind].1 += plan.runs_per_step as u64;
    }
    for (kind, (ns, launches)) in plan.kinds.iter().zip(sums) {
        let entry = samples.entry(kind.signature()).or_insert_with(|| (kind.clone(), Vec::new()));
        entry.1.push(ns as f64 / launches.max(1) as f64);
    }
}

/// The middle value; the mean of the two middle ones of an even number.
pub fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let upper = *values.get(n / 2)?;
    Some(if n.is_multiple_of(2) { (values[n / 2 - 1] + upper) / 2.0 } else { upper })
}

/// Where caches go: `$XDG_CACHE_HOME/kfc`, or `~/.cache/kfc`.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    base.map(|b| b.join("kfc"))
}

fn file(machine: &Machine) -> Option<PathBuf> {
    let key = format!("{}\n{}\n{}", machine.cpu, machine.threads, machine.version);
    let name = format!("calibration-{:016x}.json", xxh64(key.as_bytes()));
    cache_folder().map(|folder| folder.join(Path::new(&name)))
}

fn to_json(c: &Calibration) -> Value {
    let kernels: Map<String, Value> = c
        .kernels
        .iter()
        .map(|(signature, t)| (signature.clone(), json!({"op": t.op, "ns": t.ns, "ratio": t.ratio})))
        .collect();
    let rates = c.rates.map(|r| json!({"flops_f32": r.flops_f32, "flops_16": r.flops_16, "bytes": r.bytes}));
    let m = &c.machine;
    json!({"cpu": m.cpu, "threads": m.threads, "version": m.version, "rates": rates, "kernels": kernels})
}

/// `None` if it is not of this machine (hashes may collide) or damaged.
fn from_json(v: &Value, machine: &Machine) -> Option<Calibration> {
    let same = v["cpu"] == machine.cpu.as_str()
        && v["threads"] == machine.threads
        && v["version"] == machine.version.as_str();
    if !same {
        return None;
    }
    let positive = |v: &Value| v.as_f64().filter(|x| x.is_finite() && *x > 0.0);
    let r = &v["rates"];
    let rates = match r {
        Value::Null => None,
        _ => Some(Rates {
            flops_f32: positive(&r["flops_f32"])?,
            flops_16: positive(&r["flops_16"])?,
            bytes: positive(&r["bytes"])?,
        }),
    };
    let timed = |(signature, t): (&String, &Value)| {
        let number = |name: &str| t[name].as_f64().filter(|x| x.is_finite() && *x >= 0.0);
        let timed = Timed { op: t["op"].as_str()?.into(), ns: number("ns")?, ratio: number("ratio")? };
        Some((signature.clone(), timed))
    };
    let kernels = v["kernels"].as_object()?.iter().map(timed).collect::<Option<_>>()?;
    Some(Calibration { machine: machine.clone(), rates, kernels })
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
    fn what_was_timed_is_predicted_as_timed_and_scales() {
        let mut c = Calibration::empty(Machine::this());
        let rates = Rates { flops_f32: 1e9, flops_16: 1e9, bytes: 1e9 };
        assert_eq!(c.predict(&kind("a", 1_000)).1, Source::Roofline);
        c.rates = Some(rates);
        c.kernels.insert(kind("a", 1_000).signature(), Timed { op: "a".into(), ns: 4_000.0, ratio: 4.0 });
        let (seconds, source) = c.predict(&kind("a", 1_000));
        assert!((seconds - 4e-6).abs() < 1e-12 && source == Source::Calibrated);
        let (seconds, source) = c.predict(&kind("a", 2_000));
        assert!((seconds - 8e-6 - LAUNCH).abs() < 1e-12 && source == Source::Scaled);
        let (seconds, source) = c.predict(&kind("b", 2_000));
        assert!((seconds - 2e-6 - LAUNCH).abs() < 1e-12 && source == Source::Roofline);
        assert_eq!(from_json(&to_json(&c), &c.machine).unwrap(), c);
        let other = Machine { threads: 99, ..c.machine.clone() };
        assert!(from_json(&to_json(&c), &other).is_none());
        assert!(from_json(&json!({"cpu": 1}), &c.machine).is_none());
    }
}
