//! The end of a step: penalties and their gradients, gradient norm, clipping, AdamW.
//!
//! Data: `lr` `f32[1]`; `bc` `f32[2]` (AdamW's bias corrections 1-β₁ᵗ and 1-β₂ᵗ); `loss_scale` and `unscale` (its
//! inverse) `f32[1]`.
//! Outputs: `ewc` (½ΣF(θ-θ*)², unweighted), `grad_norm` (before clipping), `ok` `i32[1]` (0: the gradient was not finite
//! and every state is unchanged), and the updated states.

use super::{TrainedParam, data};
use crate::penalised_norm::{Penalised, penalised_norm};
use crate::{adamw, ewc_delta, sum_squares};
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
    let (total, value) = squared_norm(&mut b, spec, &masters, &grads, penalty.as_ref())?;
    let root = b.sqrt(total)?;
    let norm = b.mul(root, unscale)?;
    let limit = b.scalar(F32_MAX)?;
    let ok = b.compare(CmpOp::Le, norm, limit)?;
    let coef = clip(&mut b, norm, unscale, spec.max_grad_norm)?;

    b.set_scope("optimiser");
    for group in groups(spec, penalty.as_ref()) {
        let params: Vec<adamw::Param> =
            group.iter().map(|p| optimised(&mut b, spec, p, &masters, &grads, penalty.as_ref())).collect();
        let args = adamw::AdamW {
            params: &params,
            lr,
            coef,
            bc,
            ok,
            ewc_weight: penalty.as_ref().filter(|_| params[0].ewc.is_some()).map(|penalty| penalty.weight),
            beta1: spec.betas.0,
            beta2: spec.betas.1,
            eps: spec.eps,
            weight_decay: if group[0].decay { spec.weight_decay } else { 0.0 },
        };
        let new = adamw::adamw(&mut b, &args)?;
        for ((p, old), new) in group.iter().zip(&params).zip(new) {
            let name = if keeps_master(spec, p) { format!("master.{}", p.name) } else { p.name.clone() };
            b.graph().add_output(name, new.p, Some(old.p));
            b.graph().add_output(format!("m.{}", p.name), new.m, Some(old.m));
            b.graph().add_output(format!("v.{}", p.name), new.v, Some(old.v));
            if let (Some(old), Some(new)) = (old.copy, new.copy) {
                b.graph().add_output(p.name.clone(), new, Some(old));
            }
        }
    }
    graph.add_output("grad_norm", norm, None);
    graph.add_output("ok", ok, None);
    if let Some(value) = value {
        graph.add_output("ewc", value, None);
    }
    Ok(graph)
}

/// Parameters that one optimiser node takes: those with the same optional operands and decay.
fn groups<'a>(spec: &UpdateSpec<'a>, penalty: Option<&Penalty<'a>>) -> Vec<Vec<&'a TrainedParam>> {
    let kind = |p: &TrainedParam| {
        let penalised = penalty.is_some_and(|penalty| penalty.params.contains_key(p.name.as_str()));
        (p.decay, keeps_master(spec, p), spec.lr_scaled.contains(&p.name), penalised)
    };
    let mut groups: Vec<Vec<&TrainedParam>> = vec![];
    for p in spec.params {
        match groups.iter_mut().find(|g| kind(g[0]) == kind(p) && g.len() < adamw::MOST) {
            Some(group) => group.push(p),
            None => groups.push(vec![p]),
        }
    }
    groups
}

/// One parameter as the optimiser takes it.
fn optimised(
    b: &mut Builder<'_>,
    spec: &UpdateSpec<'_>,
    p: &TrainedParam,
    masters: &BTreeMap<&str, ValueId>,
    grads: &BTreeMap<&str, ValueId>,
    penalty: Option<&Penalty<'_>>,
) -> adamw::Param {
    let name = p.name.as_str();
    let mut input = |name: String, kind: InputKind, dtype: DType| {
        b.graph().add_input(name, kind, TensorType::new(dtype, p.dims.clone()))
    };
    adamw::Param {
        p: masters[name],
        m: input(format!("m.{name}"), InputKind::State, DType::F32),
        v: input(format!("v.{name}"), InputKind::State, DType::F32),
        lr_scale: spec
            .lr_scaled
            .contains(name)
            .then(|| input(format!("lr_scale.{name}"), InputKind::Weight, DType::F32)),
        copy: spec
            .cast
            .filter(|_| keeps_master(spec, p))
            .map(|dtype| input(name.to_string(), InputKind::State, dtype)),
        g: grads[name],
        ewc: penalty.and_then(|penalty| penalty.params.get(name).copied()),
    }
}

/// The squared norm of all gradients, those of the penalty with them, and the unweighted penalty, if there is one.
fn squared_norm(
    b: &mut Builder<'_>,
    spec: &UpdateSpec<'_>,
    masters: &BTreeMap<&str, ValueId>,
    grads: &BTreeMap<&str, ValueId>,
    penalty: Option<&Penalty<'_>>,
) -> Result<(ValueId, Option<ValueId>)> {
    let (mut plain, mut penalised) = (vec![], vec![]);
    for p in spec.params {
        let (g, theta) = (grads[p.name.as_str()], masters[p.name.as_str()]);
        match penalty.and_then(|penalty| penalty.params.get(p.name.as_str())) {
            Some(&(fisher, anchor)) => penalised.push(Penalised { g, theta, fisher, anchor }),
            None => plain.push(g),
        }
    }
    let mut squares = vec![];
    if !plain.is_empty() {
        squares.push(sum_squares::sum_squares(b, &plain)?);
    }
    let Some(penalty) = penalty else { return Ok((sum_squares::total(b, &squares)?, None)) };
    let mut values = penalty.deltas.clone();
    if !penalised.is_empty() {
        let (square, value) = penalised_norm(b, penalty.weight, &penalised)?;
        squares.push(square);
        values.push(value);
    }
    Ok((sum_squares::total(b, &squares)?, Some(sum_squares::total(b, &values)?)))
}

/// Whether a parameter lives in 16 bits beside an f32 master.
fn keeps_master(spec: &UpdateSpec<'_>, p: &TrainedParam) -> bool {
    spec.cast.is_some() && p.name.starts_with("student.")
}

/// What the penalty is on.
struct Penalty<'a> {
    /// Factor of its gradients, `f32[1]`.
    weight: ValueId,
    /// Fisher diagonal and anchor of a penalised parameter.
    params: BTreeMap<&'a str, (ValueId, ValueId)>,
    /// Penalties on changes of modules.
    deltas: Vec<ValueId>,
}

/// Adds the gradients of penalties on changes of modules to `grads`; those on parameters are made where they are used.
fn penalise<'a>(
    b: &mut Builder<'_>,
    ewc: &EwcSpec<'a>,
    masters: &BTreeMap<&'a str, ValueId>,
    grads: &mut BTreeMap<&'a str, ValueId>,
) -> Result<Penalty<'a>> {
    b.set_scope("ewc");
    let loss_scale = data(b, "loss_scale", DType::F32, &[1]);
    let mut penalty =
        Penalty { weight: b.scale(loss_scale, ewc.lambda)?, params: BTreeMap::new(), deltas: vec![] };
    for (term, dtype) in ewc.terms {
        match term {
            EwcTerm::Param(name) => {
                let dims = b.ty(masters[name.as_str()]).dims.clone();
                let fisher = weight(b, format!("fisher.{name}"), *dtype, &dims);
                let anchor = weight(b, format!("anchor.{name}"), DType::F32, &dims);
                penalty.params.insert(name, (fisher, anchor));
            }
            EwcTerm::Delta { path, scale } => {
                let names = ["A", "B"].map(|side| crate::model::transformer::lora_input(path, side));
                let [a, bb] = [0, 1].map(|i| masters[names[i].as_str()]);
                let dims = [b.ty(bb).dims[0], b.ty(a).dims[1]];
                let fisher = weight(b, format!("fisher.{path}.weight"), *dtype, &dims);
                let attrs = Attrs::new().with("scale", *scale);
                let d = b.composite(&ewc_delta::EWC_DELTA_BWD, attrs, &[penalty.weight, a, bb, fisher])?;
                penalty.deltas.push(d[2]);
                for (name, d) in names.iter().zip(&d) {
                    if let Some(slot) = grads.get_mut(name.as_str()) {
                        *slot = b.add(*slot, *d)?;
                    }
                }
            }
        }
    }
    Ok(penalty)
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
