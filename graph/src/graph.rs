//! The graph itself: arenas of nodes and values, named inputs and outputs.

use crate::op::Op;
use crate::types::TensorType;

/// Index of a value in its graph.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// Index of a node in its graph; order of ids is a topological order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct NodeId(pub u32);

impl ValueId {
    /// As an index into per-value tables.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl NodeId {
    /// As an index into per-node tables.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Which part of a training step a node belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Phase {
    /// Forward pass and losses.
    Forward,
    /// A forward value computed again for the backward pass.
    Recompute,
    /// Backward pass and gradient accumulation.
    Backward,
    /// Penalties on parameters, clipping, optimiser.
    Update,
}

impl Phase {
    /// Every phase in order of time.
    pub const ALL: [Phase; 4] = [Phase::Forward, Phase::Recompute, Phase::Backward, Phase::Update];

    /// Name in `.kir` text.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Forward => "forward",
            Phase::Recompute => "recompute",
            Phase::Backward => "backward",
            Phase::Update => "update",
        }
    }
}

/// What an input is bound to when the graph runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum InputKind {
    /// Written before each run (tokens, scalars).
    Data,
    /// Read-only for the life of the plan (frozen weights, tables).
    Weight,
    /// Kept between runs and possibly updated by an output (parameters, moments, accumulators).
    State,
}

impl InputKind {
    /// Every kind.
    pub const ALL: [InputKind; 3] = [InputKind::Data, InputKind::Weight, InputKind::State];

    /// Name in `.kir` text.
    pub const fn name(self) -> &'static str {
        match self {
            InputKind::Data => "data",
            InputKind::Weight => "weight",
            InputKind::State => "state",
        }
    }
}

/// A graph input. Names are unique among inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Its value.
    pub value: ValueId,
    /// The name it is bound by.
    pub name: String,
    /// What it is bound to.
    pub kind: InputKind,
}

/// A graph output. Names are unique among outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Its value.
    pub value: ValueId,
    /// The name it is read by.
    pub name: String,
    /// The state input that takes this value when the run ends.
    pub updates: Option<ValueId>,
}

/// Where a value comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Def {
    /// The graph input of this position.
    Input(u32),
    /// The `.1`-th output of node `.0`.
    Node(NodeId, u32),
}

/// A value: its type and origin.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Type and shape.
    pub ty: TensorType,
    /// Origin.
    pub def: Def,
}

/// The application of an operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What is applied.
    pub op: Op,
    /// Operands.
    pub inputs: Vec<ValueId>,
    /// Results.
    pub outputs: Vec<ValueId>,
    /// Part of the step.
    pub phase: Phase,
    /// Where in the model it stands (`layers.3.attn.q`); index into the graph's scopes (see [`Graph::scope`]).
    pub scope: u32,
}

/// A program over tensors. See the crate documentation for its invariants.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// Name, for dumps.
    pub name: String,
    pub(crate) nodes: Vec<Node>,
    pub(crate) values: Vec<Value>,
    pub(crate) inputs: Vec<Input>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) scopes: Vec<String>,
}

impl Graph {
    /// An empty graph. Its scope 0 is the empty name.
    pub fn new(name: impl Into<String>) -> Self {
        Graph {
            name: name.into(),
            nodes: Vec::new(),
            values: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            scopes: vec![String::new()],
        }
    }

    /// Nodes in topological order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Ids of all nodes in order.
    pub fn node_ids(&self) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }

    /// The node with this id.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// Number of values.
    pub fn value_count(&self) -> usize {
        self.values.len()
    }

    /// Type of a value.
    pub fn ty(&self, v: ValueId) -> &TensorType {
        &self.values[v.index()].ty
    }

    /// Origin of a value.
    pub fn def(&self, v: ValueId) -> Def {
        self.values[v.index()].def
    }

    /// Inputs in order of binding.
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// Outputs in order.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// Name of a node's scope.
    pub fn scope(&self, node: &Node) -> &str {
        self.scopes.get(node.scope as usize).map_or("", |s| s.as_str())
    }

    /// The input of this name.
    pub fn input(&self, name: &str) -> Option<&Input> {
        self.inputs.iter().find(|i| i.name == name)
    }

    /// The output of this name.
    pub fn output(&self, name: &str) -> Option<&Output> {
        self.outputs.iter().find(|o| o.name == name)
    }

    /// Adds an input.
    pub fn add_input(&mut self, name: impl Into<String>, kind: InputKind, ty: TensorType) -> ValueId {
        let value = self.add_value(ty, Def::Input(self.inputs.len() as u32));
        self.inputs.push(Input { value, name: name.into(), kind });
        value
    }

    /// Adds an output; `updates` names the state input that takes its value.
    pub fn add_output(&mut self, name: impl Into<String>, value: ValueId, updates: Option<ValueId>) {
        self.outputs.push(Output { value, name: name.into(), updates });
    }

    /// Index of a scope name, added if new.
    pub fn intern_scope(&mut self, name: &str) -> u32 {
        // Scopes are opened in order, so a repeated name is almost always the last one.
        match self.scopes.iter().rposition(|s| s == name) {
            Some(i) => i as u32,
            None => {
                self.scopes.push(name.to_string());
                self.scopes.len() as u32 - 1
            }
        }
    }

    /// Appends a node whose result types are already known; returns its results.
    pub fn add_node(
        &mut self,
        op: Op,
        inputs: Vec<ValueId>,
        results: Vec<TensorType>,
        phase: Phase,
        scope: u32,
    ) -> Vec<ValueId> {
        let id = NodeId(self.nodes.len() as u32);
        let outputs: Vec<ValueId> = results
            .into_iter()
            .enumerate()
            .map(|(i, ty)| self.add_value(ty, Def::Node(id, i as u32)))
            .collect();
        self.nodes.push(Node { op, inputs, outputs: outputs.clone(), phase, scope });
        outputs
    }

    fn add_value(&mut self, ty: TensorType, def: Def) -> ValueId {
        self.values.push(Value { ty, def });
        ValueId(self.values.len() as u32 - 1)
    }
}
