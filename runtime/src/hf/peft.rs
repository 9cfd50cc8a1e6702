//! LoRA adapters in the layout of PEFT: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Only what kfc computes is read: a feature that would change the result (DoRA, trained biases, per-module ranks, ...) is
//! an error that names the field, never ignored.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::weights::{TensorView, WeightFile};
use super::write::{TensorOut, write_safetensors};
use crate::files::{FileError, Result, read_limited, write_json};

/// Prefix that PEFT puts before the model's own module paths.
const PREFIX: &str = "base_model.model.";

/// Largest `adapter_config.json` that is read.
const MAX_CONFIG: u64 = 16 << 20;

/// Result of parsing a config; the error lacks the file's name.
type Parsed<T> = std::result::Result<T, String>;

/// Which modules carry an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Every linear layer but the output layer.
    AllLinear,
    /// Module names, or endings of module paths.
    Modules(Vec<String>),
}

/// The fields of `adapter_config.json` that have a meaning for kfc. All others have the value that switches them off.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// Rank.
    pub r: usize,
    /// `lora_alpha`.
    pub alpha: f64,
    /// `lora_dropout`, in [0, 1).
    pub dropout: f64,
    /// `target_modules`.
    pub targets: Targets,
    /// `use_rslora`: scale by alpha/√r instead of alpha/r.
    pub rslora: bool,
    /// `init_lora_weights`: `true`, `false`, or a name of an initialisation that leaves the base weights alone.
    pub init_lora_weights: Value,
    /// `layers_to_transform`: only these layers carry an adapter.
    pub layers_to_transform: Option<Vec<usize>>,
    /// `layers_pattern`: what the list of layers is called in module paths.
    pub layers_pattern: Vec<String>,
    /// `exclude_modules`: module names that carry none.
    pub exclude_modules: Vec<String>,
    /// `base_model_name_or_path`.
    pub base_model_name_or_path: Option<String>,
    /// `task_type`, such as `CAUSAL_LM`.
    pub task_type: Option<String>,
}

impl AdapterConfig {
    /// A plain adapter for a causal language model.
    pub fn new(r: usize, alpha: f64, targets: Targets) -> AdapterConfig {
        AdapterConfig {
            r,
            alpha,
            dropout: 0.0,
            targets,
            rslora: false,
            init_lora_weights: Value::Bool(true),
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            exclude_modules: Vec::new(),
            base_model_name_or_path: None,
            task_type: Some("CAUSAL_LM".into()),
        }
    }

    /// What B·A is multiplied by: alpha/r, or alpha/√r with `rslora`.
    pub fn scale(&self) -> f64 {
        let r = self.r as f64;
        if self.rslora { self.alpha / r.sqrt() } else { self.alpha / r }
    }

    /// Parses the bytes of an `adapter_config.json`. The error says what is wrong, without the file's name. Safe on
    /// hostile input.
    pub fn parse(bytes: &[u8]) -> std::result::Result<AdapterConfig, String> {
        let json: Value = serde_json::from_slice(bytes).map_err(|e| format!("not valid JSON: {e}"))?;
        let fields = Fields(json.as_object().ok_or("is no JSON object; an adapter_config.json is needed")?);
        fields.refuse_what_kfc_does_not_do()?;
        let r = fields.0.get("r").and_then(Value::as_u64).and_then(|r| usize::try_from(r).ok());
        let r = r
            .filter(|&r| (1..=1 << 20).contains(&r))
            .ok_or_else(|| fields.wrong("r", "a positive whole number"))?;
        let alpha = fields.number("lora_alpha", 8.0)?;
        let dropout = fields.number("lora_dropout", 0.0)?;
        if !(0.0..1.0).contains(&dropout) {
            return Err(fields.wrong("lora_dropout", "a number from 0 to below 1"));
        }
        Ok(AdapterConfig {
            r,
            alpha,
            dropout,
            targets: fields.targets()?,
            rslora: fields.flag("use_rslora")?,
            init_lora_weights: fields.0.get("init_lora_weights").cloned().unwrap_or(Value::Bool(true)),
            layers_to_transform: fields.layers()?,
            layers_pattern: fields.strings("layers_pattern")?.unwrap_or_default(),
            exclude_modules: fields.exclude_modules()?,
            base_model_name_or_path: fields.text("base_model_name_or_path")?,
            task_type: fields.text("task_type")?,
        })
    }

    /// Reads `DIR/adapter_config.json`.
    pub fn read(dir: &Path) -> Result<AdapterConfig> {
        let path = dir.join("adapter_config.json");
        if !path.exists() {
            return Err(FileError::invalid(
                dir,
                "has no adapter_config.json; give the folder of a PEFT adapter (adapter_config.json and \
                 adapter_model.safetensors)",
            ));
        }
        let bytes = read_limited(&path, MAX_CONFIG)?;
        AdapterConfig::parse(&bytes).map_err(|message| FileError::invalid(path, message))
    }

    /// The JSON that PEFT 0.15 and newer read; `modules` are the paths that carry an adapter.
    fn to_json<'a>(&self, modules: impl Iterator<Item = &'a str>) -> Value {
        // "all-linear" is resolved as PEFT does when it saves: to the names of the modules.
        let targets = match &self.targets {
            Targets::Modules(names) => names.clone(),
            Targets::AllLinear => {
                let mut names: Vec<String> = modules.map(|m| last_part(m).to_string()).collect();
                names.sort();
                names.dedup();
                names
            }
        };
        let list_or_null = |names: &[String]| if names.is_empty() { Value::Null } else { json!(names) };
        let whole = self.alpha.fract() == 0.0 && self.alpha.abs() < 1e15;
        json!({
            "alpha_pattern": {},
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": "none",
            "corda_config": null,
            "eva_config": null,
            "exclude_modules": list_or_null(&self.exclude_modules),
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": self.init_lora_weights,
            "layer_replication": null,
            "layers_pattern": list_or_null(&self.layers_pattern),
            "layers_to_transform": self.layers_to_transform,
            "loftq_config": {},
            "lora_alpha": if whole { json!(self.alpha as i64) } else { json!(self.alpha) },
            "lora_bias": false,
            "lora_dropout": self.dropout,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.r,
            "rank_pattern": {},
            "revision": null,
            "target_modules": targets,
            "task_type": self.task_type,
            "trainable_token_indices": null,
            "use_dora": false,
            "use_rslora": self.rslora,
        })
    }
}

/// Fields that say nothing about the result, or that [`AdapterConfig`] holds.
const KNOWN: [&str; 22] = [
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
];

/// Access to the fields of a config, with errors that name them.
struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    fn refuse_what_kfc_does_not_do(&self) -> Parsed<()> {
        if let Some(kind) = self.text("peft_type")?
            && kind != "LORA"
        {
            return Err(format!("`peft_type` is {kind}; kfc reads LORA adapters only"));
        }
        if let Some(bias) = self.text("bias")?
            && bias != "none"
        {
            return Err(format!("`bias` is {bias}; kfc trains no biases, only `none` can be read"));
        }
        match self.0.get("init_lora_weights") {
            None | Some(Value::Null | Value::Bool(_)) => {}
            Some(Value::String(name)) if matches!(name.as_str(), "gaussian" | "orthogonal" | "eva") => {}
            Some(other) => {
                return Err(format!(
                    "`init_lora_weights` is {other}, which changes the base weights too; convert the adapter to plain \
                     LoRA with PEFT (`path_initial_model_for_weight_conversion`)"
                ));
            }
        }
        for (field, value) in self.0 {
            let on = match value {
                Value::Bool(on) => *on,
                Value::Array(list) => !list.is_empty(),
                Value::Object(map) => !map.is_empty(),
                Value::Null | Value::Number(_) | Value::String(_) => false,
            };
            if on && !KNOWN.contains(&field.as_str()) {
                let shown: String = value.to_string().chars().take(80).collect();
                return Err(format!(
                    "`{field}` is {shown}: kfc does not do this, and without it the adapter would mean something else"
                ));
            }
        }
        Ok(())
    }

    fn wrong(&self, field: &str, wanted: &str) -> String {
        match self.0.get(field) {
            Some(found) => {
                let shown: String = found.to_string().chars().take(80).collect();
                format!("`{field}` is {shown}, it has to be {wanted}")
            }
            None => format!("`{field}` is missing, it has to be {wanted}"),
        }
    }

    fn number(&self, field: &str, default: f64) -> Parsed<f64> {
        match self.0.get(field) {
            None => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| self.wrong(field, "a number")),
        }
    }

    fn flag(&self, field: &str) -> Parsed<bool> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(field, "true or false")),
        }
    }

    fn text(&self, field: &str) -> Parsed<Option<String>> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(self.wrong(field, "a text")),
        }
    }

    /// A list of texts, or one text.
    fn strings(&self, field: &str) -> Parsed<Option<Vec<String>>> {
        let wrong = || self.wrong(field, "a list of names");
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(vec![text.clone()])),
            Some(Value::Array(list)) => list
                .iter()
                .map(|v| v.as_str().map(str::to_string).ok_or_else(wrong))
                .collect::<Parsed<_>>()
                .map(Some),
            Some(_) => Err(wrong()),
        }
    }

    fn targets(&self) -> Parsed<Targets> {
        let wanted =
            "a list of module names or \"all-linear\" (kfc reads no regular expressions: list the names)";
        match self.0.get("target_modules") {
            Some(Value::String(text)) if text == "all-linear" => Ok(Targets::AllLinear),
            Some(Value::Array(list)) if !list.is_empty() => {
                Ok(Targets::Modules(self.strings("target_modules")?.unwrap_or_default()))
            }
            _ => Err(self.wrong("target_modules", wanted)),
        }
    }

    fn exclude_modules(&self) -> Parsed<Vec<String>> {
        match self.0.get("exclude_modules") {
            Some(Value::String(_)) => {
                Err(self
                    .wrong("exclude_modules", "a list of module names (kfc reads no regular expressions)"))
            }
            _ => Ok(self.strings("exclude_modules")?.unwrap_or_default()),
        }
    }

    fn layers(&self) -> Parsed<Option<Vec<usize>>> {
        let wrong = || self.wrong("layers_to_transform", "a layer number or a list of them");
        let number = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(wrong);
        match self.0.get("layers_to_transform") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(list)) => list.iter().map(number).collect::<Parsed<_>>().map(Some),
            Some(value) => Ok(Some(vec![number(value)?])),
        }
    }
}

/// The two factors of one module's change s·B·A: values, or where they lie.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraPair<V = Vec<f32>> {
    /// Rank.
    pub r: usize,
    /// Inputs of the module.
    pub inputs: usize,
    /// Outputs of the module.
    pub outputs: usize,
    /// A, `[r, inputs]`.
    pub a: V,
    /// B, `[outputs, r]`.
    pub b: V,
}

/// An adapter: its config and the factors of each module.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter<V = Vec<f32>> {
    /// What `adapter_config.json` says.
    pub config: AdapterConfig,
    /// By module path without PEFT's prefix, such as `model.layers.0.self_attn.q_proj`.
    pub modules: BTreeMap<String, LoraPair<V>>,
}

/// The name of A of a module in PEFT's files.
pub fn name_a(module: &str) -> String {
    format!("{PREFIX}{module}.lora_A.weight")
}

/// The name of B of a module in PEFT's files.
pub fn name_b(module: &str) -> String {
    format!("{PREFIX}{module}.lora_B.weight")
}

fn last_part(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// Reads a PEFT adapter folder. Tensors in f32, bf16 or f16 become f32.
pub fn read_adapter(dir: &Path) -> Result<Adapter> {
    let config = AdapterConfig::read(dir)?;
    let path = dir.join("adapter_model.safetensors");
    if !path.exists() {
        let message = if dir.join("adapter_model.bin").exists() {
            "has adapter_model.bin only; save the adapter again with a PEFT that writes adapter_model.safetensors"
        } else {
            "has no adapter_model.safetensors; the adapter is not complete"
        };
        return Err(FileError::invalid(dir, message));
    }
    let file = WeightFile::open(&path)?;
    if let Some(message) = file.find_non_finite() {
        return Err(FileError::invalid(path, message));
    }
    let mut modules = BTreeMap::new();
    for name in file.names() {
        let Some((module, other)) = partner(name) else {
            return Err(FileError::invalid(path, unknown_key(name)));
        };
        let Some(second) = file.get(&other) else {
            return Err(FileError::invalid(
                path,
                format!("has `{name}` but not `{other}`; the adapter is not complete"),
            ));
        };
        if name.ends_with(".lora_A.weight") {
            let pair = pair(file.expect(name)?, second, config.r)?;
            modules.insert(module.to_string(), pair);
        }
    }
    if modules.is_empty() {
        return Err(FileError::invalid(path, "holds no LoRA weights; the adapter is empty"));
    }
    Ok(Adapter { config, modules })
}

/// Module path and the name of the pair's other tensor.
fn partner(name: &str) -> Option<(&str, String)> {
    let rest = name.strip_prefix(PREFIX)?;
    let (module, other) = match (rest.strip_suffix(".lora_A.weight"), rest.strip_suffix(".lora_B.weight")) {
        (Some(module), _) => (module, name_b(module)),
        (_, Some(module)) => (module, name_a(module)),
        _ => return None,
    };
    (!module.is_empty()).then_some((module, other))
}

fn unknown_key(name: &str) -> String {
    let why = if name.contains("lora_magnitude_vector") {
        "DoRA, which kfc does not do"
    } else if name.contains("lora_embedding_") {
        "an adapter of an embedding, which kfc does not do"
    } else {
        "no LoRA weight that kfc knows"
    };
    format!(
        "tensor `{name}` is {why}; expected are {PREFIX}MODULE.lora_A.weight and {PREFIX}MODULE.lora_B.weight"
    )
}

fn pair(a: TensorView<'_>, b: TensorView<'_>, r: usize) -> Result<LoraPair> {
    let wrong = |t: &TensorView<'_>, wanted: String| {
        FileError::invalid(t.file, format!("tensor `{}` has shape {:?}, {wanted} is needed", t.name, t.dims))
    };
    let inputs = match a.dims {
        [rank, inputs] if *rank == r && *inputs > 0 => *inputs,
        _ => return Err(wrong(&a, format!("[r = {r}, inputs]"))),
    };
    let outputs = match b.dims {
        [outputs, rank] if *rank == r && *outputs > 0 => *outputs,
        _ => return Err(wrong(&b, format!("[outputs, r = {r}]"))),
    };
    Ok(LoraPair { r, inputs, outputs, a: a.to_f32()?, b: b.to_f32()? })
}

/// Writes `adapter_config.json` and `adapter_model.safetensors` (f32) into a folder that exists, so that PEFT 0.15 and
/// newer load them. For both or none give the folder of an [`crate::files::AtomicDir`].
pub fn write_adapter<V: AsRef<[f32]>>(dir: &Path, adapter: &Adapter<V>) -> Result<()> {
    let path = dir.join("adapter_model.safetensors");
    let mut tensors = Vec::with_capacity(2 * adapter.modules.len());
    for (module, pair) in &adapter.modules {
        let (a, b) = (pair.a.as_ref(), pair.b.as_ref());
        let fits = pair.r == adapter.config.r
            && Some(a.len()) == pair.r.checked_mul(pair.inputs)
            && Some(b.len()) == pair.r.checked_mul(pair.outputs);
        if !fits {
            let message = format!(
                "the adapter of `{module}` does not fit rank {}: A has {} values for [{}, {}], B {} for [{}, {}]",
                adapter.config.r,
                a.len(),
                pair.r,
                pair.inputs,
                b.len(),
                pair.outputs,
                pair.r
            );
            return Err(FileError::invalid(path, message));
        }
        tensors.push(TensorOut::f32(name_a(module), &[pair.r, pair.inputs], a));
        tensors.push(TensorOut::f32(name_b(module), &[pair.outputs, pair.r], b));
    }
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    write_safetensors(&path, tensors, &metadata)?;
    let config = adapter.config.to_json(adapter.modules.keys().map(String::as_str));
    write_json(&dir.join("adapter_config.json"), &config).map(|_| ())
}
