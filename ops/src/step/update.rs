//! The end of a step: penalties and their gradients, gradient norm, clipping, AdamW.
//!
//! Data: `lr` `f32[1]`; `bc` `f32[2]` (AdamW's bias corrections 1-β₁ᵗ and 1-β₂ᵗ); `loss_scale` and `unscale` (its
//! inverse) `f32[1]`.
//! Outputs: `ewc` (½ΣF(θ-θ*)², unweighted), `grad_norm` (before clipping), `ok` `i32[1]` (0: the gradient was not finite
//! and every state is unchanged), and the updated states.

use super::{TrainedParam, data};
use crate::{adamw, ewc, ewc_delta, sum_squares};
use kfc_graph::{Attrs, Builder, CmpOp, DType, Graph, InputKind, Phase, Result, TensorType, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// What to update, and how.
#[derive(Clone, Debug)]
pub struct UpdateSpec<'a> {
    /// Trained parameters.
    pub params: &'a [TrainedParam],
    /// Moment decays.
    pub betas: (f64, f64),
    /// Epsilon.
    pub eps: f64,
    /// Decoupled decay of the parameters that decay.
    pub weight_decay: f64,
    /// Norm to clip to; 0 is off.
    pub max_grad_norm: f64,
    /// Penalty.
    pub ewc: Option<EwcSpec<'a>>,
    /// Parameters with a learning-rate factor an element (`lr_scale.P`).
    pub lr_scaled: &'a BTreeSet<String>,
    /// 16-bit type that `student.*` parameters are kept in beside their f32 master.
    pub cast: Option<DType>,
}

/// A penalty on change.
#[derive(Clone, Debug)]
pub struct EwcSpec<'a> {
    /// Its weight.
    pub lambda: f64,
    /// What it is on, by the name of the Fisher tensor (`fisher.N`) and its element type.
    pub terms: &'a [(EwcTerm, DType)],
}

/// One penalised tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum EwcTerm {
    /// A trained parameter; `fisher.P` and `anchor.P` have its shape.
    Param(String),
    /// The merged change `scale · B A` of a module; `fisher.PATH.weight` has the base weight's shape.
    Delta {
        /// Module path.
        path: String,
        /// Adapter scale.
        scale: f64,
    },
}

/// Largest f32: a norm above it, or none at all, is not finite.
const F32_MAX: f64 = f32::MAX as f64;

/// Builds the update graph.
///
/// # Errors
/// If shapes contradict each other.
pub fn update_graph(spec: &UpdateSpec<'_>) -> Result<Graph> {
    let mut graph = Graph::new("update");
    let mut b = Builder::new(&mut graph);
    b.phase = Phase::Update;
    let lr = data(&mut b, "lr", DType::F32, &[1]);
    let bc = data(&mut b, "bc", DType::F32, &[2]);
    let unscale = data(&mut b, "unscale", DType::F32, &[1]);

    let mut masters: BTreeMap<&str, ValueId> = BTreeMap::new();
    let mut grads: BTreeMap<&str, ValueId> = BTreeMap::new();
    for p in spec.params {
        let ty = TensorType::new(DType::F32, p.dims.clone());
        let master = if keeps_master(spec, p) { format!("master.{}", p.name) } else { p.name.clone() };
        masters.insert(&p.name, b.graph().add_input(master, InputKind::State, ty.clone()));
        grads.insert(&p.name, b.graph().add_input(format!("grad.{}", p.name), InputKind::Data, ty));
    }

    let penalty = match &spec.ewc {
        Some(ewc) => Some(penalise(&mut b, ewc, &masters, &mut grads)?),
        None => None,
    };

    b.set_scope("clip");
    let mut total: Option<ValueId> = None;
    for p in spec.params {
        let s = sum_squares::sum_squares(&mut b, grads[p.name.as_str()])?;
        total = Some(match total {
            Some(t) => b.add(t, s)?,
            None => s,
        });
    }
    let total = match total {
        Some(t) => t,
        None => b.scalar(0.0)?,
    };
    let root = b.sqrt(total)?;
    let norm = b.mul(root, unscale)?;
    let limit = b.scalar(F32_MAX)?;
    let ok = b.compare(CmpOp::Le, norm, limit)?;
    let coef = clip(&mut b, norm, unscale, spec.max_grad_norm)?;

    for p in spec.params {
        b.set_scope(&p.name);
        let ty = TensorType::new(DType::F32, p.dims.clone());
        let state = |b: &mut Builder<'_>, name: String, ty: &TensorType| {
            (name.clone(), b.graph().add_input(name, InputKind::State, ty.clone()))
        };
        let m = state(&mut b, format!("m.{}", p.name), &ty);
        let v = state(&mut b, format!("v.{}", p.name), &ty);
        let master = masters[p.name.as_str()];
        let lr_scale = spec
            .lr_scaled
            .contains(&p.name)
            .then(|| b.graph().add_input(format!("lr_scale.{}", p.name), InputKind::Weight, ty.clone()));
        let copy = match (keeps_master(spec, p), spec.cast) {
            (true, Some(dtype)) => {
                Some(state(&mut b, p.name.clone(), &TensorType::new(dtype, p.dims.clone())))
            }
            _ => None,
        };
        let args = adamw::AdamW {
            p: master,
            m: m.1,
            v: v.1,
            g: grads[p.name.as_str()],
            lr,
            coef,
            bc,
            ok,
            lr_scale,
            copy: copy.as_ref().map(|c| c.1),
            beta1: spec.betas.0,
            beta2: spec.betas.1,
            eps: spec.eps,
            weight_decay: if p.decay { spec.weight_decay } else { 0.0 },
        };
        let new = adamw::adamw(&mut b, &args)?;
        let name = if keeps_master(spec, p) { format!("master.{}", p.name) } else { p.name.clone() };
        b.graph().add_output(name, new.p, Some(master));
        b.graph().add_output(m.0, new.m, Some(m.1));
        b.graph().add_output(v.0, new.v, Some(v.1));
        if let (Some((name, old)), Some(new)) = (copy, new.copy) {
            b.graph().add_output(name, new, Some(old));
        }
    }
    graph.add_output("grad_norm", norm, None);
    graph.add_output("ok", ok, None);
    if let Some(penalty) = penalty {
        graph.add_output("ewc", penalty, None);
    }
    Ok(graph)
}

/// Whether a parameter lives in 16 bits beside an f32 master.
fn keeps_master(spec: &UpdateSpec<'_>, p: &TrainedParam) -> bool {
    spec.cast.is_some() && p.name.starts_with("student.")
}

/// Adds the penalty's gradient to `grads`; returns the unweighted penalty.
fn penalise<'a>(
    b: &mut Builder<'_>,
    ewc: &EwcSpec<'_>,
    masters: &BTreeMap<&'a str, ValueId>,
    grads: &mut BTreeMap<&'a str, ValueId>,
) -> Result<ValueId> {
    b.set_scope("ewc");
    let loss_scale = data(b, "loss_scale", DType::F32, &[1]);
    let seed = b.scale(loss_scale, ewc.lambda)?;
    let mut total: Option<ValueId> = None;
    for (term, dtype) in ewc.terms {
        let (penalty, touched) = match term {
            EwcTerm::Param(name) => {
                let theta = masters[name.as_str()];
                let dims = b.ty(theta).dims.clone();
                let fisher = weight(b, format!("fisher.{name}"), *dtype, &dims);
                let anchor = weight(b, format!("anchor.{name}"), DType::F32, &dims);
                let operands = [seed, theta, fisher, anchor];
                let dtheta = b.composite(&ewc::EWC_PENALTY_BWD, Attrs::new(), &operands)?[0];
                (ewc::ewc_penalty(b, theta, fisher, anchor)?, vec![(name.clone(), dtheta)])
            }
            EwcTerm::Delta { path, scale } => {
                let names = ["A", "B"].map(|side| crate::model::transformer::lora_input(path, side));
                let (a, bb) = (masters[names[0].as_str()], masters[names[1].as_str()]);
                let dims = [b.ty(bb).dims[0], b.ty(a).dims[1]];
                let fisher = weight(b, format!("fisher.{path}.weight"), *dtype, &dims);
                let attrs = Attrs::new().with("scale", *scale);
                let d = b.composite(&ewc_delta::EWC_DELTA_BWD, attrs, &[seed, a, bb, fisher])?;
                let penalty = ewc_delta::ewc_delta(b, a, bb, fisher, *scale)?;
                let [na, nb] = names;
                (penalty, vec![(na, d[0]), (nb, d[1])])
            }
        };
        for (name, g) in touched {
            if let Some(slot) = grads.get_mut(name.as_str()) {
                *slot = b.add(*slot, g)?;
            }
        }
        total = Some(match total {
            Some(t) => b.add(t, penalty)?,
            None => penalty,
        });
    }
    match total {
        Some(t) => Ok(t),
        None => b.scalar(0.0),
    }
}

fn weight(b: &mut Builder<'_>, name: String, dtype: DType, dims: &[usize]) -> ValueId {
    b.graph().add_input(name, InputKind::Weight, TensorType::new(dtype, dims))
}

/// Factor on the accumulated gradient: the loss scale taken out, and the norm brought down to `max`
/// (`torch.nn.utils.clip_grad_norm_`).
fn clip(b: &mut Builder<'_>, norm: ValueId, unscale: ValueId, max: f64) -> Result<ValueId> {
    if max <= 0.0 {
        return Ok(unscale);
    }
    let shifted = b.shift(norm, 1e-6)?;
    let max = b.scalar(max)?;
    let ratio = b.div(max, shifted)?;
    let one = b.scalar(1.0)?;
    let shrinks = b.compare(CmpOp::Lt, ratio, one)?;
    let factor = b.select(shrinks, ratio, one)?;
    b.mul(factor, unscale)
}
