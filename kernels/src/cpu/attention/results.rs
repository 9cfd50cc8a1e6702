//! Sums that lie with elements of a head as rows and queries as lanes, written as rows of a tensor.

use super::softmax;
use super::{Head, Shape};
use crate::cpu::float::Dst;
use crate::cpu::gemm::Engine;
use kfc_graph::DType;

/// Writes `sums [width, nr]`, whose first `n` lanes are rows of queries from `first` on, to the tensor `out [B·Tq·heads, width]`. `room` holds as many
/// floats as `sums`.
///
/// # Safety
/// The rows lie within the tensor, and nothing else uses them.
pub(super) unsafe fn store(
    s: &Shape,
    e: &Engine,
    at: Head,
    (first, n): (usize, usize),
    sums: &[f32],
    out: Dst,
    room: &mut [f32],
) {
    let width = sums.len() / e.nr();
    // SAFETY: by contract.
    unsafe {
        match out.dtype() {
            DType::F32 => move_units(s, e, at, (first, n), (sums.as_ptr(), width), out, room),
            DType::Bf16 if width.is_multiple_of(2) => {
                // Two elements of a query are moved as one.
                let (pairs, room) = room.split_at_mut(sums.len() / 2);
                let pairs: &mut [u32] = bytemuck::cast_slice_mut(pairs);
                softmax::join(e, sums, pairs);
                move_units(s, e, at, (first, n), (pairs.as_ptr().cast(), width / 2), out, room);
            }
            _ => {
                e.transpose(sums.as_ptr(), e.nr(), (width, e.nr()), room.as_mut_ptr(), width);
                for (i, row) in room.chunks_exact(width).take(n).enumerate() {
                    out.store(s.tensor_row(at, first + i) * width, row);
                }
            }
        }
    }
}

/// Writes `count` units of each row, which lie with queries as lanes.
///
/// # Safety
/// As [`store`]; `room` holds `count · nr` units.
unsafe fn move_units(
    s: &Shape,
    e: &Engine,
    at: Head,
    (first, n): (usize, usize),
    (units, count): (*const f32, usize),
    out: Dst,
    room: &mut [f32],
) {
    let row = |i: usize| s.tensor_row(at, first + i) * count;
    // SAFETY: by contract; rows of a tensor of an even width begin at whole units.
    unsafe {
        let to: *mut f32 = out.raw::<f32>(0, 0).as_mut_ptr();
        if s.group == 1 {
            return e.transpose(units, e.nr(), (count, n), to.add(row(0)), s.heads() * count);
        }
        e.transpose(units, e.nr(), (count, n), room.as_mut_ptr(), count);
        for (i, units) in room.chunks_exact(count).take(n).enumerate() {
            std::ptr::copy_nonoverlapping(units.as_ptr(), to.add(row(i)), count);
        }
    }
}

/// Writes one value a row to the tensor `[B, heads, Tq]`.
///
/// # Safety
/// As [`store`].
pub(super) unsafe fn store_lanes(s: &Shape, at: Head, (first, n): (usize, usize), values: &[f32], out: Dst) {
    // SAFETY: by contract.
    unsafe {
        if s.group == 1 {
            return out.store(s.lse_index(at, first), &values[..n]);
        }
        for (i, value) in values[..n].iter().enumerate() {
            out.raw::<f32>(s.lse_index(at, first + i), 1)[0] = *value;
        }
    }
}
