//! Operands of attention as panels.

use super::{Head, Shape};
use crate::cpu::float::Src;
use crate::cpu::gemm::Engine;
use crate::cpu::scratch::LINE;
use kfc_graph::DType;

/// Keys that a tile aims at.
const KEYS: usize = 128;

/// Keys of a tile: whole panels, an even number.
pub(super) fn tile_keys(e: &Engine) -> usize {
    KEYS / e.mr() * e.mr()
}

/// Rows `first..first + n` of a tensor of keys or values, as the engine takes them, and the elements from one to the next.
/// `scratch` holds `n · width` floats.
///
/// # Safety
/// The rows lie within the tensor; its type is `x`.
pub(super) unsafe fn key_rows(
    s: &Shape,
    e: &Engine,
    x: Src,
    at: Head,
    (first, n): (usize, usize),
    width: usize,
    scratch: &mut [f32],
) -> (*const u8, usize) {
    // SAFETY: by contract.
    unsafe {
        if x.dtype() == e.element() {
            return (x.offset(s.key_row(at, first) * width).ptr(), s.kv_heads * width);
        }
        for (i, row) in scratch[..n * width].chunks_exact_mut(width).enumerate() {
            x.load(s.key_row(at, first + i) * width, row);
        }
    }
    (scratch.as_ptr().cast(), width)
}

/// Rows of queries `first..first + n` as the engine takes them, and the elements from one to the next: where they lie, or
/// copied to `room`, where rows up to `all` are zero. `room` holds `all · width` floats.
///
/// # Safety
/// The rows lie within the tensor; its type is `x`.
pub(super) unsafe fn query_rows(
    s: &Shape,
    e: &Engine,
    x: Src,
    at: Head,
    (first, n, all): (usize, usize, usize),
    width: usize,
    room: &mut [f32],
) -> (*const u8, usize) {
    // SAFETY: by contract.
    unsafe {
        if s.group == 1 && n == all && x.dtype() == e.element() {
            return (x.offset(s.tensor_row(at, first) * width).ptr(), s.heads() * width);
        }
        if e.is_pair() {
            let room = &mut bytemuck::cast_slice_mut::<f32, u16>(room)[..all * width];
            let (rows, rest) = room.split_at_mut(n * width);
            for (i, row) in rows.chunks_exact_mut(width).enumerate() {
                row.copy_from_slice(x.raw(s.tensor_row(at, first + i) * width, width));
            }
            rest.fill(0);
        } else {
            let (rows, rest) = room[..all * width].split_at_mut(n * width);
            for (i, row) in rows.chunks_exact_mut(width).enumerate() {
                x.load(s.tensor_row(at, first + i) * width, row);
            }
            rest.fill(0.0);
        }
    }
    (room.as_ptr().cast(), width)
}

/// The first `n` floats of `rest`, at the beginning of a cache line if `rest` is; `rest` then begins after them, at a line.
pub(super) fn take<'a>(rest: &mut &'a mut [f32], n: usize) -> &'a mut [f32] {
    let whole = n.next_multiple_of(LINE);
    let (head, tail) = std::mem::take(rest).split_at_mut(whole);
    *rest = tail;
    &mut head[..n]
}

/// Floats of scratch that pieces of these lengths take from [`crate::cpu::scratch::aligned`] scratch.
pub(super) fn scratch_len(pieces: &[usize]) -> usize {
    LINE + pieces.iter().map(|n| n.next_multiple_of(LINE)).sum::<usize>()
}

/// Bytes of `n` units or floats, in whole lines.
pub(super) fn line_bytes(n: usize) -> usize {
    n.next_multiple_of(LINE) * DType::F32.size()
}
