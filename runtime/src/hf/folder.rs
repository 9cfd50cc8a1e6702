//! Model folders as transformers writes them: `config.json`, weights, tokenizer files.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::weights::Weights;
use super::write::{MAX_SHARD, TensorOut, write_sharded};
use crate::files::{AtomicDir, FileError, Result, copy_file, read_json, write_json};

/// A model folder: its config is read, its weights are opened on demand.
#[derive(Clone, Debug)]
pub struct ModelFolder {
    /// The folder.
    pub path: PathBuf,
    /// `config.json`, an object.
    pub config: Value,
    /// `tokenizer.json`, if it is there.
    pub tokenizer: Option<PathBuf>,
}

impl ModelFolder {
    /// Opens a folder and reads its `config.json`.
    pub fn open(path: &Path) -> Result<ModelFolder> {
        let needs = "a model folder has config.json, model.safetensors (or model.safetensors.index.json and its shards) \
                     and usually tokenizer.json";
        if !path.exists() {
            let message = format!("there is no such folder (kfc downloads nothing); {needs}");
            return Err(FileError::invalid(path, message));
        }
        if !path.is_dir() {
            return Err(FileError::invalid(
                path,
                format!("is a file, give the folder that it lies in; {needs}"),
            ));
        }
        let file = path.join("config.json");
        if !file.exists() {
            let hint = if path.join("adapter_config.json").exists() {
                "is an adapter (adapter_config.json), no model; give its base model here and the adapter as adapter"
                    .to_string()
            } else {
                format!("has no config.json; {needs}")
            };
            return Err(FileError::invalid(path, hint));
        }
        let config = read_json(&file)?;
        if !config.is_object() {
            return Err(FileError::invalid(file, "is no JSON object; a model's config.json is needed"));
        }
        let tokenizer = Some(path.join("tokenizer.json")).filter(|file| file.is_file());
        Ok(ModelFolder { path: path.to_path_buf(), config, tokenizer })
    }

    /// Maps the weights.
    pub fn weights(&self) -> Result<Weights> {
        Weights::open(&self.path)
    }
}

/// Files beside config and weights that a model needs to be used.
fn travels_along(name: &str, custom_code: bool) -> bool {
    let known = [
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
    ];
    known.contains(&name)
        || (name.starts_with("tokenizer") && [".json", ".model"].iter().any(|end| name.ends_with(end)))
        || (custom_code && name.ends_with(".py"))
}

/// Names of the files of a model folder that go with its weights: tokenizer, generation config, chat template, and
/// Python code where the config refers to it. Sorted.
fn companions(from: &Path, config: &Value) -> Result<Vec<OsString>> {
    let custom_code = config.get("auto_map").is_some();
    let mut names = Vec::new();
    for entry in fs::read_dir(from).map_err(|e| FileError::io("list", from, e))? {
        let name = entry.map_err(|e| FileError::io("list", from, e))?.file_name();
        if travels_along(&name.to_string_lossy(), custom_code) && from.join(&name).is_file() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Writes a model folder, complete or not at all: `config.json`, the weights (sharded beyond 5 GB), and the tokenizer and
/// generation files of `copy_from`. `dir` must not exist, or be empty: a folder with files in it is never replaced.
pub fn write_model(
    dir: &Path,
    config: &Value,
    tensors: Vec<TensorOut<'_>>,
    copy_from: Option<&Path>,
) -> Result<()> {
    require_free(dir)?;
    let target = AtomicDir::create(dir)?;
    write_json(&target.path().join("config.json"), config)?;
    if let Some(from) = copy_from {
        for name in companions(from, config)? {
            copy_file(&from.join(&name), &target.path().join(&name))?;
        }
    }
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    write_sharded(target.path(), tensors, &metadata, MAX_SHARD)?;
    target.commit()
}

/// An error unless `dir` does not exist or is an empty folder: to be asked before long work whose result goes there.
pub fn require_free(dir: &Path) -> Result<()> {
    let occupied = fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    if occupied {
        return Err(FileError::invalid(
            dir,
            "is there already and not empty; delete it or choose another output folder",
        ));
    }
    Ok(())
}
