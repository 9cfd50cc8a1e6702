//! `kfc bench`: training steps of known shape, timed, and generation. The criterion benches use the same workloads.

pub mod device_kernel;
pub mod generate;
pub mod kernel;
mod sampled;
pub mod temp;
pub mod workloads;

use crate::config;
use crate::progress::Progress;
use crate::run_dir::write_atomically;
use anyhow::Context;
use kfc_graph::DType;
use kfc_runtime::config::JobConfig;
use kfc_runtime::device::Device;
use kfc_runtime::error::RunError;
use std::path::Path;
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
    /// From opening the files, which are there, to the end of the first step, milliseconds.
    pub cold_start_ms: f64,
    /// The first step alone.
    pub first_step_ms: f64,
    /// Most memory held, bytes: resident, or on the device.
    pub peak_bytes: u64,
    /// What was predicted of it.
    pub predicted_peak_bytes: u64,
    /// Loss of every step, warm-up included.
    pub losses: Vec<f64>,
}

/// Runs a workload on random weights and tokens. Everything that it runs on, its job and the adapter that it starts from
/// stay in the folder `keep`, if that is given.
///
/// # Errors
/// If files cannot be written, the budget is too small, or a step fails.
pub fn run(
    device: &Device,
    workload: &Workload,
    dtype: DType,
    budget: Option<u64>,
    keep: Option<&Path>,
    progress: &mut Progress,
) -> anyhow::Result<Timing> {
    let mut place = Place::of(workload, dtype, keep)?;
    place.job.train.mem_budget = budget;
    let mut trainer = workload.trainer_on(device, &place.job)?;
    if let Some(dir) = keep {
        trainer.write_snapshot(dir)?;
    }
    let (mut all, mut losses) = (Vec::new(), Vec::new());
    for step in 0..WARM_UP + STEPS {
        let m = trainer.step()?;
        progress.step(step + 1, m.loss, m.tokens_per_s);
        losses.push(m.loss);
        all.push(m.step_ms);
    }
    let mut timed = all.split_off(WARM_UP);
    timed.sort_by(f64::total_cmp);
    let step_ms = timed[timed.len() / 2];
    Ok(Timing {
        tokens_per_s: workload.tokens() as f64 / step_ms * 1e3,
        step_ms,
        cold_start_ms: trainer.cold_start().unwrap_or(f64::NAN) * 1e3,
        first_step_ms: all[0],
        peak_bytes: trainer.peak_bytes(),
        predicted_peak_bytes: trainer.account().total(),
        losses,
    })
}

/// A workload on disk.
struct Place {
    job: JobConfig,
    /// Goes with its files when nobody keeps them.
    _removed: Option<TempFolder>,
}

impl Place {
    /// Writes the workload into `keep`, or into a folder that goes afterwards.
    fn of(workload: &Workload, dtype: DType, keep: Option<&Path>) -> anyhow::Result<Place> {
        if let Some(dir) = keep {
            return Ok(Place { job: write_kept(workload, dtype, dir)?, _removed: None });
        }
        let folder = TempFolder::new(workload.name)?;
        workload.write(folder.path(), dtype)?;
        let job = workload.job(folder.path(), dtype);
        Ok(Place { job, _removed: Some(folder) })
    }
}

/// Writes a workload into `dir`, which is new, empty, or holds an earlier one, with a `job.toml` that trains on it.
fn write_kept(workload: &Workload, dtype: DType, dir: &Path) -> anyhow::Result<JobConfig> {
    let job_file = dir.join("job.toml");
    std::fs::create_dir_all(dir).with_context(|| format!("{}: cannot be made", dir.display()))?;
    let is_empty = std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    if !is_empty && !job_file.is_file() {
        return Err(RunError::Input(format!(
            "--keep {}: there are other files in it; name a new folder, or one that `kfc bench --keep` made",
            dir.display()
        ))
        .into());
    }
    let dir = dir.canonicalize()?;
    for earlier in ["student", "teacher", "snapshot"].map(|name| dir.join(name)) {
        if earlier.is_dir() {
            std::fs::remove_dir_all(&earlier)?;
        }
    }
    workload.write(&dir, dtype)?;
    let job = workload.job(&dir, dtype);
    write_atomically(&job_file, config::to_toml(&job).as_bytes())?;
    Ok(job)
}

/// Steps of one run, for a progress display.
pub const fn steps() -> usize {
    WARM_UP + STEPS
}
