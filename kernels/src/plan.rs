//! A compiled graph: steps in order, with the place of every operand. No device handles, no memory.

use kfc_graph::budget::Decision;
use kfc_graph::{InputKind, Op, Phase, TensorType};
use serde_json::{Value, json};

/// Where a value lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The bound tensor of this input position.
    Input(usize),
    /// Bytes of the arena.
    Arena {
        /// First byte; a multiple of 64.
        offset: usize,
        /// Size.
        bytes: usize,
    },
}

/// One kernel launch.
#[derive(Clone, Debug)]
pub struct Step {
    /// What it computes.
    pub op: Op,
    /// Part of the training step.
    pub phase: Phase,
    /// Where in the model.
    pub scope: String,
    /// Operand types.
    pub input_types: Vec<TensorType>,
    /// Result types.
    pub output_types: Vec<TensorType>,
    /// Operand places.
    pub inputs: Vec<Place>,
    /// Result places.
    pub outputs: Vec<Place>,
    /// Scratch memory.
    pub workspace: Place,
    /// Copies made before the launch, for results that are updated in place but could not share their operand's place.
    pub copies: Vec<(Place, Place)>,
}

/// A tensor the plan is bound to.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanInput {
    /// Name.
    pub name: String,
    /// Type and shape.
    pub ty: TensorType,
    /// What it is bound to.
    pub kind: InputKind,
}

/// A tensor the plan gives.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanOutput {
    /// Name.
    pub name: String,
    /// Type and shape.
    pub ty: TensorType,
    /// Where it is after the last step.
    pub place: Place,
    /// The input that it updates.
    pub updates: Option<usize>,
}

/// A compiled graph.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name of the graph.
    pub name: String,
    /// Launches in order.
    pub steps: Vec<Step>,
    /// Bound tensors in order of [`Place::Input`].
    pub inputs: Vec<PlanInput>,
    /// Results.
    pub outputs: Vec<PlanOutput>,
    /// Copies after the last step, into updated inputs.
    pub epilogue: Vec<(Place, Place)>,
    /// Size of the arena in bytes.
    pub arena_bytes: usize,
    /// Most bytes alive at once: no arena could be smaller for this order.
    pub live_bytes: usize,
    /// What becomes of each value that the backward pass reads of the forward pass: kept, or made again.
    pub decisions: Vec<Decision>,
}

impl Plan {
    /// Bytes of bound tensors of one kind.
    pub fn input_bytes(&self, kind: InputKind) -> usize {
        self.inputs.iter().filter(|i| i.kind == kind).map(|i| i.ty.bytes()).sum()
    }

    /// The plan as JSON, for `plan.json`.
    pub fn to_json(&self) -> Value {
        let steps: Vec<Value> = self.steps.iter().map(step_json).collect();
        let inputs: Vec<Value> = self
            .inputs
            .iter()
            .map(|i| json!({"name": i.name, "type": i.ty.to_string(), "kind": i.kind.name(), "bytes": i.ty.bytes()}))
            .collect();
        let outputs: Vec<Value> = self
            .outputs
            .iter()
            .map(|o| json!({"name": o.name, "type": o.ty.to_string(), "place": place_json(&o.place), "updates": o.updates}))
            .collect();
        let copies: Vec<Value> =
            self.epilogue.iter().map(|(from, to)| json!([place_json(from), place_json(to)])).collect();
        let decisions: Vec<Value> = self
            .decisions
            .iter()
            .map(|d| json!({"value": d.value, "bytes": d.bytes, "recomputed": d.recomputed, "seconds": d.seconds}))
            .collect();
        json!({
            "name": self.name,
            "arena_bytes": self.arena_bytes,
            "live_bytes": self.live_bytes,
            "inputs": inputs,
            "outputs": outputs,
            "steps": steps,
            "epilogue": copies,
            "saved": decisions,
        })
    }
}

fn step_json(s: &Step) -> Value {
    let places = |p: &[Place]| p.iter().map(place_json).collect::<Vec<_>>();
    let types = |t: &[TensorType]| t.iter().map(ToString::to_string).collect::<Vec<_>>();
    let attrs = match &s.op {
        Op::Composite(c) => c
            .attrs
            .iter()
            .map(|(n, v)| (n.to_string(), json!(v.to_string())))
            .collect::<serde_json::Map<_, _>>(),
        Op::Group(_) | Op::Fused(_) => {
            kfc_graph::text::attrs(&s.op).iter().map(|(n, v)| (n.to_string(), json!(v.to_string()))).collect()
        }
        Op::Prim(_) => serde_json::Map::new(),
    };
    json!({
        "op": s.op.name(),
        "attrs": attrs,
        "phase": s.phase.name(),
        "scope": s.scope,
        "inputs": places(&s.inputs),
        "input_types": types(&s.input_types),
        "outputs": places(&s.outputs),
        "output_types": types(&s.output_types),
        "workspace": place_json(&s.workspace),
        "copies": s.copies.iter().map(|(a, b)| json!([place_json(a), place_json(b)])).collect::<Vec<_>>(),
    })
}

fn place_json(p: &Place) -> Value {
    match p {
        Place::Input(i) => json!({"input": i}),
        Place::Arena { offset, bytes } => json!({"offset": offset, "bytes": bytes}),
    }
}
