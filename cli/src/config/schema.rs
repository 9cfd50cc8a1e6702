//! The sections and keys of a configuration: names, types, defaults, rules and doc lines, each stated once.

use super::error::ConfigError;
use super::field::{Bytes, Context, Field};
use super::node::{Node, Value};
use super::suggest::nearest;
use kfc_ops::lora_linear::MOST_DROPOUT;
use kfc_runtime::config::{
    DistillSection, Divergence, Embeddings, EwcMode, EwcSection, FeatureSection, Important, JobConfig,
    KernelsSection, Length, LoraInit, LoraSection, LoraTargets, ModelInit, ModelSection, RecomputePolicy,
    ReportSection, Schedule, TrainSection,
};
use std::path::PathBuf;

/// A section whose keys fill a `T`.
pub(super) struct Section<T> {
    /// As in `[name]`.
    pub(super) name: &'static str,
    /// What it is for.
    pub(super) doc: &'static str,
    /// What it holds when no key is given; required keys hold nothing useful here.
    pub(super) defaults: fn() -> T,
    pub(super) keys: Vec<Key<T>>,
}

/// One key of a section.
pub(super) struct Key<T> {
    pub(super) name: &'static str,
    pub(super) doc: &'static str,
    /// What the type accepts.
    pub(super) kind: String,
    pub(super) default: DefaultValue,
    /// Which of the accepted values make sense.
    pub(super) rule: Option<Rule<T>>,
    read: fn(&mut T, &Node, &str, &Context) -> Result<(), ConfigError>,
    pub(super) show: fn(&T) -> Option<String>,
}

/// What happens when a key is left out.
pub(super) enum DefaultValue {
    /// It is an error.
    Required,
    /// The value in [`Section::defaults`].
    Stated,
    /// Decided later, in these words.
    Words(&'static str),
}

/// A condition on a value that was just read.
pub(super) struct Rule<T> {
    /// Completes "must be ...".
    pub(super) words: &'static str,
    holds: fn(&T) -> bool,
}

impl<T> Key<T> {
    fn required(mut self) -> Self {
        self.default = DefaultValue::Required;
        self
    }

    fn otherwise(mut self, words: &'static str) -> Self {
        self.default = DefaultValue::Words(words);
        self
    }

    fn must_be(mut self, words: &'static str, holds: fn(&T) -> bool) -> Self {
        self.rule = Some(Rule { words, holds });
        self
    }
}

/// What a closure that reads a key's type looks like; only to name the type.
fn kind_of<T, F: Field>(_: fn(&T) -> &F) -> String {
    F::kind()
}

/// A key of the same name as the field that it fills.
macro_rules! key {
    ($section:ty, $field:ident, $doc:literal) => {
        Key::<$section> {
            name: stringify!($field),
            doc: $doc,
            kind: kind_of(|section: &$section| &section.$field),
            default: DefaultValue::Stated,
            rule: None,
            read: |section, node, field, context| {
                section.$field = Field::read(node, field, context)?;
                Ok(())
            },
            show: |section| section.$field.show(),
        }
    };
}

/// Largest rank, batch, layer count and the like: far above use, far below where products overflow.
const MANY: usize = 1 << 20;

/// `[model]` with no key given (`path` is required).
pub fn model_defaults() -> ModelSection {
    ModelSection { path: PathBuf::new(), init: ModelInit::Pretrained, dtype: None }
}

pub(super) fn model() -> Section<ModelSection> {
    type S = ModelSection;
    Section {
        name: "model",
        doc: "The student: the model that learns.",
        defaults: model_defaults,
        keys: vec![
            key!(
                S,
                path,
                "A Hugging Face model folder; with `init = \"random\"` its `config.json` is enough."
            )
            .required(),
            key!(S, init, "Start from the folder's weights, or from random ones."),
            key!(S, dtype, "Element type of weights and activations.")
                .otherwise("the type of the stored weights"),
        ],
    }
}

/// `[lora]` with no key given.
pub fn lora_defaults() -> LoraSection {
    LoraSection {
        r: 16,
        alpha: 32.0,
        dropout: 0.1,
        targets: LoraTargets::AllLinear,
        rslora: false,
        init: LoraInit::Default,
    }
}

pub(super) fn lora() -> Section<LoraSection> {
    type S = LoraSection;
    Section {
        name: "lora",
        doc: "Low-rank adapters. Without this section every weight is trained.",
        defaults: lora_defaults,
        keys: vec![
            key!(S, r, "Rank.").must_be("from 1 to 65536", |s| (1..=65536).contains(&s.r)),
            key!(S, alpha, "Numerator of the scale: alpha / r, or alpha / sqrt(r) with `rslora`.")
                .must_be("above 0", |s| s.alpha > 0.0),
            key!(S, dropout, "Probability of dropping an element of the adapter's input.")
                .must_be("from 0 to 65535/65536", |s| (0.0..=MOST_DROPOUT).contains(&s.dropout)),
            key!(
                S,
                targets,
                "Adapted modules, by last name or dotted suffix; `\"all-linear\"` is all but the head."
            ),
            key!(S, rslora, "Rank-stabilised scale."),
            key!(S, init, "New adapters, or a PEFT adapter folder to go on from."),
        ],
    }
}

/// `[distill]` with no key given (`teacher` is required).
pub fn distill_defaults() -> DistillSection {
    DistillSection {
        teacher: PathBuf::new(),
        alpha: 0.7,
        temperature: 2.0,
        divergence: Divergence::ForwardKl,
        general: Vec::new(),
        general_fraction: 0.25,
        top_k: 64,
        features: Vec::new(),
    }
}

pub(super) fn distill() -> Section<DistillSection> {
    type S = DistillSection;
    Section {
        name: "distill",
        doc: "Learning from a teacher: loss = (1 - alpha) CE + alpha T² KL(teacher ‖ student) + features.",
        defaults: distill_defaults,
        keys: vec![
            key!(S, teacher, "A Hugging Face model folder, or a cache made by `kfc teach`.").required(),
            key!(S, alpha, "Weight of the teacher against the labels.")
                .must_be("from 0 to 1", |s| (0.0..=1.0).contains(&s.alpha)),
            key!(S, temperature, "Softmax temperature of both sides.")
                .must_be("above 0", |s| s.temperature > 0.0),
            key!(S, divergence, "How student and teacher are compared."),
            key!(S, general, "Files of general text, taught by the teacher alone: what keeps old knowledge."),
            key!(S, general_fraction, "Share of each batch's rows that is general text, if there is any.")
                .must_be("above 0 and below 1", |s| s.general_fraction > 0.0 && s.general_fraction < 1.0),
            key!(S, top_k, "Outcomes that `kfc teach` keeps for each position.")
                .must_be("from 1 to 1048576", |s| (1..=MANY).contains(&s.top_k)),
            Key {
                name: "features",
                doc: "Aligned hidden states: one `[[distill.features]]` block each, below.",
                kind: "a list of tables".into(),
                default: DefaultValue::Words("none"),
                rule: None,
                read: read_features,
                // Printed as blocks of their own.
                show: |_| None,
            },
        ],
    }
}

fn read_features(
    distill: &mut DistillSection,
    node: &Node,
    field: &str,
    context: &Context,
) -> Result<(), ConfigError> {
    let section = features();
    let Value::Array(items) = &node.value else {
        let expected = "a list of tables; write each as a [[distill.features]] block";
        return Err(context.wrong_type(node, field, expected));
    };
    for (index, item) in items.iter().enumerate() {
        distill.features.push(decode(&section, item, &format!("{field}[{index}]"), context)?);
    }
    Ok(())
}

/// `[[distill.features]]` with no key given (the layers are required).
pub fn feature_defaults() -> FeatureSection {
    FeatureSection { student_layer: 0, teacher_layer: 0, weight: 1.0, projector: None }
}

pub(super) fn features() -> Section<FeatureSection> {
    type S = FeatureSection;
    Section {
        name: "distill.features",
        doc: "One pair of layers whose outputs are aligned: loss += weight · MSE(P h_student, h_teacher).",
        defaults: feature_defaults,
        keys: vec![
            key!(S, student_layer, "Student layer whose output is projected, counted from 1.")
                .required()
                .must_be("from 1 to 1048576 (layers count from 1)", |s| {
                    (1..=MANY).contains(&s.student_layer)
                }),
            key!(S, teacher_layer, "Teacher layer whose output is matched, counted from 1.")
                .required()
                .must_be("from 1 to 1048576 (layers count from 1)", |s| {
                    (1..=MANY).contains(&s.teacher_layer)
                }),
            key!(S, weight, "Weight of this pair's error in the loss.")
                .must_be("at least 0", |s| s.weight >= 0.0),
            key!(
                S,
                projector,
                "Safetensors file whose `weight` [teacher width, student width] the projector starts from."
            )
            .otherwise("a new projector"),
        ],
    }
}

/// `[ewc]` with no key given (`lambda` and `fisher` are required). The mode is that of a job with `[lora]`.
pub fn ewc_defaults() -> EwcSection {
    EwcSection {
        lambda: 0.0,
        mode: EwcMode::Adapter,
        fisher: PathBuf::new(),
        anchor: None,
        important: Important::Keep,
        quantile: 0.99,
        slow_factor: 0.1,
    }
}

pub(super) fn ewc() -> Section<EwcSection> {
    type S = EwcSection;
    Section {
        name: "ewc",
        doc: "A penalty against forgetting: loss += lambda/2 · Σ F (θ - θ*)².",
        defaults: ewc_defaults,
        keys: vec![
            key!(S, lambda, "Weight of the penalty.").required().must_be("at least 0", |s| s.lambda >= 0.0),
            key!(S, mode, "What is penalised: the merged change s·B·A, A and B themselves, or full weights.")
                .otherwise("`\"adapter\"` with `[lora]`, `\"weights\"` without"),
            key!(S, fisher, "Safetensors file of Fisher diagonals, made by `kfc fisher`.").required(),
            key!(S, anchor, "Safetensors file of the anchors θ*.").otherwise("where training starts"),
            key!(
                S,
                important,
                "Parameters of large Fisher are updated like all others, slowly, or not at all."
            ),
            key!(S, quantile, "Parameters whose Fisher is above this quantile are important.")
                .must_be("at least 0 and below 1", |s| (0.0..1.0).contains(&s.quantile)),
            key!(
                S,
                slow_factor,
                "Learning-rate factor of important parameters under `important = \"slow\"`."
            )
            .must_be("from 0 to 1", |s| (0.0..=1.0).contains(&s.slow_factor)),
        ],
    }
}

mod data;

pub(super) use data::data;
pub use data::data_defaults;

/// `[train]` with no key given (`steps` or `epochs` is required; here 0 steps).
pub fn train_defaults() -> TrainSection {
    TrainSection {
        length: Length::Steps(0),
        batch: 1,
        accumulation: 8,
        lr: 3e-5,
        schedule: Schedule::Cosine,
        warmup_steps: 500,
        weight_decay: 0.01,
        betas: (0.9, 0.999),
        eps: 1e-8,
        max_grad_norm: 1.0,
        seed: 0,
        loss_scale: None,
        save_every: 500,
        keep: 2,
        mem_budget: None,
        recompute: RecomputePolicy::Auto,
        embeddings: Embeddings::Auto,
    }
}

pub(super) fn train() -> Section<TrainSection> {
    type S = TrainSection;
    let mut keys = length_keys();
    keys.extend([
        key!(S, batch, "Rows of a micro-batch.").must_be("from 1 to 1048576", |s| (1..=MANY).contains(&s.batch)),
        key!(S, accumulation, "Micro-batches of a step.")
            .must_be("from 1 to 1048576", |s| (1..=MANY).contains(&s.accumulation)),
        key!(S, lr, "Peak learning rate.").must_be("at least 0", |s| s.lr >= 0.0),
        key!(S, schedule, "Course of the learning rate after warm-up, as in transformers."),
        key!(S, warmup_steps, "Steps from 0 up to the peak."),
        key!(S, weight_decay, "Decoupled weight decay.").must_be("at least 0", |s| s.weight_decay >= 0.0),
        key!(S, betas, "AdamW's moment decays.").must_be("two numbers, each at least 0 and below 1", |s| {
            (0.0..1.0).contains(&s.betas.0) && (0.0..1.0).contains(&s.betas.1)
        }),
        key!(S, eps, "AdamW's epsilon.").must_be("above 0", |s| s.eps > 0.0),
        key!(S, max_grad_norm, "Gradients are scaled down to this global norm; 0 is off.")
            .must_be("at least 0", |s| s.max_grad_norm >= 0.0),
        key!(S, seed, "Seed of everything random."),
        key!(S, loss_scale, "Factor on the loss before the backward pass.")
            .otherwise("256 for f16, else 1")
            .must_be("above 0, or \"dynamic\"", |s| {
                !matches!(s.loss_scale, Some(kfc_runtime::config::LossScale::Static(scale)) if scale <= 0.0)
            }),
        key!(S, save_every, "Steps between checkpoints; 0: only at the end."),
        key!(S, keep, "Checkpoints kept.").must_be("at least 1", |s| s.keep >= 1),
        Key {
            name: "mem_budget",
            doc: "Memory that the run may take.",
            kind: Bytes::kind(),
            default: DefaultValue::Words("no limit"),
            rule: None,
            read: |section, node, field, context| {
                section.mem_budget = Some(Bytes::read(node, field, context)?.0);
                Ok(())
            },
            show: |section| section.mem_budget.map(Bytes).show(),
        },
        key!(
            S,
            recompute,
            "What is computed again in the backward pass instead of being kept: what costs next to nothing and what the budget asks for, nothing, \
             everything inside each layer (or each group of so many), or inside attention."
        ),
        key!(
            S,
            embeddings,
            "Where embedding tables are that are neither trained, nor random, nor shared with an output layer: in memory, or in their \
             files, from which a step reads the rows of its tokens; left open, tables of 16 MiB or more are in their files."
        ),
    ]);
    Section { name: "train", doc: "Steps, optimiser and schedule.", defaults: train_defaults, keys }
}

/// `[report]` with no key given (`prompts` is required).
fn report_defaults() -> ReportSection {
    ReportSection { prompts: Vec::new(), max_new_tokens: 48 }
}

pub(super) fn report() -> Section<ReportSection> {
    type S = ReportSection;
    Section {
        name: "report",
        doc: "What `report.html` shows beside curves, memory and kernels.",
        defaults: report_defaults,
        keys: vec![
            key!(S, prompts, "Texts that the model goes on from, before training and after it.")
                .required()
                .must_be("at least one text, none of them empty", |s| {
                    !s.prompts.is_empty() && s.prompts.iter().all(|p| !p.trim().is_empty())
                }),
            key!(S, max_new_tokens, "Longest of these answers, in tokens.")
                .must_be("from 1 to 1048576", |s| (1..=MANY).contains(&s.max_new_tokens)),
        ],
    }
}

pub(super) fn kernels() -> Section<KernelsSection> {
    type S = KernelsSection;
    Section {
        name: "kernels",
        doc: "How kernels of a GPU are compiled. Changes no result.",
        defaults: || KernelsSection { python: None },
        keys: vec![
            key!(
                S,
                python,
                "A Python with Triton 3.6, for kernels in Triton. `--python` and KFC_PYTHON go before it."
            )
            .otherwise("`.gpu-toolchain/bin/python` in the current folder, else `python3`"),
        ],
    }
}

/// `steps` and `epochs` fill one field; that exactly one is given is checked with the other relations.
fn length_keys() -> Vec<Key<TrainSection>> {
    vec![
        Key::<TrainSection> {
            name: "steps",
            doc: "Optimiser steps.",
            kind: usize::kind(),
            default: DefaultValue::Words("give `steps` or `epochs`"),
            rule: None,
            read: |section, node, field, context| {
                section.length = Length::Steps(usize::read(node, field, context)?);
                Ok(())
            },
            show: |section| match &section.length {
                Length::Steps(steps) => steps.show(),
                Length::Epochs(_) => None,
            },
        }
        .must_be("at least 1", |s| s.length != Length::Steps(0)),
        Key::<TrainSection> {
            name: "epochs",
            doc: "Passes over the data.",
            kind: f64::kind(),
            default: DefaultValue::Words("give `steps` or `epochs`"),
            rule: None,
            read: |section, node, field, context| {
                section.length = Length::Epochs(f64::read(node, field, context)?);
                Ok(())
            },
            show: |section| match &section.length {
                Length::Steps(_) => None,
                Length::Epochs(epochs) => epochs.show(),
            },
        }
        .must_be("above 0", |s| !matches!(s.length, Length::Epochs(epochs) if epochs <= 0.0)),
    ]
}

/// Names of the sections at the top of a file.
const SECTIONS: [&str; 8] = ["model", "lora", "distill", "ewc", "data", "train", "report", "kernels"];

/// Every key with its section, for "did you mean".
fn all_keys() -> Vec<(&'static str, &'static str)> {
    fn names<T>(section: Section<T>) -> Vec<(&'static str, &'static str)> {
        section.keys.iter().map(|key| (section.name, key.name)).collect()
    }
    [
        names(model()),
        names(lora()),
        names(distill()),
        names(ewc()),
        names(data()),
        names(train()),
        names(report()),
        names(kernels()),
    ]
    .concat()
}

/// What other tools call our keys.
const FOREIGN_NAMES: [(&str, &str); 16] = [
    ("learning_rate", "train.lr"),
    ("batch_size", "train.batch"),
    ("per_device_train_batch_size", "train.batch"),
    ("gradient_accumulation_steps", "train.accumulation"),
    ("num_train_epochs", "train.epochs"),
    ("num_epochs", "train.epochs"),
    ("max_steps", "train.steps"),
    ("lr_scheduler_type", "train.schedule"),
    ("save_steps", "train.save_every"),
    ("rank", "lora.r"),
    ("lora_r", "lora.r"),
    ("lora_alpha", "lora.alpha"),
    ("lora_dropout", "lora.dropout"),
    ("target_modules", "lora.targets"),
    ("use_rslora", "lora.rslora"),
    ("cutoff_len", "data.seq_len"),
];

/// Decodes the whole file, section by section.
pub(super) fn decode_job(root: &Node, context: &Context) -> Result<JobConfig, ConfigError> {
    for entry in root.entries() {
        if !SECTIONS.contains(&entry.key.as_str()) {
            let problem = format!("unknown section; {}", section_hint(&entry.key));
            return Err(context.error(&entry.at, &entry.key, problem));
        }
    }
    Ok(JobConfig {
        model: decode_required(&model(), root, context)?,
        lora: decode_optional(&lora(), root, context)?,
        distill: decode_optional(&distill(), root, context)?,
        ewc: decode_optional(&ewc(), root, context)?.map(|ewc| with_default_mode(ewc, root)),
        data: decode_required(&data(), root, context)?,
        train: decode_required(&train(), root, context)?,
        report: decode_optional(&report(), root, context)?,
        kernels: decode_optional(&kernels(), root, context)?,
    })
}

fn with_default_mode(mut ewc: EwcSection, root: &Node) -> EwcSection {
    if root.get("ewc").is_some_and(|node| node.get("mode").is_none()) {
        ewc.mode = if root.get("lora").is_some() { EwcMode::Adapter } else { EwcMode::Weights };
    }
    ewc
}

fn section_hint(key: &str) -> String {
    if let Some((_, name)) = known_elsewhere(key) {
        return format!("`{name}` belongs in {}", sections_of(name));
    }
    match nearest(key, SECTIONS) {
        Some(near) => format!("did you mean [{near}]?"),
        None => format!("the sections are [{}]", SECTIONS.join("], [")),
    }
}

/// The section and key that `key` must mean, if it is the name of one, here or in another tool.
fn known_elsewhere(key: &str) -> Option<(&'static str, &'static str)> {
    let foreign =
        FOREIGN_NAMES.iter().find(|(name, _)| *name == key).and_then(|(_, ours)| ours.split_once('.'));
    foreign.or_else(|| all_keys().into_iter().find(|(_, name)| *name == key))
}

/// The sections that have a key `name`: `[lora] or [distill]`.
fn sections_of(name: &str) -> String {
    let having = all_keys().into_iter().filter(|(_, key)| *key == name);
    having.map(|(section, _)| format!("[{section}]")).collect::<Vec<_>>().join(" or ")
}

fn decode_required<T>(section: &Section<T>, root: &Node, context: &Context) -> Result<T, ConfigError> {
    match root.get(section.name) {
        Some(node) => decode(section, node, section.name, context),
        None => {
            let problem =
                format!("the section is missing; add [{}] with {}", section.name, required_keys(section));
            Err(context.error(&root.at, section.name, problem))
        }
    }
}

fn required_keys<T>(section: &Section<T>) -> String {
    let required = section.keys.iter().filter(|key| matches!(key.default, DefaultValue::Required));
    let names: Vec<String> = required.map(|key| format!("`{}`", key.name)).collect();
    if names.is_empty() { "`steps` or `epochs`".into() } else { names.join(" and ") }
}

fn decode_optional<T>(
    section: &Section<T>,
    root: &Node,
    context: &Context,
) -> Result<Option<T>, ConfigError> {
    root.get(section.name).map(|node| decode(section, node, section.name, context)).transpose()
}

/// Decodes `node` as `section`; `path` is its full name (with an index for a list of tables).
fn decode<T>(section: &Section<T>, node: &Node, path: &str, context: &Context) -> Result<T, ConfigError> {
    let Value::Table(entries) = &node.value else {
        return Err(context.wrong_type(node, path, &format!("a section; write [{}]", section.name)));
    };
    let mut decoded = (section.defaults)();
    for entry in entries {
        let field = format!("{path}.{}", entry.key);
        let Some(key) = section.keys.iter().find(|key| key.name == entry.key) else {
            return Err(context.error(&entry.at, &field, unknown_key(section, &entry.key)));
        };
        (key.read)(&mut decoded, &entry.node, &field, context)?;
        if let Some(rule) = key.rule.as_ref().filter(|rule| !(rule.holds)(&decoded)) {
            let value = (key.show)(&decoded).unwrap_or_default();
            let problem = format!("is {value}, but must be {}", rule.words);
            return Err(context.error(&entry.node.at, &field, problem));
        }
    }
    let missing = |key: &&Key<T>| {
        matches!(key.default, DefaultValue::Required) && entries.iter().all(|e| e.key != key.name)
    };
    match section.keys.iter().find(missing) {
        Some(key) => {
            let problem = format!("is missing and has no default; give {}", key.kind);
            Err(context.error(&node.at, &format!("{path}.{}", key.name), problem))
        }
        None => Ok(decoded),
    }
}

fn unknown_key<T>(section: &Section<T>, key: &str) -> String {
    let names: Vec<&str> = section.keys.iter().map(|key| key.name).collect();
    let list = format!("the keys of [{}] are {}", section.name, names.join(", "));
    let elsewhere = known_elsewhere(key);
    match (nearest(key, names.iter().copied()), elsewhere) {
        (_, Some((other, name))) if other == section.name => {
            format!("unknown key; it is called `{name}` here; {list}")
        }
        (_, Some((_, name))) => format!("unknown key; `{name}` belongs in {}; {list}", sections_of(name)),
        (Some(near), None) => format!("unknown key; did you mean `{near}`? {list}"),
        (None, None) => format!("unknown key; {list}"),
    }
}
