//! The models and adapters of a job, opened and checked against each other.

use crate::config::{EwcMode, JobConfig, LoraInit, LoraTargets, ModelInit};
use crate::data::{Loader, Tokenizer};
use crate::error::{Result, RunError};
use crate::hf::{Adapter, read_adapter};
use crate::lookup::Lookup;
use crate::models::Model;
use crate::teacher_cache::{TeacherCache, is_cache};
use kfc_ops::model::{LoraSpec, resolve_targets};
use std::path::Path;

/// The student with its adapter, opened.
pub struct Student {
    /// Configuration and weights.
    pub model: Model,
    /// Where adapters attach; `None` is full fine-tuning.
    pub lora: Option<LoraSpec>,
    /// The adapter that training starts from, if it is not a fresh one. A trainer, whose store has them, keeps no values here.
    pub adapter: Option<Adapter>,
}

/// The teacher, opened.
pub enum Teacher {
    /// A model that runs beside the student.
    Model(Box<Model>),
    /// Its logits, computed before.
    Cache(TeacherCache),
}

/// Opens the student and decides where adapters attach.
///
/// # Errors
/// If the model or the adapter is missing, damaged or does not fit the job.
pub fn open_student(job: &JobConfig) -> Result<Student> {
    let model = Model::open(&job.model.path, job.model.dtype, job.model.init, job.train.seed)?;
    let Some(section) = &job.lora else { return Ok(Student { model, lora: None, adapter: None }) };
    let in_model = |source| RunError::Model { path: job.model.path.display().to_string(), source };
    let (lora, adapter) = match &section.init {
        LoraInit::Default => {
            let names = match &section.targets {
                LoraTargets::AllLinear => None,
                LoraTargets::Names(names) => Some(names.as_slice()),
            };
            let modules = resolve_targets(&model.config, names).map_err(in_model)?;
            let scale = LoraSpec::scale_of(section.alpha, section.r, section.rslora);
            (LoraSpec { r: section.r, scale, dropout: section.dropout, modules }, None)
        }
        LoraInit::Path(path) => {
            let adapter = read_adapter(path)?;
            (adapter_spec(&model, &adapter, section.dropout, path)?, Some(adapter))
        }
    };
    Ok(Student { model, lora: Some(lora), adapter })
}

/// The LoRA specification of an adapter read from a folder: its rank, scale and modules rule.
///
/// # Errors
/// If a module of the adapter is not one of the model's, or its shape does not fit.
pub fn adapter_spec(model: &Model, adapter: &Adapter, dropout: f64, path: &Path) -> Result<LoraSpec> {
    let all = model.config.modules();
    for (name, pair) in &adapter.modules {
        let Some(module) = all.iter().find(|m| m.path == *name) else {
            return Err(RunError::Input(format!(
                "{}: the adapter is on `{name}`, which is no linear layer of {}; is it an adapter of another model?",
                path.display(),
                model.path.display()
            )));
        };
        if (pair.inputs, pair.outputs) != (module.in_features, module.out_features) {
            return Err(RunError::Input(format!(
                "{}: the adapter of `{name}` is for a layer [{}, {}], the model's is [{}, {}]; is it an adapter of another \
                 model?",
                path.display(),
                pair.outputs,
                pair.inputs,
                module.out_features,
                module.in_features
            )));
        }
    }
    let modules = all.into_iter().filter(|m| adapter.modules.contains_key(&m.path)).collect();
    let c = &adapter.config;
    Ok(LoraSpec { r: c.r, scale: c.scale(), dropout, modules })
}

/// Opens the teacher of a job, if it has one.
///
/// # Errors
/// If it is missing or damaged.
pub(super) fn open_teacher(job: &JobConfig) -> Result<Option<Teacher>> {
    let Some(distill) = &job.distill else { return Ok(None) };
    if is_cache(&distill.teacher) {
        return Ok(Some(Teacher::Cache(TeacherCache::open(&distill.teacher)?)));
    }
    let model = Model::open(&distill.teacher, job.model.dtype, ModelInit::Pretrained, 0)?;
    Ok(Some(Teacher::Model(Box::new(model))))
}

/// Embedding tables that stay in their files.
pub(super) struct Lookups {
    pub(super) student: Option<Lookup>,
    pub(super) teacher: Option<Lookup>,
}

impl Lookups {
    /// Those of a job's models.
    ///
    /// # Errors
    /// If a table is not what it was when the model was opened.
    pub(super) fn of(job: &JobConfig, student: &Student, teacher: Option<&Teacher>) -> Result<Lookups> {
        let embeddings = job.train.embeddings;
        let teacher = match teacher {
            Some(Teacher::Model(model)) => model.lookup(embeddings, false)?,
            _ => None,
        };
        Ok(Lookups { student: student.model.lookup(embeddings, student.lora.is_none())?, teacher })
    }
}

fn check_tokenizers(job: &JobConfig, teacher: &Model) -> Result<()> {
    let Some(distill) = &job.distill else { return Ok(()) };
    let own = job.data.tokenizer.as_deref().unwrap_or(&job.model.path);
    let has = |p: &Path| p.is_file() || p.join("tokenizer.json").is_file();
    if !has(own) || !has(&teacher.path) {
        return Ok(());
    }
    Tokenizer::load(own)?.same_vocabulary(&Tokenizer::load(&teacher.path)?).map_err(|e| {
        RunError::Input(format!(
            "distill.teacher: {} has another tokenizer than the student ({e}); distillation compares token by token, \
             choose a teacher of the same tokenizer",
            distill.teacher.display()
        ))
    })
}

/// Refuses aligned layers that a model does not have.
pub(super) fn check_layers(job: &JobConfig, student: &Model, teacher: Option<&Teacher>) -> Result<()> {
    let teacher = match teacher {
        Some(Teacher::Model(teacher)) => Some(&**teacher),
        _ => None,
    };
    for (i, f) in job.distill.iter().flat_map(|d| &d.features).enumerate() {
        let layers =
            [("student_layer", f.student_layer, Some(student)), ("teacher_layer", f.teacher_layer, teacher)];
        for (key, layer, model) in layers {
            let Some(model) = model else { continue };
            let last = model.config.layers;
            if layer < 1 || layer > last {
                return Err(RunError::Input(format!(
                    "distill.features[{i}].{key}: {layer} is not one of the layers 1 to {last} of {}",
                    model.path.display()
                )));
            }
        }
    }
    Ok(())
}

/// Jobs built in code do not pass the configuration reader, which refuses the same by line.
pub(super) fn check_modes(job: &JobConfig) -> Result<()> {
    match (&job.ewc, &job.lora) {
        (Some(e), Some(_)) if e.mode == EwcMode::Weights => Err(RunError::Input(
            "ewc.mode = \"weights\" is for full fine-tuning; with [lora] use \"adapter\" or \"delta\"".into(),
        )),
        (Some(e), None) if e.mode != EwcMode::Weights => {
            Err(RunError::Input("without [lora] every weight is trained: use ewc.mode = \"weights\"".into()))
        }
        _ => Ok(()),
    }
}

/// Refuses a teacher whose token ids mean other tokens than the student's, or that does not know a token of the rows.
///
/// # Errors
/// Names the first differing token, or the unknown one.
pub(crate) fn check_teacher(job: &JobConfig, teacher: &Model, loader: &Loader) -> Result<()> {
    check_tokenizers(job, teacher)?;
    let vocab = teacher.config.vocab_size;
    for (what, rows) in [("data.train", loader.rows()), ("distill.general", loader.general_rows())] {
        let documents = rows.map(|r| r.documents());
        let largest = documents.and_then(|d| (0..d.len()).flat_map(|i| d.tokens(i)).max());
        if let Some(token) = largest.filter(|t| **t as usize >= vocab) {
            return Err(RunError::Input(format!(
                "distill.teacher: {} has {vocab} tokens, but {what} has token {token}; choose a teacher that knows every \
                 token of the data",
                teacher.path.display()
            )));
        }
    }
    Ok(())
}
