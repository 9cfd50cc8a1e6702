//! What a user sees of a running job: a bar on a terminal, an occasional line elsewhere, nothing with `--quiet`; and the
//! summary at the end. Progress is on standard error, the summary on standard output.

use crate::args::Global;
use crate::config::format_bytes;
use crate::output;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Progress of a job of a known number of steps.
pub struct Progress {
    display: Display,
    total: u64,
    started: Instant,
    /// What is counted.
    what: String,
    /// Steps that an earlier run had done.
    first: u64,
}

enum Display {
    Silent,
    Lines { last: Option<Instant> },
    Bar(ProgressBar),
}

impl Progress {
    /// A display of `total` steps, `done` of which an earlier run has done; `what` says what is counted ("step", "row").
    pub fn new(what: &str, done: usize, total: usize, global: &Global) -> Progress {
        let display = if global.quiet {
            Display::Silent
        } else if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(total as u64).with_position(done as u64);
            let template = format!("{what} {{pos}}/{{len}} {{wide_bar}} {{msg}}  ETA {{eta}}");
            // A template that does not parse would leave the default style, which serves as well.
            if let Ok(style) = ProgressStyle::with_template(&template) {
                bar.set_style(style.progress_chars("━╸ "));
            }
            bar.reset_eta();
            Display::Bar(bar)
        } else {
            Display::Lines { last: None }
        };
        Progress {
            display,
            total: total as u64,
            started: Instant::now(),
            what: what.to_owned(),
            first: done as u64,
        }
    }

    /// Step `step` (from 1) is done.
    pub fn step(&mut self, step: usize, loss: f64, tokens_per_s: f64) {
        self.update(step, &format!("loss {}  {} tok/s", loss_text(loss), rate(tokens_per_s)));
    }

    /// `done` rows, files or the like are done; `message` says what else there is to say.
    pub fn update(&mut self, done: usize, message: &str) {
        let done = done as u64;
        match &mut self.display {
            Display::Silent => {}
            Display::Bar(bar) => {
                bar.set_message(message.to_owned());
                bar.set_position(done);
            }
            Display::Lines { last } => {
                let now = Instant::now();
                let due =
                    last.is_none_or(|last| now.duration_since(last) >= LINE_EVERY) || done >= self.total;
                if due {
                    *last = Some(now);
                    let seconds = now.duration_since(self.started).as_secs_f64();
                    output::stderr_line(&line(&self.what, message, [self.first, done, self.total], seconds));
                }
            }
        }
    }

    /// A line that stays: a warning, a checkpoint written, a step skipped.
    pub fn note(&self, line: &str) {
        match &self.display {
            Display::Silent => {}
            Display::Lines { .. } => output::stderr_line(line),
            Display::Bar(bar) => bar.suspend(|| output::stderr_line(line)),
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        if let Display::Bar(bar) = self.display {
            bar.finish_and_clear();
        }
    }
}

/// A line of progress after `seconds`, of the counts at the start, now and at the end. Where nothing is done yet, or nothing
/// is left, there is no time to foresee.
fn line(what: &str, message: &str, [first, done, total]: [u64; 3], seconds: f64) -> String {
    let mut parts = vec![format!("{what} {done}/{total}")];
    if !message.is_empty() {
        parts.push(message.to_owned());
    }
    if done > first && done < total {
        parts.push(format!("ETA {}", duration(seconds / (done - first) as f64 * (total - done) as f64)));
    }
    parts.join("  ")
}

/// What a training run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Optimiser steps done, those of resumed runs included.
    pub steps: usize,
    /// Optimiser steps of the whole job.
    pub total: usize,
    /// Tokens trained on, those before the run was resumed included.
    pub tokens: u64,
    /// Loss of the last step.
    pub loss: f64,
    /// Tokens a second over this process's steps.
    pub tokens_per_s: f64,
    /// Peak resident memory.
    pub peak_bytes: u64,
    /// What was predicted of it before the first step.
    pub predicted_peak_bytes: u64,
    /// Wall time of this process.
    pub seconds: f64,
    /// Seconds from opening the job to the end of the first step, if one was taken.
    pub cold_start: Option<f64>,
    /// Steps whose gradient was not finite, and which changed nothing.
    pub skipped: usize,
    /// What was trained: an adapter or model folder, or the checkpoint of a run that was stopped.
    pub result: PathBuf,
    /// The page with curves.
    pub report: PathBuf,
    /// The run was interrupted before its last step.
    pub stopped: bool,
}

impl Summary {
    /// Names and values for people; also the header of the report.
    pub fn rows(&self) -> Vec<(String, String)> {
        let mut rows = vec![
            ("steps", format!("{} of {}", self.steps, self.total)),
            ("tokens", grouped(self.tokens)),
            ("final loss", loss_text(self.loss)),
            ("tokens/s", rate(self.tokens_per_s)),
            (
                "peak memory",
                format!(
                    "{} ({} predicted)",
                    format_bytes(self.peak_bytes),
                    format_bytes(self.predicted_peak_bytes)
                ),
            ),
            ("wall time", duration(self.seconds)),
        ];
        if let Some(seconds) = self.cold_start {
            rows.push(("first step", format!("after {seconds:.2} s")));
        }
        if self.skipped > 0 {
            rows.push(("skipped steps", format!("{} (gradient not finite)", self.skipped)));
        }
        if self.stopped {
            rows.push(("stopped", "go on with --resume".into()));
        }
        let what = self.result.file_name().map_or("result", |n| match n.to_str() {
            Some("adapter") => "adapter",
            Some("model") => "model",
            _ => "checkpoint",
        });
        rows.push((what, self.result.display().to_string()));
        rows.push(("report", self.report.display().to_string()));
        rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// As one object.
    pub fn to_json(&self) -> Value {
        json!({
            "event": "summary",
            "steps": self.steps,
            "total_steps": self.total,
            "stopped": self.stopped,
            "tokens": self.tokens,
            "loss": self.loss,
            "tokens_per_s": self.tokens_per_s,
            "peak_bytes": self.peak_bytes,
            "predicted_peak_bytes": self.predicted_peak_bytes,
            "seconds": self.seconds,
            "cold_start_seconds": self.cold_start,
            "skipped": self.skipped,
            "result": output::shown(&self.result),
            "report": output::shown(&self.report),
        })
    }

    /// Reads what [`Summary::to_json`] gave; `None` if something is missing.
    pub fn from_json(json: &Value) -> Option<Summary> {
        let count = |key: &str| json.get(key)?.as_u64();
        let number = |key: &str| json.get(key)?.as_f64();
        let path = |key: &str| Some(PathBuf::from(json.get(key)?.as_str()?));
        Some(Summary {
            steps: count("steps")? as usize,
            total: count("total_steps")? as usize,
            tokens: count("tokens")?,
            loss: number("loss").unwrap_or(f64::NAN),
            tokens_per_s: number("tokens_per_s").unwrap_or(f64::NAN),
            peak_bytes: count("peak_bytes")?,
            predicted_peak_bytes: count("predicted_peak_bytes")?,
            seconds: number("seconds")?,
            cold_start: number("cold_start_seconds"),
            skipped: count("skipped")? as usize,
            result: path("result")?,
            report: path("report")?,
            stopped: json.get("stopped")?.as_bool()?,
        })
    }

    /// Prints the summary to standard output, as a table or with `--json` as one line with an `event` of `"summary"`.
    ///
    /// # Errors
    /// If standard output cannot be written.
    pub fn print(&self, global: &Global) -> std::io::Result<()> {
        if global.json {
            return output::json_line(&self.to_json());
        }
        let rows = self.rows();
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let lines: Vec<String> =
            rows.iter().map(|(name, value)| format!("{name:<width$}  {value}\n")).collect();
        output::write_stdout(&lines.concat())
    }
}

/// Digits in groups of three.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A loss with as many digits as mean something.
fn loss_text(value: f64) -> String {
    if value.abs() < 1e6 || !value.is_finite() { format!("{value:.4}") } else { format!("{value:.3e}") }
}

/// A rate with as many digits as mean something.
fn rate(value: f64) -> String {
    if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

/// Seconds for people: `0.4 s`, `12 s`, `3m20s`, `2h05m`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".into();
    }
    if seconds < 10.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        _ => format!("{}h{:02}m", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let shown: Vec<String> =
            [0.44, 12.2, 59.7, 200.0, 7500.0, f64::NAN].into_iter().map(duration).collect();
        assert_eq!(shown, ["0.4 s", "12 s", "1m00s", "3m20s", "2h05m", "?"]);
    }

    #[test]
    fn lines_foresee_only_what_can_be_foreseen() {
        let at = |done| line("step", "loss 1.0000", [10, done, 30], 4.0);
        assert_eq!(at(10), "step 10/30  loss 1.0000");
        assert_eq!(at(14), "step 14/30  loss 1.0000  ETA 16 s");
        assert_eq!(at(30), "step 30/30  loss 1.0000");
        assert_eq!(line("row", "", [0, 1, 3], 2.0), "row 1/3  ETA 4.0 s");
    }

    #[test]
    fn losses() {
        let shown = [0.12345, 99999.5, 1.02e30, f64::NAN].map(loss_text);
        assert_eq!(shown, ["0.1235", "99999.5000", "1.020e30", "NaN"]);
    }

    #[test]
    fn summary_rows_mention_skipped_steps_only_if_there_are_any() {
        let summary = Summary {
            steps: 10,
            total: 12,
            tokens: 81920,
            loss: 1.23456,
            tokens_per_s: 1234.5,
            peak_bytes: 3 << 29,
            predicted_peak_bytes: 3 << 29,
            seconds: 66.4,
            cold_start: Some(1.5),
            skipped: 0,
            result: "runs/job/adapter".into(),
            report: "runs/job/report.html".into(),
            stopped: false,
        };
        let text = |summary: &Summary| {
            summary
                .rows()
                .into_iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            text(&summary),
            "steps=10 of 12 tokens=81,920 final loss=1.2346 tokens/s=1234 \
             peak memory=1.50 GiB (1.50 GiB predicted) wall time=1m06s first step=after 1.50 s adapter=runs/job/adapter \
             report=runs/job/report.html"
        );
        assert!(text(&Summary { skipped: 2, ..summary }).contains("skipped steps=2 (gradient not finite)"));
    }
}
