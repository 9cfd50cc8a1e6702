//! `kfc train`

mod edits;

use crate::args::{self, Global, TrainArgs};
use crate::config::{self, format_bytes};
use crate::error::Outcome;
use crate::output;
use crate::progress::{Progress, Summary};
use crate::run_dir::{RunDir, write_atomically};
use crate::run_report::{self, samples};
use crate::stop;
use kfc_runtime::config::JobConfig;
use kfc_runtime::device::Device;
use kfc_runtime::models::Model;
use kfc_runtime::train::{self, Observer, RunOptions, StepMetrics, Trainer, data};
use kfc_runtime::{machine, memory};

/// Runs `kfc train`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &TrainArgs, global: &Global) -> anyhow::Result<Outcome> {
    if args.help_config {
        output::write_stdout(&config::reference_text())?;
        return Ok(Outcome::Done);
    }
    let Some(path) = &args.config else { return crate::demo::run(args, global) };
    let mut job = config::load(path, &args.set)?;
    job.train.mem_budget = args.mem_budget.or(job.train.mem_budget);
    let run_dir = RunDir::check(&args.run_dir(), args.resume)?;
    let edits = edits::of_run(&args.edits, &run_dir, args.resume)?;
    if !edits.is_empty() && args.device == args::Device::Cpu && !global.quiet {
        output::stderr_line(&format!("note      {} is for GPUs and not used", run_dir.kernels().display()));
    }
    let device = args.device.with_edits(args.kernels.as_deref(), &edits);
    let outcome = train_job(&job, &device, &run_dir, args.resume, global, Chatter::Full)?;
    outcome.print(global)?;
    Ok(Outcome::Done)
}

/// What is told of a job beside its progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chatter {
    /// Data, model and memory, before the first step.
    Full,
    /// Nothing.
    Progress,
}

/// Trains a job in its run directory and writes its report.
///
/// # Errors
/// If the job does not fit its models or data, or the work fails.
pub fn train_job(
    job: &JobConfig,
    device: &Device,
    run_dir: &RunDir,
    resume: bool,
    global: &Global,
    chatter: Chatter,
) -> anyhow::Result<Summary> {
    let mut trainer = prepare(job, device, chatter == Chatter::Full && !global.quiet)?;
    let predicted = trainer.account().total();
    let _taken = run_dir.take(resume)?;
    let mut display = Display { progress: None, global, metrics: chatter == Chatter::Full };
    if resume {
        // Before the configuration is written: a job that does not fit the run must not replace it.
        train::resume(&mut trainer, run_dir.path(), &mut display)?;
        if trainer.steps_done() >= trainer.total_steps()
            && let Some(summary) = finished(run_dir)
        {
            display.note("all steps of this run were taken before; its results stay as they are");
            return Ok(summary);
        }
    }
    if resume && let Ok(before) = config::load(&run_dir.config(), &[]) {
        for change in config::changes(&before, job) {
            display.note(&format!("changed since this run began: {change}"));
        }
    }
    // The first step, the slowest, counts for the time that is left.
    display.progress = Some(Progress::new("step", trainer.steps_done(), trainer.total_steps(), global));
    write_atomically(&run_dir.config(), config::to_toml(job).as_bytes())?;
    edits::keep(device, run_dir)?;
    let options = RunOptions { dir: run_dir.path(), resume: false, stop: stop::flag() };
    let done = match train::run(&mut trainer, &options, &mut display) {
        // Only the first step finds what is wrong with the input (weights that are NaN): no run came of it.
        Err(error) if error.is_input() && !resume => {
            run_dir.remove()?;
            return Err(error.into());
        }
        result => result?,
    };
    display.finish();
    let summary = Summary {
        steps: done.steps,
        total: done.total,
        tokens: done.all_tokens,
        loss: done.final_loss,
        tokens_per_s: done.tokens as f64 / done.seconds.max(1e-9),
        peak_bytes: done.peak_bytes,
        predicted_peak_bytes: predicted,
        seconds: done.seconds,
        cold_start: done.cold_start,
        skipped: done.skipped as usize,
        result: done.result.unwrap_or_else(|| run_dir.path().join(format!("checkpoint-{}", done.steps))),
        report: run_dir.report(),
        stopped: done.stopped,
    };
    write_atomically(&run_dir.summary(), summary.to_json().to_string().as_bytes())?;
    // Only now, so that no step waits for it and no memory of the step is held.
    drop(trainer);
    if let (Some(section), false) = (&job.report, summary.stopped) {
        samples::take(job, run_dir, &summary.result, &section.prompts, section.max_new_tokens)?;
    }
    run_report::write(run_dir)?;
    Ok(summary)
}

/// What a run came to that ended after its last step, with all that it leaves.
fn finished(run_dir: &RunDir) -> Option<Summary> {
    let text = std::fs::read_to_string(run_dir.summary()).ok()?;
    let summary = Summary::from_json(&serde_json::from_str(&text).ok()?)?;
    let left = [&summary.result, &summary.report, &run_dir.profile()];
    (!summary.stopped && left.iter().all(|path| path.exists())).then_some(summary)
}

/// Reads data and models and compiles the step; says on the way what was found.
fn prepare(job: &JobConfig, device: &Device, speak: bool) -> anyhow::Result<Trainer> {
    let say = |line: &str| {
        if speak {
            output::stderr_line(line);
        }
    };
    let model = Model::open(&job.model.path, job.model.dtype, job.model.init, job.train.seed)?;
    let data = data::load(job, &model.config)?;
    say(&format!("data      {}", data.describe()));
    if let Some(general) = &data.general_report {
        say(&format!("general   {general}"));
    }
    let trainer = Trainer::on(device, job, data::loader(job, data)?)?;
    say(&format!("model     {}: {}", job.model.path.display(), trainer.describe()));
    for note in config::warnings(job).into_iter().chain(trainer.notes()) {
        say(&format!("note      {note}"));
    }
    let account = trainer.account();
    let items: Vec<String> =
        account.items.iter().take(4).map(|i| format!("{} {}", format_bytes(i.bytes), i.what)).collect();
    let place = match device {
        Device::Cpu => String::new(),
        device => format!(" on {}", device.name()),
    };
    say(&format!("memory    {} predicted{place}: {}, …", format_bytes(account.total()), items.join(", ")));
    let free = machine::memory().usable() + memory::resident();
    if *device == Device::Cpu && account.total() > free {
        say(&format!(
            "note      only {} of memory is free: other programs have to give way; `kfc doctor` says what would fit",
            format_bytes(free)
        ));
    }
    Ok(trainer)
}

/// Shows steps as they are made.
struct Display<'a> {
    progress: Option<Progress>,
    metrics: bool,
    global: &'a Global,
}

impl Display<'_> {
    fn finish(self) {
        if let Some(progress) = self.progress {
            progress.finish();
        }
    }
}

impl Observer for Display<'_> {
    fn note(&mut self, text: &str) {
        match &self.progress {
            Some(progress) => progress.note(&format!("note      {text}")),
            None if !self.global.quiet => output::stderr_line(&format!("note      {text}")),
            None => {}
        }
    }

    fn step(&mut self, m: &StepMetrics, _: usize) {
        if let Some(progress) = &mut self.progress {
            progress.step(m.step, m.loss, m.tokens_per_s);
        }
        if self.global.json && self.metrics {
            // A reader that went away must not end the training.
            let _ = output::json_line(&m.to_json());
        }
    }
}
