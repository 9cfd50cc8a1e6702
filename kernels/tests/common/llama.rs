//! Training graphs of llama-like models.

use kfc_graph::{DType, Graph};
use kfc_ops::head::Divergence;
use kfc_ops::model::{LoraSpec, ModelConfig, transformer};
use kfc_ops::step::train::{DistillSpec, Embedded, FeatureSpec, TeacherSpec, TrainSpec, train_graph};

/// Shape of a model.
#[derive(Clone, Copy)]
pub struct Shape {
    pub layers: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub vocab: usize,
}

/// Three layers that run in no time.
pub const TINY: Shape = Shape { layers: 3, hidden: 16, intermediate: 24, heads: 4, kv_heads: 2, vocab: 50 };

/// Llama 3 8B with another number of layers.
pub fn large(layers: usize) -> Shape {
    Shape { layers, hidden: 4096, intermediate: 14336, heads: 32, kv_heads: 8, vocab: 128_256 }
}

pub fn config(s: Shape) -> ModelConfig {
    ModelConfig::from_json(&serde_json::json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
        "vocab_size": s.vocab, "hidden_size": s.hidden, "num_hidden_layers": s.layers,
        "intermediate_size": s.intermediate, "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "rope_theta": 10000.0, "tie_word_embeddings": false,
    }))
    .unwrap()
}

/// What is trained beside the shape.
#[derive(Clone, Copy)]
pub struct Job {
    pub dtype: DType,
    pub lora: bool,
    pub teacher: bool,
    pub batch: usize,
    pub seq: usize,
}

/// The micro-batch graph: adapters with dropout on every linear layer (or full fine-tuning), optionally a teacher of the
/// same shape with an aligned feature.
pub fn train(shape: Shape, job: Job) -> Graph {
    let student = config(shape);
    let lora = LoraSpec { r: 4.min(shape.hidden), scale: 2.0, dropout: 0.1, modules: student.modules() };
    let lora = LoraSpec { r: if shape.hidden > 1000 { 16 } else { 4 }, ..lora };
    let distill = job.teacher.then(|| DistillSpec {
        alpha: 0.7,
        temperature: 2.0,
        divergence: Divergence::ForwardKl,
        teacher: TeacherSpec::Model(&student, job.dtype),
        features: vec![FeatureSpec { student_layer: 2, teacher_layer: 2, weight: 0.1 }],
    });
    let spec = TrainSpec {
        student: &student,
        dtype: job.dtype,
        lora: job.lora.then_some(&lora),
        batch: job.batch,
        seq: job.seq,
        distill,
        embedded: Embedded::default(),
    };
    let graph = train_graph(&spec).unwrap().graph;
    assert!(!job.lora || graph.input(&transformer::lora_input("model.layers.0.mlp.up_proj", "A")).is_some());
    graph
}

/// Contents of the inputs, as numbers: weights small, ids and positions in range.
pub fn contents(graph: &Graph, shape: Shape, seq: usize) -> Vec<Vec<f64>> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1u64 << 24) as f64
    };
    let fill = |input: &kfc_graph::Input| {
        let n = graph.ty(input.value).elements();
        let mut values =
            |f: &mut dyn FnMut(usize, f64) -> f64| (0..n).map(|i| f(i, next())).collect::<Vec<f64>>();
        match input.name.as_str() {
            "tokens" | "labels" => values(&mut |_, u| (u * shape.vocab as f64).floor()),
            "positions" => values(&mut |i, _| (i % seq) as f64),
            "segments" => vec![0.0; n],
            "seed" => vec![12345.0, -77.0],
            "loss_scale" => vec![64.0],
            name if name.starts_with("w_") => vec![1.0 / n as f64; n],
            name if name.contains("norm") => values(&mut |_, u| 0.5 + u),
            _ => values(&mut |_, u| u - 0.5),
        }
    };
    graph.inputs().iter().map(fill).collect()
}
