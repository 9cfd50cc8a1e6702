//! Where a step runs: on this CPU, or on an NVIDIA GPU.
//!
//! A trainer writes step data into its store, runs plans and reads small results; where the tensors are that plans are bound
//! to is decided here. On a GPU the store keeps what files hold and copies of what is trained, which are brought up to date
//! before they are saved.

pub mod cuda;

use crate::accounting::Account;
use crate::calibration::Rates;
use crate::config::JobConfig;
use crate::edited::Edit;
use crate::error::Result;
use crate::exec::{BoundPlan, Copied, Store};
use crate::profile::{Machine, PlanProfile, Stage, Startup};
use crate::triton::Python;
use crate::tuning::device::DeviceTuning;
use crate::{memory, session};
use cuda::{CudaMemory, CudaPlan, Gpu};
use kfc_kernels::compile::Backend;
use kfc_kernels::plan::Plan;
use kfc_kernels::tile::Choices;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Where to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// This CPU.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda {
        /// Its number.
        index: usize,
        /// A folder of `kfc compile --emit` that its kernels come from; else they are compiled here.
        kernels: Option<PathBuf>,
        /// Files of kernels that are used instead of those.
        edits: Vec<Edit>,
    },
}

impl Device {
    /// Its name on the command line.
    pub fn name(&self) -> String {
        match self {
            Device::Cpu => "cpu".into(),
            Device::Cuda { index, .. } => format!("cuda:{index}"),
        }
    }

    /// Whose kernels plans for it run.
    pub fn backend(&self) -> Backend {
        match self {
            Device::Cpu => Backend::Cpu,
            Device::Cuda { .. } => Backend::Tile,
        }
    }
}

/// A device that is there.
pub(crate) enum Opened {
    Cpu,
    /// Kernels are made as choices say, unless they come from a folder or from files.
    Cuda {
        gpu: Arc<Gpu>,
        kernels: Option<PathBuf>,
        edits: Vec<Edit>,
        choices: Box<Choices>,
        python: Python,
        /// What is to be said about choices.
        notes: Vec<String>,
    },
}

impl Opened {
    /// # Errors
    /// If there is no such device.
    pub(crate) fn new(device: &Device) -> Result<Opened> {
        Ok(match device {
            Device::Cpu => Opened::Cpu,
            Device::Cuda { index, kernels, edits } => {
                let gpu = Gpu::open(*index)?;
                // Kernels from files are known by the names of the built-in ones.
                let choices = match kernels.is_some() || !edits.is_empty() {
                    true => Choices::default(),
                    false => DeviceTuning::load(&gpu.info.machine()).choices(),
                };
                let (kernels, edits, notes) = (kernels.clone(), edits.clone(), Vec::new());
                let choices = Box::new(choices);
                Opened::Cuda { gpu, kernels, edits, choices, python: Python::default(), notes }
            }
        })
    }

    /// The same with other choices.
    pub(crate) fn with_choices(mut self, other: Choices) -> Opened {
        if let Opened::Cuda { choices, .. } = &mut self {
            **choices = other;
        }
        self
    }

    /// The same with the Python that a job names, and without choices for its plans that cannot be had here.
    ///
    /// # Errors
    /// If an operation of the plans cannot run there.
    pub(crate) fn settle(&mut self, job: &JobConfig, plans: &[Plan]) -> Result<()> {
        if let Opened::Cuda { gpu, choices, python, notes, .. } = self {
            *python = Python::of_job(job);
            *notes = cuda::settle(gpu, plans, choices, python)?;
        }
        Ok(())
    }

    /// Kernels whose results have other bits than as built in, by key, and how they are made: those that plans with these
    /// programs run.
    pub(crate) fn other_bits(&self, programs: &[PlanProfile]) -> BTreeMap<String, String> {
        let Opened::Cuda { choices, .. } = self else { return BTreeMap::new() };
        let runs = |key: &String| programs.iter().any(|p| p.programs.iter().flatten().any(|k| k == key));
        let all = choices.other_bits().iter().filter(|(key, _)| runs(key));
        all.map(|(key, choice)| (key.clone(), choice.to_string())).collect()
    }

    /// Binds plans to tensors of `store`, which is then where step data is written; `account` is what they hold, transposed
    /// copies of the weights `copied` among it. On the host their arena is reserved, and [`DevicePlan::touch_arena`] brings it
    /// into memory.
    ///
    /// # Errors
    /// If a tensor is missing, kernels cannot be had, or memory runs out.
    pub(crate) fn bind(
        &self,
        plans: &[Plan],
        store: &Store,
        copied: &[Copied],
        account: &Account,
        startup: &mut Startup,
    ) -> Result<(Memory, Vec<DevicePlan>)> {
        let (memory, bound) = match self {
            Opened::Cpu => {
                let bound = session::bind_with(plans, store, copied)?;
                (Memory::Host, bound.into_iter().map(|p| DevicePlan::Cpu(Box::new(p))).collect())
            }
            Opened::Cuda { gpu, kernels, edits, choices, python, notes } => {
                let folder = kernels.as_deref();
                let mut loaded = cuda::Loaded::new(gpu, plans, folder, choices, edits, python)?;
                loaded.notes.extend(notes.iter().cloned());
                startup.lap(Stage::Compile);
                let (memory, bound) = cuda::bind(gpu, plans, &loaded, store, account)?;
                (Memory::Cuda(memory), bound.into_iter().map(|p| DevicePlan::Cuda(Box::new(p))).collect())
            }
        };
        startup.lap(Stage::Memory);
        Ok((memory, bound))
    }

    /// The GPU, if it runs what a tuning of it says: kernels from a folder or from files are those of the plan as built in.
    pub(crate) fn tuned(&self) -> Option<Machine> {
        match self {
            Opened::Cuda { gpu, kernels: None, edits, .. } if edits.is_empty() => Some(gpu.info.machine()),
            _ => None,
        }
    }

    /// What times depend on.
    pub(crate) fn machine(&self) -> Machine {
        match self {
            Opened::Cpu => Machine::this(),
            Opened::Cuda { gpu, .. } => gpu.info.machine(),
        }
    }

    /// What the device says it can do at best, if it is a GPU.
    pub(crate) fn stated(&self) -> Option<Rates> {
        match self {
            Opened::Cpu => None,
            Opened::Cuda { gpu, .. } => gpu.info.rates(),
        }
    }
}

/// Where the tensors are that bound plans use.
pub(crate) enum Memory {
    /// In the store.
    Host,
    /// On a GPU; the store has copies of some.
    Cuda(Arc<CudaMemory>),
}

impl Memory {
    /// Zeroes all tensors whose name starts with `prefix`.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn zero(&self, store: &mut Store, prefix: &str) -> Result<()> {
        match self {
            Memory::Host => {
                for slot in store.slots_with_prefix(prefix) {
                    store.slice_mut::<u8>(slot).fill(0);
                }
                Ok(())
            }
            Memory::Cuda(memory) => memory.zero(prefix),
        }
    }

    /// Brings tensors of the store up to date.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn pull(&self, store: &mut Store, names: &[String]) -> Result<()> {
        match self {
            Memory::Host => Ok(()),
            Memory::Cuda(memory) => memory.pull(store, names),
        }
    }

    /// Takes over tensors that were changed in the store.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn push(&self, store: &Store, names: &[String]) -> Result<()> {
        match self {
            Memory::Host => Ok(()),
            Memory::Cuda(memory) => memory.push(store, &mut |name| names.iter().any(|n| n == name)),
        }
    }

    /// Bytes that are free where the tensors are.
    pub(crate) fn room(&self) -> u64 {
        match self {
            Memory::Host => crate::machine::memory().usable(),
            Memory::Cuda(memory) => memory.gpu().free_memory().map_or(0, |(free, _)| free),
        }
    }

    /// What is to be said before the first step.
    pub(crate) fn notes(&self) -> &[String] {
        match self {
            Memory::Host => &[],
            Memory::Cuda(memory) => memory.notes(),
        }
    }

    /// Most bytes held so far: of this process, or those allocated on the device.
    pub(crate) fn peak(&self) -> u64 {
        match self {
            Memory::Host => memory::peak_resident(),
            Memory::Cuda(memory) => memory.bytes(),
        }
    }
}

/// A plan bound to a device.
pub(crate) enum DevicePlan {
    Cpu(Box<BoundPlan>),
    Cuda(Box<CudaPlan>),
}

impl DevicePlan {
    /// Brings the arena into memory that this plan shares with those bound with it, if it is not there.
    pub(crate) fn touch_arena(&mut self) {
        match self {
            DevicePlan::Cpu(plan) => plan.touch_arena(),
            DevicePlan::Cuda(_) => {}
        }
    }

    /// Gives the memory of the arena back to the host; on a GPU it stays.
    pub(crate) fn release_arena(&mut self) {
        match self {
            DevicePlan::Cpu(plan) => plan.release_arena(),
            DevicePlan::Cuda(_) => {}
        }
    }

    /// Runs every step in order.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn run(&mut self, store: &mut Store) -> Result<()> {
        match self {
            DevicePlan::Cpu(plan) => {
                plan.run(store);
                Ok(())
            }
            DevicePlan::Cuda(plan) => plan.run(store),
        }
    }

    /// Nanoseconds that each step took over all runs since the last reset.
    pub(crate) fn times(&self) -> Vec<u64> {
        match self {
            DevicePlan::Cpu(plan) => plan.times().1.to_vec(),
            DevicePlan::Cuda(plan) => plan.times(),
        }
    }

    /// The plan, if it runs on the CPU.
    pub(crate) fn on_cpu(&mut self) -> Option<&mut BoundPlan> {
        match self {
            DevicePlan::Cpu(plan) => Some(plan),
            DevicePlan::Cuda(_) => None,
        }
    }

    /// The plan, if it runs on a GPU.
    pub(crate) fn on_gpu(&mut self) -> Option<&mut CudaPlan> {
        match self {
            DevicePlan::Cpu(_) => None,
            DevicePlan::Cuda(plan) => Some(plan),
        }
    }

    /// Keys of the kernels of each step on a GPU; nothing on the CPU.
    pub(crate) fn programs(&self) -> &[Vec<String>] {
        match self {
            DevicePlan::Cpu(_) => &[],
            DevicePlan::Cuda(plan) => plan.programs(),
        }
    }

    /// Forgets the times so far.
    pub(crate) fn reset_times(&mut self) {
        match self {
            DevicePlan::Cpu(plan) => plan.reset_times(),
            DevicePlan::Cuda(plan) => plan.reset_times(),
        }
    }

    /// Position of the output of this name.
    pub(crate) fn output_index(&self, name: &str) -> Option<usize> {
        match self {
            DevicePlan::Cpu(plan) => plan.output_index(name),
            DevicePlan::Cuda(plan) => plan.output_index(name),
        }
    }

    /// First element of an output; NaN if there is no such output.
    pub(crate) fn scalar(&self, index: Option<usize>) -> f32 {
        match self {
            DevicePlan::Cpu(plan) => plan.scalar(index),
            DevicePlan::Cuda(plan) => {
                index.and_then(|i| plan.output::<f32>(i).first().copied()).unwrap_or(f32::NAN)
            }
        }
    }

    /// First element of an integer output.
    pub(crate) fn integer(&self, index: usize) -> Option<i32> {
        match self {
            DevicePlan::Cpu(plan) => plan.output::<i32>(index).first().copied(),
            DevicePlan::Cuda(plan) => plan.output::<i32>(index).first().copied(),
        }
    }
}
