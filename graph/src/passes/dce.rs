//! Removes nodes that no output depends on. Inputs stay: they are the graph's signature.

use super::Rewriter;
use crate::graph::Graph;

/// The graph without dead nodes.
pub fn run(graph: &Graph) -> Graph {
    let mut live = vec![false; graph.value_count()];
    graph.outputs().iter().for_each(|o| live[o.value.index()] = true);
    let mut keep = vec![false; graph.nodes().len()];
    for (node, keep) in graph.nodes().iter().zip(&mut keep).rev() {
        *keep = node.outputs.iter().any(|v| live[v.index()]);
        if *keep {
            node.inputs.iter().for_each(|v| live[v.index()] = true);
        }
    }
    let mut r = Rewriter::new(graph);
    graph.nodes().iter().zip(keep).filter(|(_, keep)| *keep).for_each(|(node, _)| r.keep(node));
    r.finish()
}
