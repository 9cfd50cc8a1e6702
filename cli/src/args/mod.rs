//! The command line: one file a subcommand, each with its arguments as plain data, its help and how matches become data.
//!
//! Values are checked here as far as the text alone tells; everything wrong here ends with exit code 2.

mod bench;
mod compile;
mod completions;
mod data;
mod doctor;
mod eval;
mod explain;
mod fisher;
mod generate;
mod inspect;
mod logits;
mod merge;
mod parse;
mod report;
mod rollback;
mod teach;
mod tokenizer;
mod train;
mod tune;

pub use bench::{BenchArgs, KernelArgs};
pub use compile::{CompileArgs, Target};
pub use completions::CompletionsArgs;
pub use data::{AugmentArgs, CleanArgs, DataArgs, FilterArgs, Judge, Keep, RowArgs, ShardArgs};
pub use doctor::DoctorArgs;
pub use eval::EvalArgs;
pub use explain::ExplainArgs;
pub use fisher::FisherArgs;
pub use generate::GenerateArgs;
pub use inspect::InspectArgs;
pub use logits::LogitsArgs;
pub use merge::MergeArgs;
pub use report::ReportArgs;
pub use rollback::RollbackArgs;
pub use teach::TeachArgs;
pub use tokenizer::TokenizerArgs;
pub use train::TrainArgs;
pub use tune::TuneArgs;

use clap::{Arg, ArgAction, ArgMatches, Command};
use kfc_runtime::edited::Edit;
use std::path::{Path, PathBuf};

/// What every subcommand understands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Global {
    /// CPU threads; `None` leaves it to `RAYON_NUM_THREADS`, or else to the number of cores.
    pub threads: Option<usize>,
    /// One JSON object a line on standard output.
    pub json: bool,
    /// No progress on standard error.
    pub quiet: bool,
}

/// Where a plan runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU, by its number.
    Cuda(usize),
}

impl Device {
    /// The device; its kernels are compiled there.
    pub fn plain(self) -> kfc_runtime::device::Device {
        self.with_kernels(None)
    }

    /// The device, whose kernels come from the folder `kernels` if that is given.
    pub fn with_kernels(self, kernels: Option<&Path>) -> kfc_runtime::device::Device {
        self.with_edits(kernels, &[])
    }

    /// [`Device::with_kernels`], some of which come from files of their own.
    pub fn with_edits(self, kernels: Option<&Path>, edits: &[Edit]) -> kfc_runtime::device::Device {
        match self {
            Device::Cpu => kfc_runtime::device::Device::Cpu,
            Device::Cuda(index) => kfc_runtime::device::Device::Cuda {
                index,
                kernels: kernels.map(Path::to_path_buf),
                edits: edits.to_vec(),
            },
        }
    }
}

/// A subcommand with its arguments.
#[derive(Clone, Debug, PartialEq)]
pub enum Invocation {
    /// `kfc train`
    Train(TrainArgs),
    /// `kfc eval`
    Eval(EvalArgs),
    /// `kfc logits`
    Logits(LogitsArgs),
    /// `kfc fisher`
    Fisher(FisherArgs),
    /// `kfc teach`
    Teach(TeachArgs),
    /// `kfc merge`
    Merge(MergeArgs),
    /// `kfc generate`
    Generate(GenerateArgs),
    /// `kfc inspect`
    Inspect(InspectArgs),
    /// `kfc compile`
    Compile(CompileArgs),
    /// `kfc explain`
    Explain(ExplainArgs),
    /// `kfc tune`
    Tune(TuneArgs),
    /// `kfc doctor`
    Doctor(DoctorArgs),
    /// `kfc report`
    Report(ReportArgs),
    /// `kfc rollback`
    Rollback(RollbackArgs),
    /// `kfc bench`
    Bench(BenchArgs),
    /// `kfc tokenizer`
    Tokenizer(TokenizerArgs),
    /// `kfc data`
    Data(DataArgs),
    /// `kfc completions`
    Completions(CompletionsArgs),
}

const ABOUT: &str = "Inject knowledge into DeepSeek-family language models: compile a fine-tuning job into a static \
                     plan of fused kernels under a memory budget, and run it";

const EXAMPLES: &str = "\
Examples:
  kfc train                                        the built-in demo
  kfc train job.toml --set train.steps=200         a job, with one key overridden
  kfc eval --model model --adapter runs/job/adapter --task ppl --data held-out.jsonl
  kfc merge --model model --adapter runs/job/adapter --out merged

Exit codes: 0 done, 1 failed, 2 bad usage or input, 3 a gate was missed.
Results go to stdout, progress to stderr. `kfc COMMAND --help` has examples of each command;
`kfc train --help-config` lists every key of a configuration.";

/// Where the options of every subcommand stand in its help: after its own.
const GLOBAL: usize = 100;

/// The whole command line.
pub fn command() -> Command {
    Command::new("kfc")
        .version(env!("CARGO_PKG_VERSION"))
        .about(ABOUT)
        .after_help(EXAMPLES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .arg(
            Arg::new("threads")
                .long("threads")
                .value_name("N")
                .global(true)
                .display_order(GLOBAL)
                .value_parser(parse::threads)
                .help("CPU threads [default: RAYON_NUM_THREADS, or else all cores]"),
        )
        .arg(flag("json", "Print one JSON object a line on stdout").global(true).display_order(GLOBAL + 1))
        .arg(flag("quiet", "Show no progress on stderr").short('q').global(true).display_order(GLOBAL + 2))
        .subcommand(train::command())
        .subcommand(eval::command())
        .subcommand(logits::command())
        .subcommand(fisher::command())
        .subcommand(teach::command())
        .subcommand(merge::command())
        .subcommand(generate::command())
        .subcommand(inspect::command())
        .subcommand(compile::command())
        .subcommand(explain::command())
        .subcommand(tune::command())
        .subcommand(doctor::command())
        .subcommand(report::command())
        .subcommand(rollback::command())
        .subcommand(bench::command())
        .subcommand(tokenizer::command())
        .subcommand(data::command())
        .subcommand(completions::command())
}

/// The matches of [`command`] as data.
///
/// # Errors
/// What `clap` could not check: combinations of arguments.
pub fn from_matches(matches: &ArgMatches) -> Result<(Global, Invocation), clap::Error> {
    let Some((name, sub)) = matches.subcommand() else {
        return Err(usage_error("a command is missing; `kfc --help` lists them"));
    };
    let global = Global {
        threads: sub.get_one("threads").copied(),
        json: sub.get_flag("json"),
        quiet: sub.get_flag("quiet"),
    };
    let invocation = match name {
        "train" => Invocation::Train(train::from_matches(sub)?),
        "eval" => Invocation::Eval(eval::from_matches(sub)?),
        "logits" => Invocation::Logits(logits::from_matches(sub)?),
        "fisher" => Invocation::Fisher(fisher::from_matches(sub)?),
        "teach" => Invocation::Teach(teach::from_matches(sub)?),
        "merge" => Invocation::Merge(merge::from_matches(sub)?),
        "generate" => Invocation::Generate(generate::from_matches(sub)?),
        "inspect" => Invocation::Inspect(inspect::from_matches(sub)?),
        "compile" => Invocation::Compile(compile::from_matches(sub)?),
        "explain" => Invocation::Explain(explain::from_matches(sub)?),
        "tune" => Invocation::Tune(tune::from_matches(sub)?),
        "doctor" => Invocation::Doctor(doctor::from_matches(sub)?),
        "report" => Invocation::Report(report::from_matches(sub)?),
        "rollback" => Invocation::Rollback(rollback::from_matches(sub)?),
        "bench" => Invocation::Bench(bench::from_matches(sub)?),
        "tokenizer" => Invocation::Tokenizer(tokenizer::from_matches(sub)?),
        "data" => Invocation::Data(data::from_matches(sub)?),
        "completions" => Invocation::Completions(completions::from_matches(sub)?),
        other => {
            return Err(usage_error(&format!("unknown command `{other}`; `kfc --help` lists them")));
        }
    };
    Ok((global, invocation))
}

// Pieces that several subcommands share.

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

fn path(name: &'static str, value_name: &'static str, help: &'static str) -> Arg {
    let parser = clap::builder::PathBufValueParser::new();
    Arg::new(name).long(name).value_name(value_name).value_parser(parser).help(help)
}

fn config() -> Arg {
    let parser = clap::builder::PathBufValueParser::new();
    Arg::new("config").value_name("CONFIG.toml").value_parser(parser).help("The job's configuration")
}

fn run_dir() -> Arg {
    let parser = clap::builder::PathBufValueParser::new();
    Arg::new("run").value_name("RUN_DIR").required(true).value_parser(parser).help("The run directory")
}

fn dtype() -> Arg {
    Arg::new("dtype")
        .long("dtype")
        .value_name("TYPE")
        .value_parser(parse::dtype)
        .help("Compute in f32 or bf16 [default: the type of the stored weights]")
}

fn set() -> Arg {
    Arg::new("set")
        .long("set")
        .value_name("KEY=VALUE")
        .action(ArgAction::Append)
        .help("Override a key of the configuration, as in --set train.steps=10")
}

fn device() -> Arg {
    Arg::new("device")
        .long("device")
        .value_name("DEVICE")
        .value_parser(parse::device)
        .default_value("cpu")
        .help("Where to run: cpu, cuda or cuda:N")
}

fn kernels() -> Arg {
    path(
        "kernels",
        "DIR",
        "GPU kernels that `kfc compile --target … --emit DIR` wrote, instead of compiling them",
    )
}

/// `--kernels` is for GPUs.
fn kernels_of(matches: &ArgMatches, device: Device) -> Result<Option<PathBuf>, clap::Error> {
    let kernels: Option<PathBuf> = matches.get_one("kernels").cloned();
    if kernels.is_some() && device == Device::Cpu {
        let message = "--kernels is for GPUs: use --device cuda with it\n";
        return Err(clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, message));
    }
    Ok(kernels)
}

fn edits() -> Arg {
    Arg::new("kernel")
        .long("kernel")
        .value_name("NAME=FILE")
        .action(ArgAction::Append)
        .value_parser(|text: &str| text.parse::<Edit>())
        .help("Use this .cu or .py file for kernel NAME of a GPU, after checking it; may be repeated")
}

/// `--kernel NAME=FILE` is for GPUs.
fn edits_of(matches: &ArgMatches, is_gpu: bool, instead: &str) -> Result<Vec<Edit>, clap::Error> {
    let edits: Vec<Edit> = all(matches, "kernel");
    if !edits.is_empty() && !is_gpu {
        let message = format!("--kernel NAME=FILE is for GPUs: use {instead} with it\n");
        return Err(clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, message));
    }
    Ok(edits)
}

fn mem_budget() -> Arg {
    Arg::new("mem-budget")
        .long("mem-budget")
        .value_name("SIZE")
        .value_parser(parse::bytes)
        .help("Memory that the run may take, as in 8GiB [default: train.mem_budget]")
}

fn model() -> Arg {
    path("model", "DIR", "A Hugging Face model folder").required(true)
}

fn adapter() -> Arg {
    path("adapter", "DIR", "A PEFT adapter folder to apply on top")
}

fn count(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name("N").value_parser(parse::count).help(help)
}

fn seed() -> Arg {
    Arg::new("seed")
        .long("seed")
        .value_name("N")
        .value_parser(parse::seed)
        .default_value("0")
        .help("Seed of everything random")
}

/// A required argument's value, or the error that clap would have given.
fn required<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, name: &str) -> Result<T, clap::Error> {
    matches.get_one::<T>(name).cloned().ok_or_else(|| usage_error(&format!("--{name} is missing")))
}

/// An error about the combination of arguments.
fn usage_error(message: &str) -> clap::Error {
    clap::Error::raw(clap::error::ErrorKind::MissingRequiredArgument, message)
}

/// All values of a repeated argument.
fn all<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, name: &str) -> Vec<T> {
    matches.get_many::<T>(name).into_iter().flatten().cloned().collect()
}
