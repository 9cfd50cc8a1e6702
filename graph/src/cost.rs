//! What running a node costs, in operations, bytes and estimated seconds.

use crate::graph::{Graph, Node};
use crate::op::Cost;

/// How fast a device is. Measure them on the device that runs the plan; the defaults are of one server core.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Floating-point operations a second in a large matrix product.
    pub flops_per_s: f64,
    /// Bytes a second that a streaming loop reads and writes.
    pub bytes_per_s: f64,
}

impl Default for Rates {
    fn default() -> Self {
        Rates { flops_per_s: 2e11, bytes_per_s: 2e10 }
    }
}

impl Rates {
    /// Estimated time of so much work: arithmetic and memory traffic, not overlapped.
    pub fn seconds(&self, cost: Cost) -> f64 {
        cost.flops as f64 / self.flops_per_s + cost.bytes as f64 / self.bytes_per_s
    }
}

/// Work of a node.
pub fn node_cost(graph: &Graph, node: &Node) -> Cost {
    let types = |values: &[crate::ValueId]| values.iter().map(|&v| graph.ty(v).clone()).collect::<Vec<_>>();
    let (inputs, outputs) = (types(&node.inputs), types(&node.outputs));
    node.op.cost(&inputs, &outputs)
}
