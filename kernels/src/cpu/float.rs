//! Float operands of any type, read and written as blocks of `f32`.

use crate::cpu::simd::simd;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use kfc_graph::DType;

/// Elements of a conversion block of the element-wise loops.
pub(crate) const BLOCK: usize = 1024;

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
                DType::Bf16 => bf16_to_f32(self.raw(start, n), out),
                DType::F16 => self.raw::<f16>(start, n).convert_to_f32_slice(out),
                DType::I32 => i32_to_f32(self.raw(start, n), out),
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

    /// As [`Src::read`], but always a copy in `scratch` if the operand is the buffer of a result: that is written while the
    /// copy is in use.
    ///
    /// # Safety
    /// As [`Src::read`]; nothing refers to the elements while they are copied.
    pub(crate) unsafe fn read_before<'a>(
        self,
        results: &[Dst],
        start: usize,
        n: usize,
        scratch: &'a mut [f32],
    ) -> &'a [f32] {
        // SAFETY: by contract.
        unsafe {
            if results.iter().all(|r| r.ptr.cast_const() != self.ptr) {
                return self.read(start, n, scratch);
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
                DType::Bf16 => f32_to_bf16(src, self.raw(start, n)),
                DType::F16 => self.raw::<f16>(start, n).convert_from_f32_slice(src),
                DType::I32 => f32_to_i32(src, self.raw(start, n)),
            }
        }
    }

    /// Where to compute elements `start..start + n`: in place if they are `f32`, else `scratch`; hand the same slice to
    /// [`Dst::finish`].
    ///
    /// # Safety
    /// As [`Dst::store`]; `scratch` holds at least `n`.
    pub(crate) unsafe fn begin(self, start: usize, n: usize, scratch: &mut [f32]) -> &mut [f32] {
        // SAFETY: by contract.
        if self.dtype == DType::F32 { unsafe { self.raw(start, n) } } else { &mut scratch[..n] }
    }

    /// Ends what [`Dst::begin`] began.
    ///
    /// # Safety
    /// As [`Dst::store`].
    pub(crate) unsafe fn finish(self, start: usize, computed: &[f32]) {
        if self.dtype != DType::F32 {
            // SAFETY: by contract.
            unsafe { self.store(start, computed) }
        }
    }
}

#[inline(always)]
fn round_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let quiet_nan = (bits | 0x0040_0000) >> 16;
    (if x.is_nan() { quiet_nan } else { rounded >> 16 }) as u16
}

simd! {
    fn bf16_to_f32(src: &[bf16], out: &mut [f32]) {
        for (o, s) in out.iter_mut().zip(src) {
            *o = f32::from_bits(u32::from(s.to_bits()) << 16);
        }
    }

    fn f32_to_bf16(src: &[f32], out: &mut [bf16]) {
        for (o, s) in out.iter_mut().zip(src) {
            *o = bf16::from_bits(round_bf16(*s));
        }
    }

    fn i32_to_f32(src: &[i32], out: &mut [f32]) {
        for (o, s) in out.iter_mut().zip(src) {
            *o = *s as f32;
        }
    }

    fn f32_to_i32(src: &[f32], out: &mut [i32]) {
        for (o, s) in out.iter_mut().zip(src) {
            *o = *s as i32;
        }
    }
}
