//! What each operation computes, as plain f64 loops written from its definition and not from its
//! decomposition.

mod attention;
mod head;
mod layers;
mod state;

use kfc_graph::Attrs;
use kfc_graph::interp::Tensor;

/// What the generic tests know of an operation.
pub(crate) struct Reference {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its results.
    pub(crate) run: fn(&Attrs, &[Tensor]) -> Vec<Tensor>,
    /// Operands that its explicit gradient covers (those that a sample has).
    pub(crate) differentiable: &'static [usize],
    /// Leading results that carry a gradient; the others are saved values.
    pub(crate) main_results: usize,
}

/// One entry an operation.
pub(crate) const REFERENCES: &[Reference] = &[
    forward("embedding", layers::embedding, &[0]),
    forward("linear", layers::linear, &[0, 1, 2]),
    forward("lora_linear", layers::lora_linear, &[0, 1, 2, 3, 4]),
    zero("lora_linear_bwd", layers::lora_linear_bwd),
    forward("layer_norm", layers::layer_norm, &[0, 1, 2]),
    forward("rms_norm", layers::rms_norm, &[0, 1]),
    zero("rms_norm_bwd", layers::rms_norm_bwd),
    forward("rope", layers::rope, &[0]),
    forward("attention", attention::forward, &[0, 1, 2]),
    zero("attention_bwd", attention::backward),
    forward("swiglu", layers::swiglu, &[0, 1]),
    zero("swiglu_bwd", layers::swiglu_bwd),
    Reference {
        name: "linear_cross_entropy_kd",
        run: head::forward,
        differentiable: &[0, 1],
        // ce and kd; without distillation the second is the count, which is constant nearly everywhere.
        main_results: 2,
    },
    zero("linear_cross_entropy_kd_bwd", head::backward),
    zero("linear_cross_entropy_kd_fused", head::fused),
    zero("linear_token_scores", head::token_scores),
    forward("feature_alignment", layers::feature_alignment, &[0, 1, 2]),
    forward("ewc_penalty", state::ewc_penalty, &[0]),
    zero("ewc_penalty_bwd", state::ewc_penalty_bwd),
    forward("ewc_delta", state::ewc_delta, &[0, 1]),
    zero("ewc_delta_bwd", state::ewc_delta_bwd),
    zero("accumulate", state::accumulate),
    zero("accumulate_square", state::accumulate_square),
    zero("sum_squares", state::sum_squares),
    zero("penalised_norm", state::penalised_norm),
    zero("adamw", state::adamw),
    zero("kv_append", state::kv_append),
    zero("select_rows", state::select_rows),
];

const fn forward(
    name: &'static str,
    run: fn(&Attrs, &[Tensor]) -> Vec<Tensor>,
    differentiable: &'static [usize],
) -> Reference {
    Reference { name, run, differentiable, main_results: 1 }
}

const fn zero(name: &'static str, run: fn(&Attrs, &[Tensor]) -> Vec<Tensor>) -> Reference {
    Reference { name, run, differentiable: &[], main_results: 0 }
}

/// Number of rows and extent of a row of `t` seen as a matrix.
fn matrix(t: &Tensor) -> (usize, usize) {
    let last = *t.dims.last().unwrap();
    (t.data.len() / last, last)
}

/// `t` with another last extent, filled by row and column.
fn rows_like(t: &Tensor, last: usize, f: impl Fn(usize, usize) -> f64) -> Tensor {
    let mut dims = t.dims.clone();
    *dims.last_mut().unwrap() = last;
    let rows = matrix(t).0;
    let data: Vec<f64> = (0..rows * last).map(|i| f(i / last, i % last)).collect();
    Tensor::new(dims, data)
}

/// A matrix filled by row and column.
fn matrix_of(rows: usize, cols: usize, f: impl Fn(usize, usize) -> f64) -> Tensor {
    let data: Vec<f64> = (0..rows * cols).map(|i| f(i / cols, i % cols)).collect();
    Tensor::new([rows, cols], data)
}

/// Elements of tensors of one shape, one by one.
fn map(t: &Tensor, f: impl Fn(usize) -> f64) -> Tensor {
    Tensor::new(t.dims.clone(), (0..t.data.len()).map(f).collect::<Vec<_>>())
}
