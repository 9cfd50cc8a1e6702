//! Direct logit attribution: a logit as a sum over what each part of the model added to the residual stream.
//!
//! With the scale of the last norm held fixed, `logit = Σ_part part · (g ⊙ w) / rms(x)`, where x is the sum of the parts,
//! g the weight of the last norm and w the token's row of the output weight (Elhage et al. 2021, "A Mathematical Framework
//! for Transformer Circuits").

use super::vector;
use crate::error::{Result, RunError};
use crate::exec::{BoundPlan, Store};
use crate::inference::Served;
use crate::models::read_f32;
use kfc_ops::model::names::FINAL_NORM;

/// Which part of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartKind {
    /// The embedded token.
    Embedding,
    /// The attention block of a layer, from 0.
    Attention(usize),
    /// The MLP block of a layer, from 0.
    Mlp(usize),
}

/// What a part adds at the position asked about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// Which it is.
    pub kind: PartKind,
    /// 2-norm of what it adds to the residual stream.
    pub norm: f64,
    /// What it adds to the logit.
    pub logit: f64,
}

/// The parts in order of the model.
pub(super) fn parts(served: &Served, store: &Store, plan: &BoundPlan) -> Result<Vec<Part>> {
    let config = &served.model.config;
    let name = format!("student.{FINAL_NORM}");
    let norm = store.get(&name).ok_or_else(|| RunError::Failed(format!("{name} is not loaded")))?;
    let scale = read_f32(norm.bytes(), norm.ty().dtype);
    let residual = vector(plan, "residual")?;
    let mean_square = dot(&residual, &residual) / residual.len() as f64;
    let rms = (mean_square + config.rms_norm_eps).sqrt();
    let direction: Vec<f32> =
        vector(plan, "direction")?.iter().zip(&scale).map(|(w, g)| (f64::from(w * g) / rms) as f32).collect();
    let layers = (0..config.layers).flat_map(|layer| {
        [
            (PartKind::Attention(layer), format!("attn.{layer}")),
            (PartKind::Mlp(layer), format!("mlp.{layer}")),
        ]
    });
    std::iter::once((PartKind::Embedding, "embed".to_string()))
        .chain(layers)
        .map(|(kind, name)| {
            let x = vector(plan, &name)?;
            Ok(Part { kind, norm: dot(&x, &x).sqrt(), logit: dot(&x, &direction) })
        })
        .collect()
}

fn dot(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
