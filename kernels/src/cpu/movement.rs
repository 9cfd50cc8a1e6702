//! Primitives that move elements: reshape, transpose, broadcast, slice, pad, concat.

use crate::cpu::{Call, Kernel, par};
use kfc_graph::TensorType;

/// An axis of the result: its extent and the distance of neighbours in the operand, in elements.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    len: usize,
    stride: usize,
}

/// Copies a strided view of the operand into a dense result.
pub(crate) struct StridedCopy {
    /// All axes but the innermost, outermost first, merged where possible.
    outer: Vec<Axis>,
    inner: Axis,
    /// First element of the view.
    start: usize,
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
        let axes: Vec<Axis> = strides(&a.dims)
            .into_iter()
            .zip(dims.iter().zip(&a.dims))
            .map(|(s, (&to, &from))| Axis { len: to, stride: if from == to { s } else { 0 } })
            .collect();
        StridedCopy::new(a, &axes, 0)
    }

    pub(crate) fn slice(a: &TensorType, axis: usize, start: usize, end: usize) -> StridedCopy {
        let strides = strides(&a.dims);
        let mut axes: Vec<Axis> =
            a.dims.iter().zip(&strides).map(|(&len, &stride)| Axis { len, stride }).collect();
        axes[axis].len = end - start;
        StridedCopy::new(a, &axes, start * strides[axis])
    }

    fn new(a: &TensorType, axes: &[Axis], start: usize) -> StridedCopy {
        let mut merged: Vec<Axis> = Vec::new();
        for &axis in axes.iter().filter(|a| a.len != 1) {
            match merged.last_mut() {
                Some(last) if last.stride == axis.len * axis.stride => {
                    *last = Axis { len: last.len * axis.len, stride: axis.stride };
                }
                _ => merged.push(axis),
            }
        }
        let inner = merged.pop().unwrap_or(Axis { len: 1, stride: 1 });
        StridedCopy { outer: merged, inner, start, size: a.dtype.size() }
    }

    /// First element in the operand of run `index`.
    fn source(&self, mut index: usize) -> usize {
        let mut at = self.start;
        for axis in self.outer.iter().rev() {
            at += index % axis.len * axis.stride;
            index /= axis.len;
        }
        at
    }

    /// # Safety
    /// Buffers of elements of `T` of the sizes that it was built for.
    unsafe fn copy<T: Copy + Send + Sync>(&self, call: &Call<'_>) {
        // SAFETY: by contract.
        let (a, out) = unsafe {
            let (a, out) = (call.inputs[0], call.outputs[0]);
            let a = std::slice::from_raw_parts(a.ptr.cast::<T>(), a.bytes / size_of::<T>());
            (a, std::slice::from_raw_parts_mut(out.ptr.cast::<T>(), out.bytes / size_of::<T>()))
        };
        let Axis { len, stride } = self.inner;
        let runs: usize = self.outer.iter().map(|a| a.len).product();
        let out = par::Shared::new(out);
        // One task takes several short runs or a part of a long one.
        let parts = len.div_ceil(4 * par::GRAIN).max(1);
        let part = len.div_ceil(parts).max(1);
        par::ranges(runs * parts, par::rows_grain(part), |r| {
            for task in r {
                let (run, from) = (task / parts, (task % parts * part).min(len));
                let n = part.min(len - from);
                // SAFETY: parts of runs are disjoint and in bounds.
                let to = unsafe { out.slice(run * len + from, n) };
                let at = self.source(run) + from * stride;
                match stride {
                    1 => to.copy_from_slice(&a[at..at + n]),
                    0 if n > 0 => to.fill(a[at]),
                    _ => to.iter_mut().enumerate().for_each(|(i, t)| *t = a[at + i * stride]),
                }
            }
        });
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

fn strides(dims: &[usize]) -> Vec<usize> {
    (0..dims.len()).map(|i| dims[i + 1..].iter().product()).collect()
}

fn inner_bytes(a: &TensorType, axis: usize) -> usize {
    a.dims[axis + 1..].iter().product::<usize>() * a.dtype.size()
}
