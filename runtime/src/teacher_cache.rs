//! Offline top-k cache of a teacher: made by `kfc teach`, read while training.
//!
//! A folder with `teacher_cache.json` (how it was made) and three safetensors files, each with one tensor of its name: for
//! each row of the training data (then each row of the general data) and each position, the `k` largest logits
//! (`top_logits`) with their token ids (`top_ids`), and the logsumexp of all logits at the temperature (`top_lse`). What
//! is outside the `k` is one "rest" outcome, so its probability is exact. "All" are the tokens of the student's vocabulary.

use crate::config::JobConfig;
use crate::data::MicroBatch;
use crate::error::{Result, RunError};
use crate::files::{FileError, read_json};
use crate::hf::WeightFile;
use serde_json::{Value, json};
use std::path::Path;

/// Name of the description in a cache folder.
pub const DESCRIPTION: &str = "teacher_cache.json";
/// Names of the three tensors, and of their files.
pub const TENSORS: [&str; 3] = ["top_ids", "top_logits", "top_lse"];
/// Format version; 2 says that `vocab` is the student's.
const VERSION: u64 = 2;

/// How a cache was made; it is only valid for the same rows and temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheDescription {
    /// Outcomes a position.
    pub k: usize,
    /// Temperature of the logsumexp.
    pub temperature: f64,
    /// Rows of the training data.
    pub rows: usize,
    /// Rows of the general data.
    pub general_rows: usize,
    /// Tokens a row.
    pub seq_len: usize,
    /// Tokens that were looked at: the student's vocabulary, of which the teacher's may be a padded one.
    pub vocab: usize,
    /// Hash of the rows' tokens, of training and general data.
    pub fingerprint: u64,
    /// Where the teacher was.
    pub teacher: String,
}

impl CacheDescription {
    /// As it is written.
    pub fn to_json(&self) -> Value {
        json!({
            "version": VERSION, "k": self.k, "temperature": self.temperature, "rows": self.rows,
            "general_rows": self.general_rows, "seq_len": self.seq_len, "vocab": self.vocab,
            "fingerprint": format!("{:016x}", self.fingerprint), "teacher": self.teacher,
        })
    }

    fn from_json(path: &Path, v: &Value) -> Result<CacheDescription> {
        let bad = |what: &str| {
            FileError::invalid(
                path,
                format!("`{what}` is missing or wrong; make the cache again with `kfc teach`"),
            )
        };
        let number = |name: &str| v[name].as_u64().map(|n| n as usize).ok_or_else(|| bad(name));
        if v["version"].as_u64() != Some(VERSION) {
            return Err(bad("version").into());
        }
        let fingerprint = v["fingerprint"].as_str().and_then(|s| u64::from_str_radix(s, 16).ok());
        Ok(CacheDescription {
            k: number("k")?,
            temperature: v["temperature"].as_f64().ok_or_else(|| bad("temperature"))?,
            rows: number("rows")?,
            general_rows: number("general_rows")?,
            seq_len: number("seq_len")?,
            vocab: number("vocab")?,
            fingerprint: fingerprint.ok_or_else(|| bad("fingerprint"))?,
            teacher: v["teacher"].as_str().unwrap_or_default().to_string(),
        })
    }
}

/// An opened cache.
pub struct TeacherCache {
    /// How it was made.
    pub description: CacheDescription,
    /// In the order of [`TENSORS`].
    files: Vec<WeightFile>,
}

/// Whether `path` is a cache folder rather than a model.
pub fn is_cache(path: &Path) -> bool {
    path.join(DESCRIPTION).is_file()
}

impl TeacherCache {
    /// Opens a cache folder and checks its tensors.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub fn open(path: &Path) -> Result<TeacherCache> {
        let description_path = path.join(DESCRIPTION);
        let d = CacheDescription::from_json(&description_path, &read_json(&description_path)?)?;
        let rows = d.rows + d.general_rows;
        let dims = [vec![rows, d.seq_len, d.k], vec![rows, d.seq_len, d.k], vec![rows, d.seq_len]];
        let mut files = Vec::new();
        for (name, dims) in TENSORS.iter().zip(&dims) {
            let file = WeightFile::open(&path.join(format!("{name}.safetensors")))?;
            let bytes = file.expect(name)?.expect_dims(dims)?.bytes.len();
            if bytes != dims.iter().product::<usize>() * 4 {
                let m = format!(
                    "tensor `{name}` has an unexpected element type; make the cache again with `kfc teach`"
                );
                return Err(FileError::invalid(file.path(), m).into());
            }
            files.push(file);
        }
        Ok(TeacherCache { description: d, files })
    }

    /// Checks that the cache belongs to this job's rows (training rows, general rows, tokens a row; their hash),
    /// vocabulary and temperature.
    ///
    /// # Errors
    /// Says what differs.
    pub fn check(
        &self,
        job: &JobConfig,
        path: &Path,
        [rows, general, seq, vocab]: [usize; 4],
        fingerprint: u64,
    ) -> Result<()> {
        let d = &self.description;
        let differ = |what: &str, cache: String, job: String| {
            Err(RunError::Input(format!(
                "{}: the cache was made with {what} {cache}, this job has {job}; make it again with `kfc teach`",
                path.display()
            )))
        };
        let temperature = job.distill.as_ref().map_or(1.0, |s| s.temperature);
        if d.temperature != temperature {
            return differ("distill.temperature", d.temperature.to_string(), temperature.to_string());
        }
        if (d.rows, d.general_rows) != (rows, general) {
            return differ("rows", format!("{}+{}", d.rows, d.general_rows), format!("{rows}+{general}"));
        }
        if d.seq_len != seq {
            return differ("data.seq_len", d.seq_len.to_string(), seq.to_string());
        }
        if d.vocab != vocab {
            return differ("a student vocabulary of", d.vocab.to_string(), vocab.to_string());
        }
        if d.fingerprint != fingerprint {
            return differ(
                "tokens of fingerprint",
                format!("{:016x}", d.fingerprint),
                format!("{fingerprint:016x}"),
            );
        }
        Ok(())
    }

    /// Reads a micro-batch's token ids `[B,T,K]`; those of empty rows stay as they are.
    ///
    /// # Errors
    /// If the cache has no such row, or cannot be read.
    pub fn fill_ids(&self, batch: &MicroBatch, out: &mut [i32]) -> Result<()> {
        self.fill(0, batch, bytemuck::cast_slice_mut(out))
    }

    /// Reads a micro-batch's logits `[B,T,K]`.
    ///
    /// # Errors
    /// As [`TeacherCache::fill_ids`].
    pub fn fill_logits(&self, batch: &MicroBatch, out: &mut [f32]) -> Result<()> {
        self.fill(1, batch, bytemuck::cast_slice_mut(out))
    }

    /// Reads a micro-batch's logsumexps `[B,T]`.
    ///
    /// # Errors
    /// As [`TeacherCache::fill_ids`].
    pub fn fill_lse(&self, batch: &MicroBatch, out: &mut [f32]) -> Result<()> {
        self.fill(2, batch, bytemuck::cast_slice_mut(out))
    }

    fn fill(&self, which: usize, batch: &MicroBatch, out: &mut [u8]) -> Result<()> {
        let view = self.files[which].expect(TENSORS[which])?;
        let width = out.len() / batch.rows.max(1);
        for (r, out) in out.chunks_exact_mut(width.max(1)).enumerate() {
            if batch.row_ids[r] == u64::MAX {
                continue;
            }
            let row = batch.row_ids[r] as usize + if batch.general[r] { self.description.rows } else { 0 };
            view.read(row * width, out)?;
        }
        Ok(())
    }
}
