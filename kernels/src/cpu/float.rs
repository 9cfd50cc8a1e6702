//! Float operands of any type.
//!
//! Loops over elements are written once, over [`Elem`], and compute in `f32`: an element is converted in a register on
//! its way. Where a loop wants `f32` in memory, [`Src::read`] converts a block.

use crate::cpu::elem::{Elem, of_type};
use crate::cpu::simd::simd;
use half::{bf16, f16};
use kfc_graph::DType;
use std::mem::MaybeUninit;

/// Elements of a conversion block of the element-wise loops.
pub(crate) const BLOCK: usize = 1024;

/// The blocks of a range: first element and length of each.
pub(crate) fn blocks(range: std::ops::Range<usize>) -> impl Iterator<Item = (usize, usize)> {
    let end = range.end;
    range.step_by(BLOCK).map(move |start| (start, BLOCK.min(end - start)))
}

/// An operand of a float type (or `i32`, converted as a number), dense.
#[derive(Clone, Copy)]
pub(crate) struct Src {
    ptr: *const u8,
    dtype: DType,
}

// SAFETY: an address; reading through it is `unsafe` and bound to the contract of `Kernel::run`.
unsafe impl Send for Src {}
// SAFETY: as above.
unsafe impl Sync for Src {}

impl Src {
    pub(crate) fn new(ptr: *const u8, dtype: DType) -> Src {
        Src { ptr, dtype }
    }

    pub(crate) fn dtype(self) -> DType {
        self.dtype
    }

    pub(crate) fn ptr(self) -> *const u8 {
        self.ptr
    }

    /// The same operand from element `start` on.
    ///
    /// # Safety
    /// `start` is in bounds.
    pub(crate) unsafe fn offset(self, start: usize) -> Src {
        // SAFETY: by contract.
        Src { ptr: unsafe { self.ptr.add(start * self.dtype.size()) }, dtype: self.dtype }
    }

    /// Elements `start..start + n` as they lie in memory, of type `T`.
    ///
    /// # Safety
    /// In bounds, of that type, not written meanwhile.
    pub(crate) unsafe fn raw<'a, T>(self, start: usize, n: usize) -> &'a [T] {
        // SAFETY: by contract.
        unsafe { std::slice::from_raw_parts(self.ptr.cast::<T>().add(start), n) }
    }

    /// Copies elements from `start` on into `out`.
    ///
    /// # Safety
    /// In bounds, not written meanwhile.
    pub(crate) unsafe fn load(self, start: usize, out: &mut [f32]) {
        let n = out.len();
        // SAFETY: by contract; the type is the operand's.
        unsafe {
            match self.dtype {
                DType::F32 => out.copy_from_slice(self.raw(start, n)),
                DType::Bf16 => convert(self.raw::<bf16>(start, n), out),
                DType::F16 => convert(self.raw::<f16>(start, n), out),
                DType::I32 => convert(self.raw::<i32>(start, n), out),
            }
        }
    }

    /// Elements `start..start + n` as `f32`: in place if they are, else converted into `scratch`.
    ///
    /// # Safety
    /// As [`Src::load`]; `scratch` holds at least `n`.
    pub(crate) unsafe fn read(self, start: usize, n: usize, scratch: &mut [f32]) -> &[f32] {
        // SAFETY: by contract.
        unsafe {
            if self.dtype == DType::F32 {
                return self.raw(start, n);
            }
            self.load(start, &mut scratch[..n]);
        }
        &scratch[..n]
    }

    /// Element `i`.
    ///
    /// # Safety
    /// As [`Src::load`].
    pub(crate) unsafe fn at(self, i: usize) -> f32 {
        let mut out = [0.0];
        // SAFETY: by contract.
        unsafe { self.load(i, &mut out) };
        out[0]
    }
}

/// A result of a float type (or `i32`, truncated), dense.
#[derive(Clone, Copy)]
pub(crate) struct Dst {
    ptr: *mut u8,
    dtype: DType,
}

// SAFETY: an address; writing through it is `unsafe` and tasks write disjoint parts.
unsafe impl Send for Dst {}
// SAFETY: as above.
unsafe impl Sync for Dst {}

impl Dst {
    pub(crate) fn new(ptr: *mut u8, dtype: DType) -> Dst {
        Dst { ptr, dtype }
    }

    /// A view of floats.
    pub(crate) fn floats(slice: &mut [f32]) -> Dst {
        Dst { ptr: slice.as_mut_ptr().cast(), dtype: DType::F32 }
    }

    pub(crate) fn dtype(self) -> DType {
        self.dtype
    }

    pub(crate) fn src(self) -> Src {
        Src { ptr: self.ptr, dtype: self.dtype }
    }

    /// The same result from element `start` on.
    ///
    /// # Safety
    /// `start` is in bounds.
    pub(crate) unsafe fn offset(self, start: usize) -> Dst {
        // SAFETY: by contract.
        Dst { ptr: unsafe { self.ptr.add(start * self.dtype.size()) }, dtype: self.dtype }
    }

    /// Elements `start..start + n` as they lie in memory, of type `T`.
    ///
    /// # Safety
    /// In bounds, of that type, not referred to elsewhere meanwhile.
    pub(crate) unsafe fn raw<'a, T>(self, start: usize, n: usize) -> &'a mut [T] {
        // SAFETY: by contract.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.cast::<T>().add(start), n) }
    }

    /// Writes `src` from element `start` on.
    ///
    /// # Safety
    /// In bounds, not referred to elsewhere meanwhile.
    pub(crate) unsafe fn store(self, start: usize, src: &[f32]) {
        let n = src.len();
        // SAFETY: by contract; the type is the result's.
        unsafe {
            match self.dtype {
                DType::F32 => self.raw(start, n).copy_from_slice(src),
                DType::Bf16 => convert(src, self.raw::<bf16>(start, n)),
                DType::F16 => convert(src, self.raw::<f16>(start, n)),
                DType::I32 => convert(src, self.raw::<i32>(start, n)),
            }
        }
    }

    /// Writes rows of `width`, which follow one another in `src`, from element `start` on, `stride` elements apart.
    ///
    /// # Safety
    /// As [`Dst::store`].
    pub(crate) unsafe fn store_rows(self, start: usize, stride: usize, width: usize, src: &[f32]) {
        of_type!(self.dtype, T => {
            // SAFETY: in bounds; the type is the result's.
            let at = unsafe { self.ptr.cast::<T>().add(start) };
            convert_rows(src, width, at, stride)
        });
    }
}

/// Room for a copy of `N` elements.
pub(crate) struct Copied<T, const N: usize = BLOCK>([MaybeUninit<T>; N]);

impl<T: Elem, const N: usize> Copied<T, N> {
    pub(crate) fn new() -> Self {
        Copied([const { MaybeUninit::uninit() }; N])
    }
}

impl Src {
    /// Elements `start..start + n` (at most `N`) as they lie in memory; a copy of them if the operand is the buffer of a
    /// result, which may be written meanwhile.
    ///
    /// # Safety
    /// In bounds, of type `T`; nothing refers to the elements mutably while they are copied.
    pub(crate) unsafe fn before<'a, T: Elem, const N: usize>(
        self,
        results: &[Dst],
        start: usize,
        n: usize,
        room: &'a mut Copied<T, N>,
    ) -> &'a [T] {
        // SAFETY: by contract; what is copied is read as copied.
        unsafe {
            if results.iter().all(|r| r.ptr.cast_const() != self.ptr) {
                return self.raw(start, n);
            }
            let room = &mut room.0[..n];
            std::ptr::copy_nonoverlapping(self.ptr.cast::<T>().add(start), room.as_mut_ptr().cast(), n);
            std::slice::from_raw_parts(room.as_ptr().cast(), n)
        }
    }

    /// As [`Src::before`], for any number of elements that `room` holds.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn row_before<'a, T: Elem>(
        self,
        results: &[Dst],
        start: usize,
        n: usize,
        room: &'a mut [f32],
    ) -> &'a [T] {
        debug_assert!(room.len() >= n && size_of::<T>() <= size_of::<f32>());
        // SAFETY: by contract; no element is larger than an `f32` or aligned more.
        unsafe {
            if results.iter().all(|r| r.ptr.cast_const() != self.ptr) {
                return self.raw(start, n);
            }
            let room: *mut T = room.as_mut_ptr().cast();
            std::ptr::copy_nonoverlapping(self.ptr.cast::<T>().add(start), room, n);
            std::slice::from_raw_parts(room, n)
        }
    }
}

simd! {
    /// Converts elements.
    pub(crate) fn convert<A: Elem, B: Elem>(src: &[A], out: &mut [B]) {
        for (o, s) in out.iter_mut().zip(src) {
            *o = B::put(s.get());
        }
    }

    /// Converts rows of `width`, which follow one another, to rows that are `stride` apart: [`Dst::store_rows`].
    fn convert_rows<T: Elem>(src: &[f32], width: usize, out: *mut T, stride: usize) {
        for (r, src) in src.chunks_exact(width).enumerate() {
            // SAFETY: by contract of the only caller.
            let out = unsafe { std::slice::from_raw_parts_mut(out.add(r * stride), width) };
            for (o, s) in out.iter_mut().zip(src) {
                *o = T::put(*s);
            }
        }
    }
}
