//! Applications of the head for the generic tests: every kind of distillation and divergence, vocabularies of
//! unequal size, ignored labels, positions without weight, cached tokens outside the vocabulary.

use super::{Divergence, KdKind};
use crate::common::{exact, sample, uniform, unit};
use kfc_graph::{Attrs, DType, Sample, SampleInput, TensorType};

const B: usize = 2;
const T: usize = 3;
const H: usize = 5;
const V: usize = 11;
const HT: usize = 4;
const K: usize = 3;

/// Whose distribution has probabilities below the floor of the logarithms.
#[derive(Clone, Copy, PartialEq)]
enum Sharp {
    Neither,
    /// Cached probabilities of nearly 0 and 1 whose sum exceeds 1.
    Teacher,
    /// Two tokens, cached at some positions, have hardly any probability.
    Student,
}

struct Case {
    dtype: DType,
    kd: KdKind,
    divergence: Divergence,
    teacher_vocab: usize,
    sharp: Sharp,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        cases.push(Case {
            dtype,
            kd: KdKind::None,
            divergence: Divergence::ForwardKl,
            teacher_vocab: V,
            sharp: Sharp::Neither,
        });
        for (divergence, teacher_vocab) in [
            (Divergence::ForwardKl, 13),
            (Divergence::ReverseKl, 9),
            (Divergence::Jsd, V),
            (Divergence::Jsd, 7),
        ] {
            cases.push(Case { dtype, kd: KdKind::Logits, divergence, teacher_vocab, sharp: Sharp::Neither });
        }
        for divergence in Divergence::ALL {
            cases.push(Case { dtype, kd: KdKind::TopK, divergence, teacher_vocab: V, sharp: Sharp::Neither });
        }
    }
    for divergence in Divergence::ALL {
        for sharp in [Sharp::Teacher, Sharp::Student] {
            cases.push(Case { dtype: DType::F32, kd: KdKind::TopK, divergence, teacher_vocab: V, sharp });
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
        if self.sharp == Sharp::Student {
            (inputs[0], inputs[1]) = sharp_student();
        }
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
                inputs.push(exact(DType::I32, &[B, T, K], &ids));
                if self.sharp == Sharp::Teacher {
                    let row = [8.0, -60.0, 1.0];
                    inputs.push(exact(DType::F32, &[B, T, K], &row.repeat(B * T)));
                    inputs.push(uniform(DType::F32, &[B, T], 3.15, 3.2));
                } else {
                    inputs.push(unit(DType::F32, &[B, T, K]));
                    inputs.push(uniform(DType::F32, &[B, T], 1.6, 2.5));
                }
            }
        }
        inputs.push(exact(DType::F32, &[B, T], &[1.0, 0.5, 0.25, 0.0, 0.75, 1.25]));
        inputs
    }
}

/// h and w whose logits of tokens 1 and 2 are 60 below the others.
fn sharp_student() -> ((TensorType, SampleInput), (TensorType, SampleInput)) {
    let noise = |i: usize| (i * 7 % 11) as f64 / 11.0 - 0.5;
    let h: Vec<f64> = (0..B * T * H).map(|i| if i % H == 0 { 1.0 } else { noise(i) }).collect();
    let is_rare = |i: usize| i == H || i == 2 * H;
    let w: Vec<f64> = (0..V * H).map(|i| if is_rare(i) { -60.0 } else { noise(i + 3) }).collect();
    (exact(DType::F32, &[B, T, H], &h), exact(DType::F32, &[V, H], &w))
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
