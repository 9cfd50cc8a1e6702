//! One chart as an HTML figure with an inline SVG: grid, axes, curves, and columns that show their values on hover.

use super::axes::Frame;
use super::scale::{self, Scale};
use super::{Chart, Unit, escape};
use std::fmt::Write;

/// Size of the drawing and of its margins, in its own units.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 40.0;
const FRAME: Frame =
    Frame { width: WIDTH, height: HEIGHT, left: LEFT, right: RIGHT, top: TOP, bottom: BOTTOM };
/// Points that a curve is drawn with at most; more cannot be seen.
const COLUMNS: usize = 500;
/// Columns that answer to the pointer.
const BANDS: usize = 140;
/// Colours in the style sheet.
const COLOURS: usize = 8;
/// Points from which a running mean is drawn.
const MEAN_FROM: usize = 40;
/// Ratio of largest to smallest value from which a logarithmic axis reads better.
const LOG_FROM: f64 = 200.0;

/// The figure, or `None` if there is nothing to draw.
pub(super) fn figure(chart: &Chart) -> Option<String> {
    let (divisor, unit) = display_unit(chart);
    let curves: Vec<Curve> = chart
        .series
        .iter()
        .enumerate()
        .map(|(index, series)| {
            let finite = series.points.iter().filter(|(x, y)| x.is_finite() && y.is_finite());
            let points = finite.map(|(x, y)| (*x, y / divisor)).collect();
            Curve { name: &series.name, colour: index % COLOURS, points }
        })
        .filter(|curve: &Curve| !curve.points.is_empty())
        .collect();
    let (x, y) = scales(&curves, chart.unit)?;

    let mut html = String::from("<figure>\n");
    push_caption(&mut html, chart, &curves, unit);
    let label = escape(&chart.title);
    let _ = writeln!(html, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{label}\">");
    html.push_str(&FRAME.axes(&x, &y, &chart.x_label));
    for curve in &curves {
        push_curve(&mut html, curve, chart.smooth, curves.len() <= 3, &x, &y);
    }
    push_bands(&mut html, &curves, &chart.x_label, unit, &x);
    html.push_str("</svg>\n</figure>\n");
    Some(html)
}

/// A series in display units, without gaps.
struct Curve<'a> {
    name: &'a str,
    colour: usize,
    points: Vec<(f64, f64)>,
}

/// What values are divided by, and the unit that this makes.
fn display_unit(chart: &Chart) -> (f64, &'static str) {
    if chart.unit == Unit::Number {
        return (1.0, "");
    }
    let values = chart.series.iter().flat_map(|series| &series.points).map(|(_, y)| *y);
    let largest = values.filter(|y| y.is_finite()).fold(0.0, f64::max);
    [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)]
        .into_iter()
        .map(|(name, bits)| (f64::from(bits).exp2(), name))
        .find(|(size, _)| largest >= *size)
        .unwrap_or((1.0, "B"))
}

fn scales(curves: &[Curve], unit: Unit) -> Option<(Scale, Scale)> {
    let range = |values: &mut dyn Iterator<Item = f64>| {
        let first = values.next()?;
        Some(values.fold((first, first), |(low, high), value| (low.min(value), high.max(value))))
    };
    let (x_low, x_high) = range(&mut curves.iter().flat_map(|curve| &curve.points).map(|(x, _)| *x))?;
    let (y_low, y_high) = range(&mut curves.iter().flat_map(|curve| &curve.points).map(|(_, y)| *y))?;
    let x = Scale::linear(x_low, x_high, 6, false, LEFT, WIDTH - RIGHT);
    let (bottom, top) = (HEIGHT - BOTTOM, TOP);
    // From 0 where the values come near it: a curve that floats above a cut axis looks steeper than it is.
    let base = if y_low > 0.0 && (y_low < 0.5 * y_high || unit == Unit::Bytes) { 0.0 } else { y_low };
    let y = if unit == Unit::Number && y_low > 0.0 && y_high / y_low >= LOG_FROM {
        Scale::logarithmic(y_low, y_high, bottom, top)
    } else {
        Scale::linear(base, y_high, 4, true, bottom, top)
    };
    Some((x, y))
}

fn push_caption(html: &mut String, chart: &Chart, curves: &[Curve], unit: &str) {
    let _ = writeln!(html, "<figcaption><h2>{}</h2><ul class=\"legend\">", escape(&chart.title));
    for curve in curves {
        let last = curve.points.last().map(|(_, y)| value_text(*y, unit)).unwrap_or_default();
        let name = escape(curve.name);
        let _ = match curves.len() {
            1 => writeln!(html, "<li>last <b>{last}</b></li>"),
            _ => writeln!(
                html,
                "<li><i style=\"background:var(--c{})\"></i>{name} <b>{last}</b></li>",
                curve.colour
            ),
        };
    }
    html.push_str("</ul></figcaption>\n");
}

fn value_text(value: f64, unit: &str) -> String {
    let gap = if unit.is_empty() { "" } else { " " };
    format!("{}{gap}{unit}", scale::number(value))
}

/// With several curves the points behind the means would hide each other, so only a few show them.
fn push_curve(html: &mut String, curve: &Curve, smooth: bool, few: bool, x: &Scale, y: &Scale) {
    if !smooth || curve.points.len() < MEAN_FROM {
        push_path(html, "curve", curve.colour, &thin(&curve.points), x, y);
        return;
    }
    if few {
        push_path(html, "curve raw", curve.colour, &thin(&curve.points), x, y);
    }
    push_path(html, "curve", curve.colour, &thin(&running_mean(&curve.points)), x, y);
}

fn push_path(html: &mut String, class: &str, colour: usize, points: &[(f64, f64)], x: &Scale, y: &Scale) {
    if let [(px, py)] = points {
        let (px, py) = (x.at(*px), y.at(*py));
        let _ =
            writeln!(html, "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"3\" style=\"fill:var(--c{colour})\"/>");
        return;
    }
    let mut path = String::new();
    for (index, (px, py)) in points.iter().enumerate() {
        let command = if index == 0 { 'M' } else { 'L' };
        let _ = write!(path, "{command}{:.1} {:.1}", x.at(*px), y.at(*py));
    }
    let _ = writeln!(html, "<path class=\"{class}\" style=\"stroke:var(--c{colour})\" d=\"{path}\"/>");
}

/// At most two points for each of [`COLUMNS`] columns: the lowest and the highest, so that no spike is lost.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= 2 * COLUMNS {
        return points.to_vec();
    }
    let mut kept = Vec::with_capacity(2 * COLUMNS);
    for column in 0..COLUMNS {
        let part = &points[column * points.len() / COLUMNS..(column + 1) * points.len() / COLUMNS];
        let low = part.iter().enumerate().min_by(|(_, a), (_, b)| a.1.total_cmp(&b.1));
        let high = part.iter().enumerate().max_by(|(_, a), (_, b)| a.1.total_cmp(&b.1));
        if let (Some((i, low)), Some((j, high))) = (low, high) {
            let (first, second) = if i <= j { (low, high) } else { (high, low) };
            kept.push(*first);
            if i != j {
                kept.push(*second);
            }
        }
    }
    kept
}

/// Mean over a window of about a thirtieth of the curve around each point, cut at the ends.
fn running_mean(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = points.len() / 60;
    let mean = |index: usize| {
        let window = &points[index.saturating_sub(reach)..(index + reach + 1).min(points.len())];
        (points[index].0, window.iter().map(|(_, y)| y).sum::<f64>() / window.len() as f64)
    };
    (0..points.len()).map(mean).collect()
}

/// Transparent columns over the chart whose title lists every curve's value there.
fn push_bands(html: &mut String, curves: &[Curve], x_label: &str, unit: &str, x: &Scale) {
    let Some(longest) = curves.iter().max_by_key(|curve| curve.points.len()) else { return };
    let count = longest.points.len().min(BANDS);
    let at: Vec<f64> = (0..count)
        .map(|band| longest.points[(2 * band + 1) * longest.points.len() / (2 * count)].0)
        .collect();
    let edge = |band: usize| match band {
        0 => LEFT,
        band if band == count => WIDTH - RIGHT,
        band => x.at((at[band - 1] + at[band]) / 2.0),
    };
    for (band, position) in at.iter().enumerate() {
        let (start, end) = (edge(band), edge(band + 1));
        let mut title = format!("{} {}", escape(x_label), scale::number(*position));
        for curve in curves {
            let after = curve.points.partition_point(|(px, _)| px < position);
            if let Some((_, value)) = curve.points.get(after) {
                let name = if curves.len() == 1 { "value" } else { curve.name };
                let _ = write!(title, "\n{}: {}", escape(name), value_text(*value, unit));
            }
        }
        let _ = writeln!(
            html,
            "<rect class=\"band\" x=\"{start:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{}\"><title>{title}</title></rect>",
            (end - start).max(0.0),
            HEIGHT - TOP - BOTTOM
        );
    }
}
