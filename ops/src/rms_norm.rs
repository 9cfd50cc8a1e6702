//! `rms_norm` and `rms_norm_bwd`: root-mean-square normalisation (Zhang and Sennrich, 2019) with a learnt
//! gain.

use crate::common::{
    Operands, check_vjp, epsilon, f32, grad, row_sum, rows2d, sample, spread, square, take, uniform, unit,
};
use crate::linear::with_last;
use kfc_graph::{Attrs, Builder, Cost, DType, OpDef, Result, Sample, TensorType, ValueId, Vjp, VjpArgs};

/// Forward. Attribute `eps`. Operands: x `[..,H]` X, w `[H]` X. Results: y `[..,H]` X = `x·rstd·w` and rstd
/// `f32 [..,1]` = `1/√(mean(x²)+eps)`. Only y carries a gradient.
pub struct RmsNorm;

/// Backward. Attribute `need_dw`. Operands: dy, x, w, rstd. Results: dx X, (dw `f32 [H]`).
pub struct RmsNormBwd;

/// The definition of the forward operation.
pub static RMS_NORM: RmsNorm = RmsNorm;
/// The definition of the backward operation.
pub static RMS_NORM_BWD: RmsNormBwd = RmsNormBwd;

const NAME: &str = "rms_norm";
const BWD: &str = "rms_norm_bwd";

/// `x / √(mean(x²)+eps) · w` over the last axis.
///
/// # Errors
/// If the operands do not fit.
pub fn rms_norm(b: &mut Builder<'_>, x: ValueId, w: ValueId, eps: f64) -> Result<ValueId> {
    Ok(b.composite(&RMS_NORM, Attrs::new().with("eps", eps), &[x, w])?[0])
}

impl OpDef for RmsNorm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, attrs: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        epsilon(NAME, attrs)?;
        let mut i = Operands::new(NAME, inputs);
        let x = i.float("x")?;
        i.exact("w", x.dtype, &[x.last()])?;
        i.end()?;
        Ok(vec![x.clone(), with_last(x, DType::F32, 1)])
    }

    fn decompose(&self, b: &mut Builder<'_>, attrs: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let [x, w] = take(NAME, inputs)?;
        let ty = b.ty(x).clone();
        let (x, w) = (f32(b, x)?, f32(b, w)?);
        let x2 = square(b, x)?;
        let sum = row_sum(b, x2)?;
        let mean = b.scale(sum, 1.0 / ty.last() as f64)?;
        let shifted = b.shift(mean, attrs.f64("eps")?)?;
        let root = b.sqrt(shifted)?;
        let one = b.full_like(root, 1.0)?;
        let rstd = b.div(one, root)?;
        let spread_rstd = spread(b, rstd, ty.last())?;
        let xhat = b.mul(x, spread_rstd)?;
        let w = b.broadcast_trailing(w, &ty.dims)?;
        let y = b.mul(xhat, w)?;
        Ok(vec![b.cast(y, ty.dtype)?, rstd])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Explicit(vjp)
    }

    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(4 * inputs[0].elements() as u64, inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        let mut samples: Vec<Sample> = [DType::F32, DType::Bf16, DType::F16]
            .map(|x| sample(Attrs::new().with("eps", 1e-5), vec![unit(x, &[2, 3, 7]), unit(x, &[7])]))
            .into();
        samples.push(sample(
            Attrs::new().with("eps", 1e-2),
            vec![uniform(DType::F32, &[3, 1], 0.1, 0.2), unit(DType::F32, &[1])],
        ));
        samples.push(sample(
            Attrs::new().with("eps", 1e-6),
            vec![unit(DType::F32, &[3, 67]), unit(DType::F32, &[67])],
        ));
        samples
    }
}

fn vjp(b: &mut Builder<'_>, args: &VjpArgs<'_>) -> Result<Vec<Option<ValueId>>> {
    check_vjp(NAME, args, &[0, 1], 1)?;
    let dtype = b.ty(args.inputs[0]).dtype;
    let dy = grad(b, args, 0, dtype)?;
    let attrs = Attrs::new().with("need_dw", args.needs[1]);
    let results =
        b.composite(&RMS_NORM_BWD, attrs, &[dy, args.inputs[0], args.inputs[1], args.outputs[1]])?;
    Ok(vec![Some(results[0]).filter(|_| args.needs[0]), results.get(1).copied()])
}

impl OpDef for RmsNormBwd {
    fn name(&self) -> &'static str {
        BWD
    }

    fn infer(&self, attrs: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let mut i = Operands::new(BWD, inputs);
        let dy = i.float("dy")?;
        let x = i.exact("x", dy.dtype, &dy.dims)?;
        i.exact("w", x.dtype, &[x.last()])?;
        i.exact("rstd", DType::F32, &with_last(x, DType::F32, 1).dims)?;
        i.end()?;
        let mut results = vec![x.clone()];
        if attrs.bool("need_dw")? {
            results.push(TensorType::new(DType::F32, [x.last()]));
        }
        Ok(results)
    }

    fn decompose(&self, b: &mut Builder<'_>, attrs: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let [dy, x, w, rstd] = take(BWD, inputs)?;
        let ty = b.ty(x).clone();
        let (dy, x, w) = (f32(b, dy)?, f32(b, x)?, f32(b, w)?);
        let rstd = spread(b, rstd, ty.last())?;
        let xhat = b.mul(x, rstd)?;
        let w = b.broadcast_trailing(w, &ty.dims)?;
        // dx = rstd · (dx̂ − x̂ · mean(dx̂ · x̂)) with dx̂ = dy · w.
        let dxhat = b.mul(dy, w)?;
        let product = b.mul(dxhat, xhat)?;
        let sum = row_sum(b, product)?;
        let mean = b.scale(sum, 1.0 / ty.last() as f64)?;
        let mean = spread(b, mean, ty.last())?;
        let along = b.mul(xhat, mean)?;
        let across = b.sub(dxhat, along)?;
        let dx = b.mul(rstd, across)?;
        let mut results = vec![b.cast(dx, ty.dtype)?];
        if attrs.bool("need_dw")? {
            let dw = b.mul(dy, xhat)?;
            let dw = rows2d(b, dw)?;
            let dw = b.reduce_sum(dw, &[0])?;
            results.push(b.reshape(dw, &[ty.last()])?);
        }
        Ok(results)
    }

    fn vjp(&self) -> Vjp {
        Vjp::Zero
    }

    fn cost(&self, attrs: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let per_element = if attrs.bool("need_dw") == Ok(true) { 9 } else { 7 };
        Cost::streaming(per_element * inputs[1].elements() as u64, inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        let mut samples = Vec::new();
        for x in [DType::F32, DType::Bf16, DType::F16] {
            for need_dw in [false, true] {
                samples.push(sample(
                    Attrs::new().with("need_dw", need_dw),
                    vec![
                        unit(x, &[2, 3, 7]),
                        unit(x, &[2, 3, 7]),
                        unit(x, &[7]),
                        uniform(DType::F32, &[2, 3, 1], 0.5, 2.0),
                    ],
                ));
            }
        }
        samples
    }
}
