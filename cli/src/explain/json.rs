//! The explanation as one JSON object. Times are milliseconds a step.

use super::{Explanation, Total, tuned};
use serde_json::{Value, json};

/// The object.
pub(crate) fn object(e: &Explanation<'_>) -> Value {
    let p = e.profile;
    let r = e.calibration.rates();
    let account: serde_json::Map<String, Value> =
        p.account.iter().map(|(what, bytes)| (what.clone(), json!(bytes))).collect();
    let measured = e.measured.as_ref().zip(p.measured.as_ref()).map(|(m, covered)| {
        let host: serde_json::Map<String, Value> =
            m.host.iter().map(|(what, ms)| (what.clone(), json!(ms))).collect();
        let startup: serde_json::Map<String, Value> =
            covered.startup.iter().map(|(what, ns)| (what.clone(), json!(*ns as f64 * 1e-6))).collect();
        json!({
            "steps": covered.steps, "warmup_steps": covered.warmup, "step_ms": m.step_ms, "kernel_ms": m.kernel_ms,
            "host_ms": host, "attributed": m.attributed, "median_error": m.median_error,
            "weighted_median_error": m.weighted_error, "peak_bytes": covered.peak_bytes,
            "startup_ms": startup,
        })
    });
    json!({
        "model": p.model,
        "batch": p.shape[0], "seq_len": p.shape[1], "accumulation": p.shape[2],
        "machine": {
            "cpu": p.machine.cpu, "isa": p.machine.isa, "threads": p.machine.threads, "version": p.machine.version,
        },
        "limits": {
            "flops_f32": r.flops_f32, "flops_16": r.flops_16, "bytes_per_s": r.bytes,
            "measured": e.calibration.is_measured(), "from": e.calibration.rates_are(),
        },
        "note": e.note(),
        "predicted_ms": e.predicted_ms,
        "measured": measured,
        "predicted_peak_bytes": p.predicted_peak(),
        "account": account,
        "plan": e.plan.map(tuned::plan_json),
        "kernels": e.kernels.iter().map(|k| kernel(e, k)).collect::<Vec<_>>(),
        "phases": e.phases.iter().map(total).collect::<Vec<_>>(),
        "parts": e.places.iter().map(total).collect::<Vec<_>>(),
        "plans": p.plans.iter().zip(&e.memory).map(|(plan, memory)| json!({
            "name": plan.name,
            "runs_per_step": plan.runs_per_step,
            "launches": plan.launches.len(),
            "arena_bytes": plan.arena_bytes,
            "live_bytes": plan.live_bytes,
            "peak": {
                "launch": memory.peak, "at": memory.peak_at, "bytes": memory.peak_bytes(),
                "living": memory.living.iter().map(living).collect::<Vec<_>>(),
            },
            "decisions": plan.decisions.iter().map(|d| json!({
                "value": d.value, "bytes": d.bytes, "recomputed": d.recomputed, "seconds": d.seconds,
            })).collect::<Vec<_>>(),
            "saved": memory.saved.iter().map(living).collect::<Vec<_>>(),
            "timeline_bytes": memory.live,
        })).collect::<Vec<_>>(),
    })
}

fn kernel(e: &Explanation<'_>, k: &super::Kernel<'_>) -> Value {
    // What is said of limits that are guessed would be a guess.
    let has_limits = !e.calibration.is_guessed();
    json!({
        "plan": k.plan.name,
        "op": k.kind.op,
        "attrs": k.kind.attrs,
        "inputs": k.kind.inputs,
        "outputs": k.kind.outputs,
        "launches": k.launches,
        "flops": k.flops,
        "bytes": k.bytes,
        "predicted_ms": k.predicted_ms,
        "source": k.source.name(),
        "measured_ms": k.measured_ms,
        "gflops": k.gflops(),
        "gbytes": k.gbytes(),
        "roofline": has_limits.then(|| k.roofline()),
        "bound": has_limits.then_some(if k.arithmetic { "arithmetic" } else { "memory" }),
        "phases": k.phases.iter().map(|p| p.name()).collect::<Vec<_>>(),
        "parts": k.places.iter().map(|p| p.name()).collect::<Vec<_>>(),
        "saved_bytes": k.saved_bytes,
        "inplace_bytes": k.inplace_bytes,
        "why": k.why(),
        "tuned": super::tuned::json(e, k),
        "programs": k.programs,
        "choices": super::tuned::programs_json(e, k),
    })
}

fn total(t: &Total) -> Value {
    json!({
        "name": t.name, "launches": t.launches, "flops": t.flops, "predicted_ms": t.predicted_ms,
        "measured_ms": t.measured_ms,
    })
}

fn living(l: &super::memory::Living) -> Value {
    json!({
        "op": l.op, "part": l.place.name(), "phase": l.phase.name(), "scratch": l.scratch, "blocks": l.blocks,
        "bytes": l.bytes,
    })
}
