//! CPU kernels: one for every primitive, for the composites that [`claims`] names, and for fused groups.
//!
//! Invariants:
//! - a kernel's result is the same, bit for bit, for any number of threads: work is cut into tiles that depend on shapes
//!   only, and every reduction is ordered;
//! - shapes and attributes are resolved by [`build`]; [`Kernel::run`] does arithmetic only. Scratch proportional to the
//!   problem is asked for with [`Kernel::workspace_bytes`]; besides it a thread keeps tiles of bounded size ([`scratch`]);
//! - inner loops are compiled for several instruction sets and chosen once a process ([`simd`]).

use bytemuck::Pod;
use kfc_graph::budget::TooSmall;
use kfc_graph::{Composite, DType, GraphError, Op, Prim, TensorType};
use thiserror::Error;

mod across;
mod attention;
pub mod choice;
mod composite;
mod dropout;
#[cfg(target_arch = "x86_64")]
mod dropout_avx512;
mod elem;
mod ewc;
mod feature;
mod fill;
mod float;
pub mod gemm;
mod group;
mod head;
mod index;
mod layer_norm;
pub mod limits;
mod list;
mod lora;
pub mod math;
mod matmul;
mod movement;
mod norm;
#[cfg(target_arch = "x86_64")]
mod norm_avx512;
mod optim;
pub mod pages;
mod par;
mod philox;
mod pointwise;
mod reduce;
mod rope;
pub mod scratch;
pub mod simd;
mod strided;
mod sums;
mod swiglu;
pub mod team;
pub mod transposed;

use float::{Dst, Src};
use transposed::Transposed;

/// A raw device buffer of one call. Buffers of the arena are 64-byte aligned; others at least to their element.
#[derive(Clone, Copy, Debug)]
pub struct Buf {
    /// First byte.
    pub ptr: *mut u8,
    /// Size in bytes.
    pub bytes: usize,
}

// SAFETY: a `Buf` is an address; who may touch what it points to, and when, is the contract of `Kernel::run`.
unsafe impl Send for Buf {}
// SAFETY: as above.
unsafe impl Sync for Buf {}

impl Buf {
    /// No bytes.
    pub const EMPTY: Buf = Buf { ptr: std::ptr::dangling_mut::<u128>().cast(), bytes: 0 };

    /// Copies the content of `from`; threads take the parts that they have of elementwise loops.
    ///
    /// # Safety
    /// Both are memory of as many bytes at least, which nothing else uses, and do not overlap.
    pub unsafe fn copy_from(self, from: Buf) {
        // SAFETY: by contract.
        let (from, to) = unsafe {
            (
                std::slice::from_raw_parts(from.ptr, from.bytes),
                std::slice::from_raw_parts_mut(self.ptr, self.bytes),
            )
        };
        let (n, to) = (from.len().min(to.len()), par::Shared::new(to));
        // SAFETY: ranges are disjoint.
        par::ranges(n, par::GRAIN, |r| unsafe { to.slice(r.start, r.len()).copy_from_slice(&from[r]) });
    }
}

/// The buffers of one call.
pub struct Call<'a> {
    /// Operands in order.
    pub inputs: &'a [Buf],
    /// Results in order.
    pub outputs: &'a [Buf],
    /// At least [`Kernel::workspace_bytes`] of scratch, 64-byte aligned, content undefined.
    pub workspace: Buf,
    /// A copy of the operand that [`Kernel::transposed`] names, if one is held.
    pub transposed: Option<Buf>,
}

impl Call<'_> {
    /// Operand `i` as elements of `T`.
    ///
    /// # Safety
    /// The buffer is live and holds elements of `T`, and nothing writes to it meanwhile.
    pub unsafe fn input<T: Pod>(&self, i: usize) -> &[T] {
        let b = self.inputs[i];
        // SAFETY: by contract.
        unsafe { std::slice::from_raw_parts(b.ptr.cast(), b.bytes / size_of::<T>()) }
    }

    /// Result `j` as elements of `T`.
    ///
    /// # Safety
    /// The buffer is live and nothing else refers to it meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn output<T: Pod>(&self, j: usize) -> &mut [T] {
        let b = self.outputs[j];
        // SAFETY: by contract.
        unsafe { std::slice::from_raw_parts_mut(b.ptr.cast(), b.bytes / size_of::<T>()) }
    }

    /// `n` elements of the workspace from byte `offset` on.
    ///
    /// # Safety
    /// In bounds, aligned, and nothing else refers to that part meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn work<T: Pod>(&self, offset: usize, n: usize) -> &mut [T] {
        debug_assert!(offset + n * size_of::<T>() <= self.workspace.bytes);
        // SAFETY: by contract.
        unsafe { std::slice::from_raw_parts_mut(self.workspace.ptr.add(offset).cast(), n) }
    }

    pub(crate) fn src(&self, i: usize, dtype: DType) -> Src {
        Src::new(self.inputs[i].ptr, dtype)
    }

    pub(crate) fn dst(&self, j: usize, dtype: DType) -> Dst {
        Dst::new(self.outputs[j].ptr, dtype)
    }
}

/// What runs one node.
pub trait Kernel: Send + Sync {
    /// Computes the results.
    ///
    /// # Safety
    /// Buffers have the sizes of the types the kernel was built for. A result overlaps no other buffer, except that
    /// - an in-place result ([`Kernel::inplace`]) already holds its operand's content; that operand is not read through
    ///   `inputs`;
    /// - a result may be exactly the buffer of an operand that [`Kernel::may_inplace`] pairs it with.
    unsafe fn run(&self, call: &Call<'_>);

    /// Bytes of scratch a call needs.
    fn workspace_bytes(&self) -> usize {
        0
    }

    /// `(operand, result)` pairs updated in place: on entry the result's buffer holds the operand's content.
    fn inplace(&self) -> &'static [(usize, usize)] {
        &[]
    }

    /// `(operand, result)` pairs that may be one buffer, each alone or several at once (one operand a result, one result an
    /// operand): every element is read before the same element is written, and by the same task.
    fn may_inplace(&self) -> &'static [(usize, usize)] {
        &[]
    }

    /// The operand that may be read from a transposed copy instead: worth it where it never changes.
    fn transposed(&self) -> Option<Transposed> {
        None
    }

    /// Tokens that are taken at once, if fewer may be ([`choice::Choice::chunk`]).
    fn chunk(&self) -> Option<usize> {
        None
    }
}

/// Why no kernel could be built.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The CPU has no kernel for this operation; it must be decomposed first.
    #[error("no CPU kernel for `{0}`: decompose it before kernels are selected")]
    Unclaimed(String),
    /// An operand has a type that the kernel does not take.
    #[error("{op}: operand {operand} has type {found}, expected {expected}")]
    Operand {
        /// The operation.
        op: String,
        /// Position of the operand.
        operand: usize,
        /// What it is.
        found: String,
        /// What would do.
        expected: String,
    },
    /// An attribute is missing or wrong.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// No plan fits the memory there is.
    #[error(transparent)]
    Budget(#[from] TooSmall),
    /// An operation has no tile programs.
    #[error(transparent)]
    Tile(#[from] crate::tile::programs::EmitError),
    /// The environment asks for instructions that the CPU lacks.
    #[error(transparent)]
    Level(#[from] simd::LevelError),
}

/// Whether the CPU has a kernel of its own for this composite (else it is decomposed into primitives).
///
/// Every claimed kernel takes all operand types that the operation's own rules allow, so only the name decides today;
/// the operands are part of the question so that a kernel may restrict itself.
pub fn claims(c: &Composite, _inputs: &[TensorType]) -> bool {
    composite::NAMES.contains(&c.def.name())
}

/// Builds the kernel of one node. All attributes are read and all decisions about shapes made here.
///
/// # Errors
/// [`KernelError`] if the operation is not claimed, an operand has a type that it cannot have, or the environment asks for
/// an instruction set that the CPU lacks.
pub fn build(op: &Op, inputs: &[TensorType], outputs: &[TensorType]) -> Result<Box<dyn Kernel>, KernelError> {
    simd::requested()?;
    match op {
        Op::Prim(p) => prim(p, inputs, outputs),
        Op::Group(g) => Ok(Box::new(group::GroupKernel::new(g)?)),
        Op::Fused(_) => Err(KernelError::Unclaimed(op.name().to_string())),
        Op::Composite(c) => composite::build(c, inputs, outputs)
            .unwrap_or_else(|| Err(KernelError::Unclaimed(c.def.name().to_string()))),
    }
}

fn prim(p: &Prim, inputs: &[TensorType], outputs: &[TensorType]) -> Result<Box<dyn Kernel>, KernelError> {
    Ok(match p {
        Prim::Const { ty, value } => Box::new(fill::Const::new(ty, *value)),
        Prim::Iota { dims, axis } => Box::new(fill::Iota::new(dims, *axis)),
        Prim::Random { dims, stream } => Box::new(fill::Random::new(dims, *stream)),
        Prim::Neg
        | Prim::Exp
        | Prim::Log
        | Prim::Sqrt
        | Prim::Sigmoid
        | Prim::Erf
        | Prim::Add
        | Prim::Sub
        | Prim::Mul
        | Prim::Div
        | Prim::Max
        | Prim::Compare(_)
        | Prim::Cast(_)
        | Prim::Select => Box::new(pointwise::Pointwise::new(p, inputs, &outputs[0])?),
        Prim::Reshape { .. } => Box::new(movement::StridedCopy::reshape(&inputs[0])),
        Prim::Transpose { perm } => Box::new(movement::StridedCopy::transpose(&inputs[0], perm)),
        Prim::Broadcast { dims } => Box::new(movement::StridedCopy::broadcast(&inputs[0], dims)),
        Prim::Slice { axis, start, end } => {
            Box::new(movement::StridedCopy::slice(&inputs[0], *axis, *start, *end))
        }
        Prim::Pad { axis, lo, hi } => Box::new(movement::Segments::pad(&inputs[0], *axis, *lo, *hi)),
        Prim::Concat { axis } => Box::new(movement::Segments::concat(inputs, *axis)),
        Prim::ReduceSum { axes } => Box::new(reduce::Reduce::new(reduce::Kind::Sum, &inputs[0], axes)),
        Prim::ReduceMax { axes } => Box::new(reduce::Reduce::new(reduce::Kind::Max, &inputs[0], axes)),
        Prim::MatMul { ta, tb, out } => Box::new(matmul::MatMul::new(&inputs[0], &inputs[1], *ta, *tb, *out)),
        Prim::Gather => Box::new(index::Gather::new(&inputs[0], &inputs[1])),
        Prim::ScatterAdd { .. } => Box::new(index::ScatterAdd::new(&inputs[0], &inputs[1], &outputs[0])),
    })
}
