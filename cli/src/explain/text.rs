//! The explanation as text.

use super::{Explanation, Total, tuned};
use crate::config::format_bytes;
use crate::output::table;
use kfc_graph::budget::Decision;
use kfc_kernels::cuda::Arch;
use kfc_runtime::accounting::EMBEDDED;
use kfc_runtime::profile::{Machine, Profile};
use std::fmt::Write;

/// Kernels listed by default.
const KERNELS: usize = 20;
/// Entries of the other lists.
const ENTRIES: usize = 10;

/// A time in a table.
pub(crate) fn ms(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 1.0 => format!("{v:.2}"),
        v => format!("{v:.4}"),
    }
}

/// A rate in a table.
fn rate(value: f64) -> String {
    if value == 0.0 {
        "-".into()
    } else if value >= 10.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// The whole text.
pub(crate) fn render(e: &Explanation<'_>) -> String {
    let mut out = String::new();
    for (name, value) in summary(e) {
        let _ = writeln!(out, "{name:<10}{value}");
    }
    let shown = e.kernels.len().min(KERNELS);
    let _ = writeln!(
        out,
        "\nkernels, the slowest {shown} of {} (times and launches are those of a step)",
        e.kernels.len()
    );
    out.push_str(&table(&kernel_rows(e, KERNELS)));
    if let Some(rows) = tuned::rows(e, KERNELS) {
        out.push_str(
            "\nhow kernels cut their work, as `kfc tune` found it (µs a launch while it was tried)\n",
        );
        out.push_str(&table(&rows));
    }
    if let Some(rows) = tuned::program_rows(e, KERNELS) {
        out.push_str("\nhow kernels are made, as `kfc tune` found it (µs a launch while it was tried)\n");
        out.push_str(&table(&rows));
    }
    if let Some(plan) = e.plan {
        out.push_str("\nwhat is made again in the backward pass, as `kfc tune` found it (ms a step while it was tried)\n");
        out.push_str(&table(&tuned::plans(plan, e.profile.plans[0].arena_bytes)));
    }
    out.push_str("\nby phase\n");
    out.push_str(&table(&totals(e, &e.phases)));
    out.push_str("\nby part\n");
    out.push_str(&table(&totals(e, &e.places)));
    if let Some(m) = &e.measured {
        out.push_str("\noutside of kernels\n");
        let mut rows: Vec<Vec<String>> =
            m.host.iter().map(|(what, t)| vec![what.clone(), ms(*t), percent(t / m.step_ms)]).collect();
        let rest = m.step_ms * (1.0 - m.attributed);
        rows.push(vec!["not attributed".into(), ms(rest.max(0.0)), percent((1.0 - m.attributed).max(0.0))]);
        out.push_str(&table(&rows));
    }
    for m in e.memory.iter().filter(|m| !m.living.is_empty()) {
        let _ = writeln!(
            out,
            "\nmemory of {}: {} alive at the peak, launch {} of {}, {}",
            m.name,
            format_bytes(m.peak_bytes() as u64),
            m.peak + 1,
            m.live.len(),
            m.peak_at
        );
        out.push_str(&list(&m.living));
        if !m.saved.is_empty() {
            let sum: usize = m.saved.iter().map(|l| l.bytes).sum();
            let _ = writeln!(out, "\nkept by {} for its backward pass: {}", m.name, format_bytes(sum as u64));
            out.push_str(&list(&m.saved));
        }
    }
    out.push_str("\nwhy\n");
    for line in reasons(e) {
        let _ = writeln!(out, "  {line}");
    }
    out
}

fn list(living: &[super::memory::Living]) -> String {
    let mut rows: Vec<Vec<String>> = living
        .iter()
        .take(ENTRIES)
        .map(|l| vec![format!("  {}", l.what()), format!("{} ×", l.blocks), format_bytes(l.bytes as u64)])
        .collect();
    if living.len() > ENTRIES {
        let rest: usize = living[ENTRIES..].iter().map(|l| l.bytes).sum();
        rows.push(vec![
            format!("  {} more", living.len() - ENTRIES),
            String::new(),
            format_bytes(rest as u64),
        ]);
    }
    table(&rows)
}

/// Names and values of the header.
pub(crate) fn summary(e: &Explanation<'_>) -> Vec<(String, String)> {
    let p = e.profile;
    let [batch, seq, micro] = p.shape;
    let peak = p.predicted_peak();
    let items: Vec<String> =
        p.account.iter().take(5).map(|(what, bytes)| format!("{} {what}", format_bytes(*bytes))).collect();
    let mut memory = format!("{} predicted: {}", format_bytes(peak), items.join(", "));
    if let Some(m) = p.measured.as_ref().filter(|m| m.peak_bytes > 0) {
        let off = peak as f64 / m.peak_bytes as f64 - 1.0;
        memory = format!("{} measured, {memory} ({:+.1} %)", format_bytes(m.peak_bytes), off * 100.0);
    }
    let arenas: Vec<String> = p
        .plans
        .iter()
        .map(|plan| {
            let bytes = |b: usize| format_bytes(b as u64);
            format!("{} {} (lower bound {})", plan.name, bytes(plan.arena_bytes), bytes(plan.live_bytes))
        })
        .collect();
    let time = match (&e.measured, &p.measured) {
        (Some(m), Some(covered)) => format!(
            "{} ms a step measured over {} steps, {} attributed; kernels {} ms, predicted {} ms; median error {} \
             ({} weighted by time)",
            ms(m.step_ms),
            covered.steps,
            percent(m.attributed),
            ms(m.kernel_ms),
            ms(e.predicted_ms),
            percent(m.median_error),
            percent(m.weighted_error)
        ),
        _ => format!("{} ms of kernels a step predicted", ms(e.predicted_ms)),
    };
    let r = e.calibration.rates();
    let mut rows = vec![
        ("model", p.model.clone()),
        ("rows", format!("{batch} × {seq} tokens a micro-batch, {micro} a step")),
        ("machine", machine(&p.machine)),
        (
            "limits",
            format!(
                "{} GFLOP/s f32, {} bf16, {} GB/s{}",
                rate(r.flops_f32 * 1e-9),
                rate(r.flops_16 * 1e-9),
                rate(r.bytes * 1e-9),
                match e.calibration.rates_are() {
                    "measured" => "",
                    "stated" => " (from the device's clocks)",
                    _ => " (guessed)",
                }
            ),
        ),
        ("time", time),
        ("start", start(p)),
        ("memory", memory),
        ("arena", arenas.join(", ")),
        ("note", e.note()),
    ];
    rows.retain(|(_, value)| !value.is_empty());
    rows.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

/// What passed until the first step was done; nothing if that was not measured.
fn start(p: &Profile) -> String {
    let stages = p.measured.as_ref().map_or(&[][..], |m| &m.startup);
    let sum: u64 = stages.iter().map(|(_, ns)| ns).sum();
    let parts: Vec<String> =
        stages.iter().map(|(name, ns)| format!("{name} {} ms", ms(*ns as f64 * 1e-6))).collect();
    if sum == 0 {
        return String::new();
    }
    format!("first step done {} ms after the job was opened: {}", ms(sum as f64 * 1e-6), parts.join(", "))
}

/// The figures that a reader looks for first, short.
pub(crate) fn cards(e: &Explanation<'_>) -> Vec<(String, String)> {
    let p = e.profile;
    let mut cards = vec![("kernels, predicted", format!("{} ms", ms(e.predicted_ms)))];
    if let Some(m) = &e.measured {
        cards.push(("step, measured", format!("{} ms", ms(m.step_ms))));
        cards.push(("attributed", percent(m.attributed)));
        cards.push(("median error", percent(m.median_error)));
    }
    cards.push(("peak, predicted", format_bytes(p.predicted_peak())));
    if let Some(m) = &p.measured {
        cards.push(("peak, measured", format_bytes(m.peak_bytes)));
    }
    cards.push(("arena", format_bytes(p.plans.iter().map(|p| p.arena_bytes as u64).max().unwrap_or(0))));
    cards.push((
        "launches a step",
        p.plans.iter().map(|p| p.launches.len() * p.runs_per_step).sum::<usize>().to_string(),
    ));
    cards.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

/// The table of kernels with its head.
pub(crate) fn kernel_rows(e: &Explanation<'_>, most: usize) -> Vec<Vec<String>> {
    let measured = e.measured.is_some();
    let mut head = vec!["kernel", "share", "launches", "predicted ms"];
    if measured {
        head.push("measured ms");
    }
    head.extend(["GFLOP/s", "GB/s"]);
    // A share of a guess would say nothing.
    let has_limits = !e.calibration.is_guessed();
    if has_limits {
        head.extend(["roofline", "bound by"]);
    }
    let mut rows = vec![head.into_iter().map(String::from).collect::<Vec<_>>()];
    for k in e.kernels.iter().take(most) {
        let mut row = vec![
            k.label(),
            percent(k.ms() / e.step_ms().max(1e-12)),
            k.launches.to_string(),
            ms(k.predicted_ms),
        ];
        if measured {
            row.push(ms(k.measured_ms.unwrap_or(0.0)));
        }
        let bound = if k.arithmetic { "arithmetic" } else { "memory" };
        row.extend([rate(k.gflops()), rate(k.gbytes())]);
        if has_limits {
            row.extend([percent(k.roofline()), bound.into()]);
        }
        rows.push(row);
    }
    rows
}

/// Sums with their head.
pub(crate) fn totals(e: &Explanation<'_>, totals: &[Total]) -> Vec<Vec<String>> {
    let mut head = vec!["", "share", "launches", "GFLOP", "predicted ms"];
    if e.measured.is_some() {
        head.push("measured ms");
    }
    let mut rows = vec![head.into_iter().map(String::from).collect::<Vec<_>>()];
    for t in totals {
        let time = t.measured_ms.unwrap_or(t.predicted_ms);
        let share = percent(time / e.step_ms().max(1e-12));
        let mut row =
            vec![t.name.clone(), share, t.launches.to_string(), rate(t.flops * 1e-9), ms(t.predicted_ms)];
        row.extend(t.measured_ms.map(ms));
        rows.push(row);
    }
    rows
}

/// One line for each operation: why it is what it is.
pub(crate) fn reasons(e: &Explanation<'_>) -> Vec<String> {
    let mut seen: Vec<(&str, String)> = Vec::new();
    for k in &e.kernels {
        let op = if k.kind.prim { "primitives" } else { k.kind.op.as_str() };
        if !seen.iter().any(|(name, _)| *name == op) {
            seen.push((op, super::why::fused(k.kind).to_string()));
        }
    }
    let mut lines: Vec<String> = seen
        .into_iter()
        .map(|(op, why)| match op {
            "primitives" => format!("{}: {why}", primitives(e)),
            _ => format!("{op}: {why}"),
        })
        .collect();
    if let Some((_, bytes)) = e.profile.account.iter().find(|(what, _)| what == EMBEDDED) {
        lines.push(format!(
            "{EMBEDDED}: {} of embedding tables are read from their files before each micro-batch; the tables take no \
             memory (train.embeddings)",
            format_bytes(*bytes)
        ));
    }
    let inplace: usize = e.kernels.iter().map(|k| k.inplace_bytes).sum();
    if inplace > 0 {
        lines.push(format!(
            "in place: {} of results are written where an operand was that nobody reads again",
            format_bytes(inplace as u64)
        ));
    }
    let decisions = e.profile.plans.iter().flat_map(|p| &p.decisions);
    let (again, kept): (Vec<_>, Vec<_>) = decisions.partition(|d| d.recomputed);
    let bytes = |list: &[&Decision]| format_bytes(list.iter().map(|d| d.bytes as u64).sum());
    if !again.is_empty() {
        let time: f64 = e.phases.iter().filter(|t| t.name == "recompute").map(Total::ms).sum();
        lines.push(format!(
            "recomputed: {} values ({}) of the forward pass are made again in the backward pass, for {} ms a step, as \
             train.recompute or the budget asks",
            again.len(),
            bytes(&again),
            ms(time)
        ));
    }
    if !kept.is_empty() {
        let rest = if again.is_empty() { "; nothing is made again" } else { "" };
        lines.push(format!("kept: {} values ({}) for the backward pass{rest}", kept.len(), bytes(&kept)));
    }
    lines
}

fn primitives(e: &Explanation<'_>) -> String {
    let mut names: Vec<String> = Vec::new();
    for k in e.kernels.iter().filter(|k| k.kind.prim) {
        if !names.contains(&k.kind.op) {
            names.push(k.kind.op.clone());
        }
    }
    names.join(", ")
}

fn machine(m: &Machine) -> String {
    let unit = if m.isa.parse::<Arch>().is_ok() { "multiprocessors" } else { "threads" };
    format!("{}, {}, {} {unit}", m.cpu, m.isa, m.threads)
}
