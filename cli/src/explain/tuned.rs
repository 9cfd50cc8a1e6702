//! Which choices `kfc tune` made for the kernels, and what else it tried.

use super::{Explanation, Kernel};
use crate::config::format_bytes;
use kfc_runtime::tuning::{Entry, PlanEntry, Tried, TriedPlan, device};
use serde_json::{Value, json};

/// Choices shown beside the one made.
const RUNNERS_UP: usize = 2;

/// Kernels that something was tried for, in order of their time, and what was found.
fn found<'e>(e: &'e Explanation<'_>) -> impl Iterator<Item = (&'e Kernel<'e>, &'e Entry)> {
    e.kernels.iter().filter_map(|k| Some((k, e.tuning.entry(&k.kind.signature())?)))
}

/// What was found for the programs of a GPU's kernels, by key, in order of the kernels' time.
fn found_programs<'e>(e: &'e Explanation<'_>) -> Vec<(&'e str, &'e device::Entry)> {
    let mut found: Vec<(&str, &device::Entry)> = Vec::new();
    for key in e.kernels.iter().flat_map(|k| k.programs) {
        if let Some(entry) = e.device.as_ref().and_then(|d| d.entry(key))
            && found.iter().all(|(known, _)| known != key)
        {
            found.push((key, entry));
        }
    }
    found
}

/// The table of the first `most` programs with its head; none if nothing was tried.
pub(super) fn program_rows(e: &Explanation<'_>, most: usize) -> Option<Vec<Vec<String>>> {
    let mut rows = vec![["kernel", "choice", "µs", "runners-up"].map(String::from).to_vec()];
    for (key, entry) in found_programs(e).into_iter().take(most) {
        let us = entry.tried(entry.choice).map_or(String::new(), |t| format!("{:.1}", t.ns * 1e-3));
        let others = entry.tried.iter().filter(|t| t.choice != entry.choice && t.samples > 0);
        let word = |t: &device::Tried| {
            let why = t.out.as_ref().map_or(String::new(), |why| format!(", {why}"));
            format!("{} {:.1}{why}", t.choice, t.ns * 1e-3)
        };
        let others: Vec<String> = others.take(RUNNERS_UP).map(word).collect();
        let bits = if entry.other_bits() { ", other bits" } else { "" };
        rows.push(vec![key.into(), format!("{}{bits}", entry.choice), us, others.join("; ")]);
    }
    (rows.len() > 1).then_some(rows)
}

/// What was found for a kernel's programs: an object with each by key; null if nothing was tried.
pub(super) fn programs_json(e: &Explanation<'_>, kernel: &Kernel<'_>) -> Value {
    let tried = |t: &device::Tried| {
        json!({
            "choice": t.choice.to_string(), "ns": t.ns, "samples": t.samples, "registers": t.uses[0],
            "shared_bytes": t.uses[1], "other_bits": t.other_bits, "out": t.out,
        })
    };
    let found = kernel.programs.iter().filter_map(|p| Some((p, e.device.as_ref()?.entry(p)?)));
    let programs: serde_json::Map<String, Value> = found
        .map(|(key, entry)| {
            let tried: Vec<Value> = entry.tried.iter().map(tried).collect();
            let value = json!({
                "choice": entry.choice.to_string(), "settled": entry.settled, "other_bits": entry.other_bits(),
                "tried": tried,
            });
            (key.clone(), value)
        })
        .collect();
    if programs.is_empty() { Value::Null } else { Value::Object(programs) }
}

/// The table of the first `most` kernels with its head; none if nothing was tried.
pub(super) fn rows(e: &Explanation<'_>, most: usize) -> Option<Vec<Vec<String>>> {
    let mut rows = vec![["kernel", "choice", "µs", "runners-up"].map(String::from).to_vec()];
    for (kernel, entry) in found(e).take(most) {
        let us = entry.tried(entry.choice).map_or(String::new(), |t| format!("{:.1}", t.ns * 1e-3));
        let others = entry.tried.iter().filter(|t| t.choice != entry.choice && t.samples > 0);
        let others: Vec<String> = others.take(RUNNERS_UP).map(word).collect();
        rows.push(vec![kernel.label(), entry.choice.name(), us, others.join("; ")]);
    }
    (rows.len() > 1).then_some(rows)
}

/// The table of plans that were timed, the one that runs first; `arena` is the one planned now.
pub(super) fn plans(plan: &PlanEntry, arena: usize) -> Vec<Vec<String>> {
    let mut rows = vec![["made again", "ms", "predicted peak", ""].map(String::from).to_vec()];
    let mut tried: Vec<(usize, &TriedPlan)> = plan.tried.iter().enumerate().collect();
    tried.sort_by_key(|(i, _)| *i != plan.choice.unwrap_or(0));
    rows.extend(tried.into_iter().map(|(i, t)| {
        let out = match plan.choice {
            Some(choice) if choice == i && t.arena != arena => "chosen, but it cannot be used now".into(),
            choice if choice.unwrap_or(0) == i => "chosen".into(),
            _ if plan.leads == Some(i) => {
                "`kfc tune` has yet to compare it together with choices of kernels".into()
            }
            _ => t.out.clone().unwrap_or_default(),
        };
        vec![plan_name(t).into(), format!("{:.2}", t.ms), format_bytes(t.peak), out]
    }));
    rows
}

/// What a plan makes again, in words.
pub(crate) fn plan_name(plan: &TriedPlan) -> &str {
    match plan.name.as_deref() {
        None => "what the planner chooses",
        Some("none") => "nothing",
        Some(name) => name,
    }
}

/// Plans that were timed, as JSON.
pub(crate) fn plan_json(plan: &PlanEntry) -> Value {
    let tried = |t: &TriedPlan| json!({"again": t.name, "ms": t.ms, "peak_bytes": t.peak, "arena_bytes": t.arena, "out": t.out});
    json!({"choice": plan.choice, "tried": plan.tried.iter().map(tried).collect::<Vec<_>>()})
}

fn word(t: &Tried) -> String {
    let why = t.out.as_ref().map_or(String::new(), |why| format!(", {why}"));
    format!("{} {:.1}{why}", t.choice.name(), t.ns * 1e-3)
}

/// What was found for a kernel; null if nothing was tried.
pub(super) fn json(e: &Explanation<'_>, kernel: &Kernel<'_>) -> Value {
    let Some(entry) = e.tuning.entry(&kernel.kind.signature()) else { return Value::Null };
    let tried =
        |t: &Tried| json!({"choice": t.choice.name(), "ns": t.ns, "samples": t.samples, "out": t.out});
    json!({
        "choice": entry.choice.name(), "settled": entry.settled,
        "tried": entry.tried.iter().map(tried).collect::<Vec<_>>(),
    })
}
