//! Training steps of known shape: LoRA, distillation and EWC on random models and random tokens.
//!
//! `tiny` and `small` have the shapes, the optimiser and the loss of the step that users of transformers and peft would
//! otherwise run, so that the two can be timed side by side (`benches/peers`). What they run on is written to a folder as
//! for any job: the other side reads the same models, rows and Fisher diagonals.

use super::temp::TempFolder;
use crate::config::{
    data_defaults, distill_defaults, ewc_defaults, lora_defaults, model_defaults, train_defaults,
};
use kfc_graph::DType;
use kfc_ops::model::{ModelConfig, resolve_targets};
use kfc_runtime::config::{
    DataSection, DistillSection, EwcSection, JobConfig, Length, LoraSection, ModelSection, Schedule,
    Streaming, TrainSection,
};
use kfc_runtime::device::Device;
use kfc_runtime::hf::{TensorOut, file_dtype, write_model, write_safetensors};
use kfc_runtime::models::write_f32;
use kfc_runtime::random::{normal_tensor, stream_of, uniform_tensor};
use kfc_runtime::train::{Trainer, data};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Names of the files.
const STUDENT: &str = "student";
const TEACHER: &str = "teacher";
const FISHER: &str = "fisher.safetensors";
const ROWS: &str = "rows.safetensors";

/// Rank of every adapter here.
const RANK: usize = 16;

/// Values that random weights are made of, over and over.
const BLOCK: usize = 65_521;

/// Shape of a llama model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of the feed-forward block.
    pub intermediate: usize,
}

/// One training step of a student and its teacher.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload {
    /// What it is called.
    pub name: &'static str,
    /// The student.
    pub student: Shape,
    /// The teacher, which runs beside it, if there is one.
    pub teacher: Option<Shape>,
    /// Tokens that there are.
    pub vocab: usize,
    /// Rows of a step.
    pub batch: usize,
    /// Tokens of a row.
    pub seq: usize,
}

/// Seconds on a laptop.
pub const TINY: Workload = Workload {
    name: "tiny",
    student: Shape { hidden: 256, layers: 4, heads: 4, kv_heads: 4, intermediate: 688 },
    teacher: Some(Shape { hidden: 384, layers: 6, heads: 6, kv_heads: 6, intermediate: 1024 }),
    vocab: 8192,
    batch: 8,
    seq: 128,
};

/// The models of [`TINY`] on one short row, as when facts are trained on one by one: products of few rows.
pub const SHORT: Workload = Workload { name: "short", batch: 1, seq: 32, ..TINY };

/// The size at which arithmetic dominates.
pub const SMALL: Workload = Workload {
    name: "small",
    student: Shape { hidden: 768, layers: 12, heads: 12, kv_heads: 4, intermediate: 2048 },
    teacher: Some(Shape { hidden: 1024, layers: 16, heads: 16, kv_heads: 16, intermediate: 2752 }),
    vocab: 32000,
    batch: 2,
    seq: 512,
};

/// The models of [`SMALL`] on one short row: what a single fact costs where weights do not fit the caches.
pub const FACT: Workload = Workload { name: "fact", batch: 1, seq: 32, ..SMALL };

/// The shape of Llama 3.2 1B, without a teacher. Writes a model of 1.5 billion parameters to disk.
pub const LLAMA_1B: Workload = Workload {
    name: "llama1b",
    student: Shape { hidden: 2048, layers: 16, heads: 32, kv_heads: 8, intermediate: 8192 },
    teacher: None,
    vocab: 128256,
    batch: 4,
    seq: 2048,
};

/// The shape of Llama 3 8B, without a teacher. Writes a model of 8 billion parameters to disk.
pub const LLAMA_8B: Workload = Workload {
    name: "llama8b",
    student: Shape { hidden: 4096, layers: 32, heads: 32, kv_heads: 8, intermediate: 14336 },
    teacher: None,
    vocab: 128256,
    batch: 2,
    seq: 2048,
};

/// Every workload.
pub const ALL: [Workload; 6] = [TINY, SHORT, SMALL, FACT, LLAMA_1B, LLAMA_8B];

impl Shape {
    /// The `config.json` of a llama model of this shape with `vocab` tokens.
    pub fn config(&self, vocab: usize) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": vocab,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": false,
        })
    }
}

impl Workload {
    /// Tokens of a step.
    pub const fn tokens(&self) -> usize {
        self.batch * self.seq
    }

    /// A trainer that is ready for its first step within `budget` bytes, with its files in `folder`.
    ///
    /// # Errors
    /// If files cannot be written or memory runs out.
    pub fn trainer(&self, folder: &TempFolder, dtype: DType, budget: Option<u64>) -> anyhow::Result<Trainer> {
        self.write(folder.path(), dtype)?;
        let mut job = self.job(folder.path(), dtype);
        job.train.mem_budget = budget;
        self.trainer_of(&job)
    }

    /// A trainer of [`Workload::job`] or a variant of it.
    ///
    /// # Errors
    /// If files are missing or memory runs out.
    pub fn trainer_of(&self, job: &JobConfig) -> anyhow::Result<Trainer> {
        self.trainer_on(&Device::Cpu, job)
    }

    /// [`Workload::trainer_of`] on a device.
    ///
    /// # Errors
    /// As there; and if there is no such device.
    pub fn trainer_on(&self, device: &Device, job: &JobConfig) -> anyhow::Result<Trainer> {
        let model = ModelConfig::from_json(&self.student.config(self.vocab))?;
        let rows = data::load(job, &model)?;
        Ok(Trainer::on(device, job, data::loader(job, rows)?)?)
    }

    /// Writes models, Fisher diagonals and rows into `dir`.
    ///
    /// # Errors
    /// If files cannot be written.
    pub fn write(&self, dir: &Path, dtype: DType) -> anyhow::Result<()> {
        write_random_model(&dir.join(STUDENT), &self.student.config(self.vocab), dtype)?;
        if let Some(shape) = &self.teacher {
            write_random_model(&dir.join(TEACHER), &shape.config(self.vocab), dtype)?;
        }
        self.write_fisher(&dir.join(FISHER))?;
        self.write_rows(&dir.join(ROWS))
    }

    /// How to train on what [`Workload::write`] wrote into `dir`.
    pub fn job(&self, dir: &Path, dtype: DType) -> JobConfig {
        JobConfig {
            report: None,
            kernels: None,
            model: ModelSection { path: dir.join(STUDENT), dtype: Some(dtype), ..model_defaults() },
            lora: Some(LoraSection { r: RANK, dropout: 0.0, ..lora_defaults() }),
            distill: self
                .teacher
                .map(|_| DistillSection { teacher: dir.join(TEACHER), ..distill_defaults() }),
            ewc: Some(EwcSection { lambda: 0.1, fisher: dir.join(FISHER), ..ewc_defaults() }),
            data: DataSection {
                train: vec![dir.join(ROWS)],
                packing: false,
                shuffle: false,
                streaming: Streaming::Off,
                ..data_defaults()
            },
            train: TrainSection {
                length: Length::Steps(super::steps()),
                batch: self.batch,
                accumulation: 1,
                lr: 1e-4,
                schedule: Schedule::Constant,
                warmup_steps: 0,
                max_grad_norm: 0.0,
                save_every: 0,
                keep: 1,
                ..train_defaults()
            },
        }
    }

    /// Fisher diagonals of the adapters, uniform in (0, 1).
    fn write_fisher(&self, path: &Path) -> anyhow::Result<()> {
        let config = ModelConfig::from_json(&self.student.config(self.vocab))?;
        let mut tensors = Vec::new();
        for m in resolve_targets(&config, None)? {
            for (side, dims) in [("A", [RANK, m.in_features]), ("B", [m.out_features, RANK])] {
                let name = format!("base_model.model.{}.lora_{side}.weight", m.path);
                let values = uniform_tensor(1, &name, dims[0] * dims[1], 0.5);
                tensors.push((name, dims, values.into_iter().map(|v| v + 0.5).collect::<Vec<f32>>()));
            }
        }
        let out = tensors.iter().map(|(name, dims, values)| TensorOut::f32(name, dims, values)).collect();
        write_safetensors(path, out, &BTreeMap::new())?;
        Ok(())
    }

    /// One step's rows of uniform tokens.
    fn write_rows(&self, path: &Path) -> anyhow::Result<()> {
        let half = self.vocab as f64 / 2.0;
        let values = uniform_tensor(2, "rows", self.tokens(), half);
        let last = self.vocab as i32 - 1;
        let tokens: Vec<i32> = values.iter().map(|&v| ((f64::from(v) + half) as i32).min(last)).collect();
        let bytes: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        let out = TensorOut::typed("input_ids", DType::I32, &[self.batch, self.seq], &bytes);
        write_safetensors(path, vec![out], &BTreeMap::new())?;
        Ok(())
    }
}

/// Writes a model folder whose weights are normal with deviation 0.02, and ones in norms, as transformers initialises them.
fn write_random_model(dir: &Path, config: &Value, dtype: DType) -> anyhow::Result<()> {
    // Values repeat after a while: drawing hundreds of millions would take longer than the benchmark. A prime length makes
    // all rows of a weight different.
    let block = normal_tensor(3, "weights", BLOCK, 0.02);
    let [random, ones] = [block, vec![1.0; BLOCK]].map(|values| {
        let mut encoded = vec![0u8; values.len() * dtype.size()];
        write_f32(&values, dtype, &mut encoded);
        encoded
    });
    let tensors = ModelConfig::from_json(config)?
        .parameters()
        .into_iter()
        .map(|p| {
            let mut left = p.elements() * dtype.size();
            let spec = kfc_runtime::hf::TensorSpec::new(p.name.as_str(), file_dtype(dtype), p.dims.clone());
            let (values, start) = match p.dims.len() {
                1 => (&ones, 0),
                _ => (&random, stream_of(&p.name) as usize % BLOCK * dtype.size()),
            };
            TensorOut::new(spec, move |w| {
                let mut from = start;
                while left > 0 {
                    let n = left.min(values.len() - from);
                    w.write_all(&values[from..from + n])?;
                    left -= n;
                    from = 0;
                }
                Ok(())
            })
        })
        .collect();
    write_model(dir, config, tensors, None)?;
    Ok(())
}
