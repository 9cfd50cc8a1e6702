//! Embedding tables that stay in their files (`train.embeddings`): the same bits in less memory, and only where a table may.
#![allow(clippy::unwrap_used)]

mod common;

use common::{World, command, json, series};
use serde_json::Value;
use std::path::Path;

const JOB: &str = "[model]\npath = 'student'\n[lora]\nr = 4\n[distill]\nteacher = 'teacher'\n[data]\ntrain = ['rows.jsonl']\n\
                   seq_len = 16\n[train]\nsteps = 3\nbatch = 2\naccumulation = 2\nlr = 0.01\nwarmup_steps = 0\n";

/// Trains with these settings; what it said on the way.
fn train(job: &Path, out: &Path, settings: &[&str]) -> String {
    let mut c = std::process::Command::new(env!("CARGO_BIN_EXE_kfc"));
    c.arg("train").arg(job).arg("--out").arg(out);
    settings.iter().for_each(|s| {
        c.args(["--set", s]);
    });
    let output = c.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    said
}

/// Whether what explains a run says that tables stay in their files.
fn says_so(run: &Path) -> bool {
    let output = command().arg("explain").arg(run).output().unwrap();
    String::from_utf8(output.stdout).unwrap().contains("of embedding tables are read from their files")
}

/// Bytes of each kind that a run held.
fn account(run: &Path) -> Value {
    let output = command().arg("explain").arg(run).arg("--json").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str::<Value>(text.lines().next().unwrap()).unwrap()["account"].clone()
}

#[test]
fn tables_in_files_leave_the_same_bits() {
    let world = World::new();
    let job = world.job(JOB);
    let [vocab, width] = ["vocab_size", "hidden_size"]
        .map(|key| json(&world.join("student/config.json"))[key].as_u64().unwrap());
    let teacher = json(&world.join("teacher/config.json"))["hidden_size"].as_u64().unwrap();
    // Files are f32: with bf16 rows are rounded as they are read.
    for (dtype, size) in [("f32", 4), ("bf16", 2)] {
        let dtype = format!("model.dtype='{dtype}'");
        for place in ["memory", "file", "auto"] {
            train(&job, &world.join(place), &[&dtype, &format!("train.embeddings='{place}'")]);
        }
        let adapter =
            |run: &str| std::fs::read(world.join(run).join("adapter/adapter_model.safetensors")).unwrap();
        assert!(adapter("file") == adapter("memory") && adapter("auto") == adapter("memory"));
        assert_eq!(series(&world.join("file"), "loss"), series(&world.join("memory"), "loss"));
        let [memory, file, auto] = ["memory", "file", "auto"].map(|run| account(&world.join(run)));
        let bytes = |account: &Value, kind: &str| account[kind].as_u64().unwrap_or(0);
        for (kind, width) in [("student weights", width), ("teacher weights", teacher)] {
            assert_eq!(bytes(&memory, kind) - bytes(&file, kind), vocab * width * size, "{kind}");
        }
        assert_eq!(bytes(&file, "embedded tokens"), 2 * 16 * (width + teacher) * size);
        // Small tables are in memory where it is left open.
        assert_eq!(bytes(&auto, "embedded tokens"), 0);
        assert!(says_so(&world.join("file")) && !says_so(&world.join("auto")));
        for run in ["memory", "file", "auto"] {
            std::fs::remove_dir_all(world.join(run)).unwrap();
        }
    }
}

#[test]
fn a_table_that_is_trained_or_shared_is_in_memory() {
    let world = World::new();
    // Whether a table is read from its file, and what is said of tables that are not.
    let embedded = |job: &str, out: &str| {
        let said = train(&world.job(job), &world.join(out), &["train.embeddings='file'"]);
        let notes = said.lines().filter(|l| l.contains("embedding table is in memory nevertheless"));
        (account(&world.join(out))["embedded tokens"].is_u64(), notes.collect::<Vec<_>>().join("\n"))
    };
    let student = JOB.replace("[distill]\nteacher = 'teacher'\n", "");
    assert_eq!(embedded(&student, "frozen"), (true, String::new()));
    let trained = |job: &str| job.replace("[lora]\nr = 4\n", "");
    let (is_read, note) = embedded(&trained(&student), "trained");
    assert!(!is_read && note.contains("the student's") && note.ends_with("for it is trained"), "{note}");
    // The teacher's never is.
    let (is_read, note) = embedded(&trained(JOB), "beside");
    assert!(is_read && !note.contains("teacher"), "{note}");
    let config = world.join("student/config.json");
    let mut shared = json(&config);
    shared["tie_word_embeddings"] = true.into();
    std::fs::write(&config, shared.to_string()).unwrap();
    let (is_read, note) = embedded(&student, "shared");
    assert!(!is_read && note.ends_with("for it is the output layer's, too"), "{note}");
}
