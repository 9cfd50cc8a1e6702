//! `kfc bench`

use crate::args::{BenchArgs, Device, Global};
use crate::bench;
use crate::bench::generate::Lengths;
use crate::config::format_bytes;
use crate::error::Outcome;
use crate::output;
use crate::progress::Progress;
use kfc_runtime::profile::Machine;
use kfc_runtime::tuning::Tuning;
use serde_json::json;

/// Runs `kfc bench`. The line that `--json` prints has the keys of other tools' step benchmarks, so that they can stand in
/// one table, `predicted_peak_bytes`, and how long the first step took to come.
///
/// # Errors
/// If the workload does not fit the budget or the disk, or a step fails.
pub fn run(args: &BenchArgs, global: &Global) -> anyhow::Result<Outcome> {
    if let Some(note) = Tuning::unused(&Machine::this()).filter(|_| args.device == Device::Cpu) {
        output::stderr_line(&format!("note      {note}"));
    }
    match (&args.kernel, args.device) {
        (Some(kernel), Device::Cpu) => return bench::kernel::run(args, kernel, global),
        (Some(kernel), Device::Cuda(index)) => return bench::device_kernel::run(args, kernel, index, global),
        (None, _) => {}
    }
    if let Some(lengths) = args.generate {
        return generate(args, lengths, global);
    }
    let mut progress = Progress::new("step", 0, bench::steps(), global);
    let device = args.device.with_kernels(args.kernels.as_deref());
    let timing = bench::run(
        &device,
        &args.workload,
        args.dtype,
        args.mem_budget,
        args.keep.as_deref(),
        &mut progress,
    )?;
    progress.finish();
    if global.json {
        let losses: Vec<f64> = timing.losses.iter().map(|l| (l * 1e6).round() / 1e6).collect();
        output::json_line(&json!({
            "peer": "kfc", "workload": args.workload.name, "device": device.name(), "dtype": args.dtype.name(),
            "tokens_per_s": (timing.tokens_per_s * 10.0).round() / 10.0,
            "step_ms": (timing.step_ms * 10.0).round() / 10.0, "peak_bytes": timing.peak_bytes, "losses": losses,
            "predicted_peak_bytes": timing.predicted_peak_bytes,
            "cold_start_ms": (timing.cold_start_ms * 10.0).round() / 10.0,
            "first_step_ms": (timing.first_step_ms * 10.0).round() / 10.0,
        }))?;
    } else {
        output::stdout_line(&format!(
            "{} {}: {:.0} tokens/s, {:.1} ms a step, peak memory {} ({} predicted), first step after {:.0} ms",
            args.workload.name,
            args.dtype,
            timing.tokens_per_s,
            timing.step_ms,
            format_bytes(timing.peak_bytes),
            format_bytes(timing.predicted_peak_bytes),
            timing.cold_start_ms
        ))?;
    }
    Ok(Outcome::Done)
}

/// Times generation.
fn generate(args: &BenchArgs, lengths: Lengths, global: &Global) -> anyhow::Result<Outcome> {
    let timing = bench::generate::run(&args.workload, args.dtype, lengths, args.keep.as_deref())?;
    let tenth = |rate: f64| (rate * 10.0).round() / 10.0;
    if global.json {
        output::json_line(&json!({
            "peer": "kfc", "workload": args.workload.name, "device": "cpu", "dtype": args.dtype.name(),
            "prompt": lengths.prompt, "new": lengths.new,
            "prefill_tokens_per_s": tenth(timing.prefill_tokens_per_s),
            "decode_tokens_per_s": tenth(timing.decode_tokens_per_s),
            "peak_bytes": timing.peak_bytes, "tokens": timing.tokens,
        }))?;
    } else {
        output::stdout_line(&format!(
            "{} {}: prompt of {} at {:.0} tokens/s, then {} at {:.1} tokens/s, peak memory {}",
            args.workload.name,
            args.dtype,
            lengths.prompt,
            timing.prefill_tokens_per_s,
            lengths.new,
            timing.decode_tokens_per_s,
            format_bytes(timing.peak_bytes)
        ))?;
    }
    Ok(Outcome::Done)
}
