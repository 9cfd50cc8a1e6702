//! `ewc_penalty` and `ewc_penalty_bwd`: the quadratic penalty of elastic weight consolidation (Kirkpatrick et
//! al., 2017).

use crate::common::{Operands, check_vjp, f32, grad, sample, square, take, times_scalar, uniform, unit};
use kfc_graph::{Attrs, Builder, Cost, DType, OpDef, Result, Sample, TensorType, ValueId, Vjp, VjpArgs};

/// Forward. Operands: theta `f32 S`, fisher `S` (f32 or bf16), anchor `f32 S`. Result `f32 [1]`: `½ Σ
/// F·(θ−θ*)²`. Only theta has a gradient.
pub struct EwcPenalty;

/// Backward. Operands: g `f32 [1]`, theta, fisher, anchor. Result dtheta `f32 S` = `g·F·(θ−θ*)`.
pub struct EwcPenaltyBwd;

/// The definition of the forward operation.
pub static EWC_PENALTY: EwcPenalty = EwcPenalty;
/// The definition of the backward operation.
pub static EWC_PENALTY_BWD: EwcPenaltyBwd = EwcPenaltyBwd;

const NAME: &str = "ewc_penalty";
const BWD: &str = "ewc_penalty_bwd";

/// `½ Σ F·(θ−θ*)²` over tensors of one shape: `f32 [1]`.
///
/// # Errors
/// If the operands do not fit.
pub fn ewc_penalty(b: &mut Builder<'_>, theta: ValueId, fisher: ValueId, anchor: ValueId) -> Result<ValueId> {
    Ok(b.composite(&EWC_PENALTY, Attrs::new(), &[theta, fisher, anchor])?[0])
}

/// Checks a Fisher diagonal of this shape, in f32 or bf16.
pub(crate) fn check_fisher(op: &'static str, i: &mut Operands<'_>, dims: &[usize]) -> Result<()> {
    let fisher = i.float_dims("fisher", dims)?;
    if fisher.dtype == DType::F16 {
        return crate::common::fail(op, format!("`fisher` must be f32 or bf16, is {fisher}"));
    }
    Ok(())
}

fn check(op: &'static str, i: &mut Operands<'_>) -> Result<TensorType> {
    let theta = i.any("theta")?;
    if theta.dtype != DType::F32 {
        return crate::common::fail(op, format!("`theta` must be f32, is {theta}"));
    }
    check_fisher(op, i, &theta.dims)?;
    i.exact("anchor", DType::F32, &theta.dims)?;
    i.end()?;
    Ok(theta.clone())
}

fn operands(fisher: DType, dims: &[usize]) -> Vec<(TensorType, kfc_graph::SampleInput)> {
    vec![unit(DType::F32, dims), uniform(fisher, dims, 0.0, 2.0), unit(DType::F32, dims)]
}

impl OpDef for EwcPenalty {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, _: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        check(NAME, &mut Operands::new(NAME, inputs))?;
        Ok(vec![TensorType::scalar()])
    }

    fn decompose(&self, b: &mut Builder<'_>, _: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let [theta, fisher, anchor] = take(NAME, inputs)?;
        let fisher = f32(b, fisher)?;
        let drift = b.sub(theta, anchor)?;
        let drift2 = square(b, drift)?;
        let weighted = b.mul(fisher, drift2)?;
        let sum = b.sum_all(weighted)?;
        Ok(vec![b.scale(sum, 0.5)?])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Explicit(vjp)
    }

    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(4 * inputs[0].elements() as u64, inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        vec![
            sample(Attrs::new(), operands(DType::F32, &[5, 7])),
            sample(Attrs::new(), operands(DType::Bf16, &[5, 7])),
            sample(Attrs::new(), operands(DType::F32, &[19])),
        ]
    }
}

fn vjp(b: &mut Builder<'_>, args: &VjpArgs<'_>) -> Result<Vec<Option<ValueId>>> {
    check_vjp(NAME, args, &[0], 1)?;
    let g = grad(b, args, 0, DType::F32)?;
    let [theta, fisher, anchor] = take(NAME, args.inputs)?;
    let d = b.composite(&EWC_PENALTY_BWD, Attrs::new(), &[g, theta, fisher, anchor])?[0];
    Ok(vec![Some(d), None, None])
}

impl OpDef for EwcPenaltyBwd {
    fn name(&self) -> &'static str {
        BWD
    }

    fn infer(&self, _: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let mut i = Operands::new(BWD, inputs);
        i.exact("g", DType::F32, &[1])?;
        Ok(vec![check(BWD, &mut i)?])
    }

    fn decompose(&self, b: &mut Builder<'_>, _: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let [g, theta, fisher, anchor] = take(BWD, inputs)?;
        let fisher = f32(b, fisher)?;
        let drift = b.sub(theta, anchor)?;
        let d = b.mul(fisher, drift)?;
        Ok(vec![times_scalar(b, d, g)?])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Zero
    }

    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(3 * inputs[1].elements() as u64, inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        [(DType::F32, &[5usize, 7][..]), (DType::Bf16, &[5, 7]), (DType::F32, &[19])]
            .map(|(f, dims)| {
                let mut inputs = vec![unit(DType::F32, &[1])];
                inputs.extend(operands(f, dims));
                sample(Attrs::new(), inputs)
            })
            .into()
    }
}
