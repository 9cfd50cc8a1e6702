//! The page of a run, as training writes it and as `kfc report` writes it again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::browser::{chromium, figure, visit};
use common::*;
use serde_json::{Value, json as object};

const JOB: &str = "
[model]
path = \"student\"
[lora]
r = 4
[data]
train = [\"rows.jsonl\"]
seq_len = 32
[train]
steps = 3
batch = 2
accumulation = 1
warmup_steps = 0
[report]
prompts = [\"w1 w2 w3\", \"w5 <b>\"]
max_new_tokens = 6
";

#[test]
fn a_run_shows_samples_gates_memory_and_kernels() {
    let world = World::new();
    let run = world.join("run");
    succeeds(&args!["train", world.job(JOB), "--out", run]);
    let samples = json(&run.join("samples.json"));
    assert_eq!(samples.as_array().unwrap().len(), 2);
    // The same as asking by hand, before and after.
    for (key, adapter) in [("before", run.join("snapshot")), ("after", run.join("adapter"))] {
        let asked = args![
            "--json",
            "generate",
            "--model",
            world.join("student"),
            "--adapter",
            adapter,
            "--prompt",
            "w1 w2 w3",
            "--max-new-tokens",
            "6"
        ];
        let said: Value = serde_json::from_str(&succeeds(&asked)).unwrap();
        assert_eq!(samples[0][key], said["text"], "{key}");
    }
    assert_eq!(json(&run.join("summary.json"))["steps"], 3);

    let evaluation = world.join("exam");
    std::fs::create_dir(&evaluation).unwrap();
    let gates = object!([
        {"gate": "accuracy>=0.85", "value": 0.25, "passed": false},
        {"gate": "entity_recall>=0.92", "value": null, "passed": null},
    ]);
    std::fs::write(evaluation.join("report.json"), object!({"gates": gates}).to_string()).unwrap();
    succeeds(&args!["report", run, "--eval", evaluation, "--prompt", "w7"]);
    let page = std::fs::read_to_string(run.join("report.html")).unwrap();
    for part in [
        "Gates of exam",
        "accuracy&gt;=0.85",
        "MISSED",
        "not measured",
        "<h2>Samples</h2>",
        ">w7<",
        "Memory of",
        "<h2>Kernels</h2>",
        "seq_len = 32",
    ] {
        assert!(page.contains(part) || page.contains(&part.replace("&gt;", ">")), "{part}");
    }
    // Written again it is the same.
    succeeds(&args!["report", run]);
    assert_eq!(std::fs::read_to_string(run.join("report.html")).unwrap(), page);

    let Some(browser) = chromium() else { return };
    let shown = visit(&browser, &Folder::new(), &run.join("report.html"));
    assert!(
        shown.console.is_empty() && shown.requests.is_empty(),
        "{:?} {:?}",
        shown.console,
        shown.requests
    );
    assert!(
        figure(&shown.dom, "Loss").contains("<path")
            && figure(&shown.dom, "Memory of").contains("class=\"area\"")
    );
    assert!(shown.picture.colours.len() > 200, "{} colours", shown.picture.colours.len());
}

#[test]
fn what_it_refuses() {
    let world = World::new();
    let run = world.join("run");
    fails(2, &args!["report", world.join("student")], &["no run directory"]);
    let job = world.job(JOB);
    fails(2, &args!["train", job, "--set", "report.prompts=[]"], &["report.prompts", "at least one text"]);
    fails(2, &args!["train", job, "--set", "model.init=random"], &["report.prompts", "[lora]"]);
    succeeds(&args!["train", job, "--out", run]);
    fails(2, &args!["report", run, "--eval", world.join("student")], &["no report.json", "kfc eval --out"]);
    std::fs::write(world.join("student/report.json"), "{}").unwrap();
    fails(2, &args!["report", run, "--eval", world.join("student")], &["no report of `kfc eval`"]);
    let long = "w1 ".repeat(600);
    fails(2, &args!["report", run, "--prompt", long], &["600 tokens"]);
    std::fs::write(run.join("samples.json"), "{").unwrap();
    fails(2, &args!["report", run], &["samples.json"]);
}
