//! All composite operations, in one place.

use crate::{
    accumulate, adamw, attention, embedding, ewc, ewc_delta, feature_alignment, head, kv_append, layer_norm,
    linear,
};
use crate::{lora_linear, penalised_norm, rms_norm, rope, select_rows, sum_squares, swiglu, token_scores};
use kfc_graph::Registry;

/// Every operation of this crate, by name.
pub fn registry() -> Registry {
    Registry::new(&[
        &embedding::EMBEDDING,
        &linear::LINEAR,
        &lora_linear::LORA_LINEAR,
        &lora_linear::LORA_LINEAR_BWD,
        &layer_norm::LAYER_NORM,
        &rms_norm::RMS_NORM,
        &rms_norm::RMS_NORM_BWD,
        &rope::ROPE,
        &attention::ATTENTION,
        &attention::ATTENTION_BWD,
        &swiglu::SWIGLU,
        &swiglu::SWIGLU_BWD,
        &head::LINEAR_CROSS_ENTROPY_KD,
        &head::LINEAR_CROSS_ENTROPY_KD_BWD,
        &head::LINEAR_CROSS_ENTROPY_KD_FUSED,
        &token_scores::LINEAR_TOKEN_SCORES,
        &feature_alignment::FEATURE_ALIGNMENT,
        &ewc::EWC_PENALTY,
        &ewc::EWC_PENALTY_BWD,
        &ewc_delta::EWC_DELTA,
        &ewc_delta::EWC_DELTA_BWD,
        &accumulate::ACCUMULATE,
        &accumulate::ACCUMULATE_SQUARE,
        &sum_squares::SUM_SQUARES,
        &penalised_norm::PENALISED_NORM,
        &adamw::ADAMW,
        &kv_append::KV_APPEND,
        &select_rows::SELECT_ROWS,
    ])
}
