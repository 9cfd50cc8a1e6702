//! One kernel of a step alone, timed beside its limit; and the list of them.

use super::Place;
use super::sampled::{Samples, time};
use crate::args::{BenchArgs, Global, KernelArgs};
use crate::commands::tune::trainer_in;
use crate::config;
use crate::error::{Outcome, input_error};
use crate::output;
use kfc_kernels::cpu::choice::Choice;
use kfc_runtime::alone::{self, Alone, Group};
use kfc_runtime::calibration::Calibration;
use kfc_runtime::device::Device;
use kfc_runtime::exec::Copies;
use kfc_runtime::profile::Machine;
use kfc_runtime::train::Ways;
use kfc_runtime::tuning::Tuning;
use serde_json::json;

/// Runs `kfc bench --kernel` and `--list`.
///
/// # Errors
/// If the job is wrong or there is no kernel of that name.
pub fn run(args: &BenchArgs, kernel: &KernelArgs, global: &Global) -> anyhow::Result<Outcome> {
    let place;
    let job = match &kernel.job {
        Some(path) => &config::load(path, &[])?,
        None => {
            place = Place::of(&args.workload, args.dtype, args.keep.as_deref())?;
            &place.job
        }
    };
    let is_copied = kernel.choice.is_some_and(|c| c.transposed);
    let copies = if is_copied { Copies::All } else { Copies::AsTuned };
    let mut trainer = trainer_in(&Device::Cpu, job, &Ways { copies, ..Ways::default() })?;
    let groups = alone::groups(&mut trainer);
    let tuning = Tuning::load(&Machine::this());
    let Some(name) = &kernel.name else {
        return list(&groups, &tuning, global);
    };
    let Some(group) = groups.iter().find(|g| g.name == *name) else {
        return Err(unknown(name, &groups));
    };
    let choice = kernel.choice.unwrap_or_else(|| tuning.choice(&group.kind.signature()));
    let mut calibration = Calibration::empty(Machine::this());
    calibration.measure_rates()?;
    let Machine { cpu, isa, threads, .. } = Machine::this();
    let work = format!("{cpu}\n{isa}\n{threads}\n{}\n{}", group.kind.signature(), choice.name());
    let samples = Samples::of(&group.name, &work, kernel, global.quiet)?;
    let mut alone = Alone::new(&mut trainer, group, choice)?;
    let one = alone.run(WARM_UP) / WARM_UP as u32;
    let sampled = samples.take(one, &mut |n| Ok(alone.run(n)))?;
    let rates = calibration.rates();
    let (cost, is_16_bit) = (group.kind.cost, group.kind.is_16_bit());
    let limit = rates.roofline(cost, is_16_bit) * 1e9;
    let (flops, bytes) = (cost.flops as f64, cost.bytes as f64);
    if global.json {
        let mut value = sampled.json(limit);
        let about = json!({
            "kernel": group.name, "signature": group.kind.signature(), "choice": choice.name(), "limit_us": limit * 1e-3,
            "gflops": flops / sampled.time.value, "gbytes": bytes / sampled.time.value, "launches": group.launches,
        });
        if let (Some(value), Some(about)) = (value.as_object_mut(), about.as_object()) {
            value.extend(about.clone());
        }
        output::json_line(&value)?;
        return Ok(Outcome::Done);
    }
    let share = limit / sampled.time.value;
    // The limit of memory holds for operands that come from there.
    let is_cached = share > 1.0 && bytes / rates.bytes * 1e9 >= limit;
    let why = if is_cached { ": its operands stay in the caches" } else { "" };
    let of_limit = format!("{} ({:.0} % of it reached{why})", time(limit), share * 100.0);
    let rows = [
        ["kernel", &group.name],
        ["work", &group.kind.signature()],
        ["choice", &choice.name()],
        ["time", &sampled.time_told()],
        ["median", &format!("{} over {} runs", time(sampled.median), sampled.runs)],
        ["rates", &sampled.rates_told(flops, bytes)],
        ["limit", &of_limit],
        ["change", &sampled.change_told()],
        ["launches", &format!("{} a step", group.launches)],
    ];
    output::write_stdout(&output::pairs(&rows))?;
    Ok(Outcome::Done)
}

/// Runs before criterion's own warm-up, which tell how long one takes.
const WARM_UP: u64 = 3;

/// All kernels, in order of their first launch.
fn list(groups: &[Group], tuning: &Tuning, global: &Global) -> anyhow::Result<Outcome> {
    let choice = |g: &Group| -> Choice { tuning.choice(&g.kind.signature()) };
    if global.json {
        let kernel = |g: &Group| json!({"kernel": g.name, "signature": g.kind.signature(), "launches": g.launches, "choice": choice(g).name()});
        output::json_line(&json!({"kernels": groups.iter().map(kernel).collect::<Vec<_>>()}))?;
        return Ok(Outcome::Done);
    }
    let mut rows = vec![["kernel", "launches", "choice", "operands"].map(String::from).to_vec()];
    for g in groups {
        let operands = g.kind.inputs.iter().take(OPERANDS).cloned().collect::<Vec<_>>().join(", ");
        let more = if g.kind.inputs.len() > OPERANDS { ", …" } else { "" };
        rows.push(vec![g.name.clone(), g.launches.to_string(), choice(g).name(), operands + more]);
    }
    output::write_stdout(&output::table(&rows))?;
    Ok(Outcome::Done)
}

/// Operands of a kernel in the list.
const OPERANDS: usize = 4;

fn unknown(name: &str, groups: &[Group]) -> anyhow::Error {
    let alike: Vec<&str> = groups.iter().filter(|g| g.kind.op == name).map(|g| g.name.as_str()).collect();
    match alike[..] {
        [] => input_error(format!("--kernel {name}: the step has no such kernel; --list shows them")),
        _ => input_error(format!("--kernel {name}: there are several; use one of {}", alike.join(", "))),
    }
}
