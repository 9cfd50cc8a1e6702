//! The closed set of primitive operations and their typing rules. Their meaning is [`crate::interp`].
//!
//! Pointwise primitives take operands of one shape: broadcasting is always an explicit [`Prim::Broadcast`].
//! Reductions keep the reduced axes with extent 1.

use crate::error::{GraphError, Result};
use crate::types::{DType, TensorType};

/// Comparison of two tensors.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CmpOp {
    /// `a == b`
    Eq,
    /// `a < b`
    Lt,
    /// `a <= b`
    Le,
}

/// A primitive operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Prim {
    /// A tensor of this type filled with one value. No operands.
    Const {
        /// Result type.
        ty: TensorType,
        /// Every element.
        value: f64,
    },
    /// An `i32` tensor whose elements are their index along `axis`. No operands.
    Iota {
        /// Shape of the result.
        dims: Vec<usize>,
        /// Counted axis.
        axis: usize,
    },
    /// Uniform `f32` in [0, 1), multiples of 2^-16, from a counter: element `i` depends only on the seed operand (`i32[2]`),
    /// `stream` and `i`.
    Random {
        /// Shape of the result.
        dims: Vec<usize>,
        /// Distinguishes uses of one seed.
        stream: u32,
    },
    /// `-a`
    Neg,
    /// `e^a`
    Exp,
    /// Natural logarithm.
    Log,
    /// Square root.
    Sqrt,
    /// `1 / (1 + e^-a)`
    Sigmoid,
    /// The error function, `2/√π · ∫₀ᵃ e^(-t²) dt`
    Erf,
    /// Conversion to another element type (floats to integers truncate).
    Cast(DType),
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`
    Div,
    /// The larger of `a` and `b`.
    Max,
    /// 1 where the comparison holds, else 0, as `i32`.
    Compare(CmpOp),
    /// `cond != 0 ? a : b`; operands cond (`i32`), a, b.
    Select,
    /// The same elements in row-major order under another shape.
    Reshape {
        /// New shape.
        dims: Vec<usize>,
    },
    /// Axis `i` of the result is axis `perm[i]` of the operand.
    Transpose {
        /// The permutation.
        perm: Vec<usize>,
    },
    /// Repeats axes of extent 1 up to `dims` (same rank).
    Broadcast {
        /// Shape of the result.
        dims: Vec<usize>,
    },
    /// Elements `start..end` along `axis`.
    Slice {
        /// The axis.
        axis: usize,
        /// First index.
        start: usize,
        /// One past the last index.
        end: usize,
    },
    /// Zeros before and after along `axis`.
    Pad {
        /// The axis.
        axis: usize,
        /// Zeros before.
        lo: usize,
        /// Zeros after.
        hi: usize,
    },
    /// Operands one after the other along `axis`.
    Concat {
        /// The axis.
        axis: usize,
    },
    /// Sum over `axes`.
    ReduceSum {
        /// Reduced axes, ascending.
        axes: Vec<usize>,
    },
    /// Maximum over `axes`.
    ReduceMax {
        /// Reduced axes, ascending.
        axes: Vec<usize>,
    },
    /// Matrix product over the last two axes; leading axes are a batch and must agree. Accumulates in `f32` or better.
    MatMul {
        /// The left operand is stored as `[.., K, M]`.
        ta: bool,
        /// The right operand is stored as `[.., N, K]`.
        tb: bool,
        /// Element type of the result.
        out: DType,
    },
    /// Rows of a table: operands table `[V, H]` and `i32` ids of any shape; result `ids.dims + [H]`.
    Gather,
    /// Sum of rows by id: operands `i32` ids and rows `ids.dims + [H]`; result `f32 [rows, H]`, added in order.
    ScatterAdd {
        /// Rows of the result.
        rows: usize,
    },
}

impl Prim {
    /// Name in `.kir` text.
    pub const fn name(&self) -> &'static str {
        match self {
            Prim::Const { .. } => "const",
            Prim::Iota { .. } => "iota",
            Prim::Random { .. } => "random",
            Prim::Neg => "neg",
            Prim::Exp => "exp",
            Prim::Log => "log",
            Prim::Sqrt => "sqrt",
            Prim::Sigmoid => "sigmoid",
            Prim::Erf => "erf",
            Prim::Cast(_) => "cast",
            Prim::Add => "add",
            Prim::Sub => "sub",
            Prim::Mul => "mul",
            Prim::Div => "div",
            Prim::Max => "max",
            Prim::Compare(CmpOp::Eq) => "eq",
            Prim::Compare(CmpOp::Lt) => "lt",
            Prim::Compare(CmpOp::Le) => "le",
            Prim::Select => "select",
            Prim::Reshape { .. } => "reshape",
            Prim::Transpose { .. } => "transpose",
            Prim::Broadcast { .. } => "broadcast",
            Prim::Slice { .. } => "slice",
            Prim::Pad { .. } => "pad",
            Prim::Concat { .. } => "concat",
            Prim::ReduceSum { .. } => "reduce_sum",
            Prim::ReduceMax { .. } => "reduce_max",
            Prim::MatMul { .. } => "matmul",
            Prim::Gather => "gather",
            Prim::ScatterAdd { .. } => "scatter_add",
        }
    }

    /// Result type for these operand types.
    ///
    /// # Errors
    /// [`GraphError::Type`] if the operands do not fit.
    pub fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let fail = |m: String| Err(GraphError::ty(self.name(), m));
        let arity = |n: usize| {
            if inputs.len() == n {
                Ok(())
            } else {
                Err(GraphError::ty(self.name(), format!("takes {n} operands, got {}", inputs.len())))
            }
        };
        match self {
            Prim::Const { ty, .. } => arity(0).map(|()| ty.clone()),
            Prim::Iota { dims, axis } => {
                arity(0)?;
                if *axis >= dims.len() {
                    return fail(format!("axis {axis} of rank {}", dims.len()));
                }
                Ok(TensorType::new(DType::I32, dims.clone()))
            }
            Prim::Random { dims, .. } => {
                arity(1)?;
                if inputs[0] != TensorType::new(DType::I32, [2]) {
                    return fail(format!("seed must be i32[2], is {}", inputs[0]));
                }
                Ok(TensorType::new(DType::F32, dims.clone()))
            }
            Prim::Neg | Prim::Exp | Prim::Log | Prim::Sqrt | Prim::Sigmoid | Prim::Erf => {
                arity(1)?;
                float(self.name(), &inputs[0])?;
                Ok(inputs[0].clone())
            }
            Prim::Cast(to) => {
                arity(1)?;
                Ok(TensorType::new(*to, inputs[0].dims.clone()))
            }
            Prim::Add | Prim::Sub | Prim::Mul | Prim::Div | Prim::Max => {
                arity(2)?;
                if inputs[0] != inputs[1] {
                    return fail(format!("operands differ: {} and {}", inputs[0], inputs[1]));
                }
                Ok(inputs[0].clone())
            }
            Prim::Compare(_) => {
                arity(2)?;
                if inputs[0] != inputs[1] {
                    return fail(format!("operands differ: {} and {}", inputs[0], inputs[1]));
                }
                Ok(TensorType::new(DType::I32, inputs[0].dims.clone()))
            }
            Prim::Select => {
                arity(3)?;
                if inputs[0].dtype != DType::I32 || inputs[0].dims != inputs[1].dims || inputs[1] != inputs[2]
                {
                    return fail(format!("operands do not fit: {}, {}, {}", inputs[0], inputs[1], inputs[2]));
                }
                Ok(inputs[1].clone())
            }
            Prim::Reshape { dims } => {
                arity(1)?;
                if dims.iter().product::<usize>() != inputs[0].elements() {
                    return fail(format!(
                        "{} has {} elements, {dims:?} has not",
                        inputs[0],
                        inputs[0].elements()
                    ));
                }
                Ok(TensorType::new(inputs[0].dtype, dims.clone()))
            }
            Prim::Transpose { perm } => {
                arity(1)?;
                let mut seen = perm.clone();
                seen.sort_unstable();
                if seen != (0..inputs[0].rank()).collect::<Vec<_>>() {
                    return fail(format!("{perm:?} is no permutation of the axes of {}", inputs[0]));
                }
                let dims: Vec<usize> = perm.iter().map(|&p| inputs[0].dims[p]).collect();
                Ok(TensorType::new(inputs[0].dtype, dims))
            }
            Prim::Broadcast { dims } => {
                arity(1)?;
                let ok = dims.len() == inputs[0].rank()
                    && inputs[0].dims.iter().zip(dims).all(|(&from, &to)| from == to || from == 1);
                if !ok {
                    return fail(format!("{} does not broadcast to {dims:?}", inputs[0]));
                }
                Ok(TensorType::new(inputs[0].dtype, dims.clone()))
            }
            Prim::Slice { axis, start, end } => {
                arity(1)?;
                if *axis >= inputs[0].rank() || start >= end || *end > inputs[0].dims[*axis] {
                    return fail(format!("{start}..{end} along axis {axis} of {}", inputs[0]));
                }
                let mut dims = inputs[0].dims.clone();
                dims[*axis] = end - start;
                Ok(TensorType::new(inputs[0].dtype, dims))
            }
            Prim::Pad { axis, lo, hi } => {
                arity(1)?;
                if *axis >= inputs[0].rank() {
                    return fail(format!("axis {axis} of {}", inputs[0]));
                }
                let mut dims = inputs[0].dims.clone();
                dims[*axis] += lo + hi;
                Ok(TensorType::new(inputs[0].dtype, dims))
            }
            Prim::Concat { axis } => {
                let Some(first) = inputs.first() else { return fail("needs an operand".into()) };
                if *axis >= first.rank() {
                    return fail(format!("axis {axis} of {first}"));
                }
                let mut dims = first.dims.clone();
                for t in &inputs[1..] {
                    let fits = t.dtype == first.dtype
                        && t.rank() == first.rank()
                        && (0..t.rank()).all(|i| i == *axis || t.dims[i] == first.dims[i]);
                    if !fits {
                        return fail(format!("{t} does not continue {first} along axis {axis}"));
                    }
                    dims[*axis] += t.dims[*axis];
                }
                Ok(TensorType::new(first.dtype, dims))
            }
            Prim::ReduceSum { axes } | Prim::ReduceMax { axes } => {
                arity(1)?;
                float(self.name(), &inputs[0])?;
                let sorted = axes.windows(2).all(|w| w[0] < w[1]);
                if axes.is_empty() || !sorted || axes.iter().any(|&a| a >= inputs[0].rank()) {
                    return fail(format!("axes {axes:?} of {}", inputs[0]));
                }
                let mut dims = inputs[0].dims.clone();
                axes.iter().for_each(|&a| dims[a] = 1);
                Ok(TensorType::new(inputs[0].dtype, dims))
            }
            Prim::MatMul { ta, tb, out } => {
                arity(2)?;
                let (a, b) = (&inputs[0], &inputs[1]);
                float(self.name(), a)?;
                float(self.name(), b)?;
                let r = a.rank();
                if r < 2 || b.rank() != r || a.dims[..r - 2] != b.dims[..r - 2] || !out.is_float() {
                    return fail(format!("operands do not fit: {a} and {b}"));
                }
                let (m, ka) =
                    if *ta { (a.dims[r - 1], a.dims[r - 2]) } else { (a.dims[r - 2], a.dims[r - 1]) };
                let (n, kb) =
                    if *tb { (b.dims[r - 2], b.dims[r - 1]) } else { (b.dims[r - 1], b.dims[r - 2]) };
                if ka != kb {
                    return fail(format!("inner extents differ: {a} (ta={ta}) and {b} (tb={tb})"));
                }
                let mut dims = a.dims[..r - 2].to_vec();
                dims.extend([m, n]);
                Ok(TensorType::new(*out, dims))
            }
            Prim::Gather => {
                arity(2)?;
                if inputs[0].rank() != 2 || inputs[1].dtype != DType::I32 {
                    return fail(format!("table {} and ids {}", inputs[0], inputs[1]));
                }
                let mut dims = inputs[1].dims.clone();
                dims.push(inputs[0].dims[1]);
                Ok(TensorType::new(inputs[0].dtype, dims))
            }
            Prim::ScatterAdd { rows } => {
                arity(2)?;
                let (ids, src) = (&inputs[0], &inputs[1]);
                float(self.name(), src)?;
                let fits = src.rank() == ids.rank() + 1 && src.dims[..ids.rank()] == ids.dims;
                if ids.dtype != DType::I32 || !fits {
                    return fail(format!("ids {ids} and rows {src}"));
                }
                Ok(TensorType::new(DType::F32, [*rows, src.last()]))
            }
        }
    }

    /// Whether it is computed element by element from operands of the result's shape.
    pub const fn is_pointwise(&self) -> bool {
        matches!(
            self,
            Prim::Neg
                | Prim::Exp
                | Prim::Log
                | Prim::Sqrt
                | Prim::Sigmoid
                | Prim::Erf
                | Prim::Cast(_)
                | Prim::Add
                | Prim::Sub
                | Prim::Mul
                | Prim::Div
                | Prim::Max
                | Prim::Compare(_)
                | Prim::Select
        )
    }
}

fn float(op: &str, t: &TensorType) -> Result<()> {
    if t.dtype.is_float() {
        Ok(())
    } else {
        Err(GraphError::ty(op, format!("needs a float operand, got {t}")))
    }
}
