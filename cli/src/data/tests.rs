//! Reading and running: items of odd files, positions, interruptions.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::input::{Content, Format, Inputs, Item, Items, Position, Split};
use super::job::{Job, Sink, Work, run_until};
use super::row::{Fields, Row, parse};
use crate::args::Global;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// A folder of its own that goes when the test is over.
pub(in crate::data) struct Folder(PathBuf);

impl Folder {
    pub(in crate::data) fn new() -> Folder {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("kfc-data-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub(in crate::data) fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub(in crate::data) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(&self.0)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn find(path: &Path, split: Split, max_bytes: u64) -> Inputs {
    Inputs::find(&[path.to_owned()], None, split, max_bytes).unwrap()
}

fn items(inputs: &Inputs) -> Vec<Item> {
    let mut items = Items::new(inputs, Position::default());
    std::iter::from_fn(|| items.next_item().unwrap()).collect()
}

/// Line and text of each item; `-` is too large.
fn shown(name: &str, bytes: impl AsRef<[u8]>, split: Split) -> Vec<(u64, String)> {
    let folder = Folder::new();
    let inputs = find(&folder.file(name, bytes), split, 24);
    let found = items(&inputs);
    // From every position on come the items that are left.
    let mut reader = Items::new(&inputs, Position::default());
    for index in 0..=found.len() {
        let at = Position::from_json(&reader.position().to_json()).unwrap();
        let mut again = Items::new(&inputs, at);
        let rest: Vec<Item> = std::iter::from_fn(|| again.next_item().unwrap()).collect();
        assert_eq!(rest, found[index..], "{name} from {at:?}");
        assert_eq!(reader.next_item().unwrap().as_ref(), found.get(index));
    }
    assert_eq!(inputs.bytes_before(&reader.position()), inputs.bytes());
    let text = |content: Content| match content {
        Content::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Content::TooLarge { .. } => "-".into(),
    };
    found.into_iter().map(|item| (item.line, text(item.content))).collect()
}

fn pairs(list: &[(u64, &str)]) -> Vec<(u64, String)> {
    list.iter().map(|(line, text)| (*line, (*text).to_owned())).collect()
}

#[test]
fn lines() {
    let long = "x".repeat(100);
    let text = format!("\u{feff}{{1}}\r\n\n  \n{{2}}\n{long}\n字\n{{3}}");
    let expected = pairs(&[(1, "{1}"), (4, "{2}"), (5, "-"), (6, "字"), (7, "{3}")]);
    assert_eq!(shown("a.jsonl", &text, Split::Document), expected);
    assert_eq!(shown("a.txt", &text, Split::Line), expected);
    assert_eq!(shown("a.jsonl", "", Split::Document), []);
    assert_eq!(shown("a.jsonl", "\n \n", Split::Document), []);
    assert_eq!(shown("a.jsonl", &long, Split::Document), pairs(&[(1, "-")]));
}

#[test]
fn paragraphs_and_documents() {
    let text = "\n\none\r\ntwo\r\n\r\nthree\n\n\n aaaaaaaaaaaaaaaa\nbbbbbbbbbbbbbbbb\n\nfour";
    let expected = pairs(&[(3, "one\ntwo"), (6, "three"), (9, "-"), (12, "four")]);
    assert_eq!(shown("a.md", text, Split::Paragraph), expected);
    assert_eq!(shown("a.txt", "a\n\nb", Split::Document), pairs(&[(1, "a\n\nb")]));
    assert_eq!(shown("a.html", "\u{feff}<p>a\n\n<p>b", Split::Line), pairs(&[(1, "<p>a\n\n<p>b")]));
    assert_eq!(shown("a.html", text, Split::Line), pairs(&[(1, "-")]));
    assert_eq!(shown("a.txt", "", Split::Document), []);
}

#[test]
fn arrays() {
    let text =
        " [\n{\"a\": \"],\\\"{\"},\n\n {\"b\":[1,{}]} , {\"cccccccccccccccccccccccccccccccccc\":1}\n,3]\n";
    let expected = pairs(&[(2, "{\"a\": \"],\\\"{\"}"), (4, "{\"b\":[1,{}]} "), (4, "-"), (5, "3")]);
    assert_eq!(shown("a.json", text, Split::Document), expected);
    assert_eq!(shown("a.json", "[{\"a\": 1", Split::Document), pairs(&[(1, "{\"a\": 1")]));
    assert_eq!(shown("a.json", "[]", Split::Document), []);
}

#[test]
fn folders_patterns_and_what_is_not_there() {
    let folder = Folder::new();
    folder.file("b/x.txt", "x");
    folder.file("b/c/y.HTML", "y");
    folder.file("b/z.bin", "z");
    folder.file("a.jsonl", "{}");
    let names = |path: &Path, format| -> Vec<String> {
        let inputs = Inputs::find(&[path.to_owned()], format, Split::Document, 9).unwrap();
        inputs.files.iter().map(|f| f.path.strip_prefix(&folder.0).unwrap().display().to_string()).collect()
    };
    assert_eq!(names(&folder.0, None), ["a.jsonl", "b/c/y.HTML", "b/x.txt"]);
    assert_eq!(names(&folder.join("b/*.txt"), None), ["b/x.txt"]);
    assert_eq!(names(&folder.join("**/*.[tj]*"), None), ["a.jsonl", "b/x.txt"]);
    assert_eq!(names(&folder.join("b/z.bin"), Some(Format::Text)), ["b/z.bin"]);
    let error =
        |path: &str| Inputs::find(&[folder.join(path)], None, Split::Document, 9).unwrap_err().to_string();
    assert!(error("none.txt").contains("no such file"));
    assert!(error("*.csv").contains("no file has a name like this"));
    assert!(error("b/z.bin").contains("use --format"));
    std::fs::create_dir(folder.join("empty")).unwrap();
    assert!(error("empty").contains("known extension"));
}

/// Keeps a row or not by its number and how many it has kept before.
struct Alternate {
    kept: usize,
    /// Blocks until it fails.
    fuse: usize,
}

impl Work for Alternate {
    fn replay(&mut self, rows: Vec<Row>) -> anyhow::Result<()> {
        self.kept += rows.len();
        Ok(())
    }

    fn block(&mut self, items: Vec<Item>, sink: &mut Sink) -> anyhow::Result<()> {
        anyhow::ensure!(self.fuse > 0, "the fuse is out");
        self.fuse -= 1;
        for item in &items {
            let mut row = parse(item, &Fields::default()).unwrap();
            let number: usize = row.text.parse().unwrap();
            if number.is_multiple_of(self.kept % 3 + 2) {
                self.kept += 1;
                row.metadata.insert("n".into(), self.kept.into());
                sink.keep(row);
                sink.count("kept", 1);
            } else {
                sink.drop_item(item, &super::row::Rejected::new("odd", ""));
            }
        }
        Ok(())
    }
}

fn job(folder: &Folder, resume: bool) -> Job {
    let mut job = Job::new("data test", folder.join("out.jsonl"), json!({"a": 1, "b": 2}));
    (job.block_rows, job.save_every, job.resume) = (7, Duration::from_secs(3600), resume);
    job.dropped = Some(folder.join("dropped.jsonl"));
    job
}

fn try_run(job: &Job, inputs: &Inputs, fuse: usize, stop: bool) -> Result<super::report::Report, String> {
    let mut work = Alternate { kept: 0, fuse };
    let quiet = Global { quiet: true, ..Global::default() };
    run_until(job, inputs, &mut work, &quiet, &AtomicBool::new(stop)).map_err(|e| format!("{e:#}"))
}

fn numbers() -> String {
    (0..200).map(|n| format!("{{\"text\":\"{n}\"}}\n")).collect()
}

#[test]
fn an_interrupted_run_ends_with_the_same_bytes() {
    let folder = Folder::new();
    let inputs = find(&folder.file("in.jsonl", numbers()), Split::Document, 1 << 20);
    let whole = try_run(&job(&folder, false), &inputs, usize::MAX, false).unwrap();
    assert_eq!(folder.names(), ["dropped.jsonl", "in.jsonl", "out.jsonl", "out.jsonl.report.json"]);
    assert_eq!((whole.rows_in, whole.rows_out + whole.dropped["odd"]), (200, 200));
    assert_eq!(whole.bytes_in, inputs.bytes());
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let expected = (read("out.jsonl"), read("dropped.jsonl"));
    for fuse in [0, 1, 5, 28] {
        for name in ["dropped.jsonl", "out.jsonl"] {
            std::fs::remove_file(folder.join(name)).unwrap();
        }
        let error = try_run(&job(&folder, false), &inputs, fuse, false).unwrap_err();
        assert!(error.contains(&format!("after {} rows; go on with --resume", 7 * fuse)), "{error}");
        assert!(!folder.join("out.jsonl").exists());
        // What a killed process had written beyond its last state.
        use std::io::Write;
        let rows = folder.join("out.jsonl.partial/rows.jsonl");
        std::fs::OpenOptions::new().append(true).open(rows).unwrap().write_all(b"{\"text\": \"half").unwrap();
        assert!(
            try_run(&job(&folder, false), &inputs, 9, false)
                .unwrap_err()
                .contains("with --resume, or remove")
        );
        let stopped = try_run(&job(&folder, true), &inputs, usize::MAX, true).unwrap_err();
        assert!(stopped.contains(&format!("after {} rows", (7 * (fuse + 1)).min(200))), "{stopped}");
        let report = try_run(&job(&folder, true), &inputs, usize::MAX, false).unwrap();
        assert_eq!((read("out.jsonl"), read("dropped.jsonl")), expected, "interrupted after {fuse} blocks");
        assert_eq!(super::report::Report { seconds: whole.seconds, ..report }, whole);
    }
}

#[test]
fn a_run_is_resumed_with_its_own_settings_and_files() {
    let folder = Folder::new();
    let path = folder.file("in.jsonl", numbers());
    let inputs = find(&path, Split::Document, 1 << 20);
    assert!(try_run(&job(&folder, true), &inputs, 9, false).unwrap_err().contains("no interrupted run"));
    try_run(&job(&folder, false), &inputs, 3, false).unwrap_err();
    let other = Job { settings: json!({"a": 1, "b": 3}), ..job(&folder, true) };
    let error = try_run(&other, &inputs, 9, false).unwrap_err();
    assert!(error.contains("had b = 2, this one has 3"), "{error}");
    std::fs::write(&path, numbers() + "\n").unwrap();
    let longer = find(&path, Split::Document, 1 << 20);
    assert!(try_run(&job(&folder, true), &longer, 9, false).unwrap_err().contains("input files"));
    std::fs::write(folder.join("out.jsonl.partial/rows.jsonl"), "").unwrap();
    assert!(try_run(&job(&folder, true), &inputs, 9, false).unwrap_err().contains("bytes are left of"));
    std::fs::write(folder.join("out.jsonl.partial/state.json"), "{}").unwrap();
    assert!(
        try_run(&job(&folder, true), &inputs, 9, false).unwrap_err().contains("another command or version")
    );
}

#[test]
fn nothing_is_overwritten() {
    let folder = Folder::new();
    let path = folder.file("in.jsonl", numbers());
    let inputs = find(&path, Split::Document, 1 << 20);
    folder.file("out.jsonl", "mine");
    assert!(
        try_run(&job(&folder, false), &inputs, 9, false).unwrap_err().contains("out.jsonl exists already")
    );
    let own = Job { out: path, ..job(&folder, false) };
    assert!(try_run(&own, &inputs, 9, false).unwrap_err().contains("its own input"));
    let below = Job { out: folder.0.clone(), ..job(&folder, false) };
    assert!(try_run(&below, &inputs, 9, false).unwrap_err().contains("is a folder"));
    assert_eq!(folder.names(), ["in.jsonl", "out.jsonl"]);
}
