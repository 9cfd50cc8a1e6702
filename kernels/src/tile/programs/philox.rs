//! Random numbers by counter, as `kfc_graph::interp::philox` defines them: Philox4x32-10 (Salmon et al., 2011).

use super::EmitError;
use crate::tile::ir::{Binary, Compare, Elem, Var};
use crate::tile::{Buffer, Builder};
use kfc_graph::Attrs;
use kfc_graph::interp::philox::{MULTIPLIER, ROUNDS, WEYL};

/// The key of a seed `i32[2]`.
fn key(b: &mut Builder, seed: Buffer) -> [Var; 2] {
    [0, 1].map(|i| {
        let at = b.int(i);
        let word = b.load(seed, at, None);
        b.cast(word, Elem::U32)
    })
}

/// Uniform numbers in `[0, 1)` of the elements `index` (`i32`, not negative) of a stream: half `index % 2`, the lower one
/// first, of word `index / 2 % 4` of block `index / 8`, times 2^-16.
pub(super) fn uniform(b: &mut Builder, seed: Buffer, stream: u32, index: Var) -> Var {
    let mut key = key(b, seed);
    let index = b.cast(index, Elem::U32);
    let (one, three) = (b.bits(1), b.bits(3));
    let block = b.binary(Binary::Shr, index, three);
    // Fewer than 2^31 elements: the block's upper word is 0.
    let mut counter = [block, b.bits(0), b.bits(stream), b.bits(0)];
    let multiplier = MULTIPLIER.map(|m| b.bits(m));
    let weyl = WEYL.map(|w| b.bits(w));
    for _ in 0..ROUNDS {
        let [c0, c1, c2, c3] = counter;
        let high = [(c0, multiplier[0]), (c2, multiplier[1])].map(|(c, m)| b.binary(Binary::MulHigh, c, m));
        let low = [(c0, multiplier[0]), (c2, multiplier[1])].map(|(c, m)| b.mul(c, m));
        let (x, y) = (b.binary(Binary::Xor, c1, key[0]), b.binary(Binary::Xor, c3, key[1]));
        let (x, y) = (b.binary(Binary::Xor, high[1], x), b.binary(Binary::Xor, high[0], y));
        counter = [x, low[1], y, low[0]];
        key = [b.add(key[0], weyl[0]), b.add(key[1], weyl[1])];
    }
    let number = b.binary(Binary::Shr, index, one);
    let number = b.binary(Binary::And, number, three);
    let mut word = counter[3];
    for (i, w) in counter.into_iter().enumerate().take(3).rev() {
        let i = b.bits(i as u32);
        let is_it = b.compare(Compare::Eq, number, i);
        word = b.select(is_it, w, word);
    }
    let (sixteen, low) = (b.bits(16), b.bits(0xffff));
    let is_upper = b.binary(Binary::And, index, one);
    let shift = b.mul(is_upper, sixteen);
    let half = b.binary(Binary::Shr, word, shift);
    let half = b.binary(Binary::And, half, low);
    // Below 2^16: the same number as a signed one, whose conversion every device has.
    let half = b.cast(half, Elem::I32);
    let half = b.cast(half, Elem::F32);
    let unit = b.float(1.0 / 65_536.0);
    b.mul(half, unit)
}

/// Inverted dropout of a tensor whose elements are numbered from its first on.
#[derive(Clone, Copy)]
pub(super) struct Dropout {
    stream: u32,
    threshold: f32,
    keep: f32,
}

impl Dropout {
    /// From the attributes `dropout` and `stream`; nothing if no element is dropped.
    pub(super) fn new(attrs: &Attrs) -> Result<Option<Dropout>, EmitError> {
        let p = attrs.f64("dropout")?;
        // Uniform numbers are multiples of 2^-16, so the next multiple decides as `p` does and is exact.
        let threshold = ((p * 65_536.0).ceil() / 65_536.0) as f32;
        let stream = attrs.usize("stream")? as u32;
        Ok((p > 0.0).then_some(Dropout { stream, threshold, keep: (1.0 / (1.0 - p)) as f32 }))
    }

    /// The factor of each of the elements `index`.
    pub(super) fn factor(&self, b: &mut Builder, seed: Buffer, index: Var) -> Var {
        let u = uniform(b, seed, self.stream, index);
        let threshold = b.float(self.threshold);
        let kept = b.compare(Compare::Le, threshold, u);
        let (keep, drop) = (b.float(self.keep), b.float(0.0));
        b.select(kept, keep, drop)
    }
}
