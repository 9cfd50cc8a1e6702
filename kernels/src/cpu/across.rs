//! Views whose innermost axis lies across a tensor, as a transposed matrix: copied by squares, so that cache lines are read and
//! written whole.

use crate::cpu::float::Src;
use crate::cpu::par::{self, Shared};
use crate::cpu::strided::{Axis, Strided, place, strides};
use bytemuck::Pod;

/// Elements of a side of a square.
const SIDE: usize = 32;

/// Least extent of the two axes that squares are of.
const LEAST: usize = 8;

/// Such a view, and the dense tensor that it is copied to.
pub(crate) struct Across {
    /// The innermost axis of the view.
    inner: Axis,
    /// Extent of the axis whose neighbours are neighbours in the operand, and their distance in the result.
    along: usize,
    pitch: usize,
    /// The other axes, outermost first: in the operand, and in the result.
    others: Vec<Axis>,
    others_out: Vec<Axis>,
    /// First element in the operand.
    start: usize,
}

impl Across {
    /// The view, if it is one and large enough in both axes.
    pub(crate) fn of(view: &Strided) -> Option<Across> {
        let (inner, mut others) = (view.inner, view.outer.clone());
        let dims: Vec<usize> = others.iter().chain([&inner]).map(|axis| axis.len).collect();
        let dense = others.iter().zip(strides(&dims)).map(|(axis, stride)| Axis { stride, ..*axis });
        let mut others_out: Vec<Axis> = dense.collect();
        let at = others.iter().position(|axis| axis.stride == 1)?;
        let (along, pitch) = (others.remove(at).len, others_out.remove(at).stride);
        let fits = inner.stride > 1 && inner.len >= LEAST && along >= LEAST;
        fits.then_some(Across { inner, along, pitch, others, others_out, start: view.start })
    }

    /// Copies it.
    ///
    /// # Safety
    /// The view lies within the operand, whose elements are as large as those of `T`; the result has as many elements as the
    /// view, and nothing else uses it.
    pub(crate) unsafe fn copy<T: Pod + Send + Sync>(&self, from: Src, out: Shared<T>) {
        let strips = self.along.div_ceil(SIDE);
        let count: usize = self.others.iter().map(|axis| axis.len).product();
        par::ranges(count * strips, par::rows_grain(SIDE * self.inner.len), |range| {
            for i in range {
                let (index, first) = (i / strips, i % strips * SIDE);
                let source = self.start + place(&self.others, index);
                let target = place(&self.others_out, index);
                // SAFETY: by contract; strips of the result are disjoint.
                unsafe { self.strip(from.ptr().cast::<T>().add(source), target, first, out) }
            }
        });
    }

    /// Copies up to [`SIDE`] lines of the result from line `first` on.
    ///
    /// # Safety
    /// As [`Across::copy`], for these lines.
    unsafe fn strip<T: Pod>(&self, from: *const T, target: usize, first: usize, out: Shared<T>) {
        let lines = SIDE.min(self.along - first);
        let mut square = [T::zeroed(); SIDE * SIDE];
        for left in (0..self.inner.len).step_by(SIDE) {
            let n = SIDE.min(self.inner.len - left);
            for (i, row) in square.chunks_exact_mut(SIDE).take(n).enumerate() {
                // SAFETY: by contract.
                let row_from = unsafe { from.add((left + i) * self.inner.stride + first) };
                // SAFETY: as above.
                row[..lines].copy_from_slice(unsafe { std::slice::from_raw_parts(row_from, lines) });
            }
            for line in 0..lines {
                // SAFETY: by contract; no other reference to these elements is live.
                let to = unsafe { out.slice(target + (first + line) * self.pitch + left, n) };
                to.iter_mut().enumerate().for_each(|(i, to)| *to = square[i * SIDE + line]);
            }
        }
    }
}
