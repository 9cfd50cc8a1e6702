//! The page as a whole: what is in it, what must not be.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use serde_json::{Value, json};

/// A run with a spike, a skipped step and every column; no random numbers.
fn rows(steps: usize, offset: f64) -> Vec<Value> {
    (1..=steps)
        .map(|step| {
            let t = step as f64 / steps as f64;
            let wave = ((step * 7919) % 101) as f64 / 101.0 - 0.5;
            let spike = if step == steps / 3 { 2.0 } else { 0.0 };
            let loss = 3.2 * (-3.0 * t).exp() + 0.4 + offset + 0.25 * wave + spike;
            let finite = step != steps / 2;
            json!({
                "step": step, "loss": finite.then_some(loss), "ce": loss * 0.8, "kd": loss * 0.5 + 0.1 * wave,
                "ewc": 2e-4 * t, "lr": 3e-4 * (t * 10.0).min(1.0) * (1.0 - t), "grad_norm": 1.4 - t + 0.3 * wave + spike,
                "tokens": 8192, "tokens_per_s": 10_400.0 + 900.0 * wave, "step_ms": 780.0,
                "peak_bytes": 3_400_000_000u64 + 1_000_000 * (step as u64).min(40),
            })
        })
        .collect()
}

fn demo() -> Report {
    let runs: Vec<(String, Vec<Value>)> =
        [("LoRA", 0.0), ("LoRA + EWC", 0.15), ("LoRA + KD", -0.05), ("LoRA + KD + EWC", 0.3)]
            .into_iter()
            .map(|(name, offset)| (name.to_owned(), rows(700, offset)))
            .collect();
    let mut charts = run_charts(&rows(1000, 0.0));
    charts.extend(comparison_charts(&runs));
    let row = |cells: [&str; 5]| cells.map(str::to_owned).to_vec();
    Report {
        title: "Run: medical <facts> & \"figures\"".into(),
        summary: [
            ("steps", "1000"), ("tokens", "8,192,000"), ("final loss", "0.5623"), ("tokens/s", "10412"),
            ("peak memory", "3.17 GiB"), ("wall time", "13m07s"), ("adapter", "runs/job/adapter"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec(),
        tables: vec![Table {
            title: "Methods".into(),
            note: "Recall of new facts in a phrasing that was never trained, and of old facts after the injection.".into(),
            columns: row(["method", "new recall", "old kept", "tokens/s", "peak memory"]),
            rows: vec![
                row(["LoRA", "0.978", "0.045", "10412", "3.17 GiB"]),
                row(["LoRA + EWC", "0.978", "0.210", "10380", "3.18 GiB"]),
                row(["LoRA + KD", "0.993", "0.999", "8120", "3.60 GiB"]),
                row(["LoRA + KD + EWC", "0.983", "1.000", "8090", "3.61 GiB"]),
            ],
        }],
        charts,
        config_toml: "[model]\npath = \"/models/<7b>\"\ninit = \"pretrained\"\n\n[train]\nsteps = 1000\n".into(),
    }
}

#[test]
fn page_is_self_contained_and_escaped() {
    let page = page(&demo());
    for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("Run: medical &lt;facts&gt; &amp; &quot;figures&quot;"));
    assert!(page.contains("/models/&lt;7b&gt;") && !page.contains("<7b>"));
    assert!(!page.contains("NaN") && !page.contains("inf\""));
    assert_eq!(page.matches("<figure>").count(), 11);
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    if let Some(path) = std::env::var_os("KFC_REPORT_SAMPLE") {
        write(std::path::Path::new(&path), &demo()).unwrap();
    }
}

#[test]
fn empty_and_degenerate_runs_make_a_page() {
    assert_eq!(page(&Report::default()).matches("<figure>").count(), 0);
    assert!(run_charts(&[]).is_empty());
    let odd =
        [json!({"step": 1, "loss": 1.0, "grad_norm": null, "lr": 0.0}), json!([1]), json!({"loss": "x"})];
    let charts = run_charts(&odd);
    assert_eq!(
        charts.iter().map(|chart| chart.title.as_str()).collect::<Vec<_>>(),
        ["Loss", "Learning rate"]
    );
    let page = page(&Report { charts, ..Report::default() });
    assert_eq!((page.matches("<circle").count(), page.contains("NaN")), (2, false));
}

#[test]
fn long_runs_stay_small_and_keep_their_spikes() {
    let mut points: Vec<(f64, f64)> = (0..200_000).map(|step| (f64::from(step), 1.0)).collect();
    points[123_457].1 = 9.5;
    let series = vec![Series { name: "loss".into(), points }];
    let chart = Chart { title: "Loss".into(), x_label: "step".into(), series, ..Chart::default() };
    let figure = svg::figure(&chart).unwrap();
    assert!(figure.len() < 60_000, "{}", figure.len());
    // The axis ends at 10, and the spike is drawn close to its top.
    assert!(figure.contains(">10<") && figure.contains(" 20.0"), "{figure}");
}

#[test]
fn metrics_of_an_interrupted_run_are_read() {
    let folder = std::env::temp_dir().join(format!("kfc-metrics-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("metrics.jsonl");
    std::fs::write(&path, "{\"step\":1}\n\n{\"step\":2}\n{\"ste").unwrap();
    assert_eq!(read_metrics(&path).unwrap(), [json!({"step": 1}), json!({"step": 2})]);
    std::fs::write(&path, "{\"step\":1}\n{\"ste\n{\"step\":3}\n").unwrap();
    let error = crate::error::message(&read_metrics(&path).unwrap_err());
    assert!(error.starts_with(&format!("{}:2: ", path.display())), "{error}");
    std::fs::remove_dir_all(&folder).unwrap();
}
