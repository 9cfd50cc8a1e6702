//! Whether a job fits this machine's memory, what the limit is, and what would make it fit.

use crate::commands::explain::rows;
use crate::config::format_bytes;
use kfc_runtime::config::JobConfig;
use kfc_runtime::machine::Memory;
use kfc_runtime::profile::Profile;
use kfc_runtime::train::setup;

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
pub(crate) fn check(job: &JobConfig, memory: Memory) -> anyhow::Result<Fit> {
    let (seq, before) = rows(job)?;
    let profile = setup::predict(job, seq, before)?;
    let (mut limit, mut limited_by) = match memory.group {
        Some((_, left)) if left <= memory.available => (left, "the control group of this process"),
        _ => (memory.available, "the machine's free memory"),
    };
    // The rows are in memory already.
    limit = limit.saturating_add(before);
    if let Some(budget) = job.train.mem_budget.filter(|b| *b < limit) {
        (limit, limited_by) = (budget, "train.mem_budget");
    }
    let mut fit = Fit { profile, limit, limited_by, advice: Vec::new() };
    if !fit.fits() {
        fit.advice = advice(job, seq, before, &fit)?;
    }
    Ok(fit)
}

fn advice(job: &JobConfig, seq: usize, before: u64, fit: &Fit) -> anyhow::Result<Vec<String>> {
    let mut advice = Vec::new();
    let mut smaller = job.clone();
    while smaller.train.batch > 1 {
        smaller.train.batch = smaller.train.batch.div_ceil(2);
        let peak = setup::predict(&smaller, seq, before)?.predicted_peak();
        if peak <= fit.limit {
            let micro = (job.train.batch * job.train.accumulation).div_ceil(smaller.train.batch);
            advice.push(format!(
                "train.batch = {} with train.accumulation = {micro}: the same step in {}",
                smaller.train.batch,
                format_bytes(peak)
            ));
            break;
        }
    }
    let bytes = |what: &str| {
        fit.profile.account.iter().filter(|(name, _)| name == what).map(|(_, bytes)| *bytes).sum::<u64>()
    };
    let arena = bytes("activations (arena)");
    if advice.is_empty() && seq > 1 && fit.profile.predicted_peak() - arena < fit.limit {
        let room = (fit.limit - (fit.profile.predicted_peak() - arena)) as f64 / arena.max(1) as f64;
        // The smallest batch takes this share of the arena, and activations grow with the row at least in proportion.
        let share = 1.0 / job.train.batch.max(1) as f64;
        let shorter = ((seq as f64 * room / share) as usize).min(seq / 2).max(1);
        advice.push(format!("data.seq_len = {shorter} or less with train.batch = 1: rows have {seq} tokens now"));
    }
    if bytes("teacher weights") > 0 {
        advice.push(format!(
            "an offline teacher: `kfc teach JOB.toml --out cache`, then distill.teacher = \"cache\", saves {} of weights",
            format_bytes(bytes("teacher weights"))
        ));
    }
    if bytes("f32 masters") + bytes("optimiser moments") > fit.limit / 4 && job.lora.is_none() {
        let saved = bytes("f32 masters") + bytes("optimiser moments") + bytes("gradient accumulators");
        advice.push(format!("[lora] instead of full fine-tuning: saves most of {}", format_bytes(saved)));
    }
    if fit.profile.model.contains(" in f32") {
        advice.push("model.dtype = \"bf16\": halves weights and activations".into());
    }
    if fit.limited_by == "train.mem_budget" {
        let mib = fit.profile.predicted_peak().div_ceil(1 << 20);
        advice.push(format!("train.mem_budget = \"{mib}MiB\" or more"));
    }
    Ok(advice)
}
