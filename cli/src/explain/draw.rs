//! The drawings of the page: memory over time, the arena, the roofline. Each is an HTML figure with an inline SVG whose
//! parts show their values on hover.

use super::{Explanation, Part, Place, PlanMemory};
use crate::config::format_bytes;
use crate::report::axes::Frame;
use crate::report::escape;
use crate::report::roofline::{Dot, Roofline};
use crate::report::scale::{Scale, number};
use kfc_runtime::profile::PlanProfile;
use std::fmt::Write;

const WIDTH: f64 = 1120.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 42.0;

/// A drawing in progress.
struct Figure {
    html: String,
    height: f64,
}

impl Figure {
    fn new(title: &str, note: &str, legend: &[(String, usize)], height: f64) -> Figure {
        let mut html = String::from("<figure class=\"wide\">\n");
        let _ = writeln!(html, "<figcaption><h2>{}</h2><ul class=\"legend\">", escape(title));
        for (name, colour) in legend {
            let _ = writeln!(html, "<li><i style=\"background:var(--c{colour})\"></i>{}</li>", escape(name));
        }
        let _ = writeln!(
            html,
            "</ul></figcaption>\n<p class=\"note\">{}</p>\n<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">",
            escape(note),
            escape(title)
        );
        Figure { html, height }
    }

    fn bottom(&self) -> f64 {
        self.height - BOTTOM
    }

    fn frame(&self) -> Frame {
        Frame { width: WIDTH, height: self.height, left: LEFT, right: RIGHT, top: TOP, bottom: BOTTOM }
    }

    fn axes(&mut self, x: &Scale, y: &Scale, x_label: &str) {
        let axes = self.frame().axes(x, y, x_label);
        self.html.push_str(&axes);
    }

    /// A rectangle with a title; thin ones stay visible.
    fn rect(&mut self, class: &str, style: &str, from: (f64, f64), to: (f64, f64), title: &str) {
        let (width, height) = ((to.0 - from.0).max(0.6), (to.1 - from.1).abs().max(0.6));
        let _ = writeln!(
            self.html,
            "<rect class=\"{class}\" style=\"{style}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{height:.1}\">\
             <title>{}</title></rect>",
            from.0,
            from.1.min(to.1),
            escape(title)
        );
    }

    fn end(mut self) -> String {
        self.html.push_str("</svg>\n</figure>\n");
        self.html
    }
}

/// Ends of launches on the time axis, in milliseconds; one more than there are launches.
fn times(e: &Explanation<'_>, plan: &PlanProfile) -> Vec<f64> {
    let mut at = vec![0.0];
    for ms in e.launch_ms(plan) {
        at.push(at.last().copied().unwrap_or(0.0) + ms);
    }
    at
}

/// The largest unit that leaves a number above 1.
fn unit(bytes: usize) -> (f64, &'static str) {
    let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    units.into_iter().find(|(size, _)| bytes as u64 >= *size).map_or((1.0, "B"), |(s, n)| (s as f64, n))
}

fn legend(places: impl Iterator<Item = Place>) -> Vec<(String, usize)> {
    let here: Vec<Part> = places.map(|p| p.part).collect();
    let shown = Part::ALL.into_iter().filter(|p| here.contains(p));
    shown.map(|p| (p.name().to_string(), p.colour())).collect()
}

/// Bytes alive over one run of a plan.
pub(crate) fn timeline(e: &Explanation<'_>, plan: &PlanProfile, memory: &PlanMemory) -> String {
    let at = times(e, plan);
    let (divisor, name) = unit(plan.arena_bytes);
    let note = format!(
        "{name} alive in the arena over one run. Peak: {}, while {} runs. The arena has {}; no arena can be smaller than {}.",
        format_bytes(memory.peak_bytes() as u64),
        memory.peak_at,
        format_bytes(plan.arena_bytes as u64),
        format_bytes(plan.live_bytes as u64)
    );
    let mut f = Figure::new(&format!("Memory of {} over time", plan.name), &note, &[], 250.0);
    let x = Scale::linear(0.0, at.last().copied().unwrap_or(0.0), 10, false, LEFT, WIDTH - RIGHT);
    let y = Scale::linear(0.0, plan.arena_bytes as f64 / divisor, 4, true, f.bottom(), TOP);
    f.axes(&x, &y, "milliseconds");
    let mut path = format!("M{:.1} {:.1}", x.at(0.0), y.at(0.0));
    for (i, bytes) in memory.live.iter().enumerate() {
        let level = y.at(*bytes as f64 / divisor);
        let _ = write!(path, "L{:.1} {level:.1}L{:.1} {level:.1}", x.at(at[i]), x.at(at[i + 1]));
    }
    let _ = write!(path, "L{:.1} {:.1}Z", x.at(at[at.len() - 1]), y.at(0.0));
    let _ = writeln!(f.html, "<path class=\"area\" d=\"{path}\"/>");
    for (i, l) in plan.launches.iter().enumerate() {
        let title = format!(
            "{}: {} in {} ({})\n{} alive, {} ms",
            i + 1,
            plan.kinds[l.kind].op,
            l.scope,
            l.phase.name(),
            format_bytes(memory.live[i] as u64),
            number(at[i + 1] - at[i])
        );
        f.rect("band", "", (x.at(at[i]), TOP), (x.at(at[i + 1]), f.bottom()), &title);
    }
    let (px, py) = (x.at(at[memory.peak]), y.at(memory.peak_bytes() as f64 / divisor));
    let _ = writeln!(f.html, "<circle class=\"peak\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"4\"/>");
    f.end()
}

/// The arena of a plan: addresses over time.
pub(super) fn arena(e: &Explanation<'_>, plan: &PlanProfile) -> String {
    let at = times(e, plan);
    let (divisor, name) = unit(plan.arena_bytes);
    let place = |launch: usize| {
        let l = &plan.launches[launch];
        Place::of(&plan.kinds[l.kind].op, &l.scope, l.phase)
    };
    let mut legend = legend(plan.blocks.iter().map(|b| place(b.first)));
    legend.retain(|(name, _)| !name.is_empty());
    let note = format!(
        "Each rectangle is a block of memory: its address in {name} upwards, its life to the right. Pale: the teacher's; \
         dashed edge: scratch of one kernel."
    );
    let mut f = Figure::new(&format!("Arena of {}", plan.name), &note, &legend, 360.0);
    let x = Scale::linear(0.0, at.last().copied().unwrap_or(0.0), 10, false, LEFT, WIDTH - RIGHT);
    let y = Scale::linear(0.0, plan.arena_bytes as f64 / divisor, 5, false, f.bottom(), TOP);
    for b in &plan.blocks {
        let place = place(b.first);
        let l = &plan.launches[b.first];
        let title = format!(
            "{}{} in {} ({})\n{} at {}, launches {} to {}",
            if b.scratch { "scratch of " } else { "" },
            plan.kinds[l.kind].op,
            l.scope,
            l.phase.name(),
            format_bytes(b.bytes as u64),
            format_bytes(b.offset as u64),
            b.first + 1,
            b.last + 1
        );
        let class = match (b.scratch, place.teacher) {
            (true, _) => "block scratch",
            (_, true) => "block teacher",
            _ => "block",
        };
        let style = format!("fill:var(--c{0});stroke:var(--c{0})", place.part.colour());
        let from = (x.at(at[b.first]), y.at((b.offset + b.bytes) as f64 / divisor));
        f.rect(class, &style, from, (x.at(at[b.last + 1]), y.at(b.offset as f64 / divisor)), &title);
    }
    f.axes(&x, &y, "milliseconds");
    f.end()
}

/// Operations of a launch from which a kernel is in the roofline: scalars would stretch it over many empty decades.
const ROOFLINE_FROM: u64 = 1024;

/// Kernels under the roofline: FLOP a byte against GFLOP/s.
pub(super) fn roofline(e: &Explanation<'_>) -> Option<String> {
    let rates = e.calibration.rates();
    let dots = e.kernels.iter().filter(|k| k.kind.cost.flops >= ROOFLINE_FROM).filter_map(|k| {
        let place = k.places.first()?;
        Some(Dot {
            label: k.label(),
            colour: place.part.colour(),
            pale: place.teacher,
            flops: k.flops,
            bytes: k.bytes,
            seconds: k.ms() * 1e-3,
            whole: e.step_ms() * 1e-3,
        })
    });
    let drawing = Roofline {
        roofs: vec![("f32".into(), rates.flops_f32), ("bf16".into(), rates.flops_16)],
        bytes_per_s: rates.bytes,
        dots: dots.collect(),
    };
    let lines = match e.calibration.rates_are() {
        "measured" => "The lines are what this machine can do: above them, operands come from caches.",
        "stated" => "The lines are what the device says of itself: above them, operands come from caches.",
        _ => "The lines are guesses: kfc tune --calibrate measures what this machine can do.",
    };
    let note = format!(
        "{} speed of each kernel against its arithmetic intensity; the area of a circle is its share of the step. Work of fewer \
         than {ROOFLINE_FROM} operations is left out. {lines}",
        if e.measured.is_some() { "Measured" } else { "Predicted" },
    );
    let places = e.kernels.iter().flat_map(|k| k.places.iter().copied());
    let mut f = Figure::new("Roofline", &note, &legend(places), 380.0);
    let drawn = drawing.draw(&f.frame())?;
    f.html.push_str(&drawn);
    Some(f.end())
}
