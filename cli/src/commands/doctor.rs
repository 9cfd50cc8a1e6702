//! `kfc doctor`: what this machine has, and whether a job fits it.

use crate::args::{DoctorArgs, Global};
use crate::config::{self, format_bytes};
use crate::doctor::disk::{self, Speed};
use crate::doctor::fit::{self, Fit};
use crate::doctor::gpu::{self, Gpu};
use crate::error::Outcome;
use crate::output;
use kfc_kernels::cpu::simd;
use kfc_runtime::calibration::Calibration;
use kfc_runtime::counted;
use kfc_runtime::machine::{self, Memory};
use kfc_runtime::profile::Machine;
use serde_json::{Value, json};
use std::path::Path;

/// Runs `kfc doctor`.
///
/// # Errors
/// If the job is wrong; what the machine lacks is told, and no error.
pub fn run(args: &DoctorArgs, global: &Global) -> anyhow::Result<Outcome> {
    let job = args.config.as_ref().map(|path| config::load(path, &args.set)).transpose()?;
    let memory = machine::memory();
    let disks = match &job {
        Some(job) => job.data.train.iter().take(1).chain([&job.model.path]).map(|p| disk::read(p)).collect(),
        None => vec![disk::write(Path::new("."))],
    };
    let gpu = gpu::find();
    let fit = job.as_ref().map(|job| fit::check(job, &args.device.plain(), memory)).transpose()?;
    if global.json {
        output::json_line(&object(memory, &disks, &gpu, fit.as_ref()))?;
    } else {
        output::write_stdout(&text(memory, &disks, &gpu, fit.as_ref()))?;
    }
    Ok(Outcome::Done)
}

fn text(memory: Memory, disks: &[std::io::Result<Speed>], gpu: &Gpu, fit: Option<&Fit>) -> String {
    let features = machine::features();
    let words = |has: bool| {
        let list: Vec<&str> = features.iter().filter(|(_, h)| *h == has).map(|(name, _)| *name).collect();
        if list.is_empty() { "none".to_string() } else { list.join(" ") }
    };
    let threads = rayon::current_num_threads();
    let calibration = Calibration::load(&Machine::this());
    let mut rows = vec![
        ("cpu", machine::cpu_model()),
        ("features", format!("{}; missing: {}", words(true), words(false))),
        (
            "kernels",
            format!(
                "{} instructions; this CPU has {}",
                simd::level().name(),
                simd::names(&simd::available())
            ),
        ),
        ("cores", format!("{} usable, {} for kernels", machine::cores(), counted(threads, "thread"))),
        ("memory", format!("{} of {} free", format_bytes(memory.available), format_bytes(memory.total))),
    ];
    rows.push(match memory.group {
        Some((limit, left)) => {
            ("limit", format!("{} left of {} in the control group", format_bytes(left), format_bytes(limit)))
        }
        None => ("limit", "none beside the machine's memory".into()),
    });
    rows.extend(
        disks
            .iter()
            .map(|d| ("disk", d.as_ref().map_or_else(|e| format!("cannot be measured: {e}"), Speed::text))),
    );
    rows.push(("gpu", gpu.text()));
    rows.push((
        "predicts",
        match (calibration.is_measured(), calibration.kernels()) {
            (true, n) => format!("calibrated, {n} kernels timed"),
            (false, _) => "roughly; `kfc tune JOB.toml --calibrate` measures this machine".into(),
        },
    ));
    let mut text: String = rows.iter().map(|(name, value)| format!("{name:<10}{value}\n")).collect();
    if let Some(fit) = fit {
        text.push('\n');
        text.push_str(&verdict(fit));
    }
    text
}

fn verdict(fit: &Fit) -> String {
    let peak = fit.profile.predicted_peak();
    let items: Vec<String> = fit
        .profile
        .account
        .iter()
        .map(|(what, bytes)| format!("  {:>10}  {what}\n", format_bytes(*bytes)))
        .collect();
    let sizes = format!(
        "{} predicted, {} allowed by {}",
        format_bytes(peak),
        format_bytes(fit.limit),
        fit.limited_by
    );
    let mut text = match fit.fits() {
        true => format!("the job fits: {sizes}\n{}", items.concat()),
        false => format!("the job does not fit: {sizes}\n{}what to change\n", items.concat()),
    };
    fit.advice.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
    text
}

fn object(memory: Memory, disks: &[std::io::Result<Speed>], gpu: &Gpu, fit: Option<&Fit>) -> Value {
    let features: serde_json::Map<String, Value> =
        machine::features().into_iter().map(|(name, has)| (name.to_string(), json!(has))).collect();
    let libraries: serde_json::Map<String, Value> =
        gpu.libraries.iter().map(|(name, path)| (name.to_string(), json!(path))).collect();
    let cuda: Vec<Value> = gpu.cuda.iter().flatten().map(gpu::to_json).collect();
    let calibration = Calibration::load(&Machine::this());
    json!({
        "cpu": machine::cpu_model(),
        "features": features,
        "isa": simd::level().name(),
        "isas": simd::available().iter().map(|l| l.name()).collect::<Vec<_>>(),
        "cores": machine::cores(),
        "threads": rayon::current_num_threads(),
        "memory": {
            "total_bytes": memory.total,
            "available_bytes": memory.available,
            "group_limit_bytes": memory.group.map(|g| g.0),
            "group_left_bytes": memory.group.map(|g| g.1),
        },
        "disks": disks.iter().map(disk_json).collect::<Vec<_>>(),
        "gpu": {"devices": gpu.devices, "driver": gpu.driver, "libraries": libraries, "usable": gpu.is_usable(), "cuda": cuda},
        "calibration": {"measured": calibration.is_measured(), "kernels": calibration.kernels()},
        "job": fit.map(|f| {
            let account: serde_json::Map<String, Value> =
                f.profile.account.iter().map(|(what, bytes)| (what.clone(), json!(bytes))).collect();
            json!({
                "fits": f.fits(), "predicted_peak_bytes": f.profile.predicted_peak(), "limit_bytes": f.limit,
                "limited_by": f.limited_by, "account": account, "advice": f.advice,
            })
        }),
    })
}

fn disk_json(d: &std::io::Result<Speed>) -> Value {
    match d {
        Ok(d) => json!({
            "path": d.path, "bytes": d.bytes, "read_bytes_per_s": d.read, "write_bytes_per_s": d.written,
            "cached": d.cached,
        }),
        Err(e) => json!({"error": e.to_string()}),
    }
}
