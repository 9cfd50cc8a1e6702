//! Model folders and adapters: what is read, what is refused and how, and bytes that do not depend on the writer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::files::tests::{TestDir, assert_says};
use crate::files::{list_files, read_json};

const Q: &str = "model.layers.0.self_attn.q_proj";
const GATE: &str = "model.layers.1.mlp.experts.0.gate_proj";

fn pair(r: usize, inputs: usize, outputs: usize) -> LoraPair {
    let fill = |n: usize, by: f32| (0..n).map(|i| i as f32 * by - 1.0).collect();
    LoraPair { r, inputs, outputs, a: fill(r * inputs, 0.25), b: fill(r * outputs, -0.5) }
}

fn adapter(targets: Targets) -> Adapter {
    let modules = [(Q.to_string(), pair(2, 3, 4)), (GATE.to_string(), pair(2, 5, 1))];
    Adapter { config: AdapterConfig::new(2, 8.0, targets), modules: BTreeMap::from(modules) }
}

fn written(dir: &TestDir) -> Value {
    write_adapter(dir.root(), &adapter(Targets::Modules(vec!["q_proj".into(), "gate_proj".into()]))).unwrap();
    read_json(&dir.path("adapter_config.json")).unwrap()
}

/// Name and shape of a tensor.
type Shape = (String, Vec<usize>);

/// Writes tensors of the given shapes, filled with one value, as `adapter_model.safetensors`.
fn write_tensors(dir: &TestDir, tensors: &[Shape], value: f32) {
    let data: Vec<Vec<f32>> = tensors.iter().map(|(_, d)| vec![value; d.iter().product()]).collect();
    let out =
        tensors.iter().zip(&data).map(|((name, dims), x)| TensorOut::f32(name.as_str(), dims, x)).collect();
    write_safetensors(&dir.path("adapter_model.safetensors"), out, &BTreeMap::new()).unwrap();
}

#[test]
fn an_adapter_reads_back() {
    let dir = TestDir::new("adapter");
    let mut given = adapter(Targets::Modules(vec!["q_proj".into(), "gate_proj".into()]));
    given.config.rslora = true;
    given.config.dropout = 0.1;
    given.config.alpha = 12.5;
    given.config.layers_to_transform = Some(vec![0, 1]);
    given.config.base_model_name_or_path = Some("models/ä".into());
    write_adapter(dir.root(), &given).unwrap();
    assert_eq!(read_adapter(dir.root()).unwrap(), given);
    assert_eq!(given.config.scale(), 12.5 / 2f64.sqrt());
    assert_eq!(AdapterConfig::new(16, 32.0, Targets::AllLinear).scale(), 2.0);

    let file = WeightFile::open(&dir.path("adapter_model.safetensors")).unwrap();
    let a = file.get("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight").unwrap();
    let b = file.get("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight").unwrap();
    assert_eq!((a.dims, b.dims), (&[2, 3][..], &[4, 2][..]));
    assert_eq!(file.metadata().get("format").map(String::as_str), Some("pt"));
}

#[test]
fn all_linear_is_saved_as_the_names_of_the_modules() {
    let dir = TestDir::new("all-linear");
    write_adapter(dir.root(), &adapter(Targets::AllLinear)).unwrap();
    let config = read_json(&dir.path("adapter_config.json")).unwrap();
    assert_eq!(config["target_modules"], json!(["gate_proj", "q_proj"]));
    assert_eq!(config["lora_alpha"].to_string(), "8");
    let parsed = AdapterConfig::parse(br#"{"r": 4, "target_modules": "all-linear"}"#).unwrap();
    assert_eq!((parsed.targets, parsed.alpha), (Targets::AllLinear, 8.0));
}

#[test]
fn half_precision_adapters_become_f32() {
    let dir = TestDir::new("bf16-adapter");
    written(&dir);
    let bits: Vec<half::bf16> = [1.5f32, -2.0].map(half::bf16::from_f32).to_vec();
    let tensors = vec![
        TensorOut::bytes(peft::name_a(Q), FileDType::BF16, &[2, 1], bytemuck::cast_slice(&bits)),
        TensorOut::f32(peft::name_b(Q), &[1, 2], &[3.0, 4.0]),
    ];
    write_safetensors(&dir.path("adapter_model.safetensors"), tensors, &BTreeMap::new()).unwrap();
    assert_eq!(read_adapter(dir.root()).unwrap().modules[Q].a, [1.5, -2.0]);
}

#[test]
fn features_that_kfc_does_not_do_are_named() {
    let dir = TestDir::new("features");
    let good = written(&dir);
    let cases = [
        ("use_dora", json!(true), "does not do this"),
        ("bias", json!("all"), "trains no biases"),
        ("modules_to_save", json!(["lm_head"]), "[\"lm_head\"]"),
        ("fan_in_fan_out", json!(true), "does not do this"),
        ("rank_pattern", json!({"q_proj": 4}), "q_proj"),
        ("alpha_pattern", json!({"q_proj": 4}), "q_proj"),
        ("lora_bias", json!(true), "does not do this"),
        ("trainable_token_indices", json!([1]), "does not do this"),
        ("some_future_config", json!({"on": 1}), "does not do this"),
        ("init_lora_weights", json!("pissa"), "changes the base weights"),
        ("peft_type", json!("LOHA"), "LORA adapters only"),
        ("target_modules", json!(".*q_proj"), "no regular expressions"),
        ("target_modules", json!([]), "a list of module names"),
        ("target_modules", json!([3]), "a list of names"),
        ("exclude_modules", json!(".*"), "no regular expressions"),
        ("r", json!(0), "positive whole number"),
        ("r", json!(1e300), "positive whole number"),
        ("lora_alpha", json!("x"), "a number"),
        ("lora_dropout", json!(1.0), "below 1"),
        ("layers_to_transform", json!([-1]), "layer number"),
        ("task_type", json!(1), "a text"),
        ("use_rslora", json!("yes"), "true or false"),
    ];
    for (field, value, message) in cases {
        let mut config = good.clone();
        config[field] = value;
        fs::write(dir.path("adapter_config.json"), config.to_string()).unwrap();
        assert_says(read_adapter(dir.root()), &["adapter_config.json", &format!("`{field}`"), message]);
    }
    for (text, message) in [("[]", "no JSON object"), ("{\"r\":", "not valid JSON"), ("{}", "`r` is missing")]
    {
        fs::write(dir.path("adapter_config.json"), text).unwrap();
        assert_says(AdapterConfig::read(dir.root()), &["adapter_config.json", message]);
    }
    fs::remove_file(dir.path("adapter_config.json")).unwrap();
    assert_says(read_adapter(dir.root()), &["has no adapter_config.json"]);
}

#[test]
fn a_config_of_a_current_peft_is_read() {
    let config = json!({
        "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null,
        "base_model_name_or_path": null, "bias": "none", "corda_config": null, "ensure_weight_tying": false,
        "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true,
        "init_lora_weights": true, "kasa_config": null, "layer_replication": null, "layers_pattern": null,
        "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 8, "lora_bias": false, "lora_dropout": 0.0,
        "lora_ga_config": null, "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null,
        "monteclora_config": null, "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 4,
        "rank_pattern": {}, "revision": null, "target_modules": ["q_proj", "up_proj"], "target_parameters": null,
        "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_bdlora": null, "use_dora": false,
        "use_qalora": false, "use_rslora": false, "velora_config": null
    });
    let parsed = AdapterConfig::parse(config.to_string().as_bytes()).unwrap();
    let targets = Targets::Modules(vec!["q_proj".into(), "up_proj".into()]);
    assert_eq!(parsed, AdapterConfig::new(4, 8.0, targets));
}

#[test]
fn damaged_adapters_are_named() {
    let dir = TestDir::new("bad-adapter");
    written(&dir);
    let (a, b) = (peft::name_a(Q), peft::name_b(Q));
    let shape = |a: &String, d: [usize; 2]| (a.clone(), d.to_vec());
    let cases: [(Vec<Shape>, &str); 11] = [
        (vec![shape(&a, [2, 3])], "lora_B.weight`; the adapter is not complete"),
        (vec![shape(&b, [4, 2])], "lora_A.weight`; the adapter is not complete"),
        (vec![shape(&a, [3, 2]), shape(&b, [4, 2])], "has shape [3, 2], [r = 2, inputs] is needed"),
        (vec![shape(&a, [2, 3]), shape(&b, [2, 4])], "has shape [2, 4], [outputs, r = 2] is needed"),
        (vec![shape(&a, [2, 0]), shape(&b, [4, 2])], "has shape [2, 0]"),
        (vec![(a.clone(), vec![6]), shape(&b, [4, 2])], "has shape [6]"),
        (vec![shape(&a.replace("base_model.model.", ""), [2, 3])], "no LoRA weight that kfc knows"),
        (vec![shape(&"base_model.model.x.lora_embedding_A".into(), [2, 3])], "adapter of an embedding"),
        (vec![shape(&"base_model.model.x.lora_magnitude_vector".into(), [2, 3])], "DoRA"),
        (vec![shape(&"base_model.model.lm_head.weight".into(), [2, 3])], "no LoRA weight"),
        (vec![], "the adapter is empty"),
    ];
    for (tensors, message) in cases {
        write_tensors(&dir, &tensors, 1.0);
        assert_says(read_adapter(dir.root()), &["adapter_model.safetensors", message]);
    }
    write_tensors(&dir, &[shape(&a, [2, 3]), shape(&b, [4, 2])], f32::NAN);
    assert_says(read_adapter(dir.root()), &["lora_A.weight", "not finite"]);
    fs::remove_file(dir.path("adapter_model.safetensors")).unwrap();
    assert_says(read_adapter(dir.root()), &["no adapter_model.safetensors"]);
    fs::write(dir.path("adapter_model.bin"), "x").unwrap();
    assert_says(read_adapter(dir.root()), &["adapter_model.bin only"]);

    let mut wrong = adapter(Targets::AllLinear);
    wrong.config.r = 3;
    assert_says(write_adapter(dir.root(), &wrong), &["does not fit rank 3", Q]);
}

fn make_model(dir: &Path, extra: &[&str]) {
    fs::create_dir_all(dir).unwrap();
    for name in extra {
        fs::write(dir.join(name), *name).unwrap();
    }
    let config = json!({"model_type": "llama", "rope_theta": 10000.1, "auto_map": {"AutoConfig": "x.C"}});
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let tensors = vec![TensorOut::f32("w", &[2], &[1.0, 2.0])];
    write_safetensors(&dir.join("model.safetensors"), tensors, &BTreeMap::new()).unwrap();
}

#[test]
fn a_model_folder_opens_and_a_new_one_is_complete() {
    let dir = TestDir::new("model");
    let from = dir.path("base");
    make_model(
        &from,
        &[
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
            "special_tokens_map.json",
            "modeling_deepseek.py",
            "README.md",
            "pytorch_model.bin",
        ],
    );
    let base = ModelFolder::open(&from).unwrap();
    assert_eq!(base.tokenizer.as_deref(), Some(from.join("tokenizer.json").as_path()));
    let weights = base.weights().unwrap();
    let w = weights.require("w", &[2]).unwrap();

    let to = dir.path("out/merged");
    let tensors = || vec![TensorOut::bytes("w", w.dtype, w.dims, w.bytes)];
    write_model(&to, &base.config, tensors(), Some(&from)).unwrap();
    let names: Vec<String> = list_files(&to).unwrap().iter().map(|p| p.display().to_string()).collect();
    assert_eq!(
        names,
        [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "modeling_deepseek.py",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let merged = ModelFolder::open(&to).unwrap();
    assert_eq!(merged.config, base.config);
    assert_eq!(merged.weights().unwrap().require("w", &[2]).unwrap().as_f32().unwrap(), [1.0, 2.0]);

    assert_says(
        write_model(&to, &base.config, tensors(), None),
        &["merged", "not empty", "another output folder"],
    );
    let failing = TensorOut::bytes("w", FileDType::F32, &[2], &[0; 3]);
    assert_says(write_model(&dir.path("out/bad"), &base.config, vec![failing], None), &["`w`"]);
    assert_eq!(fs::read_dir(dir.path("out")).unwrap().count(), 1);
}

#[test]
fn what_is_no_model_folder_is_told() {
    let dir = TestDir::new("no-model");
    assert_says(ModelFolder::open(&dir.path("nowhere")), &["nowhere", "no such folder", "config.json"]);
    assert_says(
        ModelFolder::open(dir.root()),
        &["has no config.json", "model.safetensors", "tokenizer.json"],
    );
    fs::write(dir.path("file"), "").unwrap();
    assert_says(ModelFolder::open(&dir.path("file")), &["is a file"]);
    written(&dir);
    assert_says(ModelFolder::open(dir.root()), &["is an adapter"]);
    fs::write(dir.path("config.json"), "[1]").unwrap();
    assert_says(ModelFolder::open(dir.root()), &["config.json", "no JSON object"]);
    fs::write(dir.path("config.json"), "{\"a\": }").unwrap();
    assert_says(ModelFolder::open(dir.root()), &["config.json", "not valid JSON", "line 1"]);
    fs::write(dir.path("config.json"), "{}").unwrap();
    let folder = ModelFolder::open(dir.root()).unwrap();
    assert_eq!(folder.tokenizer, None);
    assert_says(folder.weights(), &["neither model.safetensors"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_bytes_are_a_config_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = AdapterConfig::parse(&bytes);
    }

    #[test]
    fn any_values_are_a_config_or_an_error(
        field in proptest::sample::select(vec![
            "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "layers_to_transform", "bias",
            "layers_pattern", "exclude_modules", "init_lora_weights", "peft_type", "use_dora"]),
        value in proptest::sample::select(vec![
            json!(null), json!(-1), json!(1e308), json!("x"), json!([]), json!([null]), json!({}), json!({"a": 1}),
            json!(true), json!(u64::MAX)]),
    ) {
        let mut config = json!({"r": 4, "target_modules": ["q_proj"]});
        config[field] = value;
        if let Ok(parsed) = AdapterConfig::parse(config.to_string().as_bytes()) {
            prop_assert!(parsed.r >= 1 && parsed.scale().is_finite());
        }
    }
}
