//! Transformations of graphs: one file each, each a function from a graph to a new one.
//!
//! Invariants: a pass keeps the inputs (all, in order) and the outputs (names, order, updates); it takes a graph that
//! [`verify`] accepts and gives one; it does not change what the interpreter computes for finite values, except for the
//! sign of a zero; it takes near-linear time.

pub mod canonicalise;
pub mod cse;
pub mod dce;
pub mod decompose;
pub mod fuse_head;
pub mod fuse_pointwise;
pub mod fuse_products;
pub mod recompute;
mod rewriter;

pub use rewriter::Rewriter;

use crate::error::{GraphError, Result};
use crate::graph::Graph;
use crate::op::{Composite, Registry};
use crate::types::TensorType;
use crate::verify::verify;

/// Whether a backend has a kernel for a composite at these operand types.
pub type Claims<'a> = dyn Fn(&Composite, &[TensorType]) -> bool + 'a;

/// The device-independent pipeline. `observer` sees the graph after each pass under a name like `03-dce`.
///
/// # Errors
/// If the graph, or what a pass made of it, is invalid; the message names the pass.
pub fn optimise(
    graph: &Graph,
    registry: &Registry,
    claims: &Claims<'_>,
    observer: &mut dyn FnMut(&str, &Graph),
) -> Result<Graph> {
    verify(graph)?;
    let mut step = |name: &str, graph: Result<Graph>| {
        let graph = graph.and_then(|g| verify(&g).map(|()| g));
        let graph = graph.map_err(|e| GraphError::Verify(format!("after pass {name}: {e}")))?;
        observer(name, &graph);
        Ok::<Graph, GraphError>(graph)
    };
    let g = step("01-canonicalise", canonicalise::run(graph))?;
    let g = step("02-cse", Ok(cse::run(&g)))?;
    let g = step("03-dce", Ok(dce::run(&g)))?;
    let g = step("04-fuse-head", fuse_head::run(&g, registry))?;
    let g = step("05-decompose", decompose::run(&g, claims))?;
    let g = step("06-canonicalise", canonicalise::run(&g))?;
    let g = step("07-cse", Ok(cse::run(&g)))?;
    let g = step("08-dce", Ok(dce::run(&g)))?;
    step("09-fuse-pointwise", fuse_pointwise::run(&g))
}
