//! `kfc merge`: a model whose weights hold the adapter's change.
//!
//! Each adapted weight becomes `W + scale·B·A`, computed in f32 and rounded once to the stored type. A tied head keeps its
//! own weight: adapters of this crate never sit on the embedding or the head.

use crate::error::{Result, RunError};
use crate::hf::{ModelFolder, Weights, folder::require_free};
use crate::hf::{TensorOut, TensorSpec, dtype_of, file_dtype, read_adapter, write_model};
use crate::models::{Model, write_f32};
use crate::train::open::adapter_spec;
use rayon::prelude::*;
use std::path::Path;

/// Writes the merged model to `out`, with the tokenizer and other files of `model`. Returns how many weights changed.
///
/// # Errors
/// If model and adapter do not belong together, or a file cannot be written.
pub fn merge(model: &Path, adapter: &Path, out: &Path) -> Result<usize> {
    require_free(out)?;
    let opened = Model::open(model, None, crate::config::ModelInit::Pretrained, 0)?;
    let read = read_adapter(adapter)?;
    let lora = adapter_spec(&opened, &read, 0.0, adapter)?;
    let folder = ModelFolder::open(model)?;
    let weights: Weights = folder.weights()?;
    let mut tensors = Vec::new();
    for name in weights.names() {
        let Some(view) = weights.get(name) else { continue };
        let pair = name.strip_suffix(".weight").and_then(|path| read.modules.get(path));
        let (Some(pair), Some(dtype)) = (pair, dtype_of(view.dtype)) else {
            tensors.push(TensorOut::bytes(name, view.dtype, view.dims, view.bytes));
            continue;
        };
        let scale = lora.scale as f32;
        let spec = TensorSpec::new(name, file_dtype(dtype), view.dims);
        tensors.push(TensorOut::new(spec, move |w| {
            let mut merged = view.to_f32().map_err(std::io::Error::other)?;
            merged.par_chunks_mut(pair.inputs).enumerate().for_each(|(o, row)| {
                for (j, b) in pair.b[o * pair.r..(o + 1) * pair.r].iter().enumerate() {
                    let a = &pair.a[j * pair.inputs..(j + 1) * pair.inputs];
                    row.iter_mut().zip(a).for_each(|(w, a)| *w += scale * b * a);
                }
            });
            let mut bytes = vec![0u8; merged.len() * dtype.size()];
            write_f32(&merged, dtype, &mut bytes);
            w.write_all(&bytes)
        }));
    }
    if lora.modules.is_empty() {
        return Err(RunError::Input(format!("{}: the adapter has no modules", adapter.display())));
    }
    write_model(out, &folder.config, tensors, Some(model))?;
    Ok(lora.modules.len())
}
