//! Compiling graphs and binding the plans to one store and one arena.

use crate::error::Result;
use crate::exec::{BoundPlan, Copied, Held, HostBuffer, Store, StoreError};
use crate::profile::Machine;
use crate::tuning::Tuning;
use kfc_graph::Graph;
use kfc_kernels::compile::compile;
use kfc_kernels::plan::Plan;
use std::sync::Arc;

/// Compiles graphs.
///
/// # Errors
/// If an operation has no kernel.
pub fn compile_all(graphs: &[Graph]) -> Result<Vec<Plan>> {
    graphs.iter().map(|g| Ok(compile(g, &mut |_, _| ())?)).collect()
}

/// Bytes of the arena that these plans share: only one runs at a time.
pub fn arena_bytes(plans: &[Plan]) -> usize {
    plans.iter().map(|p| p.arena_bytes).max().unwrap_or(0)
}

/// Binds compiled plans to `store`; they share one arena. Kernels cut their work as [`Tuning`] found best on this machine.
///
/// # Errors
/// If a tensor is missing, or memory runs out.
pub fn bind(plans: &[Plan], store: &Store) -> Result<Vec<BoundPlan>> {
    let mut bound = bind_with(plans, store, &[])?;
    bound.iter_mut().take(1).for_each(BoundPlan::touch_arena);
    Ok(bound)
}

/// [`bind`] with transposed copies of these weights, and an arena that is not in memory before [`BoundPlan::touch_arena`]:
/// what was needed for binding can be freed first.
///
/// # Errors
/// As there.
pub(crate) fn bind_with(plans: &[Plan], store: &Store, copied: &[Copied]) -> Result<Vec<BoundPlan>> {
    let bytes = arena_bytes(plans);
    let arena =
        HostBuffer::reserved(bytes).ok_or_else(|| StoreError::OutOfMemory { name: "arena".into(), bytes })?;
    let arena = Arc::new(arena);
    let held = Held::new(copied, store)?;
    let tuning = Tuning::load(&Machine::this());
    let bound = |plan: &Plan| {
        let mut bound = BoundPlan::new(plan, store, &arena)?;
        bound.hold(plan, &held);
        bound.tune(plan, &tuning);
        Ok(bound)
    };
    plans.iter().map(bound).collect()
}
