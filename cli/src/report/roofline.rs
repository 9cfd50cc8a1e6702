//! The roofline: what kernels reach against how much arithmetic they do on each byte, under what the machine can do.
//!
//! Source: S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model", CACM 52(4), 2009.

use super::axes::Frame;
use super::escape;
use super::scale::{Scale, number};
use std::fmt::Write;

/// Radius of a kernel that takes all of the time.
const RADIUS: f64 = 34.0;

/// Kernels and roofs.
#[derive(Clone, Debug, Default)]
pub struct Roofline {
    /// Arithmetic roofs: name, and operations a second.
    pub roofs: Vec<(String, f64)>,
    /// Bytes a second of the memory roof.
    pub bytes_per_s: f64,
    /// The kernels.
    pub dots: Vec<Dot>,
}

/// One kernel.
#[derive(Clone, Debug)]
pub struct Dot {
    /// What it is.
    pub label: String,
    /// Number of its colour in the style sheet.
    pub colour: usize,
    /// Drawn pale.
    pub pale: bool,
    /// Operations.
    pub flops: f64,
    /// Bytes.
    pub bytes: f64,
    /// Seconds that these take.
    pub seconds: f64,
    /// Seconds of the whole that it is part of: the area of a circle is its share.
    pub whole: f64,
}

impl Dot {
    fn intensity(&self) -> f64 {
        self.flops / self.bytes
    }

    fn gflops(&self) -> f64 {
        self.flops / self.seconds * 1e-9
    }

    fn share(&self) -> f64 {
        self.seconds / self.whole.max(f64::MIN_POSITIVE)
    }

    fn is_drawn(&self) -> bool {
        self.flops > 0.0 && self.bytes > 0.0 && self.seconds > 0.0
    }
}

impl Roofline {
    /// The drawing as SVG elements inside `frame`; `None` if there is nothing to draw.
    pub fn draw(&self, frame: &Frame) -> Option<String> {
        let dots: Vec<&Dot> = self.dots.iter().filter(|d| d.is_drawn()).collect();
        if dots.is_empty() {
            return None;
        }
        let top = self.roofs.iter().map(|(_, rate)| rate * 1e-9).fold(0.0, f64::max);
        let fold = |of: &dyn Fn(&Dot) -> f64, start: f64, f: &dyn Fn(f64, f64) -> f64| {
            dots.iter().map(|d| of(d)).fold(start, f)
        };
        let bandwidth = self.bytes_per_s * 1e-9;
        let low = fold(&Dot::intensity, f64::INFINITY, &f64::min);
        let high = fold(&Dot::intensity, 2.0 * top / bandwidth, &f64::max);
        let (slowest, fastest) =
            (fold(&Dot::gflops, top, &f64::min), fold(&Dot::gflops, top * 1.2, &f64::max));
        let x = Scale::logarithmic(low, high, frame.left, frame.end());
        let y = Scale::logarithmic(slowest.max(1e-4), fastest, frame.base(), frame.top);
        let mut svg = frame.axes(&x, &y, "FLOP a byte");
        label(&mut svg, frame.left + 6.0, frame.top + 10.0, "start", "GFLOP/s");
        for (_, rate) in &self.roofs {
            let limit = rate * 1e-9;
            let corner = (limit / bandwidth).clamp(x.low(), x.high());
            // The slope is straight only above the lowest value of y.
            let start = x.low().max(y.low() / bandwidth).min(corner);
            let line: Vec<String> = [start, corner, x.high()]
                .into_iter()
                .map(|i| format!("{:.1},{:.1}", x.at(i), y.at((i * bandwidth).min(limit))))
                .collect();
            let _ = writeln!(svg, "<polyline class=\"roof\" points=\"{}\"/>", line.join(" "));
        }
        dots.iter().for_each(|dot| self.push_dot(&mut svg, dot, &x, &y));
        // On top of the circles, at the end of the lines; the label of a lower line stands below it.
        for (name, rate) in &self.roofs {
            let limit = rate * 1e-9;
            let shift = if limit < top { 16.0 } else { -6.0 };
            let text = format!("{name} {limit:.0} GFLOP/s");
            label(&mut svg, frame.end() - 4.0, y.at(limit) + shift, "end", &text);
        }
        Some(svg)
    }

    fn push_dot(&self, svg: &mut String, dot: &Dot, x: &Scale, y: &Scale) {
        let reached = self.roofs.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
        let bound = (dot.intensity() * self.bytes_per_s).min(reached);
        let title = format!(
            "{}\n{} ms ({:.1} %), {} GFLOP/s, {:.1} % of the highest roof",
            dot.label,
            number(dot.seconds * 1e3),
            dot.share() * 100.0,
            number(dot.gflops()),
            dot.gflops() * 1e9 / bound * 100.0
        );
        let class = if dot.pale { "dot teacher" } else { "dot" };
        let _ = writeln!(
            svg,
            "<circle class=\"{class}\" style=\"fill:var(--c{0});stroke:var(--c{0})\" cx=\"{1:.1}\" cy=\"{2:.1}\" r=\"{3:.1}\">\
             <title>{4}</title></circle>",
            dot.colour,
            x.at(dot.intensity()),
            y.at(dot.gflops()),
            (2.5f64).max(RADIUS * dot.share().sqrt()),
            escape(&title)
        );
    }

    /// A file of its own, with title, note and legend (names and numbers of colours); `None` if there is nothing to draw.
    pub fn page(&self, title: &str, note: &str, legend: &[(String, usize)]) -> Option<String> {
        let frame = Frame { width: 1120.0, height: 560.0, left: 62.0, right: 26.0, top: 84.0, bottom: 42.0 };
        let drawing = self.draw(&frame)?;
        let (width, height) = (frame.width, frame.height);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{0}\">\n\
             <style>{1}svg {{ font: 12px system-ui, \"DejaVu Sans\", sans-serif; }}</style>\n\
             <rect width=\"{width}\" height=\"{height}\" style=\"fill:var(--card)\"/>\n\
             <text x=\"16\" y=\"26\" style=\"fill:var(--ink);font-size:16px;font-weight:600\">{0}</text>\n\
             <text x=\"16\" y=\"46\">{2}</text>\n",
            escape(title),
            include_str!("style.css"),
            escape(note)
        );
        let mut at = 16.0;
        for (name, colour) in legend {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"64\" r=\"5\" style=\"fill:var(--c{colour})\"/><text x=\"{:.1}\" y=\"68\">{}</text>",
                at + 5.0,
                at + 15.0,
                escape(name)
            );
            at += 32.0 + 6.6 * name.chars().count() as f64;
        }
        svg.push_str(&drawing);
        svg.push_str("</svg>\n");
        Some(svg)
    }
}

/// A label inside the drawing, readable on lines and marks.
fn label(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let _ = writeln!(
        svg,
        "<text class=\"figure-label\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escape(text)
    );
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn dot(label: &str, seconds: f64) -> Dot {
        Dot { label: label.into(), colour: 1, pale: false, flops: 1e9, bytes: 1e7, seconds, whole: 1.0 }
    }

    #[test]
    fn kernels_stand_under_their_roofs() {
        let roofline = Roofline {
            roofs: vec![("f32".into(), 1e11), ("bf16".into(), 2e11)],
            bytes_per_s: 1e10,
            dots: vec![dot("a<b", 0.1), Dot { flops: 0.0, ..dot("copy", 0.1) }],
        };
        let svg = roofline.page("Kernels", "measured", &[("mlp".into(), 1)]).unwrap();
        // 100 FLOP a byte at 10 GB/s would be 1 TFLOP/s: the arithmetic roof limits.
        assert!(svg.contains("a&lt;b\n100 ms (10.0 %), 10 GFLOP/s, 5.0 % of the highest roof"), "{svg}");
        assert!(!svg.contains("copy") && svg.contains("bf16 200 GFLOP/s") && svg.contains(">mlp<"));
        assert!(Roofline { dots: Vec::new(), ..roofline }.page("", "", &[]).is_none());
    }
}
