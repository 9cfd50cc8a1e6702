//! `kfc bench`

use super::{Device, parse};
use crate::bench::generate::Lengths;
use crate::bench::workloads::{ALL, SMALL, Workload};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use kfc_graph::DType;
use kfc_kernels::cpu::choice::{self, Choice};
use kfc_runtime::edited::Edit;
use std::path::PathBuf;

/// Arguments of `kfc bench`.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchArgs {
    /// What is run.
    pub workload: Workload,
    /// Where to run.
    pub device: Device,
    /// Folder that a GPU's kernels come from.
    pub kernels: Option<PathBuf>,
    /// Element type of weights and activations.
    pub dtype: DType,
    /// Memory that it may take.
    pub mem_budget: Option<u64>,
    /// Folder in which everything that it runs on stays.
    pub keep: Option<PathBuf>,
    /// Generate with the student instead of training.
    pub generate: Option<Lengths>,
    /// Time one kernel of the step alone, or list them.
    pub kernel: Option<KernelArgs>,
}

/// Which kernel is timed alone, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelArgs {
    /// Its name; all are listed without it.
    pub name: Option<String>,
    /// A file with the same kernel of a GPU, timed beside it.
    pub file: Option<PathBuf>,
    /// The job that it is of, instead of the workload's.
    pub job: Option<PathBuf>,
    /// How it cuts its work, instead of what `kfc tune` found.
    pub choice: Option<Choice>,
    /// How long it is sampled.
    pub seconds: Option<f64>,
    /// Under which name its times are kept.
    pub save_baseline: Option<String>,
    /// Under which name times were kept that its own are compared with, instead of the last ones.
    pub baseline: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  kfc bench                         the workload `small` in bf16
  kfc bench tiny --dtype f32 --json
  kfc bench small --mem-budget 1GiB
  kfc bench small --generate --prompt 512 --new 128
  kfc bench small --keep work       keeps models, rows, adapter and job; then: kfc train work/job.toml
  kfc bench short --list            the kernels of the step
  kfc bench short --kernel linear.1 one of them alone, beside its limit
  kfc bench --job job.toml --kernel lora_linear.2 --choice 'turned, tile 64x512'
  kfc bench short --kernel rms_norm.1 --save-baseline before     and after a change: --baseline before
  kfc bench short --kernel rms_norm.1 --seconds 0.2          a rough figure
  kfc bench --job job.toml --device cuda --list
  kfc bench --job job.toml --device cuda --kernel rms_norm=mine.cu   checked, then beside kfc's own

A kernel is timed by criterion: a confidence interval of 95 %, and the change against its last run, which is kept in
$XDG_CACHE_HOME/kfc/bench (or ~/.cache/kfc/bench), or where CRITERION_HOME says.
Of steps, two of warm-up, then the median of five: LoRA, distillation and EWC on random weights and tokens.
short and fact are one row of 32 tokens on the models of tiny and small; llama1b and llama8b have no teacher, and write a
model of that size to the temporary folder.";

fn workload(name: &str) -> Result<Workload, String> {
    let names = ALL.map(|w| w.name).join(", ");
    ALL.into_iter()
        .find(|w| w.name == name)
        .ok_or_else(|| format!("there is no such workload; use one of {names}"))
}

pub(super) fn command() -> Command {
    Command::new("bench")
        .about("Time training steps of a known shape")
        .after_help(EXAMPLES)
        .arg(
            Arg::new("workload")
                .value_name("WORKLOAD")
                .value_parser(workload)
                .default_value(SMALL.name)
                .help("tiny, short, small, fact, llama1b or llama8b"),
        )
        .arg(super::device())
        .arg(super::kernels())
        .arg(
            Arg::new("dtype")
                .long("dtype")
                .value_name("TYPE")
                .value_parser(parse::dtype)
                .default_value("bf16")
                .help("Element type of weights and activations: bf16 or f32"),
        )
        .arg(super::mem_budget().help("Memory that the run may take, as in 8GiB"))
        .arg(
            Arg::new("keep")
                .long("keep")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .help("Keep models, rows, the initial adapter and job.toml in this folder"),
        )
        .arg(
            Arg::new("generate")
                .long("generate")
                .action(ArgAction::SetTrue)
                .conflicts_with("mem-budget")
                .help("Time the student's greedy generation instead: reading a prompt, making tokens"),
        )
        .arg(super::flag("list", "List the kernels of the step").conflicts_with_all(["kernel", "generate"]))
        .arg(
            Arg::new("kernel")
                .long("kernel")
                .value_name("NAME[=FILE]")
                .conflicts_with("generate")
                .help("Time this kernel of the step alone; on a GPU also the edited one in a .cu or .py file, beside it"),
        )
        .arg(
            super::path("job", "CONFIG.toml", "With --list or --kernel: the kernels of this job")
                .conflicts_with_all(["workload", "dtype", "mem-budget", "keep", "generate"]),
        )
        .arg(
            Arg::new("choice")
                .long("choice")
                .value_name("CHOICE")
                .value_parser(choice)
                .requires("kernel")
                .help("How the kernel cuts its work, as in 'turned, 1 thread' [default: as tuned]"),
        )
        .arg(
            Arg::new("seconds")
                .long("seconds")
                .value_name("N")
                .value_parser(seconds)
                .requires("kernel")
                .help("How long the kernel is sampled, after a quarter of that to warm up [default: 2]"),
        )
        .arg(
            Arg::new("save-baseline")
                .long("save-baseline")
                .value_name("NAME")
                .value_parser(baseline)
                .requires("kernel")
                .help("Keep the kernel's times under this name, for --baseline"),
        )
        .arg(
            Arg::new("baseline")
                .long("baseline")
                .value_name("NAME")
                .value_parser(baseline)
                .requires("kernel")
                .conflicts_with("save-baseline")
                .help("Compare the kernel's times with those of this name [default: those of its last run]"),
        )
        .arg(length("prompt", "512", "Tokens of the prompt"))
        .arg(length("new", "128", "Tokens that are made"))
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.01..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("give seconds from 0.01 to 600".into()),
    }
}

/// A name of times that are kept: a folder's.
fn baseline(text: &str) -> Result<String, String> {
    let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    match is_plain && !text.is_empty() && !["new", "base", "change"].contains(&text) {
        true => Ok(text.into()),
        false => Err("use letters, digits, - and _, and none of the names new, base and change".into()),
    }
}

fn choice(text: &str) -> Result<Choice, String> {
    Choice::named(text).ok_or_else(|| {
        let chunks: Vec<String> = choice::chunks().map(|n| n.to_string()).collect();
        let tiles: Vec<String> = choice::tiles().map(|(rows, columns)| format!("{rows}x{columns}")).collect();
        let parts: Vec<String> = choice::parts().map(|n| n.to_string()).collect();
        format!(
            "use built-in, or `transposed`, `turned`, `tile RxC`, `parts N`, `chunk N` and `N threads`, with commas; tiles are \
             {}, parts {}, chunks {}",
            tiles.join(", "),
            parts.join(", "),
            chunks.join(", ")
        )
    })
}

fn kernel(matches: &ArgMatches) -> Result<Option<KernelArgs>, clap::Error> {
    let text: Option<String> = matches.get_one("kernel").cloned();
    let edit = text.as_deref().filter(|t| t.contains('=')).map(str::parse::<Edit>).transpose();
    let edit = edit
        .map_err(|e| super::usage_error(&format!("--kernel {}: {e}", text.as_deref().unwrap_or_default())))?;
    let (name, file) = match edit {
        Some(edit) => (Some(edit.kernel), Some(edit.file)),
        None => (text, None),
    };
    let job: Option<PathBuf> = matches.get_one("job").cloned();
    if name.is_none() && !matches.get_flag("list") {
        return match job {
            Some(_) => Err(super::usage_error("--job goes with --list or --kernel; `kfc train` runs a job")),
            None => Ok(None),
        };
    }
    let of = |name: &str| matches.get_one(name).cloned();
    Ok(Some(KernelArgs {
        name,
        file,
        job,
        choice: matches.get_one("choice").copied(),
        seconds: matches.get_one("seconds").copied(),
        save_baseline: of("save-baseline"),
        baseline: of("baseline"),
    }))
}

fn length(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name("N")
        .value_parser(parse::count)
        .default_value(default)
        .requires("generate")
        .help(help)
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<BenchArgs, clap::Error> {
    let device = super::required(matches, "device")?;
    if device != Device::Cpu && matches.get_flag("generate") {
        let message = "--generate runs on the CPU alone: use --device cpu with it\n";
        return Err(clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, message));
    }
    let conflict = |message: &str| Err(clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, message));
    if device != Device::Cpu && matches.contains_id("choice") {
        return conflict("--choice is for kernels of the CPU: use --device cpu with it\n");
    }
    let kernel = kernel(matches)?;
    if device == Device::Cpu && kernel.as_ref().is_some_and(|k| k.file.is_some()) {
        return conflict("--kernel NAME=FILE is for GPUs: use --device cuda with it\n");
    }
    Ok(BenchArgs {
        workload: super::required(matches, "workload")?,
        device,
        kernels: super::kernels_of(matches, device)?,
        dtype: super::required(matches, "dtype")?,
        mem_budget: matches.get_one("mem-budget").copied(),
        keep: matches.get_one("keep").cloned(),
        generate: match matches.get_flag("generate") {
            true => Some(Lengths {
                prompt: super::required(matches, "prompt")?,
                new: super::required(matches, "new")?,
            }),
            false => None,
        },
        kernel,
    })
}
