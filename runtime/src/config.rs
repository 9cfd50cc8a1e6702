//! A training job as plain data. Field names, sections and defaults are those of the configuration file; reading and
//! printing the file is the command line's business.
//!
//! Paths are already resolved (relative ones against the folder of the configuration file).

use kfc_graph::DType;
pub use kfc_ops::head::Divergence;
use std::path::PathBuf;

/// A whole job.
#[derive(Clone, Debug, PartialEq)]
pub struct JobConfig {
    /// The student.
    pub model: ModelSection,
    /// Low-rank adapters; absent means full fine-tuning.
    pub lora: Option<LoraSection>,
    /// Distillation from a teacher.
    pub distill: Option<DistillSection>,
    /// Penalty against forgetting.
    pub ewc: Option<EwcSection>,
    /// Training data.
    pub data: DataSection,
    /// Steps, optimiser and schedule.
    pub train: TrainSection,
    /// What the run's page shows beside curves.
    pub report: Option<ReportSection>,
    /// How kernels are compiled.
    pub kernels: Option<KernelsSection>,
}

/// `[kernels]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelsSection {
    /// A Python with Triton; `None` leaves it to be found.
    pub python: Option<PathBuf>,
}

/// `[report]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportSection {
    /// Prompts that the model goes on from before and after training.
    pub prompts: Vec<String>,
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
}

/// `[model]`
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSection {
    /// A Hugging Face model folder (with `init = "random"`, its `config.json` is enough).
    pub path: PathBuf,
    /// Where the weights come from.
    pub init: ModelInit,
    /// Element type of weights and activations; `None` takes the type the weights are stored in.
    pub dtype: Option<DType>,
}

/// `model.init`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelInit {
    /// From the folder's safetensors.
    Pretrained,
    /// Normal with the configuration's `initializer_range`, from `train.seed`.
    Random,
}

/// `[lora]`
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSection {
    /// Rank.
    pub r: usize,
    /// Numerator of the scale: `alpha / r`, or `alpha / sqrt(r)` with `rslora`.
    pub alpha: f64,
    /// Probability of dropping an element of the adapter's input.
    pub dropout: f64,
    /// Adapted projections.
    pub targets: LoraTargets,
    /// Rank-stabilised scale.
    pub rslora: bool,
    /// Where A and B start.
    pub init: LoraInit,
}

/// `lora.targets`
#[derive(Clone, Debug, PartialEq)]
pub enum LoraTargets {
    /// Every linear layer but the head.
    AllLinear,
    /// Modules whose last name (or dotted suffix) is one of these.
    Names(Vec<String>),
}

/// `lora.init`
#[derive(Clone, Debug, PartialEq)]
pub enum LoraInit {
    /// A from Kaiming's uniform distribution, B zero.
    Default,
    /// A PEFT adapter folder.
    Path(PathBuf),
}

/// `[distill]`
#[derive(Clone, Debug, PartialEq)]
pub struct DistillSection {
    /// A Hugging Face model folder, or a top-k cache made by `kfc teach`.
    pub teacher: PathBuf,
    /// Weight of the teacher: the loss has `(1 - alpha) CE + alpha KD`.
    pub alpha: f64,
    /// Softmax temperature of both sides.
    pub temperature: f64,
    /// Which divergence.
    pub divergence: Divergence,
    /// Files of general text, taught by the teacher alone.
    pub general: Vec<PathBuf>,
    /// Share of each batch's rows that is general text.
    pub general_fraction: f64,
    /// Outcomes kept for each position by `kfc teach`.
    pub top_k: usize,
    /// Aligned hidden states.
    pub features: Vec<FeatureSection>,
}

/// `[[distill.features]]`
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureSection {
    /// Student layer whose output is projected, counted from 1.
    pub student_layer: usize,
    /// Teacher layer whose output is matched, counted from 1.
    pub teacher_layer: usize,
    /// Weight of the mean squared error in the loss.
    pub weight: f64,
    /// Safetensors file whose `weight` `[teacher width, student width]` the projector starts from.
    pub projector: Option<PathBuf>,
}

/// `[ewc]`
#[derive(Clone, Debug, PartialEq)]
pub struct EwcSection {
    /// Weight of the penalty.
    pub lambda: f64,
    /// What is penalised.
    pub mode: EwcMode,
    /// Safetensors file of Fisher diagonals.
    pub fisher: PathBuf,
    /// Safetensors file of anchors θ*; absent means where training starts.
    pub anchor: Option<PathBuf>,
    /// What happens to important parameters beside the penalty.
    pub important: Important,
    /// Parameters whose Fisher is above this quantile (over all penalised parameters) are important.
    pub quantile: f64,
    /// Learning-rate factor of important parameters under [`Important::Slow`].
    pub slow_factor: f64,
}

/// `ewc.mode`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EwcMode {
    /// The merged change `s·B·A`, Fisher by base weight names.
    Delta,
    /// A and B themselves, Fisher and anchor by PEFT names.
    Adapter,
    /// Full weights.
    Weights,
}

impl EwcMode {
    /// Its name in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            EwcMode::Delta => "delta",
            EwcMode::Adapter => "adapter",
            EwcMode::Weights => "weights",
        }
    }
}

/// `ewc.important`: update policy of parameters with a large Fisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Important {
    /// Updated like all others.
    Keep,
    /// Updated with a smaller learning rate.
    Slow,
    /// Not updated.
    Freeze,
}

/// `[data]`
#[derive(Clone, Debug, PartialEq)]
pub struct DataSection {
    /// Files or folders.
    pub train: Vec<PathBuf>,
    /// Format; `None` goes by the extension.
    pub format: Option<DataFormat>,
    /// Tokens a row; `None` takes the row length of a `tokens` file, or the smaller of 1,024 and the model's limit.
    pub seq_len: Option<usize>,
    /// Several documents a row, attention kept inside each.
    pub packing: bool,
    /// A new order every epoch, from `train.seed`.
    pub shuffle: bool,
    /// `tokenizer.json` or its folder; `None` takes the model's.
    pub tokenizer: Option<PathBuf>,
    /// What a bad line does.
    pub on_error: OnError,
    /// What happens to documents longer than `seq_len`.
    pub long_rows: LongRows,
    /// Whether files are read while training runs.
    pub streaming: Streaming,
    /// Threads that read streamed files.
    pub workers: usize,
    /// Blocks that each of them reads ahead.
    pub prefetch: usize,
    /// Which share of the data this process takes, from 0.
    pub rank: usize,
    /// How many processes share the data.
    pub world: usize,
}

/// `data.streaming`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streaming {
    /// What is larger than 64 MiB, where the job's length is in steps and its teacher is no cache.
    Auto,
    /// Always.
    On,
    /// Never: all rows are in memory before the first step.
    Off,
}

/// `data.format`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataFormat {
    /// One JSON object a line.
    Jsonl,
    /// Plain text, one document a file.
    Text,
    /// Safetensors with `input_ids` and optional `labels`, or token shards.
    Tokens,
    /// Tar archives of samples.
    WebDataset,
}

/// `data.on_error`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// Stop with an error that names the line.
    Fail,
    /// Count it and go on.
    Skip,
}

/// `data.long_rows`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LongRows {
    /// Plain text is split over several rows; a completion is cut at `seq_len` and counted.
    Split,
    /// Cut at `seq_len` and counted.
    Truncate,
    /// An error that names the line.
    Error,
}

/// `[train]`
#[derive(Clone, Debug, PartialEq)]
pub struct TrainSection {
    /// How long.
    pub length: Length,
    /// Rows of a micro-batch.
    pub batch: usize,
    /// Micro-batches of a step.
    pub accumulation: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Its course.
    pub schedule: Schedule,
    /// Steps from 0 up to the peak.
    pub warmup_steps: usize,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// AdamW's moment decays.
    pub betas: (f64, f64),
    /// AdamW's epsilon.
    pub eps: f64,
    /// Global gradient norm above which gradients are scaled down; 0 is off.
    pub max_grad_norm: f64,
    /// Seed of everything random.
    pub seed: u64,
    /// Factor on the loss before the backward pass; `None`: 256 for f16, 1 otherwise.
    pub loss_scale: Option<LossScale>,
    /// Steps between checkpoints; 0: only at the end.
    pub save_every: usize,
    /// Checkpoints kept.
    pub keep: usize,
    /// Bytes that the run may take; `None` is no limit.
    pub mem_budget: Option<u64>,
    /// What is computed again in the backward pass instead of being kept.
    pub recompute: RecomputePolicy,
    /// Where frozen embedding tables are.
    pub embeddings: Embeddings,
}

/// `train.embeddings`: tables that are trained, random or shared with an output layer are in memory in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Embeddings {
    /// In their files if they have 16 MiB or more, else in memory.
    Auto,
    /// In memory.
    Memory,
    /// In their files: a step reads the rows of its tokens.
    File,
}

/// `train.recompute`: activation checkpointing
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecomputePolicy {
    /// What the memory budget asks for, at the least cost; nothing without a budget.
    Auto,
    /// Nothing.
    Off,
    /// Everything inside a layer.
    EveryLayer,
    /// Everything inside groups of this many layers.
    EveryK(usize),
    /// Everything inside attention blocks.
    Attention,
}

/// `train.steps` or `train.epochs`
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// Optimiser steps.
    Steps(usize),
    /// Passes over the data.
    Epochs(f64),
}

/// `train.schedule`, as in transformers
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Half a cosine down to 0.
    Cosine,
    /// Linearly down to 0.
    Linear,
    /// Flat after warm-up.
    Constant,
}

/// `train.loss_scale`
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LossScale {
    /// The same factor throughout.
    Static(f64),
    /// Halved after a non-finite step, doubled after 2,000 good ones.
    Dynamic,
}
