//! The training loop's core: one optimiser step after another, all state in one store.
//!
//! A step is `accumulation` runs of the micro-batch plan and one run of the update plan. Means are over the tokens of the
//! whole step: each position's weight is known before the first micro-batch, so accumulation never changes the loss.

pub mod data;
pub mod ewc;
mod metrics;
pub mod open;
pub mod plans;
mod run;
mod scale;
mod schedule;
pub mod setup;
mod state;

pub use metrics::StepMetrics;
pub use plans::{Recomputed, Ways};
pub use run::{Observer, RunOptions, Silent, Summary, resume, run};
pub use schedule::learning_rate;

use crate::accounting::Account;
use crate::calibration::Rates;
use crate::config::{Embeddings, JobConfig};
use crate::data::{Loader, MicroBatch, StepBatch};
use crate::device::cuda::CudaPlan;
use crate::device::{DevicePlan, Memory};
use crate::error::{Result, RunError};
use crate::exec::{BoundPlan, Slot, Store};
use crate::lookup::Lookup;
use crate::profile::{Clock, Machine, Measured, Part, PlanProfile, Profile, Stage, Startup};
use crate::tuning::Tuning;
use crate::tuning::device::DeviceTuning;
use kfc_graph::DType;
use kfc_ops::model::transformer::embedded_input;
use kfc_ops::step::TrainedParam;
use open::{Lookups, Student, Teacher};
use scale::LossScaler;
use std::collections::BTreeMap;
use std::time::Instant;

/// How names of gradient accumulators begin.
const GRADIENTS: &str = "grad.";

/// Steps in a row whose gradient may be non-finite before the run is given up.
const MAX_SKIPPED_IN_A_ROW: u64 = 50;

/// A job in progress.
pub struct Trainer {
    job: JobConfig,
    loader: Loader,
    student: Student,
    teacher: Option<Teacher>,
    // Plans point into the store and are dropped before it.
    micro: DevicePlan,
    update: DevicePlan,
    store: Store,
    memory: Memory,
    machine: Machine,
    /// What a GPU says it can do at best.
    stated: Option<Rates>,
    /// Kernels whose results have other bits than as built in, by key, and how they are made.
    other_bits: BTreeMap<String, String>,
    params: Vec<TrainedParam>,
    slots: DataSlots,
    embedded: Vec<Embedded>,
    outputs: Outputs,
    scaler: LossScaler,
    important: Option<f64>,
    account: Account,
    described: [PlanProfile; 2],
    clock: Clock,
    startup: Startup,
    /// Steps taken, skipped ones included.
    step: usize,
    /// Updates made: AdamW's t.
    updates: u64,
    /// Steps skipped in a row.
    skipped_in_a_row: u64,
    total: usize,
    teacher_width: usize,
}

/// Where step data goes.
struct DataSlots {
    tokens: Option<Slot>,
    labels: Option<Slot>,
    positions: Option<Slot>,
    segments: Option<Slot>,
    w_ce: Option<Slot>,
    w_kd: Option<Slot>,
    w_feat: Option<Slot>,
    seed: Option<Slot>,
    loss_scale: Option<Slot>,
    unscale: Option<Slot>,
    lr: Option<Slot>,
    bc: Option<Slot>,
    top: Option<[Slot; 3]>,
}

impl DataSlots {
    fn of(store: &Store) -> DataSlots {
        let top = ["top_ids", "top_logits", "top_lse"].map(|n| store.slot(n));
        DataSlots {
            tokens: store.slot("tokens"),
            labels: store.slot("labels"),
            positions: store.slot("positions"),
            segments: store.slot("segments"),
            w_ce: store.slot("w_ce"),
            w_kd: store.slot("w_kd"),
            w_feat: store.slot("w_feat"),
            seed: store.slot("seed"),
            loss_scale: store.slot("loss_scale"),
            unscale: store.slot("unscale"),
            lr: store.slot("lr"),
            bc: store.slot("bc"),
            top: match top {
                [Some(a), Some(b), Some(c)] => Some([a, b, c]),
                _ => None,
            },
        }
    }
}

/// Embedded tokens of a model whose table stays in its file.
struct Embedded {
    lookup: Lookup,
    slot: Slot,
    dtype: DType,
}

impl Embedded {
    fn all(lookups: Lookups, store: &Store) -> Vec<Embedded> {
        let both = [(lookups.student, "student."), (lookups.teacher, "teacher.")];
        let find = |(lookup, prefix): (Option<Lookup>, &str)| {
            let slot = store.slot(&embedded_input(prefix))?;
            Some(Embedded { lookup: lookup?, slot, dtype: store.at(slot).ty().dtype })
        };
        both.into_iter().filter_map(find).collect()
    }
}

/// Where results are read.
struct Outputs {
    ce: Option<usize>,
    kd: Option<usize>,
    correct: Option<usize>,
    features: Vec<(Option<usize>, f64)>,
    ewc: Option<usize>,
    grad_norm: Option<usize>,
    ok: Option<usize>,
}

impl Outputs {
    fn of(micro: &DevicePlan, update: &DevicePlan, job: &JobConfig) -> Outputs {
        let features = job.distill.iter().flat_map(|d| &d.features).enumerate();
        Outputs {
            ce: micro.output_index("ce"),
            kd: micro.output_index("kd"),
            correct: micro.output_index("correct"),
            features: features.map(|(i, f)| (micro.output_index(&format!("feat.{i}")), f.weight)).collect(),
            ewc: update.output_index("ewc"),
            grad_norm: update.output_index("grad_norm"),
            ok: update.output_index("ok"),
        }
    }
}

/// Loss terms summed over the micro-batches of a step.
#[derive(Default)]
struct Terms {
    ce: f64,
    kd: f64,
    correct: f64,
    features: Vec<f64>,
}

impl Trainer {
    /// Optimiser steps of the whole job.
    pub fn total_steps(&self) -> usize {
        self.total
    }

    /// Steps taken.
    pub fn steps_done(&self) -> usize {
        self.step
    }

    /// Steps whose gradient was not finite.
    pub fn steps_skipped(&self) -> u64 {
        self.scaler.skipped
    }

    /// Bytes that are free where its tensors are.
    pub(crate) fn room(&self) -> u64 {
        self.memory.room()
    }

    /// Kernels whose results have other bits than as built in, by key, and how they are made.
    pub fn other_bits(&self) -> &BTreeMap<String, String> {
        &self.other_bits
    }

    /// Number of trained elements.
    pub fn trained_elements(&self) -> usize {
        self.params.iter().map(TrainedParam::elements).sum()
    }

    /// Share of penalised parameters that the update policy holds back, if it does.
    pub fn important_share(&self) -> Option<f64> {
        self.important
    }

    /// The student in a line: architecture, size, element type, what is trained.
    pub fn describe(&self) -> String {
        setup::describe_student(&self.student, &self.params)
    }

    /// What a user should know about how the job was understood.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.memory.notes().to_vec();
        if !self.other_bits.is_empty() {
            notes.push(format!(
                "results have other bits than those of kernels as built in: {} of them were tuned with --allow-other-bits",
                self.other_bits.len()
            ));
        }
        notes.extend(match self.machine.is_gpu() {
            true => DeviceTuning::unused(&self.machine),
            false => Tuning::unused(&self.machine),
        });
        let (seq, positions) = (self.loader.seq_len(), self.student.model.config.max_positions);
        if seq > positions {
            notes.push(format!(
                "rows have {seq} tokens, the model knows {positions} positions (max_position_embeddings): what stands \
                 beyond is learnt, but `kfc generate` and `kfc eval` stop there; lower data.seq_len, or raise it in config.json"
            ));
        }
        if let (Some(adapter), Some(lora)) = (&self.student.adapter, &self.job.lora) {
            let own = &adapter.config;
            if (own.r, own.alpha, own.rslora) != (lora.r, lora.alpha, lora.rslora) {
                notes.push(format!(
                    "lora.init is an adapter of r = {}, alpha = {}, rslora = {}: these hold, not those of [lora]",
                    own.r, own.alpha, own.rslora
                ));
            }
        }
        if let Some(Teacher::Model(teacher)) = &self.teacher {
            let (own, theirs) = (self.student.model.config.vocab_size, teacher.config.vocab_size);
            if own != theirs {
                notes.push(format!(
                    "student and teacher have {own} and {theirs} tokens: distillation compares the first {}",
                    own.min(theirs)
                ));
            }
        }
        if self.job.train.embeddings == Embeddings::File {
            let student = ("student", self.student.model.needs_table(self.student.lora.is_none()));
            let teacher = match &self.teacher {
                Some(Teacher::Model(model)) => ("teacher", model.needs_table(false)),
                _ => ("teacher", None),
            };
            for (whose, why) in [student, teacher] {
                notes.extend(why.map(|why| {
                    format!("train.embeddings = \"file\": the {whose}'s embedding table is in memory nevertheless, for it {why}")
                }));
            }
        }
        if let Some(share) = self.important {
            notes.push(format!(
                "{:.2} % of the penalised parameters are held back as important",
                share * 100.0
            ));
        }
        notes
    }

    /// What the run holds in memory.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Bytes of the arena of a micro-batch.
    pub(crate) fn train_arena(&self) -> usize {
        self.described[0].arena_bytes
    }

    /// Most memory held so far, bytes: of this process, or on the device that the job runs on.
    pub fn peak_bytes(&self) -> u64 {
        self.memory.peak()
    }

    /// The step, with what was measured since its warm-up.
    pub fn profile(&self) -> Profile {
        let mut plans = self.described.to_vec();
        plans
            .iter_mut()
            .zip([&self.micro, &self.update])
            .for_each(|(plan, bound)| plan.measure(&bound.times()));
        let kernels = plans.iter().map(PlanProfile::kernel_ns).sum();
        let measured = Measured {
            steps: self.clock.steps,
            warmup: self.clock.warmup,
            wall_ns: self.clock.wall_ns(),
            host: self.clock.host(kernels),
            peak_bytes: self.peak_bytes(),
            startup: self.startup.stages(),
        };
        let t = &self.job.train;
        Profile {
            model: self.describe(),
            shape: [t.batch, self.loader.seq_len(), t.accumulation],
            machine: self.machine.clone(),
            plans,
            account: self.account.items.iter().map(|i| (i.what.to_string(), i.bytes)).collect(),
            stated: self.stated,
            measured: (self.clock.steps > 0).then_some(measured),
        }
    }

    /// Seconds from opening the job to the end of its first step; none before that.
    pub fn cold_start(&self) -> Option<f64> {
        let stages = self.startup.stages();
        let ns: u64 = stages.iter().map(|(_, ns)| ns).sum();
        (!stages.is_empty()).then_some(ns as f64 * 1e-9)
    }

    /// Starts a new measurement: [`Trainer::profile`] covers the steps after this.
    pub(crate) fn forget_times(&mut self) {
        self.clock = Clock::new();
        self.micro.reset_times();
        self.update.reset_times();
    }

    /// Both plans, described and bound, if they run on the CPU: for a search.
    pub(crate) fn plans_mut(&mut self) -> Vec<(&PlanProfile, &mut BoundPlan)> {
        let bound = [&mut self.micro, &mut self.update];
        let described = self.described.iter().zip(bound);
        described.filter_map(|(profile, plan)| Some((profile, plan.on_cpu()?))).collect()
    }

    /// Both plans with their descriptions, if they run on a GPU.
    pub(crate) fn gpu_plans_mut(&mut self) -> Vec<(&PlanProfile, &mut CudaPlan)> {
        let bound = [&mut self.micro, &mut self.update];
        let described = self.described.iter().zip(bound);
        described.filter_map(|(profile, plan)| Some((profile, plan.on_gpu()?))).collect()
    }

    /// Steps up to now whose gradient was not finite, one after the other; and whether any step changed anything.
    pub(crate) fn skipped_lately(&self) -> (u64, bool) {
        (self.skipped_in_a_row, self.updates > 0)
    }

    /// The data.
    pub fn loader(&self) -> &Loader {
        &self.loader
    }

    /// Takes one optimiser step.
    ///
    /// # Errors
    /// If a weight is NaN or infinite, the gradient has not been finite for many steps, or a streamed row cannot be used.
    pub fn step(&mut self) -> Result<StepMetrics> {
        let start = Instant::now();
        self.startup.lap(Stage::Folder);
        if self.clock.begin() {
            self.micro.reset_times();
            self.update.reset_times();
        }
        let batch = self.loader.next_step()?;
        self.clock.lap(Part::Data);
        self.memory.zero(&mut self.store, GRADIENTS)?;
        self.clock.lap(Part::Clear);
        let mut terms = Terms { features: vec![0.0; self.outputs.features.len()], ..Terms::default() };
        for (i, micro) in batch.micro.iter().enumerate() {
            self.write_micro_batch(micro, &batch, i)?;
            self.clock.lap(Part::Write);
            self.micro.run(&mut self.store).map_err(|e| e.at_step(self.step + 1))?;
            self.clock.lap(Part::Plans);
            terms.ce += f64::from(self.micro.scalar(self.outputs.ce));
            terms.correct += f64::from(self.micro.scalar(self.outputs.correct));
            if self.outputs.kd.is_some() {
                terms.kd += f64::from(self.micro.scalar(self.outputs.kd));
            }
            for (sum, (output, _)) in terms.features.iter_mut().zip(&self.outputs.features) {
                *sum += f64::from(self.micro.scalar(*output));
            }
            self.clock.lap(Part::Read);
        }
        let t = &self.job.train;
        let lr = learning_rate(t.schedule, t.lr, t.warmup_steps, self.total, self.step);
        self.write_update_scalars(lr);
        self.clock.lap(Part::Write);
        self.update.run(&mut self.store).map_err(|e| e.at_step(self.step + 1))?;
        self.clock.lap(Part::Plans);
        let finite = self.outputs.ok.is_none_or(|i| self.update.integer(i) == Some(1));
        let scale = self.scaler.scale;
        self.after_update(finite)?;
        let metrics = self.metrics(&batch, &terms, lr, scale, finite, start);
        self.clock.lap(Part::Read);
        self.clock.steps += 1;
        self.startup.lap(Stage::FirstStep);
        Ok(metrics)
    }

    /// Writes a micro-batch and the weight of each of its positions in the step's means.
    ///
    /// # Errors
    /// If a file with embedded tokens cannot be read.
    fn write_micro_batch(&mut self, micro: &MicroBatch, step: &StepBatch, index: usize) -> Result<()> {
        let (store, s) = (&mut self.store, &self.slots);
        let mut write = |slot: Option<Slot>, data: &[i32]| {
            if let Some(slot) = slot {
                store.write(slot, data);
            }
        };
        write(s.tokens, &micro.tokens);
        write(s.labels, &micro.labels);
        write(s.positions, &micro.positions);
        write(s.segments, &micro.segments);
        let counter = self.step * self.job.train.accumulation + index;
        let seed = self.job.train.seed;
        write(s.seed, &[(seed ^ (seed >> 32)) as i32, counter as i32]);

        let seq = micro.seq_len;
        let inverse = |n: usize| if n == 0 { 0.0 } else { (1.0 / n as f64) as f32 };
        let (ce, kd) = (inverse(step.ce_tokens), inverse(step.kd_tokens));
        let feat = inverse(step.tokens * self.teacher_width);
        if let Some(slot) = s.w_ce {
            for (i, w) in store.slice_mut::<f32>(slot).iter_mut().enumerate() {
                *w = if micro.labels[i] != -100 && !micro.general[i / seq] { ce } else { 0.0 };
            }
        }
        if let Some(slot) = s.w_kd {
            for (w, label) in store.slice_mut::<f32>(slot).iter_mut().zip(&micro.labels) {
                *w = if *label != -100 { kd } else { 0.0 };
            }
        }
        if let Some(slot) = s.w_feat {
            for (w, segment) in store.slice_mut::<f32>(slot).iter_mut().zip(&micro.segments) {
                *w = if *segment >= 0 { feat } else { 0.0 };
            }
        }
        if let Some(slot) = s.loss_scale {
            store.write(slot, &[self.scaler.scale as f32]);
        }
        if let (Some([ids, logits, lse]), Some(Teacher::Cache(cache))) = (s.top, &self.teacher) {
            cache.fill_ids(micro, store.slice_mut(ids))?;
            cache.fill_logits(micro, store.slice_mut(logits))?;
            cache.fill_lse(micro, store.slice_mut(lse))?;
        }
        for e in &self.embedded {
            e.lookup.read(&micro.tokens, e.dtype, store.slice_mut(e.slot))?;
        }
        Ok(())
    }

    fn write_update_scalars(&mut self, lr: f64) {
        let (b1, b2) = self.job.train.betas;
        let t = (self.updates + 1) as f64;
        let values: [(Option<Slot>, &[f32]); 4] = [
            (self.slots.lr, &[lr as f32]),
            (self.slots.bc, &[(1.0 - b1.powf(t)) as f32, (1.0 - b2.powf(t)) as f32]),
            (self.slots.loss_scale, &[self.scaler.scale as f32]),
            (self.slots.unscale, &[(1.0 / self.scaler.scale) as f32]),
        ];
        for (slot, value) in values {
            if let Some(slot) = slot {
                self.store.write(slot, value);
            }
        }
    }

    /// Counts the step; a run whose gradients stay non-finite is given up.
    fn after_update(&mut self, finite: bool) -> Result<()> {
        self.scaler.update(finite);
        self.step += 1;
        if finite {
            self.updates += 1;
            self.skipped_in_a_row = 0;
            return Ok(());
        }
        self.skipped_in_a_row += 1;
        if self.updates == 0 && self.skipped_in_a_row == 1 {
            self.check_weights()?;
        }
        if self.skipped_in_a_row < MAX_SKIPPED_IN_A_ROW {
            return Ok(());
        }
        Err(RunError::Failed(format!(
            "the gradient was not finite in {MAX_SKIPPED_IN_A_ROW} steps in a row (up to step {}); lower train.lr, or use \
             model.dtype = \"bf16\" or \"f32\"",
            self.step
        )))
    }

    /// Looks for NaN or infinite values in what was loaded.
    fn check_weights(&self) -> Result<()> {
        let mut found = self.student.model.find_non_finite();
        if let (None, Some(Teacher::Model(teacher))) = (&found, &self.teacher) {
            found = teacher.find_non_finite();
        }
        match found {
            Some(what) => Err(RunError::Input(format!(
                "{what}; the file is damaged or the model diverged, use another"
            ))),
            None => Ok(()),
        }
    }

    fn metrics(
        &self,
        batch: &StepBatch,
        terms: &Terms,
        lr: f64,
        scale: f64,
        finite: bool,
        start: Instant,
    ) -> StepMetrics {
        let alpha = self.job.distill.as_ref().map_or(0.0, |d| d.alpha);
        let ewc = self.job.ewc.as_ref().map(|e| (e.lambda, f64::from(self.update.scalar(self.outputs.ewc))));
        let aligned: f64 =
            terms.features.iter().zip(&self.outputs.features).map(|(mse, (_, weight))| mse * weight).sum();
        let mut loss = (1.0 - alpha) * terms.ce + aligned;
        if self.job.distill.is_some() {
            loss += alpha * terms.kd;
        }
        if let Some((lambda, penalty)) = ewc {
            loss += lambda * penalty;
        }
        let seconds = start.elapsed().as_secs_f64();
        StepMetrics {
            step: self.step,
            loss,
            ce: Some(terms.ce),
            kd: self.job.distill.is_some().then_some(terms.kd),
            feat: (!terms.features.is_empty()).then(|| terms.features.iter().sum()),
            ewc: ewc.map(|(_, penalty)| penalty),
            lr,
            grad_norm: f64::from(self.update.scalar(self.outputs.grad_norm)),
            tokens: batch.tokens,
            tokens_per_s: batch.tokens as f64 / seconds,
            step_ms: seconds * 1e3,
            peak_bytes: self.peak_bytes(),
            accuracy: (batch.ce_tokens > 0).then(|| terms.correct / batch.ce_tokens as f64),
            skipped: !finite,
            loss_scale: (scale != 1.0).then_some(scale),
        }
    }
}
