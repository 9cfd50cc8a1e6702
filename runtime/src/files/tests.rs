//! Atomic files and folders, and what a killed writer leaves; the temporary folder that tests of this crate share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// A folder of its own for one test, removed at its end.
pub(crate) struct TestDir(PathBuf);

impl TestDir {
    pub(crate) fn new(name: &str) -> TestDir {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let unique = format!("kfc-{name}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(unique);
        fs::create_dir_all(&dir).unwrap();
        TestDir(dir)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.0
    }

    /// Names in the folder, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Asserts that an error's text has every part.
pub(crate) fn assert_says<T>(result: Result<T>, parts: &[&str]) {
    let text = match result {
        Ok(_) => panic!("no error, but one with {parts:?} was expected"),
        Err(e) => e.to_string(),
    };
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn xxh64_matches_the_reference_vectors() {
    assert_eq!(xxh64(b""), 0xEF46_DB37_51D8_E999);
    assert_eq!(xxh64(b"a"), 0xD24E_C4F1_A98C_6E5B);
    assert_eq!(xxh64(b"abc"), 0x44BC_2CF5_AD77_0999);
    // Bytes 0, 1, 2, ...: the length below, at and above a stripe; values of python-xxhash.
    let bytes: Vec<u8> = (0..=100).collect();
    assert_eq!(xxh64(&bytes[..31]), 0xC346_D2B5_9B4D_8EE1);
    assert_eq!(xxh64(&bytes[..32]), 0xCBF5_9C51_16FF_32B4);
    assert_eq!(xxh64(&bytes), 0xE990_3849_5F85_381E);
    for piece in [1, 3, 31, 32, 33, 101] {
        assert_eq!(xxh64_in_pieces(&bytes, piece), xxh64(&bytes), "pieces of {piece}");
    }
}

fn xxh64_in_pieces(bytes: &[u8], piece: usize) -> u64 {
    let mut hash = Xxh64::new();
    bytes.chunks(piece).for_each(|part| hash.update(part));
    hash.finish()
}

#[test]
fn a_file_appears_complete_or_not_at_all() {
    let dir = TestDir::new("atomic-file");
    let path = dir.path("sub/a.txt");
    let written = write_atomic(&path, |w| w.write_all(b"first")).unwrap();
    assert_eq!(written, Written { bytes: 5, hash: xxh64(b"first") });
    assert_eq!(hash_file(&path).unwrap(), written);

    let failed = write_atomic(&path, |w| {
        w.write_all(b"second")?;
        Err(io::Error::other("the source ended early"))
    });
    assert_says(failed, &["cannot write", "a.txt", "the source ended early"]);
    assert_eq!(fs::read(&path).unwrap(), b"first");
    assert_eq!(list_files(dir.root()).unwrap(), [PathBuf::from("sub/a.txt")]);

    write_atomic(&path, |w| w.write_all(b"third")).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"third");
}

#[test]
fn only_regular_files_are_replaced() {
    let dir = TestDir::new("not-regular");
    assert_says(AtomicFile::create(dir.root()), &["no regular file"]);
    if cfg!(unix) {
        assert_says(AtomicFile::create(Path::new("/dev/null")), &["/dev/null", "no regular file"]);
    }
    fs::write(dir.path("file"), "x").unwrap();
    assert_says(AtomicDir::create(&dir.path("file")), &["file", "no folder"]);
    assert_says(AtomicFile::create(&dir.path("file/below")), &["cannot create", "file"]);
    assert_says(AtomicFile::create(&dir.path("..")), &[".."]);
}

#[test]
fn a_folder_is_replaced_as_a_whole() {
    let dir = TestDir::new("atomic-dir");
    let dest = dir.path("adapter");
    for round in ["one", "two"] {
        let new = AtomicDir::create(&dest).unwrap();
        fs::create_dir(new.path().join("sub")).unwrap();
        fs::write(new.path().join("sub").join(round), round).unwrap();
        new.commit().unwrap();
        assert_eq!(list_files(&dest).unwrap(), [PathBuf::from("sub").join(round)]);
        assert_eq!(dir.names(), ["adapter"]);
    }
    drop(AtomicDir::create(&dest).unwrap());
    assert_eq!(dir.names(), ["adapter"]);
    assert_eq!(fs::read(dest.join("sub/two")).unwrap(), b"two");
}

#[test]
fn leftovers_of_killed_processes_go_and_work_in_progress_stays() {
    let dir = TestDir::new("stale");
    // A kill while filling, and one between the two renames of a replacement.
    fs::create_dir(dir.path("checkpoint-7.tmp-999999999-0")).unwrap();
    fs::write(dir.path("checkpoint-7.tmp-999999999-0/state.safetensors"), "half").unwrap();
    fs::write(dir.path("metrics.jsonl.tmp-999999999-4"), "half").unwrap();
    fs::create_dir(dir.path("adapter.old-999999999-1")).unwrap();
    fs::write(dir.path("adapter.old-999999999-1/kept"), "old").unwrap();
    // A kill after the replacement arrived.
    fs::create_dir(dir.path("done")).unwrap();
    fs::create_dir(dir.path("done.old-999999999-2")).unwrap();
    fs::write(dir.path("notes.tmp"), "the user's").unwrap();
    let busy = AtomicDir::create(&dir.path("busy")).unwrap();
    let busy_file = AtomicFile::create(&dir.path("busy.txt")).unwrap();

    let dealt_with = clean_stale(dir.root()).unwrap();
    assert_eq!(dealt_with.len(), 4);
    assert_eq!(fs::read(dir.path("adapter/kept")).unwrap(), b"old");
    busy.commit().unwrap();
    busy_file.finish().unwrap();
    assert_eq!(dir.names(), ["adapter", "busy", "busy.txt", "done", "notes.tmp"]);
}

#[test]
fn starting_a_folder_clears_its_own_leftovers_even_with_this_process_id() {
    let dir = TestDir::new("own-stale");
    // In a container every run may have the same process id.
    let stale = format!("checkpoint-7.tmp-{}-0", std::process::id());
    fs::create_dir(dir.path(&stale)).unwrap();
    fs::create_dir(dir.path("other.tmp-999999999-0")).unwrap();
    AtomicDir::create(&dir.path("checkpoint-7")).unwrap().commit().unwrap();
    assert_eq!(dir.names(), ["checkpoint-7", "other.tmp-999999999-0"]);
}

#[test]
fn a_removed_folder_is_gone() {
    let dir = TestDir::new("remove");
    fs::create_dir_all(dir.path("a/b")).unwrap();
    remove_dir(&dir.path("a")).unwrap();
    assert!(dir.names().is_empty());
    assert_says(remove_dir(&dir.path("a")), &["cannot remove", "No such file"]);
}

#[test]
fn a_snapshot_copies_everything() {
    let dir = TestDir::new("snapshot");
    fs::create_dir_all(dir.path("from/sub")).unwrap();
    fs::write(dir.path("from/a"), "1").unwrap();
    fs::write(dir.path("from/sub/b"), "2").unwrap();
    snapshot(&dir.path("from"), &dir.path("to")).unwrap();
    assert_eq!(list_files(&dir.path("to")).unwrap(), list_files(&dir.path("from")).unwrap());
    assert_eq!(fs::read(dir.path("to/sub/b")).unwrap(), b"2");
    assert_says(snapshot(&dir.path("nowhere"), &dir.path("to")), &["cannot list", "nowhere"]);
    // A copy into itself ends.
    snapshot(&dir.path("from"), &dir.path("from/inside")).unwrap();
    assert_eq!(list_files(&dir.path("from/inside")).unwrap().len(), 2);
}

#[cfg(unix)]
#[test]
fn a_loop_of_links_is_an_error() {
    let dir = TestDir::new("loop");
    fs::create_dir(dir.path("a")).unwrap();
    std::os::unix::fs::symlink(dir.path("a"), dir.path("a/again")).unwrap();
    assert_says(list_files(dir.root()), &["link loop"]);
}

#[test]
fn json_keeps_every_bit_of_a_float() {
    let dir = TestDir::new("json");
    let path = dir.path("state.json");
    let floats: Vec<f64> = (1..2000u64)
        .map(|i| f64::from_bits(i.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
        .filter(|x| x.is_finite())
        .collect();
    write_json(&path, &serde_json::json!({ "floats": floats, "seed": u64::MAX })).unwrap();
    let back = read_json(&path).unwrap();
    assert_eq!(back["seed"].as_u64(), Some(u64::MAX));
    for (i, x) in floats.iter().enumerate() {
        assert_eq!(back["floats"][i].as_f64().unwrap().to_bits(), x.to_bits(), "{x}");
    }
}

#[test]
fn damaged_json_says_where() {
    let dir = TestDir::new("bad-json");
    fs::write(dir.path("a.json"), "{\n  \"r\": 16,\n  oops\n}").unwrap();
    assert_says(read_json(&dir.path("a.json")), &["a.json", "not valid JSON", "line 3"]);
    assert_says(read_json(&dir.path("b.json")), &["cannot open", "b.json", "No such file"]);
    assert_says(read_limited(&dir.path("a.json"), 4), &["larger than 4 bytes"]);
    fs::write(dir.path("deep.json"), "[".repeat(100_000)).unwrap();
    assert_says(read_json(&dir.path("deep.json")), &["recursion limit"]);
}
