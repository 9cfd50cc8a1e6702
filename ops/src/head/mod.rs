//! `linear_cross_entropy_kd` and its siblings: the output layer fused with the losses on its logits, so that
//! no backend ever stores `[tokens, vocabulary]` values.
//!
//! - `forward`: cross-entropy, distillation loss and the number of correct predictions;
//! - `backward`: gradients of the hidden states and of the output weight;
//! - `fused`: both in one sweep over the vocabulary;
//! - `logits`: the pieces of the decompositions; `divergence`: the distillation losses; `samples`.
//!
//! Labels are already shifted; a negative label (-100) is ignored. Weights of positions (`w_ce`, `w_kd`)
//! carry the normalisation, so the results are plain weighted sums.

mod backward;
mod divergence;
mod forward;
mod fused;
pub(crate) mod logits;
pub(crate) mod samples;

pub use backward::{LINEAR_CROSS_ENTROPY_KD_BWD, LinearCrossEntropyKdBwd};
pub use forward::{LINEAR_CROSS_ENTROPY_KD, LinearCrossEntropyKd};
pub use fused::{LINEAR_CROSS_ENTROPY_KD_FUSED, LinearCrossEntropyKdFused};

use crate::common::{Operands, Values, fail};
use crate::linear::check_weight;
use kfc_graph::{Attrs, Builder, Cost, DType, Result, TensorType, ValueId};

/// What the student learns from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KdKind {
    /// Labels alone.
    None,
    /// The teacher's hidden states and output weight.
    Logits,
    /// A cache of the teacher's largest logits.
    TopK,
}

/// How far the student's distribution p is from the teacher's q.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divergence {
    /// `Σ q (log q − log p)`
    ForwardKl,
    /// `Σ p (log p − log q)`
    ReverseKl,
    /// `½ KL(q‖m) + ½ KL(p‖m)` with `m = (p+q)/2`
    Jsd,
}

impl Divergence {
    /// Every divergence.
    pub const ALL: [Divergence; 3] = [Divergence::ForwardKl, Divergence::ReverseKl, Divergence::Jsd];

    /// Name in attributes and configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Divergence::ForwardKl => "forward_kl",
            Divergence::ReverseKl => "reverse_kl",
            Divergence::Jsd => "jsd",
        }
    }

    /// Inverse of [`Divergence::name`].
    pub fn from_name(name: &str) -> Option<Divergence> {
        Divergence::ALL.into_iter().find(|d| d.name() == name)
    }
}

/// The attributes of the three operations, parsed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadAttrs {
    /// Attribute `kd`.
    pub kd: KdKind,
    /// Attribute `temperature` (1 without distillation).
    pub temperature: f64,
    /// Attribute `divergence` (forward KL without distillation).
    pub divergence: Divergence,
    /// Attribute `need_dw`: whether the output weight is trained.
    pub need_dw: bool,
}

impl HeadAttrs {
    /// Reads the attributes of operation `op`.
    ///
    /// # Errors
    /// If one is missing or has no meaning.
    pub fn parse(op: &str, attrs: &Attrs) -> Result<HeadAttrs> {
        let need_dw = attrs.bool("need_dw")?;
        let kd = match attrs.str("kd")? {
            "none" => {
                return Ok(HeadAttrs {
                    kd: KdKind::None,
                    temperature: 1.0,
                    divergence: Divergence::ForwardKl,
                    need_dw,
                });
            }
            "logits" => KdKind::Logits,
            "topk" => KdKind::TopK,
            other => return fail(op, format!("`kd` must be none, logits or topk, is {other}")),
        };
        let temperature = attrs.f64("temperature")?;
        if !temperature.is_finite() || temperature <= 0.0 {
            return fail(op, format!("`temperature` must be positive, is {temperature}"));
        }
        let name = attrs.str("divergence")?;
        let Some(divergence) = Divergence::from_name(name) else {
            return fail(op, format!("`divergence` must be forward_kl, reverse_kl or jsd, is {name}"));
        };
        Ok(HeadAttrs { kd, temperature, divergence, need_dw })
    }

    /// Whether there is a distillation loss.
    pub fn distils(&self) -> bool {
        self.kd != KdKind::None
    }
}

/// Where the teacher's distribution comes from.
#[derive(Clone, Copy, Debug)]
pub enum Teacher {
    /// Logits `ht·wtᵀ`.
    Logits {
        /// Last hidden states `[B,T,Ht]`.
        ht: ValueId,
        /// Output weight `[Vt,Ht]`, of the same type.
        wt: ValueId,
    },
    /// The largest K of each position; the rest of the vocabulary is one more outcome.
    TopK {
        /// Token ids `i32 [B,T,K]`, distinct within a position; those outside the student's vocabulary join
        /// the rest.
        ids: ValueId,
        /// Logits `f32 [B,T,K]`, not divided by the temperature.
        logits: ValueId,
        /// Log-sum-exp of all the teacher's logits divided by the temperature, `f32 [B,T]`.
        lse: ValueId,
    },
}

/// The distillation part of a [`Head`].
#[derive(Clone, Copy, Debug)]
pub struct Distillation {
    /// The teacher's distribution.
    pub teacher: Teacher,
    /// Weight of each position's divergence, `f32 [B,T]`.
    pub w_kd: ValueId,
    /// Softens both distributions; the loss carries its square.
    pub temperature: f64,
    /// The loss.
    pub divergence: Divergence,
}

/// Arguments of [`head`].
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// Last hidden states after the final norm, `[B,T,H]`.
    pub h: ValueId,
    /// Output weight `[V,H]`, of the same type.
    pub w: ValueId,
    /// Shifted labels `i32 [B,T]`.
    pub labels: ValueId,
    /// Weight of each position's cross-entropy, `f32 [B,T]`.
    pub w_ce: ValueId,
    /// Distillation, if any.
    pub distillation: Option<Distillation>,
}

/// Results of [`head`], each `f32 [1]`.
#[derive(Clone, Copy, Debug)]
pub struct HeadLosses {
    /// `Σ w_ce · (lse − z[label])`.
    pub ce: ValueId,
    /// `Σ w_kd · T² · divergence`.
    pub kd: Option<ValueId>,
    /// Number of positions with `w_ce > 0` whose largest logit is the label's.
    pub correct: ValueId,
}

/// The losses of the output layer.
///
/// # Errors
/// If the operands do not fit.
pub fn head(b: &mut Builder<'_>, a: &Head) -> Result<HeadLosses> {
    let mut inputs = vec![a.h, a.w, a.labels, a.w_ce];
    let attrs = match a.distillation {
        None => Attrs::new().with("kd", "none").with("temperature", 1.0).with("divergence", "forward_kl"),
        Some(d) => {
            let kd = match d.teacher {
                Teacher::Logits { ht, wt } => {
                    inputs.extend([ht, wt]);
                    "logits"
                }
                Teacher::TopK { ids, logits, lse } => {
                    inputs.extend([ids, logits, lse]);
                    "topk"
                }
            };
            inputs.push(d.w_kd);
            Attrs::new()
                .with("kd", kd)
                .with("temperature", d.temperature)
                .with("divergence", d.divergence.name())
        }
    };
    let results = b.composite(&LINEAR_CROSS_ENTROPY_KD, attrs, &inputs)?;
    let mut r = Values::new("linear_cross_entropy_kd", &results);
    Ok(HeadLosses { ce: r.next()?, kd: r.next_if(a.distillation.is_some())?, correct: r.next()? })
}

/// Checks h, w, labels and w_ce; returns the types of h and w.
pub(crate) fn check_student<'a>(
    op: &'static str,
    i: &mut Operands<'a>,
) -> Result<(&'a TensorType, TensorType)> {
    let h = i.float_rank("h", 3)?;
    let v = check_weight(op, i, h)?;
    i.exact("labels", DType::I32, &h.dims[..2])?;
    Ok((h, TensorType::new(DType::F32, [v, h.last()])))
}

/// Checks all operands from h on; returns the types of dh and dw.
fn check_operands(
    op: &'static str,
    i: &mut Operands<'_>,
    attrs: &HeadAttrs,
) -> Result<(TensorType, TensorType)> {
    let (h, dw) = check_student(op, i)?;
    let rows = &h.dims[..2];
    i.exact("w_ce", DType::F32, rows)?;
    match attrs.kd {
        KdKind::None => {}
        KdKind::Logits => {
            let ht = i.float_rank("ht", 3)?;
            if ht.dims[..2] != *rows {
                return fail(op, format!("`ht` must be [{},{},Ht], is {ht}", rows[0], rows[1]));
            }
            check_weight(op, i, ht)?;
            i.exact("w_kd", DType::F32, rows)?;
        }
        KdKind::TopK => {
            let ids = i.ranked("top_ids", DType::I32, 3)?;
            if ids.dims[..2] != *rows {
                return fail(op, format!("`top_ids` must be [{},{},K], is {ids}", rows[0], rows[1]));
            }
            i.exact("top_logits", DType::F32, &ids.dims)?;
            i.exact("top_lse", DType::F32, rows)?;
            i.exact("w_kd", DType::F32, rows)?;
        }
    }
    i.end()?;
    Ok((h.clone(), dw))
}

/// Types of ce, (kd), correct.
fn loss_types(attrs: &HeadAttrs) -> Vec<TensorType> {
    vec![TensorType::scalar(); if attrs.distils() { 3 } else { 2 }]
}

/// Operand values from h on.
struct HeadValues {
    h: ValueId,
    w: ValueId,
    labels: ValueId,
    w_ce: ValueId,
    /// The teacher and w_kd.
    kd: Option<(Teacher, ValueId)>,
}

impl HeadValues {
    fn read(v: &mut Values<'_>, attrs: &HeadAttrs) -> Result<HeadValues> {
        let (h, w, labels, w_ce) = (v.next()?, v.next()?, v.next()?, v.next()?);
        let kd = match attrs.kd {
            KdKind::None => None,
            KdKind::Logits => Some((Teacher::Logits { ht: v.next()?, wt: v.next()? }, v.next()?)),
            KdKind::TopK => {
                let teacher = Teacher::TopK { ids: v.next()?, logits: v.next()?, lse: v.next()? };
                Some((teacher, v.next()?))
            }
        };
        Ok(HeadValues { h, w, labels, w_ce, kd })
    }
}

/// FLOPs of the student's and the teacher's logits and of the pointwise losses; operands from h on.
fn logits_flops(attrs: &HeadAttrs, operands: &[TensorType]) -> u64 {
    let rows = operands[0].rows();
    let gemm = |w: &TensorType| crate::common::gemm_flops(rows, w.dims[0], w.dims[1]);
    let student = gemm(&operands[1]) + 4 * (rows * operands[1].dims[0]) as u64;
    match attrs.kd {
        KdKind::None => student,
        KdKind::Logits => student + gemm(&operands[5]) + 12 * (rows * operands[5].dims[0]) as u64,
        KdKind::TopK => student + 4 * (rows * operands[1].dims[0]) as u64,
    }
}

/// Work of an operation that makes gradients: logits from operands behind those of g_ce and (g_kd), dh and (dw).
fn gradient_cost(name: &str, attrs: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
    let flops = HeadAttrs::parse(name, attrs).map_or(0, |a| {
        let operands = &inputs[if a.distils() { 2 } else { 1 }..];
        logits_flops(&a, operands) + gradient_flops(&a, operands)
    });
    Cost::streaming(flops, inputs, outputs)
}

/// FLOPs of dh and (dw).
fn gradient_flops(attrs: &HeadAttrs, operands: &[TensorType]) -> u64 {
    let one = crate::common::gemm_flops(operands[0].rows(), operands[1].dims[0], operands[1].dims[1]);
    if attrs.need_dw { 2 * one } else { one }
}
