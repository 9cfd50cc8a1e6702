//! Tile programs of operations: one file a family.
//!
//! Invariant: a sum over programs is taken in two stages, partial sums in a workspace and then their sum in order, so that
//! results are the same bits each time.

mod elementwise;
mod norm;
mod products;
mod sums;

use super::{Buffer, Builder, Program, TileError, ir::Access, ir::Elem};
use kfc_graph::{Composite, GraphError, TensorType};
use thiserror::Error;

/// What an argument of a program is bound to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arg {
    /// An operand of the operation.
    Input(usize),
    /// A result.
    Output(usize),
    /// A buffer of [`Emitted::workspaces`].
    Work(usize),
}

/// A program and what it is given.
#[derive(Clone, PartialEq, Debug)]
pub struct Launch {
    /// What runs.
    pub program: Program,
    /// Its arguments, in order of the program's parameters.
    pub args: Vec<Arg>,
}

/// What runs an operation.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Emitted {
    /// Programs in order; one sees what those before it wrote.
    pub launches: Vec<Launch>,
    /// Element types and lengths of buffers that the launches share.
    pub workspaces: Vec<(Elem, usize)>,
}

/// Why an operation has no programs.
#[derive(Debug, Error)]
pub enum EmitError {
    /// No programs are known for it.
    #[error("no tile program for `{0}`")]
    Unclaimed(String),
    /// An attribute is missing or wrong.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A program does not hold together.
    #[error(transparent)]
    Tile(#[from] TileError),
}

/// Names of composites that [`emit`] knows.
pub const NAMES: [&str; 12] = [
    "accumulate",
    "accumulate_square",
    "adamw",
    "embedding",
    "ewc_penalty",
    "ewc_penalty_bwd",
    "linear",
    "rms_norm",
    "rms_norm_bwd",
    "rope",
    "swiglu",
    "swiglu_bwd",
];

/// The programs of a composite applied to operands of these types.
///
/// # Errors
/// [`EmitError::Unclaimed`] for other composites than [`NAMES`].
pub fn emit(c: &Composite, inputs: &[TensorType], outputs: &[TensorType]) -> Result<Emitted, EmitError> {
    let o = Operation { attrs: &c.attrs, inputs, outputs };
    match c.def.name() {
        "accumulate" => elementwise::accumulate(&o, false),
        "accumulate_square" => elementwise::accumulate(&o, true),
        "adamw" => elementwise::adamw(&o),
        "embedding" => elementwise::embedding(&o),
        "ewc_penalty" => sums::ewc_penalty(&o),
        "ewc_penalty_bwd" => elementwise::ewc_penalty_bwd(&o),
        "linear" => products::linear(&o),
        "rms_norm" => norm::rms_norm(&o),
        "rms_norm_bwd" => norm::rms_norm_bwd(&o),
        "rope" => elementwise::rope(&o),
        "swiglu" => elementwise::swiglu(&o),
        "swiglu_bwd" => elementwise::swiglu_bwd(&o),
        other => Err(EmitError::Unclaimed(other.into())),
    }
}

/// An operation for which programs are written.
struct Operation<'a> {
    attrs: &'a kfc_graph::Attrs,
    inputs: &'a [TensorType],
    outputs: &'a [TensorType],
}

/// A program under construction with the arguments that its parameters are bound to.
struct Kernel {
    b: Builder,
    args: Vec<Arg>,
}

impl Kernel {
    fn new(name: &str, doc: &str, grid: [usize; 3], warps: usize) -> Kernel {
        Kernel { b: Builder::new(name, doc, grid, warps), args: Vec::new() }
    }

    /// Operand `i` of an operation, read.
    fn input(&mut self, o: &Operation<'_>, i: usize, name: &str) -> Buffer {
        self.args.push(Arg::Input(i));
        self.b.param(name, o.inputs[i].dtype, o.inputs[i].elements(), Access::Read)
    }

    /// Result `j` of an operation, written.
    fn output(&mut self, o: &Operation<'_>, j: usize, name: &str) -> Buffer {
        self.args.push(Arg::Output(j));
        self.b.param(name, o.outputs[j].dtype, o.outputs[j].elements(), Access::Write)
    }

    /// Workspace `k`.
    fn work(&mut self, e: &Emitted, k: usize, name: &str, access: Access) -> Buffer {
        self.args.push(Arg::Work(k));
        let (elem, len) = e.workspaces[k];
        self.b.param(name, elem, len, access)
    }

    fn finish(self) -> Result<Launch, EmitError> {
        Ok(Launch { program: self.b.finish()?, args: self.args })
    }
}

/// A tile width for rows of `n` elements: a power of two, at most `most`.
fn width(n: usize, most: usize) -> usize {
    n.next_power_of_two().clamp(1, most)
}

/// Warps for a tile of `n` elements.
fn warps(n: usize) -> usize {
    (n / 256).next_power_of_two().clamp(1, 8)
}
