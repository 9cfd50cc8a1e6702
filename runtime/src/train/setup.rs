//! From a job to a trainer: models and adapters loaded, graphs compiled, everything bound.

use super::{Parts, Trainer, ewc};
use crate::accounting::Account;
use crate::config::{EwcMode, JobConfig, LoraInit, LoraTargets, ModelInit, RecomputePolicy};
use crate::data::{Loader, Tokenizer};
use crate::error::{Result, RunError};
use crate::exec::Store;
use crate::hf::{Adapter, WeightFile, read_adapter};
use crate::memory;
use crate::models::{Model, write_f32};
use crate::profile::{PlanProfile, Profile};
use crate::random;
use crate::session;
use crate::teacher_cache::{TeacherCache, is_cache};
use kfc_graph::passes::recompute::Policy;
use kfc_graph::{DType, Graph, InputKind, TensorType};
use kfc_kernels::KernelError;
use kfc_kernels::compile::{CompileOptions, Recompute, compile_with, frontier};
use kfc_kernels::plan::Plan;
use kfc_ops::model::{LoraSpec, resolve_targets};
use kfc_ops::step::TrainedParam;
use kfc_ops::step::train::{
    DistillSpec, FeatureSpec, TeacherSpec, TrainGraph, TrainSpec, projector_input, train_graph,
    trained_params,
};
use kfc_ops::step::update::{EwcSpec, UpdateSpec, update_graph};
use std::path::Path;

/// The student with its adapter, opened.
pub struct Student {
    /// Configuration and weights.
    pub model: Model,
    /// Where adapters attach; `None` is full fine-tuning.
    pub lora: Option<LoraSpec>,
    /// The adapter that training starts from, if it is not a fresh one.
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

/// Puts the adapter's A and B into the store: the ones read, or fresh ones (A from Kaiming's uniform distribution with
/// `a = sqrt(5)`, that is ±1/sqrt(in); B zero, as PEFT does).
///
/// # Errors
/// If memory runs out.
pub fn place_adapter(store: &mut Store, lora: &LoraSpec, adapter: Option<&Adapter>, seed: u64) -> Result<()> {
    for m in &lora.modules {
        let [a, b] = ["A", "B"].map(|side| kfc_ops::model::transformer::lora_input(&m.path, side));
        let (a_ty, b_ty) = (
            TensorType::new(DType::F32, [lora.r, m.in_features]),
            TensorType::new(DType::F32, [m.out_features, lora.r]),
        );
        match adapter.and_then(|ad| ad.modules.get(&m.path)) {
            Some(pair) => {
                store.insert(&a, &a_ty, &pair.a)?;
                store.insert(&b, &b_ty, &pair.b)?;
            }
            None => {
                let bound = 1.0 / (m.in_features as f64).sqrt();
                store.insert(&a, &a_ty, &random::uniform_tensor(seed, &a, a_ty.elements(), bound))?;
                store.allocate(&b, &b_ty)?;
            }
        }
    }
    Ok(())
}

/// Opens the teacher of a job, if it has one.
///
/// # Errors
/// If it is missing or damaged.
fn open_teacher(job: &JobConfig) -> Result<Option<Teacher>> {
    let Some(distill) = &job.distill else { return Ok(None) };
    if is_cache(&distill.teacher) {
        return Ok(Some(Teacher::Cache(TeacherCache::open(&distill.teacher)?)));
    }
    let model = Model::open(&distill.teacher, job.model.dtype, ModelInit::Pretrained, 0)?;
    Ok(Some(Teacher::Model(Box::new(model))))
}

/// Refuses a teacher whose token ids mean other tokens than the student's, or that does not know a token of the rows.
///
/// # Errors
/// Names the first differing token, or the unknown one.
pub(crate) fn check_teacher(job: &JobConfig, teacher: &Model, loader: &Loader) -> Result<()> {
    check_tokenizers(job, teacher)?;
    let vocab = teacher.config.vocab_size;
    for (what, rows) in [("data.train", Some(loader.rows())), ("distill.general", loader.general_rows())] {
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

/// The training graph's specification.
fn train_spec<'a>(
    job: &'a JobConfig,
    student: &'a Student,
    teacher: Option<&'a Teacher>,
    seq: usize,
) -> TrainSpec<'a> {
    let distill = job.distill.as_ref().zip(teacher).map(|(d, t)| DistillSpec {
        alpha: d.alpha,
        temperature: d.temperature,
        divergence: d.divergence,
        teacher: match t {
            Teacher::Model(m) => TeacherSpec::Model(&m.config, m.dtype),
            Teacher::Cache(c) => TeacherSpec::TopK(c.description.k),
        },
        features: d
            .features
            .iter()
            .map(|f| FeatureSpec {
                student_layer: f.student_layer,
                teacher_layer: f.teacher_layer,
                weight: f.weight,
            })
            .collect(),
    });
    TrainSpec {
        student: &student.model.config,
        dtype: student.model.dtype,
        lora: student.lora.as_ref(),
        batch: job.train.batch,
        seq,
        distill,
    }
}

/// The graphs of a training step.
pub struct StepGraphs {
    /// Forward, losses and backward of a micro-batch.
    pub train: TrainGraph,
    /// Penalties, clipping and AdamW.
    pub update: Graph,
}

/// Models in their store, and the graphs that run on them.
struct Prepared {
    student: Student,
    teacher: Option<Teacher>,
    store: Store,
    penalty: Option<ewc::Penalty>,
    graphs: StepGraphs,
}

/// Sees graphs while they are compiled: name of the graph, name of the pass, the graph after it.
pub type PassObserver<'a> = dyn FnMut(&str, &str, &Graph) + 'a;

/// A job compiled, but not bound.
pub struct CompiledJob {
    /// The micro-batch plan and the update plan.
    pub plans: [Plan; 2],
    /// What the run would hold.
    pub account: Account,
}

/// Compiles a job for rows of `seq` tokens without running it.
///
/// # Errors
/// As [`Trainer::new`].
pub fn compile(job: &JobConfig, seq: usize, observer: &mut PassObserver<'_>) -> Result<CompiledJob> {
    memory::release_unused();
    let before = memory::resident();
    let mut p = prepare(job, seq)?;
    allocate(&mut p.store, &p.graphs)?;
    compile_graphs(job, &p.graphs, &Account::new(before, &p.store, 0), observer)
}

/// Tensors that the graphs need beside weights: parameters, accumulators, moments, step data.
fn allocate(store: &mut Store, graphs: &StepGraphs) -> Result<()> {
    for graph in [&graphs.train.graph, &graphs.update] {
        for input in graph.inputs().iter().filter(|i| i.kind != InputKind::Weight) {
            store.allocate(&input.name, graph.ty(input.value))?;
        }
    }
    Ok(())
}

/// Compiles both graphs so that the run stays within its budget; `held` is what it holds beside the arena.
fn compile_graphs(
    job: &JobConfig,
    graphs: &StepGraphs,
    held: &Account,
    observer: &mut PassObserver<'_>,
) -> Result<CompiledJob> {
    let recompute = match (job.train.recompute, job.train.mem_budget) {
        (RecomputePolicy::Auto, Some(budget)) => {
            Recompute::WithinBudget(budget.saturating_sub(held.total()) as usize)
        }
        (RecomputePolicy::Auto | RecomputePolicy::Off, _) => Recompute::Off,
        (RecomputePolicy::EveryLayer, _) => Recompute::Named(Policy::EveryLayer),
        (RecomputePolicy::EveryK(k), _) => Recompute::Named(Policy::EveryK(k)),
        (RecomputePolicy::Attention, _) => Recompute::Named(Policy::AttentionOnly),
    };
    let options = CompileOptions { recompute, ..CompileOptions::default() };
    observer("train", "00-built", &graphs.train.graph);
    observer("update", "00-built", &graphs.update);
    let update = compile_with(&graphs.update, &CompileOptions::default(), &mut |pass, graph| {
        observer("update", pass, graph);
    })?
    .plan;
    let train = match compile_with(&graphs.train.graph, &options, &mut |pass, graph| {
        observer("train", pass, graph)
    }) {
        Ok(compiled) => compiled.plan,
        Err(KernelError::Budget(e)) => return Err(too_small(job, held, e.smallest.max(update.arena_bytes))),
        Err(e) => return Err(e.into()),
    };
    let arena = train.arena_bytes.max(update.arena_bytes);
    let account = held.with_arena(arena as u64);
    if job.train.mem_budget.is_some_and(|budget| account.total() > budget) {
        let smallest = match job.train.recompute {
            RecomputePolicy::Auto => arena,
            _ => smallest_arena(&graphs.train.graph)?.max(update.arena_bytes),
        };
        return Err(too_small(job, held, smallest));
    }
    Ok(CompiledJob { plans: [train, update], account })
}

fn smallest_arena(graph: &Graph) -> Result<usize> {
    let frontier = frontier(graph, &CompileOptions::default().rates)?;
    Ok(frontier.choices.iter().map(|c| c.arena_bytes).min().unwrap_or(0))
}

/// The refusal of a budget: what the smallest that would do is, and what it goes to.
fn too_small(job: &JobConfig, held: &Account, smallest_arena: usize) -> RunError {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let items: Vec<String> = held
        .items
        .iter()
        .filter(|i| i.bytes >= 1 << 20)
        .map(|i| format!("{} MiB {}", mib(i.bytes), i.what))
        .collect();
    let smallest = mib(held.total() + smallest_arena as u64);
    let policy = match job.train.recompute {
        RecomputePolicy::Auto => "",
        _ => " with train.recompute = \"auto\"",
    };
    RunError::Input(format!(
        "train.mem_budget: {} MiB is too small; the smallest that this job runs in is {smallest} MiB{policy}: {} MiB \
         activations{}{}; raise the budget, or lower train.batch or data.seq_len",
        job.train.mem_budget.unwrap_or(0) >> 20,
        mib(smallest_arena as u64),
        if items.is_empty() { "" } else { ", " },
        items.join(", ")
    ))
}

/// A job's step as it would run on rows of `seq` tokens, with what it would hold in memory when `before` bytes are resident
/// already. No weight is read and nothing is allocated.
///
/// # Errors
/// As [`Trainer::new`], as far as configurations and file headers tell.
pub fn predict(job: &JobConfig, seq: usize, before: u64) -> Result<Profile> {
    check_modes(job)?;
    let student = open_student(job)?;
    let teacher = open_teacher(job)?;
    check_layers(job, &student.model, teacher.as_ref())?;
    let spec = train_spec(job, &student, teacher.as_ref(), seq);
    let params = trained_params(&spec);
    let describe = |section| ewc::describe(section, &params, student.lora.as_ref());
    let penalty = job.ewc.as_ref().map(describe).transpose()?;
    let graphs = step_graphs(job, &spec, penalty.as_ref())?;
    let held = Account::of_graphs(before, [&graphs.train.graph, &graphs.update]);
    let CompiledJob { plans, account } = compile_graphs(job, &graphs, &held, &mut |_, _, _| ())?;
    let shape = [job.train.batch, seq, job.train.accumulation];
    Ok(Profile::predicted(describe_student(&student, &params), shape, &plans, &account))
}

/// The student in a line: architecture, size, element type, what is trained.
pub(super) fn describe_student(student: &Student, params: &[TrainedParam]) -> String {
    let c = &student.model.config;
    let all: usize = c.parameters().iter().map(|p| p.elements()).sum();
    let trained: usize = params.iter().map(TrainedParam::elements).sum();
    let how = match &student.lora {
        Some(l) => format!("LoRA r={} on {} layers, {trained} parameters trained", l.r, l.modules.len()),
        None => format!("all {trained} parameters trained"),
    };
    format!("{}, {all} parameters in {}, {how}", c.family.name(), student.model.dtype)
}

/// Opens everything the job names, fills a store and builds the graphs.
fn prepare(job: &JobConfig, seq: usize) -> Result<Prepared> {
    check_modes(job)?;
    let student = open_student(job)?;
    let teacher = open_teacher(job)?;
    let mut store = Store::new();
    place_student(&mut store, job, &student, seq)?;
    if let Some(Teacher::Model(model)) = &teacher {
        model.place(&mut store, "teacher.", false)?;
        model.place_rope(&mut store, "teacher.", seq)?;
    }
    check_layers(job, &student.model, teacher.as_ref())?;
    let spec = train_spec(job, &student, teacher.as_ref(), seq);
    let params = trained_params(&spec);
    place_projectors(&mut store, job, &params)?;
    let penalty = match &job.ewc {
        Some(section) => Some(ewc::load(section, &params, student.lora.as_ref(), &mut store)?),
        None => None,
    };
    let graphs = step_graphs(job, &spec, penalty.as_ref())?;
    Ok(Prepared { student, teacher, store, penalty, graphs })
}

fn step_graphs(job: &JobConfig, spec: &TrainSpec<'_>, penalty: Option<&ewc::Penalty>) -> Result<StepGraphs> {
    let train = train_graph(spec)?;
    let none = Default::default();
    let update = update_graph(&UpdateSpec {
        params: &train.params,
        betas: job.train.betas,
        eps: job.train.eps,
        weight_decay: job.train.weight_decay,
        max_grad_norm: job.train.max_grad_norm,
        ewc: penalty.zip(job.ewc.as_ref()).map(|(p, s)| EwcSpec { lambda: s.lambda, terms: &p.terms }),
        lr_scaled: penalty.map_or(&none, |p| &p.lr_scaled),
        cast: master_copies(spec),
    })?;
    Ok(StepGraphs { train, update })
}

/// The 16-bit type that trained weights are kept in beside their f32 masters, if any.
fn master_copies(spec: &TrainSpec<'_>) -> Option<DType> {
    (spec.lora.is_none() && spec.dtype != DType::F32).then_some(spec.dtype)
}

impl Trainer {
    /// Loads models, builds and compiles the step, and binds it.
    ///
    /// # Errors
    /// If anything that the job names is missing, damaged or does not fit, or memory runs out.
    pub fn new(job: &JobConfig, loader: Loader) -> Result<Trainer> {
        // Reading and tokenising left holes behind; they are not what the run holds.
        memory::release_unused();
        let before = memory::resident();
        let Prepared { student, teacher, mut store, penalty, graphs } = prepare(job, loader.seq_len())?;
        match &teacher {
            Some(Teacher::Cache(cache)) => check_cache(job, cache, &loader, student.model.config.vocab_size)?,
            Some(Teacher::Model(model)) => check_teacher(job, model, &loader)?,
            None => {}
        }
        allocate(&mut store, &graphs)?;
        let held = Account::new(before, &store, 0);
        let CompiledJob { plans, account } = compile_graphs(job, &graphs, &held, &mut |_, _, _| ())?;
        // Compiling, too, left holes behind.
        memory::release_unused();
        let bound = session::bind(&plans, &store)?;
        let described =
            [(0, job.train.accumulation), (1, 1)].map(|(i, runs)| PlanProfile::of(&plans[i], runs));
        let [micro, update]: [_; 2] =
            bound.try_into().map_err(|_| RunError::Failed("a step has two plans".into()))?;
        Ok(Trainer::assemble(Parts {
            job: job.clone(),
            loader,
            student,
            teacher,
            micro,
            update,
            store,
            params: graphs.train.params,
            important: penalty.and_then(|p| p.important),
            account,
            described,
        }))
    }
}

/// Weights, adapter and tables of the student.
fn place_student(store: &mut Store, job: &JobConfig, student: &Student, seq: usize) -> Result<()> {
    let full = student.lora.is_none();
    student.model.place(store, "student.", full)?;
    if full && student.model.dtype != DType::F32 {
        for p in student.model.config.parameters() {
            student.model.place_as(store, &format!("master.student.{}", p.name), &p, DType::F32, true)?;
        }
    }
    student.model.place_rope(store, "student.", seq)?;
    match &student.lora {
        Some(lora) => place_adapter(store, lora, student.adapter.as_ref(), job.train.seed),
        None => Ok(()),
    }
}

fn check_cache(job: &JobConfig, cache: &TeacherCache, loader: &Loader, vocab: usize) -> Result<()> {
    let path = job.distill.as_ref().map(|d| d.teacher.clone()).unwrap_or_default();
    let general = loader.general_rows().map_or(0, |g| g.len());
    cache.check(job, &path, [loader.rows().len(), general, loader.seq_len(), vocab], rows_fingerprint(loader))
}

/// Hash of the tokens of all rows of a job.
pub fn rows_fingerprint(loader: &Loader) -> u64 {
    let general = loader.general_rows().map_or(0, |g| g.fingerprint());
    loader.rows().fingerprint() ^ general.rotate_left(1)
}

/// Projectors of feature alignment: from their file, or Kaiming's uniform distribution.
fn place_projectors(store: &mut Store, job: &JobConfig, params: &[TrainedParam]) -> Result<()> {
    let features = job.distill.iter().flat_map(|d| &d.features).enumerate();
    for (i, f) in features {
        let name = projector_input(i);
        let Some(p) = params.iter().find(|p| p.name == name) else {
            return Err(RunError::Input(
                "distill.features: hidden states need the teacher model, a cache holds only its logits"
                    .into(),
            ));
        };
        let values = match &f.projector {
            Some(path) => {
                let file = WeightFile::open(path)?;
                file.expect("weight")?.expect_float()?.expect_dims(&p.dims)?.to_f32()?
            }
            None => {
                let bound = 1.0 / (p.dims[1] as f64).sqrt();
                random::uniform_tensor(job.train.seed, &name, p.elements(), bound)
            }
        };
        let slot = store.allocate(&name, &TensorType::new(DType::F32, p.dims.clone()))?;
        write_f32(&values, DType::F32, store.slice_mut::<u8>(slot));
    }
    Ok(())
}

/// Refuses aligned layers that a model does not have.
fn check_layers(job: &JobConfig, student: &Model, teacher: Option<&Teacher>) -> Result<()> {
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
fn check_modes(job: &JobConfig) -> Result<()> {
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
