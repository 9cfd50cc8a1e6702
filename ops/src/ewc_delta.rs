//! `ewc_delta` and `ewc_delta_bwd`: the EWC penalty on the change that an adapter makes to its base weight.
//!
//! The change is `Δ = scale·B·A`; its anchor is zero. Backends stream tiles of Δ: it is never stored.

use crate::common::{
    Operands, check_vjp, f32, gemm_flops, grad, sample, square, take, times_scalar, uniform, unit,
};
use crate::ewc::check_fisher;
use kfc_graph::{Attrs, Builder, Cost, DType, OpDef, Result, Sample, TensorType, ValueId, Vjp, VjpArgs};

/// Forward. Attribute `scale`. Operands: a `f32 [r,I]`, b `f32 [O,r]`, fisher `[O,I]` (f32 or bf16). Result
/// `f32 [1]`: `½ Σ F·(scale·B·A)²`.
pub struct EwcDelta;

/// Backward. Attribute `scale`. Operands: g `f32 [1]`, a, b, fisher. Results: da `f32 [r,I]`, db `f32 [O,r]`, and the
/// penalty itself, as [`EwcDelta`]: whoever needs both reads fisher once.
pub struct EwcDeltaBwd;

/// The definition of the forward operation.
pub static EWC_DELTA: EwcDelta = EwcDelta;
/// The definition of the backward operation.
pub static EWC_DELTA_BWD: EwcDeltaBwd = EwcDeltaBwd;

const NAME: &str = "ewc_delta";
const BWD: &str = "ewc_delta_bwd";

/// `½ Σ F·(scale·B·A)²` for a `f32 [r,I]`, b `f32 [O,r]`, fisher `[O,I]`: `f32 [1]`.
///
/// # Errors
/// If the operands do not fit.
pub fn ewc_delta(
    b: &mut Builder<'_>,
    lora_a: ValueId,
    lora_b: ValueId,
    fisher: ValueId,
    scale: f64,
) -> Result<ValueId> {
    Ok(b.composite(&EWC_DELTA, Attrs::new().with("scale", scale), &[lora_a, lora_b, fisher])?[0])
}

fn check<'a>(op: &'static str, i: &mut Operands<'a>) -> Result<(&'a TensorType, &'a TensorType)> {
    let a = i.ranked("a", DType::F32, 2)?;
    let b = i.ranked("b", DType::F32, 2)?;
    if a.dims[0] != b.dims[1] {
        return crate::common::fail(op, format!("ranks of `a` {a} and `b` {b} differ"));
    }
    check_fisher(op, i, &[b.dims[0], a.dims[1]])?;
    i.end()?;
    Ok((a, b))
}

fn delta(b: &mut Builder<'_>, attrs: &Attrs, lora_a: ValueId, lora_b: ValueId) -> Result<ValueId> {
    let product = b.matmul(lora_b, lora_a, false, false, DType::F32)?;
    b.scale(product, attrs.f64("scale")?)
}

/// `½ Σ F·Δ²`
fn half_weighted_squares(b: &mut Builder<'_>, fisher: ValueId, delta: ValueId) -> Result<ValueId> {
    let delta2 = square(b, delta)?;
    let weighted = b.mul(fisher, delta2)?;
    let sum = b.sum_all(weighted)?;
    b.scale(sum, 0.5)
}

fn operands(fisher: DType) -> Vec<(TensorType, kfc_graph::SampleInput)> {
    vec![unit(DType::F32, &[3, 7]), unit(DType::F32, &[5, 3]), uniform(fisher, &[5, 7], 0.0, 2.0)]
}

impl OpDef for EwcDelta {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, attrs: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        attrs.f64("scale")?;
        check(NAME, &mut Operands::new(NAME, inputs))?;
        Ok(vec![TensorType::scalar()])
    }

    fn decompose(&self, b: &mut Builder<'_>, attrs: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let [lora_a, lora_b, fisher] = take(NAME, inputs)?;
        let fisher = f32(b, fisher)?;
        let delta = delta(b, attrs, lora_a, lora_b)?;
        Ok(vec![half_weighted_squares(b, fisher, delta)?])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Explicit(vjp)
    }

    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let (r, i, o) = (inputs[0].dims[0], inputs[0].dims[1], inputs[1].dims[0]);
        Cost::streaming(gemm_flops(o, i, r) + 4 * (o * i) as u64, inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        [DType::F32, DType::Bf16].map(|f| sample(Attrs::new().with("scale", 1.5), operands(f))).into()
    }
}

fn vjp(b: &mut Builder<'_>, args: &VjpArgs<'_>) -> Result<Vec<Option<ValueId>>> {
    check_vjp(NAME, args, &[0, 1], 1)?;
    let g = grad(b, args, 0, DType::F32)?;
    let [lora_a, lora_b, fisher] = take(NAME, args.inputs)?;
    let results = b.composite(&EWC_DELTA_BWD, args.attrs.clone(), &[g, lora_a, lora_b, fisher])?;
    let pick = |i: usize| Some(results[i]).filter(|_| args.needs[i]);
    Ok(vec![pick(0), pick(1), None])
}

impl OpDef for EwcDeltaBwd {
    fn name(&self) -> &'static str {
        BWD
    }

    fn infer(&self, attrs: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        attrs.f64("scale")?;
        let mut i = Operands::new(BWD, inputs);
        i.exact("g", DType::F32, &[1])?;
        let (a, b) = check(BWD, &mut i)?;
        Ok(vec![a.clone(), b.clone(), TensorType::scalar()])
    }

    fn decompose(&self, b: &mut Builder<'_>, attrs: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let [g, lora_a, lora_b, fisher] = take(BWD, inputs)?;
        let fisher = f32(b, fisher)?;
        let delta = delta(b, attrs, lora_a, lora_b)?;
        let penalty = half_weighted_squares(b, fisher, delta)?;
        let d = b.mul(fisher, delta)?;
        let d = times_scalar(b, d, g)?;
        let d = b.scale(d, attrs.f64("scale")?)?;
        let da = b.matmul(lora_b, d, true, false, DType::F32)?;
        let db = b.matmul(d, lora_a, false, true, DType::F32)?;
        Ok(vec![da, db, penalty])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Zero
    }

    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let (r, i, o) = (inputs[1].dims[0], inputs[1].dims[1], inputs[2].dims[0]);
        Cost::streaming(3 * gemm_flops(o, i, r) + 6 * (o * i) as u64, inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        [DType::F32, DType::Bf16]
            .map(|f| {
                let mut inputs = vec![unit(DType::F32, &[1])];
                inputs.extend(operands(f));
                sample(Attrs::new().with("scale", 1.5), inputs)
            })
            .into()
    }
}
