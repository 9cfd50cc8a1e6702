//! `attention` and `attention_bwd`: tiles of keys against panels of queries with an online softmax (Milakov and Gimelshein
//! 2018; Dao et al., "FlashAttention", 2022). Memory is linear in the length.
//!
//! Scores are computed transposed: queries are the columns of a register tile (its lanes), keys its rows. Maxima and sums of
//! a softmax are then made lane by lane, and probabilities already lie as a panel of the right operand of the next product,
//! `vᵀ·pᵀ` forward and `kᵀ·dsᵀ` backward (`softmax`). Rows of queries are numbered with all heads that share a key head next
//! to each other, so that a panel spans few queries and little beyond the diagonal is computed.
//!
//! Keys and values are packed once for all their queries (`panels`). What a panel of queries does not see of a tile of keys is
//! skipped in blocks of a few keys (`sight`); a tile that it sees entirely needs no mask. `bf16` operands are multiplied as
//! they are where the CPU can, with probabilities and their gradients rounded to `bf16`; all else is `f32`. Few queries over
//! many keys, as in decoding, are computed as dot products without panels (`decode`), in `f32`.

use crate::cpu::gemm::Engine;
use crate::cpu::{Call, Kernel, KernelError};
use kfc_graph::{Attrs, DType, TensorType};

mod backward;
mod decode;
#[cfg(target_arch = "x86_64")]
mod decode_avx512;
mod forward;
mod panels;
mod results;
mod sight;
mod softmax;
#[cfg(target_arch = "x86_64")]
mod softmax_avx512;
#[cfg(test)]
mod tests;

pub(crate) use backward::AttentionBwd;

/// Shapes of an attention and its gradient.
#[derive(Clone, Copy)]
struct Shape {
    batch: usize,
    tq: usize,
    tk: usize,
    kv_heads: usize,
    /// Query heads of a key head.
    group: usize,
    /// Head sizes of queries and keys, and of values.
    d: usize,
    dv: usize,
    scale: f32,
    x: DType,
}

/// A key head of a batch entry.
#[derive(Clone, Copy)]
struct Head {
    batch: usize,
    kv_head: usize,
}

impl Shape {
    /// # Errors
    /// If heads do not divide the widths.
    fn new(attrs: &Attrs, q: &TensorType, k: &TensorType, v: &TensorType) -> Result<Shape, KernelError> {
        let (heads, kv_heads) = (attrs.usize("heads")?, attrs.usize("kv_heads")?);
        let divides = |n: usize, by: usize| by > 0 && n.is_multiple_of(by);
        if !divides(heads, kv_heads) || !divides(q.last(), heads) || !divides(v.last(), kv_heads) {
            return Err(KernelError::Operand {
                op: "attention".into(),
                operand: 0,
                found: format!("{q}, {k}, {v}"),
                expected: format!("{heads} query heads and {kv_heads} key heads that divide them"),
            });
        }
        Ok(Shape {
            batch: q.dims[0],
            tq: q.dims[1],
            tk: k.dims[1],
            kv_heads,
            group: heads / kv_heads,
            d: q.last() / heads,
            dv: v.last() / kv_heads,
            scale: attrs.f64("scale")? as f32,
            x: q.dtype,
        })
    }

    /// Key heads of all batch entries.
    fn all_heads(&self) -> usize {
        self.batch * self.kv_heads
    }

    fn head(&self, index: usize) -> Head {
        Head { batch: index / self.kv_heads, kv_head: index % self.kv_heads }
    }

    /// Query heads.
    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    /// Rows of queries of a key head: row `r` is query `r / group` in head `r % group` of the group.
    fn rows(&self) -> usize {
        self.group * self.tq
    }

    /// Which row of a tensor `[B·Tq·heads, width]` a row of queries is.
    fn tensor_row(&self, at: Head, r: usize) -> usize {
        (at.batch * self.tq + r / self.group) * self.heads() + at.kv_head * self.group + r % self.group
    }

    /// Where a row of queries is in a tensor `[B, heads, Tq]`.
    fn lse_index(&self, at: Head, r: usize) -> usize {
        (at.batch * self.heads() + at.kv_head * self.group + r % self.group) * self.tq + r / self.group
    }

    /// Which row of a tensor `[B·Tk·kv_heads, width]` a key is.
    fn key_row(&self, at: Head, key: usize) -> usize {
        (at.batch * self.tk + key) * self.kv_heads + at.kv_head
    }
}

/// Segments and positions of queries and keys.
#[derive(Clone, Copy)]
struct Tokens<'a> {
    seg_q: &'a [i32],
    pos_q: &'a [i32],
    seg_k: &'a [i32],
    pos_k: &'a [i32],
}

impl<'a> Tokens<'a> {
    /// From the operands that begin at `first`.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn new(call: &'a Call<'_>, first: usize) -> Tokens<'a> {
        // SAFETY: by contract.
        let [seg_q, pos_q, seg_k, pos_k] = [0, 1, 2, 3].map(|i| unsafe { call.input::<i32>(first + i) });
        Tokens { seg_q, pos_q, seg_k, pos_k }
    }

    /// Segments and positions of keys `start..start + n` of a batch entry.
    fn keys(&self, s: &Shape, batch: usize, start: usize, n: usize) -> (&'a [i32], &'a [i32]) {
        let at = batch * s.tk + start;
        (&self.seg_k[at..at + n], &self.pos_k[at..at + n])
    }
}

/// `attention`.
pub(crate) struct Attention(Path);

/// How it is computed: a choice by shape.
enum Path {
    Tiles(forward::Forward),
    Dots(decode::Decode),
}

impl Attention {
    pub(crate) fn new(attrs: &Attrs, inputs: &[TensorType]) -> Result<Attention, KernelError> {
        let s = Shape::new(attrs, &inputs[0], &inputs[1], &inputs[2])?;
        Ok(Attention::with_engine(s, Engine::new(s.x)))
    }

    fn with_engine(s: Shape, e: Engine) -> Attention {
        Attention(if decode::Decode::fits(&s, e.level()) {
            Path::Dots(decode::Decode::new(s, e.level()))
        } else {
            Path::Tiles(forward::Forward::new(s, e))
        })
    }
}

impl Kernel for Attention {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract.
        unsafe {
            let tokens = Tokens::new(call, 3);
            match &self.0 {
                Path::Tiles(f) => f.run(call, tokens),
                Path::Dots(d) => d.run(call, tokens),
            }
        }
    }

    fn workspace_bytes(&self) -> usize {
        match &self.0 {
            Path::Tiles(f) => f.workspace_bytes(),
            Path::Dots(d) => d.workspace_bytes(),
        }
    }
}
