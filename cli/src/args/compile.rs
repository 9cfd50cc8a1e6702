//! `kfc compile`

use clap::{Arg, ArgMatches, Command};
use kfc_kernels::cuda::Arch;
use kfc_runtime::edited::Edit;
use std::path::PathBuf;

/// What the plan is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The CPU.
    Cpu,
    /// NVIDIA GPUs, through CUDA C++.
    Cuda(Arch),
    /// NVIDIA GPUs of this compute capability, through Triton.
    Triton(u32),
}

/// Compute capabilities that Triton compiles for.
const ARCHS: [u32; 3] = [80, 90, 100];

/// Arguments of `kfc compile`.
#[derive(Clone, Debug, PartialEq)]
pub struct CompileArgs {
    /// The job.
    pub config: PathBuf,
    /// `key=value` overrides, in order.
    pub set: Vec<String>,
    /// What for.
    pub target: Target,
    /// Folder that gets the IR after every pass and the plan.
    pub emit: PathBuf,
    /// Files of kernels that are used instead of kfc's.
    pub edits: Vec<Edit>,
    /// Replaces `train.mem_budget`.
    pub mem_budget: Option<u64>,
    /// Python with Triton.
    pub python: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Example:
  kfc compile job.toml --emit plan
  kfc compile job.toml --target cuda:sm_90a --emit gpu
  kfc compile job.toml --target triton:sm_90 --emit triton
  kfc compile job.toml --target triton:sm_90 --kernel rms_norm=mine.py --emit edited

Writes plan/ir/NN-pass.kir (the IR after every pass) and plan/plan.json; for a GPU also plan/job.toml, plan/kernels/NAME.cu or
NAME.py, NAME.cubin and NAME.json (registers, spills, shared memory, tensor-core instructions, grid, parameters). Needs no GPU:
CUDA C++ is compiled by NVRTC, from the folder in KFC_NVRTC or where the system finds libraries, and Triton by its own
compiler. An edited kernel in Triton is compared with the original on Triton's interpreter; one in CUDA C++ is compiled here,
and compared on the device before a run's first step.";

/// What `--target` takes.
const TARGETS: &str =
    "cpu, cuda:sm_80, cuda:sm_90a, cuda:sm_100a, triton:sm_80, triton:sm_90 or triton:sm_100";

fn target(text: &str) -> Result<Target, String> {
    let triton = |a: &&u32| text.strip_prefix("triton:sm_") == Some(&a.to_string());
    let cuda = text.strip_prefix("cuda:").and_then(|arch| arch.parse().ok());
    match (cuda, ARCHS.iter().find(triton)) {
        (Some(arch), _) => Ok(Target::Cuda(arch)),
        (_, Some(arch)) => Ok(Target::Triton(*arch)),
        _ if text == "cpu" => Ok(Target::Cpu),
        _ => Err(format!("use {TARGETS}")),
    }
}

pub(super) fn command() -> Command {
    Command::new("compile")
        .about("Compile a job without running it, and write every stage")
        .after_help(EXAMPLES)
        .arg(super::config().required(true))
        .arg(super::set())
        .arg(
            Arg::new("target")
                .long("target")
                .value_name("TARGET")
                .value_parser(target)
                .default_value("cpu")
                .help(format!("What to compile for: {TARGETS}")),
        )
        .arg(super::path("emit", "DIR", "Folder to write").required(true))
        .arg(super::edits())
        .arg(super::mem_budget())
        .arg(super::path(
            "python",
            "PATH",
            "Python with Triton 3.6 [default: KFC_PYTHON, kernels.python of the job, .gpu-toolchain, python3]",
        ))
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<CompileArgs, clap::Error> {
    let target = super::required(matches, "target")?;
    let python: Option<PathBuf> = matches.get_one("python").cloned();
    if python.is_some() && !matches!(target, Target::Triton(_)) {
        return Err(super::usage_error(
            "--python compiles Triton kernels: use it with --target triton:sm_90 or the like",
        ));
    }
    Ok(CompileArgs {
        config: super::required(matches, "config")?,
        set: super::all(matches, "set"),
        target,
        edits: super::edits_of(matches, target != Target::Cpu, "--target cuda:… or triton:…")?,
        emit: super::required(matches, "emit")?,
        mem_budget: matches.get_one("mem-budget").copied(),
        python,
    })
}
