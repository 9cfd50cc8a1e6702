//! Tile programs of operations: one file a family.
//!
//! Invariant: a sum over programs is taken in two stages, partial sums in a workspace and then their sum in order, so that
//! results are the same bits each time.

mod adamw;
mod attention;
mod attention_bwd;
mod elementwise;
mod epilogue;
mod ewc_delta;
mod feature;
mod fused;
mod group;
mod head;
mod index;
mod lora;
mod norm;
mod pairs;
mod philox;
mod prims;
mod products;
mod row;
mod sums;

pub use fused::TileFuses;

use super::tiling::{Shape, Tiled, Tilings};
use super::{Buffer, Builder, Program, TileError, ir::Access, ir::Elem};
use epilogue::Epilogue;
use kfc_graph::{Composite, GraphError, Op, TensorType};
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
    /// For each argument, the element of its buffer at which the parameter begins. Launches of one program on several parts
    /// of a tensor differ in these alone.
    pub starts: Vec<usize>,
}

/// What runs an operation.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Emitted {
    /// Programs in order; one sees what those before it wrote.
    pub launches: Vec<Launch>,
    /// Element types and lengths of buffers that the launches share.
    pub workspaces: Vec<(Elem, usize)>,
    /// `(operand, result)` pairs updated in place: the result holds the operand's content before the first launch.
    pub updates: &'static [(usize, usize)],
    /// `(operand, result)` pairs that may be one buffer: each element is read before it is written, by the same program.
    pub may_share: &'static [(usize, usize)],
}

impl Emitted {
    /// Bytes of all workspaces, each from a multiple of 64 on.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace_starts().1
    }

    /// Where each workspace begins among the bytes of all, and their number.
    pub fn workspace_starts(&self) -> (Vec<usize>, usize) {
        let mut end = 0;
        let place = |(elem, len): &(Elem, usize)| {
            let start = end;
            end += (len * elem.bytes()).next_multiple_of(64);
            start
        };
        let starts = self.workspaces.iter().map(place).collect();
        (starts, end)
    }

    /// A single launch.
    fn one(launch: Launch) -> Emitted {
        Emitted { launches: vec![launch], ..Emitted::default() }
    }
}

/// Sizes that programs are cut by. Results of different sizes differ in rounding only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// Logits, of student and teacher together, that stand in memory at once.
    pub logits: usize,
    /// Tokens whose logits do, if that is chosen: no more than `logits` allows.
    pub chunk: Option<usize>,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes { logits: 1 << 26, chunk: None }
    }
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

/// The programs of an operation applied to operands of these types.
///
/// # Errors
/// [`EmitError::Unclaimed`] for composites that no programs are written for.
pub fn emit(op: &Op, inputs: &[TensorType], outputs: &[TensorType]) -> Result<Emitted, EmitError> {
    emit_sized(op, inputs, outputs, &Sizes::default())
}

/// [`emit`] with sizes other than the usual ones.
///
/// # Errors
/// As [`emit`].
pub fn emit_sized(
    op: &Op,
    inputs: &[TensorType],
    outputs: &[TensorType],
    sizes: &Sizes,
) -> Result<Emitted, EmitError> {
    emit_tiled(op, inputs, outputs, sizes, &Tilings::new())
}

/// [`emit_sized`] with products cut as `tilings` say. Results are the same bits for all of them.
///
/// # Errors
/// As [`emit`].
pub fn emit_tiled(
    op: &Op,
    inputs: &[TensorType],
    outputs: &[TensorType],
    sizes: &Sizes,
    tilings: &Tilings,
) -> Result<Emitted, EmitError> {
    let none = kfc_graph::Attrs::new();
    let o = |attrs| Operation { attrs, inputs, outputs, tilings, places: None };
    let mut e = match op {
        Op::Prim(p) => prims::emit(p, &o(&none)),
        Op::Composite(c) => composite(c.def.name(), &o(&c.attrs), sizes),
        Op::Group(g) => group::group(g, &o(&none)),
        Op::Fused(f) => fused::fused(f, &o(&none)),
    }?;
    // Programs of nothing do nothing.
    e.launches.retain(|l| l.program.params.iter().all(|p| p.len > 0));
    Ok(e)
}

/// Whether there are programs for this composite.
pub fn claims(c: &Composite) -> bool {
    NAMES.contains(&c.def.name())
}

/// Tokens that a head with operands of these types takes at once; `None` if the operation is none.
pub fn head_chunk(c: &Composite, inputs: &[TensorType], sizes: &Sizes) -> Option<usize> {
    head::chunk(c.def.name(), &c.attrs, inputs, sizes)
}

/// Names of composites that have programs.
pub const NAMES: [&str; 28] = [
    "accumulate",
    "accumulate_square",
    "adamw",
    "attention",
    "attention_bwd",
    "embedding",
    "ewc_delta",
    "ewc_delta_bwd",
    "ewc_penalty",
    "ewc_penalty_bwd",
    "feature_alignment",
    "kv_append",
    "layer_norm",
    "linear",
    "linear_cross_entropy_kd",
    "linear_cross_entropy_kd_bwd",
    "linear_cross_entropy_kd_fused",
    "linear_token_scores",
    "lora_linear",
    "lora_linear_bwd",
    "penalised_norm",
    "rms_norm",
    "rms_norm_bwd",
    "rope",
    "select_rows",
    "sum_squares",
    "swiglu",
    "swiglu_bwd",
];

fn composite(name: &str, o: &Operation<'_>, sizes: &Sizes) -> Result<Emitted, EmitError> {
    let sharing = |e: Emitted, may_share| Emitted { may_share, ..e };
    Ok(match name {
        "accumulate" => elementwise::accumulate(o, false)?,
        "accumulate_square" => elementwise::accumulate(o, true)?,
        "adamw" => adamw::adamw(o)?,
        "attention" => attention::attention(o)?,
        "attention_bwd" => attention_bwd::attention_bwd(o)?,
        "embedding" => elementwise::embedding(o)?,
        "ewc_delta" => ewc_delta::ewc_delta(o)?,
        "ewc_delta_bwd" => ewc_delta::ewc_delta_bwd(o)?,
        "ewc_penalty" => sums::ewc_penalty(o)?,
        "ewc_penalty_bwd" => elementwise::ewc_penalty_bwd(o)?,
        "feature_alignment" => feature::feature_alignment(o)?,
        "kv_append" => index::kv_append(o)?,
        "layer_norm" => norm::layer_norm(o)?,
        "linear" => products::linear(o, Epilogue::None)?,
        "linear_cross_entropy_kd" => head::head(name, o, head::Mode::Forward, sizes)?,
        "linear_cross_entropy_kd_bwd" => head::head(name, o, head::Mode::Backward, sizes)?,
        "linear_cross_entropy_kd_fused" => head::head(name, o, head::Mode::Fused, sizes)?,
        "linear_token_scores" => head::token_scores(o, sizes)?,
        "lora_linear" => lora::lora_linear(o, Epilogue::None)?,
        "lora_linear_bwd" => lora::lora_linear_bwd(o, Epilogue::None)?,
        "penalised_norm" => sums::penalised_norm(o)?,
        "rms_norm" => norm::rms_norm(o)?,
        "rms_norm_bwd" => norm::rms_norm_bwd(o)?,
        "rope" => sharing(elementwise::rope(o)?, &[(0, 0)]),
        "select_rows" => index::select_rows(o)?,
        "sum_squares" => sums::sum_squares(o)?,
        "swiglu" => sharing(elementwise::swiglu(o)?, &[(0, 0), (1, 0)]),
        "swiglu_bwd" => sharing(elementwise::swiglu_bwd(o)?, &[(1, 0), (2, 1), (0, 0), (0, 1)]),
        other => return Err(EmitError::Unclaimed(other.into())),
    })
}

/// An operation for which programs are written.
struct Operation<'a> {
    attrs: &'a kfc_graph::Attrs,
    inputs: &'a [TensorType],
    outputs: &'a [TensorType],
    tilings: &'a Tilings,
    /// Where its operands and results stand in the node that it is a part of, if it is one of several.
    places: Option<&'a Places>,
}

/// Positions of operands and results among those of a node.
struct Places {
    operands: Vec<usize>,
    results: Vec<usize>,
}

impl Operation<'_> {
    /// What operand `i` is bound to.
    fn operand(&self, i: usize) -> Arg {
        Arg::Input(self.places.map_or(i, |p| p.operands[i]))
    }

    /// What result `j` is bound to.
    fn result(&self, j: usize) -> Arg {
        Arg::Output(self.places.map_or(j, |p| p.results[j]))
    }

    /// How the kernel of this name cuts its product of `[m, k]` and `[k, n]`, multiplied as `elem`.
    fn tiled(&self, kernel: &str, m: usize, n: usize, k: usize, elem: Elem) -> Tiled {
        let shape = Shape { kernel: kernel.into(), m, n, k, parts: 1, elem };
        Tiled { tiling: self.tilings.of(&shape), shape }
    }
}

/// A program under construction with the arguments that its parameters are bound to.
struct Kernel {
    b: Builder,
    args: Vec<Arg>,
    starts: Vec<usize>,
}

impl Kernel {
    fn new(name: &str, doc: &str, grid: [usize; 3], warps: usize) -> Kernel {
        Kernel { b: Builder::new(name, doc, grid, warps), args: Vec::new(), starts: Vec::new() }
    }

    /// A program that computes a product: a block for each tile of the result, and that for each of `parts`.
    fn product(t: Tiled, doc: &str, parts: usize) -> Kernel {
        let (shape, tiling) = (&t.shape, t.tiling);
        let grid = [shape.m.div_ceil(tiling.m), shape.n.div_ceil(tiling.n), parts];
        Kernel::tiled(t, doc, grid)
    }

    /// A program that is cut in this way.
    fn tiled(t: Tiled, doc: &str, grid: [usize; 3]) -> Kernel {
        let mut kernel = Kernel::new(&t.shape.kernel, doc, grid, t.tiling.warps);
        kernel.b.tiled(t);
        kernel
    }

    /// A parameter: `len` elements of an argument from element `start` on.
    fn bind(&mut self, arg: Arg, start: usize, name: &str, elem: Elem, len: usize, access: Access) -> Buffer {
        self.args.push(arg);
        self.starts.push(start);
        self.b.param(name, elem, len, access)
    }

    /// Operand `i` of an operation, read.
    fn input(&mut self, o: &Operation<'_>, i: usize, name: &str) -> Buffer {
        self.input_part(o, i, name, 0, o.inputs[i].elements())
    }

    /// Elements `start..start + len` of operand `i`, read.
    fn input_part(&mut self, o: &Operation<'_>, i: usize, name: &str, start: usize, len: usize) -> Buffer {
        self.bind(o.operand(i), start, name, o.inputs[i].dtype.into(), len, Access::Read)
    }

    /// Result `j` of an operation, written.
    fn output(&mut self, o: &Operation<'_>, j: usize, name: &str) -> Buffer {
        self.output_part(o, j, name, 0, o.outputs[j].elements())
    }

    /// Elements `start..start + len` of result `j`, written.
    fn output_part(&mut self, o: &Operation<'_>, j: usize, name: &str, start: usize, len: usize) -> Buffer {
        self.bind(o.result(j), start, name, o.outputs[j].dtype.into(), len, Access::Write)
    }

    /// Workspace `k`.
    fn work(&mut self, e: &Emitted, k: usize, name: &str, access: Access) -> Buffer {
        self.work_part(e, k, name, 0, e.workspaces[k].1, access)
    }

    /// Elements `start..start + len` of workspace `k`.
    fn work_part(
        &mut self,
        e: &Emitted,
        k: usize,
        name: &str,
        start: usize,
        len: usize,
        access: Access,
    ) -> Buffer {
        self.bind(Arg::Work(k), start, name, e.workspaces[k].0, len, access)
    }

    /// Result `j` of an operation, which holds an operand's content before ([`Emitted::updates`]).
    fn updated(&mut self, o: &Operation<'_>, j: usize, name: &str) -> Buffer {
        let ty = &o.outputs[j];
        self.bind(o.result(j), 0, name, ty.dtype.into(), ty.elements(), Access::ReadWrite)
    }

    fn finish(self) -> Result<Launch, EmitError> {
        Ok(Launch { program: self.b.finish()?, args: self.args, starts: self.starts })
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
