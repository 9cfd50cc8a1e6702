//! Zeroed, 64-byte aligned host memory.

use bytemuck::Pod;
use kfc_kernels::cpu::{Buf, pages};
use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

/// Alignment of every buffer: a cache line, and the widest vector there is.
const ALIGN: usize = 64;

/// An owned block of memory that kernels write through raw pointers.
///
/// Reading it through `&self` while a plan that it is bound to runs is prevented by the session: running a plan takes
/// the plan mutably, and nothing else touches buffers meanwhile.
pub struct HostBuffer {
    ptr: NonNull<u8>,
    bytes: usize,
    layout: Option<Layout>,
}

// SAFETY: the block is owned and has no thread affinity.
unsafe impl Send for HostBuffer {}
// SAFETY: shared access only reads; writes go through `&mut self` or through bound plans (see the type's invariant).
unsafe impl Sync for HostBuffer {}

impl HostBuffer {
    /// `bytes` of zeroed memory; `None` when the system has not that much.
    pub fn zeroed(bytes: usize) -> Option<HostBuffer> {
        if bytes == 0 {
            return Some(HostBuffer { ptr: NonNull::<u64>::dangling().cast(), bytes: 0, layout: None });
        }
        let align = if bytes >= pages::LARGE { pages::LARGE } else { ALIGN };
        let layout = Layout::from_size_align(bytes.checked_next_multiple_of(ALIGN)?, align).ok()?;
        // SAFETY: the layout has a non-zero size.
        let ptr = NonNull::new(unsafe { alloc(layout) })?;
        // SAFETY: just allocated with this layout.
        unsafe { pages::prefer_large(ptr.as_ptr(), layout.size()) };
        // Every page is written to, so that the memory is resident from the start and not at some later step: what a run takes
        // is what was allocated.
        // SAFETY: inside the block.
        unsafe { ptr.write_bytes(0, layout.size()) };
        Some(HostBuffer { ptr, bytes, layout: Some(layout) })
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
        if let Some(layout) = self.layout {
            // SAFETY: allocated in `zeroed` with this layout.
            unsafe { dealloc(self.ptr.as_ptr(), layout) }
        }
    }
}
