//! Which composites have a kernel of their own, by name.

use crate::cpu::head::{Head, Mode, TokenScores};
use crate::cpu::{Kernel, KernelError};
use crate::cpu::{attention, ewc, feature, index, layer_norm, lora, matmul, norm, optim, rope, sums, swiglu};
use kfc_graph::{Composite, TensorType};

/// Builds the kernel of a composite; `None` if it has none.
pub(super) fn build(
    c: &Composite,
    i: &[TensorType],
    o: &[TensorType],
) -> Option<Result<Box<dyn Kernel>, KernelError>> {
    let (name, a) = (c.def.name(), &c.attrs);
    Some(match name {
        "embedding" => Ok(Box::new(index::Gather::new(&i[0], &i[1]))),
        "linear" => Ok(Box::new(matmul::Linear::new(i, &o[0]))),
        "lora_linear" => boxed(lora::LoraLinear::new(a, i)),
        "lora_linear_bwd" => boxed(lora::LoraLinearBwd::new(a, i)),
        "layer_norm" => {
            boxed(a.f64("eps").map_err(Into::into).map(|eps| layer_norm::LayerNorm::new(&i[0], eps)))
        }
        "rms_norm" => {
            boxed(a.f64("eps").map_err(Into::into).map(|eps| norm::RmsNorm::new(&i[0], &i[1], eps)))
        }
        "rms_norm_bwd" => {
            boxed(a.bool("need_dw").map_err(Into::into).map(|dw| norm::RmsNormBwd::new(&i[1], &i[2], dw)))
        }
        "rope" => boxed(rope::Rope::new(a, i)),
        "attention" => boxed(attention::Attention::new(a, i)),
        "attention_bwd" => boxed(attention::AttentionBwd::new(a, i)),
        "swiglu" => Ok(Box::new(swiglu::Swiglu::new(&i[0]))),
        "swiglu_bwd" => Ok(Box::new(swiglu::SwigluBwd::new(&i[0]))),
        "linear_cross_entropy_kd" => boxed(Head::new(name, Mode::Forward, a, i)),
        "linear_cross_entropy_kd_bwd" => boxed(Head::new(name, Mode::Backward, a, i)),
        "linear_cross_entropy_kd_fused" => boxed(Head::new(name, Mode::Fused, a, i)),
        "linear_token_scores" => Ok(Box::new(TokenScores::new(&i[0], &i[1]))),
        "feature_alignment" => Ok(Box::new(feature::FeatureAlignment::new(i))),
        "ewc_penalty" => Ok(Box::new(sums::EwcPenalty::new(i))),
        "ewc_penalty_bwd" => Ok(Box::new(sums::EwcPenaltyBwd::new(i))),
        "ewc_delta" => boxed(ewc::EwcDelta::new(a, i)),
        "ewc_delta_bwd" => boxed(ewc::EwcDeltaBwd::new(a, i)),
        "accumulate" => Ok(Box::new(index::Accumulate::new(&i[1], false))),
        "accumulate_square" => Ok(Box::new(index::Accumulate::new(&i[1], true))),
        "sum_squares" => Ok(Box::new(sums::SumSquares::new(i))),
        "penalised_norm" => Ok(Box::new(sums::PenalisedNorm::new(i))),
        "adamw" => boxed(optim::AdamW::new(a, i)),
        "kv_append" => Ok(Box::new(index::KvAppend::new(&i[0], &i[1]))),
        "select_rows" => Ok(Box::new(index::SelectRows::new(&i[0]))),
        _ => return None,
    })
}

/// Names that [`build`] knows.
pub(super) const NAMES: [&str; 28] = [
    "accumulate",
    "accumulate_square",
    "adamw",
    "attention",
    "attention_bwd",
    "embedding",
    "ewc_delta",
    "ewc_delta_bwd",
    "ewc_penalty",
    "ewc_penalty_bwd",
    "feature_alignment",
    "kv_append",
    "layer_norm",
    "linear",
    "linear_cross_entropy_kd",
    "linear_cross_entropy_kd_bwd",
    "linear_cross_entropy_kd_fused",
    "linear_token_scores",
    "lora_linear",
    "lora_linear_bwd",
    "penalised_norm",
    "rms_norm",
    "rms_norm_bwd",
    "rope",
    "select_rows",
    "sum_squares",
    "swiglu",
    "swiglu_bwd",
];

fn boxed<K: Kernel + 'static>(kernel: Result<K, KernelError>) -> Result<Box<dyn Kernel>, KernelError> {
    kernel.map(|k| Box::new(k) as Box<dyn Kernel>)
}
