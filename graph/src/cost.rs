//! What running a node costs, in operations, bytes and estimated seconds.

use crate::graph::{Graph, Node};
use crate::op::{Cost, Op};
use crate::types::TensorType;

/// Seconds that an operation is expected to take on operands and results of these types.
pub type SecondsOf<'a> = dyn Fn(&Op, &[TensorType], &[TensorType]) -> f64 + Sync + 'a;

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

    /// The same as a [`SecondsOf`].
    pub fn seconds_of(self) -> impl Fn(&Op, &[TensorType], &[TensorType]) -> f64 + Sync {
        move |op, inputs, outputs| self.seconds(op.cost(inputs, outputs))
    }
}

/// Work of a node.
pub fn node_cost(graph: &Graph, node: &Node) -> Cost {
    let (inputs, outputs) = types(graph, node);
    node.op.cost(&inputs, &outputs)
}

/// Expected time of a node.
pub fn node_seconds(graph: &Graph, node: &Node, seconds: &SecondsOf<'_>) -> f64 {
    let (inputs, outputs) = types(graph, node);
    seconds(&node.op, &inputs, &outputs)
}

fn types(graph: &Graph, node: &Node) -> (Vec<TensorType>, Vec<TensorType>) {
    let of = |values: &[crate::ValueId]| values.iter().map(|&v| graph.ty(v).clone()).collect();
    (of(&node.inputs), of(&node.outputs))
}
