//! The processes of the benchmark: one a plan, since the highest resident size belongs to a process. A child takes turns of
//! steps when its standard input says so, and answers each with a JSON line.

use anyhow::{Context, bail};
use kfc::commands::explain::rows;
use kfc_benches::workloads::{ALL, Workload};
use kfc_graph::DType;
use kfc_runtime::calibration::{Calibration, median};
use kfc_runtime::config::{JobConfig, RecomputePolicy};
use kfc_runtime::memory;
use kfc_runtime::profile::Machine;
use kfc_runtime::train::setup;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{self, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// First argument of a child.
pub(crate) const FLAG: &str = "--child";
/// The policy that a budget decides.
pub(crate) const AUTO: &str = "auto";

/// What all children run.
pub(crate) struct Spec {
    pub(crate) workload: &'static str,
    pub(crate) dtype: DType,
    /// Where its files are; the calibration goes there, too.
    pub(crate) folder: PathBuf,
}

/// What there is to choose from.
pub(crate) struct Choices {
    pub(crate) choices: Vec<Choice>,
    pub(crate) named: Vec<Choice>,
    /// Time that it took to find them.
    pub(crate) seconds: f64,
}

/// A plan as predicted.
pub(crate) struct Choice {
    pub(crate) name: String,
    pub(crate) peak: u64,
    pub(crate) extra_ms: f64,
}

impl Choices {
    /// Peaks from the smallest on, as far apart as they can be, and no budget at all.
    pub(crate) fn budgets(&self, n: usize) -> Vec<Option<u64>> {
        let peaks = [self.choices.last(), self.choices.first()].map(|c| c.map_or(0, |c| c.peak));
        let between = |i: usize| peaks[0] + (peaks[1] - peaks[0]) * i as u64 / (n as u64 - 1);
        (0..n - 1).map(|i| Some(between(i))).chain([None]).collect()
    }
}

impl Spec {
    fn command(&self, what: &str, policy: &str, budget: Option<u64>) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([FLAG, what, self.workload, &self.dtype.to_string()]).arg(&self.folder);
        command.args([policy, &budget.unwrap_or(0).to_string()]);
        // A cache of its own: what the user calibrated before must not count.
        command.env("XDG_CACHE_HOME", &self.folder);
        Ok(command)
    }

    fn answer(&self, what: &str) -> anyhow::Result<Value> {
        let output = self.command(what, AUTO, None)?.stderr(Stdio::inherit()).output()?;
        anyhow::ensure!(output.status.success(), "{what} failed");
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Times the workload's kernels.
    pub(crate) fn calibrate(&self) -> anyhow::Result<()> {
        self.answer("calibrate").map(|_| ())
    }

    /// What the planner finds with these times.
    pub(crate) fn choices(&self) -> anyhow::Result<Choices> {
        let v = self.answer("choices")?;
        let choice = |c: &Value| Choice {
            name: c["name"].as_str().unwrap_or_default().into(),
            peak: c["peak"].as_u64().unwrap_or(0),
            extra_ms: c["extra_ms"].as_f64().unwrap_or(0.0),
        };
        let list = |v: &Value| v.as_array().into_iter().flatten().map(choice).collect();
        let seconds = v["seconds"].as_f64().unwrap_or(0.0);
        Ok(Choices { choices: list(&v["choices"]), named: list(&v["named"]), seconds })
    }
}

/// A running child.
pub(crate) struct Child {
    process: process::Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    /// What it recomputes.
    pub(crate) recomputed: Vec<String>,
    pub(crate) arena: u64,
    pub(crate) predicted_peak: u64,
    pub(crate) measured_peak: u64,
    /// Median step of each turn.
    pub(crate) turns: Vec<f64>,
}

/// Position of the child that runs this plan; starts one if it is new.
pub(crate) fn index(
    children: &mut Vec<Child>,
    spec: &Spec,
    policy: &str,
    budget: Option<u64>,
) -> anyhow::Result<usize> {
    let child = Child::start(spec, policy, budget)
        .with_context(|| format!("{policy} within {budget:?} bytes does not run"))?;
    if let Some(i) = children.iter().position(|c| c.recomputed == child.recomputed) {
        return Ok(i);
    }
    children.push(child);
    Ok(children.len() - 1)
}

impl Child {
    fn start(spec: &Spec, policy: &str, budget: Option<u64>) -> anyhow::Result<Child> {
        let mut command = spec.command("step", policy, budget)?;
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = process.stdin.take().context("no input")?;
        let output = BufReader::new(process.stdout.take().context("no output")?).lines();
        let mut child = Child {
            process,
            input,
            output,
            recomputed: Vec::new(),
            arena: 0,
            predicted_peak: 0,
            measured_peak: 0,
            turns: Vec::new(),
        };
        let v = child.read()?;
        let names = v["recomputed"].as_array().into_iter().flatten();
        child.recomputed = names.filter_map(|n| n.as_str().map(String::from)).collect();
        child.arena = v["arena"].as_u64().unwrap_or(0);
        child.predicted_peak = v["predicted_peak"].as_u64().unwrap_or(0);
        Ok(child)
    }

    fn read(&mut self) -> anyhow::Result<Value> {
        let line = self.output.next().context("the child ended")??;
        Ok(serde_json::from_str(&line)?)
    }

    /// Lets it take steps for a while.
    pub(crate) fn turn(&mut self, ms: f64) -> anyhow::Result<()> {
        writeln!(self.input, "{ms}")?;
        let v = self.read()?;
        self.turns.push(v["step_ms"].as_f64().context("no time")?);
        self.measured_peak = v["peak"].as_u64().unwrap_or(0);
        Ok(())
    }

    /// The best turn.
    pub(crate) fn step_ms(&self) -> f64 {
        self.turns.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It is done when its input ends; here it need not be waited for longer than for its end.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a child does.
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let [what, workload, dtype, folder, policy, budget] = arguments else { bail!("six arguments") };
    let workload = ALL.into_iter().find(|w| w.name == workload).context("no such workload")?;
    let dtype = if dtype == "f32" { DType::F32 } else { DType::Bf16 };
    let mut job = workload.job(folder.as_ref(), dtype);
    job.train.recompute = policy_of(policy)?;
    job.train.mem_budget = Some(budget.parse()?).filter(|b| *b > 0);
    match what.as_str() {
        "calibrate" => {
            let mut calibration = Calibration::empty(Machine::this());
            calibration.measure_rates()?;
            let steps = calibration.measure_job(&mut workload.trainer_of(&job)?, Duration::from_secs(4))?;
            calibration.save()?;
            println!("{}", json!({"steps": steps}));
            Ok(())
        }
        "choices" => choices(&job),
        _ => steps(&workload, &job),
    }
}

fn policy_of(name: &str) -> anyhow::Result<RecomputePolicy> {
    Ok(match name {
        AUTO => RecomputePolicy::Auto,
        "none" => RecomputePolicy::Off,
        "every layer" => RecomputePolicy::EveryLayer,
        "attention only" => RecomputePolicy::Attention,
        other => {
            let k = other.strip_prefix("every ").and_then(|rest| rest.strip_suffix(" layers"));
            RecomputePolicy::EveryK(k.with_context(|| format!("no policy {other:?}"))?.parse()?)
        }
    })
}

fn choices(job: &JobConfig) -> anyhow::Result<()> {
    let (seq, before) = rows(job)?;
    let start = Instant::now();
    let b = setup::budgets(job, seq, &setup::Target::Host { before })?;
    let seconds = start.elapsed().as_secs_f64();
    let list = |choices: &[kfc_graph::budget::Choice]| -> Vec<Value> {
        let one = |c: &kfc_graph::budget::Choice| json!({"name": c.name, "peak": b.peak(c), "extra_ms": c.extra_seconds * 1e3});
        choices.iter().map(one).collect()
    };
    let (all, named) = (list(&b.frontier.choices), list(&b.frontier.named));
    println!("{}", json!({"choices": all, "named": named, "seconds": seconds}));
    Ok(())
}

fn steps(workload: &Workload, job: &JobConfig) -> anyhow::Result<()> {
    let mut trainer = workload.trainer_of(job)?;
    let plan = &trainer.profile().plans[0];
    let recomputed: Vec<&str> =
        plan.decisions.iter().filter(|d| d.recomputed).map(|d| d.value.as_str()).collect();
    println!(
        "{}",
        json!({"recomputed": recomputed, "arena": plan.arena_bytes, "predicted_peak": trainer.account().total()})
    );
    for line in std::io::stdin().lines() {
        let ms: f64 = line?.parse()?;
        let (start, mut times) = (Instant::now(), Vec::new());
        // In the first step caches are still those of another process.
        trainer.step()?;
        while times.is_empty() || start.elapsed().as_secs_f64() * 1e3 < ms {
            times.push(trainer.step()?.step_ms);
        }
        let step_ms = median(&mut times);
        println!("{}", json!({"step_ms": step_ms, "peak": memory::peak_resident()}));
    }
    Ok(())
}
