//! `linear_cross_entropy_kd_bwd`: gradients of the hidden states and of the output weight.

use super::logits::{logits, logits_grad};
use super::{HeadAttrs, HeadValues, check_operands, gradient_cost, samples};
use crate::common::{Operands, Values, rows2d};
use kfc_graph::{Attrs, Builder, Cost, DType, OpDef, Result, Sample, TensorType, ValueId, Vjp};

/// Attributes of the forward operation and `need_dw`. Operands: g_ce `f32 [1]`, (g_kd `f32 [1]` unless `kd`
/// is `none`), then those of the forward operation. Results: dh `[B,T,H]` X, (dw `f32 [V,H]`). The logits are
/// computed again.
pub struct LinearCrossEntropyKdBwd;

/// The definition.
pub static LINEAR_CROSS_ENTROPY_KD_BWD: LinearCrossEntropyKdBwd = LinearCrossEntropyKdBwd;

const NAME: &str = "linear_cross_entropy_kd_bwd";

/// Checks g_ce and (g_kd), then all operands; returns the types of dh and (dw).
pub(super) fn check(op: &'static str, attrs: &HeadAttrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
    let mut i = Operands::new(op, inputs);
    i.exact("g_ce", DType::F32, &[1])?;
    if attrs.distils() {
        i.exact("g_kd", DType::F32, &[1])?;
    }
    let (dh, dw) = check_operands(op, &mut i, attrs)?;
    Ok(if attrs.need_dw { vec![dh, dw] } else { vec![dh] })
}

/// dh and (dw) from the student's logits.
pub(super) fn gradients(
    b: &mut Builder<'_>,
    attrs: &HeadAttrs,
    v: &HeadValues,
    z: ValueId,
    g_ce: ValueId,
    g_kd: Option<ValueId>,
) -> Result<Vec<ValueId>> {
    let h_ty = b.ty(v.h).clone();
    let dz = logits_grad(b, attrs, v, z, g_ce, g_kd)?;
    let dh = b.matmul(dz, v.w, false, false, DType::F32)?;
    let dh = b.cast(dh, h_ty.dtype)?;
    let mut results = vec![b.reshape(dh, &h_ty.dims)?];
    if attrs.need_dw {
        let h = rows2d(b, v.h)?;
        results.push(b.matmul(dz, h, true, false, DType::F32)?);
    }
    Ok(results)
}

impl OpDef for LinearCrossEntropyKdBwd {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, attrs: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        check(NAME, &HeadAttrs::parse(NAME, attrs)?, inputs)
    }

    fn decompose(&self, b: &mut Builder<'_>, attrs: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let attrs = HeadAttrs::parse(NAME, attrs)?;
        let mut values = Values::new(NAME, inputs);
        let (g_ce, g_kd) = (values.next()?, values.next_if(attrs.distils())?);
        let v = HeadValues::read(&mut values, &attrs)?;
        let z = logits(b, v.h, v.w)?;
        gradients(b, &attrs, &v, z, g_ce, g_kd)
    }

    fn vjp(&self) -> Vjp {
        Vjp::Zero
    }

    fn cost(&self, attrs: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        gradient_cost(NAME, attrs, inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        samples::backward()
    }
}
