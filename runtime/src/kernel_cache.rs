//! Compiled kernels in the user's cache: `kernels/HASH.json` with the key and the figures, `kernels/HASH.cubin`. What is
//! damaged, or was made of something else that has the same hash, is not there; what cannot be kept is not kept. A key says
//! all that decides what a compiler makes: source, options, architecture, compiler.

use crate::calibration::cache_folder;
use crate::files::{self, write_atomic, write_json, xxh64};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;

fn path(key: &str) -> Option<PathBuf> {
    Some(cache_folder()?.join("kernels").join(hash(key.as_bytes())))
}

/// The binary that was kept under this key, and its figures.
pub(crate) fn load(key: &str) -> Option<(Vec<u8>, Value)> {
    let path = path(key)?;
    let mut about = files::read_json(&path.with_extension("json")).ok()?;
    let bytes = files::read_limited(&path.with_extension("cubin"), 1 << 28).ok()?;
    let fits = about["key"].as_str() == Some(key) && about["hash"].as_str() == Some(&hash(&bytes));
    fits.then(|| (bytes, about["figures"].take()))
}

/// Keeps a binary and its figures; the binary first, so that the figures never stand alone.
pub(crate) fn keep(key: &str, bytes: &[u8], figures: &Value) {
    let write = || {
        let path = path(key)?;
        std::fs::create_dir_all(path.parent()?).ok()?;
        write_atomic(&path.with_extension("cubin"), |file| file.write_all(bytes)).ok()?;
        let about = json!({"key": key, "hash": hash(bytes), "figures": figures});
        write_json(&path.with_extension("json"), &about).ok()
    };
    // A cache that cannot be written costs time alone.
    let _ = write();
}

/// The hash of bytes, as text.
pub(crate) fn hash(bytes: &[u8]) -> String {
    format!("{:016x}", xxh64(bytes))
}
