//! Appends nodes to a graph, inferring result types.

use crate::attrs::Attrs;
use crate::error::Result;
use crate::graph::{Graph, Phase, ValueId};
use crate::op::{Composite, Op, OpDef};
use crate::prim::{CmpOp, Prim};
use crate::types::{DType, TensorType};

/// A cursor at the end of a graph. Nodes it appends carry its phase and scope.
pub struct Builder<'g> {
    graph: &'g mut Graph,
    /// Phase of appended nodes.
    pub phase: Phase,
    scope: u32,
}

impl<'g> Builder<'g> {
    /// A builder at the end of `graph`, in the forward phase and the empty scope.
    pub fn new(graph: &'g mut Graph) -> Self {
        Builder { graph, phase: Phase::Forward, scope: 0 }
    }

    /// The graph so far.
    pub fn graph(&mut self) -> &mut Graph {
        self.graph
    }

    /// Type of a value.
    pub fn ty(&self, v: ValueId) -> &TensorType {
        self.graph.ty(v)
    }

    /// Nodes appended from now on stand in this scope.
    pub fn set_scope(&mut self, name: &str) {
        self.scope = self.graph.intern_scope(name);
    }

    /// Nodes appended from now on stand in the scope of this index.
    pub fn set_scope_index(&mut self, scope: u32) {
        self.scope = scope;
    }

    /// Appends an operation with any number of results.
    ///
    /// # Errors
    /// [`GraphError::Type`](crate::GraphError::Type) if the operands do not fit.
    pub fn op(&mut self, op: Op, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let types: Vec<TensorType> = inputs.iter().map(|&v| self.graph.ty(v).clone()).collect();
        let results = op.infer(&types)?;
        Ok(self.graph.add_node(op, inputs.to_vec(), results, self.phase, self.scope))
    }

    /// Appends a composite.
    ///
    /// # Errors
    /// If the operands do not fit.
    pub fn composite(
        &mut self,
        def: &'static dyn OpDef,
        attrs: Attrs,
        inputs: &[ValueId],
    ) -> Result<Vec<ValueId>> {
        self.op(Op::Composite(Composite { def, attrs }), inputs)
    }

    /// Appends a primitive.
    ///
    /// # Errors
    /// If the operands do not fit.
    pub fn prim(&mut self, prim: Prim, inputs: &[ValueId]) -> Result<ValueId> {
        Ok(self.op(Op::Prim(prim), inputs)?[0])
    }

    /// A tensor filled with `value`.
    pub fn constant(&mut self, ty: TensorType, value: f64) -> Result<ValueId> {
        self.prim(Prim::Const { ty, value }, &[])
    }

    /// A tensor like `v` filled with `value`.
    pub fn full_like(&mut self, v: ValueId, value: f64) -> Result<ValueId> {
        let ty = self.ty(v).clone();
        self.constant(ty, value)
    }

    /// `f32[1]` of `value`.
    pub fn scalar(&mut self, value: f64) -> Result<ValueId> {
        self.constant(TensorType::scalar(), value)
    }

    /// `-a`
    pub fn neg(&mut self, a: ValueId) -> Result<ValueId> {
        self.prim(Prim::Neg, &[a])
    }

    /// `e^a`
    pub fn exp(&mut self, a: ValueId) -> Result<ValueId> {
        self.prim(Prim::Exp, &[a])
    }

    /// Natural logarithm.
    pub fn log(&mut self, a: ValueId) -> Result<ValueId> {
        self.prim(Prim::Log, &[a])
    }

    /// Square root.
    pub fn sqrt(&mut self, a: ValueId) -> Result<ValueId> {
        self.prim(Prim::Sqrt, &[a])
    }

    /// Logistic function.
    pub fn sigmoid(&mut self, a: ValueId) -> Result<ValueId> {
        self.prim(Prim::Sigmoid, &[a])
    }

    /// The error function.
    pub fn erf(&mut self, a: ValueId) -> Result<ValueId> {
        self.prim(Prim::Erf, &[a])
    }

    /// `a` as `to`; `a` itself if it already is.
    pub fn cast(&mut self, a: ValueId, to: DType) -> Result<ValueId> {
        if self.ty(a).dtype == to { Ok(a) } else { self.prim(Prim::Cast(to), &[a]) }
    }

    /// `a + b`
    pub fn add(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.prim(Prim::Add, &[a, b])
    }

    /// `a - b`
    pub fn sub(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.prim(Prim::Sub, &[a, b])
    }

    /// `a * b`
    pub fn mul(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.prim(Prim::Mul, &[a, b])
    }

    /// `a / b`
    pub fn div(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.prim(Prim::Div, &[a, b])
    }

    /// `max(a, b)`
    pub fn max(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.prim(Prim::Max, &[a, b])
    }

    /// `a * factor`
    pub fn scale(&mut self, a: ValueId, factor: f64) -> Result<ValueId> {
        let f = self.full_like(a, factor)?;
        self.mul(a, f)
    }

    /// `a + term`
    pub fn shift(&mut self, a: ValueId, term: f64) -> Result<ValueId> {
        let t = self.full_like(a, term)?;
        self.add(a, t)
    }

    /// 1 where the comparison holds.
    pub fn compare(&mut self, op: CmpOp, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.prim(Prim::Compare(op), &[a, b])
    }

    /// `cond ? a : b`
    pub fn select(&mut self, cond: ValueId, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.prim(Prim::Select, &[cond, a, b])
    }

    /// Another shape; `a` itself if it already has it.
    pub fn reshape(&mut self, a: ValueId, dims: &[usize]) -> Result<ValueId> {
        if self.ty(a).dims == dims { Ok(a) } else { self.prim(Prim::Reshape { dims: dims.to_vec() }, &[a]) }
    }

    /// Permuted axes.
    pub fn transpose(&mut self, a: ValueId, perm: &[usize]) -> Result<ValueId> {
        self.prim(Prim::Transpose { perm: perm.to_vec() }, &[a])
    }

    /// Repeats axes of extent 1; `a` itself if nothing changes.
    pub fn broadcast(&mut self, a: ValueId, dims: &[usize]) -> Result<ValueId> {
        if self.ty(a).dims == dims { Ok(a) } else { self.prim(Prim::Broadcast { dims: dims.to_vec() }, &[a]) }
    }

    /// A `[H]` vector or a `[1]` scalar repeated to `dims`: leading axes of extent 1 are added as needed.
    pub fn broadcast_trailing(&mut self, a: ValueId, dims: &[usize]) -> Result<ValueId> {
        let own = self.ty(a).dims.clone();
        let mut padded = vec![1; dims.len().saturating_sub(own.len())];
        padded.extend(own);
        let a = self.reshape(a, &padded)?;
        self.broadcast(a, dims)
    }

    /// Elements `start..end` along `axis`.
    pub fn slice(&mut self, a: ValueId, axis: usize, start: usize, end: usize) -> Result<ValueId> {
        self.prim(Prim::Slice { axis, start, end }, &[a])
    }

    /// Operands one after the other along `axis`.
    pub fn concat(&mut self, parts: &[ValueId], axis: usize) -> Result<ValueId> {
        self.prim(Prim::Concat { axis }, parts)
    }

    /// Sum over `axes`, kept with extent 1.
    pub fn reduce_sum(&mut self, a: ValueId, axes: &[usize]) -> Result<ValueId> {
        self.prim(Prim::ReduceSum { axes: axes.to_vec() }, &[a])
    }

    /// Maximum over `axes`, kept with extent 1.
    pub fn reduce_max(&mut self, a: ValueId, axes: &[usize]) -> Result<ValueId> {
        self.prim(Prim::ReduceMax { axes: axes.to_vec() }, &[a])
    }

    /// Sum over everything, as `[1]`.
    pub fn sum_all(&mut self, a: ValueId) -> Result<ValueId> {
        let axes: Vec<usize> = (0..self.ty(a).rank()).collect();
        let s = self.reduce_sum(a, &axes)?;
        self.reshape(s, &[1])
    }

    /// Matrix product with a result of type `out`.
    pub fn matmul(&mut self, a: ValueId, b: ValueId, ta: bool, tb: bool, out: DType) -> Result<ValueId> {
        self.prim(Prim::MatMul { ta, tb, out }, &[a, b])
    }

    /// Indices along `axis` as `i32`.
    pub fn iota(&mut self, dims: &[usize], axis: usize) -> Result<ValueId> {
        self.prim(Prim::Iota { dims: dims.to_vec(), axis }, &[])
    }
}
