//! Whether a job fits the memory of this machine or its GPU, what the limit is, and what would make it fit.

use crate::commands::explain::rows;
use crate::config::format_bytes;
use kfc_runtime::config::{JobConfig, RecomputePolicy};
use kfc_runtime::device::Device;
use kfc_runtime::device::cuda::Gpu;
use kfc_runtime::machine::Memory;
use kfc_runtime::memory;
use kfc_runtime::profile::Profile;
use kfc_runtime::train::setup::{self, Target};

/// The verdict.
pub(crate) struct Fit {
    pub(crate) profile: Profile,
    /// Bytes that the run may take.
    pub(crate) limit: u64,
    /// What sets the limit.
    pub(crate) limited_by: &'static str,
    /// What to change, best first; empty if it fits.
    pub(crate) advice: Vec<String>,
}

impl Fit {
    /// Whether the predicted peak is within the limit.
    pub(crate) fn fits(&self) -> bool {
        self.profile.predicted_peak() <= self.limit
    }
}

/// Plans the job without loading its weights.
///
/// # Errors
/// If anything that the job names is missing or does not fit together.
pub(crate) fn check(job: &JobConfig, device: &Device, memory: Memory) -> anyhow::Result<Fit> {
    // What this process held when `memory` was looked at is not free, but the job's.
    let here = memory::resident();
    let (seq, before) = rows(job)?;
    let target = Target::of(device, before)?;
    let (mut limit, mut limited_by) = match (device, memory.group) {
        (Device::Cuda { index, .. }, _) => (Gpu::open(*index)?.free_memory()?.0, "the device's free memory"),
        (Device::Cpu, Some((_, left))) if left <= memory.available => {
            (left.saturating_add(here), "the control group of this process")
        }
        (Device::Cpu, _) => (memory.available.saturating_add(here), "the machine's free memory"),
    };
    if let Some(budget) = job.train.mem_budget.filter(|b| *b < limit) {
        (limit, limited_by) = (budget, "train.mem_budget");
    }
    // A budget that nothing fits into is what this is to say, and no error.
    let profile = setup::predict(job, seq, &target)
        .or_else(|_| setup::predict(&with_budget(job, None), seq, &target))?;
    let mut fit = Fit { profile, limit, limited_by, advice: Vec::new() };
    if !fit.fits() {
        fit.advice = advice(job, seq, &target, &fit);
    }
    Ok(fit)
}

fn with_budget(job: &JobConfig, budget: Option<u64>) -> JobConfig {
    let mut job = job.clone();
    job.train.mem_budget = budget;
    job
}

fn advice(job: &JobConfig, seq: usize, target: &Target, fit: &Fit) -> Vec<String> {
    let mut advice = Vec::new();
    // The peak of a changed job, if it fits the limit.
    let fits = |job: &JobConfig| {
        let peak = setup::predict(&with_budget(job, Some(fit.limit)), seq, target).ok()?.predicted_peak();
        (peak <= fit.limit).then(|| format_bytes(peak))
    };
    let mut recomputing = job.clone();
    recomputing.train.recompute = RecomputePolicy::Auto;
    let recomputed = fits(&recomputing);
    if let Some(peak) = &recomputed {
        let mib = fit.limit >> 20;
        advice.push(format!(
            "train.mem_budget = \"{mib}MiB\" with train.recompute = \"auto\": the same step in {peak}, part of it computed twice"
        ));
    }
    let mut smaller = job.clone();
    while smaller.train.batch > 1 {
        smaller.train.batch = smaller.train.batch.div_ceil(2);
        if let Some(peak) = fits(&smaller) {
            let micro = (job.train.batch * job.train.accumulation).div_ceil(smaller.train.batch);
            advice.push(format!(
                "train.batch = {} with train.accumulation = {micro}: as many rows a step in {peak}",
                smaller.train.batch
            ));
            break;
        }
    }
    let bytes = |what: &str| {
        fit.profile.account.iter().filter(|(name, _)| name == what).map(|(_, bytes)| *bytes).sum::<u64>()
    };
    if advice.is_empty() && seq > 1 {
        advice.push(format!("a data.seq_len below {seq} with train.batch = 1: activations shrink with it"));
    }
    if bytes("teacher weights") > 0 {
        advice.push(format!(
            "an offline teacher: `kfc teach JOB.toml --out cache`, then distill.teacher = \"cache\", saves {} of weights",
            format_bytes(bytes("teacher weights"))
        ));
    }
    let states = bytes("f32 masters") + bytes("optimiser moments") + bytes("gradient accumulators");
    if job.lora.is_none() {
        advice.push(format!("[lora] instead of full fine-tuning: saves most of {}", format_bytes(states)));
    }
    if fit.profile.model.contains(" in f32") {
        advice.push("model.dtype = \"bf16\": halves weights and activations".into());
    }
    if fit.limited_by == "train.mem_budget" {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let all = mib(fit.profile.predicted_peak());
        let smallest = setup::budgets(&recomputing, seq, target).ok().and_then(|b| b.smallest()).map(mib);
        match smallest.filter(|s| *s < all) {
            Some(s) => advice.push(format!(
                "train.mem_budget = \"{s}MiB\" or more with train.recompute = \"auto\"; from {all} MiB on, as it is"
            )),
            None => advice.push(format!("train.mem_budget = \"{all}MiB\" or more")),
        }
    }
    advice
}
