//! Reports of `kfc eval` from outside, on the model of `lm_eval/case`, which learned a little.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Folder, copy, fails, json, kfc, names, succeeds};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

fn lm_case(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lm_eval/case").join(name);
    path.to_str().unwrap().to_owned()
}

fn arguments(words: &[&str]) -> Vec<OsString> {
    ["eval", "--model"]
        .iter()
        .map(|w| OsString::from(*w))
        .chain([lm_case("model").into()])
        .chain(words.iter().map(|w| (*w).into()))
        .collect()
}

fn text(path: PathBuf) -> String {
    std::fs::read_to_string(path).unwrap()
}

const SUITE: &str = r#"
limit = 12

[[task]]
task = "medqa"
data = "medqa.jsonl"

[[task]]
name = "colours"
task = "choice"
data = "choice.jsonl"
perturb = false
old = true

[[task]]
task = "gsm8k"
data = "gsm8k.jsonl"
shots = 2
max_new_tokens = 20

[[task]]
task = "speed"
max_new_tokens = 4

[robustness]
perturbations = ["character", "distractor"]
tries = 2
rows = 3

[intervals]
resamples = 200

[gates]
accuracy = false
"medqa.n" = "==12"
"#;

/// A folder with the suite and its rows.
fn suite() -> Folder {
    let folder = Folder::new();
    for name in ["medqa.jsonl", "choice.jsonl", "gsm8k.jsonl", "train.jsonl"] {
        std::fs::copy(lm_case(name), folder.join(name)).unwrap();
    }
    std::fs::write(folder.join("suite.toml"), SUITE).unwrap();
    folder
}

fn str_of(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The model with other rotary frequencies, which happens to know more colours.
fn other_model(folder: &Folder) -> PathBuf {
    let model = folder.join("other");
    copy(Path::new(&lm_case("model")), &model);
    let mut config: Value = json(&model.join("config.json"));
    config.as_object_mut().unwrap().remove("rope_parameters");
    config["rope_theta"] = json!(3.0);
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    model
}

/// Numbers that do not depend on the clock.
fn timeless(report: &Value) -> Vec<(String, Value)> {
    let metrics = report["metrics"].as_object().unwrap().iter();
    let metrics = metrics.filter(|(name, _)| !name.ends_with("per_s") && !name.ends_with("seconds"));
    metrics.map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[test]
fn a_suite_becomes_a_report_that_can_be_repeated() {
    let folder = suite();
    let (file, out) = (folder.join("suite.toml"), folder.join("out"));
    let words =
        ["--suite", str_of(&file), "--json", "--no-gate", "tokens_per_s", "--gate", "attack_success_rate<=1"];
    let said = succeeds(&arguments(&[&words[..], &["--out", str_of(&out)]].concat()));
    let report: Value = serde_json::from_str(&said).unwrap();
    let metrics = report["metrics"].as_object().unwrap();
    for name in [
        "accuracy",
        "acc_norm",
        "tokens_per_s",
        "attack_success_rate",
        "attack_queries",
        "medqa.acc",
        "medqa.acc_norm",
        "medqa.attack_success_rate",
        "colours.acc",
        "gsm8k.exact_match",
        "gsm8k.attack_queries",
        "speed.tokens_per_s",
    ] {
        assert!(metrics[name].is_number(), "{name} in {metrics:?}");
    }
    assert!(
        !metrics.contains_key("forgetting") && !metrics.contains_key("colours.attack_queries"),
        "{metrics:?}"
    );
    // Old tasks do not count for accuracy.
    let mean =
        (metrics["medqa.acc"].as_f64().unwrap() + metrics["gsm8k.exact_match"].as_f64().unwrap()) / 2.0;
    assert_eq!(metrics["accuracy"].as_f64().unwrap(), mean);
    let gates: Vec<&str> =
        report["gates"].as_array().unwrap().iter().map(|g| g["gate"].as_str().unwrap()).collect();
    assert_eq!(gates, ["medqa.n==12", "attack_success_rate<=1"]);
    assert_eq!(report["gates_not_measured"], json!(["entity_recall>=0.92", "forgetting<=0.15"]));

    // Every row is there, and its numbers are those of the report.
    assert_eq!(names(&out), ["attacks", "report.html", "report.json", "rows"]);
    assert_eq!(names(&out.join("rows")), ["colours.jsonl", "gsm8k.jsonl", "medqa.jsonl"]);
    assert_eq!(names(&out.join("attacks")), ["gsm8k.jsonl", "medqa.jsonl"]);
    let rows: Vec<Value> =
        text(out.join("rows/gsm8k.jsonl")).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(rows.len(), 12);
    let right = rows.iter().filter(|r| r["correct"] == true).count() as f64 / 12.0;
    assert_eq!(metrics["gsm8k.exact_match"].as_f64().unwrap(), right);
    assert!(
        rows.iter()
            .all(|r| r["answer"].is_string() && r["prompt"].as_str().unwrap().starts_with("Question:"))
    );
    let interval = &report["tasks"][0]["intervals"]["acc"];
    let (low, high) = (interval["low"].as_f64().unwrap(), interval["high"].as_f64().unwrap());
    assert!(low <= metrics["medqa.acc"].as_f64().unwrap() && metrics["medqa.acc"].as_f64().unwrap() <= high);
    let attacks: Vec<Value> =
        text(out.join("attacks/gsm8k.jsonl")).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let attacked: u64 = report["tasks"][2]["attacks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a["attacked"].as_u64().unwrap())
        .sum();
    assert_eq!(attacks.len() as u64, attacked);
    assert!(attacked > 0 && attacks.iter().all(|a| (1..=2).contains(&a["queries"].as_u64().unwrap())));
    assert_eq!(json(&out.join("report.json")), report);
    let page = text(out.join("report.html"));
    assert!(page.contains("Shares and their intervals") && page.contains("colours.acc_norm"));
    assert!(["http:", "https:", "<script", "src="].iter().all(|part| !page.contains(part)));

    // Again, with another number of threads and rows at a time: the same.
    let again = succeeds(&arguments(&[&words[..], &["--threads", "1"]].concat()));
    assert_eq!(timeless(&serde_json::from_str(&again).unwrap()), timeless(&report));
}

#[test]
fn forgetting_is_what_another_model_knew() {
    let folder = suite();
    let (file, out) = (folder.join("suite.toml"), folder.join("out"));
    let (model, other) = (lm_case("model"), other_model(&folder));
    let words: Vec<OsString> = [
        "eval",
        "--model",
        &model,
        "--against",
        str_of(&other),
        "--suite",
        str_of(&file),
        "--out",
        str_of(&out),
        "--json",
        "--no-gate",
        "tokens_per_s",
        "--no-gate",
        "attack_success_rate",
    ]
    .map(OsString::from)
    .into();
    let output = kfc(&words);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("gate forgetting<=0.15: MISSED"), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let comparison = &report["tasks"][1]["comparison"];
    let acc = &comparison["metrics"]["acc"];
    let (before, after) = (acc["before"].as_f64().unwrap(), acc["after"].as_f64().unwrap());
    assert!(before > after, "{comparison}");
    let lost = report["metrics"]["forgetting"].as_f64().unwrap();
    assert!((lost - (before - after) / before).abs() < 1e-12);
    let count = |side: &str| comparison["mcnemar"][side].as_f64().unwrap();
    assert!((count("only_before") - count("only_after") - 12.0 * (before - after)).abs() < 1e-9);
    let (low, high) = (acc["interval"]["low"].as_f64().unwrap(), acc["interval"]["high"].as_f64().unwrap());
    assert!(low <= after - before && after - before <= high);
    assert!(names(&out.join("rows")).contains(&"colours.before.jsonl".to_owned()));

    // A model has forgotten nothing of itself.
    let same = ["--against", &model, "--task", "choice", "--old", "choice", "--limit", "6", "--data"];
    let report = succeeds(&arguments(
        &[&same[..], &[&lm_case("choice.jsonl"), "--json", "--no-gate", "accuracy"]].concat(),
    ));
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["metrics"]["forgetting"], json!(0.0));
    assert_eq!(report["tasks"][0]["comparison"]["mcnemar"]["p"], json!(1.0));
    assert_eq!(report["tasks"][0]["comparison"]["metrics"]["acc"]["p"], json!(1.0));
}

#[test]
fn default_gates_decide_unless_they_are_taken_away() {
    let (questions, choices) = (lm_case("gsm8k.jsonl"), lm_case("choice.jsonl"));
    let words = [
        "--task",
        "qa",
        "--data",
        &questions,
        "--task",
        "choice",
        "--data",
        &choices,
        "--limit",
        "12",
        "--max-new-tokens",
        "2",
    ];
    let missed = kfc(&arguments(&words));
    let (table, stderr) =
        (String::from_utf8(missed.stdout).unwrap(), String::from_utf8(missed.stderr).unwrap());
    assert_eq!(missed.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("gate accuracy>=0.85: MISSED (accuracy = "), "{stderr}");
    let line = table.lines().find(|l| l.starts_with("accuracy>=0.85")).unwrap();
    assert!(line.contains("MISSED") && line.ends_with("default"), "{table}");
    assert!(
        table.lines().any(|l| l.starts_with("entity_recall>=0.92") && l.contains("not measured")),
        "{table}"
    );
    succeeds(&arguments(&[&words[..], &["--no-gate", "accuracy"]].concat()));
    succeeds(&arguments(&[&words[..], &["--gate", "accuracy>=0.01"]].concat()));
    let strict = kfc(&arguments(&[&words[..], &["--no-gate", "all", "--gate", "choice.n>=13"]].concat()));
    assert_eq!(strict.status.code(), Some(3));
}

#[test]
fn what_is_wrong_with_a_suite_is_named() {
    let folder = suite();
    let file = folder.join("suite.toml");
    let check = |toml: &str, parts: &[&str]| {
        std::fs::write(&file, toml).unwrap();
        fails(2, &arguments(&["--suite", str_of(&file)]), parts);
    };
    check("limit = 0\n", &["suite.toml:1: limit: must be a whole number above 0, it is the integer 0"]);
    check("", &["the suite has no task"]);
    check(
        "[[task]]\ntask = \"medqua\"\n",
        &["suite.toml:2: task.task: there is no task `medqua`; did you mean `medqa`?"],
    );
    check("[[task]]\ntask = \"qa\"\n", &["suite.toml:", "task.data: qa needs rows"]);
    check("[[task]]\ntask = \"speed\"\nshot = 1\n", &["suite.toml:3: task.shot: ", "did you mean `shots`?"]);
    let robust = "[[task]]\ntask = \"speed\"\n[robustness]\nperturbations = [\"typo\"]\n";
    check(robust, &["suite.toml:4", "no perturbation; they are character, synonym, distractor"]);
    check("[[task]]\ntask = \"speed\"\n[gates]\nspeed = 3\n", &["suite.toml:4: gates.speed: must be text"]);
    check("[[task]]\ntask = \"speed\"\n[gates]\nacuracy = \">=1\"\n", &["there is no metric `acuracy`"]);
    check("[[task]\n", &["suite.toml:1: not valid TOML"]);
    fails(2, &arguments(&["--suite", "none.toml"]), &["none.toml: there is no such file"]);
    fails(2, &arguments(&["--suite", "standard"]), &["name it with --data DIR"]);
    let data = lm_case("choice.jsonl");
    let task = ["--task", "choice", "--data", &data];
    let model = lm_case("model");
    let old = [&task[..], &["--against", &model, "--old", "chioce"]].concat();
    fails(2, &arguments(&old), &["--old chioce: no task of that name; the tasks are choice"]);
    fails(
        2,
        &arguments(&[&task[..], &["--perturb", "all", "--no-gate", "x"]].concat()),
        &["no default gate on `x`"],
    );
    let nowhere = [&task[..], &["--perturb", "all", "--synonyms", "none.txt"]].concat();
    fails(2, &arguments(&nowhere), &["none.txt"]);
    fails(2, &arguments(&[&task[..], &["--tries", "3"]].concat()), &["say how with --perturb"]);
    fails(
        2,
        &arguments(&[&task[..], &["--no-gate", "all"]].concat()),
        &["a single --task has no default gates"],
    );
    // `train.jsonl` beside the choices has rows of another kind.
    fails(
        2,
        &arguments(&[&task[..], &["--shots", "1", "--out", "x"]].concat()),
        &["train.jsonl:1: no choices"],
    );
}

/// MedQA, GSM8K and NCBI-disease where they are.
#[test]
fn the_standard_suite_runs_on_real_data() {
    let Some(data) = std::env::var_os("KFC_DATA") else {
        assert!(std::env::var_os("CI").is_none(), "KFC_DATA is not set");
        eprintln!("skipped: KFC_DATA is not set");
        return;
    };
    let words = [
        "--suite",
        "standard",
        "--limit",
        "2",
        "--max-new-tokens",
        "4",
        "--no-gate",
        "all",
        "--json",
        "--data",
    ];
    let said = succeeds(&[arguments(&words), vec![data]].concat());
    let report: Value = serde_json::from_str(&said).unwrap();
    let tasks: Vec<&str> =
        report["tasks"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    assert_eq!(tasks, ["medqa", "gsm8k", "ncbi-disease", "speed"]);
    for name in
        ["medqa.acc", "gsm8k.strict_match", "ncbi-disease.entity_f1", "entity_recall", "f1", "tokens_per_s"]
    {
        assert!(report["metrics"].get(name).is_some(), "{name}: {}", report["metrics"]);
    }
}
