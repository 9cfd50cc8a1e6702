//! A whole run in its folder: metrics, checkpoints, resuming, stopping.

use super::{StepMetrics, Trainer};
use crate::checkpoint;
use crate::error::{Result, RunError};
use crate::files::{self, FileError};
use crate::profile::{self, Part};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Name of the metrics file in a run folder.
const METRICS: &str = "metrics.jsonl";

/// Sees a run go by.
pub trait Observer {
    /// Something worth telling happened.
    fn note(&mut self, text: &str);
    /// A step is done.
    fn step(&mut self, metrics: &StepMetrics, total: usize);
}

/// An observer that looks away.
pub struct Silent;

impl Observer for Silent {
    fn note(&mut self, _: &str) {}
    fn step(&mut self, _: &StepMetrics, _: usize) {}
}

/// How to run.
pub struct RunOptions<'a> {
    /// Folder of the run; exists already.
    pub dir: &'a Path,
    /// Go on from the last checkpoint, if there is one; see [`resume`].
    pub resume: bool,
    /// Finish the step, save and return when this becomes true.
    pub stop: &'a AtomicBool,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Steps taken, in all.
    pub steps: usize,
    /// Steps of the whole job.
    pub total: usize,
    /// Non-finite steps that were skipped.
    pub skipped: u64,
    /// Tokens of this run's steps.
    pub tokens: u64,
    /// Tokens of all steps, those before it was resumed included.
    pub all_tokens: u64,
    /// Seconds of this run's steps.
    pub seconds: f64,
    /// Seconds from opening the job to the end of the first step of this run, if it took one.
    pub cold_start: Option<f64>,
    /// The last step.
    pub last: Option<StepMetrics>,
    /// Mean loss of the last tenth of the job's steps so far (at least one).
    pub final_loss: f64,
    /// Most memory held, bytes: resident, or on the device ([`Trainer::peak_bytes`]).
    pub peak_bytes: u64,
    /// Trained elements.
    pub trained: usize,
    /// What was written: an adapter folder, or a model folder.
    pub result: Option<PathBuf>,
    /// It was stopped before the last step.
    pub stopped: bool,
}

/// Trains until the job is done or `stop` is set.
///
/// # Errors
/// If a step fails or a file cannot be written. What is in the folder then is complete up to the last checkpoint.
pub fn run(trainer: &mut Trainer, options: &RunOptions<'_>, observer: &mut dyn Observer) -> Result<Summary> {
    if options.resume {
        resume(trainer, options.dir, observer)?;
    } else {
        files::clean_stale(options.dir)?;
    }
    if trainer.steps_done() == 0 {
        trainer.write_snapshot(options.dir)?;
    }
    let (mut metrics, mut losses, earlier) = Metrics::open(options.dir, trainer.steps_done())?;
    let (start, mut tokens) = (Instant::now(), 0u64);
    let mut last = None;
    let mut saved = trainer.steps_done();
    while trainer.steps_done() < trainer.total_steps() && !options.stop.load(Ordering::Relaxed) {
        let m = trainer.step()?;
        metrics.write(&m)?;
        observer.step(&m, trainer.total_steps());
        if m.skipped {
            observer.note(&format!("step {}: the gradient was not finite, nothing was updated", m.step));
        }
        tokens += m.tokens as u64;
        losses.push(m.loss);
        trainer.clock.lap(Part::Metrics);
        let every = trainer.job.train.save_every;
        if every > 0
            && trainer.steps_done().is_multiple_of(every)
            && trainer.steps_done() < trainer.total_steps()
        {
            metrics.sync()?;
            trainer.save(options.dir)?;
            saved = trainer.steps_done();
            trainer.clock.lap(Part::Save);
        }
        last = Some(m);
    }
    if let Some(report) = trainer.loader().streamed_report()
        && report.skipped + report.truncated + report.unlabelled > 0
    {
        observer.note(&format!("of what was streamed: {report}"));
    }
    // What follows takes memory of its own, which is not to come on top of that of the steps.
    trainer.micro.release_arena();
    let mut profile = trainer.profile();
    metrics.sync()?;
    let seconds = start.elapsed().as_secs_f64();
    let done = trainer.steps_done() >= trainer.total_steps();
    if saved < trainer.steps_done() {
        trainer.save(options.dir)?;
    }
    if done {
        check_end(trainer, observer)?;
    }
    let result = if done { Some(trainer.write_result(options.dir)?) } else { None };
    if let Some(measured) = &mut profile.measured {
        measured.peak_bytes = trainer.peak_bytes();
        let text = profile.to_json().to_string();
        files::write_atomic(&options.dir.join(profile::FILE), |w| w.write_all(text.as_bytes()))?;
    }
    let tail = losses.len().div_ceil(10).max(1);
    let tail = &losses[losses.len().saturating_sub(tail)..];
    Ok(Summary {
        steps: trainer.steps_done(),
        total: trainer.total_steps(),
        skipped: trainer.steps_skipped(),
        tokens,
        all_tokens: earlier + tokens,
        seconds,
        cold_start: trainer.cold_start(),
        last,
        final_loss: tail.iter().sum::<f64>() / tail.len().max(1) as f64,
        peak_bytes: trainer.peak_bytes(),
        trained: trainer.trained_elements(),
        result,
        stopped: !done,
    })
}

/// Skipped steps at the end of a run that say that it diverged.
const DIVERGED: u64 = 3;

/// Refuses to call a result what nothing was trained into, or what training left behind when it diverged.
fn check_end(trainer: &Trainer, observer: &mut dyn Observer) -> Result<()> {
    let (skipped, trained) = trainer.skipped_lately();
    let advice = "lower train.lr (or train.loss_scale, ewc.lambda, lora.alpha), or use model.dtype = \"bf16\" or \"f32\"";
    if !trained {
        let m = format!(
            "the gradient was not finite in any of the {skipped} steps, so nothing was trained; {advice}"
        );
        return Err(RunError::Failed(m));
    }
    if skipped >= DIVERGED {
        return Err(RunError::Failed(format!(
            "the run diverged: the gradient was not finite in the last {skipped} steps, and no result is written; {advice}"
        )));
    }
    if skipped > 0 {
        observer.note(&format!(
            "the last steps changed nothing, their gradient was not finite ({skipped}); {advice}"
        ));
    }
    Ok(())
}

/// Takes over the newest checkpoint of the run in `dir` that is whole; tells which, and which are damaged.
///
/// # Errors
/// If the checkpoint belongs to another job or other data. Nothing is changed then but leftovers of killed writers.
pub fn resume(trainer: &mut Trainer, dir: &Path, observer: &mut dyn Observer) -> Result<()> {
    files::clean_stale(dir)?;
    let found = checkpoint::latest(dir)?;
    for (path, reason) in &found.damaged {
        observer.note(&format!("{} is damaged and not used: {reason}", path.display()));
    }
    match found.checkpoint {
        Some(checkpoint) => {
            trainer.restore(&checkpoint)?;
            observer.note(&format!("resumed from {}", checkpoint.dir.display()));
        }
        None => observer.note("no checkpoint to resume from, starting at step 0"),
    }
    Ok(())
}

/// `metrics.jsonl`, appended line by line.
struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens the file so that it holds the lines of the first `steps` steps and nothing else: lines of steps that will be
    /// taken again, and a line cut short by a kill, go. Also returns the losses of these steps and their tokens.
    fn open(dir: &Path, steps: usize) -> Result<(Metrics, Vec<f64>, u64)> {
        let path = dir.join(METRICS);
        let (mut kept, mut losses, mut tokens) = (Vec::new(), Vec::new(), 0);
        if let Ok(file) = File::open(&path) {
            for line in BufReader::new(file).lines() {
                let Ok(line) = line else { break };
                let Ok(values) = serde_json::from_str::<serde_json::Value>(&line) else { break };
                if values["step"].as_u64() != Some(kept.len() as u64 + 1) || kept.len() == steps {
                    break;
                }
                losses.push(values["loss"].as_f64().unwrap_or(f64::NAN));
                tokens += values["tokens"].as_u64().unwrap_or(0);
                kept.push(line);
            }
        }
        if kept.len() < steps {
            return Err(RunError::Input(format!(
                "{}: has {} of the {steps} steps of the checkpoint; restore the file or start a new run",
                path.display(),
                kept.len()
            )));
        }
        files::write_atomic(&path, |w| kept.iter().try_for_each(|line| writeln!(w, "{line}")))?;
        let file =
            OpenOptions::new().append(true).open(&path).map_err(|e| FileError::io("open", &path, e))?;
        Ok((Metrics { path, file }, losses, tokens))
    }

    fn write(&mut self, m: &StepMetrics) -> Result<()> {
        let line = format!("{}\n", m.to_json());
        self.file.write_all(line.as_bytes()).map_err(|e| FileError::io("write", &self.path, e))?;
        Ok(())
    }

    /// On disk before a checkpoint says so.
    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| FileError::io("write", &self.path, e))?;
        Ok(())
    }
}
