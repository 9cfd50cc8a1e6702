//! Compiled kernels in the user's cache: `kernels/HASH.json` with the key and the figures, `kernels/HASH.cubin`. What is
//! damaged, or was made of something else that has the same hash, is not there; what cannot be kept is not kept.

use super::Cubin;
use crate::calibration::cache_folder;
use crate::files::{self, write_atomic, write_json, xxh64};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

fn path(key: &str) -> Option<PathBuf> {
    Some(cache_folder()?.join("kernels").join(format!("{:016x}", xxh64(key.as_bytes()))))
}

/// The kernel that was kept under this key.
pub(super) fn load(key: &str) -> Option<Cubin> {
    let path = path(key)?;
    let about = files::read_json(&path.with_extension("json")).ok()?;
    let bytes = files::read_limited(&path.with_extension("cubin"), 1 << 28).ok()?;
    let fits = about["key"].as_str() == Some(key) && about["hash"].as_str() == Some(&hash(&bytes));
    if fits { Cubin::from_json(&about["figures"], bytes) } else { None }
}

/// Keeps a kernel; the binary first, so that the figures never stand alone.
pub(super) fn keep(key: &str, cubin: &Cubin) {
    let write = || {
        let path = path(key)?;
        std::fs::create_dir_all(path.parent()?).ok()?;
        write_atomic(&path.with_extension("cubin"), |file| file.write_all(&cubin.bytes)).ok()?;
        let about = json!({"key": key, "hash": hash(&cubin.bytes), "figures": cubin.to_json()});
        write_json(&path.with_extension("json"), &about).ok()
    };
    // A cache that cannot be written costs time alone.
    let _ = write();
}

fn hash(bytes: &[u8]) -> String {
    format!("{:016x}", xxh64(bytes))
}
