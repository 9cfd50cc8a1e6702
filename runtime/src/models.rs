//! Models at run time: a folder's configuration and weights, placed in a store under the names that graphs use.

use crate::config::{Embeddings, ModelInit};
use crate::error::{Result, RunError};
use crate::exec::{Store, StoreError};
use crate::hf::{ModelFolder, TensorView, Weights, dtype_of};
use crate::lookup::Lookup;
use crate::random;
use half::{bf16, f16};
use kfc_graph::{DType, TensorType};
use kfc_ops::model::names::EMBEDDING;
use kfc_ops::model::{ModelConfig, Parameter, ParameterKind};
use rayon::prelude::*;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes from which on an embedding table stays in its file where `train.embeddings` leaves it open. A row from there takes
/// about 0.5 µs, which a step of a large model does not notice.
const LARGE_TABLE: usize = 16 << 20;

/// A model folder, opened.
pub struct Model {
    /// The folder.
    pub path: PathBuf,
    /// Shape and arithmetic.
    pub config: ModelConfig,
    /// `config.json` as it stands, to be written beside trained weights.
    pub json: Value,
    /// Element type that it runs in.
    pub dtype: DType,
    weights: Source,
}

/// Where weights come from.
enum Source {
    Mapped(Arc<Weights>),
    Random { seed: u64 },
}

impl Model {
    /// Opens a folder. Without `dtype` the model runs in the type its weights are stored in.
    ///
    /// # Errors
    /// If a file is missing or damaged, the architecture is not supported, or a weight is absent or of another shape.
    pub fn open(path: &Path, dtype: Option<DType>, init: ModelInit, seed: u64) -> Result<Model> {
        let folder = ModelFolder::open(path)?;
        let json = folder.config.clone();
        let in_path = |source| RunError::Model { path: path.display().to_string(), source };
        let config = ModelConfig::from_json(&json).map_err(in_path)?;
        let (weights, stored) = match init {
            ModelInit::Random => (Source::Random { seed }, config.dtype.unwrap_or(DType::F32)),
            ModelInit::Pretrained => {
                let weights = folder.weights()?;
                let mut stored = DType::F32;
                for p in config.parameters() {
                    let view = weights.require(&p.name, &p.dims)?;
                    if p.kind == ParameterKind::Matrix {
                        stored = dtype_of(view.dtype).unwrap_or(DType::F32);
                    }
                }
                (Source::Mapped(Arc::new(weights)), stored)
            }
        };
        Ok(Model { path: path.into(), config, json, dtype: dtype.unwrap_or(stored), weights })
    }

    /// Its embedding table, if that is to stay in its file: it is not trained, no output layer shares it, and it is large or
    /// `embeddings` says so.
    ///
    /// # Errors
    /// If the table is not what it was when the model was opened.
    pub fn lookup(&self, embeddings: Embeddings, is_trained: bool) -> Result<Option<Lookup>> {
        let dims = [self.config.vocab_size, self.config.hidden_size];
        let bytes = dims[0] * dims[1] * self.dtype.size();
        let is_wanted = match embeddings {
            Embeddings::Auto => bytes >= LARGE_TABLE,
            Embeddings::Memory => false,
            Embeddings::File => true,
        };
        match &self.weights {
            Source::Mapped(weights) if is_wanted && self.needs_table(is_trained).is_none() => {
                Lookup::open(weights, EMBEDDING, dims).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Why its embedding table is in memory whatever `train.embeddings` says, if it is.
    pub fn needs_table(&self, is_trained: bool) -> Option<&'static str> {
        let is_random = !matches!(self.weights, Source::Mapped(_));
        let reasons = [
            (is_trained, "is trained"),
            (is_random, "is random and in no file"),
            (self.config.tie_word_embeddings, "is the output layer's, too"),
        ];
        reasons.into_iter().find_map(|(holds, why)| holds.then_some(why))
    }

    /// Puts every parameter into `store` as `prefix + name`: mapped where the file has the right type, converted where
    /// not, and always copied when `owned` (parameters that are trained).
    ///
    /// # Errors
    /// If memory runs out or a file is damaged.
    pub fn place(&self, store: &mut Store, prefix: &str, owned: bool) -> Result<()> {
        self.place_beside(store, prefix, owned, None)
    }

    /// [`Model::place`] without the table that stays in its file.
    ///
    /// # Errors
    /// As there.
    pub fn place_beside(
        &self,
        store: &mut Store,
        prefix: &str,
        owned: bool,
        table: Option<&Lookup>,
    ) -> Result<()> {
        let is_placed = |p: &Parameter| table.is_none_or(|t| t.name() != p.name);
        for p in self.config.parameters().into_iter().filter(is_placed) {
            self.place_as(store, &format!("{prefix}{}", p.name), &p, self.dtype, owned)?;
        }
        Ok(())
    }

    /// Puts one parameter into `store` under `name` as `dtype`.
    ///
    /// # Errors
    /// As [`Model::place`].
    pub fn place_as(
        &self,
        store: &mut Store,
        name: &str,
        p: &Parameter,
        dtype: DType,
        owned: bool,
    ) -> Result<()> {
        let ty = TensorType::new(dtype, p.dims.clone());
        match &self.weights {
            Source::Mapped(weights) => {
                let view = weights.require(&p.name, &p.dims)?;
                if !owned && dtype_of(view.dtype) == Some(dtype) && view.aligned() {
                    store.insert_mapped(name, ty, view.bytes, Arc::clone(weights) as _);
                    return Ok(());
                }
                let slot = store.allocate(name, &ty)?;
                load_as(&view, dtype, store.slice_mut::<u8>(slot))?;
            }
            Source::Random { seed } => {
                let n = p.elements();
                let values = match p.kind {
                    ParameterKind::Norm => vec![1.0; n],
                    ParameterKind::Bias => vec![0.0; n],
                    ParameterKind::Matrix | ParameterKind::Embedding => {
                        random::normal_tensor(*seed, &p.name, n, self.config.initializer_range)
                    }
                };
                let slot = store.allocate(name, &ty)?;
                write_f32(&values, dtype, store.slice_mut::<u8>(slot));
            }
        }
        Ok(())
    }

    /// Frobenius norm of a stored weight; the same for any number of threads. `None` for weights that are not in a file.
    ///
    /// # Errors
    /// If there is no such weight, or its file is damaged.
    pub fn frobenius_norm(&self, name: &str, dims: &[usize]) -> Result<Option<f64>> {
        let Source::Mapped(weights) = &self.weights else { return Ok(None) };
        let view = weights.require(name, dims)?;
        let Some(dtype) = dtype_of(view.dtype) else { return Ok(None) };
        let n = view.elements();
        let sums: Result<Vec<f64>> = (0..n.div_ceil(BLOCK))
            .into_par_iter()
            .map(|block| {
                let mut bytes = vec![0; BLOCK.min(n - block * BLOCK) * dtype.size()];
                view.read(block * BLOCK * dtype.size(), &mut bytes)?;
                Ok(read_f32(&bytes, dtype).iter().map(|v| f64::from(*v).powi(2)).sum())
            })
            .collect();
        Ok(Some(sums?.iter().sum::<f64>().sqrt()))
    }

    /// Names the first weight that is NaN or infinite.
    pub fn find_non_finite(&self) -> Option<String> {
        match &self.weights {
            Source::Mapped(weights) => weights.find_non_finite(),
            Source::Random { .. } => None,
        }
    }

    /// The error of `what` (a result of this model) not being finite: names the weight that is to blame, if one is.
    pub fn not_finite(&self, what: &str) -> RunError {
        match self.find_non_finite() {
            Some(weight) => RunError::Input(format!(
                "{weight}; the file is damaged or the model diverged, use another (nothing was written)"
            )),
            None => RunError::Failed(format!(
                "{what} are not finite, though every weight is; use dtype \"f32\" or \"bf16\" (nothing was written)"
            )),
        }
    }

    /// Puts the rotary tables for `positions` positions into `store`.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn place_rope(
        &self,
        store: &mut Store,
        prefix: &str,
        positions: usize,
    ) -> std::result::Result<(), StoreError> {
        let (cos, sin) = self.config.rope.tables(positions);
        let ty = TensorType::new(DType::F32, [positions, self.config.head_dim / 2]);
        store.insert(&format!("{prefix}rope.cos"), &ty, &cos)?;
        store.insert(&format!("{prefix}rope.sin"), &ty, &sin)?;
        Ok(())
    }
}

/// Elements loaded by one task.
const BLOCK: usize = 1 << 16;

/// Bytes that are converted at once.
const PIECE: usize = 8192;

/// Reads a tensor of a file as `dtype` (rounding to nearest even) into `out`, which has its size. Nothing is read through the
/// mapping, so that the process holds the result and not the file beside it.
///
/// # Errors
/// If the file cannot be read, or its elements are no floats.
pub fn load_as(view: &TensorView<'_>, dtype: DType, out: &mut [u8]) -> Result<()> {
    let blocks = out.par_chunks_mut(BLOCK * dtype.size()).enumerate();
    blocks.try_for_each(|(i, out)| load_from(view, i * BLOCK, dtype, out))
}

/// The same for the elements from `first` on that fill `out`, on this thread; allocates nothing.
///
/// # Errors
/// As [`load_as`].
pub fn load_from(view: &TensorView<'_>, first: usize, dtype: DType, out: &mut [u8]) -> Result<()> {
    let Some(from) = dtype_of(view.dtype) else { return Ok(view.expect_float().map(|_| ())?) };
    let at = |element: usize| element * from.size();
    if from == dtype {
        return Ok(view.read(at(first), out)?);
    }
    let mut piece = [0; PIECE];
    let count = PIECE / from.size();
    for (i, out) in out.chunks_mut(count * dtype.size()).enumerate() {
        let piece = &mut piece[..at(out.len() / dtype.size())];
        view.read(at(first + i * count), piece)?;
        convert(piece, from, dtype, out);
    }
    Ok(())
}

/// Writes elements of type `from` as `to` (rounding to nearest even) into `out`, which has their size.
fn convert(bytes: &[u8], from: DType, to: DType, out: &mut [u8]) {
    match from {
        DType::F32 => write(floats(bytes, f32::from_le_bytes), to, out),
        DType::Bf16 => write(floats(bytes, |b| bf16::from_le_bytes(b).to_f32()), to, out),
        DType::F16 => write(floats(bytes, |b| f16::from_le_bytes(b).to_f32()), to, out),
        DType::I32 => {}
    }
}

fn floats<const N: usize>(bytes: &[u8], decode: impl Fn([u8; N]) -> f32) -> impl Iterator<Item = f32> {
    bytes.as_chunks().0.iter().map(move |b| decode(*b))
}

/// Writes `values` as `dtype` (rounding to nearest even) into `out`, which has their size.
pub fn write_f32(values: &[f32], dtype: DType, out: &mut [u8]) {
    write(values.iter().copied(), dtype, out);
}

fn write(values: impl Iterator<Item = f32>, dtype: DType, out: &mut [u8]) {
    match dtype {
        DType::F32 => out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(o, v)| *o = v.to_le_bytes()),
        DType::Bf16 => {
            let out = out.as_chunks_mut().0.iter_mut();
            out.zip(values).for_each(|(o, v)| *o = bf16::from_f32(v).to_le_bytes());
        }
        DType::F16 => {
            let out = out.as_chunks_mut().0.iter_mut();
            out.zip(values).for_each(|(o, v)| *o = f16::from_f32(v).to_le_bytes());
        }
        DType::I32 => {}
    }
}

/// Reads `bytes` of `dtype` as f32.
pub fn read_f32(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let mut values = vec![0f32; bytes.len() / dtype.size()];
    convert(bytes, dtype, DType::F32, bytemuck::cast_slice_mut(&mut values));
    values
}
