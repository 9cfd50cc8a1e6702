//! The built-in demo: a small world of facts, a base model and a teacher trained on it, and a new domain injected into the
//! base in four ways. Every figure it prints is measured in the run; every stage is an ordinary job in a run directory
//! of its own, which `kfc` can read like any other.

mod recall;
mod world;

use crate::args::{self, Global, TrainArgs};
use crate::commands::train::{Chatter, train_job};
use crate::config::{
    data_defaults, distill_defaults, ewc_defaults, format_bytes, lora_defaults, model_defaults,
    train_defaults,
};
use crate::error::{Outcome, input_error};
use crate::output;
use crate::progress::{Summary, duration};
use crate::report::{self, Report, Table};
use crate::run_dir::RunDir;
use crate::stop;
use kfc_runtime::config::{
    DistillSection, EwcMode, EwcSection, JobConfig, Length, LoraSection, ModelInit, ModelSection,
};
use kfc_runtime::device::Device;
use kfc_runtime::fisher::write_fisher;
use kfc_runtime::memory;
use kfc_runtime::models::Model;
use kfc_runtime::train::data;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;
use world::World;

/// Seed of the world and of every stage.
const SEED: u64 = 1;
/// Rows that the Fisher information is taken over.
const FISHER_ROWS: usize = 256;

/// Shape and training of a model from scratch.
struct Scratch {
    name: &'static str,
    hidden: usize,
    intermediate: usize,
    steps: usize,
    batch: usize,
    lr: f64,
}

const BASE: Scratch =
    Scratch { name: "base", hidden: 64, intermediate: 176, steps: 300, batch: 96, lr: 4e-3 };
const TEACHER: Scratch =
    Scratch { name: "teacher", hidden: 96, intermediate: 256, steps: 400, batch: 96, lr: 3e-3 };

/// A way to inject the new domain.
struct Injection {
    folder: &'static str,
    title: &'static str,
    ewc: bool,
    teacher: bool,
    general: bool,
}

const INJECTIONS: [Injection; 4] = [
    Injection { folder: "lora", title: "LoRA", ewc: false, teacher: false, general: false },
    Injection { folder: "lora-ewc", title: "LoRA + EWC", ewc: true, teacher: false, general: false },
    Injection { folder: "lora-kd", title: "LoRA + KD", ewc: false, teacher: true, general: false },
    Injection {
        folder: "lora-kd-general-ewc",
        title: "LoRA + KD with general text + EWC",
        ewc: true,
        teacher: true,
        general: true,
    },
];

/// A row of the table.
struct Row {
    title: String,
    new: f64,
    old: f64,
    summary: Summary,
    peak_bytes: u64,
}

/// Runs the demo.
///
/// # Errors
/// If a stage fails.
pub fn run(args: &TrainArgs, global: &Global) -> anyhow::Result<Outcome> {
    if !args.set.is_empty() || args.resume || args.mem_budget.is_some() {
        return Err(input_error(
            "the demo takes no --set, --resume or --mem-budget; give a configuration: kfc train job.toml",
        ));
    }
    if args.device != args::Device::Cpu {
        return Err(input_error(
            "the demo runs on the CPU; give a configuration: kfc train job.toml --device cuda",
        ));
    }
    let run_dir = RunDir::check(&free_folder(args), false)?;
    run_dir.create()?;
    let demo = Demo { dir: run_dir.path(), global, started: Instant::now() };
    let world = world::write(&demo.dir.join("world"), SEED)?;
    demo.say(&format!(
        "a world of {} old and {} new people; every question is a phrasing never trained for that fact",
        world::PEOPLE,
        world::PEOPLE
    ));
    let mut rows = Vec::new();
    let base = demo.scratch(&BASE, &world, &[&world.old], &mut rows)?;
    let teacher = demo.scratch(&TEACHER, &world, &[&world.old, &world.new], &mut rows)?;
    let fisher = demo.fisher(&base, &world)?;
    for injection in &INJECTIONS {
        demo.inject(injection, &world, &base, &teacher, &fisher, &mut rows)?;
        if stop::flag().load(Ordering::Relaxed) {
            return Err(anyhow::anyhow!("interrupted; the finished stages are in {}", demo.dir.display()));
        }
    }
    demo.finish(&rows)?;
    Ok(Outcome::Done)
}

/// `--out`, or the first of `runs/demo`, `runs/demo-2`, … that is not taken.
fn free_folder(args: &TrainArgs) -> PathBuf {
    let first = args.run_dir();
    if args.out.is_some() || !first.exists() {
        return first;
    }
    (2..).map(|n| first.with_file_name(format!("demo-{n}"))).find(|p| !p.exists()).unwrap_or(first)
}

struct Demo<'a> {
    dir: &'a Path,
    global: &'a Global,
    started: Instant,
}

impl Demo<'_> {
    fn say(&self, line: &str) {
        if !self.global.quiet {
            output::stderr_line(&format!("[{:>5.1} s] {line}", self.started.elapsed().as_secs_f64()));
        }
    }

    /// Trains a model from random weights; returns its folder.
    fn scratch(
        &self,
        s: &Scratch,
        world: &World,
        train: &[&PathBuf],
        rows: &mut Vec<Row>,
    ) -> anyhow::Result<PathBuf> {
        self.say(&format!("training the {} from scratch, {} steps", s.name, s.steps));
        let source = self.dir.join("world").join(s.name);
        write_config(&source, s, world)?;
        let mut job = self.job(&source, ModelInit::Random, world, s.steps, s.batch, s.lr, 30);
        job.data.train = train.iter().map(|p| p.to_path_buf()).collect();
        let (summary, peak) = self.train(&job, s.name)?;
        let model = self.dir.join(s.name).join("model");
        self.ask(s.name, &model, None, world, summary, peak, rows)?;
        Ok(model)
    }

    /// Fisher information of the base on what it knows, for the penalty on the merged change.
    fn fisher(&self, base: &Path, world: &World) -> anyhow::Result<PathBuf> {
        self.say(&format!("Fisher information of the base on {FISHER_ROWS} old facts"));
        let mut job = self.job(base, ModelInit::Pretrained, world, 1, 1, 0.0, 0);
        job.lora = Some(lora());
        job.data.train = vec![world.old.clone()];
        let out = self.dir.join("fisher.safetensors");
        job.ewc = Some(ewc(&out));
        let model = Model::open(base, None, ModelInit::Pretrained, SEED)?;
        let rows = data::load_rows(&job, &model.config)?;
        write_fisher(&job, &rows, Some(FISHER_ROWS), &out, &mut |_, _| ())?;
        Ok(out)
    }

    fn inject(
        &self,
        injection: &Injection,
        world: &World,
        base: &Path,
        teacher: &Path,
        fisher: &Path,
        rows: &mut Vec<Row>,
    ) -> anyhow::Result<()> {
        self.say(&format!("injecting the new facts: {}", injection.title));
        let mut job = self.job(base, ModelInit::Pretrained, world, 300, 64, 4e-3, 10);
        job.data.train = vec![world.new.clone()];
        job.lora = Some(lora());
        job.distill = injection.teacher.then(|| DistillSection {
            teacher: teacher.into(),
            alpha: 0.5,
            general: if injection.general { vec![world.old.clone()] } else { Vec::new() },
            ..distill_defaults()
        });
        job.ewc = injection.ewc.then(|| ewc(fisher));
        let (summary, peak) = self.train(&job, injection.folder)?;
        let adapter = self.dir.join(injection.folder).join("adapter");
        self.ask(injection.title, base, Some(&adapter), world, summary, peak, rows)
    }

    /// A job with what all stages share.
    #[allow(clippy::too_many_arguments)]
    fn job(
        &self,
        model: &Path,
        init: ModelInit,
        world: &World,
        steps: usize,
        batch: usize,
        lr: f64,
        warmup_steps: usize,
    ) -> JobConfig {
        let mut job = JobConfig {
            model: ModelSection { path: model.into(), init, ..model_defaults() },
            lora: None,
            distill: None,
            ewc: None,
            data: data_defaults(),
            train: train_defaults(),
            report: None,
            kernels: None,
        };
        job.data.tokenizer = Some(world.tokenizer.clone());
        job.data.seq_len = Some(world.longest);
        job.data.packing = false;
        job.train.length = Length::Steps(steps);
        job.train.batch = batch;
        job.train.accumulation = 1;
        job.train.lr = lr;
        job.train.warmup_steps = warmup_steps;
        job.train.weight_decay = 0.1;
        job.train.seed = SEED;
        job.train.save_every = 0;
        job.train.keep = 1;
        job
    }

    /// Runs a stage; also gives the peak memory of the process while it ran.
    fn train(&self, job: &JobConfig, folder: &str) -> anyhow::Result<(Summary, u64)> {
        memory::reset_peak();
        let run_dir = RunDir::check(&self.dir.join(folder), false)?;
        let summary = train_job(job, &Device::Cpu, &run_dir, false, self.global, Chatter::Progress)?;
        if summary.stopped {
            return Err(anyhow::anyhow!("interrupted; the finished stages are in {}", self.dir.display()));
        }
        Ok((summary, memory::peak_resident()))
    }

    #[allow(clippy::too_many_arguments)]
    fn ask(
        &self,
        title: &str,
        model: &Path,
        adapter: Option<&Path>,
        world: &World,
        summary: Summary,
        peak_bytes: u64,
        rows: &mut Vec<Row>,
    ) -> anyhow::Result<()> {
        let new = recall::recall(model, adapter, &world.new_questions)?;
        let old = recall::recall(model, adapter, &world.old_questions)?;
        self.say(&format!("{title}: recall on new facts {new:.3}, on old ones {old:.3}"));
        if self.global.json {
            output::json_line(&json!({
                "event": "stage", "stage": title, "new_recall": new, "old_recall": old,
                "tokens_per_s": summary.tokens_per_s, "peak_bytes": peak_bytes, "seconds": summary.seconds,
            }))?;
        }
        rows.push(Row { title: title.into(), new, old, summary, peak_bytes });
        Ok(())
    }

    /// Prints the table and writes the report.
    fn finish(&self, rows: &[Row]) -> anyhow::Result<()> {
        let columns = ["", "new facts", "old kept", "tokens/s", "peak memory"].map(String::from).to_vec();
        let cells = |r: &Row| {
            vec![
                r.title.clone(),
                format!("{:.3}", r.new),
                format!("{:.3}", r.old),
                format!("{:.0}", r.summary.tokens_per_s),
                format_bytes(r.peak_bytes),
            ]
        };
        let body: Vec<Vec<String>> = rows.iter().map(cells).collect();
        let runs: Vec<(String, Vec<serde_json::Value>)> = INJECTIONS
            .iter()
            .map(|i| {
                let metrics = RunDir::open(&self.dir.join(i.folder))?.metrics();
                Ok((i.title.to_string(), report::read_metrics(&metrics)?))
            })
            .collect::<anyhow::Result<_>>()?;
        let path = self.dir.join("report.html");
        let elapsed = self.started.elapsed().as_secs_f64();
        report::write(
            &path,
            &Report {
                title: "kfc demo: injecting knowledge without losing the old".into(),
                summary: vec![
                    ("wall time".into(), duration(elapsed)),
                    ("people, old and new".into(), format!("{} + {}", world::PEOPLE, world::PEOPLE)),
                ],
                tables: vec![Table {
                    title: "Recall".into(),
                    note: "Share of facts recalled in a phrasing that was never trained for them. Base and teacher are \
                           trained from scratch; the rows below inject the new facts into the base."
                        .into(),
                    columns: columns.clone(),
                    rows: body.clone(),
                }],
                charts: report::comparison_charts(&runs),
                config_toml: std::fs::read_to_string(self.dir.join(INJECTIONS[3].folder).join("config.toml"))?,
            },
        )?;
        if self.global.json {
            return Ok(output::json_line(
                &json!({"event": "summary", "seconds": elapsed, "report": output::shown(&path)}),
            )?);
        }
        let mut table = vec![columns];
        table.extend(body);
        output::write_stdout(&output::table(&table))?;
        Ok(output::stdout_line(&format!("\n{} in all; report: {}", duration(elapsed), path.display()))?)
    }
}

fn lora() -> LoraSection {
    LoraSection { r: 16, alpha: 32.0, dropout: 0.0, ..lora_defaults() }
}

fn ewc(fisher: &Path) -> EwcSection {
    EwcSection { lambda: 1e5, mode: EwcMode::Delta, fisher: fisher.into(), ..ewc_defaults() }
}

/// A folder with the `config.json` of a small llama, and the world's tokenizer.
fn write_config(folder: &Path, s: &Scratch, world: &World) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "vocab_size": world.vocab, "hidden_size": s.hidden, "intermediate_size": s.intermediate,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "initializer_range": 0.06, "pad_token_id": 0, "eos_token_id": 2, "torch_dtype": "float32",
    });
    kfc_runtime::files::write_json(&folder.join("config.json"), &config)?;
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(world.tokenizer.join(name), folder.join(name))?;
    }
    Ok(())
}
