//! Reusable per-thread scratch for tiles.
//!
//! Bound: what one thread keeps is the largest set of tiles that it ever held at once. Kernels ask for tiles of fixed
//! size (at most [`crate::cpu::gemm::SCRATCH_BYTES`] for a matrix product, and rows of a tensor), never for anything that
//! grows with the number of tokens.

use crate::cpu::pages;
use std::cell::RefCell;

thread_local! {
    // A stack rather than one buffer: a task may steal another one of the same kind while it waits for its own.
    static POOL: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `n` floats of undefined content.
pub(crate) fn with<R>(n: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = POOL.with(|p| p.borrow_mut().pop()).unwrap_or_default();
    if buffer.len() < n {
        buffer.clear();
        buffer.reserve_exact(n);
        // SAFETY: the buffer has room for `n` floats.
        unsafe { pages::prefer_large(buffer.as_mut_ptr().cast(), n * size_of::<f32>()) };
        buffer.resize(n, 0.0);
    }
    let result = f(&mut buffer[..n]);
    POOL.with(|p| p.borrow_mut().push(buffer));
    result
}

/// Floats of a cache line.
pub(crate) const LINE: usize = 16;

/// Scratch from its first cache line on; what is asked for has [`LINE`] floats more.
pub(crate) fn aligned(scratch: &mut [f32]) -> &mut [f32] {
    let skip = scratch.as_ptr().align_offset(4 * LINE).min(LINE);
    &mut scratch[skip..]
}

/// Cuts consecutive pieces off a scratch slice.
pub(crate) struct Cut<'a>(pub(crate) &'a mut [f32]);

impl<'a> Cut<'a> {
    /// The next `n` floats.
    pub(crate) fn take(&mut self, n: usize) -> &'a mut [f32] {
        let (head, tail) = std::mem::take(&mut self.0).split_at_mut(n);
        self.0 = tail;
        head
    }

    /// `n` floats from a cache line on, for which [`LINE`] more are taken.
    pub(crate) fn line(&mut self, n: usize) -> &'a mut [f32] {
        &mut aligned(self.take(n + LINE))[..n]
    }
}
