//! `layer_norm`: normalisation of rows to mean 0 and variance 1 (Ba, Kiros and Hinton, 2016), with a learnt gain and bias.

use crate::common::{Operands, epsilon, f32, row_sum, sample, spread, square, take, uniform, unit};
use kfc_graph::{Attrs, Builder, Cost, DType, OpDef, Result, Sample, TensorType, ValueId, Vjp};

/// Attribute `eps`. Operands: x `[..,H]`, w `[H]`, bias `[H]`, all of one float type. Result `[..,H]` of that type:
/// `(x − mean)/√(var + eps)·w + bias`, where mean and var are those of the row (var divides by H). Differentiated through
/// its decomposition.
pub struct LayerNorm;

/// The definition.
pub static LAYER_NORM: LayerNorm = LayerNorm;

const NAME: &str = "layer_norm";

/// `(x − mean)/√(var + eps)·w + bias` over the last axis.
///
/// # Errors
/// If the operands do not fit.
pub fn layer_norm(b: &mut Builder<'_>, x: ValueId, w: ValueId, bias: ValueId, eps: f64) -> Result<ValueId> {
    Ok(b.composite(&LAYER_NORM, Attrs::new().with("eps", eps), &[x, w, bias])?[0])
}

impl OpDef for LayerNorm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, attrs: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        epsilon(NAME, attrs)?;
        let mut i = Operands::new(NAME, inputs);
        let x = i.float("x")?;
        i.exact("w", x.dtype, &[x.last()])?;
        i.exact("bias", x.dtype, &[x.last()])?;
        i.end()?;
        Ok(vec![x.clone()])
    }

    fn decompose(&self, b: &mut Builder<'_>, attrs: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let [x, w, bias] = take(NAME, inputs)?;
        let ty = b.ty(x).clone();
        let (x, w, bias) = (f32(b, x)?, f32(b, w)?, f32(b, bias)?);
        let mean_of = |b: &mut Builder<'_>, v| {
            let sum = row_sum(b, v)?;
            b.scale(sum, 1.0 / ty.last() as f64)
        };
        let mean = mean_of(b, x)?;
        let mean = spread(b, mean, ty.last())?;
        let centred = b.sub(x, mean)?;
        let squares = square(b, centred)?;
        let variance = mean_of(b, squares)?;
        let shifted = b.shift(variance, attrs.f64("eps")?)?;
        let root = b.sqrt(shifted)?;
        let root = spread(b, root, ty.last())?;
        let xhat = b.div(centred, root)?;
        let w = b.broadcast_trailing(w, &ty.dims)?;
        let scaled = b.mul(xhat, w)?;
        let bias = b.broadcast_trailing(bias, &ty.dims)?;
        let y = b.add(scaled, bias)?;
        Ok(vec![b.cast(y, ty.dtype)?])
    }

    fn vjp(&self) -> Vjp {
        Vjp::ViaDecompose
    }

    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(8 * inputs[0].elements() as u64, inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        let attrs = |eps: f64| Attrs::new().with("eps", eps);
        let mut samples: Vec<Sample> = [DType::F32, DType::Bf16, DType::F16]
            .map(|x| sample(attrs(1e-5), vec![unit(x, &[2, 3, 7]), unit(x, &[7]), unit(x, &[7])]))
            .into();
        // Longer than a vector register and no multiple of one; a mean far from 0.
        samples.push(sample(
            attrs(1e-12),
            vec![uniform(DType::F32, &[3, 67], 4.0, 6.0), unit(DType::F32, &[67]), unit(DType::F32, &[67])],
        ));
        // All elements of a row are equal: only eps keeps the quotient finite.
        samples.push(sample(
            attrs(1e-2),
            vec![unit(DType::F32, &[3, 1]), unit(DType::F32, &[1]), unit(DType::F32, &[1])],
        ));
        samples
    }
}
