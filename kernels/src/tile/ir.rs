//! The tile language: what one kernel does, in terms of tiles of elements rather than threads.

use super::plain::Plain;
use super::tiling::Tiled;
use kfc_graph::DType;
use std::fmt;

/// Type of the elements of a tile. Arithmetic is on `F32`, `I32` and `U32` only: the 16-bit floats are loaded, stored,
/// cast and multiplied by [`Inst::Dot`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Elem {
    /// 32-bit float.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
    /// Signed 32-bit integer; wraps.
    I32,
    /// Unsigned 32-bit integer; wraps.
    U32,
    /// Truth of a comparison.
    Bool,
}

impl Elem {
    /// Whether arithmetic is defined on it.
    pub const fn is_number(self) -> bool {
        matches!(self, Elem::F32 | Elem::I32 | Elem::U32)
    }

    /// Whether it is a float of any width.
    pub const fn is_float(self) -> bool {
        matches!(self, Elem::F32 | Elem::Bf16 | Elem::F16)
    }

    /// Bytes of an element in memory.
    pub const fn bytes(self) -> usize {
        match self {
            Elem::F32 | Elem::I32 | Elem::U32 => 4,
            Elem::Bf16 | Elem::F16 => 2,
            Elem::Bool => 1,
        }
    }

    /// Name in dumps.
    pub const fn name(self) -> &'static str {
        match self {
            Elem::F32 => "f32",
            Elem::Bf16 => "bf16",
            Elem::F16 => "f16",
            Elem::I32 => "i32",
            Elem::U32 => "u32",
            Elem::Bool => "bool",
        }
    }
}

impl From<DType> for Elem {
    fn from(dtype: DType) -> Elem {
        match dtype {
            DType::F32 => Elem::F32,
            DType::Bf16 => Elem::Bf16,
            DType::F16 => Elem::F16,
            DType::I32 => Elem::I32,
        }
    }
}

/// Type of a value: a scalar (no extents), or a tile of one or two extents, each a power of two.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Ty {
    /// Element type.
    pub elem: Elem,
    /// Extents, at most two.
    pub dims: Vec<usize>,
}

impl Ty {
    /// A scalar.
    pub fn scalar(elem: Elem) -> Ty {
        Ty { elem, dims: Vec::new() }
    }

    /// Number of elements; never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether it is a scalar.
    pub fn is_scalar(&self) -> bool {
        self.dims.is_empty()
    }

    /// The same extents of another element type.
    #[must_use]
    pub fn with(&self, elem: Elem) -> Ty {
        Ty { elem, dims: self.dims.clone() }
    }
}

impl fmt::Display for Ty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.elem.name())?;
        if !self.dims.is_empty() {
            write!(f, "{:?}", self.dims)?;
        }
        Ok(())
    }
}

/// A value of a program.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Var(pub(super) u32);

impl Var {
    /// As an index into per-value tables.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a program may do to a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// Loads only.
    Read,
    /// Stores only.
    Write,
    /// Both: an element is loaded before it is stored, by the program that stores it.
    ReadWrite,
}

impl Access {
    /// Name in dumps.
    pub const fn name(self) -> &'static str {
        match self {
            Access::Read => "read",
            Access::Write => "written",
            Access::ReadWrite => "read and written",
        }
    }
}

/// A buffer that a program is given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Param {
    /// Its name in source.
    pub name: String,
    /// Element type in memory.
    pub elem: Elem,
    /// Elements.
    pub len: usize,
    /// What is done to it.
    pub access: Access,
}

/// Functions of one operand.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Unary {
    /// `-a`
    Neg,
    /// `e^a`
    Exp,
    /// Natural logarithm.
    Log,
    /// Square root.
    Sqrt,
    /// `1/(1 + e^-a)`
    Sigmoid,
    /// The error function.
    Erf,
    /// Negation of a truth.
    Not,
}

/// Functions of two operands of one type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Binary {
    /// Sum.
    Add,
    /// Difference.
    Sub,
    /// Product; its low 32 bits for integers.
    Mul,
    /// Quotient; rounded towards zero for integers.
    Div,
    /// Remainder of integers that are not negative.
    Rem,
    /// The larger; the first if it is not a number.
    Max,
    /// The smaller.
    Min,
    /// Both truths, or the bits that both have.
    And,
    /// Either truth, or the bits that either has.
    Or,
    /// Bits that one of the two has.
    Xor,
    /// Bits shifted up.
    Shl,
    /// Bits shifted down, zeros from above.
    Shr,
    /// High 32 bits of the product of two `U32`.
    MulHigh,
}

/// Comparisons.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Compare {
    /// `a == b`
    Eq,
    /// `a < b`
    Lt,
    /// `a <= b`
    Le,
}

/// Reductions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fold {
    /// Sum, in an order that extents and threads fix.
    Sum,
    /// Maximum.
    Max,
}

/// A value that a loop hands from one round to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Carried {
    /// Before the first round.
    pub init: Var,
    /// At the start of a round.
    pub inner: Var,
    /// At its end.
    pub next: Var,
    /// After the last round.
    pub result: Var,
}

/// An instruction. Its operands have the types that the verifier demands.
#[derive(Clone, PartialEq, Debug)]
pub enum Inst {
    /// Which program this is, along an axis of the grid. `i32` scalar.
    ProgramId(usize),
    /// An integer scalar.
    Int(i64, Elem),
    /// A float scalar.
    Float(f32),
    /// `0, 1, …, n - 1` as `i32[n]`.
    Range(usize),
    /// A scalar in every element.
    Splat(Var, Vec<usize>),
    /// `[n]` as `[n, 1]` (axis 1) or `[1, n]` (axis 0).
    Expand(Var, usize),
    /// Extents of 1 repeated.
    Broadcast(Var, Vec<usize>),
    /// `[m, n]` as `[n, m]`.
    Transpose(Var),
    /// A function of each element.
    Unary(Unary, Var),
    /// A function of each pair of elements.
    Binary(Binary, Var, Var),
    /// A comparison of each pair of elements.
    Compare(Compare, Var, Var),
    /// Elements of the second where the first holds, else of the third.
    Select(Var, Var, Var),
    /// Conversion: to the nearest float, ties to even; to integers towards zero.
    Cast(Var, Elem),
    /// Elements of a buffer at these indices (`i32`); 0 where the mask does not hold.
    Load {
        /// The buffer.
        param: usize,
        /// Indices.
        index: Var,
        /// Which elements are read; all without it.
        mask: Option<Var>,
    },
    /// Writes elements of a buffer at these indices.
    Store {
        /// The buffer.
        param: usize,
        /// Indices.
        index: Var,
        /// What is written; of the buffer's type.
        value: Var,
        /// Which elements are written; all without it.
        mask: Option<Var>,
    },
    /// `acc + a · b` for `f32[m, n]`, `[m, k]`, `[k, n]`; products summed in `f32`.
    Dot {
        /// Left operand.
        a: Var,
        /// Right operand.
        b: Var,
        /// What is added to.
        acc: Var,
    },
    /// A reduction over an axis: `[n]` to a scalar, `[m, n]` to `[m]` (axis 1) or `[n]` (axis 0).
    Reduce(Fold, Var, usize),
    /// `body` for `index` from `from` to below `to` by `step`.
    For {
        /// The counter, an `i32` scalar.
        index: Var,
        /// First value.
        from: Var,
        /// One past the last.
        to: Var,
        /// Distance of two values; positive.
        step: i64,
        /// What is handed on.
        carried: Vec<Carried>,
        /// What is done in each round.
        body: Vec<Stmt>,
    },
}

/// An instruction and its result; stores and loops have none of their own.
#[derive(Clone, PartialEq, Debug)]
pub struct Stmt {
    /// The value that it defines.
    pub result: Option<Var>,
    /// What it does.
    pub inst: Inst,
}

/// A kernel: run once for each point of the grid, in any order or at the same time.
#[derive(Clone, PartialEq, Debug)]
pub struct Program {
    /// Its name in source: lower case with underscores.
    pub name: String,
    /// What it computes, for the header of its source.
    pub doc: String,
    /// Buffers.
    pub params: Vec<Param>,
    /// Extents of the grid.
    pub grid: [usize; 3],
    /// Warps of 32 threads that run one program.
    pub warps: usize,
    /// Rounds of a loop whose operands of dots are in shared memory or on their way to it.
    pub stages: usize,
    /// What it multiplies and how that is cut, if it can be cut in other ways.
    pub tiled: Option<Tiled>,
    /// The product that it is, if it is nothing else ([`Plain::of`]).
    pub(super) plain: Option<Plain>,
    /// What it does.
    pub body: Vec<Stmt>,
    pub(super) types: Vec<Ty>,
}

impl Program {
    /// Type of a value.
    pub fn ty(&self, v: Var) -> &Ty {
        &self.types[v.index()]
    }

    /// Number of values.
    pub fn values(&self) -> usize {
        self.types.len()
    }

    /// Programs of the grid.
    pub fn programs(&self) -> usize {
        self.grid.iter().product()
    }
}
