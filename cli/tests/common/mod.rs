//! What the integration tests share: running the program, folders, tensors of files, small worlds to train on.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod browser;
#[path = "../../../kernels/tests/common/standin.rs"]
pub mod standin;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A folder of its own that goes when the test passes.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("t-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Names in the folder, sorted.
    pub fn names(&self) -> Vec<String> {
        names(&self.0)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// Names in a folder, sorted; none if it does not exist.
pub fn names(path: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The program, quiet.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kfc"));
    command.arg("--quiet");
    command
}

/// Arguments from anything that is a path or a string.
#[macro_export]
macro_rules! args {
    ($($a:expr),* $(,)?) => { [$(std::ffi::OsString::from(&$a)),*] };
}

pub fn kfc(arguments: &[std::ffi::OsString]) -> Output {
    command().args(arguments).output().unwrap()
}

/// Runs `arguments`, which must succeed; returns standard output.
pub fn succeeds(arguments: &[std::ffi::OsString]) -> String {
    let output = kfc(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `arguments`, which must fail with `code`; returns the message, one line that has each of `parts`.
pub fn fails(code: i32, arguments: &[std::ffi::OsString], parts: &[&str]) -> String {
    let output = kfc(arguments);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
    assert!(output.stdout.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    assert!(
        message.starts_with("error: ") && !message.contains("internal error"),
        "{arguments:?}: {message}"
    );
    assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    message
}

/// The folder of a parity case.
pub fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/cases").join(name)
}

/// Copies a folder of plain files and folders.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

pub fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// Lines of a run's `metrics.jsonl`.
pub fn metrics(run: &Path) -> Vec<Value> {
    let path = run.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A field of every step of a run.
pub fn series(run: &Path, field: &str) -> Vec<f64> {
    metrics(run).iter().map(|m| m[field].as_f64().unwrap_or_else(|| panic!("{field} in {m}"))).collect()
}

/// A tensor in f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub dims: Vec<usize>,
    pub values: Vec<f32>,
}

/// The float tensors of a file, by name.
pub fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(name, view)| (name.to_owned(), float(&view))).collect()
}

fn float(view: &TensorView<'_>) -> Tensor {
    let data = view.data();
    let values = match view.dtype() {
        Dtype::F32 => data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::BF16 => {
            let wide = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            data.as_chunks::<2>().0.iter().map(wide).collect()
        }
        other => panic!("{other:?}"),
    };
    Tensor { dims: view.shape().to_vec(), values }
}

/// A tensor to be written: name, element type, shape, bytes.
pub type Raw = (String, Dtype, Vec<usize>, Vec<u8>);

/// The tensors of a file as they are, in name order.
pub fn raw_tensors(path: &Path) -> Vec<Raw> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<Raw> = file
        .iter()
        .map(|(name, v)| (name.to_owned(), v.dtype(), v.shape().to_vec(), v.data().to_vec()))
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

pub fn write_tensors(path: &Path, tensors: &[Raw]) {
    let views = tensors.iter().map(|(name, dtype, dims, data)| {
        (name.clone(), TensorView::new(*dtype, dims.clone(), data).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Rewrites one tensor of a file.
pub fn edit(path: &Path, name: &str, change: impl FnOnce(&mut Raw)) {
    let mut all = raw_tensors(path);
    let tensor = all.iter_mut().find(|t| t.0 == name).unwrap_or_else(|| panic!("no {name}"));
    change(tensor);
    write_tensors(path, &all);
}

/// A token file with `input_ids` and `labels` of the given rows.
pub fn write_tokens(path: &Path, rows: &[Vec<i64>], labels: &[Vec<i64>]) {
    let bytes = |rows: &[Vec<i64>]| rows.iter().flatten().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let dims = vec![rows.len(), rows[0].len()];
    let tensor = |name: &str, rows| (name.to_owned(), Dtype::I64, dims.clone(), bytes(rows));
    write_tensors(path, &[tensor("input_ids", rows), tensor("labels", labels)]);
}

/// Largest difference over the largest expected magnitude.
pub fn relative(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().map(|v| f64::from(v.abs())).fold(0.0, f64::max);
    let mut worst = 0.0f64;
    for (g, e) in got.iter().zip(expected) {
        let d = (f64::from(*g) - f64::from(*e)).abs();
        assert!(d.is_finite(), "{g} where {e} is expected");
        worst = worst.max(d);
    }
    if worst == 0.0 { 0.0 } else { worst / largest }
}

/// Asserts that two tensors agree within `tolerance` of the largest expected magnitude.
pub fn assert_close(what: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.dims, expected.dims, "{what}");
    let error = relative(&got.values, &expected.values);
    assert!(error < tolerance, "{what}: off by {error:.1e} of the largest, {tolerance:.0e} is allowed");
}

/// A student and a teacher with one tokenizer of 64 words for their 67 tokens, and rows of text.
pub struct World {
    folder: Folder,
}

impl World {
    pub fn new() -> World {
        let folder = Folder::new();
        let words: Vec<String> = (0..61).map(|i| format!("w{i}")).collect();
        for model in ["student", "teacher"] {
            copy(&case("llama").join(model), &folder.join(model));
            kfc_runtime::data::save_word_level(&folder.join(model), &words).unwrap();
        }
        let text = |seed: usize, n: usize| {
            (0..n)
                .map(|j| format!("w{}", (seed * 7 + j * j * (1 + seed % 5)) % 61))
                .collect::<Vec<_>>()
                .join(" ")
        };
        let mut rows = String::new();
        for i in 0..40 {
            let row = match i % 3 {
                0 => serde_json::json!({"text": text(i, 5 + i % 11)}),
                1 => serde_json::json!({"prompt": text(i, 4), "completion": text(i + 50, 3 + i % 7)}),
                _ => serde_json::json!({"text": text(i, 20 + i % 9)}),
            };
            rows.push_str(&format!("{row}\n"));
        }
        std::fs::write(folder.join("rows.jsonl"), rows).unwrap();
        let general: String =
            (0..11).map(|i| format!("{}\n", serde_json::json!({"text": text(i + 90, 9 + i)}))).collect();
        std::fs::write(folder.join("general.jsonl"), general).unwrap();
        World { folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn names(&self) -> Vec<String> {
        self.folder.names()
    }

    /// Writes `job.toml`.
    pub fn job(&self, text: &str) -> PathBuf {
        let path = self.join("job.toml");
        std::fs::write(&path, text).unwrap();
        path
    }
}
