//! From a job to a trainer: models and adapters loaded, graphs compiled, everything bound.

use super::open::{self, Lookups, Student, Teacher};
use super::plans::{self, CompiledJob, StepGraphs};
pub use super::plans::{Budgets, Recomputed, Ways};
use super::scale::LossScaler;
use super::{Clock, DataSlots, Embedded, GRADIENTS, Outputs, Trainer, ewc};
use crate::accounting::{Account, BATCHES, READ_AHEAD};
use crate::calibration::Rates;
use crate::config::{JobConfig, Length};
use crate::data::{Loader, held_bytes};
use crate::device::{Device, Opened, cuda};
use crate::error::{Result, RunError};
use crate::exec::Store;
use crate::hf::{Adapter, WeightFile};
use crate::machine;
use crate::memory::{self, Held};
use crate::models::write_f32;
use crate::profile::{Machine, PlanProfile, Profile, Stage, Startup};
use crate::random;
use crate::teacher_cache::TeacherCache;
use crate::tuning::PlanEntry;
use crate::tuning::device::DeviceTuning;
use kfc_graph::{DType, InputKind, TensorType};
use kfc_kernels::compile::Backend;
use kfc_kernels::tile::Choices;
use kfc_kernels::tile::lower::lower_chosen;
use kfc_ops::model::LoraSpec;
use kfc_ops::step::TrainedParam;
use kfc_ops::step::train::{projector_input, trained_params};

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

/// Models in their store, and the graphs that run on them.
struct Prepared {
    student: Student,
    teacher: Option<Teacher>,
    lookups: Lookups,
    store: Store,
    penalty: Option<ewc::Penalty>,
    graphs: StepGraphs,
}

/// Compiles a job for rows of `seq` tokens and the kernels of a backend without running it.
///
/// # Errors
/// As [`Trainer::new`].
pub fn compile(
    job: &JobConfig,
    seq: usize,
    backend: Backend,
    observer: &mut plans::PassObserver<'_>,
) -> Result<CompiledJob> {
    let ways = &Ways::default();
    if backend == Backend::Tile {
        // What the host holds is no part of it.
        let (_, graphs) = described(job, seq)?;
        return plans::compile_graphs(job, &graphs, &held_on_device(&graphs), backend, ways, observer);
    }
    memory::release_unused();
    let before = Held::now();
    let mut p = prepare(job, seq)?;
    allocate(&mut p.store, &p.graphs, None)?;
    let mut held = Account::new(before, &p.store, 0);
    add_working(&mut held, job, &p.graphs, seq);
    plans::compile_graphs(job, &p.graphs, &held, backend, ways, observer)
}

/// What a process holds beside the arena that trains on the CPU and that holds `before` already.
fn held_on_host(job: &JobConfig, graphs: &StepGraphs, seq: usize, before: Held) -> Account {
    let mut held = Account::of_graphs(before, [&graphs.train.graph, &graphs.update]);
    add_working(&mut held, job, graphs, seq);
    held
}

/// Adds what steps on the CPU take beside tensors.
fn add_working(held: &mut Account, job: &JobConfig, graphs: &StepGraphs, seq: usize) {
    held.add(BATCHES, batches(job, seq));
    held.add_plans([&graphs.train.graph, &graphs.update]);
}

/// Bytes of the batches that the host holds at once.
fn batches(job: &JobConfig, seq: usize) -> u64 {
    held_bytes(job.train.batch, job.train.accumulation, seq)
}

/// Refuses what this machine cannot hold. The system would end the process, with nothing said.
fn check_machine(account: &Account) -> Result<()> {
    let limit = machine::memory().limit();
    if limit == 0 || account.total() <= limit {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    Err(RunError::Input(format!(
        "memory: the run would hold {} MiB, and this machine has {} MiB: {account}; set train.mem_budget, or lower \
         train.batch, train.accumulation or data.seq_len; `kfc doctor JOB.toml` says what would fit",
        mib(account.total()),
        mib(limit)
    )))
}

/// What a GPU holds beside the arena.
fn held_on_device(graphs: &StepGraphs) -> Account {
    Account::on_device([&graphs.train.graph, &graphs.update])
}

/// Tensors that the graphs need beside weights: parameters, accumulators, moments, step data; all but those whose name begins
/// with `without`.
fn allocate(store: &mut Store, graphs: &StepGraphs, without: Option<&str>) -> Result<()> {
    for graph in [&graphs.train.graph, &graphs.update] {
        let is_kept = |name: &str| !without.is_some_and(|prefix| name.starts_with(prefix));
        for input in graph.inputs().iter().filter(|i| i.kind != InputKind::Weight && is_kept(&i.name)) {
            store.allocate(&input.name, graph.ty(input.value))?;
        }
    }
    Ok(())
}

/// Where a step is planned for.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// This CPU, in a process that holds so much already.
    Host {
        /// See there.
        before: Held,
    },
    /// A GPU, with what it says it can do at best.
    Gpu {
        /// What it is.
        machine: Machine,
        /// See there.
        stated: Option<Rates>,
    },
}

impl Target {
    /// A device that is there; no context is made on it.
    ///
    /// # Errors
    /// If it is not there.
    pub fn of(device: &Device, before: Held) -> Result<Target> {
        Ok(match device {
            Device::Cpu => Target::Host { before },
            Device::Cuda { index, .. } => {
                let info = cuda::describe_one(*index)?;
                Target::Gpu { machine: info.machine(), stated: info.rates() }
            }
        })
    }

    fn backend(&self) -> Backend {
        match self {
            Target::Host { .. } => Backend::Cpu,
            Target::Gpu { .. } => Backend::Tile,
        }
    }

    fn machine(&self) -> Machine {
        match self {
            Target::Host { .. } => Machine::this(),
            Target::Gpu { machine, .. } => machine.clone(),
        }
    }

    /// What is held there beside the arena.
    fn held(&self, job: &JobConfig, graphs: &StepGraphs, seq: usize) -> Account {
        match self {
            Target::Host { before } => held_on_host(job, graphs, seq, *before),
            Target::Gpu { .. } => held_on_device(graphs),
        }
    }
}

/// A job's step as it would run on rows of `seq` tokens, with what it would hold in memory there. No weight is read and
/// nothing is allocated.
///
/// # Errors
/// As [`Trainer::new`], as far as configurations and file headers tell.
pub fn predict(job: &JobConfig, seq: usize, target: &Target) -> Result<Profile> {
    let (student, graphs) = described(job, seq)?;
    let ways = match target {
        Target::Host { .. } => Ways::default(),
        Target::Gpu { machine, .. } => on_gpu(machine, job, &graphs, &Ways::default()),
    };
    let CompiledJob { plans, account, .. } = plans::compile_graphs(
        job,
        &graphs,
        &target.held(job, &graphs, seq),
        target.backend(),
        &ways,
        &mut |_, _, _| (),
    )?;
    let shape = [job.train.batch, seq, job.train.accumulation];
    let model = describe_student(&student, &graphs.train.params);
    let mut profile = Profile::predicted(model, shape, target.machine(), &plans, &account);
    if let Target::Gpu { stated, .. } = target {
        profile.stated = *stated;
        let choices = DeviceTuning::load(&profile.machine).choices();
        let lowered = lower_chosen(&plans, &choices).map_err(|e| RunError::Failed(e.to_string()))?;
        let described = std::mem::take(&mut profile.plans).into_iter().enumerate();
        profile.plans = described.map(|(i, p)| p.with_programs(&lowered.keys(&plans[i], i))).collect();
    }
    Ok(profile)
}

/// What a job could run in: every choice between memory and time, with its peak. Arguments and promises as in [`predict`].
///
/// # Errors
/// As [`predict`], but for the budget, which is not looked at.
pub fn budgets(job: &JobConfig, seq: usize, target: &Target) -> Result<Budgets> {
    let (_, graphs) = described(job, seq)?;
    plans::budgets(&graphs, &target.held(job, &graphs, seq), target.backend())
}

/// What `ways` come to on this GPU: what is made again as a tuning of it says.
fn on_gpu(machine: &Machine, job: &JobConfig, graphs: &StepGraphs, ways: &Ways) -> Ways {
    let mut ways = ways.clone();
    if ways.recomputed == Recomputed::AsTuned {
        let tuning = DeviceTuning::load(machine);
        let known = tuning.has_plans().then(|| plans::plan_key(job, graphs));
        let entry = known.as_ref().and_then(|key| tuning.plan(key));
        ways.recomputed = entry.map_or(Recomputed::Planned, PlanEntry::recomputed);
    }
    ways
}

/// What a tuning knows the plans of a job by.
///
/// # Errors
/// As [`predict`].
pub fn plan_key(job: &JobConfig, seq: usize) -> Result<String> {
    Ok(plans::plan_key(job, &described(job, seq)?.1))
}

/// The student of a job and its graphs, from configurations and file headers alone.
fn described(job: &JobConfig, seq: usize) -> Result<(Student, StepGraphs)> {
    open::check_modes(job)?;
    let student = open::open_student(job)?;
    let teacher = open::open_teacher(job)?;
    open::check_layers(job, &student.model, teacher.as_ref())?;
    let lookups = Lookups::of(job, &student, teacher.as_ref())?;
    let spec = plans::train_spec(job, &student, teacher.as_ref(), &lookups, seq);
    let params = trained_params(&spec);
    let describe = |section| ewc::describe(section, &params, student.lora.as_ref());
    let penalty = job.ewc.as_ref().map(describe).transpose()?;
    let graphs = plans::step_graphs(job, &spec, penalty.as_ref())?;
    Ok((student, graphs))
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
    open::check_modes(job)?;
    let student = open::open_student(job)?;
    let teacher = open::open_teacher(job)?;
    let lookups = Lookups::of(job, &student, teacher.as_ref())?;
    let mut store = Store::new();
    place_student(&mut store, job, &student, &lookups, seq)?;
    if let Some(Teacher::Model(model)) = &teacher {
        model.place_beside(&mut store, "teacher.", false, lookups.teacher.as_ref())?;
        model.place_rope(&mut store, "teacher.", seq)?;
    }
    open::check_layers(job, &student.model, teacher.as_ref())?;
    let spec = plans::train_spec(job, &student, teacher.as_ref(), &lookups, seq);
    let params = trained_params(&spec);
    place_projectors(&mut store, job, &params)?;
    let penalty = match &job.ewc {
        Some(section) => Some(ewc::load(section, &params, student.lora.as_ref(), &mut store)?),
        None => None,
    };
    let graphs = plans::step_graphs(job, &spec, penalty.as_ref())?;
    Ok(Prepared { student, teacher, lookups, store, penalty, graphs })
}

impl Trainer {
    /// Loads models, builds and compiles the step, and binds it, on the CPU.
    ///
    /// # Errors
    /// If anything that the job names is missing, damaged or does not fit, or memory runs out.
    pub fn new(job: &JobConfig, loader: Loader) -> Result<Trainer> {
        Trainer::on(&Device::Cpu, job, loader)
    }

    /// [`Trainer::new`] on a device.
    ///
    /// # Errors
    /// As [`Trainer::new`]; and if the device is missing, or its kernels cannot be had.
    pub fn on(device: &Device, job: &JobConfig, loader: Loader) -> Result<Trainer> {
        Trainer::in_ways(device, job, loader, &Ways::default())
    }

    /// [`Trainer::on`], decided otherwise than by a tuning.
    ///
    /// # Errors
    /// As there.
    pub fn in_ways(device: &Device, job: &JobConfig, loader: Loader, ways: &Ways) -> Result<Trainer> {
        Trainer::on_opened(device, Opened::new(device)?, job, loader, ways)
    }

    /// [`Trainer::in_ways`] with a GPU's kernels made as told, whatever `kfc tune` found.
    ///
    /// # Errors
    /// As there.
    pub fn with_choices(
        device: &Device,
        job: &JobConfig,
        loader: Loader,
        choices: Choices,
        ways: &Ways,
    ) -> Result<Trainer> {
        let opened = Opened::new(device)?.with_choices(choices);
        Trainer::on_opened(device, opened, job, loader, ways)
    }

    fn on_opened(
        device: &Device,
        mut opened: Opened,
        job: &JobConfig,
        mut loader: Loader,
        ways: &Ways,
    ) -> Result<Trainer> {
        let mut startup = Startup::new(loader.reading());
        // Reading and tokenising left holes behind; they are not what the run holds.
        memory::release_unused();
        let before = Held::now();
        // Batches are built from here on, beside everything that follows.
        let mut host = Account::default();
        host.add(BATCHES, batches(job, loader.seq_len()));
        check_machine(&host)?;
        loader.begin();
        let Prepared { mut student, teacher, lookups, mut store, penalty, graphs } =
            prepare(job, loader.seq_len())?;
        if let Some(adapter) = &mut student.adapter {
            adapter.modules.clear();
        }
        match &teacher {
            Some(Teacher::Cache(cache)) => check_cache(job, cache, &loader, student.model.config.vocab_size)?,
            Some(Teacher::Model(model)) => open::check_teacher(job, model, &loader)?,
            None => {}
        }
        startup.lap(Stage::Models);
        let backend = device.backend();
        let held = match backend {
            Backend::Cpu => {
                let seq = loader.seq_len();
                check_machine(&held_on_host(job, &graphs, seq, before))?;
                allocate(&mut store, &graphs, None)?;
                let mut held = Account::new(before, &store, 0);
                add_working(&mut held, job, &graphs, seq);
                if let Some(stream) = loader.stream() {
                    held.add(READ_AHEAD, stream.memory());
                }
                held
            }
            Backend::Tile => {
                allocate(&mut store, &graphs, Some(GRADIENTS))?;
                held_on_device(&graphs)
            }
        };
        startup.lap(Stage::Memory);
        let ways = &match opened.tuned() {
            Some(machine) => on_gpu(&machine, job, &graphs, ways),
            None => ways.clone(),
        };
        let CompiledJob { plans, account, copied } =
            plans::compile_graphs(job, &graphs, &held, backend, ways, &mut |_, _, _| ())?;
        startup.lap(Stage::Compile);
        if backend == Backend::Cpu {
            check_machine(&account)?;
        }
        opened.settle(job, &plans)?;
        let (memory, bound) = opened.bind(&plans, &store, &copied, &account, &mut startup)?;
        let described = [(0, job.train.accumulation), (1, 1)]
            .map(|(i, runs)| PlanProfile::of(&plans[i], runs).with_programs(bound[i].programs()));
        let [mut micro, update]: [_; 2] =
            bound.try_into().map_err(|_| RunError::Failed("a step has two plans".into()))?;
        let params = graphs.train.params;
        // Graphs and what compiling left behind go before the arena comes, or the peak would have both.
        drop((plans, copied, graphs.train.graph, graphs.update));
        memory::release_unused();
        micro.touch_arena();
        startup.lap(Stage::Memory);
        let total = match job.train.length {
            Length::Steps(n) => n,
            Length::Epochs(e) => {
                let steps = loader.steps_per_epoch().ok_or_else(|| {
                    RunError::Input(
                        "train.epochs: streamed rows are not counted before they are read; set train.steps, or \
                         data.streaming = \"off\""
                            .into(),
                    )
                })?;
                ((e * steps as f64).ceil() as usize).max(1)
            }
        };
        let teacher_width = match &teacher {
            Some(Teacher::Model(m)) => m.config.hidden_size,
            _ => 1,
        };
        Ok(Trainer {
            slots: DataSlots::of(&store),
            embedded: Embedded::all(lookups, &store),
            outputs: Outputs::of(&micro, &update, job),
            scaler: LossScaler::new(job.train.loss_scale, student.model.dtype),
            job: job.clone(),
            loader,
            student,
            teacher,
            micro,
            update,
            store,
            memory,
            machine: opened.machine(),
            stated: opened.stated(),
            other_bits: opened.other_bits(&described),
            params,
            important: penalty.and_then(|p| p.important),
            account,
            described,
            clock: Clock::new(),
            startup,
            step: 0,
            updates: 0,
            skipped_in_a_row: 0,
            total,
            teacher_width,
        })
    }
}

/// Weights, adapter and tables of the student.
fn place_student(
    store: &mut Store,
    job: &JobConfig,
    student: &Student,
    lookups: &Lookups,
    seq: usize,
) -> Result<()> {
    let full = student.lora.is_none();
    student.model.place_beside(store, "student.", full, lookups.student.as_ref())?;
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
    let Some(rows) = loader.rows() else {
        return Err(RunError::Input(
            "distill.teacher: a cache has answers to rows by their number, which streamed rows do not have; set \
             data.streaming = \"off\""
                .into(),
        ));
    };
    cache.check(job, &path, [rows.len(), general, loader.seq_len(), vocab], rows_fingerprint(loader))
}

/// Hash of the tokens of all rows of a job, or of the files that they are streamed from.
pub fn rows_fingerprint(loader: &Loader) -> u64 {
    let general = loader.general_rows().map_or(0, |g| g.fingerprint());
    let main = loader.rows().map(|r| r.fingerprint()).or_else(|| Some(loader.stream()?.fingerprint()));
    main.unwrap_or_default() ^ general.rotate_left(1)
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
