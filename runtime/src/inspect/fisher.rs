//! Where a Fisher diagonal is large: its tensors, summed up.

use crate::error::{Result, RunError};
use crate::hf::Weights;
use kfc_ops::model::ModelConfig;
use std::path::Path;

/// One tensor of a Fisher diagonal.
#[derive(Clone, Debug, PartialEq)]
pub struct FisherTensor {
    /// Its name in the file.
    pub name: String,
    /// Module path that it belongs to, such as `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// Elements.
    pub elements: usize,
    /// Mean of the elements.
    pub mean: f64,
    /// Largest element.
    pub max: f64,
    /// Row-major position of the largest element.
    pub max_at: Vec<usize>,
    /// Its part of the sum over all tensors.
    pub share: f64,
}

/// Reads the file that `kfc fisher` writes; the tensors are in order of name.
///
/// # Errors
/// If the file is damaged, a value is negative or not finite, or a tensor belongs to no module of the model.
pub fn read_fisher(path: &Path, config: &ModelConfig) -> Result<Vec<FisherTensor>> {
    let file = Weights::open_file(path)?;
    let mut known: Vec<String> = config.modules().into_iter().map(|m| m.path).collect();
    known.extend(config.parameters().iter().map(|p| module_of(&p.name).to_string()));
    let mut tensors = Vec::new();
    for name in file.names() {
        let module = module_of(name).to_string();
        if !known.contains(&module) {
            return Err(RunError::Input(format!(
                "{}: tensor `{name}` belongs to no weight of the model; is it the Fisher diagonal of another model?",
                path.display()
            )));
        }
        let Some(view) = file.get(name) else { continue };
        let values = view.expect_float()?.to_f32()?;
        if let Some(bad) = values.iter().find(|v| !v.is_finite() || **v < 0.0) {
            return Err(RunError::Input(format!(
                "{}: tensor `{name}` has the element {bad}; a Fisher diagonal has no negative and no infinite ones",
                path.display()
            )));
        }
        let sum: f64 = values.iter().map(|v| f64::from(*v)).sum();
        let largest = values
            .iter()
            .enumerate()
            .fold((0, 0.0f32), |best, (i, v)| if *v > best.1 { (i, *v) } else { best });
        tensors.push(FisherTensor {
            name: name.to_string(),
            module,
            elements: values.len(),
            mean: sum / values.len().max(1) as f64,
            max: f64::from(largest.1),
            max_at: place(largest.0, view.dims),
            share: sum,
        });
    }
    let total: f64 = tensors.iter().map(|t| t.share).sum();
    tensors.iter_mut().for_each(|t| t.share = if total > 0.0 { t.share / total } else { 0.0 });
    Ok(tensors)
}

/// The module that a tensor of a model or of an adapter belongs to.
fn module_of(name: &str) -> &str {
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    let endings = [".lora_A.weight", ".lora_B.weight", ".weight", ".bias"];
    endings.iter().find_map(|e| name.strip_suffix(e)).unwrap_or(name)
}

/// Row-major coordinates of the element at `index`.
fn place(mut index: usize, dims: &[usize]) -> Vec<usize> {
    let mut at = vec![0; dims.len()];
    for (a, d) in at.iter_mut().zip(dims).rev() {
        *a = index % d;
        index /= d;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_places() {
        assert_eq!(
            module_of("base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"),
            "model.layers.1.mlp.up_proj"
        );
        assert_eq!(module_of("model.layers.1.mlp.up_proj.weight"), "model.layers.1.mlp.up_proj");
        assert_eq!(place(7, &[2, 5]), [1, 2]);
    }
}
