//! Parallel loops over fixed pieces.

use rayon::prelude::*;
use std::ops::Range;

/// Elements of one task of an element-wise loop: large enough to hide the cost of a task, small enough for L2.
pub(crate) const GRAIN: usize = 16 * 1024;

/// Calls `f(i)` for each `i < tasks`, in parallel when there is more than one.
pub(crate) fn tasks(tasks: usize, f: impl Fn(usize) + Sync + Send) {
    if tasks == 1 {
        f(0);
    } else {
        (0..tasks).into_par_iter().with_max_len(1).for_each(f);
    }
}

/// Cuts `0..n` into ranges of `grain` (the last may be shorter) and calls `f` for each.
pub(crate) fn ranges(n: usize, grain: usize, f: impl Fn(Range<usize>) + Sync + Send) {
    let grain = grain.max(1);
    tasks(n.div_ceil(grain), |i| f(i * grain..n.min((i + 1) * grain)));
}

/// Rows of a task when a row takes `work` element operations.
pub(crate) fn rows_grain(work: usize) -> usize {
    (GRAIN / work.max(1)).max(1)
}

/// A pointer that tasks share. Each task must stay within its own part.
pub(crate) struct Shared<T>(*mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<T> {}

// SAFETY: tasks touch disjoint parts, which `slice` demands.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Shared(slice.as_mut_ptr())
    }

    /// The address of element `start`.
    ///
    /// # Safety
    /// In bounds.
    pub(crate) unsafe fn at(self, start: usize) -> *mut T {
        // SAFETY: by contract.
        unsafe { self.0.add(start) }
    }

    /// Elements `start..start + n`.
    ///
    /// # Safety
    /// In bounds, and no other live reference overlaps them.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice<'a>(self, start: usize, n: usize) -> &'a mut [T] {
        // SAFETY: by contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), n) }
    }
}
