//! Primitives that move elements: reshape, transpose, broadcast, slice, pad, concat.

use crate::cpu::across::Across;
use crate::cpu::strided::{Axis, Strided, strides};
use crate::cpu::{Call, Kernel, par};
use bytemuck::Pod;
use kfc_graph::{DType, TensorType};

/// Copies a strided view of the operand into a dense result.
pub(crate) struct StridedCopy {
    view: Strided,
    /// The same by squares, if that is better.
    across: Option<Across>,
    /// Bytes of an element.
    size: usize,
}

impl StridedCopy {
    pub(crate) fn reshape(a: &TensorType) -> StridedCopy {
        StridedCopy::new(a, &[Axis { len: a.elements(), stride: 1 }], 0)
    }

    pub(crate) fn transpose(a: &TensorType, perm: &[usize]) -> StridedCopy {
        let strides = strides(&a.dims);
        let axes: Vec<Axis> = perm.iter().map(|&p| Axis { len: a.dims[p], stride: strides[p] }).collect();
        StridedCopy::new(a, &axes, 0)
    }

    pub(crate) fn broadcast(a: &TensorType, dims: &[usize]) -> StridedCopy {
        StridedCopy::of(a, Strided::broadcast(a, dims))
    }

    pub(crate) fn slice(a: &TensorType, axis: usize, start: usize, end: usize) -> StridedCopy {
        let strides = strides(&a.dims);
        let mut axes: Vec<Axis> =
            a.dims.iter().zip(&strides).map(|(&len, &stride)| Axis { len, stride }).collect();
        axes[axis].len = end - start;
        StridedCopy::new(a, &axes, start * strides[axis])
    }

    fn new(a: &TensorType, axes: &[Axis], start: usize) -> StridedCopy {
        StridedCopy::of(a, Strided::new(axes, start))
    }

    fn of(a: &TensorType, view: Strided) -> StridedCopy {
        StridedCopy { across: Across::of(&view), view, size: a.dtype.size() }
    }

    /// # Safety
    /// Buffers of elements of `T` of the sizes that it was built for.
    unsafe fn copy<T: Pod + Send + Sync>(&self, call: &Call<'_>) {
        let n = self.view.runs() * self.view.inner.len;
        // SAFETY: by contract; ranges are disjoint and in bounds.
        unsafe {
            let out = par::Shared::new(std::slice::from_raw_parts_mut(call.outputs[0].ptr.cast::<T>(), n));
            let from = call.src(0, DType::F32);
            if let Some(across) = &self.across {
                return across.copy(from, out);
            }
            par::ranges(n, par::GRAIN, |r| {
                self.view.copy(from.ptr().cast::<T>(), r.start, out.slice(r.start, r.len()));
            });
        }
    }
}

impl Kernel for StridedCopy {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract of `run`; elements are moved as bits.
        unsafe {
            match self.size {
                2 => self.copy::<u16>(call),
                _ => self.copy::<u32>(call),
            }
        }
    }
}

/// One piece of each period of the result of [`Segments`].
#[derive(Clone, Copy)]
enum Piece {
    /// Bytes of zeros.
    Zeros(usize),
    /// Bytes of the next period of an operand.
    Operand(usize, usize),
}

/// A result that repeats a sequence of pieces: pad and concat.
pub(crate) struct Segments {
    periods: usize,
    pieces: Vec<Piece>,
    period: usize,
}

impl Segments {
    pub(crate) fn pad(a: &TensorType, axis: usize, lo: usize, hi: usize) -> Segments {
        let inner = inner_bytes(a, axis);
        let pieces =
            vec![Piece::Zeros(lo * inner), Piece::Operand(0, a.dims[axis] * inner), Piece::Zeros(hi * inner)];
        Segments::new(a, axis, pieces)
    }

    pub(crate) fn concat(inputs: &[TensorType], axis: usize) -> Segments {
        let pieces = inputs
            .iter()
            .enumerate()
            .map(|(i, t)| Piece::Operand(i, t.dims[axis] * inner_bytes(t, axis)))
            .collect();
        Segments::new(&inputs[0], axis, pieces)
    }

    fn new(a: &TensorType, axis: usize, pieces: Vec<Piece>) -> Segments {
        let period = pieces
            .iter()
            .map(|p| match *p {
                Piece::Zeros(n) | Piece::Operand(_, n) => n,
            })
            .sum();
        Segments { periods: a.dims[..axis].iter().product(), pieces, period }
    }
}

impl Kernel for Segments {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract of `run`.
        let out = par::Shared::new(unsafe { call.output::<u8>(0) });
        par::ranges(self.periods, par::rows_grain(self.period / 4), |r| {
            for period in r {
                // SAFETY: periods are disjoint and in bounds.
                let mut to = unsafe { out.slice(period * self.period, self.period) };
                for piece in &self.pieces {
                    match *piece {
                        Piece::Zeros(n) => to[..n].fill(0),
                        // SAFETY: by contract of `run`.
                        Piece::Operand(i, n) => to[..n].copy_from_slice(unsafe {
                            std::slice::from_raw_parts(call.inputs[i].ptr.add(period * n), n)
                        }),
                    }
                    let (Piece::Zeros(n) | Piece::Operand(_, n)) = *piece;
                    to = &mut to[n..];
                }
            }
        });
    }
}

fn inner_bytes(a: &TensorType, axis: usize) -> usize {
    a.dims[axis + 1..].iter().product::<usize>() * a.dtype.size()
}
