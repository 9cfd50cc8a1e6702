//! Plans of several shapes over one store and one arena, each compiled when it is first needed.
//!
//! Invariants:
//! - tensors of equal name and type are shared by all plans; those that depend on the shape have a name of their own;
//! - the arena has the size of the largest plan: when a larger one comes, the others are bound to its arena, so one arena
//!   is alive at a time;
//! - the store outlives the plans bound to it, since both are here.

use crate::error::Result;
use crate::exec::{BoundPlan, HostBuffer, Slot, Store, StoreError};
use kfc_graph::{Graph, InputKind};
use kfc_kernels::compile::compile;
use kfc_kernels::plan::Plan;
use std::sync::Arc;

/// Position of a plan in its set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanId(usize);

/// The plans and what they run on.
pub struct PlanSet {
    plans: Vec<Plan>,
    bound: Vec<BoundPlan>,
    arena: Arc<HostBuffer>,
    arena_bytes: usize,
    store: Store,
}

impl PlanSet {
    /// No plans yet, over `store`.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn new(store: Store) -> Result<PlanSet> {
        Ok(PlanSet { plans: Vec::new(), bound: Vec::new(), arena: arena(0)?, arena_bytes: 0, store })
    }

    /// Compiles `graph` and binds it. Inputs named in `own` depend on the graph's shape: they are bound to
    /// `prefix + name`. Data and states that are not in the store are allocated.
    ///
    /// # Errors
    /// If compiling or binding fails, or memory runs out.
    pub fn add(&mut self, graph: &Graph, own: &[&str], prefix: &str) -> Result<PlanId> {
        let mut plan = compile(graph, &mut |_, _| ())?;
        for input in &mut plan.inputs {
            if own.contains(&input.name.as_str()) {
                input.name.insert_str(0, prefix);
            }
            if input.kind != InputKind::Weight {
                self.store.allocate(&input.name, &input.ty)?;
            }
        }
        if plan.arena_bytes > self.arena_bytes {
            self.grow(plan.arena_bytes)?;
        }
        self.bound.push(BoundPlan::new(&plan, &self.store, &self.arena)?);
        self.plans.push(plan);
        Ok(PlanId(self.plans.len() - 1))
    }

    /// Replaces the arena by a larger one; the old one goes before the new one comes.
    fn grow(&mut self, bytes: usize) -> Result<()> {
        self.bound.clear();
        self.arena = arena(0)?;
        self.arena_bytes = 0;
        self.arena = arena(bytes)?;
        self.arena_bytes = bytes;
        for plan in &self.plans {
            self.bound.push(BoundPlan::new(plan, &self.store, &self.arena)?);
        }
        Ok(())
    }

    /// Size of the arena.
    pub const fn arena_bytes(&self) -> usize {
        self.arena_bytes
    }

    /// The tensors.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The tensors, to be written between runs.
    pub fn store_mut(&mut self) -> &mut Store {
        &mut self.store
    }

    /// Where the tensor of this name is.
    ///
    /// # Errors
    /// If no plan has such a tensor.
    pub fn slot(&self, name: &str) -> Result<Slot> {
        self.store
            .slot(name)
            .ok_or_else(|| crate::RunError::Failed(format!("the plan has no tensor `{name}`")))
    }

    /// Runs a plan.
    pub fn run(&mut self, id: PlanId) {
        self.bound[id.0].run(&mut self.store);
    }

    /// A plan after it ran, until another one runs.
    pub fn plan(&self, id: PlanId) -> &BoundPlan {
        &self.bound[id.0]
    }

    /// Position of an output, for [`BoundPlan::output`].
    ///
    /// # Errors
    /// If the plan has no such output.
    pub fn output(&self, id: PlanId, name: &str) -> Result<usize> {
        let found = self.bound[id.0].output_index(name);
        found.ok_or_else(|| crate::RunError::Failed(format!("the plan has no output `{name}`")))
    }
}

fn arena(bytes: usize) -> Result<Arc<HostBuffer>> {
    let buffer =
        HostBuffer::zeroed(bytes).ok_or_else(|| StoreError::OutOfMemory { name: "arena".into(), bytes })?;
    Ok(Arc::new(buffer))
}
