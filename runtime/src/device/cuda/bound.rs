//! A plan bound to a device.
//!
//! The first run waits after each step of the plan, so that a kernel that breaks is known by name. The next ones after a
//! reset are timed step by step with events. From then on the plan runs as one graph.

use super::driver::{Event, Graph, Pinned};
use super::head::{self, Calls, Head};
use super::memory::{CudaMemory, Place};
use super::trial::{self, Site, Trial};
use super::{CudaError, Loaded, kernels};
use crate::error::RunError;
use crate::exec::{Slot, Store, StoreError};
use cudarc::driver::sys::CUdeviceptr;
use kfc_kernels::plan::{self, Plan};
use kfc_kernels::tile::lower::{Address, PlannedLaunch};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// Runs that are timed step by step after a reset.
const TIMED: u64 = 3;

/// Environment variable with which every run waits after each step.
const SYNC: &str = "KFC_CUDA_SYNC";

/// Largest result that is read after each run.
const MOST_READ: usize = 4096;

type Result<T, E = RunError> = std::result::Result<T, E>;

/// Something that the stream does.
enum Work {
    Launch { kernel: usize, args: Vec<CUdeviceptr> },
    Copy { to: CUdeviceptr, from: CUdeviceptr, bytes: usize },
}

/// A step of the plan.
struct BoundStep {
    work: Vec<Work>,
    /// Its kernels and operation, for messages.
    what: String,
}

/// A result that is read after each run.
struct Read {
    name: String,
    from: CUdeviceptr,
    /// Where it is in the buffer of results.
    at: Place,
}

/// A plan bound to a device's memory.
pub struct CudaPlan {
    // Dropped before what it points to.
    graph: Option<Graph>,
    name: String,
    steps: Vec<BoundStep>,
    epilogue: Vec<Work>,
    /// Tensors that are written before each run: where in the store, and where in the buffer `written`.
    data: Vec<(Slot, Place)>,
    /// Where on the device that buffer goes.
    data_start: usize,
    reads: Vec<Read>,
    written: Pinned,
    results: Pinned,
    events: Vec<Event>,
    kernels: Arc<Vec<kernels::Loaded>>,
    /// Kernels that run instead, by position.
    instead: HashMap<usize, Arc<kernels::Loaded>>,
    /// Launches that run instead of those of a step.
    steps_instead: HashMap<usize, Arc<Calls>>,
    /// The first launch of each kernel that there are others for.
    sites: Vec<Site>,
    /// Steps that are heads.
    heads: Vec<Head>,
    /// Keys of the kernels of each step.
    programs: Vec<Vec<String>>,
    trial: Option<Trial>,
    memory: Arc<CudaMemory>,
    /// Nanoseconds of each step over the timed runs.
    spent: Vec<u64>,
    timed: u64,
    runs: u64,
    /// Whether a run went through.
    is_warm: bool,
    is_careful: bool,
}

impl CudaPlan {
    pub(super) fn new(
        plan: &Plan,
        number: usize,
        loaded: &Loaded,
        memory: &Arc<CudaMemory>,
        store: &Store,
    ) -> Result<CudaPlan> {
        let (kernels, launches) = (&loaded.lowered.kernels, &loaded.lowered.launches[number]);
        let input = |i: usize| memory.place(&plan.inputs[i].name).map_or(0, |p| p.offset);
        let address = |a: &Address| memory.at(a.input.map_or(memory.arena(), input) + a.offset);
        let place = |p: &plan::Place| match *p {
            plan::Place::Input(i) => (memory.at(input(i)), plan.inputs[i].ty.bytes()),
            plan::Place::Arena { offset, bytes } => (memory.at(memory.arena() + offset), bytes),
        };
        let copy = |(from, to): &(plan::Place, plan::Place)| {
            let ((from, a), (to, b)) = (place(from), place(to));
            Work::Copy { to, from, bytes: a.min(b) }
        };
        let launch =
            |l: &PlannedLaunch| Work::Launch { kernel: l.kernel, args: l.args.iter().map(address).collect() };
        let step = |(step, launches): (&plan::Step, &Vec<PlannedLaunch>)| {
            let names: Vec<&str> = launches.iter().map(|l| kernels[l.kernel].name.as_str()).collect();
            BoundStep {
                work: step.copies.iter().map(copy).chain(launches.iter().map(launch)).collect(),
                what: format!("kernel {} of {} in {}", names.join(", "), step.op.name(), step.scope),
            }
        };
        let mut end = 0;
        let small = plan.outputs.iter().filter(|o| o.updates.is_none() && o.ty.bytes() <= MOST_READ);
        let reads: Vec<Read> = small
            .map(|o| {
                let at = Place { offset: end, bytes: o.ty.bytes() };
                end = (end + at.bytes).next_multiple_of(64);
                Read { name: o.name.clone(), from: place(&o.place).0, at }
            })
            .collect();
        let sites = trial::sites(plan, launches, kernels, &loaded.choices, &address);
        let heads = head::heads(plan, &|i| memory.at(input(i)), memory.at(memory.arena()));
        let StepData { parts, start, bytes } = step_data(plan, memory, store)?;
        let gpu = memory.gpu();
        Ok(CudaPlan {
            graph: None,
            name: plan.name.clone(),
            steps: plan.steps.iter().zip(launches).map(step).collect(),
            epilogue: plan.epilogue.iter().map(copy).collect(),
            data: parts,
            data_start: start,
            reads,
            written: Pinned::new(gpu, bytes)?,
            results: Pinned::new(gpu, end)?,
            events: (0..=plan.steps.len()).map(|_| Event::new(gpu)).collect::<Result<_, CudaError>>()?,
            kernels: Arc::clone(&loaded.functions),
            instead: HashMap::new(),
            steps_instead: HashMap::new(),
            sites,
            heads,
            programs: loaded.lowered.keys(plan, number),
            trial: None,
            memory: Arc::clone(memory),
            spent: vec![0; plan.steps.len()],
            timed: 0,
            runs: 0,
            is_warm: false,
            is_careful: std::env::var_os(SYNC).is_some_and(|v| v != "0"),
        })
    }

    /// Copies step data from `store`, which is the one that the plan was bound to, runs every step in order, and reads small results.
    ///
    /// # Errors
    /// [`CudaError::Fault`] if a kernel breaks.
    pub fn run(&mut self, store: &Store) -> Result<()> {
        self.memory.gpu().enter()?;
        self.write(store)?;
        if !self.is_warm || self.is_careful || self.trial.is_some() {
            self.run_carefully()?;
        } else if self.timed < TIMED {
            self.run_timed()?;
        } else {
            self.run_graph()?;
        }
        self.memory.finish(&self.name, None)?;
        self.is_warm = true;
        self.runs += 1;
        Ok(())
    }

    /// Step data goes to the device in one copy. The last run was waited for, so that nobody reads the buffer.
    fn write(&mut self, store: &Store) -> Result<(), CudaError> {
        for (slot, place) in &self.data {
            let to = &mut self.written.bytes_mut()[place.offset..place.offset + place.bytes];
            to.copy_from_slice(store.at(*slot).bytes());
        }
        let bytes = self.written.bytes().len();
        // SAFETY: the buffer is as long as the places that it covers, and is not written before the next run.
        unsafe { self.memory.stream().upload(self.memory.at(self.data_start), &self.written, bytes) }
    }

    /// Waits after each step.
    fn run_carefully(&mut self) -> Result<(), CudaError> {
        let mut trial = self.trial.take();
        let mut last = Instant::now();
        for (i, step) in self.steps.iter().enumerate() {
            if let Some(trial) = trial.as_mut().filter(|t| t.at.0 == i) {
                let (before, after) = step.work.split_at(trial.at.1);
                before.iter().try_for_each(|w| self.issue(w))?;
                if let (false, Some(Work::Launch { args, .. })) = (trial.is_whole_step, after.first()) {
                    trial.run(&self.memory, &|| self.issue(&after[0]), args)?;
                } else if trial.is_whole_step {
                    trial.run(&self.memory, &|| after.iter().try_for_each(|w| self.issue(w)), &[])?;
                }
                after.iter().try_for_each(|w| self.issue(w))?;
            } else {
                self.issue_step(i)?;
            }
            self.memory.finish(&self.name, Some(&step.what))?;
            self.spent[i] += last.elapsed().as_nanos() as u64;
            last = Instant::now();
        }
        self.timed += 1;
        self.issue_rest()
    }

    /// Records an event after each step.
    fn run_timed(&mut self) -> Result<(), CudaError> {
        let stream = self.memory.stream();
        stream.record(&self.events[0])?;
        for (i, event) in self.events[1..].iter().enumerate() {
            self.issue_step(i)?;
            stream.record(event)?;
        }
        self.issue_rest()?;
        self.memory.finish(&self.name, None)?;
        for (spent, pair) in self.spent.iter_mut().zip(self.events.windows(2)) {
            *spent += pair[1].ns_since(&pair[0])?;
        }
        self.timed += 1;
        Ok(())
    }

    /// Runs all as one graph, which is made on the way.
    fn run_graph(&mut self) -> Result<(), CudaError> {
        if self.graph.is_none() {
            let work = || {
                (0..self.steps.len()).try_for_each(|i| self.issue_step(i))?;
                self.issue_rest()
            };
            self.graph = Some(self.memory.stream().capture(work)?);
        }
        match &self.graph {
            // SAFETY: the graph's work points to this plan's memory and buffers, which live until `finish`.
            Some(graph) => unsafe { self.memory.stream().run(graph) },
            None => Ok(()),
        }
    }

    /// What follows the steps: copies into updated states, and results.
    fn issue_rest(&self) -> Result<(), CudaError> {
        self.epilogue.iter().try_for_each(|w| self.issue(w))?;
        for read in &self.reads {
            // SAFETY: the result has so many bytes, and is looked at after `finish`.
            unsafe {
                self.memory.stream().download(&self.results, read.at.offset, read.from, read.at.bytes)
            }?;
        }
        Ok(())
    }

    /// What a step does.
    fn issue_step(&self, i: usize) -> Result<(), CudaError> {
        let (work, calls) = (&self.steps[i].work, self.steps_instead.get(&i));
        work.iter()
            .filter(|w| calls.is_none() || matches!(w, Work::Copy { .. }))
            .try_for_each(|w| self.issue(w))?;
        match calls {
            // SAFETY: they were made for this step of this plan.
            Some(calls) => unsafe { calls.launch(self.memory.stream(), &[]) },
            None => Ok(()),
        }
    }

    fn issue(&self, work: &Work) -> Result<(), CudaError> {
        match work {
            // SAFETY: the memory plan gives both places so many bytes.
            Work::Copy { to, from, bytes } => unsafe { self.memory.stream().copy(*to, *from, *bytes) },
            // SAFETY: the memory plan gives each argument the bytes that its kernel was made for, and memory lives with `self`.
            Work::Launch { kernel, args } => unsafe {
                let kernel = self.instead.get(kernel).map_or(&self.kernels[*kernel], |k| k);
                kernel.launch(self.memory.stream(), args)
            },
        }
    }

    /// The first launch of each kernel that others can stand in for.
    pub(crate) fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// Steps that are heads.
    pub(crate) fn heads(&self) -> &[Head] {
        &self.heads
    }

    /// Runs other launches in place of those of heads from now on, by their step.
    pub(crate) fn run_steps_instead(&mut self, instead: HashMap<usize, Arc<Calls>>) {
        self.steps_instead = instead;
        self.graph = None;
    }

    /// Keys of the kernels of each step, and of the step itself if it is a head.
    pub(crate) fn programs(&self) -> &[Vec<String>] {
        &self.programs
    }

    /// The next run waits after each step and makes this trial on its way.
    pub(crate) fn try_out(&mut self, trial: Trial) {
        self.trial = Some(trial);
    }

    /// Device and memory.
    pub(crate) fn memory(&self) -> &Arc<CudaMemory> {
        &self.memory
    }

    /// Runs other kernels from now on, those of [`Site::kernel`]; where none is named, the plan's own.
    pub(crate) fn run_instead(&mut self, instead: HashMap<usize, Arc<kernels::Loaded>>) {
        self.instead = instead;
        // It has the kernels before in it. Nothing runs: each run is waited for.
        self.graph = None;
    }

    /// Nanoseconds that each step of the plan took over all runs since the last reset, from those that were timed.
    pub fn times(&self) -> Vec<u64> {
        let scaled =
            |ns: &u64| (u128::from(*ns) * u128::from(self.runs) / u128::from(self.timed.max(1))) as u64;
        self.spent.iter().map(scaled).collect()
    }

    /// Forgets the times so far.
    pub fn reset_times(&mut self) {
        self.spent.fill(0);
        (self.timed, self.runs) = (0, 0);
    }

    /// Position of the small output of this name.
    pub fn output_index(&self, name: &str) -> Option<usize> {
        self.reads.iter().position(|r| r.name == name)
    }

    /// Contents of a small output after a run.
    pub fn output<T: bytemuck::Pod>(&self, index: usize) -> &[T] {
        let at = self.reads[index].at;
        bytemuck::cast_slice(&self.results.bytes()[at.offset..at.offset + at.bytes])
    }
}

/// The step data of a plan. It lies together; what else lies between is another plan's, which writes it before it runs.
struct StepData {
    /// Where each tensor is in the store, and in one buffer.
    parts: Vec<(Slot, Place)>,
    /// Where the buffer begins on the device.
    start: usize,
    bytes: usize,
}

fn step_data(plan: &Plan, memory: &CudaMemory, store: &Store) -> Result<StepData> {
    let mut parts = Vec::new();
    for i in plan.inputs.iter().filter(|i| memory.is_step_data(i)) {
        let missing = || StoreError::Missing { name: i.name.clone(), ty: i.ty.clone() };
        let slot = store.slot(&i.name).ok_or_else(missing)?;
        parts.push((slot, memory.place(&i.name).ok_or_else(missing)?));
    }
    let start = parts.iter().map(|(_, p)| p.offset).min().unwrap_or(0);
    let end = parts.iter().map(|(_, p)| p.offset + p.bytes).max().unwrap_or(0);
    parts.iter_mut().for_each(|(_, p)| p.offset -= start);
    Ok(StepData { parts, start, bytes: end - start })
}

impl Drop for CudaPlan {
    fn drop(&mut self) {
        // Its buffers go; what still runs may write to them.
        let _ = self.memory.finish(&self.name, None);
    }
}
