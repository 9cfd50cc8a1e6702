//! `adamw`: one step of Adam with decoupled weight decay (Loshchilov and Hutter, 2019), as torch computes it.

use crate::common::{Operands, Values, exact, fail, sample, square, times_scalar, uniform, unit};
use kfc_graph::{Attrs, Builder, Cost, DType, OpDef, Result, Sample, TensorType, ValueId, Vjp};

/// Attributes `beta1`, `beta2`, `eps`, `weight_decay`, `lr_scale` (bool), `cast` (`none`, `bf16`, `f16`).
/// Operands: p, m, v (state) and g, all `f32 S`; lr `f32 [1]`; coef `f32 [1]`, by which g is multiplied; bc
/// `f32 [2]` = `1−β1^t, 1−β2^t`; ok `i32 [1]`, 0 to change nothing; (lr_scale `f32 S`, a factor of lr an
/// element); (pc, p in the type `cast`, state). Results p', m', v', (pc'), each replacing its operand.
pub struct AdamWDef;

/// The definition.
pub static ADAMW: AdamWDef = AdamWDef;

const NAME: &str = "adamw";

/// Arguments of [`adamw`]. S is the shape of the parameter.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Parameter `f32 S`.
    pub p: ValueId,
    /// First moment `f32 S`.
    pub m: ValueId,
    /// Second moment `f32 S`.
    pub v: ValueId,
    /// Gradient `f32 S`.
    pub g: ValueId,
    /// Learning rate `f32 [1]`.
    pub lr: ValueId,
    /// Factor of the gradient `f32 [1]`: clipping and loss scale.
    pub coef: ValueId,
    /// Bias corrections `f32 [2]`: `1−β1^t`, `1−β2^t`.
    pub bc: ValueId,
    /// `i32 [1]`: 0 leaves everything as it is.
    pub ok: ValueId,
    /// Factor of the learning rate an element, `f32 S`.
    pub lr_scale: Option<ValueId>,
    /// A copy of the parameter in bf16 or f16 that is kept up to date, `S`.
    pub copy: Option<ValueId>,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay.
    pub weight_decay: f64,
}

/// Results of [`adamw`], each to be written back over its operand.
#[derive(Clone, Copy, Debug)]
pub struct AdamWResult {
    /// Parameter.
    pub p: ValueId,
    /// First moment.
    pub m: ValueId,
    /// Second moment.
    pub v: ValueId,
    /// Cast copy, if there is one.
    pub copy: Option<ValueId>,
}

/// One optimiser step of one parameter.
///
/// # Errors
/// If the operands do not fit.
pub fn adamw(b: &mut Builder<'_>, a: &AdamW) -> Result<AdamWResult> {
    let cast = a.copy.map_or("none", |c| b.ty(c).dtype.name());
    let attrs = Attrs::new()
        .with("beta1", a.beta1)
        .with("beta2", a.beta2)
        .with("eps", a.eps)
        .with("weight_decay", a.weight_decay)
        .with("lr_scale", a.lr_scale.is_some())
        .with("cast", cast);
    let mut inputs = vec![a.p, a.m, a.v, a.g, a.lr, a.coef, a.bc, a.ok];
    inputs.extend(a.lr_scale);
    inputs.extend(a.copy);
    let r = b.composite(&ADAMW, attrs, &inputs)?;
    Ok(AdamWResult { p: r[0], m: r[1], v: r[2], copy: r.get(3).copied() })
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
        let mut i = Operands::new(NAME, inputs);
        let p = i.any("p")?;
        if p.dtype != DType::F32 {
            return fail(NAME, format!("`p` must be f32, is {p}"));
        }
        for name in ["m", "v", "g"] {
            i.exact(name, DType::F32, &p.dims)?;
        }
        i.exact("lr", DType::F32, &[1])?;
        i.exact("coef", DType::F32, &[1])?;
        i.exact("bc", DType::F32, &[2])?;
        i.exact("ok", DType::I32, &[1])?;
        if attrs.bool("lr_scale")? {
            i.exact("lr_scale", DType::F32, &p.dims)?;
        }
        let mut results = vec![p.clone(); 3];
        if let Some(dtype) = copy_type(attrs)? {
            results.push(i.exact("pc", dtype, &p.dims)?.clone());
        }
        i.end()?;
        Ok(results)
    }

    fn decompose(&self, b: &mut Builder<'_>, attrs: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let mut operands = Values::new(NAME, inputs);
        let (p, m, v, g) = (operands.next()?, operands.next()?, operands.next()?, operands.next()?);
        let (lr, coef, bc, ok) = (operands.next()?, operands.next()?, operands.next()?, operands.next()?);
        let lr_scale = operands.next_if(attrs.bool("lr_scale")?)?;
        let cast = copy_type(attrs)?;
        let copy = operands.next_if(cast.is_some())?;
        let (beta1, beta2) = (attrs.f64("beta1")?, attrs.f64("beta2")?);
        let dims = b.ty(p).dims.clone();

        let g = times_scalar(b, g, coef)?;
        let m1 = decayed(b, m, beta1, g)?;
        let g2 = square(b, g)?;
        let v1 = decayed(b, v, beta2, g2)?;

        let mut rate = b.broadcast_trailing(lr, &dims)?;
        if let Some(factor) = lr_scale {
            rate = b.mul(rate, factor)?;
        }
        let decay = b.scale(rate, -attrs.f64("weight_decay")?)?;
        let decay = b.shift(decay, 1.0)?;
        let shrunk = b.mul(p, decay)?;

        let (bc1, bc2) = (b.slice(bc, 0, 0, 1)?, b.slice(bc, 0, 1, 2)?);
        let bc1 = b.broadcast_trailing(bc1, &dims)?;
        let root_bc2 = b.sqrt(bc2)?;
        let root_bc2 = b.broadcast_trailing(root_bc2, &dims)?;
        let root = b.sqrt(v1)?;
        let root = b.div(root, root_bc2)?;
        let denominator = b.shift(root, attrs.f64("eps")?)?;
        let rate = b.div(rate, bc1)?;
        let step = b.div(m1, denominator)?;
        let step = b.mul(rate, step)?;
        let p1 = b.sub(shrunk, step)?;

        let ok = b.broadcast_trailing(ok, &dims)?;
        let mut results = vec![b.select(ok, p1, p)?, b.select(ok, m1, m)?, b.select(ok, v1, v)?];
        if let (Some(dtype), Some(copy)) = (cast, copy) {
            let p1 = b.cast(p1, dtype)?;
            results.push(b.select(ok, p1, copy)?);
        }
        Ok(results)
    }

    fn vjp(&self) -> Vjp {
        Vjp::Zero
    }

    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(16 * inputs[0].elements() as u64, inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        let cases = [
            (vec![5, 7], 1.0, false, "none"),
            (vec![5, 7], 1.0, true, "bf16"),
            (vec![5, 7], 0.0, true, "bf16"),
            (vec![19], 1.0, false, "f16"),
            (vec![19], 0.0, false, "none"),
        ];
        cases.into_iter().map(|(dims, ok, lr_scale, cast)| step_sample(&dims, ok, lr_scale, cast)).collect()
    }
}

/// `decay·moment + (1−decay)·x`
fn decayed(b: &mut Builder<'_>, moment: ValueId, decay: f64, x: ValueId) -> Result<ValueId> {
    let old = b.scale(moment, decay)?;
    let new = b.scale(x, 1.0 - decay)?;
    b.add(old, new)
}

fn step_sample(dims: &[usize], ok: f64, lr_scale: bool, cast: &str) -> Sample {
    let attrs = Attrs::new()
        .with("beta1", 0.9)
        .with("beta2", 0.95)
        .with("eps", 1e-6)
        .with("weight_decay", 0.1)
        .with("lr_scale", lr_scale)
        .with("cast", cast);
    let mut inputs = vec![
        unit(DType::F32, dims),
        unit(DType::F32, dims),
        uniform(DType::F32, dims, 0.0, 1.0),
        unit(DType::F32, dims),
        uniform(DType::F32, &[1], 0.01, 0.1),
        uniform(DType::F32, &[1], 0.1, 1.0),
        uniform(DType::F32, &[2], 0.1, 0.9),
        exact(DType::I32, &[1], &[ok]),
    ];
    if lr_scale {
        inputs.push(uniform(DType::F32, dims, 0.5, 2.0));
    }
    if let Some(dtype) = DType::from_name(cast) {
        inputs.push(unit(dtype, dims));
    }
    sample(attrs, inputs)
}
