//! A job's two graphs and their plans, within its memory budget.

use super::ewc;
use super::open::{Lookups, Student, Teacher};
use crate::accounting::{Account, TRANSPOSED};
use crate::calibration::Calibration;
use crate::config::{JobConfig, RecomputePolicy};
use crate::error::{Result, RunError};
use crate::exec::{Copied, Copies, transposed};
use crate::files::xxh64;
use crate::machine;
use crate::profile::{Kind, Machine};
use crate::tuning::Tuning;
use kfc_graph::budget::{Choice, Frontier};
use kfc_graph::cost::SecondsOf;
use kfc_graph::passes::recompute::Policy;
use kfc_graph::{DType, Graph, Op, TensorType, ValueId};
use kfc_kernels::KernelError;
use kfc_kernels::compile::{Backend, CompileOptions, Recompute, compile_with, frontier};
use kfc_kernels::plan::Plan;
use kfc_ops::step::train::{
    DistillSpec, Embedded, FeatureSpec, TeacherSpec, TrainGraph, TrainSpec, train_graph,
};
use kfc_ops::step::update::{EwcSpec, UpdateSpec, update_graph};
use std::collections::BTreeSet;

/// The training graph's specification.
pub(super) fn train_spec<'a>(
    job: &'a JobConfig,
    student: &'a Student,
    teacher: Option<&'a Teacher>,
    lookups: &Lookups,
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
        embedded: Embedded { student: lookups.student.is_some(), teacher: lookups.teacher.is_some() },
    }
}

/// The graphs of a training step.
pub struct StepGraphs {
    /// Forward, losses and backward of a micro-batch.
    pub train: TrainGraph,
    /// Penalties, clipping and AdamW.
    pub update: Graph,
}

/// Sees graphs while they are compiled: name of the graph, name of the pass, the graph after it.
pub type PassObserver<'a> = dyn FnMut(&str, &str, &Graph) + 'a;

/// A job compiled, but not bound.
pub struct CompiledJob {
    /// The micro-batch plan and the update plan.
    pub plans: [Plan; 2],
    /// What the run would hold.
    pub account: Account,
    /// Weights that transposed copies are held of.
    pub copied: Vec<Copied>,
}

/// What is decided for a job beside its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// Which weights are copied.
    pub copies: Copies,
    /// What `train.recompute = "auto"` means.
    pub recomputed: Recomputed,
}

/// What is made again where the job leaves it open. No plan changes a bit of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Recomputed {
    /// What a tuning found, or else what is planned.
    #[default]
    AsTuned,
    /// What is planned with predicted times.
    Planned,
    /// These saved values, if the graph has them and the arena fits.
    Values(BTreeSet<ValueId>),
}

/// Compiles both graphs so that the run stays within its budget; `held` is what it holds beside the arena.
pub(super) fn compile_graphs(
    job: &JobConfig,
    graphs: &StepGraphs,
    held: &Account,
    backend: Backend,
    ways: &Ways,
    observer: &mut PassObserver<'_>,
) -> Result<CompiledJob> {
    let recompute = match (job.train.recompute, job.train.mem_budget) {
        (RecomputePolicy::Auto, budget) => {
            let bytes = budget.map_or(usize::MAX, |budget| budget.saturating_sub(held.total()) as usize);
            match chosen(job, graphs, backend, ways) {
                Some(values) => Recompute::Values(values, bytes),
                None => Recompute::WithinBudget(bytes),
            }
        }
        (RecomputePolicy::Off, _) => Recompute::Off,
        (RecomputePolicy::EveryLayer, _) => Recompute::Named(Policy::EveryLayer),
        (RecomputePolicy::EveryK(k), _) => Recompute::Named(Policy::EveryK(k)),
        (RecomputePolicy::Attention, _) => Recompute::Named(Policy::AttentionOnly),
    };
    let seconds = seconds_of(backend);
    let options = CompileOptions { backend, recompute, seconds: &seconds };
    let plain = CompileOptions { backend, ..CompileOptions::default() };
    observer("train", "00-built", &graphs.train.graph);
    observer("update", "00-built", &graphs.update);
    let update = compile_with(&graphs.update, &plain, &mut |pass, graph| {
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
    let mut account = held.with_arena(arena as u64);
    if job.train.mem_budget.is_some_and(|budget| account.total() > budget) {
        let smallest = match job.train.recompute {
            RecomputePolicy::Auto => arena,
            _ => smallest_arena(&graphs.train.graph, backend, options.seconds)?.max(update.arena_bytes),
        };
        return Err(too_small(job, held, smallest));
    }
    let plans = [train, update];
    let copied = match backend {
        Backend::Cpu => {
            let wanted = transposed::wanted(&plans, ways.copies, &Tuning::load(&Machine::this()))?;
            let room = job.train.mem_budget.unwrap_or_else(machine_room).saturating_sub(account.total());
            let (copied, bytes) = transposed::within(wanted, room);
            account.insert(TRANSPOSED, bytes);
            copied
        }
        Backend::Tile => Vec::new(),
    };
    Ok(CompiledJob { plans, account, copied })
}

/// What is made again, if that is not for the planner to decide.
fn chosen(job: &JobConfig, graphs: &StepGraphs, backend: Backend, ways: &Ways) -> Option<BTreeSet<ValueId>> {
    match &ways.recomputed {
        Recomputed::Values(values) => Some(values.clone()),
        Recomputed::AsTuned if backend == Backend::Cpu => {
            let tuning = Tuning::load(&Machine::this());
            if !tuning.has_plans() {
                return None;
            }
            Some(tuning.plan(&plan_key(job, graphs))?.chosen()?.dropped.clone())
        }
        // What was found on a GPU is looked up where the GPU is known.
        Recomputed::AsTuned | Recomputed::Planned => None,
    }
}

/// What a tuning knows the plans of a job by: its graph and its budget.
pub(super) fn plan_key(job: &JobConfig, graphs: &StepGraphs) -> String {
    let graph = xxh64(kfc_graph::text::print(&graphs.train.graph).as_bytes());
    let budget = job.train.mem_budget.map_or("no budget".into(), |b| format!("budget {b}"));
    format!("{graph:016x}, {budget}")
}

/// What a run without a budget may fill with copies, everything else included: three quarters of the memory that there is
/// for this process.
fn machine_room() -> u64 {
    let memory = machine::memory();
    let limit = memory.group.map_or(memory.total, |(limit, _)| limit.min(memory.total));
    limit / 4 * 3
}

/// How long an operation takes here, as far as `kfc tune --calibrate` has measured it: what recomputation is weighed with.
/// Other times choose other values to recompute, never other results. Plans for GPUs are weighed for one GPU, wherever they
/// are compiled, so that `kfc compile` and training choose the same.
fn seconds_of(backend: Backend) -> impl Fn(&Op, &[TensorType], &[TensorType]) -> f64 + Sync {
    let calibration = match backend {
        Backend::Cpu => Calibration::load(&Machine::this()),
        Backend::Tile => Calibration::empty(Machine::usual_gpu()),
    };
    move |op, inputs, outputs| calibration.predict(&Kind::of(op, inputs, outputs)).0
}

/// Every choice between memory and time that a job has.
#[derive(Clone, Debug)]
pub struct Budgets {
    /// What the run holds beside activations, bytes.
    pub held: u64,
    /// The arena of the update, bytes: the arena is never smaller.
    pub least: usize,
    /// The choices.
    pub frontier: Frontier,
}

impl Budgets {
    /// The smallest budget that the job runs in, bytes.
    pub fn smallest(&self) -> Option<u64> {
        self.frontier.choices.iter().map(|c| self.peak(c)).min()
    }

    /// What the planner takes within a budget.
    ///
    /// # Errors
    /// If the budget is below what any choice needs.
    pub fn planned(&self, mem_budget: Option<u64>) -> Result<&Choice> {
        let bytes = mem_budget.map_or(usize::MAX, |budget| budget.saturating_sub(self.held) as usize);
        Ok(self.frontier.within(bytes).map_err(KernelError::from)?)
    }

    /// Predicted peak of a choice, bytes: the smallest budget that allows it.
    pub fn peak(&self, choice: &Choice) -> u64 {
        self.held + choice.arena_bytes.max(self.least) as u64
    }
}

/// The choices of a job whose graphs are these; `held` as in [`compile_graphs`].
pub(super) fn budgets(graphs: &StepGraphs, held: &Account, backend: Backend) -> Result<Budgets> {
    let plain = CompileOptions { backend, ..CompileOptions::default() };
    let update = compile_with(&graphs.update, &plain, &mut |_, _| ())?.plan;
    let frontier = frontier(&graphs.train.graph, backend, &seconds_of(backend))?;
    Ok(Budgets { held: held.total(), least: update.arena_bytes, frontier })
}

fn smallest_arena(graph: &Graph, backend: Backend, seconds: &SecondsOf<'_>) -> Result<usize> {
    let frontier = frontier(graph, backend, seconds)?;
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
    let budget = match job.train.mem_budget.unwrap_or(0) {
        bytes if bytes < 1 << 20 => format!("{bytes} B"),
        bytes => format!("{} MiB", bytes >> 20),
    };
    RunError::Input(format!(
        "train.mem_budget: {budget} is too small; the smallest that this job runs in is {smallest} MiB{policy}: {} MiB \
         activations{}{}; raise the budget, or lower train.batch or data.seq_len",
        mib(smallest_arena as u64),
        if items.is_empty() { "" } else { ", " },
        items.join(", ")
    ))
}

pub(super) fn step_graphs(
    job: &JobConfig,
    spec: &TrainSpec<'_>,
    penalty: Option<&ewc::Penalty>,
) -> Result<StepGraphs> {
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
