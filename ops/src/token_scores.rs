//! `linear_token_scores`: log-probability of each label and the greedy prediction, without storing logits.
//! For evaluation.

use crate::common::{Operands, gemm_flops, take};
use crate::head::logits::{argmax, logits, negative_log_likelihood};
use crate::head::{check_student, samples};
use kfc_graph::{Attrs, Builder, Cost, DType, OpDef, Result, Sample, TensorType, ValueId, Vjp};

/// Operands: h `[B,T,H]` X, w `[V,H]` X, labels `i32 [B,T]`. Results: logp `f32 [B,T]` (0 where the label is
/// ignored) and greedy `i32 [B,T]`, the index of the largest logit (the first of equals).
pub struct LinearTokenScores;

/// The definition.
pub static LINEAR_TOKEN_SCORES: LinearTokenScores = LinearTokenScores;

const NAME: &str = "linear_token_scores";

/// Results of [`token_scores`].
#[derive(Clone, Copy, Debug)]
pub struct TokenScores {
    /// Log-probability of the label, `f32 [B,T]`.
    pub logp: ValueId,
    /// Most probable token, `i32 [B,T]`.
    pub greedy: ValueId,
}

/// Scores of shifted labels `i32 [B,T]` under hidden states h `[B,T,H]` and output weight w `[V,H]`.
///
/// # Errors
/// If the operands do not fit.
pub fn token_scores(b: &mut Builder<'_>, h: ValueId, w: ValueId, labels: ValueId) -> Result<TokenScores> {
    let r = b.composite(&LINEAR_TOKEN_SCORES, Attrs::new(), &[h, w, labels])?;
    Ok(TokenScores { logp: r[0], greedy: r[1] })
}

impl OpDef for LinearTokenScores {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, _: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let mut i = Operands::new(NAME, inputs);
        let (h, _) = check_student(NAME, &mut i)?;
        i.end()?;
        Ok(vec![TensorType::new(DType::F32, &h.dims[..2]), TensorType::new(DType::I32, &h.dims[..2])])
    }

    fn decompose(&self, b: &mut Builder<'_>, _: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let [h, w, labels] = take(NAME, inputs)?;
        let dims = b.ty(labels).dims.clone();
        let z = logits(b, h, w)?;
        let nll = negative_log_likelihood(b, z, labels)?;
        let logp = b.neg(nll)?;
        let greedy = argmax(b, z)?;
        Ok(vec![b.reshape(logp, &dims)?, b.reshape(greedy, &dims)?])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Zero
    }

    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let (rows, v, h) = (inputs[0].rows(), inputs[1].dims[0], inputs[1].dims[1]);
        Cost::streaming(gemm_flops(rows, v, h) + 4 * (rows * v) as u64, inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        [DType::F32, DType::Bf16, DType::F16]
            .map(|x| Sample { attrs: Attrs::new(), inputs: samples::student(x) })
            .into()
    }
}
