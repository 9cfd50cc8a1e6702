//! Training checkpoints: complete or not there, and checked when they are read.
//!
//! `RUN/checkpoint-N/` holds
//! - `state.safetensors`: the tensors that the trainer names (parameters, moments, ...);
//! - `trainer_state.json`: what else it needs to go on (step, random state, data cursor, loss scale, ...);
//! - whatever the trainer adds, such as `adapter/`;
//! - `manifest.json`: length and XXH64 (seed 0, 16 hex digits) of every other file.
//!
//! Invariants:
//! - a folder `checkpoint-N` exists only once all of it is on disk (see [`AtomicDir`]);
//! - [`load`] gives nothing whose bytes differ from those that were saved;
//! - nothing here deletes the newest checkpoint that is complete.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Value, json};

use crate::files::{
    AtomicDir, FileError, Result, Written, hash_file, list_files, read_json, remove_dir, write_json,
};
use crate::hf::{TensorOut, WeightFile, write_safetensors};

/// The tensors of a checkpoint.
const STATE: &str = "state.safetensors";
/// The rest of the trainer's state.
const TRAINER: &str = "trainer_state.json";
/// Checksums of all other files.
const MANIFEST: &str = "manifest.json";
/// Layout version in the manifest.
const VERSION: u64 = 1;

/// A checkpoint that was verified.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub dir: PathBuf,
    /// Optimiser steps done when it was saved.
    pub step: u64,
    /// What the trainer saved beside tensors, with `step`.
    pub state: Value,
    /// The tensors, mapped.
    pub tensors: WeightFile,
}

/// What a run directory has to resume from.
#[derive(Debug)]
pub struct Latest {
    /// The newest checkpoint that verifies.
    pub checkpoint: Option<Checkpoint>,
    /// Newer ones that do not, newest first: folder and reason.
    pub damaged: Vec<(PathBuf, String)>,
    /// Leftovers of writers that were killed (or still work); see [`crate::files::clean_stale`].
    pub unfinished: Vec<PathBuf>,
}

/// The folder of the checkpoint after `step` steps.
pub fn dir_of(run_dir: &Path, step: u64) -> PathBuf {
    run_dir.join(format!("checkpoint-{step}"))
}

/// Saves `checkpoint-{step}`, replacing one of that name. `state` is a JSON object (`step` is added); `extra` may write
/// more files below the folder it is given. Returns the folder. On an error nothing is left behind.
pub fn save(
    run_dir: &Path,
    step: u64,
    tensors: Vec<TensorOut<'_>>,
    state: &Value,
    extra: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let dest = dir_of(run_dir, step);
    let mut state = state.clone();
    let Some(fields) = state.as_object_mut() else {
        return Err(FileError::invalid(dest, "the trainer's state has to be a JSON object"));
    };
    fields.insert("step".into(), json!(step));

    let dir = AtomicDir::create(&dest)?;
    extra(dir.path())?;
    let mut files = BTreeMap::new();
    for file in list_files(dir.path())? {
        let name = manifest_name(&dest, &file)?;
        if [STATE, TRAINER, MANIFEST].contains(&name.as_str()) {
            return Err(FileError::invalid(
                dest.join(file),
                "is a file of the checkpoint itself; use another name",
            ));
        }
        files.insert(name, hash_file(&dir.path().join(&file))?);
    }
    // These two are hashed on their way to the disk, so that damage on that way shows too.
    files.insert(STATE.into(), write_safetensors(&dir.path().join(STATE), tensors, &BTreeMap::new())?);
    files.insert(TRAINER.into(), write_json(&dir.path().join(TRAINER), &state)?);
    write_json(&dir.path().join(MANIFEST), &manifest(&files))?;
    dir.commit()?;
    Ok(dest)
}

/// Verifies a checkpoint and opens it.
pub fn load(dir: &Path) -> Result<Checkpoint> {
    verify(dir)?;
    let state = read_json(&dir.join(TRAINER))?;
    let Some(step) = state.get("step").and_then(Value::as_u64) else {
        return Err(FileError::invalid(dir.join(TRAINER), "has no whole number `step`"));
    };
    Ok(Checkpoint { dir: dir.to_path_buf(), step, state, tensors: WeightFile::open(&dir.join(STATE))? })
}

/// Looks for the newest checkpoint that verifies. Deletes nothing; a run directory that does not exist has none.
pub fn latest(run_dir: &Path) -> Result<Latest> {
    let mut found = Latest { checkpoint: None, damaged: Vec::new(), unfinished: Vec::new() };
    if !run_dir.exists() {
        return Ok(found);
    }
    let (steps, unfinished) = scan(run_dir)?;
    found.unfinished = unfinished;
    for step in steps.into_iter().rev() {
        let dir = dir_of(run_dir, step);
        match load(&dir) {
            Ok(checkpoint) if checkpoint.step == step => {
                found.checkpoint = Some(checkpoint);
                break;
            }
            Ok(other) => {
                found.damaged.push((dir, format!("is the checkpoint of step {}, moved here", other.step)));
            }
            Err(e) => found.damaged.push((dir, e.to_string())),
        }
    }
    Ok(found)
}

/// Deletes all but the newest `keep` (at least 1) complete checkpoints. Returns what was deleted. Only folders older than
/// those go, so a damaged one among the kept stays where [`latest`] reports it. Completeness is judged by the sizes of
/// files alone, so that it costs nothing after every save.
pub fn prune(run_dir: &Path, keep: usize) -> Result<Vec<PathBuf>> {
    let mut complete = 0;
    let mut removed = Vec::new();
    for step in scan(run_dir)?.0.into_iter().rev() {
        let dir = dir_of(run_dir, step);
        if complete >= keep.max(1) {
            remove_dir(&dir)?;
            removed.push(dir);
        } else if read_manifest(&dir).and_then(|files| sizes_match(&dir, &files)).is_ok() {
            complete += 1;
        }
    }
    Ok(removed)
}

/// Steps of the folders `checkpoint-N`, ascending, and leftovers of their writers.
fn scan(run_dir: &Path) -> Result<(Vec<u64>, Vec<PathBuf>)> {
    let (mut steps, mut unfinished) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(run_dir).map_err(|e| FileError::io("list", run_dir, e))? {
        let path = entry.map_err(|e| FileError::io("list", run_dir, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(rest) = name.strip_prefix("checkpoint-") else { continue };
        match rest.parse::<u64>() {
            // `checkpoint-007` is not a name that `save` gives.
            Ok(step) if step.to_string() == rest && path.is_dir() => steps.push(step),
            _ if rest.contains(".tmp-") || rest.contains(".old-") => unfinished.push(path),
            _ => {}
        }
    }
    steps.sort_unstable();
    unfinished.sort();
    Ok((steps, unfinished))
}

fn manifest_name(dest: &Path, file: &Path) -> Result<String> {
    let parts: Option<Vec<&str>> = file.iter().map(|part| part.to_str()).collect();
    parts
        .map(|parts| parts.join("/"))
        .ok_or_else(|| FileError::invalid(dest.join(file), "has a name that is no UTF-8"))
}

fn manifest(files: &BTreeMap<String, Written>) -> Value {
    let entry = |w: &Written| json!({"bytes": w.bytes, "xxh64": format!("{:016x}", w.hash)});
    let files: BTreeMap<&String, Value> = files.iter().map(|(name, w)| (name, entry(w))).collect();
    json!({"version": VERSION, "files": files})
}

fn read_manifest(dir: &Path) -> Result<BTreeMap<String, Written>> {
    let path = dir.join(MANIFEST);
    if !path.exists() {
        return Err(FileError::invalid(
            dir,
            format!("has no {MANIFEST}: no checkpoint of kfc, or not complete"),
        ));
    }
    let json = read_json(&path)?;
    let damaged = |what: &str| FileError::invalid(&path, format!("damaged: {what}"));
    match json.get("version").and_then(Value::as_u64) {
        Some(VERSION) => {}
        Some(other) => {
            let message = format!(
                "has version {other}, this kfc reads version {VERSION}; resume with the kfc that wrote it"
            );
            return Err(FileError::invalid(&path, message));
        }
        None => return Err(damaged("no `version`")),
    }
    let files = json.get("files").and_then(Value::as_object).ok_or_else(|| damaged("no `files`"))?;
    let entry = |name: &str, value: &Value| {
        // A name that leads out of the folder is none that `save` gives.
        let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        let bytes = value.get("bytes")?.as_u64()?;
        let hash = u64::from_str_radix(value.get("xxh64")?.as_str()?, 16).ok()?;
        inside.then_some(Written { bytes, hash })
    };
    let files: BTreeMap<String, Written> = files
        .iter()
        .map(|(name, value)| {
            entry(name, value).map(|w| (name.clone(), w)).ok_or_else(|| damaged(&format!("entry `{name}`")))
        })
        .collect::<Result<_>>()?;
    for needed in [STATE, TRAINER] {
        if !files.contains_key(needed) {
            return Err(damaged(&format!("no entry for {needed}")));
        }
    }
    Ok(files)
}

fn sizes_match(dir: &Path, files: &BTreeMap<String, Written>) -> Result<()> {
    for (name, written) in files {
        let path = dir.join(name);
        let there = fs::metadata(&path).map_err(|e| FileError::io("read", &path, e))?.len();
        if there != written.bytes {
            return Err(FileError::invalid(
                path,
                format!("damaged: {there} bytes, {} were saved", written.bytes),
            ));
        }
    }
    Ok(())
}

/// Checks every file against the manifest: sizes first, then checksums in parallel. Files that the manifest does not
/// name are ignored.
pub fn verify(dir: &Path) -> Result<()> {
    let files = read_manifest(dir)?;
    sizes_match(dir, &files)?;
    let wrong: Vec<Result<()>> = files
        .par_iter()
        .map(|(name, written)| {
            let path = dir.join(name);
            match hash_file(&path)? == *written {
                true => Ok(()),
                false => Err(FileError::invalid(
                    path,
                    "damaged: its checksum is not that of the bytes that were saved",
                )),
            }
        })
        .collect();
    // In name order, so that the same damage is always reported in the same words.
    wrong.into_iter().collect()
}

#[cfg(test)]
#[path = "checkpoint/tests.rs"]
mod tests;
