//! Applications of the head for the generic tests: every kind of distillation and divergence, vocabularies of unequal
//! size, ignored labels, positions without weight, cached tokens outside the vocabulary.

use super::{Divergence, KdKind};
use crate::common::{exact, sample, uniform, unit};
use kfc_graph::{Attrs, DType, Sample, SampleInput, TensorType};

const B: usize = 2;
const T: usize = 3;
const H: usize = 5;
const V: usize = 11;
const HT: usize = 4;
const K: usize = 3;

struct Case {
    dtype: DType,
    kd: KdKind,
    divergence: Divergence,
    teacher_vocab: usize,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        cases.push(Case { dtype, kd: KdKind::None, divergence: Divergence::ForwardKl, teacher_vocab: V });
        for (divergence, teacher_vocab) in [
            (Divergence::ForwardKl, 13),
            (Divergence::ReverseKl, 9),
            (Divergence::Jsd, V),
            (Divergence::Jsd, 7),
        ] {
            cases.push(Case { dtype, kd: KdKind::Logits, divergence, teacher_vocab });
        }
        for divergence in Divergence::ALL {
            cases.push(Case { dtype, kd: KdKind::TopK, divergence, teacher_vocab: V });
        }
    }
    cases
}

impl Case {
    fn attrs(&self) -> Attrs {
        let kd = match self.kd {
            KdKind::None => "none",
            KdKind::Logits => "logits",
            KdKind::TopK => "topk",
        };
        Attrs::new().with("kd", kd).with("temperature", 2.5).with("divergence", self.divergence.name())
    }

    fn operands(&self) -> Vec<(TensorType, SampleInput)> {
        let mut inputs = student(self.dtype);
        inputs.push(exact(DType::F32, &[B, T], &[0.5, 1.0, 0.0, 0.25, 0.75, 1.5]));
        match self.kd {
            KdKind::None => return inputs,
            KdKind::Logits => {
                // The teacher may run in another type.
                let teacher = if self.dtype == DType::F16 { DType::F32 } else { self.dtype };
                inputs.extend([
                    unit(teacher, &[B, T, HT]),
                    uniform(teacher, &[self.teacher_vocab, HT], -2.0, 2.0),
                ]);
            }
            KdKind::TopK => {
                let ids = [3., 0., 10., 1., 11., 2., 9., 4., -1., 5., 6., 7., 8., 2., 0., 30., 10., 3.];
                inputs.extend([
                    exact(DType::I32, &[B, T, K], &ids),
                    unit(DType::F32, &[B, T, K]),
                    uniform(DType::F32, &[B, T], 1.6, 2.5),
                ]);
            }
        }
        inputs.push(exact(DType::F32, &[B, T], &[1.0, 0.5, 0.25, 0.0, 0.75, 1.25]));
        inputs
    }
}

/// h, w and labels.
pub(crate) fn student(dtype: DType) -> Vec<(TensorType, SampleInput)> {
    vec![
        unit(dtype, &[B, T, H]),
        uniform(dtype, &[V, H], -2.0, 2.0),
        exact(DType::I32, &[B, T], &[3.0, -100.0, 0.0, 10.0, 5.0, -100.0]),
    ]
}

pub(super) fn forward() -> Vec<Sample> {
    cases().iter().map(|c| sample(c.attrs(), c.operands())).collect()
}

pub(super) fn backward() -> Vec<Sample> {
    cases()
        .iter()
        .enumerate()
        .map(|(i, c)| {
            let scalars = if c.kd == KdKind::None { 1 } else { 2 };
            let mut inputs = vec![unit(DType::F32, &[1]); scalars];
            inputs.extend(c.operands());
            sample(c.attrs().with("need_dw", i % 2 == 0), inputs)
        })
        .collect()
}
