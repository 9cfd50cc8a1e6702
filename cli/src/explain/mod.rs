//! What a step consists of, where its time and memory go, and why: the analysis behind `kfc explain`.
//!
//! A [`Profile`] says what there is, a [`Calibration`] how long it should take. Times are milliseconds a step and bytes are
//! bytes, unless a name says otherwise. A kernel is a kind of launch in one plan.

pub(crate) mod draw;
pub(crate) mod json;
mod memory;
pub(crate) mod page;
mod places;
pub(crate) mod text;
pub(crate) mod tuned;
mod why;

pub(crate) use memory::PlanMemory;
pub use places::{Part, Place};

use kfc_graph::Phase;
use kfc_runtime::calibration::{Calibration, Errors, Source};
use kfc_runtime::profile::{Kind, PlanProfile, Profile};
use kfc_runtime::tuning::device::DeviceTuning;
use kfc_runtime::tuning::{PlanEntry, Tuning};
use std::collections::{BTreeMap, BTreeSet};

/// Everything that is said of a step.
pub(crate) struct Explanation<'a> {
    pub(crate) profile: &'a Profile,
    pub(crate) calibration: &'a Calibration,
    pub(crate) tuning: &'a Tuning,
    /// What was found on the GPU that it is of, if it is one.
    pub(crate) device: Option<DeviceTuning>,
    /// Plans that were timed for the job, if it is one.
    pub(crate) plan: Option<&'a PlanEntry>,
    /// Kernels, those that take the most time first.
    pub(crate) kernels: Vec<Kernel<'a>>,
    /// Predicted time of a step's kernels.
    pub(crate) predicted_ms: f64,
    pub(crate) measured: Option<MeasuredStep>,
    /// Time of each phase: name, predicted, measured.
    pub(crate) phases: Vec<Total>,
    /// Time of each part of the model, the longest first.
    pub(crate) places: Vec<Total>,
    /// One a plan.
    pub(crate) memory: Vec<PlanMemory>,
}

/// Measured times of a step.
pub(crate) struct MeasuredStep {
    /// Wall time, with what happens between steps.
    pub(crate) step_ms: f64,
    /// In kernels.
    pub(crate) kernel_ms: f64,
    /// On the host, by name.
    pub(crate) host: Vec<(String, f64)>,
    /// Share of the wall time that kernels and named host work explain.
    pub(crate) attributed: f64,
    /// Median over the kernels of the relative error of the predicted time.
    pub(crate) median_error: f64,
    /// The same, each kernel weighted by its time.
    pub(crate) weighted_error: f64,
}

/// A kind of launch with its times.
pub(crate) struct Kernel<'a> {
    pub(crate) plan: &'a PlanProfile,
    pub(crate) kind: &'a Kind,
    /// Keys of a GPU's kernels.
    pub(crate) programs: &'a [String],
    /// A step.
    pub(crate) launches: usize,
    pub(crate) flops: f64,
    pub(crate) bytes: f64,
    pub(crate) predicted_ms: f64,
    pub(crate) source: Source,
    pub(crate) measured_ms: Option<f64>,
    /// The least time that its work can take at the device's rates.
    pub(crate) bound_ms: f64,
    /// Whether arithmetic bounds it, not memory.
    pub(crate) arithmetic: bool,
    pub(crate) phases: BTreeSet<Phase>,
    pub(crate) places: BTreeSet<Place>,
    /// Bytes of results that wait for the backward pass.
    pub(crate) saved_bytes: usize,
    /// Bytes of results that took over an operand's place.
    pub(crate) inplace_bytes: usize,
}

impl Kernel<'_> {
    /// Measured if it was, else predicted.
    pub(crate) fn ms(&self) -> f64 {
        self.measured_ms.unwrap_or(self.predicted_ms)
    }

    /// Share of the roofline that it reaches; above 1 if caches hold its operands.
    pub(crate) fn roofline(&self) -> f64 {
        if self.ms() > 0.0 { self.bound_ms / self.ms() } else { 0.0 }
    }

    /// Rates reached, in 10⁹ a second.
    pub(crate) fn gflops(&self) -> f64 {
        if self.ms() > 0.0 { self.flops / self.ms() * 1e-6 } else { 0.0 }
    }

    /// As [`Kernel::gflops`].
    pub(crate) fn gbytes(&self) -> f64 {
        if self.ms() > 0.0 { self.bytes / self.ms() * 1e-6 } else { 0.0 }
    }

    /// The operation with its first operand that is no scalar, and its first result.
    pub(crate) fn label(&self) -> String {
        let operand = self.kind.inputs.iter().find(|t| t.contains(',')).or(self.kind.inputs.first());
        let ends = [operand, self.kind.outputs.first()];
        let types: Vec<&str> = ends.into_iter().flatten().map(String::as_str).collect();
        format!("{} {}", self.kind.op, types.join(" → "))
    }

    /// Why it is fused, saved, in place.
    pub(crate) fn why(&self) -> Vec<String> {
        let mut why = vec![why::fused(self.kind).to_string()];
        if self.phases.contains(&Phase::Recompute) {
            why.push("made again in the backward pass, as train.recompute or the budget asks".into());
        }
        if self.saved_bytes > 0 {
            why.push(format!(
                "{} kept for the backward pass",
                crate::config::format_bytes(self.saved_bytes as u64)
            ));
        }
        if self.inplace_bytes > 0 {
            let bytes = crate::config::format_bytes(self.inplace_bytes as u64);
            why.push(format!("{bytes} written where an operand was that nobody reads again"));
        }
        why
    }
}

/// A sum over kernels.
pub(crate) struct Total {
    pub(crate) name: String,
    pub(crate) launches: usize,
    pub(crate) flops: f64,
    pub(crate) predicted_ms: f64,
    pub(crate) measured_ms: Option<f64>,
}

impl<'a> Explanation<'a> {
    /// Puts everything together.
    pub(crate) fn new(
        profile: &'a Profile,
        calibration: &'a Calibration,
        tuning: &'a Tuning,
    ) -> Explanation<'a> {
        let mut kernels: Vec<Kernel<'a>> = Vec::new();
        let (mut phases, mut places) = (BTreeMap::new(), BTreeMap::new());
        for plan in &profile.plans {
            let kinds = kernels_of(profile, plan, calibration);
            for l in &plan.launches {
                let kernel = &kinds[l.kind];
                let share = plan.runs_per_step as f64 / kernel.launches.max(1) as f64;
                let measured = profile.measured.as_ref().map(|m| l.ns as f64 * 1e-6 / m.steps as f64);
                let amount = Amount { runs: plan.runs_per_step, share, measured, kernel };
                amount.add(phases.entry(l.phase).or_default());
                amount.add(places.entry(Place::of(&kernel.kind.op, &l.scope, l.phase)).or_default());
            }
            kernels.extend(kinds);
        }
        kernels.sort_by(|a, b| b.ms().total_cmp(&a.ms()));
        let predicted_ms = kernels.iter().map(|k| k.predicted_ms).sum();
        let measured = measured(profile, &kernels);
        let phases =
            phases.into_iter().map(|(p, sum): (Phase, Sum)| sum.total(p.name().into(), profile)).collect();
        let mut places: Vec<Total> =
            places.into_iter().map(|(p, sum): (Place, Sum)| sum.total(p.name(), profile)).collect();
        places.sort_by(|a, b| b.ms().total_cmp(&a.ms()));
        let memory = profile.plans.iter().map(PlanMemory::of).collect();
        let device = profile.machine.is_gpu().then(|| DeviceTuning::load(&profile.machine));
        let plan = None;
        Explanation {
            profile,
            calibration,
            tuning,
            device,
            plan,
            kernels,
            predicted_ms,
            measured,
            phases,
            places,
            memory,
        }
    }

    /// Time of a step: measured, or that of its kernels as predicted.
    pub(crate) fn step_ms(&self) -> f64 {
        self.measured.as_ref().map_or(self.predicted_ms, |m| m.step_ms)
    }

    /// Milliseconds of each launch of a plan in one run: measured, or predicted.
    pub(crate) fn launch_ms(&self, plan: &PlanProfile) -> Vec<f64> {
        let one = |l: &kfc_runtime::profile::Launch| match &self.profile.measured {
            Some(m) => l.ns as f64 * 1e-6 / (m.steps as f64 * plan.runs_per_step.max(1) as f64),
            None => self.calibration.predict(&plan.kinds[l.kind]).0 * 1e3,
        };
        plan.launches.iter().map(one).collect()
    }

    /// What a reader should know of the predictions.
    pub(crate) fn note(&self) -> String {
        let covered = self.kernels.iter().filter(|k| k.source == Source::Calibrated).count();
        let all = self.kernels.len();
        let gpu = self.profile.machine.is_gpu();
        if gpu && !self.calibration.is_measured() {
            let from = match self.calibration.rates_are() {
                "stated" => "computed from the device's clocks, multiprocessors and bus",
                _ => "guesses from the device's generation",
            };
            format!(
                "not calibrated: limits are {from}, times the roofline's; `kfc tune CONFIG.toml --calibrate --device \
                 cuda` measures them"
            )
        } else if !self.calibration.is_measured() {
            "not calibrated: predicted times are guesses from the kind of CPU; `kfc tune CONFIG.toml --calibrate` measures it"
                .into()
        } else if covered < all {
            format!(
                "{covered} of {all} kernels are calibrated, the others are scaled from their kind or the roofline; \
                 `kfc tune CONFIG.toml --calibrate` measures them"
            )
        } else {
            format!("all {all} kernels are calibrated")
        }
    }
}

impl Total {
    /// Measured if it was, else predicted.
    pub(crate) fn ms(&self) -> f64 {
        self.measured_ms.unwrap_or(self.predicted_ms)
    }
}

/// Launches added up.
#[derive(Default)]
struct Sum {
    launches: usize,
    flops: f64,
    predicted_ms: f64,
    measured_ms: f64,
}

impl Sum {
    fn total(self, name: String, profile: &Profile) -> Total {
        Total {
            name,
            launches: self.launches,
            flops: self.flops,
            predicted_ms: self.predicted_ms,
            measured_ms: profile.measured.is_some().then_some(self.measured_ms),
        }
    }
}

/// One launch's part of its kernel.
struct Amount<'k, 'a> {
    runs: usize,
    share: f64,
    measured: Option<f64>,
    kernel: &'k Kernel<'a>,
}

impl Amount<'_, '_> {
    fn add(&self, sum: &mut Sum) {
        sum.launches += self.runs;
        sum.flops += self.kernel.flops * self.share;
        sum.predicted_ms += self.kernel.predicted_ms * self.share;
        sum.measured_ms += self.measured.unwrap_or(0.0);
    }
}

/// The kernels of a plan, in order of its kinds.
fn kernels_of<'a>(profile: &Profile, plan: &'a PlanProfile, calibration: &Calibration) -> Vec<Kernel<'a>> {
    let rates = calibration.rates();
    let mut kernels: Vec<Kernel<'a>> = plan
        .kinds
        .iter()
        .enumerate()
        .map(|(i, kind)| {
            let (predicted, source) = calibration.predict(kind);
            let flops = if kind.is_16_bit() { rates.flops_16 } else { rates.flops_f32 };
            Kernel {
                plan,
                kind,
                programs: plan.programs.get(i).map_or(&[], Vec::as_slice),
                launches: 0,
                flops: 0.0,
                bytes: 0.0,
                predicted_ms: predicted * 1e3,
                source,
                measured_ms: None,
                bound_ms: rates.roofline(kind.cost, kind.is_16_bit()) * 1e3,
                arithmetic: kind.cost.flops as f64 / flops > kind.cost.bytes as f64 / rates.bytes,
                phases: BTreeSet::new(),
                places: BTreeSet::new(),
                saved_bytes: 0,
                inplace_bytes: 0,
            }
        })
        .collect();
    let steps = profile.measured.as_ref().map(|m| m.steps as f64);
    for l in &plan.launches {
        let k = &mut kernels[l.kind];
        k.launches += plan.runs_per_step;
        k.phases.insert(l.phase);
        k.places.insert(Place::of(&k.kind.op, &l.scope, l.phase));
        k.inplace_bytes += l.inplace_bytes;
        if let Some(steps) = steps {
            *k.measured_ms.get_or_insert(0.0) += l.ns as f64 * 1e-6 / steps;
        }
    }
    for b in plan.blocks.iter().filter(|b| memory::is_saved(plan, b)) {
        kernels[plan.launches[b.first].kind].saved_bytes += b.bytes;
    }
    for k in &mut kernels {
        let n = k.launches as f64;
        k.flops = k.kind.cost.flops as f64 * n;
        k.bytes = k.kind.cost.bytes as f64 * n;
        k.predicted_ms *= n;
        k.bound_ms *= n;
    }
    kernels
}

fn measured(profile: &Profile, kernels: &[Kernel<'_>]) -> Option<MeasuredStep> {
    let m = profile.measured.as_ref()?;
    let per_step = |ns: u64| ns as f64 * 1e-6 / m.steps as f64;
    let kernel_ms: f64 = kernels.iter().filter_map(|k| k.measured_ms).sum();
    let host: Vec<(String, f64)> = m.host.iter().map(|(what, ns)| (what.clone(), per_step(*ns))).collect();
    let step_ms = per_step(m.wall_ns);
    let explained = kernel_ms + host.iter().map(|(_, ms)| ms).sum::<f64>();
    let pairs = kernels.iter().filter_map(|k| k.measured_ms.map(|ms| (k.predicted_ms, ms)));
    let errors = Errors::of(pairs);
    Some(MeasuredStep {
        step_ms,
        kernel_ms,
        host,
        attributed: if step_ms > 0.0 { explained / step_ms } else { 0.0 },
        median_error: errors.median,
        weighted_error: errors.weighted,
    })
}
