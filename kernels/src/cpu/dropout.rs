//! Inverted dropout whose decisions are numbers of elements: made as they are needed, or once for all who need them.

use crate::cpu::par::Shared;
use crate::cpu::philox::{Stream, WORDS, runs};
use crate::cpu::simd::simd;
use half::bf16;

/// Elements that a word decides.
pub(crate) const BITS: usize = 32;

/// Inverted dropout of a tensor whose elements are numbered from its first on.
#[derive(Clone, Copy)]
pub(crate) struct Dropout {
    stream: Stream,
    /// The smallest uniform number that keeps an element, times 2^24.
    threshold: u32,
    /// Factor of a kept element.
    keep: f32,
    /// Decisions that have been made.
    kept: Option<Kept>,
}

/// A bit for each element: whether it is kept.
#[derive(Clone, Copy)]
pub(crate) struct Kept(Shared<u32>);

impl Kept {
    /// Words that hold the bits of `n` elements, and what [`Kept::at`] reads beyond them.
    pub(crate) fn words(n: usize) -> usize {
        n.div_ceil(BITS) + 2
    }

    /// Bits in `memory`, which has [`Kept::words`] elements and is to be written by [`Dropout::decide`].
    pub(crate) fn new(memory: &mut [u32]) -> Kept {
        Kept(Shared::new(memory))
    }

    /// Bits of the 32 elements from one on, the first lowest; those beyond the last element have no meaning.
    ///
    /// # Safety
    /// The first element is one, and its bits have been written.
    #[inline(always)]
    pub(crate) unsafe fn at(self, element: usize) -> u32 {
        // SAFETY: by contract there are two words after that of the last element.
        let bytes = unsafe { self.0.at(0).cast::<u8>().add(element / 8).cast::<u64>().read_unaligned() };
        (u64::from_le(bytes) >> (element % 8)) as u32
    }
}

impl Dropout {
    /// Drops an element iff its uniform number is below `p`.
    pub(crate) fn new(stream: Stream, p: f64) -> Dropout {
        // Uniform numbers are multiples of 2^-24, so the next multiple decides as `p` does.
        let threshold = (p * 16_777_216.0).ceil() as u32;
        Dropout { stream, threshold, keep: (1.0 / (1.0 - p)) as f32, kept: None }
    }

    /// The same with decisions that have been made.
    #[must_use]
    pub(crate) fn with(self, kept: Kept) -> Dropout {
        Dropout { kept: Some(kept), ..self }
    }

    /// Makes the decisions of `n` elements from `start` on, a multiple of [`BITS`].
    ///
    /// # Safety
    /// `kept` has room for them, and nothing else uses their words meanwhile.
    pub(crate) unsafe fn decide(&self, kept: Kept, start: usize, n: usize) {
        debug_assert!(start.is_multiple_of(BITS));
        // SAFETY: by contract.
        let words = unsafe { kept.0.slice(start / BITS, n.div_ceil(BITS)) };
        decide(self.stream, start as u64, self.threshold, n, words);
    }

    /// The decisions, if they have been made.
    pub(crate) fn kept(&self) -> Option<Kept> {
        self.kept
    }

    /// Applies it to `x`, which stands at elements `start..` of the tensor.
    pub(crate) fn apply(&self, start: usize, x: &mut [f32]) {
        match self.kept {
            Some(kept) => select_floats(kept, start, self.keep, x),
            None => drop_floats(self.stream, start as u64, self.threshold, self.keep, x),
        }
    }

    /// Factor of elements that are kept.
    pub(crate) fn keep(&self) -> f32 {
        self.keep
    }

    /// Copies 16-bit floats that stand at elements `start..` of the tensor, with zeros for those that are dropped and without
    /// the factor of the others.
    pub(crate) fn copy_kept(&self, start: usize, x: &[bf16], out: &mut [bf16]) {
        select(self.stream, start as u64, self.threshold, x, &mut out[..x.len()]);
    }
}

simd! {
    fn drop_floats(stream: Stream, start: u64, threshold: u32, keep: f32, x: &mut [f32]) {
        runs(stream, start, x.len(), |done, words| {
            for (x, w) in x[done..].iter_mut().zip(words) {
                *x = if w >> 8 >= threshold { *x * keep } else { 0.0 };
            }
        });
    }

    fn select_floats(kept: Kept, start: usize, keep: f32, x: &mut [f32]) {
        for (i, x) in x.chunks_mut(BITS).enumerate() {
            // SAFETY: `x` stands at elements from `start` on.
            let bits = unsafe { kept.at(start + i * BITS) };
            for (l, x) in (0..).zip(x) {
                *x = if bits >> l & 1 == 1 { *x * keep } else { 0.0 };
            }
        }
    }

    fn decide(stream: Stream, start: u64, threshold: u32, n: usize, out: &mut [u32]) {
        runs(stream, start, n, |done, words| {
            for (out, words) in out[done / BITS..].iter_mut().zip(words.chunks(BITS)) {
                *out = (0..).zip(words).fold(0, |bits, (l, w)| bits | u32::from(w >> 8 >= threshold) << l);
            }
        });
    }

    fn select(stream: Stream, start: u64, threshold: u32, x: &[bf16], out: &mut [bf16]) {
        runs(stream, start, x.len(), |done, words| {
            // In two loops, one of which changes the width: LLVM makes vectors of both.
            let mut kept = [0u16; WORDS];
            for (kept, w) in kept.iter_mut().zip(words) {
                *kept = u16::from(w >> 8 >= threshold).wrapping_neg();
            }
            for ((x, out), kept) in x[done..].iter().zip(&mut out[done..]).zip(&kept[..words.len()]) {
                *out = bf16::from_bits(x.to_bits() & kept);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_keeps_the_same_elements() {
        let dropout = Dropout::new(Stream::new(&[7, 9], 3), 0.3);
        let x: Vec<bf16> = (1..=700).map(|i| bf16::from_f32(i as f32)).collect();
        let mut words = vec![!0; Kept::words(x.len())];
        let bits = Kept::new(&mut words);
        // SAFETY: there is room, and one thread.
        unsafe {
            dropout.decide(bits, 0, 96);
            dropout.decide(bits, 96, 604);
        }
        for (start, n) in [(0, 700), (1, 10), (64, 64), (130, 570), (699, 1)] {
            let mut floats: Vec<f32> = x[..n].iter().map(|x| x.to_f32()).collect();
            let mut decided = floats.clone();
            dropout.apply(start, &mut floats);
            dropout.with(bits).apply(start, &mut decided);
            assert_eq!(decided, floats, "{start} {n}");
            let mut kept = vec![bf16::NAN; n];
            dropout.copy_kept(start, &x[..n], &mut kept);
            let scaled: Vec<f32> = kept.iter().map(|x| x.to_f32() * dropout.keep()).collect();
            assert_eq!(scaled, floats, "{start} {n}");
            assert!(n == 1 || (floats.contains(&0.0) && floats.iter().any(|x| *x != 0.0)));
        }
    }
}
