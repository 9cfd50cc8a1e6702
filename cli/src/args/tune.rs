//! `kfc tune`

use super::Device;
use clap::{Arg, ArgMatches, Command};
use std::path::PathBuf;

/// Arguments of `kfc tune`.
#[derive(Clone, Debug, PartialEq)]
pub struct TuneArgs {
    /// The job whose kernels are tuned or timed; only the machine's rates are measured without it.
    pub config: Option<PathBuf>,
    /// `key=value` overrides, in order.
    pub set: Vec<String>,
    /// Where they run.
    pub device: Device,
    /// Whether kernels are only timed, as they run.
    pub calibrate: bool,
    /// Whether earlier findings are forgotten.
    pub fresh: bool,
    /// Seconds to spend.
    pub seconds: Option<u64>,
    /// Tilings of each kernel to try on a GPU.
    pub tilings: usize,
    /// Whether kernels of a GPU may win whose results have other bits.
    pub allow_other_bits: bool,
}

/// Tilings of each kernel to try unless told otherwise.
const TILINGS: usize = 12;

const EXAMPLES: &str = "\
Examples:
  kfc tune job.toml                look for faster ways to run the job's kernels
  kfc tune job.toml --seconds 300  the same with more time; goes on where the last search ended
  kfc tune --calibrate             how fast this machine multiplies and streams
  kfc tune job.toml --calibrate    and how long each kernel of the job takes in its place
  kfc tune job.toml --device cuda  the same search for the kernels of the first GPU

The search tries, in training steps that nobody keeps, how each kernel may cut its work: tiles of products, which operand of
a product is read in place, transposed copies of frozen weights where memory has room, tokens that the head takes at once,
threads. Where train.recompute is \"auto\", plans that make other values again in the backward pass are timed in whole steps, too,
within train.mem_budget. No choice changes a bit of any result. A choice is used from then on if it is faster than the built-in
one by more than the noise, and if the whole step is; `kfc explain` shows it beside the runners-up.

On a GPU, kernels are tried that are cut in another way (products and attention: rows, columns and depth of a tile, warps,
stages) or printed in Triton instead of CUDA C++, and heads that take fewer tokens at once. Triton is tried if there is a Python
with it (KFC_PYTHON, or kernels.python of the job) or kernels are in the cache, cuBLASLt for plain products if the library is there
(KFC_CUBLASLT names its folder). What does not compile, spills registers, does not fit the device or gives wrong results is out;
a kernel that breaks the device is written down and never launched again. One whose results are right but have other bits is
timed and shown, and used only with --allow-other-bits: runs have other bits then, say so, and are resumed with the same
kernels alone.

While the search goes on, it keeps what is out, once a second at most: one that is killed goes on from there with the same command,
and what is used is what was used before. Ctrl-C ends the search early and keeps all that it found.

What is found and measured is kept in $XDG_CACHE_HOME/kfc (or ~/.cache/kfc), for this CPU, level of instructions and number
of threads, or for this GPU and version of the compiler. KFC_TUNING names another file for what is found, or is `off`: kernels
run as built in then, and there is no place for a search. Times make the predictions of `kfc explain` exact; what to recompute under a budget is planned with them.";

fn seconds(text: &str) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(seconds @ 1..=3600) => Ok(seconds),
        _ => Err("give seconds from 1 to 3600".into()),
    }
}

fn tilings(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(tilings @ 2..=200) => Ok(tilings),
        _ => Err("give a number of tilings from 2 to 200".into()),
    }
}

pub(super) fn command() -> Command {
    Command::new("tune")
        .about("Look for faster ways to run a job's kernels here, or only time them")
        .after_help(EXAMPLES)
        .arg(super::config().required_unless_present("calibrate"))
        .arg(super::set())
        .arg(super::device())
        .arg(super::flag("calibrate", "Only time kernels, as they run, and keep the times for predictions"))
        .arg(super::flag("fresh", "Forget what earlier searches tried").conflicts_with("calibrate"))
        .arg(
            Arg::new("seconds")
                .long("seconds")
                .value_name("N")
                .value_parser(seconds)
                .help("How long to search, or to time the job's steps [default: 60, with --calibrate 10]"),
        )
        .arg(
            Arg::new("tilings")
                .long("tilings")
                .value_name("N")
                .value_parser(tilings)
                .conflicts_with("calibrate")
                .help("Tilings of each kernel to try on a GPU, the likeliest first [default: 12]"),
        )
        .arg(
            super::flag(
                "allow-other-bits",
                "Let kernels of a GPU win whose results are right within rounding, not to the bit",
            )
            .conflicts_with("calibrate"),
        )
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<TuneArgs, clap::Error> {
    let device = super::required(matches, "device")?;
    let tilings: Option<usize> = matches.get_one("tilings").copied();
    if tilings.is_some() && device == Device::Cpu {
        return Err(super::usage_error("--tilings is for GPUs: use --device cuda with it"));
    }
    let allow_other_bits = matches.get_flag("allow-other-bits");
    if allow_other_bits && device == Device::Cpu {
        let why =
            "--allow-other-bits is for GPUs: use --device cuda with it; no choice on a CPU changes a bit";
        return Err(super::usage_error(why));
    }
    Ok(TuneArgs {
        config: matches.get_one("config").cloned(),
        set: super::all(matches, "set"),
        device,
        calibrate: matches.get_flag("calibrate"),
        fresh: matches.get_flag("fresh"),
        seconds: matches.get_one("seconds").copied(),
        tilings: tilings.unwrap_or(TILINGS),
        allow_other_bits,
    })
}
