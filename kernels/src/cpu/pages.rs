//! Large pages: operands are read in short pieces far apart, and with pages of 4 KiB each piece costs a walk through the page
//! tables. The system is only asked; what memory holds and how much of it there is stays the same.

/// Size of a large page on the systems that are asked for one.
pub const LARGE: usize = 2 << 20;

/// Asks for large pages for the part of a block that consists of whole ones. Call it before the block is written to.
///
/// # Safety
/// The block is memory of the caller.
pub unsafe fn prefer_large(block: *mut u8, bytes: usize) {
    #[cfg(target_os = "linux")]
    {
        let skip = block.align_offset(LARGE).min(bytes);
        let whole = (bytes - skip) / LARGE * LARGE;
        if whole > 0 {
            // SAFETY: the range lies within the block, and the advice changes no content. It may be refused.
            unsafe { libc::madvise(block.add(skip).cast(), whole, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (block, bytes);
}
