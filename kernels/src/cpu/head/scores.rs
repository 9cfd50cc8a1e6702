//! `linear_token_scores`: log-probabilities of labels and greedy predictions, chunk by chunk.

use super::{Projection, chunk_rows, rows};
use crate::cpu::float::Dst;
use crate::cpu::gemm::{Job, Mat, Product};
use crate::cpu::{Call, Kernel, par};
use kfc_graph::TensorType;

/// `linear_token_scores`.
pub(crate) struct TokenScores {
    tokens: usize,
    p: Projection,
    chunk: usize,
}

impl TokenScores {
    pub(crate) fn new(h: &TensorType, w: &TensorType) -> TokenScores {
        let p = Projection::new(h, w);
        TokenScores { tokens: h.rows(), p, chunk: chunk_rows(h.rows(), p.vocab) }
    }
}

impl Kernel for TokenScores {
    unsafe fn run(&self, call: &Call<'_>) {
        let p = self.p;
        // SAFETY: by contract of `run`; the workspace has the size asked for; rows are disjoint.
        unsafe {
            let labels = call.input::<i32>(2);
            let logp = par::Shared::new(call.output::<f32>(0));
            let greedy = par::Shared::new(call.output::<i32>(1));
            for start in (0..self.tokens).step_by(self.chunk) {
                let n = self.chunk.min(self.tokens - start);
                let z = call.work::<f32>(0, n * p.vocab);
                let h = Mat::rows(call.src(0, p.x).offset(start * p.width), p.width);
                let w = Mat::rows(call.src(1, p.w), p.width);
                Job::new(n, p.vocab, &[Product::new(h, w.t(), p.width)], Dst::floats(z)).run();
                let z = &*z;
                par::ranges(n, par::rows_grain(2 * p.vocab), |range| {
                    for r in range {
                        let label = usize::try_from(labels[start + r]).ok().filter(|l| *l < p.vocab);
                        let z = &z[r * p.vocab..(r + 1) * p.vocab];
                        let ce = rows::cross_entropy(z, label);
                        logp.slice(start + r, 1)[0] = -ce.loss as f32;
                        greedy.slice(start + r, 1)[0] = ce.best(z) as i32;
                    }
                });
            }
        }
    }

    fn workspace_bytes(&self) -> usize {
        self.chunk * self.p.vocab * size_of::<f32>()
    }
}
