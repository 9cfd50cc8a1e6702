//! Transposed copies of frozen weights, which trade memory for time.
//!
//! A gradient reads a weight across its rows: with few rows of activations, packing it takes as long as multiplying by it.
//! From a transposed copy, made once, it is read in place, as the forward pass reads the weight itself. The terms of each
//! sum and their order stay the same, and so does every bit of the result.

use super::float::Src;
use super::gemm::Mat;
use super::par::{self, Shared};
use super::{Buf, Call};
use bytemuck::Pod;
use kfc_graph::DType;

/// Rows and columns that are copied at once: both sides stay in L1.
const BLOCK: usize = 32;

/// Bytes that neighbouring rows of a copy are not a multiple of apart, since such rows evict each other from caches.
const CROWDED: usize = 4096;

/// Bytes of a cache line.
const LINE: usize = 64;

/// An operand `[rows, columns]` of a kernel that may be read from a transposed copy ([`Call::transposed`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transposed {
    /// Position among the operands.
    pub operand: usize,
    /// Rows of the operand.
    pub rows: usize,
    /// Columns of the operand.
    pub columns: usize,
    /// Its type.
    pub dtype: DType,
}

impl Transposed {
    /// Elements from one row of the copy to the next.
    fn stride(&self) -> usize {
        let size = self.dtype.size();
        let crowds = (self.rows * size).is_multiple_of(CROWDED);
        if crowds { self.rows + LINE / size } else { self.rows }
    }

    /// Size of the copy in bytes.
    pub fn bytes(&self) -> usize {
        self.columns * self.stride() * self.dtype.size()
    }

    /// Makes the copy of `weight`.
    ///
    /// # Panics
    /// If either has not the size that it must have.
    pub fn fill(&self, weight: &[u8], copy: &mut [u8]) {
        assert!(weight.len() == self.rows * self.columns * self.dtype.size() && copy.len() == self.bytes());
        match self.dtype.size() {
            2 => self.transpose::<u16>(bytemuck::cast_slice(weight), bytemuck::cast_slice_mut(copy)),
            _ => self.transpose::<u32>(bytemuck::cast_slice(weight), bytemuck::cast_slice_mut(copy)),
        }
    }

    fn transpose<T: Pod + Send + Sync>(&self, weight: &[T], copy: &mut [T]) {
        let stride = self.stride();
        let copy = Shared::new(copy);
        par::tasks(self.columns.div_ceil(BLOCK), |block| {
            let columns = block * BLOCK..self.columns.min((block + 1) * BLOCK);
            for row in (0..self.rows).step_by(BLOCK) {
                let n = BLOCK.min(self.rows - row);
                for j in columns.clone() {
                    // SAFETY: in bounds; tasks have rows of the copy of their own.
                    let line = unsafe { copy.slice(j * stride + row, n) };
                    line.iter_mut()
                        .enumerate()
                        .for_each(|(i, to)| *to = weight[(row + i) * self.columns + j]);
                }
            }
        });
    }

    /// The operand as a matrix: from the copy if the call has one.
    pub(crate) fn mat(&self, call: &Call<'_>) -> Mat {
        match call.transposed {
            Some(Buf { ptr, .. }) => {
                Mat { cs: self.stride(), rs: 1, ..Mat::rows(Src::new(ptr, self.dtype), self.columns) }
            }
            None => Mat::rows(call.src(self.operand, self.dtype), self.columns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_every_element_at_its_place() {
        // The rows of the last are a page apart.
        for (rows, columns) in [(1, 1), (33, 70), (100, 31), (1024, 5)] {
            let t = Transposed { operand: 0, rows, columns, dtype: DType::F32 };
            let weight: Vec<u32> = (0..(rows * columns) as u32).collect();
            let mut copy = vec![0u32; t.bytes() / 4];
            t.fill(bytemuck::cast_slice(&weight), bytemuck::cast_slice_mut(&mut copy));
            for i in 0..rows {
                for j in 0..columns {
                    assert_eq!(
                        copy[j * t.stride() + i],
                        weight[i * columns + j],
                        "{rows}x{columns}: {i}, {j}"
                    );
                }
            }
            assert!(!(t.stride() * 4).is_multiple_of(CROWDED));
        }
    }
}
