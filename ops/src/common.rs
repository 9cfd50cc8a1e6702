//! What the definitions share: operand checks, operand cursors and short idioms over the builder.

use kfc_graph::{Attrs, VjpArgs};
use kfc_graph::{Builder, CmpOp, DType, GraphError, Result, Sample, SampleInput, TensorType, ValueId};

/// A type error of operation `op`.
pub(crate) fn fail<T>(op: &str, message: impl Into<String>) -> Result<T> {
    Err(GraphError::ty(op, message))
}

/// Reads operand types in order and checks each; every error names the operand.
pub(crate) struct Operands<'a> {
    op: &'static str,
    types: &'a [TensorType],
    next: usize,
}

impl<'a> Operands<'a> {
    pub(crate) fn new(op: &'static str, types: &'a [TensorType]) -> Self {
        Operands { op, types, next: 0 }
    }

    /// The next operand, whatever it is.
    pub(crate) fn any(&mut self, name: &str) -> Result<&'a TensorType> {
        let Some(ty) = self.types.get(self.next) else {
            return fail(self.op, format!("operand {} (`{name}`) is missing", self.next));
        };
        self.next += 1;
        if ty.rank() == 0 || ty.elements() == 0 {
            return fail(self.op, format!("`{name}` is empty: {ty}"));
        }
        Ok(ty)
    }

    /// The next operand, of any float type.
    pub(crate) fn float(&mut self, name: &str) -> Result<&'a TensorType> {
        let ty = self.any(name)?;
        if ty.dtype.is_float() {
            Ok(ty)
        } else {
            fail(self.op, format!("`{name}` must be of a float type, is {ty}"))
        }
    }

    /// The next operand, of any float type and this rank.
    pub(crate) fn float_rank(&mut self, name: &str, rank: usize) -> Result<&'a TensorType> {
        let ty = self.float(name)?;
        if ty.rank() == rank {
            Ok(ty)
        } else {
            fail(self.op, format!("`{name}` must have {rank} axes, is {ty}"))
        }
    }

    /// The next operand, of this element type and rank.
    pub(crate) fn ranked(&mut self, name: &str, dtype: DType, rank: usize) -> Result<&'a TensorType> {
        let ty = self.any(name)?;
        if ty.dtype == dtype && ty.rank() == rank {
            Ok(ty)
        } else {
            fail(self.op, format!("`{name}` must be {dtype} with {rank} axes, is {ty}"))
        }
    }

    /// The next operand, of exactly this type.
    pub(crate) fn exact(&mut self, name: &str, dtype: DType, dims: &[usize]) -> Result<&'a TensorType> {
        let ty = self.any(name)?;
        if ty.dtype == dtype && ty.dims == dims {
            Ok(ty)
        } else {
            let want = TensorType::new(dtype, dims);
            fail(self.op, format!("`{name}` must be {want}, is {ty}"))
        }
    }

    /// The next operand, of any float type and this shape.
    pub(crate) fn float_dims(&mut self, name: &str, dims: &[usize]) -> Result<&'a TensorType> {
        let ty = self.float(name)?;
        if ty.dims == dims {
            Ok(ty)
        } else {
            fail(self.op, format!("`{name}` must have shape {dims:?}, is {ty}"))
        }
    }

    /// Checks that nothing is left over.
    pub(crate) fn end(&self) -> Result<()> {
        if self.next == self.types.len() {
            Ok(())
        } else {
            fail(self.op, format!("takes {} operands, got {}", self.next, self.types.len()))
        }
    }
}

/// Reads operand values in order.
pub(crate) struct Values<'a> {
    op: &'static str,
    values: &'a [ValueId],
    next: usize,
}

impl<'a> Values<'a> {
    pub(crate) fn new(op: &'static str, values: &'a [ValueId]) -> Self {
        Values { op, values, next: 0 }
    }

    pub(crate) fn next(&mut self) -> Result<ValueId> {
        let Some(&v) = self.values.get(self.next) else {
            return fail(self.op, format!("operand {} is missing", self.next));
        };
        self.next += 1;
        Ok(v)
    }

    /// The next value if `present`.
    pub(crate) fn next_if(&mut self, present: bool) -> Result<Option<ValueId>> {
        if present { self.next().map(Some) } else { Ok(None) }
    }
}

/// The attribute `eps` of a norm.
pub(crate) fn epsilon(op: &str, attrs: &Attrs) -> Result<f64> {
    let eps = attrs.f64("eps")?;
    if !eps.is_finite() || eps < 0.0 {
        return fail(op, format!("`eps` must be a non-negative number, is {eps}"));
    }
    Ok(eps)
}

/// Exactly `N` operands.
pub(crate) fn take<const N: usize>(op: &str, values: &[ValueId]) -> Result<[ValueId; N]> {
    match values.try_into() {
        Ok(v) => Ok(v),
        Err(_) => fail(op, format!("takes {N} operands, got {}", values.len())),
    }
}

/// Refuses a gradient for operands outside `differentiable` and for auxiliary results from `main_results` on.
pub(crate) fn check_vjp(
    op: &str,
    args: &VjpArgs<'_>,
    differentiable: &[usize],
    main_results: usize,
) -> Result<()> {
    if let Some(i) = (0..args.needs.len()).find(|i| args.needs[*i] && !differentiable.contains(i)) {
        return Err(GraphError::Gradient(format!("{op} is not differentiable in operand {i}")));
    }
    if args.grads.iter().skip(main_results).any(Option::is_some) {
        return Err(GraphError::Gradient(format!(
            "{op}: only its first {main_results} results carry a gradient"
        )));
    }
    Ok(())
}

/// The gradient of result `i`, as `dtype`, or zeros where nothing flows.
pub(crate) fn grad(b: &mut Builder<'_>, args: &VjpArgs<'_>, i: usize, dtype: DType) -> Result<ValueId> {
    match args.grads.get(i).copied().flatten() {
        Some(g) => b.cast(g, dtype),
        None => {
            let dims = b.ty(args.outputs[i]).dims.clone();
            b.constant(TensorType::new(dtype, dims), 0.0)
        }
    }
}

/// `v` in single precision.
pub(crate) fn f32(b: &mut Builder<'_>, v: ValueId) -> Result<ValueId> {
    b.cast(v, DType::F32)
}

/// `v` as a matrix of its rows.
pub(crate) fn rows2d(b: &mut Builder<'_>, v: ValueId) -> Result<ValueId> {
    let (rows, last) = (b.ty(v).rows(), b.ty(v).last());
    b.reshape(v, &[rows, last])
}

/// `v` (`[..,1]`) repeated along the last axis.
pub(crate) fn spread(b: &mut Builder<'_>, v: ValueId, extent: usize) -> Result<ValueId> {
    let mut dims = b.ty(v).dims.clone();
    if let Some(last) = dims.last_mut() {
        *last = extent;
    }
    b.broadcast(v, &dims)
}

/// Sum over the last axis, kept with extent 1.
pub(crate) fn row_sum(b: &mut Builder<'_>, v: ValueId) -> Result<ValueId> {
    let axis = b.ty(v).rank() - 1;
    b.reduce_sum(v, &[axis])
}

/// Maximum over the last axis, kept with extent 1.
pub(crate) fn row_max(b: &mut Builder<'_>, v: ValueId) -> Result<ValueId> {
    let axis = b.ty(v).rank() - 1;
    b.reduce_max(v, &[axis])
}

/// `v²`
pub(crate) fn square(b: &mut Builder<'_>, v: ValueId) -> Result<ValueId> {
    b.mul(v, v)
}

/// A scalar `[1]` times `v`.
pub(crate) fn times_scalar(b: &mut Builder<'_>, v: ValueId, scalar: ValueId) -> Result<ValueId> {
    let dims = b.ty(v).dims.clone();
    let s = b.broadcast_trailing(scalar, &dims)?;
    b.mul(v, s)
}

/// Logical and of two 0/1 tensors.
pub(crate) fn and(b: &mut Builder<'_>, x: ValueId, y: ValueId) -> Result<ValueId> {
    b.mul(x, y)
}

/// `v` where `cond`, else 0.
pub(crate) fn zero_unless(b: &mut Builder<'_>, cond: ValueId, v: ValueId) -> Result<ValueId> {
    let zero = b.full_like(v, 0.0)?;
    b.select(cond, v, zero)
}

/// 1 where `v >= bound`, for a constant bound.
pub(crate) fn at_least(b: &mut Builder<'_>, v: ValueId, bound: f64) -> Result<ValueId> {
    let bound = b.full_like(v, bound)?;
    b.compare(CmpOp::Le, bound, v)
}

/// The smaller of an integer tensor and a constant.
pub(crate) fn at_most_int(b: &mut Builder<'_>, v: ValueId, bound: usize) -> Result<ValueId> {
    let bound = b.full_like(v, bound as f64)?;
    let less = b.compare(CmpOp::Lt, v, bound)?;
    b.select(less, v, bound)
}

/// FLOPs of an `[m,k]·[k,n]` product.
pub(crate) fn gemm_flops(m: usize, n: usize, k: usize) -> u64 {
    2 * m as u64 * n as u64 * k as u64
}

/// A sample operand: uniform in `[-1, 1)`.
pub(crate) fn unit(dtype: DType, dims: &[usize]) -> (TensorType, SampleInput) {
    uniform(dtype, dims, -1.0, 1.0)
}

/// A sample operand: uniform in `[lo, hi)`.
pub(crate) fn uniform(dtype: DType, dims: &[usize], lo: f64, hi: f64) -> (TensorType, SampleInput) {
    (TensorType::new(dtype, dims), SampleInput::Uniform(lo, hi))
}

/// A sample operand: integers in `[lo, hi)`.
pub(crate) fn integers(dims: &[usize], lo: i64, hi: i64) -> (TensorType, SampleInput) {
    (TensorType::new(DType::I32, dims), SampleInput::Integers(lo, hi))
}

/// A sample operand: these values.
pub(crate) fn exact(dtype: DType, dims: &[usize], values: &[f64]) -> (TensorType, SampleInput) {
    (TensorType::new(dtype, dims), SampleInput::Exact(values.to_vec()))
}

/// A sample.
pub(crate) fn sample(attrs: Attrs, inputs: Vec<(TensorType, SampleInput)>) -> Sample {
    Sample { attrs, inputs }
}
