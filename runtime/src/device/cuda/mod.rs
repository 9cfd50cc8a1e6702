//! NVIDIA GPUs: plans of tile programs run through the CUDA driver, which is looked for when it is first needed.
//!
//! - `driver`: the driver's objects with owners;
//! - `kernels`: binaries of a plan's kernels, compiled, cached or from a folder, and loaded;
//! - `library`: NVIDIA's cuBLASLt, for products that are nothing else;
//! - `memory`: one plain allocation for all tensors and the arena, filled from the host through page-locked buffers;
//! - `bound`: a plan bound to it, run kernel by kernel at first and then as one graph;
//! - `info`: what a device is and does at best, from what its driver says;
//! - `rates`: how fast a device multiplies and streams, with our kernels;
//! - `room`, `programs`: memory for one kernel alone; tile programs alone, for checks;
//! - `check`: kernels that people wrote, tried before they are used;
//! - `alone`: one kernel, timed;
//! - `trial`: other kernels for a launch of a plan, checked and timed where it runs;
//! - `head`: heads that take other numbers of tokens at once;
//! - `folder`: kernels that `kfc compile --emit` wrote.
//!
//! Invariants: a step allocates nothing; everything runs in one stream, in the plan's order, so that results are the same
//! bits each time; the host reads what the device wrote only after waiting for it.

mod alone;
mod bound;
mod check;
mod driver;
mod error;
mod folder;
mod head;
mod info;
mod kernels;
mod library;
mod maps;
mod memory;
mod programs;
mod rates;
mod room;
mod trial;

pub use alone::{Alone, alone};
pub use bound::CudaPlan;
pub use driver::{Gpu, start};
pub use error::CudaError;
pub use folder::source_hash;
pub(crate) use head::Calls;
pub use info::{Info, describe_one, devices};
pub(crate) use kernels::{Loaded as Launchable, Triton, load_one as load_trial};
pub(crate) use library::algorithms;
pub(crate) use memory::ALIGN;
pub use memory::CudaMemory;
pub use programs::Programs;
pub(crate) use rates::measure as measure_rates;
pub(crate) use trial::{Outcomes, Site, Trial, Unfit, compile as compile_trial};

use crate::accounting::Account;
use crate::edited::Edit;
use crate::error::Result;
use crate::exec::Store;
use crate::triton::Python;
use kfc_kernels::plan::Plan;
use kfc_kernels::tile::Choices;
use kfc_kernels::tile::header::Language;
use kfc_kernels::tile::lower::{Kernel, Lowered, lower_chosen};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// The version of CUDA that the driver must support, as the driver counts.
pub(crate) const CUDA: i32 = 13_000;
/// The first driver that does.
pub(crate) const DRIVER: u32 = 580;

/// The kernels and launches of plans, in the driver.
pub(crate) struct Loaded {
    lowered: Lowered,
    choices: Choices,
    functions: Arc<Vec<kernels::Loaded>>,
    /// What is to be said about kernels.
    pub(crate) notes: Vec<String>,
}

impl Loaded {
    /// Compiles or finds the plans' kernels, made as `choices` say: those of `edits` in their files, which
    /// are tried; the others in `folder`, which `kfc compile --emit` wrote, if that is given.
    ///
    /// # Errors
    /// If one cannot be had or does not fit the device, or an edited one is wrong.
    pub(crate) fn new(
        gpu: &Arc<Gpu>,
        plans: &[Plan],
        folder: Option<&Path>,
        choices: &Choices,
        edits: &[Edit],
        python: &Python,
    ) -> Result<Loaded> {
        let lowered = lower_chosen(plans, choices).map_err(|e| CudaError::Source(e.to_string()))?;
        let functions = kernels::load_edited(gpu, &lowered.kernels, folder, edits, python)?;
        let mut notes = Vec::new();
        for (k, loaded) in functions.iter().enumerate() {
            if let Some(from) = &loaded.edited {
                let said = check::check(gpu, &lowered.kernels[k], &lowered.origins[k], loaded, from)?;
                notes.push(format!("{from}: {said}"));
            }
        }
        Ok(Loaded { lowered, choices: choices.clone(), functions: Arc::new(functions), notes })
    }
}

/// Leaves out of `choices` what cannot be had on this machine: kernels in Triton that are not in the cache where there is no
/// Python with Triton, and products of a library that is missing or another one. They are made as built in. Returns what is to be
/// said of it.
///
/// # Errors
/// If an operation has no programs.
pub(crate) fn settle(
    gpu: &Arc<Gpu>,
    plans: &[Plan],
    choices: &mut Choices,
    python: &Python,
) -> Result<Vec<String>> {
    let lowered = lower_chosen(plans, choices).map_err(|e| CudaError::Source(e.to_string()))?;
    let triton = Triton::new(python);
    let mut notes = Vec::new();
    let by_library = lowered.kernels.iter().filter(|k| k.library.is_some());
    let mut refused = Vec::new();
    for k in by_library {
        let made = kernels::compile(gpu, k, &triton).and_then(|c| kernels::load_one(gpu, k, &c));
        refused.extend(made.err().map(|why| (k.key.as_str(), why.to_string())));
    }
    if let Some((_, why)) = refused.first() {
        let what = match refused.len() {
            1 => "a product that `kfc tune` found faster by cuBLASLt is".to_string(),
            n => format!("{n} products that `kfc tune` found faster by cuBLASLt are"),
        };
        notes.push(format!("{what} done by kfc's own kernels: {why}"));
    }
    refused.iter().for_each(|(key, _)| choices.forget(key));
    let in_triton = lowered.kernels.iter().filter(|k| k.language == Language::Triton);
    let is_missing = |k: &&Kernel| matches!(kernels::compile(gpu, k, &triton), Err(CudaError::Source(_)));
    let gone: BTreeSet<&str> = in_triton.filter(is_missing).map(|k| k.key.as_str()).collect();
    gone.iter().for_each(|key| choices.forget(key));
    let Some(why) = triton.missing().filter(|_| !gone.is_empty()) else { return Ok(notes) };
    let what = match gone.len() {
        1 => "a kernel that `kfc tune` found faster in Triton is".to_string(),
        n => format!("{n} kernels that `kfc tune` found faster in Triton are"),
    };
    notes.push(format!("{what} made in CUDA C++ as built in: {why}"));
    Ok(notes)
}

/// Moves the tensors of `store` that plans are bound to onto the device, and binds the plans.
///
/// # Errors
/// If a tensor is missing, or memory does not suffice for what `account` lists.
pub(crate) fn bind(
    gpu: &Arc<Gpu>,
    plans: &[Plan],
    loaded: &Loaded,
    store: &Store,
    account: &Account,
) -> Result<(Arc<CudaMemory>, Vec<CudaPlan>)> {
    let mut memory = CudaMemory::new(gpu, plans, store, account)?;
    memory.notes.clone_from(&loaded.notes);
    let memory = Arc::new(memory);
    let bind = |(number, plan)| CudaPlan::new(plan, number, loaded, &memory, store);
    let bound = plans.iter().enumerate().map(bind).collect::<Result<_>>()?;
    Ok((memory, bound))
}
