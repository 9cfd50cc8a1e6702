//! Checkpoints: round trips, damage, which one is the latest, saves that fail, pruning.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::*;
use crate::files::tests::{TestDir, assert_says};
use crate::files::{clean_stale, snapshot, write_atomic};
use crate::hf::FileDType;

/// A checkpoint whose content depends on the step.
fn save_step(run: &Path, step: u64) -> PathBuf {
    let moments = [step as f32, 0.5, -0.25];
    let tensors = vec![
        TensorOut::f32("adam.m/a", &[3], &moments),
        TensorOut::bytes("param/a", FileDType::BF16, &[2], &[1, 2, 3, 4]),
    ];
    let state = json!({"rng": u64::MAX, "cursor": {"epoch": 1, "row": 7}, "loss_scale": 0.1});
    save(run, step, tensors, &state, |dir| {
        write_atomic(&dir.join("adapter/adapter_config.json"), |w| std::io::Write::write_all(w, b"{}"))
            .map(|_| ())
    })
    .unwrap()
}

fn steps(run: &Path) -> Vec<u64> {
    scan(run).unwrap().0
}

#[test]
fn a_checkpoint_reads_back() {
    let dir = TestDir::new("checkpoint");
    let saved = save_step(dir.root(), 12);
    assert_eq!(saved, dir.path("checkpoint-12"));
    let back = load(&saved).unwrap();
    assert_eq!(back.step, 12);
    assert_eq!(
        back.state,
        json!({"rng": u64::MAX, "cursor": {"epoch": 1, "row": 7}, "loss_scale": 0.1, "step": 12})
    );
    assert_eq!(back.tensors.expect("adam.m/a").unwrap().as_f32().unwrap(), [12.0, 0.5, -0.25]);
    assert_eq!(back.tensors.expect("param/a").unwrap().bytes, [1, 2, 3, 4]);
    let names: Vec<String> = list_files(&saved).unwrap().iter().map(|p| p.display().to_string()).collect();
    assert_eq!(names, ["adapter/adapter_config.json", MANIFEST, STATE, TRAINER]);

    let copy = dir.path("copy/best");
    snapshot(&saved, &copy).unwrap();
    assert_eq!(load(&copy).unwrap().state, back.state);
}

#[test]
fn any_damaged_byte_is_found() {
    let dir = TestDir::new("damage");
    let saved = save_step(dir.root(), 1);
    for file in list_files(&saved).unwrap() {
        let path = saved.join(&file);
        let good = fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(good.len().div_ceil(40)) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).unwrap();
            // In the manifest a changed letter may fall on white space only; then nothing that was saved changed.
            if file != Path::new(MANIFEST) {
                assert_says(load(&saved), &["damaged: its checksum", &file.display().to_string()]);
            } else if let Ok(back) = load(&saved) {
                assert_eq!(back.step, 1);
            }
        }
        fs::write(&path, &good[..good.len() - 1]).unwrap();
        if file != Path::new(MANIFEST) {
            assert_says(load(&saved), &["damaged", "were saved"]);
        }
        fs::remove_file(&path).unwrap();
        assert_says(load(&saved), &["checkpoint-1"]);
        fs::write(&path, &good).unwrap();
    }
    load(&saved).unwrap();
}

#[test]
fn a_manifest_that_is_none_is_told() {
    let dir = TestDir::new("manifest");
    let saved = save_step(dir.root(), 1);
    for (text, message) in [
        ("{", "not valid JSON"),
        ("[]", "no `version`"),
        (r#"{"version": 2}"#, "version 2"),
        (r#"{"version": 1}"#, "no `files`"),
        (r#"{"version": 1, "files": {}}"#, "no entry for state.safetensors"),
        (r#"{"version": 1, "files": {"a": {"bytes": 1}}}"#, "entry `a`"),
        (r#"{"version": 1, "files": {"../a": {"bytes": 1, "xxh64": "0"}}}"#, "entry `../a`"),
        (r#"{"version": 1, "files": {"/dev/zero": {"bytes": 0, "xxh64": "0"}}}"#, "entry `/dev/zero`"),
    ] {
        fs::write(saved.join(MANIFEST), text).unwrap();
        assert_says(load(&saved), &["manifest.json", message]);
    }
    fs::remove_file(saved.join(MANIFEST)).unwrap();
    assert_says(load(&saved), &["has no manifest.json"]);
}

#[test]
fn the_latest_good_checkpoint_is_found() {
    let dir = TestDir::new("latest");
    let run = dir.path("run");
    assert!(latest(&run).unwrap().checkpoint.is_none());
    for step in [9, 10, 100] {
        save_step(&run, step);
    }
    assert_eq!(latest(&run).unwrap().checkpoint.unwrap().step, 100);

    // The newest is damaged, one was renamed by hand, one is half written, and some folders are none of ours.
    let state = dir_of(&run, 100).join(STATE);
    let mut bytes = fs::read(&state).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&state, bytes).unwrap();
    snapshot(&dir_of(&run, 9), &dir_of(&run, 50)).unwrap();
    fs::create_dir(run.join("checkpoint-200.tmp-999999999-3")).unwrap();
    fs::create_dir(run.join("checkpoint-best")).unwrap();
    fs::create_dir(run.join("checkpoint-0300")).unwrap();
    fs::write(run.join("checkpoint-400"), "a file").unwrap();
    let found = latest(&run).unwrap();
    assert_eq!(found.checkpoint.unwrap().step, 10);
    let damaged: Vec<&Path> = found.damaged.iter().map(|(dir, _)| dir.as_path()).collect();
    assert_eq!(damaged, [dir_of(&run, 100), dir_of(&run, 50)]);
    assert!(found.damaged[0].1.contains("checksum") && found.damaged[1].1.contains("step 9"));
    assert_eq!(found.unfinished, [run.join("checkpoint-200.tmp-999999999-3")]);

    // A kill between the two renames of a replacement: the old one comes back.
    fs::rename(dir_of(&run, 10), run.join("checkpoint-10.old-999999999-0")).unwrap();
    assert_eq!(latest(&run).unwrap().checkpoint.unwrap().step, 9);
    clean_stale(&run).unwrap();
    let found = latest(&run).unwrap();
    assert_eq!((found.checkpoint.unwrap().step, found.unfinished.len()), (10, 0));
}

#[test]
fn a_save_that_fails_leaves_the_old_one() {
    let dir = TestDir::new("failed-save");
    save_step(dir.root(), 5);
    let failing = |_: &Path| Err(FileError::invalid("adapter", "no room"));
    assert_says(save(dir.root(), 5, vec![], &json!({}), failing), &["no room"]);
    let clash = |dir: &Path| write_json(&dir.join(STATE), &json!({})).map(|_| ());
    assert_says(save(dir.root(), 5, vec![], &json!({}), clash), &["use another name"]);
    assert_says(save(dir.root(), 5, vec![], &json!([]), |_| Ok(())), &["JSON object"]);
    let short = vec![TensorOut::bytes("x", FileDType::F32, &[2], &[0; 4])];
    assert_says(save(dir.root(), 6, short, &json!({}), |_| Ok(())), &["`x`"]);
    assert_eq!(dir.names(), ["checkpoint-5"]);
    assert_eq!(load(&dir.path("checkpoint-5")).unwrap().state["rng"], json!(u64::MAX));
    // The same step saved again replaces it.
    save(dir.root(), 5, vec![], &json!({"again": true}), |_| Ok(())).unwrap();
    assert_eq!(load(&dir.path("checkpoint-5")).unwrap().state["again"], json!(true));
    assert_eq!(dir.names(), ["checkpoint-5"]);
}

#[test]
fn pruning_keeps_what_can_be_resumed() {
    let dir = TestDir::new("prune");
    for step in [1, 2, 3, 4, 10] {
        save_step(dir.root(), step);
    }
    assert_eq!(prune(dir.root(), 3).unwrap(), [dir.path("checkpoint-2"), dir.path("checkpoint-1")]);
    assert_eq!(steps(dir.root()), [3, 4, 10]);
    // An incomplete one does not count.
    fs::write(dir.path("checkpoint-10").join(STATE), "cut").unwrap();
    assert_eq!(prune(dir.root(), 1).unwrap(), [dir.path("checkpoint-3")]);
    assert_eq!(steps(dir.root()), [4, 10]);
    assert!(prune(dir.root(), 0).unwrap().is_empty());
    assert_eq!(latest(dir.root()).unwrap().checkpoint.unwrap().step, 4);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_bit_of_tensors_and_numbers_comes_back(
        values in proptest::collection::vec(any::<u32>(), 0..64),
        number in any::<f64>().prop_filter("JSON has no such number", |x| x.is_finite()),
        step in any::<u64>(),
    ) {
        let dir = TestDir::new("prop-checkpoint");
        let tensors = vec![TensorOut::bytes("x", FileDType::F32, &[values.len()], bytemuck::cast_slice(&values))];
        let saved = save(dir.root(), step, tensors, &json!({"number": number}), |_| Ok(())).unwrap();
        let back = load(&saved).unwrap();
        prop_assert_eq!(back.step, step);
        prop_assert_eq!(back.state["number"].as_f64().unwrap().to_bits(), number.to_bits());
        let bytes: &[u8] = bytemuck::cast_slice(&values);
        prop_assert_eq!(back.tensors.expect("x").unwrap().bytes, bytes);
    }
}
