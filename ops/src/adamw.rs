//! `adamw`: one step of Adam with decoupled weight decay (Loshchilov and Hutter, 2019), as torch computes it, of a list of
//! parameters at once. The gradient of an EWC penalty on them is added on the way, so that it is never stored.

use crate::common::{Operands, Values, exact, fail, sample, square, times_scalar, uniform, unit};
use crate::ewc::{EWC_PENALTY_BWD, check_fisher};
use kfc_graph::{Attrs, Builder, Cost, DType, OpDef, Result, Sample, TensorType, ValueId, Vjp};

/// Attributes `params` (how many, at most [`MOST`]), `beta1`, `beta2`, `eps`, `weight_decay`, `lr_scale` (bool), `cast`
/// (`none`, `bf16`, `f16`), `ewc` (bool). Shapes S are those of each parameter.
///
/// Operands: for each parameter its state p, m, v `f32 S` and (pc, p in the type `cast`); then for each g `f32 S`, (lr_scale
/// `f32 S`, a factor of lr an element), (fisher `S` f32 or bf16, anchor `f32 S`); then lr `f32 [1]`; coef `f32 [1]`, by which
/// gradients are multiplied; bc `f32 [2]` = `1−β1^t, 1−β2^t`; ok `i32 [1]`, 0 to change nothing; (the penalty's weight `f32
/// [1]`). Results p', m', v', (pc') of each, replacing the leading operands. A gradient is `coef·(g + weight·F·(p−p*))`.
pub struct AdamWDef;

/// The definition.
pub static ADAMW: AdamWDef = AdamWDef;

/// Parameters of one node.
pub const MOST: usize = 256;

const NAME: &str = "adamw";

/// One parameter of [`adamw`], of shape S.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// Parameter `f32 S`.
    pub p: ValueId,
    /// First moment `f32 S`.
    pub m: ValueId,
    /// Second moment `f32 S`.
    pub v: ValueId,
    /// A copy of the parameter in bf16 or f16 that is kept up to date, `S`.
    pub copy: Option<ValueId>,
    /// Gradient `f32 S`.
    pub g: ValueId,
    /// Factor of the learning rate an element, `f32 S`.
    pub lr_scale: Option<ValueId>,
    /// Fisher diagonal `S` and anchor `f32 S` of a penalty.
    pub ewc: Option<(ValueId, ValueId)>,
}

/// Arguments of [`adamw`]. All parameters have the same optional operands.
#[derive(Clone, Debug)]
pub struct AdamW<'a> {
    /// What is updated; at least one and at most [`MOST`].
    pub params: &'a [Param],
    /// Learning rate `f32 [1]`.
    pub lr: ValueId,
    /// Factor of the gradient `f32 [1]`: clipping and loss scale.
    pub coef: ValueId,
    /// Bias corrections `f32 [2]`: `1−β1^t`, `1−β2^t`.
    pub bc: ValueId,
    /// `i32 [1]`: 0 leaves everything as it is.
    pub ok: ValueId,
    /// Weight of the penalty `f32 [1]`, if there is one.
    pub ewc_weight: Option<ValueId>,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay.
    pub weight_decay: f64,
}

/// Results of [`adamw`] for one parameter, each to be written back over its operand.
#[derive(Clone, Copy, Debug)]
pub struct NewParam {
    /// Parameter.
    pub p: ValueId,
    /// First moment.
    pub m: ValueId,
    /// Second moment.
    pub v: ValueId,
    /// Cast copy, if there is one.
    pub copy: Option<ValueId>,
}

/// One optimiser step of a list of parameters; results in their order.
///
/// # Errors
/// If the operands do not fit.
pub fn adamw(b: &mut Builder<'_>, a: &AdamW<'_>) -> Result<Vec<NewParam>> {
    let first = a.params.first();
    let copy = first.and_then(|p| p.copy);
    let attrs = Attrs::new()
        .with("params", a.params.len())
        .with("beta1", a.beta1)
        .with("beta2", a.beta2)
        .with("eps", a.eps)
        .with("weight_decay", a.weight_decay)
        .with("lr_scale", first.is_some_and(|p| p.lr_scale.is_some()))
        .with("cast", copy.map_or("none", |c| b.ty(c).dtype.name()))
        .with("ewc", a.ewc_weight.is_some());
    let mut inputs = vec![];
    for p in a.params {
        inputs.extend([p.p, p.m, p.v]);
        inputs.extend(p.copy);
    }
    for p in a.params {
        inputs.push(p.g);
        inputs.extend(p.lr_scale);
        inputs.extend(p.ewc.map(|(fisher, anchor)| [fisher, anchor]).into_iter().flatten());
    }
    inputs.extend([a.lr, a.coef, a.bc, a.ok]);
    inputs.extend(a.ewc_weight);
    let results = b.composite(&ADAMW, attrs, &inputs)?;
    let of = |r: &[ValueId]| NewParam { p: r[0], m: r[1], v: r[2], copy: r.get(3).copied() };
    Ok(results.chunks(if copy.is_some() { 4 } else { 3 }).map(of).collect())
}

/// Number of parameters.
fn count(attrs: &Attrs) -> Result<usize> {
    match attrs.usize("params")? {
        n @ 1..=MOST => Ok(n),
        n => fail(NAME, format!("`params` must be from 1 to {MOST}, is {n}")),
    }
}

/// Type of the cast copy, if there is one.
fn copy_type(attrs: &Attrs) -> Result<Option<DType>> {
    match attrs.str("cast")? {
        "none" => Ok(None),
        "bf16" => Ok(Some(DType::Bf16)),
        "f16" => Ok(Some(DType::F16)),
        other => fail(NAME, format!("`cast` must be none, bf16 or f16, is {other}")),
    }
}

impl OpDef for AdamWDef {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, attrs: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        for name in ["beta1", "beta2", "eps", "weight_decay"] {
            attrs.f64(name)?;
        }
        let (n, cast) = (count(attrs)?, copy_type(attrs)?);
        let (lr_scale, ewc) = (attrs.bool("lr_scale")?, attrs.bool("ewc")?);
        let mut i = Operands::new(NAME, inputs);
        let mut results = vec![];
        for _ in 0..n {
            let p = i.any("p")?;
            if p.dtype != DType::F32 {
                return fail(NAME, format!("`p` must be f32, is {p}"));
            }
            i.exact("m", DType::F32, &p.dims)?;
            i.exact("v", DType::F32, &p.dims)?;
            results.extend(vec![p.clone(); 3]);
            if let Some(dtype) = cast {
                results.push(i.exact("pc", dtype, &p.dims)?.clone());
            }
        }
        for p in results.chunks(if cast.is_some() { 4 } else { 3 }) {
            i.exact("g", DType::F32, &p[0].dims)?;
            if lr_scale {
                i.exact("lr_scale", DType::F32, &p[0].dims)?;
            }
            if ewc {
                check_fisher(NAME, &mut i, &p[0].dims)?;
                i.exact("anchor", DType::F32, &p[0].dims)?;
            }
        }
        i.exact("lr", DType::F32, &[1])?;
        i.exact("coef", DType::F32, &[1])?;
        i.exact("bc", DType::F32, &[2])?;
        i.exact("ok", DType::I32, &[1])?;
        if ewc {
            i.exact("the penalty's weight", DType::F32, &[1])?;
        }
        i.end()?;
        Ok(results)
    }

    fn decompose(&self, b: &mut Builder<'_>, attrs: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let (n, cast) = (count(attrs)?, copy_type(attrs)?);
        let (has_scale, has_ewc) = (attrs.bool("lr_scale")?, attrs.bool("ewc")?);
        let mut operands = Values::new(NAME, inputs);
        let mut params = vec![];
        for _ in 0..n {
            let (p, m, v) = (operands.next()?, operands.next()?, operands.next()?);
            let copy = operands.next_if(cast.is_some())?;
            params.push(Param { p, m, v, copy, g: p, lr_scale: None, ewc: None });
        }
        for p in &mut params {
            p.g = operands.next()?;
            p.lr_scale = operands.next_if(has_scale)?;
            let (fisher, anchor) = (operands.next_if(has_ewc)?, operands.next_if(has_ewc)?);
            p.ewc = fisher.zip(anchor);
        }
        let (lr, coef, bc, ok) = (operands.next()?, operands.next()?, operands.next()?, operands.next()?);
        let ewc_weight = operands.next_if(has_ewc)?;
        let (bc1, bc2) = (b.slice(bc, 0, 0, 1)?, b.slice(bc, 0, 1, 2)?);
        let root_bc2 = b.sqrt(bc2)?;
        let shared = Shared { lr, coef, bc1, root_bc2, ok, ewc_weight, cast };
        let mut results = vec![];
        for p in &params {
            results.extend(step(b, attrs, p, &shared)?);
        }
        Ok(results)
    }

    fn vjp(&self) -> Vjp {
        Vjp::Zero
    }

    fn cost(&self, attrs: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let elements: u64 =
            outputs.iter().filter(|t| t.dtype == DType::F32).map(|t| t.elements() as u64).sum();
        let penalty = if attrs.bool("ewc").unwrap_or(false) { 4 } else { 0 };
        Cost::streaming((16 + penalty) * elements / 3, inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        let both = [vec![5, 7], vec![19]];
        let (matrix, vector) = (&both[..1], &both[1..]);
        let (f32, bf16) = (Some(DType::F32), Some(DType::Bf16));
        vec![
            step_sample(matrix, 1.0, false, "none", None),
            step_sample(matrix, 1.0, true, "bf16", None),
            step_sample(matrix, 0.0, true, "bf16", f32),
            step_sample(vector, 1.0, false, "f16", None),
            step_sample(vector, 0.0, false, "none", None),
            step_sample(&both, 1.0, false, "none", None),
            step_sample(&both, 1.0, false, "none", f32),
            step_sample(&both, 1.0, true, "none", bf16),
            step_sample(&both, 1.0, true, "f16", f32),
            step_sample(&both, 1.0, false, "bf16", bf16),
        ]
    }
}

/// What all parameters of a node have in common.
struct Shared {
    lr: ValueId,
    coef: ValueId,
    bc1: ValueId,
    root_bc2: ValueId,
    ok: ValueId,
    ewc_weight: Option<ValueId>,
    cast: Option<DType>,
}

/// New p, m, v and cast copy of one parameter.
fn step(b: &mut Builder<'_>, attrs: &Attrs, x: &Param, s: &Shared) -> Result<Vec<ValueId>> {
    let dims = b.ty(x.p).dims.clone();
    let mut g = x.g;
    if let (Some((fisher, anchor)), Some(weight)) = (x.ewc, s.ewc_weight) {
        let pull = b.composite(&EWC_PENALTY_BWD, Attrs::new(), &[weight, x.p, fisher, anchor])?[0];
        g = b.add(g, pull)?;
    }
    let g = times_scalar(b, g, s.coef)?;
    let m1 = decayed(b, x.m, attrs.f64("beta1")?, g)?;
    let g2 = square(b, g)?;
    let v1 = decayed(b, x.v, attrs.f64("beta2")?, g2)?;

    let mut rate = b.broadcast_trailing(s.lr, &dims)?;
    if let Some(factor) = x.lr_scale {
        rate = b.mul(rate, factor)?;
    }
    let decay = b.scale(rate, -attrs.f64("weight_decay")?)?;
    let decay = b.shift(decay, 1.0)?;
    let shrunk = b.mul(x.p, decay)?;

    let bc1 = b.broadcast_trailing(s.bc1, &dims)?;
    let root_bc2 = b.broadcast_trailing(s.root_bc2, &dims)?;
    let root = b.sqrt(v1)?;
    let root = b.div(root, root_bc2)?;
    let denominator = b.shift(root, attrs.f64("eps")?)?;
    let rate = b.div(rate, bc1)?;
    let step = b.div(m1, denominator)?;
    let step = b.mul(rate, step)?;
    let p1 = b.sub(shrunk, step)?;

    let ok = b.broadcast_trailing(s.ok, &dims)?;
    let mut results = vec![b.select(ok, p1, x.p)?, b.select(ok, m1, x.m)?, b.select(ok, v1, x.v)?];
    if let (Some(dtype), Some(copy)) = (s.cast, x.copy) {
        let p1 = b.cast(p1, dtype)?;
        results.push(b.select(ok, p1, copy)?);
    }
    Ok(results)
}

/// `decay·moment + (1−decay)·x`
fn decayed(b: &mut Builder<'_>, moment: ValueId, decay: f64, x: ValueId) -> Result<ValueId> {
    let old = b.scale(moment, decay)?;
    let new = b.scale(x, 1.0 - decay)?;
    b.add(old, new)
}

fn step_sample(shapes: &[Vec<usize>], ok: f64, lr_scale: bool, cast: &str, fisher: Option<DType>) -> Sample {
    let attrs = Attrs::new()
        .with("params", shapes.len())
        .with("beta1", 0.9)
        .with("beta2", 0.95)
        .with("eps", 1e-6)
        .with("weight_decay", 0.1)
        .with("lr_scale", lr_scale)
        .with("cast", cast)
        .with("ewc", fisher.is_some());
    let mut inputs = vec![];
    for dims in shapes {
        let state = [unit(DType::F32, dims), unit(DType::F32, dims), uniform(DType::F32, dims, 0.0, 1.0)];
        inputs.extend(state);
        inputs.extend(DType::from_name(cast).map(|dtype| unit(dtype, dims)));
    }
    for dims in shapes {
        inputs.push(unit(DType::F32, dims));
        inputs.extend(lr_scale.then(|| uniform(DType::F32, dims, 0.5, 2.0)));
        inputs.extend(fisher.into_iter().flat_map(|f| [uniform(f, dims, 0.0, 2.0), unit(DType::F32, dims)]));
    }
    inputs.extend([
        uniform(DType::F32, &[1], 0.01, 0.1),
        uniform(DType::F32, &[1], 0.1, 1.0),
        uniform(DType::F32, &[2], 0.1, 0.9),
        exact(DType::I32, &[1], &[ok]),
    ]);
    inputs.extend(fisher.map(|_| uniform(DType::F32, &[1], 0.1, 1.0)));
    sample(attrs, inputs)
}
