//! `kfc bench`: training steps of known shape, timed. The criterion benches use the same workloads.

pub mod temp;
pub mod workloads;

use crate::progress::Progress;
use kfc_graph::DType;
use kfc_runtime::memory;
use temp::TempFolder;
use workloads::Workload;

/// Steps before the clock starts, and timed ones.
const WARM_UP: usize = 2;
const STEPS: usize = 5;

/// What a workload came to.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Tokens a second at the median step.
    pub tokens_per_s: f64,
    /// The median step, milliseconds.
    pub step_ms: f64,
    /// Peak resident memory, bytes.
    pub peak_bytes: u64,
    /// What was predicted of it.
    pub predicted_peak_bytes: u64,
    /// Loss of every step, warm-up included.
    pub losses: Vec<f64>,
}

/// Runs a workload on random weights and tokens.
///
/// # Errors
/// If files cannot be written, the budget is too small, or a step fails.
pub fn run(
    workload: &Workload,
    dtype: DType,
    budget: Option<u64>,
    progress: &mut Progress,
) -> anyhow::Result<Timing> {
    let folder = TempFolder::new(workload.name)?;
    let mut trainer = workload.trainer(&folder, dtype, budget)?;
    let (mut times, mut losses) = (Vec::new(), Vec::new());
    for step in 0..WARM_UP + STEPS {
        let m = trainer.step()?;
        progress.step(step + 1, m.loss, m.tokens_per_s);
        losses.push(m.loss);
        if step >= WARM_UP {
            times.push(m.step_ms);
        }
    }
    times.sort_by(f64::total_cmp);
    let step_ms = times[times.len() / 2];
    Ok(Timing {
        tokens_per_s: workload.tokens() as f64 / step_ms * 1e3,
        step_ms,
        peak_bytes: memory::peak_resident(),
        predicted_peak_bytes: trainer.account().total(),
        losses,
    })
}

/// Steps of one run, for a progress display.
pub const fn steps() -> usize {
    WARM_UP + STEPS
}
