//! `kfc bench`

use crate::args::{BenchArgs, Device, Global};
use crate::bench;
use crate::config::format_bytes;
use crate::error::Outcome;
use crate::output;
use crate::progress::Progress;
use serde_json::json;

/// Runs `kfc bench`. The line that `--json` prints has the keys of other tools' step benchmarks, so that they can stand in
/// one table, and `predicted_peak_bytes`.
///
/// # Errors
/// If the workload does not fit the budget or the disk, or a step fails.
pub fn run(args: &BenchArgs, global: &Global) -> anyhow::Result<Outcome> {
    let Device::Cpu = args.device;
    let mut progress = Progress::new("step", 0, bench::steps(), global);
    let timing = bench::run(&args.workload, args.dtype, args.mem_budget, &mut progress)?;
    progress.finish();
    if global.json {
        let losses: Vec<f64> = timing.losses.iter().map(|l| (l * 1e4).round() / 1e4).collect();
        output::json_line(&json!({
            "peer": "kfc", "workload": args.workload.name, "device": "cpu", "dtype": args.dtype.name(),
            "tokens_per_s": (timing.tokens_per_s * 10.0).round() / 10.0,
            "step_ms": (timing.step_ms * 10.0).round() / 10.0, "peak_bytes": timing.peak_bytes, "losses": losses,
            "predicted_peak_bytes": timing.predicted_peak_bytes,
        }))?;
    } else {
        output::stdout_line(&format!(
            "{} {}: {:.0} tokens/s, {:.1} ms a step, peak memory {} ({} predicted)",
            args.workload.name,
            args.dtype,
            timing.tokens_per_s,
            timing.step_ms,
            format_bytes(timing.peak_bytes),
            format_bytes(timing.predicted_peak_bytes)
        ))?;
    }
    Ok(Outcome::Done)
}
