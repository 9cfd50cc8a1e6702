//! Why a kernel is what it is, in a sentence.

use kfc_runtime::profile::Kind;

/// What an operation does in one pass that would otherwise be several, or why it is not fused.
pub(crate) fn fused(kind: &Kind) -> &'static str {
    if kind.prim {
        return "primitive: no composite with a kernel of its own covers it here";
    }
    match kind.op.as_str() {
        "linear_cross_entropy_kd_fused" => {
            "output layer, cross-entropy, divergence and their gradients chunk by chunk: logits of all tokens never exist"
        }
        "linear_cross_entropy_kd" | "linear_cross_entropy_kd_bwd" => {
            "output layer and losses chunk by chunk: logits of all tokens never exist"
        }
        "linear_token_scores" => "output layer and log-likelihoods chunk by chunk",
        "lora_linear" => "frozen product, adapter, scale and bias in one kernel; only the small x·Aᵀ is kept",
        "lora_linear_bwd" => {
            "gradients of A, B and the input share their reads of dy; no gradient of the frozen weight"
        }
        "linear" => "product and bias in one kernel",
        "fused" => "a product and what is done to its result before it is written; its body says what",
        "attention" => "scores, mask, softmax and values tile by tile: scores of all pairs never exist",
        "attention_bwd" => "scores are made again tile by tile from the saved log-sum-exp",
        "rms_norm" | "rms_norm_bwd" => "sum of squares, scale and the residual in one pass",
        "rope" => "rotation in one pass over both halves",
        "swiglu" | "swiglu_bwd" => "sigmoid and both products in one pass",
        "feature_alignment" => "projected difference and its gradient in one pass",
        "ewc_penalty" | "ewc_penalty_bwd" => "penalty and gradient in one read of θ, θ* and F",
        "ewc_delta" | "ewc_delta_bwd" => "the merged change s·B·A is made tile by tile and never stored",
        "accumulate" | "accumulate_square" => "added where the accumulator lies",
        "sum_squares" => "one ordered pass over all gradients",
        "penalised_norm" => {
            "penalty and gradient norm in one read of g, θ, θ* and F; no sum of gradients is stored"
        }
        "adamw" => "penalty, moments, decay and step of all parameters in one read and write of each",
        "embedding" => "copies the rows that are asked for",
        _ => "one kernel for the whole composite",
    }
}
