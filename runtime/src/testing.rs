//! A small random model in a folder, for tests.
#![allow(clippy::unwrap_used)]

use crate::data::testing::TempDir;
use crate::data::{save_word_level, words_of};
use crate::hf::{
    Adapter, AdapterConfig, FileDType, LoraPair, Targets, TensorOut, TensorSpec, write_adapter, write_model,
};
use crate::inference::Served;
use crate::models::write_f32;
use crate::random;
use kfc_graph::DType;
use kfc_ops::model::{ModelConfig, Module, ParameterKind};
use serde_json::{Value, json};
use std::path::Path;

/// `config.json` of a llama with grouped keys.
pub(crate) fn config(vocab: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": false, "torch_dtype": "float32",
    })
}

/// Writes a model with random weights, large enough that predictions differ between tokens.
pub(crate) fn write_random(folder: &Path, vocab: usize, seed: u64) {
    let json = config(vocab);
    let config = ModelConfig::from_json(&json).unwrap();
    let tensors = config.parameters().into_iter().map(|p| {
        let values = match p.kind {
            ParameterKind::Norm => vec![1.0; p.elements()],
            _ => random::normal_tensor(seed, &p.name, p.elements(), 0.3),
        };
        let mut bytes = vec![0; values.len() * 4];
        write_f32(&values, DType::F32, &mut bytes);
        let spec = TensorSpec::new(p.name.clone(), FileDType::F32, p.dims);
        TensorOut::new(spec, move |w| w.write_all(&bytes))
    });
    write_model(folder, &json, tensors.collect(), None).unwrap();
}

/// A folder with a random model and a word-level tokenizer of the words of `texts`.
pub(crate) fn model_for(texts: &[&str], seed: u64) -> (TempDir, Served) {
    let dir = TempDir::new("tiny");
    let words = words_of(texts.iter().copied()).unwrap();
    let folder = dir.path().join("model");
    write_random(&folder, words.len() + 3, seed);
    save_word_level(&folder, &words).unwrap();
    let served = Served::open(&folder, None, None).unwrap();
    (dir, served)
}

/// Writes a random adapter of rank 2 on q and v of the model into `folder`.
pub(crate) fn write_random_adapter(folder: &Path, served: &Served) {
    let targets = ["q_proj", "v_proj"];
    let modules = served.model.config.modules().into_iter().filter(|m| targets.contains(&m.short()));
    let pair = |m: Module| {
        let a = random::normal_tensor(1, &format!("{}A", m.path), 2 * m.in_features, 0.3);
        let b = random::normal_tensor(1, &format!("{}B", m.path), 2 * m.out_features, 0.3);
        (m.path, LoraPair { r: 2, inputs: m.in_features, outputs: m.out_features, a, b })
    };
    let config = AdapterConfig::new(2, 4.0, Targets::Modules(targets.map(String::from).to_vec()));
    std::fs::create_dir_all(folder).unwrap();
    write_adapter(folder, &Adapter { config, modules: modules.map(pair).collect() }).unwrap();
}
