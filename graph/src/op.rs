//! Operations: primitives, composites behind one trait, fused groups of primitives, and operations that one kernel runs.

use crate::attrs::Attrs;
use crate::builder::Builder;
use crate::error::{GraphError, Result};
use crate::fused::{self, Fused};
use crate::graph::{Graph, InputKind, ValueId};
use crate::group::{self, Group};
use crate::prim::Prim;
use crate::types::TensorType;
use std::collections::BTreeMap;
use std::fmt;

/// What a node applies.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// A primitive.
    Prim(Prim),
    /// A composite with its attributes.
    Composite(Composite),
    /// Primitives fused into one node.
    Group(Group),
    /// Operations that one kernel runs.
    Fused(Fused),
}

impl Op {
    /// Name in `.kir` text.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Prim(p) => p.name(),
            Op::Composite(c) => c.def.name(),
            Op::Group(_) => group::NAME,
            Op::Fused(_) => fused::NAME,
        }
    }

    /// Result types for these operand types.
    ///
    /// # Errors
    /// [`crate::GraphError::Type`] if the operands do not fit.
    pub fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        match self {
            Op::Prim(p) => p.infer(inputs).map(|t| vec![t]),
            Op::Composite(c) => c.def.infer(&c.attrs, inputs),
            Op::Group(g) => g.infer(inputs),
            Op::Fused(f) => f.infer(inputs),
        }
    }
}

/// A composite operation applied with attributes.
#[derive(Clone)]
pub struct Composite {
    /// The definition.
    pub def: &'static dyn OpDef,
    /// Its attributes.
    pub attrs: Attrs,
}

impl fmt::Debug for Composite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.def.name(), self.attrs)
    }
}

impl PartialEq for Composite {
    fn eq(&self, other: &Self) -> bool {
        self.def.name() == other.def.name() && self.attrs == other.attrs
    }
}

/// The decomposition of a composite as a graph of its own: its operands are the inputs `0`, `1`, .. in order, its
/// results the outputs in order.
///
/// # Errors
/// If the operands do not fit, or the decomposition's result types are not those that the definition infers.
pub fn decomposition(composite: &Composite, operands: &[TensorType]) -> Result<Graph> {
    let (def, attrs) = (composite.def, &composite.attrs);
    let expected = def.infer(attrs, operands)?;
    let mut graph = Graph::new(def.name());
    let inputs: Vec<ValueId> = operands
        .iter()
        .enumerate()
        .map(|(i, ty)| graph.add_input(i.to_string(), InputKind::Data, ty.clone()))
        .collect();
    let results = def.decompose(&mut Builder::new(&mut graph), attrs, &inputs)?;
    let found: Vec<TensorType> = results.iter().map(|&v| graph.ty(v).clone()).collect();
    if found != expected {
        let list = |types: &[TensorType]| types.iter().map(|t| t.to_string()).collect::<Vec<_>>().join(", ");
        let m = format!("decomposes to ({}), but its results are ({})", list(&found), list(&expected));
        return Err(GraphError::ty(def.name(), m));
    }
    results.into_iter().enumerate().for_each(|(i, v)| graph.add_output(i.to_string(), v, None));
    Ok(graph)
}

/// Work of one application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cost {
    /// Floating-point operations (a multiply-add is two).
    pub flops: u64,
    /// Bytes read and written once each, ideal caching.
    pub bytes: u64,
}

impl Cost {
    /// Each operand read once, each result written once, and this many FLOPs.
    pub fn streaming(flops: u64, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost { flops, bytes: inputs.iter().chain(outputs).map(|t| t.bytes() as u64).sum() }
    }
}

/// Arguments of an explicit vector-Jacobian product.
pub struct VjpArgs<'a> {
    /// Attributes of the node.
    pub attrs: &'a Attrs,
    /// Its operands.
    pub inputs: &'a [ValueId],
    /// Its results (usable as saved values).
    pub outputs: &'a [ValueId],
    /// Gradient of each result; `None` where nothing flows.
    pub grads: &'a [Option<ValueId>],
    /// Which operands need a gradient.
    pub needs: &'a [bool],
}

/// An explicit gradient: returns one optional value an operand.
pub type VjpFn = fn(&mut Builder<'_>, &VjpArgs<'_>) -> Result<Vec<Option<ValueId>>>;

/// How a composite is differentiated.
#[derive(Clone, Copy)]
pub enum Vjp {
    /// By this function, which emits the backward operations.
    Explicit(VjpFn),
    /// By differentiating its decomposition.
    ViaDecompose,
    /// It has no gradient; asking for one is an error.
    Zero,
}

/// How a generic test fills an operand.
#[derive(Clone, Debug, PartialEq)]
pub enum SampleInput {
    /// Uniform in `[lo, hi)`.
    Uniform(f64, f64),
    /// Uniform integers in `[lo, hi)`.
    Integers(i64, i64),
    /// These values, row-major.
    Exact(Vec<f64>),
}

/// One application that every generic test runs.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Attributes.
    pub attrs: Attrs,
    /// Operand types and contents.
    pub inputs: Vec<(TensorType, SampleInput)>,
}

/// The definition of a composite operation. Everything about an op that is not a device's business.
pub trait OpDef: Sync + Send {
    /// Unique name: lower case with underscores.
    fn name(&self) -> &'static str;

    /// Result types for these attributes and operands.
    ///
    /// # Errors
    /// If they do not fit; the message says which and why.
    fn infer(&self, attrs: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>>;

    /// The reference semantics: emits simpler operations that compute the same results.
    ///
    /// # Errors
    /// Only if the operands would not pass [`OpDef::infer`].
    fn decompose(&self, b: &mut Builder<'_>, attrs: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>>;

    /// How it is differentiated.
    fn vjp(&self) -> Vjp;

    /// Work of one application.
    fn cost(&self, attrs: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost;

    /// Applications for the generic tests; must not be empty.
    fn samples(&self) -> Vec<Sample>;
}

/// Composites by name, for the text form.
#[derive(Clone, Default)]
pub struct Registry(BTreeMap<&'static str, &'static dyn OpDef>);

impl Registry {
    /// A registry of these definitions.
    pub fn new(defs: &[&'static dyn OpDef]) -> Self {
        Registry(defs.iter().map(|d| (d.name(), *d)).collect())
    }

    /// The definition of this name.
    pub fn get(&self, name: &str) -> Option<&'static dyn OpDef> {
        self.0.get(name).copied()
    }

    /// All definitions in order of name.
    pub fn iter(&self) -> impl Iterator<Item = &'static dyn OpDef> {
        self.0.values().copied()
    }
}
