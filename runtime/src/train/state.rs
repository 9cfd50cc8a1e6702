//! What a trainer leaves on disk: checkpoints it can resume from bit for bit, and its result.

use super::Trainer;
use crate::checkpoint::{self, Checkpoint};
use crate::config::{LoraInit, LoraTargets};
use crate::data::Cursor;
use crate::error::{Result, RunError};
use crate::files::AtomicDir;
use crate::hf::{
    Adapter, AdapterConfig, LoraPair, Targets, TensorOut, write_adapter, write_model, write_safetensors,
};
use crate::train::data::has_tokenizer;
use crate::train::setup::rows_fingerprint;
use kfc_ops::model::transformer::lora_input;
use kfc_ops::step::train::projector_input;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

impl Trainer {
    /// Writes `checkpoint-N` into the run folder, complete or not at all, and removes the oldest beyond `train.keep`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&mut self, run_dir: &Path) -> Result<()> {
        let names = self.state_names();
        self.memory.pull(&mut self.store, &names)?;
        let tensors = self
            .state_names()
            .into_iter()
            .filter_map(|name| {
                let t = self.store.get(&name)?;
                Some(TensorOut::typed(name, t.ty().dtype, &t.ty().dims, t.bytes()))
            })
            .collect();
        let state = json!({
            "step": self.step,
            "updates": self.updates,
            "skipped_in_a_row": self.skipped_in_a_row,
            "loss_scale": {"scale": self.scaler.scale, "good": self.scaler.good, "skipped": self.scaler.skipped},
            "cursor": self.loader.cursor().to_json(),
            "data": format!("{:016x}", rows_fingerprint(&self.loader)),
            "files": self.loader.stream().map(|s| s.files().map(|(_, print)| format!("{print:016x}")).collect::<Vec<_>>()),
            "seed": self.job.train.seed,
            "other_bits": self.other_bits,
        });
        checkpoint::save(run_dir, self.step as u64, tensors, &state, |dir| match self.student.lora {
            Some(_) => self.write_adapter_files(&dir.join("adapter")),
            None => Ok(()),
        })?;
        checkpoint::prune(run_dir, self.job.train.keep)?;
        Ok(())
    }

    /// Takes over the state of a checkpoint.
    ///
    /// # Errors
    /// If the checkpoint is damaged or belongs to another job or other data.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let state = &checkpoint.state;
        let differs = |what: &str| {
            RunError::Input(format!(
                "{}: the checkpoint was made with another {what}; resume with the configuration and data it was made \
                 with, or start a new run",
                checkpoint.dir.display()
            ))
        };
        let number = |v: &Value, name: &str| v[name].as_u64().ok_or_else(|| differs(name));
        self.check_files(checkpoint)?;
        self.check_kernels(checkpoint)?;
        if state["data"].as_str() != Some(&format!("{:016x}", rows_fingerprint(&self.loader))) {
            return Err(differs("set of training rows (data, tokenizer, seq_len or packing)"));
        }
        if state["seed"].as_u64() != Some(self.job.train.seed) {
            return Err(differs("train.seed"));
        }
        for name in self.state_names() {
            let Some(slot) = self.store.slot(&name) else { continue };
            let ty = self.store.at(slot).ty().clone();
            let view = checkpoint
                .tensors
                .get(&name)
                .ok_or_else(|| differs(&format!("set of parameters (no `{name}`)")))?;
            if view.dims != ty.dims || view.bytes.len() != ty.bytes() {
                return Err(differs(&format!("shape of `{name}`: {:?}, this job has {ty}", view.dims)));
            }
            view.read(0, self.store.slice_mut::<u8>(slot))?;
        }
        self.memory.push(&self.store, &self.state_names())?;
        self.loader.seek(&Cursor::from_json(&state["cursor"])?)?;
        self.step = number(state, "step")? as usize;
        self.updates = number(state, "updates")?;
        self.skipped_in_a_row = number(state, "skipped_in_a_row")?;
        let scale = &state["loss_scale"];
        self.scaler.scale = scale["scale"].as_f64().ok_or_else(|| differs("loss_scale"))?;
        self.scaler.good = number(scale, "good")?;
        self.scaler.skipped = number(scale, "skipped")?;
        Ok(())
    }

    /// Names the first of the streamed files that is not what it was.
    fn check_files(&self, checkpoint: &Checkpoint) -> Result<()> {
        let (Some(stream), Some(then)) = (self.loader.stream(), checkpoint.state["files"].as_array()) else {
            return Ok(());
        };
        let input = |m: String| Err(RunError::Input(format!("{}: {m}", checkpoint.dir.display())));
        let now: Vec<_> = stream.files().collect();
        if now.len() != then.len() {
            return input(format!(
                "data.train had {} files when the checkpoint was made and has {} now; restore them, or start a new run",
                then.len(),
                now.len()
            ));
        }
        let changed =
            now.iter().zip(then).find(|((_, print), then)| then.as_str() != Some(&format!("{print:016x}")));
        match changed {
            Some(((path, _), _)) => input(format!(
                "{} has changed since the checkpoint was made; restore it, or start a new run from the adapter",
                path.display()
            )),
            None => Ok(()),
        }
    }

    /// Refuses to go on with kernels that give other bits than those that the checkpoint was made with.
    fn check_kernels(&self, checkpoint: &Checkpoint) -> Result<()> {
        let of = |key: &str| checkpoint.state["other_bits"][key].as_str();
        let then = checkpoint.state["other_bits"].as_object();
        let keys = then.into_iter().flat_map(|then| then.keys()).chain(self.other_bits.keys());
        let now = |key: &str| self.other_bits.get(key).map(String::as_str);
        let Some(key) = keys.into_iter().find(|key| of(key) != now(key)) else { return Ok(()) };
        let [then, now] = [of(key), now(key)].map(|c| c.unwrap_or("as built in"));
        Err(RunError::Input(format!(
            "{}: kernels were tuned otherwise, with --allow-other-bits: {key} was {then} when the checkpoint was made, and is \
             {now} now; name the file that the run was tuned with (or off) in {}, or start a new run",
            checkpoint.dir.display(),
            crate::tuning::VARIABLE
        )))
    }

    /// Writes what the job made: `adapter/` in PEFT's layout, or `model/` after full fine-tuning.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write_result(&mut self, run_dir: &Path) -> Result<PathBuf> {
        let names = self.state_names();
        self.memory.pull(&mut self.store, &names)?;
        let path = run_dir.join(if self.student.lora.is_some() { "adapter" } else { "model" });
        self.write_trained(&path)?;
        Ok(path)
    }

    /// Writes `snapshot/`: what is trained, as it is before the first step. An earlier one stays.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write_snapshot(&self, run_dir: &Path) -> Result<()> {
        let path = run_dir.join("snapshot");
        if path.exists() { Ok(()) } else { self.write_trained(&path) }
    }

    /// Writes adapter or weights to a folder, complete or not at all; a folder that is there is replaced.
    fn write_trained(&self, path: &Path) -> Result<()> {
        if self.student.lora.is_some() {
            let dir = AtomicDir::create(path)?;
            self.write_adapter_files(dir.path())?;
            dir.commit()?;
            return Ok(());
        }
        if path.exists() {
            crate::files::remove_dir(path)?;
        }
        let companions = match &self.job.data.tokenizer {
            Some(tokenizer) if !has_tokenizer(&self.student.model.path) => tokenizer,
            _ => &self.student.model.path,
        };
        let companions = if companions.is_dir() { Some(companions.as_path()) } else { companions.parent() };
        write_model(path, &self.model_json(), self.weight_tensors(), companions)?;
        self.write_projectors(path)?;
        Ok(())
    }

    /// The adapter as it is now; `None` in full fine-tuning.
    pub fn adapter(&self) -> Option<Adapter<&[f32]>> {
        let lora = self.student.lora.as_ref()?;
        let modules = lora
            .modules
            .iter()
            .map(|m| {
                let values = |side| {
                    let tensor = self.store.get(&lora_input(&m.path, side));
                    tensor.map(|t| t.slice::<f32>()).unwrap_or_default()
                };
                let (a, b) = (values("A"), values("B"));
                (m.path.clone(), LoraPair { r: lora.r, inputs: m.in_features, outputs: m.out_features, a, b })
            })
            .collect();
        Some(Adapter { config: self.adapter_config(), modules })
    }

    fn write_adapter_files(&self, dir: &Path) -> crate::files::Result<()> {
        if let Some(adapter) = self.adapter() {
            std::fs::create_dir_all(dir).map_err(|e| crate::files::FileError::io("create", dir, e))?;
            write_adapter(dir, &adapter)?;
        }
        self.write_projectors(dir)
    }

    /// `projector.safetensors` (and `projector-2.safetensors`, … when several features are aligned).
    fn write_projectors(&self, dir: &Path) -> crate::files::Result<()> {
        for i in 0..self.job.distill.as_ref().map_or(0, |d| d.features.len()) {
            let Some(t) = self.store.get(&projector_input(i)) else { continue };
            let name = if i == 0 {
                "projector.safetensors".into()
            } else {
                format!("projector-{}.safetensors", i + 1)
            };
            let tensor = TensorOut::typed("weight", t.ty().dtype, &t.ty().dims, t.bytes());
            write_safetensors(&dir.join(name), vec![tensor], &BTreeMap::new())?;
        }
        Ok(())
    }

    /// The adapter's configuration: that of the folder it started from, or the job's.
    fn adapter_config(&self) -> AdapterConfig {
        let mut config = match (&self.student.adapter, &self.job.lora) {
            (Some(adapter), _) => adapter.config.clone(),
            (None, Some(section)) => {
                let targets = match &section.targets {
                    LoraTargets::AllLinear => Targets::Modules(self.short_targets()),
                    LoraTargets::Names(names) => Targets::Modules(names.clone()),
                };
                let mut c = AdapterConfig::new(section.r, section.alpha, targets);
                c.rslora = section.rslora;
                c
            }
            (None, None) => AdapterConfig::new(1, 1.0, Targets::AllLinear),
        };
        if let Some(section) = &self.job.lora {
            config.dropout = section.dropout;
            if section.init == LoraInit::Default {
                config.base_model_name_or_path = Some(self.student.model.path.display().to_string());
            }
        }
        config
    }

    /// Short names of the adapted modules, without repetition, sorted.
    fn short_targets(&self) -> Vec<String> {
        let lora = self.student.lora.iter().flat_map(|l| &l.modules);
        let names: std::collections::BTreeSet<String> = lora.map(|m| m.short().to_string()).collect();
        names.into_iter().collect()
    }

    /// The model's configuration with the element type that its weights are written in.
    fn model_json(&self) -> Value {
        let mut json = self.student.model.json.clone();
        let name = match self.student.model.dtype {
            kfc_graph::DType::Bf16 => "bfloat16",
            kfc_graph::DType::F16 => "float16",
            _ => "float32",
        };
        if let Some(map) = json.as_object_mut() {
            let key = if map.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
            map.insert(key.into(), json!(name));
        }
        json
    }

    fn weight_tensors(&self) -> Vec<TensorOut<'_>> {
        let parameters = self.student.model.config.parameters();
        let tensor = |name: String| {
            let t = self.store.get(&format!("student.{name}"))?;
            Some(TensorOut::typed(name, t.ty().dtype, &t.ty().dims, t.bytes()))
        };
        parameters.into_iter().filter_map(|p| tensor(p.name)).collect()
    }

    /// Names of all tensors that a step changes, accumulators apart.
    fn state_names(&self) -> Vec<String> {
        let of = |p: &str| [p.to_string(), format!("master.{p}"), format!("m.{p}"), format!("v.{p}")];
        let all = self.params.iter().flat_map(|p| of(&p.name));
        all.filter(|n| self.store.slot(n).is_some()).collect()
    }
}
