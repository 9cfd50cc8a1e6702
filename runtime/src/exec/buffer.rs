//! Zeroed, 64-byte aligned host memory.

use bytemuck::Pod;
use kfc_kernels::cpu::Buf;
use memmap2::{MmapMut, UncheckedAdvice};
use rayon::prelude::*;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Alignment of every buffer: a cache line, and the widest vector there is.
const ALIGN: usize = 64;
/// Smallest page there is on the supported systems.
const PAGE: usize = 4096;
/// Size from which a buffer has pages of its own, zero as they come: aligned memory of the heap is zeroed by one thread.
const OWN_PAGES: usize = 2 << 20;
/// Bytes that one task brings into memory.
const TOUCHED: usize = 2 << 20;

/// An owned block of memory that kernels write through raw pointers.
///
/// Reading it through `&self` while a plan that it is bound to runs is prevented by the session: running a plan takes
/// the plan mutably, and nothing else touches buffers meanwhile.
pub struct HostBuffer {
    ptr: NonNull<u8>,
    bytes: usize,
    owner: Owner,
}

/// Where a block comes from.
enum Owner {
    Nobody,
    Heap(Layout),
    Pages(MmapMut),
}

// SAFETY: the block is owned and has no thread affinity.
unsafe impl Send for HostBuffer {}
// SAFETY: shared access only reads; writes go through `&mut self` or through bound plans (see the type's invariant).
unsafe impl Sync for HostBuffer {}

impl HostBuffer {
    /// `bytes` of zeroed memory, resident; `None` when the system has not that much.
    pub fn zeroed(bytes: usize) -> Option<HostBuffer> {
        let buffer = HostBuffer::reserved(bytes)?;
        // SAFETY: nobody else knows of it yet, and zeros are what it has.
        unsafe { buffer.touch() };
        Some(buffer)
    }

    /// `bytes` of zeroed memory that becomes resident where it is first touched; `None` when the system has not that much.
    pub fn reserved(bytes: usize) -> Option<HostBuffer> {
        match bytes {
            0 => Some(HostBuffer { ptr: NonNull::<u64>::dangling().cast(), bytes: 0, owner: Owner::Nobody }),
            _ if bytes < OWN_PAGES => HostBuffer::heap(bytes),
            _ => HostBuffer::pages(bytes),
        }
    }

    fn heap(bytes: usize) -> Option<HostBuffer> {
        let layout = Layout::from_size_align(bytes.checked_next_multiple_of(ALIGN)?, ALIGN).ok()?;
        // SAFETY: the layout has a non-zero size.
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(HostBuffer { ptr, bytes, owner: Owner::Heap(layout) })
    }

    fn pages(bytes: usize) -> Option<HostBuffer> {
        let mut map = MmapMut::map_anon(bytes).ok()?;
        let ptr = NonNull::new(map.as_mut_ptr())?;
        Some(HostBuffer { ptr, bytes, owner: Owner::Pages(map) })
    }

    /// Writes zeros to every page, so that the memory is resident from the start and not at some later step: what a run takes
    /// is what was allocated.
    ///
    /// # Safety
    /// Nobody uses the buffer meanwhile, or needs what is in it.
    pub(super) unsafe fn touch(&self) {
        // SAFETY: the block has `bytes` initialised bytes, and by contract nobody has another reference to them.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.bytes) };
        bytes.par_chunks_mut(TOUCHED).for_each(|chunk| {
            for byte in chunk.iter_mut().step_by(PAGE) {
                // SAFETY: a valid place; volatile, or the compiler would drop a write of what is there already.
                unsafe { std::ptr::from_mut(byte).write_volatile(0) }
            }
        });
    }

    /// Gives the memory of a large buffer back to the system; it is zeros then, and resident where it is touched again.
    ///
    /// # Safety
    /// As for [`HostBuffer::touch`].
    pub(super) unsafe fn release(&self) {
        if let Owner::Pages(map) = &self.owner {
            // SAFETY: anonymous memory without references to it, by contract. A system that refuses keeps what it has.
            let _ = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
        }
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Contents as bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the block has `bytes` initialised bytes.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.bytes) }
    }

    /// Contents as bytes, writable.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the block has `bytes` initialised bytes, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.bytes) }
    }

    /// Contents as elements.
    pub fn slice<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(self.bytes())
    }

    /// Contents as elements, writable.
    pub fn slice_mut<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.bytes_mut())
    }

    /// The whole block, for binding.
    pub fn buf(&self) -> Buf {
        Buf { ptr: self.ptr.as_ptr(), bytes: self.bytes }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        if let Owner::Heap(layout) = self.owner {
            // SAFETY: allocated in `heap` with this layout.
            unsafe { dealloc(self.ptr.as_ptr(), layout) }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn memory_of_every_size_is_zero_aligned_and_writable() {
        for bytes in [0, 1, 4095, OWN_PAGES - 1, OWN_PAGES, 3 * TOUCHED + 7] {
            let mut buffer = HostBuffer::zeroed(bytes).unwrap();
            assert_eq!((buffer.len(), buffer.bytes().len()), (bytes, bytes));
            assert!(buffer.bytes().iter().all(|b| *b == 0));
            if bytes > 0 {
                assert_eq!(buffer.buf().ptr as usize % ALIGN, 0, "{bytes}");
            }
            buffer.bytes_mut().fill(7);
            assert!(buffer.bytes().iter().all(|b| *b == 7));
        }
    }

    #[test]
    fn more_than_there_is_is_refused() {
        assert!(HostBuffer::zeroed(usize::MAX - 4096).is_none());
        assert!(HostBuffer::zeroed(1 << 60).is_none());
    }
}
