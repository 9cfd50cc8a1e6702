//! Rows by index: gather (and embedding), ordered scatter-add, selected rows, appending to a cache.

use crate::cpu::elem::{Elem, of_type};
use crate::cpu::reduce::axpy;
use crate::cpu::simd::simd;
use crate::cpu::{Call, Kernel, par};
use kfc_graph::{DType, TensorType};

/// `Prim::Gather` and `embedding`. An id outside the table gives a row of zeros.
pub(crate) struct Gather {
    rows: usize,
    ids: usize,
    row_bytes: usize,
}

impl Gather {
    pub(crate) fn new(table: &TensorType, ids: &TensorType) -> Gather {
        Gather { rows: table.dims[0], ids: ids.elements(), row_bytes: table.dims[1] * table.dtype.size() }
    }
}

impl Kernel for Gather {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract of `run`; rows of the result are written by one task each.
        unsafe {
            let (table, ids) = (call.input::<u8>(0), call.input::<i32>(1));
            let out = par::Shared::new(call.output::<u8>(0));
            let n = self.row_bytes;
            par::ranges(self.ids, par::rows_grain(n / 4), |r| {
                for i in r {
                    let to = out.slice(i * n, n);
                    match usize::try_from(ids[i]) {
                        Ok(id) if id < self.rows => to.copy_from_slice(&table[id * n..(id + 1) * n]),
                        _ => to.fill(0),
                    }
                }
            });
        }
    }
}

/// `Prim::ScatterAdd`. An id outside the result is ignored. Rows are added in order; tasks share out the columns.
pub(crate) struct ScatterAdd {
    ids: usize,
    rows: usize,
    width: usize,
    dtype: DType,
}

impl ScatterAdd {
    pub(crate) fn new(ids: &TensorType, src: &TensorType, out: &TensorType) -> ScatterAdd {
        ScatterAdd { ids: ids.elements(), rows: out.dims[0], width: out.dims[1], dtype: src.dtype }
    }
}

impl Kernel for ScatterAdd {
    unsafe fn run(&self, call: &Call<'_>) {
        const COLUMNS: usize = 256;
        // SAFETY: by contract of `run`; each column is written by one task.
        unsafe {
            let ids = call.input::<i32>(0);
            let src = call.src(1, self.dtype);
            let out = call.output::<f32>(0);
            let n = out.len();
            let out = par::Shared::new(out);
            par::ranges(n, 4 * par::GRAIN, |r| out.slice(r.start, r.len()).fill(0.0));
            par::ranges(self.width, COLUMNS, |columns| {
                for (i, id) in ids[..self.ids].iter().enumerate() {
                    if let Ok(id) = usize::try_from(*id)
                        && id < self.rows
                    {
                        let (from, n) = (i * self.width + columns.start, columns.len());
                        let to = out.slice(id * self.width + columns.start, n);
                        of_type!(self.dtype, T => axpy(1.0, src.raw::<T>(from, n), to));
                    }
                }
            });
        }
    }
}

/// `select_rows`: one row of each batch entry. An index outside gives zeros.
pub(crate) struct SelectRows {
    batch: usize,
    rows: usize,
    row_bytes: usize,
}

impl SelectRows {
    pub(crate) fn new(x: &TensorType) -> SelectRows {
        SelectRows { batch: x.dims[0], rows: x.dims[1], row_bytes: x.last() * x.dtype.size() }
    }
}

impl Kernel for SelectRows {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract of `run`.
        let (x, idx, out) = unsafe { (call.input::<u8>(0), call.input::<i32>(1), call.output::<u8>(0)) };
        let n = self.row_bytes;
        for (b, to) in out.chunks_exact_mut(n).enumerate().take(self.batch) {
            match usize::try_from(idx[b]) {
                Ok(i) if i < self.rows => to.copy_from_slice(&x[(b * self.rows + i) * n..][..n]),
                _ => to.fill(0),
            }
        }
    }
}

/// `kv_append`: replaces rows of a cache in place; rows beyond its end are dropped.
pub(crate) struct KvAppend {
    batch: usize,
    capacity: usize,
    new_rows: usize,
    row_bytes: usize,
}

impl KvAppend {
    pub(crate) fn new(cache: &TensorType, new: &TensorType) -> KvAppend {
        KvAppend {
            batch: cache.dims[0],
            capacity: cache.dims[1],
            new_rows: new.dims[1],
            row_bytes: cache.last() * cache.dtype.size(),
        }
    }
}

impl Kernel for KvAppend {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract of `run`; the result holds the cache.
        let (new, start, out) = unsafe { (call.input::<u8>(1), call.input::<i32>(2), call.output::<u8>(0)) };
        let n = self.row_bytes;
        for b in 0..self.batch {
            for t in 0..self.new_rows {
                let row = i64::from(start[b]) + t as i64;
                if let Ok(row) = usize::try_from(row)
                    && row < self.capacity
                {
                    let to = (b * self.capacity + row) * n;
                    out[to..to + n].copy_from_slice(&new[(b * self.new_rows + t) * n..][..n]);
                }
            }
        }
    }

    fn inplace(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}

/// `accumulate` and `accumulate_square`: adds to an `f32` accumulator in place.
pub(crate) struct Accumulate {
    n: usize,
    dtype: DType,
    squares: bool,
}

impl Accumulate {
    pub(crate) fn new(g: &TensorType, squares: bool) -> Accumulate {
        Accumulate { n: g.elements(), dtype: g.dtype, squares }
    }
}

impl Accumulate {
    /// # Safety
    /// As [`Kernel::run`], with a gradient of type `T`.
    unsafe fn run_as<T: Elem>(&self, call: &Call<'_>) {
        let (g, out) = (call.src(1, self.dtype), call.dst(0, DType::F32));
        // SAFETY: by contract of `run`; ranges are disjoint and in bounds.
        unsafe {
            let weight = if self.squares { call.input::<f32>(2)[0] } else { 1.0 };
            par::ranges(self.n, par::GRAIN, |r| {
                let (g, acc) = (g.raw::<T>(r.start, r.len()), out.raw::<f32>(r.start, r.len()));
                if self.squares {
                    add_squares(weight, g, acc);
                } else {
                    axpy(1.0, g, acc);
                }
            });
        }
    }
}

impl Kernel for Accumulate {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract.
        of_type!(self.dtype, T => unsafe { self.run_as::<T>(call) });
    }

    fn inplace(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}

simd! {
    /// `acc += weight · g²`
    fn add_squares<T: Elem>(weight: f32, g: &[T], acc: &mut [f32]) {
        for (acc, g) in acc.iter_mut().zip(g) {
            let g = g.get();
            *acc += weight * (g * g);
        }
    }
}
