//! `linear_cross_entropy_kd_fused`: losses and gradients from one computation of the logits. A pass makes it
//! of a forward and a backward operation with the same operands.

use super::backward::{check, gradients};
use super::logits::{logits, losses};
use super::{HeadAttrs, HeadValues, gradient_cost, loss_types, samples};
use crate::common::Values;
use kfc_graph::{Attrs, Builder, Cost, OpDef, Result, Sample, TensorType, ValueId, Vjp};

/// Attributes and operands of the backward operation. Results: ce, (kd), correct, dh, (dw).
pub struct LinearCrossEntropyKdFused;

/// The definition.
pub static LINEAR_CROSS_ENTROPY_KD_FUSED: LinearCrossEntropyKdFused = LinearCrossEntropyKdFused;

const NAME: &str = "linear_cross_entropy_kd_fused";

impl OpDef for LinearCrossEntropyKdFused {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, attrs: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let attrs = HeadAttrs::parse(NAME, attrs)?;
        let gradients = check(NAME, &attrs, inputs)?;
        Ok([loss_types(&attrs), gradients].concat())
    }

    fn decompose(&self, b: &mut Builder<'_>, attrs: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let attrs = HeadAttrs::parse(NAME, attrs)?;
        let mut values = Values::new(NAME, inputs);
        let (g_ce, g_kd) = (values.next()?, values.next_if(attrs.distils())?);
        let v = HeadValues::read(&mut values, &attrs)?;
        let z = logits(b, v.h, v.w)?;
        let mut results = losses(b, &attrs, &v, z)?;
        results.extend(gradients(b, &attrs, &v, z, g_ce, g_kd)?);
        Ok(results)
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
