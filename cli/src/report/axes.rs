//! The frame of a chart: margins, grid, axes and their labels, the same in every drawing.

use super::escape;
use super::scale::Scale;
use std::fmt::Write;

/// Size of a drawing and its margins, in its own units.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Width of all.
    pub width: f64,
    /// Height of all.
    pub height: f64,
    /// Margin for the labels of y.
    pub left: f64,
    /// Margin on the right.
    pub right: f64,
    /// Margin above.
    pub top: f64,
    /// Margin for the labels of x.
    pub bottom: f64,
}

impl Frame {
    /// Right end of the x axis.
    pub fn end(&self) -> f64 {
        self.width - self.right
    }

    /// Height of the x axis, from the top.
    pub fn base(&self) -> f64 {
        self.height - self.bottom
    }

    /// Grid lines and labels of y, axis, ticks and label of x, as SVG.
    pub fn axes(&self, x: &Scale, y: &Scale, x_label: &str) -> String {
        let (left, end, base) = (self.left, self.end(), self.base());
        let mut svg = String::new();
        for tick in &y.ticks {
            let at = y.at(*tick);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{left}\" x2=\"{end}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                left - 8.0,
                at + 4.0,
                y.label(*tick)
            );
        }
        for tick in &x.ticks {
            let at = x.at(*tick);
            let _ = writeln!(
                svg,
                "<line class=\"axis\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{base}\" y2=\"{}\"/>\
                 <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                base + 4.0,
                base + 18.0,
                x.label(*tick)
            );
        }
        let _ = writeln!(
            svg,
            "<line class=\"axis\" x1=\"{left}\" x2=\"{end}\" y1=\"{base}\" y2=\"{base}\"/>\
             <text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            (left + end) / 2.0,
            self.height - 5.0,
            escape(x_label)
        );
        svg
    }
}
