//! `linear_cross_entropy_kd`: the losses.

use super::LINEAR_CROSS_ENTROPY_KD_BWD;
use super::logits::{logits, losses};
use super::{HeadAttrs, HeadValues, check_operands, logits_flops, loss_types, samples};
use crate::common::{Operands, Values, check_vjp, grad};
use kfc_graph::{Attrs, Builder, Cost, DType, OpDef, Result, Sample, TensorType, ValueId, Vjp, VjpArgs};

/// Attributes `kd` (`none`, `logits`, `topk`), `temperature`, `divergence`. Operands: h `[B,T,H]` X, w
/// `[V,H]` X, labels `i32 [B,T]`, w_ce `f32 [B,T]`; for `logits` ht `[B,T,Ht]`, wt `[Vt,Ht]`, w_kd `f32
/// [B,T]`; for `topk` top_ids `i32 [B,T,K]`, top_logits `f32 [B,T,K]`, top_lse `f32 [B,T]`, w_kd `f32 [B,T]`.
/// Results, each `f32 [1]`: ce, (kd), correct. Only h and w have gradients.
pub struct LinearCrossEntropyKd;

/// The definition.
pub static LINEAR_CROSS_ENTROPY_KD: LinearCrossEntropyKd = LinearCrossEntropyKd;

const NAME: &str = "linear_cross_entropy_kd";

impl OpDef for LinearCrossEntropyKd {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, attrs: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let attrs = HeadAttrs::parse(NAME, attrs)?;
        check_operands(NAME, &mut Operands::new(NAME, inputs), &attrs)?;
        Ok(loss_types(&attrs))
    }

    fn decompose(&self, b: &mut Builder<'_>, attrs: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let attrs = HeadAttrs::parse(NAME, attrs)?;
        let v = HeadValues::read(&mut Values::new(NAME, inputs), &attrs)?;
        let z = logits(b, v.h, v.w)?;
        losses(b, &attrs, &v, z)
    }

    fn vjp(&self) -> Vjp {
        Vjp::Explicit(vjp)
    }

    fn cost(&self, attrs: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let flops = HeadAttrs::parse(NAME, attrs).map_or(0, |a| logits_flops(&a, inputs));
        Cost::streaming(flops, inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        samples::forward()
    }
}

fn vjp(b: &mut Builder<'_>, args: &VjpArgs<'_>) -> Result<Vec<Option<ValueId>>> {
    let parsed = HeadAttrs::parse(NAME, args.attrs)?;
    // `correct` is a count, constant almost everywhere: a gradient of it contributes nothing.
    check_vjp(NAME, args, &[0, 1], 3)?;
    let mut inputs = vec![grad(b, args, 0, DType::F32)?];
    if parsed.distils() {
        inputs.push(grad(b, args, 1, DType::F32)?);
    }
    inputs.extend(args.inputs);
    let attrs = args.attrs.clone().with("need_dw", args.needs[1]);
    let results = b.composite(&LINEAR_CROSS_ENTROPY_KD_BWD, attrs, &inputs)?;
    let mut grads = vec![None; args.inputs.len()];
    grads[0] = Some(results[0]).filter(|_| args.needs[0]);
    grads[1] = results.get(1).copied();
    Ok(grads)
}
