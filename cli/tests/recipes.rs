//! The recipes on real data, in their small form: each script runs to its end and leaves what its page says. Needs
//! `KFC_DATA`; where it is not set the test says so, and fails if `CI` is set.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a script of `recipes/`; returns what it printed.
fn run(script: &str, arguments: &[&Path]) -> String {
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
    let output = Command::new(recipes.join(script))
        .args(arguments)
        .env("KFC", env!("CARGO_BIN_EXE_kfc"))
        .env("SMALL", "1")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{script}: {}\n{errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// A number of an evaluation's task, before and after.
fn change(report: &Path, task: &str) -> (f64, f64) {
    let report = json(report);
    let tasks = report["tasks"].as_array().unwrap();
    let task = tasks.iter().find(|t| t["name"] == task).unwrap();
    let ppl = &task["comparison"]["metrics"]["ppl"];
    (ppl["before"].as_f64().unwrap(), ppl["after"].as_f64().unwrap())
}

#[test]
fn every_recipe_runs_and_shows_what_it_promises() {
    let Some(data) = std::env::var_os("KFC_DATA").map(PathBuf::from) else {
        assert!(std::env::var_os("CI").is_none(), "KFC_DATA is not set");
        eprintln!("skipped: KFC_DATA is not set");
        return;
    };
    let folder = Folder::new();
    let out = folder.path();
    run("prepare.sh", &[&data, out]);

    run("domain-pretraining/run.sh", &[out]);
    run("injection/run.sh", &[out]);
    for recipe in ["domain-pretraining", "injection"] {
        let (before, after) = change(&out.join(format!("{recipe}-evidence/report.json")), "abstracts");
        assert!(after < before, "{recipe}: abstracts from {before} to {after}");
        let page = std::fs::read_to_string(out.join(recipe).join("report.html")).unwrap();
        for part in ["Gates of", "<h2>Samples</h2>", "Memory of", "<h2>Kernels</h2>"] {
            assert!(page.contains(part), "{recipe}: no {part}");
        }
    }
    assert!(out.join("injection/inspect.html").is_file() && out.join("injected/config.json").is_file());

    // Lines of stage, text, perplexity.
    let table = run("sequential-domains/run.sh", &[out]);
    let perplexity = |stage: &str, text: &str| -> f64 {
        let start = format!("{stage} {text} ");
        table.lines().find_map(|l| l.strip_prefix(&start)).unwrap().trim().parse().unwrap()
    };
    assert!(perplexity("domain-2", "sums") < perplexity("domain-1", "sums"), "{table}");
}
