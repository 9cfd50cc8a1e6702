//! Forward, losses and backward of one micro-batch; gradients are added to accumulators.
//!
//! Data: `tokens`, `positions`, `segments`, `labels` `i32 [B,T]` (labels already shifted, -100 is ignored); `w_ce`,
//! `w_kd`, `w_feat` `f32 [B,T]` (what each position weighs in its mean over the whole step); `seed` `i32[2]`;
//! `loss_scale` `f32[1]`; `embedded.student`, `embedded.teacher` `[B,T,H]` where tables are not among the weights
//! ([`Embedded`]); with a teacher cache `top_ids` `i32 [B,T,K]`, `top_logits` `f32 [B,T,K]`, `top_lse` `f32 [B,T]`.
//!
//! Outputs: `ce`, `kd`, `correct`, `feat.N`, each `f32[1]`, this micro-batch's share; and the updated `grad.P`.

use super::{TrainedParam, batch_inputs, data};
use crate::model::transformer::{Transformer, lora_input};
use crate::model::{LoraSpec, ModelConfig, ParameterKind};
use crate::{accumulate, feature_alignment, head};
use kfc_graph::autodiff;
use kfc_graph::{Builder, DType, Graph, GraphError, InputKind, Phase, Result, TensorType, ValueId};

/// What to train.
#[derive(Clone, Debug)]
pub struct TrainSpec<'a> {
    /// The student.
    pub student: &'a ModelConfig,
    /// Element type of the student's weights and activations.
    pub dtype: DType,
    /// Adapters; `None` trains every weight of the student.
    pub lora: Option<&'a LoraSpec>,
    /// Rows.
    pub batch: usize,
    /// Tokens a row.
    pub seq: usize,
    /// Distillation.
    pub distill: Option<DistillSpec<'a>>,
    /// Whose tokens come embedded.
    pub embedded: Embedded,
}

/// Whose embedded tokens are data. Their tables are no weights of the graph then: whoever runs it looks rows up. Not for a
/// table that is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Embedded {
    /// The student's.
    pub student: bool,
    /// The teacher's.
    pub teacher: bool,
}

/// The teacher's part in the loss.
#[derive(Clone, Debug)]
pub struct DistillSpec<'a> {
    /// Weight of the divergence; cross-entropy weighs `1 - alpha`.
    pub alpha: f64,
    /// Softmax temperature.
    pub temperature: f64,
    /// How far the student is from the teacher.
    pub divergence: head::Divergence,
    /// Where the teacher's distribution comes from.
    pub teacher: TeacherSpec<'a>,
    /// Aligned hidden states.
    pub features: Vec<FeatureSpec>,
}

/// A teacher.
#[derive(Clone, Debug)]
pub enum TeacherSpec<'a> {
    /// Runs beside the student.
    Model(&'a ModelConfig, DType),
    /// Its `k` likeliest tokens, computed before.
    TopK(usize),
}

/// One aligned pair of hidden states.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeatureSpec {
    /// Student layer, from 1.
    pub student_layer: usize,
    /// Teacher layer, from 1.
    pub teacher_layer: usize,
    /// Weight in the loss.
    pub weight: f64,
}

/// The graph and what it trains.
#[derive(Clone, Debug)]
pub struct TrainGraph {
    /// Forward and backward.
    pub graph: Graph,
    /// Trained parameters, in order of gradient accumulators.
    pub params: Vec<TrainedParam>,
}

/// Parameters that a job trains, in order: adapters (or all weights), then projectors.
pub fn trained_params(spec: &TrainSpec<'_>) -> Vec<TrainedParam> {
    let mut params: Vec<TrainedParam> = match spec.lora {
        Some(lora) => lora
            .modules
            .iter()
            .flat_map(|m| {
                let param = |side, dims| TrainedParam { name: lora_input(&m.path, side), dims, decay: true };
                [param("A", vec![lora.r, m.in_features]), param("B", vec![m.out_features, lora.r])]
            })
            .collect(),
        None => spec
            .student
            .parameters()
            .into_iter()
            .map(|p| TrainedParam {
                name: format!("student.{}", p.name),
                decay: !matches!(p.kind, ParameterKind::Norm | ParameterKind::Bias),
                dims: p.dims,
            })
            .collect(),
    };
    if let Some(DistillSpec { teacher: TeacherSpec::Model(teacher, _), features, .. }) = &spec.distill {
        params.extend((0..features.len()).map(|i| TrainedParam {
            name: projector_input(i),
            dims: vec![teacher.hidden_size, spec.student.hidden_size],
            decay: true,
        }));
    }
    params
}

/// Name of the graph input of the `i`-th feature projector.
pub fn projector_input(i: usize) -> String {
    format!("projector.{i}.weight")
}

/// Builds the micro-batch graph.
///
/// # Errors
/// If shapes contradict each other, or a feature layer does not exist.
pub fn train_graph(spec: &TrainSpec<'_>) -> Result<TrainGraph> {
    let mut graph = Graph::new("train");
    let mut b = Builder::new(&mut graph);
    let batch = batch_inputs(&mut b, spec.batch, spec.seq);
    let labels = data(&mut b, "labels", DType::I32, &[spec.batch, spec.seq]);
    let w_ce = data(&mut b, "w_ce", DType::F32, &[spec.batch, spec.seq]);
    let loss_scale = data(&mut b, "loss_scale", DType::F32, &[1]);
    let dropout = spec.lora.is_some_and(|l| l.dropout > 0.0);
    let seed = dropout.then(|| data(&mut b, "seed", DType::I32, &[2]));

    b.set_scope("loss");
    let alpha = spec.distill.as_ref().map_or(0.0, |d| d.alpha);
    let g_ce = b.scale(loss_scale, 1.0 - alpha)?;
    let g_kd = b.scale(loss_scale, alpha)?;

    let mut student = Transformer::new(spec.student, "student.", spec.dtype, spec.seq)
        .with_lora(spec.lora, seed)
        .with_embedded(spec.embedded.student);
    let hidden = student.hidden(&mut b, batch, None)?;
    let w = student.head(&mut b)?;
    let mut projectors = Vec::new();
    let mut seeds = Vec::new();
    let mut outputs: Vec<(String, ValueId)> = Vec::new();
    let distillation = match &spec.distill {
        None => None,
        Some(d) => {
            let w_kd = data(&mut b, "w_kd", DType::F32, &[spec.batch, spec.seq]);
            let teacher = match d.teacher {
                TeacherSpec::Model(config, dtype) => {
                    let mut teacher = Transformer::new(config, "teacher.", dtype, spec.seq)
                        .with_embedded(spec.embedded.teacher);
                    let t = teacher.hidden(&mut b, batch, None)?;
                    let wt = teacher.head(&mut b)?;
                    for (i, f) in d.features.iter().enumerate() {
                        let feature = align(&mut b, spec, d, i, f, &hidden.layers, &t.layers)?;
                        projectors.push(feature.projector);
                        seeds.push((feature.mse, b.scale(loss_scale, f.weight)?));
                        outputs.push((format!("feat.{i}"), feature.mse));
                    }
                    head::Teacher::Logits { ht: t.last, wt }
                }
                TeacherSpec::TopK(k) => {
                    if !d.features.is_empty() {
                        let m = "features need the teacher model, a cache holds only its logits";
                        return Err(GraphError::ty("feature_alignment", m));
                    }
                    let dims = [spec.batch, spec.seq, k];
                    head::Teacher::TopK {
                        ids: data(&mut b, "top_ids", DType::I32, &dims),
                        logits: data(&mut b, "top_logits", DType::F32, &dims),
                        lse: data(&mut b, "top_lse", DType::F32, &dims[..2]),
                    }
                }
            };
            Some(head::Distillation { teacher, w_kd, temperature: d.temperature, divergence: d.divergence })
        }
    };
    b.set_scope("loss");
    let losses = head::head(&mut b, &head::Head { h: hidden.last, w, labels, w_ce, distillation })?;
    outputs.push(("ce".into(), losses.ce));
    outputs.push(("correct".into(), losses.correct));
    seeds.push((losses.ce, g_ce));
    if let Some(kd) = losses.kd {
        outputs.push(("kd".into(), kd));
        seeds.push((kd, g_kd));
    }

    let params = trained_params(spec);
    let wrt: Vec<ValueId> = params
        .iter()
        .map(|p| match student.inputs().get(&p.name) {
            Some(&v) => Ok(v),
            None => projectors
                .iter()
                .enumerate()
                .find(|(i, _)| projector_input(*i) == p.name)
                .map(|(_, &v)| v)
                .ok_or_else(|| GraphError::Gradient(format!("`{}` is not part of the forward pass", p.name))),
        })
        .collect::<Result<_>>()?;
    let grads = autodiff::backward(&mut graph, &seeds, &wrt)?;

    let mut b = Builder::new(&mut graph);
    b.phase = Phase::Backward;
    b.set_scope("accumulate");
    for (p, g) in params.iter().zip(grads) {
        // Without a gradient (a layer behind the last one used) the accumulator stays zero.
        let Some(g) = g else { continue };
        let name = format!("grad.{}", p.name);
        let ty = TensorType::new(DType::F32, p.dims.clone());
        let acc = b.graph().add_input(name.clone(), InputKind::State, ty);
        let sum = accumulate::accumulate(&mut b, acc, g)?;
        b.graph().add_output(name, sum, Some(acc));
    }
    for (name, value) in outputs {
        graph.add_output(name, value, None);
    }
    Ok(TrainGraph { graph, params })
}

struct Feature {
    projector: ValueId,
    mse: ValueId,
}

fn align(
    b: &mut Builder<'_>,
    spec: &TrainSpec<'_>,
    distill: &DistillSpec<'_>,
    index: usize,
    f: &FeatureSpec,
    student: &[ValueId],
    teacher: &[ValueId],
) -> Result<Feature> {
    let layer = |side: &str, layers: &[ValueId], n: usize| {
        layers.get(n.wrapping_sub(1)).copied().ok_or_else(|| {
            let m = format!("{side}_layer {n} of a {side} with layers 1 to {}", layers.len());
            GraphError::ty("feature_alignment", m)
        })
    };
    let hs = layer("student", student, f.student_layer)?;
    let ht = layer("teacher", teacher, f.teacher_layer)?;
    let TeacherSpec::Model(config, _) = distill.teacher else {
        return Err(GraphError::ty("feature_alignment", "needs a teacher model"));
    };
    b.set_scope("features");
    let dims = [spec.batch, spec.seq];
    let existing = b.graph().input("w_feat").map(|i| i.value);
    let weight = existing.unwrap_or_else(|| data(b, "w_feat", DType::F32, &dims));
    let ty = TensorType::new(DType::F32, [config.hidden_size, spec.student.hidden_size]);
    let projector = b.graph().add_input(projector_input(index), InputKind::Weight, ty);
    let mse = feature_alignment::feature_alignment(b, hs, projector, ht, weight)?;
    Ok(Feature { projector, mse })
}
