//! Runs a plan on buffers of its own, or a graph with a buffer for each value.

use super::{Aligned, encode, run_cpu};
use kfc_graph::{Graph, TensorType};
use kfc_kernels::cpu::{self, Buf, Call};
use kfc_kernels::plan::{Place, Plan};

/// The bytes of all outputs, by name, and of all inputs after the run. The arena holds garbage before.
pub fn run_plan(plan: &Plan, contents: &[Vec<f64>]) -> Vec<(String, Vec<u8>)> {
    let mut inputs: Vec<Aligned> = plan
        .inputs
        .iter()
        .zip(contents)
        .map(|(i, data)| {
            let bytes = encode(&i.ty, data);
            let mut a = Aligned::new(bytes.len(), 0);
            a.slice().copy_from_slice(&bytes);
            a
        })
        .collect();
    let mut arena = Aligned::new(plan.arena_bytes, 0xff);
    let base = arena.buf();
    let bound: Vec<Buf> = inputs.iter_mut().map(Aligned::buf).collect();
    let at = |p: &Place| match *p {
        Place::Input(i) => bound[i],
        Place::Arena { offset, bytes } => {
            assert!(offset + bytes <= base.bytes, "a place lies outside the arena");
            // SAFETY: inside the arena.
            Buf { ptr: unsafe { base.ptr.add(offset) }, bytes }
        }
    };
    // SAFETY: both lie in live buffers.
    let copy = |from: Buf, to: Buf| unsafe { std::ptr::copy(from.ptr, to.ptr, from.bytes) };
    for s in &plan.steps {
        s.copies.iter().for_each(|(from, to)| copy(at(from), at(to)));
        let kernel = cpu::build(&s.op, &s.input_types, &s.output_types).unwrap();
        let (ins, outs): (Vec<Buf>, Vec<Buf>) =
            (s.inputs.iter().map(at).collect(), s.outputs.iter().map(at).collect());
        // SAFETY: the plan gives every live value its own bytes.
        unsafe {
            kernel.run(&Call { inputs: &ins, outputs: &outs, workspace: at(&s.workspace), transposed: None })
        };
    }
    plan.epilogue.iter().for_each(|(from, to)| copy(at(from), at(to)));
    let read = |b: Buf| {
        // SAFETY: the buffer is live and nothing writes to it any more.
        unsafe { std::slice::from_raw_parts(b.ptr, b.bytes) }.to_vec()
    };
    plan.outputs.iter().map(|o| (o.name.clone(), read(at(&o.place)))).collect()
}

/// As [`run_plan`] for the nodes of a graph in order, where no two values share memory.
pub fn run_apart(graph: &Graph, contents: &[Vec<f64>]) -> Vec<(String, Vec<u8>)> {
    let mut values: Vec<Vec<u8>> = vec![vec![]; graph.value_count()];
    for (input, data) in graph.inputs().iter().zip(contents) {
        values[input.value.index()] = encode(graph.ty(input.value), data);
    }
    for node in graph.nodes() {
        let types: Vec<TensorType> = node.inputs.iter().map(|&v| graph.ty(v).clone()).collect();
        let operands: Vec<Vec<u8>> = node.inputs.iter().map(|v| values[v.index()].clone()).collect();
        let results = run_cpu(&node.op, &types, &operands);
        node.outputs.iter().zip(results).for_each(|(v, r)| values[v.index()] = r);
    }
    graph.outputs().iter().map(|o| (o.name.clone(), values[o.value.index()].clone())).collect()
}
