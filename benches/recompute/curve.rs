//! What was measured: the table, the verdict, the drawing, the JSON form.

use crate::child::{Child, Choices};
use kfc::config::format_bytes;
use kfc::report::scale::Scale;
use kfc_graph::DType;
use kfc_runtime::machine;
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::SystemTime;

/// A chosen plan may be slower than the best named policy that fits the same budget by this factor.
const TOLERANCE: f64 = 1.05;

/// One plan, predicted and measured.
#[derive(Clone)]
pub(crate) struct Point {
    pub(crate) name: String,
    pub(crate) recomputed: usize,
    pub(crate) predicted_peak: u64,
    pub(crate) measured_peak: u64,
    pub(crate) step_ms: f64,
    /// What recomputation was expected to cost; of named policies only.
    pub(crate) extra_ms: Option<f64>,
}

/// A budget, and what was chosen for it.
pub(crate) struct Budget {
    /// Bytes; none if there was none.
    pub(crate) budget: Option<u64>,
    pub(crate) chosen: Point,
}

/// Everything of one workload.
pub(crate) struct Curve {
    workload: &'static str,
    dtype: DType,
    named: Vec<Point>,
    budgets: Vec<Budget>,
}

impl Point {
    pub(crate) fn of(name: &str, child: &Child, plans: &Choices) -> Point {
        let policy = plans.named.iter().find(|p| p.name == name);
        Point {
            name: name.into(),
            recomputed: child.recomputed.len(),
            predicted_peak: child.predicted_peak,
            measured_peak: child.measured_peak,
            step_ms: child.step_ms(),
            extra_ms: policy.map(|p| p.extra_ms),
        }
    }

    fn json(&self) -> Value {
        json!({
            "values_recomputed": self.recomputed, "predicted_peak_bytes": self.predicted_peak,
            "measured_peak_bytes": self.measured_peak, "step_ms": (self.step_ms * 1e3).round() / 1e3,
        })
    }
}

impl Curve {
    pub(crate) fn new(
        workload: &'static str,
        dtype: DType,
        named: Vec<Point>,
        budgets: Vec<Budget>,
    ) -> Curve {
        Curve { workload, dtype, named, budgets }
    }

    /// The fastest named policy within a budget.
    fn best(&self, budget: Option<u64>) -> Option<&Point> {
        let fits = self.named.iter().filter(|p| budget.is_none_or(|b| p.predicted_peak <= b));
        fits.min_by(|a, b| a.step_ms.total_cmp(&b.step_ms))
    }

    fn holds(&self, b: &Budget) -> bool {
        self.best(b.budget).is_none_or(|best| b.chosen.step_ms <= TOLERANCE * best.step_ms)
    }

    /// Both tables.
    pub(crate) fn table(&self) -> String {
        let base = self.named.iter().find(|p| p.recomputed == 0).map_or(f64::NAN, |p| p.step_ms);
        let mut out = format!(
            "\n{:<16} {:>10} {:>10} {:>12} {:>9} {:>9} {:>9}\n",
            "policy", "recomputed", "predicted", "measured", "step ms", "more", "expected"
        );
        for p in &self.named {
            let _ = writeln!(
                out,
                "{:<16} {:>10} {:>10} {:>12} {:>9.2} {:>8.1}% {:>8.1}%",
                p.name,
                p.recomputed,
                format_bytes(p.predicted_peak),
                format_bytes(p.measured_peak),
                p.step_ms,
                (p.step_ms / base - 1.0) * 100.0,
                p.extra_ms.unwrap_or(0.0) / base * 100.0
            );
        }
        let _ = writeln!(
            out,
            "\n{:<16} {:>10} {:>10} {:>12} {:>9} {:>9}  within 5 % of the best named policy that fits",
            "budget", "recomputed", "predicted", "measured", "step ms", "more"
        );
        for b in &self.budgets {
            let best = self.best(b.budget).map_or("yes, none fits".to_string(), |best| {
                let verdict = if self.holds(b) { "yes" } else { "NO" };
                format!("{verdict}, {} takes {:.2} ms", best.name, best.step_ms)
            });
            let p = &b.chosen;
            let _ = writeln!(
                out,
                "{:<16} {:>10} {:>10} {:>12} {:>9.2} {:>8.1}%  {best}",
                b.budget.map_or("none".into(), format_bytes),
                p.recomputed,
                format_bytes(p.predicted_peak),
                format_bytes(p.measured_peak),
                p.step_ms,
                (p.step_ms / base - 1.0) * 100.0
            );
        }
        let held = self.budgets.iter().filter(|b| self.holds(b)).count();
        let verdict = if held == self.budgets.len() { "yes" } else { "no" };
        let _ = writeln!(
            out,
            "\nchosen plan within 5 % of the best named policy that fits the same budget: {verdict} ({held} of {})",
            self.budgets.len()
        );
        out
    }

    /// Everything as JSON.
    pub(crate) fn json(&self) -> String {
        let budgets = self.budgets.iter().map(|b| {
            let mut v = b.chosen.json();
            v["budget_bytes"] = json!(b.budget);
            v["within_5_percent"] = json!(self.holds(b));
            v["best_named"] = json!(self.best(b.budget).map(|p| p.name.as_str()));
            v
        });
        let named = self.named.iter().map(|p| {
            let mut v = p.json();
            v["name"] = json!(p.name);
            v["expected_extra_ms"] = json!(p.extra_ms);
            v
        });
        let object = json!({
            "bench": "recompute", "workload": self.workload, "dtype": self.dtype.to_string(), "date": today(),
            "cpu": machine::cpu_model(), "cores": machine::cores(), "features": features(),
            "budgets": budgets.collect::<Vec<_>>(), "policies": named.collect::<Vec<_>>(),
        });
        serde_json::to_string_pretty(&object).unwrap_or_default() + "\n"
    }

    /// Milliseconds of a step against peak memory.
    pub(crate) fn svg(&self) -> String {
        const WIDTH: f64 = 760.0;
        const HEIGHT: f64 = 440.0;
        const LEFT: f64 = 64.0;
        const TOP: f64 = 66.0;
        const RIGHT: f64 = 24.0;
        const BOTTOM: f64 = 48.0;
        let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
        let all: Vec<&Point> = self.named.iter().chain(self.budgets.iter().map(|b| &b.chosen)).collect();
        let range = |of: &dyn Fn(&Point) -> f64| {
            let values = all.iter().map(|p| of(p));
            values.fold((f64::INFINITY, 0.0f64), |(low, high), v| (low.min(v), high.max(v)))
        };
        let (x_low, x_high) = range(&|p| mib(p.measured_peak));
        let (y_low, y_high) = range(&|p| p.step_ms);
        let x = Scale::linear(x_low, x_high, 7, true, LEFT, WIDTH - RIGHT);
        let y = Scale::linear(y_low, y_high, 5, true, HEIGHT - BOTTOM, TOP);
        let mut s = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
             font-family=\"system-ui, DejaVu Sans, sans-serif\" font-size=\"12\" fill=\"#5b6678\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n\
             <text x=\"{LEFT}\" y=\"24\" font-size=\"15\" font-weight=\"600\" fill=\"#1b2330\">Time of a step against its memory: \
             {} {}</text>\n<text x=\"{LEFT}\" y=\"42\">{}, {} cores, {}</text>\n",
            self.workload,
            self.dtype,
            machine::cpu_model(),
            machine::cores(),
            today()
        );
        for tick in &y.ticks {
            let at = y.at(*tick);
            let _ = writeln!(
                s,
                "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#e2e6ec\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                at + 4.0,
                y.label(*tick)
            );
        }
        for tick in &x.ticks {
            let at = x.at(*tick);
            let _ = writeln!(
                s,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{0}\" y2=\"{1}\" stroke=\"#98a3b5\"/>\
                 <text x=\"{at:.1}\" y=\"{2}\" text-anchor=\"middle\">{3}</text>",
                HEIGHT - BOTTOM,
                HEIGHT - BOTTOM + 4.0,
                HEIGHT - BOTTOM + 18.0,
                x.label(*tick)
            );
        }
        let _ = writeln!(
            s,
            "<line x1=\"{LEFT}\" x2=\"{0}\" y1=\"{1}\" y2=\"{1}\" stroke=\"#98a3b5\"/>\
             <text x=\"{2}\" y=\"{3}\" text-anchor=\"middle\">measured peak, MiB</text>\
             <text x=\"{4}\" y=\"{5}\">ms a step</text>",
            WIDTH - RIGHT,
            HEIGHT - BOTTOM,
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 10.0,
            8.0,
            TOP - 10.0
        );
        let at = |p: &Point| (x.at(mib(p.measured_peak)), y.at(p.step_ms));
        let line: Vec<String> =
            self.budgets.iter().map(|b| at(&b.chosen)).map(|(px, py)| format!("{px:.1},{py:.1}")).collect();
        let _ = writeln!(
            s,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"#2563eb\" stroke-width=\"1.8\"/>",
            line.join(" ")
        );
        for b in &self.budgets {
            let (px, py) = at(&b.chosen);
            let _ = writeln!(s, "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"4\" fill=\"#2563eb\"/>");
        }
        // No label lies on a mark.
        let mark = |p: &Point| [at(p).0 - 5.0, at(p).1 - 5.0, at(p).0 + 5.0, at(p).1 + 5.0];
        let mut labels: Vec<[f64; 4]> = all.iter().map(|p| mark(p)).collect();
        for p in &self.named {
            let (px, py) = at(p);
            let (lx, ly, anchor) = place(&mut labels, (px, py), &p.name, WIDTH - RIGHT);
            let _ = writeln!(
                s,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"8\" height=\"8\" fill=\"none\" stroke=\"#d97706\" stroke-width=\"2\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" fill=\"#1b2330\">{}</text>",
                px - 4.0,
                py - 4.0,
                lx,
                ly,
                p.name
            );
        }
        let legend = WIDTH - RIGHT - 250.0;
        let _ = writeln!(
            s,
            "<circle cx=\"{legend}\" cy=\"38\" r=\"4\" fill=\"#2563eb\"/><text x=\"{}\" y=\"42\">chosen for a budget</text>\
             <rect x=\"{}\" y=\"34\" width=\"8\" height=\"8\" fill=\"none\" stroke=\"#d97706\" stroke-width=\"2\"/>\
             <text x=\"{}\" y=\"42\">named policy</text>\n</svg>",
            legend + 9.0,
            legend + 142.0,
            legend + 156.0
        );
        s
    }
}

/// Where the label of a mark goes, and how it is anchored: the first of four places that no other label is in.
fn place(
    taken: &mut Vec<[f64; 4]>,
    (px, py): (f64, f64),
    text: &str,
    right: f64,
) -> (f64, f64, &'static str) {
    let width = 7.5 * text.chars().count() as f64;
    let places = [(9.0, -7.0), (9.0, 15.0), (-9.0, -7.0), (-9.0, 15.0)];
    let boxed = |(dx, dy): (f64, f64)| {
        let left = if dx > 0.0 { px + dx } else { px + dx - width };
        [left, py + dy - 11.0, left + width, py + dy + 3.0]
    };
    let free = |b: &[f64; 4]| {
        b[2] <= right && taken.iter().all(|t| b[0] > t[2] || t[0] > b[2] || b[1] > t[3] || t[1] > b[3])
    };
    let (dx, dy) = places.into_iter().find(|p| free(&boxed(*p))).unwrap_or((9.0, -7.0));
    taken.push(boxed((dx, dy)));
    (px + dx, py + dy, if dx > 0.0 { "start" } else { "end" })
}

/// Instruction sets that the CPU has, of those that kernels use.
fn features() -> Vec<&'static str> {
    machine::features().into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

/// The date in UTC. Source: H. Hinnant, "chrono-compatible low-level date algorithms", civil_from_days.
fn today() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let days = (since.as_secs() / 86_400) as i64 + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{:02}", of_year - (153 * shifted + 2) / 5 + 1)
}
