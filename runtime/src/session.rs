//! Compiling graphs and binding the plans to one store and one arena.

use crate::error::{Result, RunError};
use crate::exec::{BoundPlan, HostBuffer, Store, StoreError};
use crate::memory;
use kfc_graph::Graph;
use kfc_kernels::compile::compile;
use kfc_kernels::plan::Plan;
use std::sync::Arc;

/// Compiles graphs, and binds them to tensors.
///
/// # Errors
/// If a graph has no kernels, a tensor is missing, the budget is too small, or memory runs out.
pub fn bind(graphs: Vec<Graph>, store: &Store, budget: Option<u64>) -> Result<Vec<BoundPlan>> {
    let plans =
        graphs.into_iter().map(|g| Ok(compile(&g, &mut |_, _| ())?)).collect::<Result<Vec<Plan>>>()?;
    bind_plans(&plans, store, budget)
}

/// Binds compiled plans to `store`; they share one arena, since only one runs at a time.
///
/// # Errors
/// As [`bind`].
pub fn bind_plans(plans: &[Plan], store: &Store, budget: Option<u64>) -> Result<Vec<BoundPlan>> {
    let arena_bytes = plans.iter().map(|p| p.arena_bytes).max().unwrap_or(0);
    if let Some(budget) = budget {
        check_budget(budget, arena_bytes as u64, store)?;
    }
    let arena = HostBuffer::zeroed(arena_bytes)
        .ok_or_else(|| StoreError::OutOfMemory { name: "arena".into(), bytes: arena_bytes })?;
    let arena = Arc::new(arena);
    plans.iter().map(|p| Ok(BoundPlan::new(p, store, &arena)?)).collect()
}

/// Refuses a budget that cannot hold what is already resident, the mapped weights, and the arena.
fn check_budget(budget: u64, arena: u64, store: &Store) -> Result<()> {
    let (_, mapped) = store.resident();
    let needed = memory::resident() + mapped + arena;
    if needed <= budget {
        return Ok(());
    }
    let mib = |b: u64| b.div_ceil(1 << 20);
    Err(RunError::Input(format!(
        "train.mem_budget: {} MiB is too small: {} MiB are needed ({} MiB activations, {} MiB mapped weights, {} MiB \
         parameters, optimiser, data and the program); raise the budget or lower train.batch or data.seq_len",
        mib(budget),
        mib(needed),
        mib(arena),
        mib(mapped),
        mib(needed - mapped - arena),
    )))
}
