//! How fast this machine is, for estimates of what recomputation costs.

use crate::KernelError;
use crate::cpu::{self, Buf, Call};
use kfc_graph::cost::{Rates, node_cost};
use kfc_graph::{Builder, DType, Graph, InputKind, Prim, TensorType};
use std::time::Instant;

/// Extents of the matrix product: large enough for its full speed, small enough for a few milliseconds.
const GEMM: usize = 768;

/// Elements of the sum: more than caches hold.
const SUM: usize = 1 << 23;

/// Runs of which the fastest counts.
const RUNS: usize = 3;

/// Measures a matrix product of `dtype` and a sum of two long tensors with the threads that kernels use. Takes well under
/// a second. Results vary from run to run: a plan that depends on them keeps its bits, but perhaps not its choices.
///
/// # Errors
/// If an operation has no kernel.
pub fn rates(dtype: DType) -> Result<Rates, KernelError> {
    let square = TensorType::new(dtype, [GEMM, GEMM]);
    let product = measure(Prim::MatMul { ta: false, tb: true, out: dtype }, &[square.clone(), square])?;
    let long = TensorType::new(DType::F32, [SUM]);
    let sum = measure(Prim::Add, &[long.clone(), long])?;
    Ok(Rates { flops_per_s: product.0, bytes_per_s: sum.1 })
}

/// FLOPs and bytes a second of one operation.
fn measure(prim: Prim, inputs: &[TensorType]) -> Result<(f64, f64), KernelError> {
    let mut graph = Graph::new("calibration");
    let operands: Vec<_> = inputs
        .iter()
        .enumerate()
        .map(|(i, t)| graph.add_input(i.to_string(), InputKind::Data, t.clone()))
        .collect();
    Builder::new(&mut graph).prim(prim, &operands)?;
    let node = &graph.nodes()[0];
    let cost = node_cost(&graph, node);
    let outputs = [graph.ty(node.outputs[0]).clone()];
    let kernel = cpu::build(&node.op, inputs, &outputs)?;
    let mut memory: Vec<Vec<Line>> = inputs.iter().chain(&outputs).map(|t| lines(t.bytes())).collect();
    let mut workspace = lines(kernel.workspace_bytes());
    let mut bufs: Vec<Buf> = memory
        .iter_mut()
        .zip(inputs.iter().chain(&outputs))
        .map(|(m, t)| Buf { ptr: m.as_mut_ptr().cast(), bytes: t.bytes() })
        .collect();
    let results = bufs.split_off(inputs.len());
    let workspace = Buf { ptr: workspace.as_mut_ptr().cast(), bytes: workspace.len() * size_of::<Line>() };
    let mut best = f64::INFINITY;
    for _ in 0..=RUNS {
        let start = Instant::now();
        // SAFETY: the buffers have the sizes of the types that the kernel was built for, hold zeros, are aligned, and do not
        // overlap.
        unsafe { kernel.run(&Call { inputs: &bufs, outputs: &results, workspace, transposed: None }) };
        best = best.min(start.elapsed().as_secs_f64());
    }
    let best = best.max(1e-9);
    Ok((cost.flops as f64 / best, cost.bytes as f64 / best))
}

/// Memory as aligned as kernels want it.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _bytes: [u8; 64],
}

/// At least this many zero bytes.
fn lines(bytes: usize) -> Vec<Line> {
    vec![Line { _bytes: [0; 64] }; bytes.div_ceil(size_of::<Line>())]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rates_are_plausible() {
        let r = rates(DType::F32).unwrap();
        assert!((1e8..1e16).contains(&r.flops_per_s), "{r:?}");
        assert!((1e7..1e14).contains(&r.bytes_per_s), "{r:?}");
    }
}
