//! Fisher diagonals, anchors and the update policy of important parameters, placed in the store.

use crate::config::{EwcMode, EwcSection, Important};
use crate::error::{Result, RunError};
use crate::exec::Store;
use crate::files::FileError;
use crate::hf::{TensorView, WeightFile, dtype_of};
use crate::models::load_as;
use crate::quantile::quantile;
use kfc_graph::{DType, TensorType};
use kfc_ops::model::LoraSpec;
use kfc_ops::step::TrainedParam;
use kfc_ops::step::update::EwcTerm;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What the penalty is on, and which parameters have a learning-rate factor.
pub struct Penalty {
    /// Penalised tensors and the element type of their Fisher.
    pub terms: Vec<(EwcTerm, DType)>,
    /// Parameters with an `lr_scale` tensor.
    pub lr_scaled: BTreeSet<String>,
    /// Share of penalised parameters that are important, if the policy does anything.
    pub important: Option<f64>,
}

/// The name of a parameter in files of other tools: PEFT's for an adapter, the tensor's for a weight.
pub fn file_name(param: &str) -> String {
    match param.strip_prefix("lora.") {
        Some(rest) => format!("base_model.model.{rest}"),
        None => param.strip_prefix("student.").unwrap_or(param).to_string(),
    }
}

/// Loads what the section names. Parameters must already be in the store.
///
/// # Errors
/// If a file lacks a tensor, or a tensor has the wrong shape, is negative or not finite.
pub fn load(
    section: &EwcSection,
    params: &[TrainedParam],
    lora: Option<&LoraSpec>,
    store: &mut Store,
) -> Result<Penalty> {
    let fisher = Arc::new(WeightFile::open(&section.fisher)?);
    let mut terms = Vec::new();
    match section.mode {
        EwcMode::Delta => {
            let lora = lora.ok_or_else(|| RunError::Input("ewc.mode = \"delta\" needs [lora]".into()))?;
            for m in &lora.modules {
                let name = format!("{}.weight", m.path);
                let view = diagonal(&fisher, &name, &[m.out_features, m.in_features])?;
                let dtype = place_fisher(store, &format!("fisher.{name}"), &view, &fisher)?;
                terms.push((EwcTerm::Delta { path: m.path.clone(), scale: lora.scale }, dtype));
            }
        }
        EwcMode::Adapter | EwcMode::Weights => {
            let anchor = section.anchor.as_deref().map(WeightFile::open).transpose()?;
            for p in params.iter().filter(|p| !p.name.starts_with("projector.")) {
                let name = file_name(&p.name);
                let view = diagonal(&fisher, &name, &p.dims)?;
                let dtype = place_fisher(store, &format!("fisher.{}", p.name), &view, &fisher)?;
                place_anchor(store, p, &name, anchor.as_ref())?;
                terms.push((EwcTerm::Param(p.name.clone()), dtype));
            }
        }
    }
    let (lr_scaled, important) = update_policy(section, &terms, store)?;
    Ok(Penalty { terms, lr_scaled, important })
}

/// What [`load`] would place, from the names and types in the files alone.
///
/// # Errors
/// If a file lacks a tensor, or a tensor has the wrong shape.
pub fn describe(section: &EwcSection, params: &[TrainedParam], lora: Option<&LoraSpec>) -> Result<Penalty> {
    let fisher = WeightFile::open(&section.fisher)?;
    let dtype =
        |name: &str, dims: &[usize]| -> Result<DType> { Ok(fisher_dtype(&diagonal(&fisher, name, dims)?)) };
    let mut terms = Vec::new();
    match (section.mode, lora) {
        (EwcMode::Delta, lora) => {
            for m in lora.into_iter().flat_map(|l| &l.modules) {
                let dtype = dtype(&format!("{}.weight", m.path), &[m.out_features, m.in_features])?;
                let scale = lora.map_or(1.0, |l| l.scale);
                terms.push((EwcTerm::Delta { path: m.path.clone(), scale }, dtype));
            }
        }
        (EwcMode::Adapter | EwcMode::Weights, _) => {
            for p in params.iter().filter(|p| !p.name.starts_with("projector.")) {
                terms.push((EwcTerm::Param(p.name.clone()), dtype(&file_name(&p.name), &p.dims)?));
            }
        }
    }
    let scaled = terms.iter().filter_map(|(term, _)| match term {
        EwcTerm::Param(name) if section.important != Important::Keep => Some(name.clone()),
        _ => None,
    });
    Ok(Penalty { lr_scaled: scaled.collect(), terms, important: None })
}

/// The diagonal of a parameter. A file that lacks it was made of another model, or for another `ewc.mode`.
fn diagonal<'a>(fisher: &'a WeightFile, name: &str, dims: &[usize]) -> Result<TensorView<'a>> {
    let wrong = |problem: String| {
        let hint = "make it with `kfc fisher` from the model and the ewc.mode of this job";
        RunError::from(FileError::invalid(fisher.path(), format!("{problem}; {hint}")))
    };
    let Some(view) = fisher.get(name) else {
        let first = fisher.names().next().map_or("it has none".into(), |n| format!("its first is `{n}`"));
        return Err(wrong(format!("has no Fisher diagonal `{name}`, {first}")));
    };
    if view.dims != dims {
        return Err(wrong(format!(
            "the Fisher diagonal `{name}` is {:?}, the parameter is {dims:?}",
            view.dims
        )));
    }
    Ok(view.expect_float()?)
}

/// Fisher diagonals are kept in f32 or bf16.
fn fisher_dtype(view: &TensorView<'_>) -> DType {
    match dtype_of(view.dtype) {
        Some(DType::Bf16) => DType::Bf16,
        _ => DType::F32,
    }
}

/// Maps a Fisher diagonal (f32 or bf16; f16 is widened) after checking its values.
fn place_fisher(
    store: &mut Store,
    name: &str,
    view: &TensorView<'_>,
    file: &Arc<WeightFile>,
) -> Result<DType> {
    let dtype = fisher_dtype(view);
    let ty = TensorType::new(dtype, view.dims);
    let values = view.to_f32()?;
    if let Some(i) = values.iter().position(|v| !v.is_finite() || *v < 0.0) {
        let m = format!(
            "tensor `{}` has {} at element {i}; a Fisher diagonal is finite and not negative",
            view.name, values[i]
        );
        return Err(FileError::invalid(view.file, m).into());
    }
    if dtype_of(view.dtype) == Some(dtype) && view.aligned() {
        store.insert_mapped(name, ty, view.bytes, Arc::clone(file) as _);
    } else {
        let slot = store.allocate(name, &ty)?;
        load_as(view, dtype, store.slice_mut::<u8>(slot))?;
    }
    Ok(dtype)
}

/// Copies the anchor from its file, or from where training starts.
fn place_anchor(store: &mut Store, p: &TrainedParam, name: &str, file: Option<&WeightFile>) -> Result<()> {
    let values = match file {
        Some(file) => file.expect(name)?.expect_float()?.expect_dims(&p.dims)?.to_f32()?,
        None => {
            let start = store.get(&format!("master.{}", p.name)).or_else(|| store.get(&p.name));
            start.map(|t| t.slice::<f32>().to_vec()).unwrap_or_default()
        }
    };
    store.insert(&format!("anchor.{}", p.name), &TensorType::new(DType::F32, p.dims.clone()), &values)?;
    Ok(())
}

/// Learning-rate factors of parameters whose Fisher is above the quantile.
fn update_policy(
    section: &EwcSection,
    terms: &[(EwcTerm, DType)],
    store: &mut Store,
) -> Result<(BTreeSet<String>, Option<f64>)> {
    let factor = match section.important {
        Important::Keep => return Ok((BTreeSet::new(), None)),
        Important::Slow => section.slow_factor as f32,
        Important::Freeze => 0.0,
    };
    let names: Vec<&String> = terms
        .iter()
        .map(|(t, _)| match t {
            EwcTerm::Param(name) => Ok(name),
            EwcTerm::Delta { .. } => Err(RunError::Input(
                "ewc.important: with mode = \"delta\" the Fisher is of merged weights, not of the trained A and B; \
                 use mode = \"adapter\", or important = \"keep\""
                    .into(),
            )),
        })
        .collect::<Result<_>>()?;
    let fishers: Vec<Vec<f32>> = names
        .iter()
        .filter_map(|n| store.get(&format!("fisher.{n}")))
        .map(|t| crate::models::read_f32(t.bytes(), t.ty().dtype))
        .collect();
    let parts: Vec<&[f32]> = fishers.iter().map(Vec::as_slice).collect();
    let Some(threshold) = quantile(&parts, section.quantile) else { return Ok((BTreeSet::new(), None)) };
    let (mut important, mut all) = (0usize, 0usize);
    let mut scaled = BTreeSet::new();
    for (name, fisher) in names.into_iter().zip(&fishers) {
        let scale: Vec<f32> = fisher.iter().map(|f| if *f > threshold { factor } else { 1.0 }).collect();
        important += fisher.iter().filter(|f| **f > threshold).count();
        all += fisher.len();
        let dims = store.get(&format!("fisher.{name}")).map(|t| t.ty().dims.clone()).unwrap_or_default();
        store.insert(&format!("lr_scale.{name}"), &TensorType::new(DType::F32, dims), &scale)?;
        scaled.insert(name.clone());
    }
    Ok((scaled, Some(important as f64 / all.max(1) as f64)))
}
