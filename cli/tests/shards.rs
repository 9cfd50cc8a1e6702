//! `kfc data shard`, and training from what it writes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Archives that the webdataset package wrote (`tools/check_webdataset.py --fixture`): rows as .json, rows as .txt with a
/// .cls, and members that are no text.
#[test]
fn archives_of_the_webdataset_package_are_read() {
    let data = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let out = Folder::new();
    let back = out.join("back.jsonl");
    let done = succeeds(&args!["data", "shard", data.join("webdataset-{000000..000001}.tar"), "--out", back]);
    assert!(done.contains("44 rows in 1 shard,"), "{done}");
    assert_eq!(lines(&back), lines(&data.join("webdataset.jsonl")));
}

#[test]
fn rows_go_there_and_back() {
    let world = World::new();
    let rows = world.join("rows.jsonl");
    let tars = world.join("shards/{00..04}.tar");
    let made = succeeds(&args!["data", "shard", rows, "--out", tars, "--json"]);
    let made: Value = serde_json::from_str(&made).unwrap();
    let count = lines(&rows).len() as u64;
    assert_eq!((made["rows"].as_u64(), made["shards"].as_array().unwrap().len()), (Some(count), 5));
    assert_eq!(made["pattern"], tars.to_str().unwrap());
    let manifest = json(&world.join("shards/shards.tar.manifest"));
    assert_eq!((&manifest["complete"], &manifest["rows"]), (&true.into(), &count.into()));
    succeeds(&args!["data", "shard", tars, "--out", world.join("back.jsonl")]);
    assert_eq!(lines(&world.join("back.jsonl")), lines(&rows));
    // A folder of shards is its shards, without the manifest.
    succeeds(&args!["data", "shard", world.join("shards"), "--out", world.join("again.jsonl")]);
    assert_eq!(lines(&world.join("again.jsonl")), lines(&rows));
}

/// Text, archives and token shards of the same rows in the same order train the same model, in memory and streamed.
#[test]
fn every_format_trains_the_same() {
    let world = World::new();
    let rows = world.join("rows.jsonl");
    succeeds(&args!["data", "shard", rows, "--out", world.join("{0..2}.tar")]);
    let tokens = world.join("{0..2}.safetensors");
    succeeds(&args!["data", "shard", rows, "--out", tokens, "--tokenizer", world.join("student")]);
    let train = |name: &str, train: &str, streaming: &str| {
        let job = world.job(&format!(
            "[model]\npath = \"student\"\n[lora]\nr = 4\n\
             [data]\ntrain = [{train:?}]\nseq_len = 32\nstreaming = {streaming:?}\nshuffle = false\n\
             [train]\nsteps = 6\nbatch = 4\naccumulation = 1\nlr = 1e-2\nwarmup_steps = 0\n"
        ));
        let run = world.join(&format!("{name}-{streaming}"));
        succeeds(&args!["train", job, "--out", run]);
        std::fs::read(run.join("adapter/adapter_model.safetensors")).unwrap()
    };
    let expected = train("jsonl", "rows.jsonl", "off");
    for (name, files) in [("jsonl", "rows.jsonl"), ("tar", "{0..2}.tar"), ("tokens", "{0..2}.safetensors")] {
        for streaming in ["off", "on"] {
            if (name, streaming) != ("jsonl", "off") {
                assert!(train(name, files, streaming) == expected, "{name}, streaming {streaming}");
            }
        }
    }
}

#[test]
fn what_is_wrong_with_shards_is_said() {
    let world = World::new();
    let rows = world.join("rows.jsonl");
    let tars = world.join("t-{0..3}.tar");
    succeeds(&args!["data", "shard", rows, "--out", tars]);
    fails(2, &args!["data", "shard", rows, "--out", tars], &["t-0.tar exists already", "--resume"]);
    fails(2, &args!["data", "shard", rows, "--out", world.join("x-%d.tar")], &["--rows or --size"]);
    fails(
        2,
        &args!["data", "shard", rows, "--out", world.join("x.zip")],
        &["x.zip", ".tar, .safetensors or .jsonl"],
    );
    fails(
        2,
        &args!["data", "shard", rows, "--out", world.join("x.safetensors")],
        &["--tokenizer is missing"],
    );
    let job = |train: &str| {
        world.job(&format!(
            "[model]\npath = \"student\"\n[lora]\n[data]\ntrain = [{train}]\nseq_len = 32\nstreaming = \"on\"\n\
             [train]\nsteps = 20\nbatch = 4\naccumulation = 1\nsave_every = 10\n"
        ))
    };
    let train = |job: PathBuf, parts: &[&str]| {
        fails(2, &args!["train", job, "--out", world.join("run")], parts);
        assert!(!world.join("run").exists());
    };
    train(job("\"t-{0..4}.tar\""), &["t-4.tar is missing of", "t-{0..4}.tar"]);
    let whole = std::fs::read(world.join("t-1.tar")).unwrap();
    std::fs::write(world.join("cut.tar"), &whole[..512 + 9]).unwrap();
    train(job("\"cut.tar\""), &["cut.tar", "the archive ends inside", "fetch it again"]);
    std::fs::write(world.join("empty.tar"), "").unwrap();
    train(job("\"t-{0..3}.tar\", \"empty.tar\""), &["empty.tar: the file is empty"]);
    succeeds(&args![
        "data",
        "shard",
        rows,
        "--out",
        world.join("a.safetensors"),
        "--tokenizer",
        world.join("student")
    ]);
    train(job("\"t-{0..3}.tar\", \"a.safetensors\""), &["cannot be mixed"]);
    let epochs = job("\"t-{0..3}.tar\"");
    let text = std::fs::read_to_string(&epochs).unwrap().replace("steps = 20", "epochs = 2");
    std::fs::write(&epochs, text).unwrap();
    train(epochs, &["data.streaming", "epochs"]);

    // A shard that changes while a run is interrupted.
    let job = job("\"t-{0..3}.tar\"");
    let run = world.join("kept");
    succeeds(&args!["train", job, "--out", run]);
    let mut other = std::fs::read(world.join("t-2.tar")).unwrap();
    other[600] ^= 1;
    std::fs::write(world.join("t-2.tar"), other).unwrap();
    fails(2, &args!["train", job, "--out", run, "--resume"], &["t-2.tar has changed since the checkpoint"]);
}
