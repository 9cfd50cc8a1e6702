//! `kfc train`

use crate::args::{Global, TrainArgs};
use crate::config::{self, format_bytes};
use crate::error::Outcome;
use crate::output;
use crate::progress::{Progress, Summary};
use crate::report::{self, Report};
use crate::run_dir::{RunDir, write_atomically};
use crate::stop;
use kfc_runtime::config::JobConfig;
use kfc_runtime::models::Model;
use kfc_runtime::train::{self, Observer, RunOptions, StepMetrics, Trainer, data};

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
    let outcome = train_job(&job, &run_dir, args.resume, global)?;
    outcome.print(global)?;
    Ok(Outcome::Done)
}

/// Trains a job in its run directory and writes its report.
///
/// # Errors
/// If the job does not fit its models or data, or the work fails.
pub fn train_job(job: &JobConfig, run_dir: &RunDir, resume: bool, global: &Global) -> anyhow::Result<Summary> {
    let mut trainer = prepare(job, global)?;
    let mut display = Display { progress: None, first: None, global };
    run_dir.create()?;
    if resume {
        // Before the configuration is written: a job that does not fit the run must not replace it.
        train::resume(&mut trainer, run_dir.path(), &mut display)?;
    }
    write_atomically(&run_dir.config(), config::to_toml(job).as_bytes())?;
    let options = RunOptions { dir: run_dir.path(), resume: false, stop: stop::flag() };
    let done = train::run(&mut trainer, &options, &mut display)?;
    display.finish();
    let summary = Summary {
        steps: done.steps,
        total: done.total,
        tokens: done.tokens,
        loss: done.final_loss,
        tokens_per_s: done.tokens as f64 / done.seconds.max(1e-9),
        peak_bytes: done.peak_bytes,
        seconds: done.seconds,
        skipped: done.skipped as usize,
        result: done.result.unwrap_or_else(|| run_dir.path().join(format!("checkpoint-{}", done.steps))),
        report: run_dir.report(),
        stopped: done.stopped,
    };
    let title = run_dir.path().file_name().map_or("run".into(), |n| n.to_string_lossy().into_owned());
    let rows = report::read_metrics(&run_dir.metrics())?;
    report::write(
        &run_dir.report(),
        &Report {
            title: format!("kfc: {title}"),
            summary: summary.rows(),
            tables: Vec::new(),
            charts: report::run_charts(&rows),
            config_toml: config::to_toml(job),
        },
    )?;
    Ok(summary)
}

/// Reads data and models and compiles the step; says on the way what was found.
fn prepare(job: &JobConfig, global: &Global) -> anyhow::Result<Trainer> {
    let say = |line: &str| {
        if !global.quiet {
            output::stderr_line(line);
        }
    };
    let model = Model::open(&job.model.path, job.model.dtype, job.model.init, job.train.seed)?;
    let data = data::load(job, &model.config)?;
    say(&format!("data      {}", data.report));
    if let Some(general) = &data.general_report {
        say(&format!("general   {general}"));
    }
    let trainer = Trainer::new(job, data::loader(job, data)?)?;
    say(&format!("model     {}: {}", job.model.path.display(), trainer.describe()));
    for warning in config::warnings(job) {
        say(&format!("warning   {warning}"));
    }
    for note in trainer.notes() {
        say(&format!("note      {note}"));
    }
    let memory = trainer.memory();
    say(&format!(
        "memory    {} activations, {} parameters, gradients and optimiser, {} mapped weights",
        format_bytes(memory.arena),
        format_bytes(memory.owned),
        format_bytes(memory.mapped)
    ));
    Ok(trainer)
}

/// Shows steps as they are made.
struct Display<'a> {
    progress: Option<Progress>,
    first: Option<usize>,
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
            Some(progress) => progress.note(text),
            None if !self.global.quiet => output::stderr_line(&format!("note      {text}")),
            None => {}
        }
    }

    fn step(&mut self, m: &StepMetrics, total: usize) {
        let first = *self.first.get_or_insert(m.step);
        let global = self.global;
        let progress = self.progress.get_or_insert_with(|| Progress::new("step", first - 1, total, global));
        progress.step(m.step, m.loss, m.tokens_per_s);
        if global.json {
            // A reader that went away must not end the training.
            let _ = output::json_line(&m.to_json());
        }
    }
}
