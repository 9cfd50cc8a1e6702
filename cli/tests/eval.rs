//! `kfc eval` and `kfc generate` from outside, on a small random model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use kfc_ops::model::{ModelConfig, ParameterKind};
use kfc_runtime::data::{save_word_level, words_of};
use kfc_runtime::hf::{
    Adapter, AdapterConfig, FileDType, LoraPair, Targets, TensorOut, TensorSpec, write_adapter, write_model,
};
use kfc_runtime::random;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn kfc(arguments: &[&str]) -> Ended {
    let output = Command::new(env!("CARGO_BIN_EXE_kfc")).args(arguments).output().unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn fails(code: i32, arguments: &[&str]) -> String {
    let ended = kfc(arguments);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(code), ""), "{arguments:?}: {}", ended.stderr);
    assert!(ended.stderr.contains("error: ") && !ended.stderr.contains("internal"), "{}", ended.stderr);
    ended.stderr
}

/// A folder with a model of random weights in `model`, and helpers to put more into it.
struct World(PathBuf);

impl World {
    fn new(name: &str) -> World {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let words = words_of(["a b c d e f g h i j k l m n o p . ? : Question Answer A B"]).unwrap();
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": words.len() + 3,
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 48, "max_position_embeddings": 128, "tie_word_embeddings": true,
            "torch_dtype": "float32",
        });
        let tensors = ModelConfig::from_json(&config).unwrap().parameters().into_iter().map(|p| {
            let values = match p.kind {
                ParameterKind::Norm => vec![1.0; p.elements()],
                _ => random::normal_tensor(1, &p.name, p.elements(), 0.3),
            };
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let spec = TensorSpec::new(p.name, FileDType::F32, p.dims);
            TensorOut::new(spec, move |w| w.write_all(&bytes))
        });
        write_model(&folder.join("model"), &config, tensors.collect(), None).unwrap();
        save_word_level(&folder.join("model"), &words).unwrap();
        World(folder)
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn model(&self) -> String {
        self.0.join("model").to_str().unwrap().to_owned()
    }

    /// An adapter of rank 1 on the first q_proj, for a model of `inputs` hidden units.
    fn adapter(&self, inputs: usize) -> String {
        let folder = self.0.join(format!("adapter-{inputs}"));
        std::fs::create_dir_all(&folder).unwrap();
        let pair = LoraPair { r: 1, inputs, outputs: inputs, a: vec![0.5; inputs], b: vec![0.5; inputs] };
        let config = AdapterConfig::new(1, 1.0, Targets::Modules(vec!["q_proj".into()]));
        let modules = (0..2).map(|l| (format!("model.layers.{l}.self_attn.q_proj"), pair.clone())).collect();
        write_adapter(&folder, &Adapter { config, modules }).unwrap();
        folder.to_str().unwrap().to_owned()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const EXAM: &str = "{\"question\": \"a b ?\", \"options\": {\"A\": \"c\", \"B\": \"d\"}, \"answer_idx\": \"A\"}\n\
                    {\"question\": \"e ?\", \"options\": {\"A\": \"f\", \"B\": \"g\"}, \"answer_idx\": \"B\"}\n";

#[test]
fn every_task_prints_its_metrics() {
    let world = World::new("eval-tasks");
    let model = world.model();
    let rows = world.file("rows.jsonl", "{\"text\": \"a b c d e .\"}\n{\"text\": \"f g .\"}\n");
    let exam = world.file("exam.jsonl", EXAM);
    let questions = world.file("questions.jsonl", "{\"question\": \"a ?\", \"answer\": \"b\"}\n");
    let entities = world.file("entities.jsonl", "{\"prompt\": \"a b\", \"entities\": [\"c\"]}\n");
    for (task, data, names) in [
        ("ppl", &rows, "ppl nll bits_per_byte accuracy tokens"),
        ("choice", &exam, "acc acc_norm acc_bytes acc_stderr n"),
        ("qa", &questions, "exact_match f1 n"),
        ("entity", &entities, "entity_recall entities n"),
        ("speed", &rows, "prefill_tokens_per_s"),
    ] {
        let names: Vec<&str> = names.split(' ').chain(["tokens_per_s", "seconds"]).collect();
        let command = ["eval", "--model", &model, "--task", task, "--data", data, "--max-new-tokens", "4"];
        let table = kfc(&command);
        assert_eq!(table.code, Some(0), "{}", table.stderr);
        let first: Vec<&str> = table.stdout.lines().map(|l| l.split_whitespace().next().unwrap()).collect();
        assert_eq!(first, names);
        let json = kfc(&[&command[..], &["--json", "--quiet"]].concat());
        assert_eq!((json.code, json.stderr.as_str()), (Some(0), ""));
        let value: Value = serde_json::from_str(json.stdout.trim_end()).unwrap();
        let metrics = value["metrics"].as_object().unwrap();
        assert!(names.iter().all(|n| metrics.contains_key(*n)) && metrics.len() == names.len(), "{value}");
        assert_eq!((&value["task"], &value["adapter"]), (&json!(task), &Value::Null));
        assert_eq!((&value["model"], &value["data"]), (&json!(model), &json!(data)));
    }
    let bare = kfc(&["eval", "--model", &model, "--task", "speed", "--max-new-tokens", "4"]);
    assert_eq!(bare.code, Some(0), "{}", bare.stderr);
}

#[test]
fn gates_decide_the_exit_code() {
    let world = World::new("eval-gates");
    let (model, exam) = (world.model(), world.file("exam.jsonl", EXAM));
    let command = ["eval", "--model", &model, "--task", "choice", "--data", &exam, "--json"];
    let met = kfc(&[&command[..], &["--gate", "n==2", "--gate", "acc>=0"]].concat());
    assert_eq!(met.code, Some(0), "{}", met.stderr);
    let gates = &serde_json::from_str::<Value>(&met.stdout).unwrap()["gates"];
    assert_eq!(gates[0], json!({"gate": "n==2", "value": 2.0, "passed": true}));
    let missed = kfc(&[&command[..], &["--gate", "acc>1", "--gate", "n==2", "--gate", "n>5"]].concat());
    assert_eq!(missed.code, Some(3), "{}", missed.stderr);
    let lines: Vec<&str> = missed.stderr.lines().filter(|l| l.contains("MISSED")).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[1], "gate n>5: MISSED (n = 2)");
    let passed =
        |i: usize| serde_json::from_str::<Value>(&missed.stdout).unwrap()["gates"][i]["passed"].clone();
    assert_eq!([passed(0), passed(1), passed(2)], [json!(false), json!(true), json!(false)]);
    // An unknown metric is told before the model is opened.
    let unknown = fails(2, &["eval", "--model", "none", "--task", "qa", "--data", &exam, "--gate", "f2>=1"]);
    assert!(
        unknown.contains("did you mean `f1`? the metrics are exact_match, f1, n, tokens_per_s, seconds"),
        "{unknown}"
    );
    let tokens =
        ["eval", "--model", "none", "--task", "ppl", "--data", "x.safetensors", "--gate", "bits_per_byte<1"];
    assert!(fails(2, &tokens).contains("no metric `bits_per_byte`"));
}

#[test]
fn wrong_input_ends_with_2() {
    let world = World::new("eval-input");
    let (model, exam) = (world.model(), world.file("exam.jsonl", EXAM));
    let eval =
        |task: &str, data: &str| fails(2, &["eval", "--model", &model, "--task", task, "--data", data]);
    assert!(eval("choice", &world.file("empty.jsonl", "")).contains("empty.jsonl: the file has no rows"));
    assert!(
        eval("qa", &world.file("bad.jsonl", "{\"question\": \"a\"}\n")).contains("bad.jsonl:1: no answer")
    );
    assert!(
        eval("ppl", &world.file("bad2.jsonl", "{\"text\": \"a b\"}\nx\n")).contains("bad2.jsonl:2: not JSON")
    );
    assert!(eval("ppl", "nowhere.jsonl").contains("nowhere.jsonl"));
    let choice = ["eval", "--model", &model, "--task", "choice", "--data", &exam];
    let fits = world.adapter(32);
    assert_eq!(kfc(&[&choice[..], &["--adapter", &fits]].concat()).code, Some(0));
    let other = fails(2, &[&choice[..], &["--adapter", &world.adapter(16)]].concat());
    assert!(other.contains("q_proj"), "{other}");
    std::fs::remove_file(world.0.join("model/tokenizer.json")).unwrap();
    assert!(fails(2, &choice).contains("has no tokenizer.json"));
    assert!(fails(2, &["generate", "--model", &model, "--prompt", "a"]).contains("has no tokenizer.json"));
}

#[test]
fn generation_is_printed_and_repeatable() {
    let world = World::new("generate");
    let model = world.model();
    let command = ["generate", "--model", &model, "--prompt", "a b c", "--max-new-tokens", "12"];
    let plain = kfc(&command);
    assert_eq!(plain.code, Some(0), "{}", plain.stderr);
    assert!(plain.stderr.contains("prompt 3 tokens") && plain.stderr.contains("tok/s"), "{}", plain.stderr);
    let json = kfc(&[&command[..], &["--json", "--quiet"]].concat());
    assert_eq!(json.stderr, "");
    let value: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(value["text"].as_str().unwrap(), plain.stdout.strip_suffix('\n').unwrap());
    assert!(
        value["tokens"].as_array().unwrap().len() <= 12
            && value["prefill_tokens_per_s"].as_f64().unwrap() > 0.0
    );
    assert!(["eos", "length"].contains(&value["stop_reason"].as_str().unwrap()));
    let sampled = |seed: &str, threads: &str| {
        let more = ["--temperature", "1.5", "--seed", seed, "--threads", threads];
        kfc(&[&command[..], &more].concat()).stdout
    };
    assert_eq!(sampled("1", "1"), sampled("1", "2"));
    assert!((2..12).any(|seed| sampled(&seed.to_string(), "1") != sampled("1", "1")));
    assert_eq!(kfc(&[&command[..], &["--adapter", &world.adapter(32)]].concat()).code, Some(0));
    let long = fails(2, &["generate", "--model", &model, "--prompt", "a b", "--max-new-tokens", "127"]);
    assert!(
        long.contains("--prompt has 2 tokens, with 127 new ones more than the model's 128 positions"),
        "{long}"
    );
    assert!(fails(2, &["generate", "--model", &model, "--prompt", ""]).contains("--prompt has no tokens"));
}
