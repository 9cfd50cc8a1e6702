//! Inverted dropout whose decisions are numbers of elements: made as they are needed, or once for all who need them.

#[cfg(target_arch = "x86_64")]
use crate::cpu::dropout_avx512 as avx512;
use crate::cpu::par::Shared;
use crate::cpu::philox::{Stream, runs};
#[cfg(target_arch = "x86_64")]
use crate::cpu::simd::level;
use crate::cpu::simd::simd;
use half::bf16;
use std::ops::Range;

/// Elements that a word decides.
pub(crate) const BITS: usize = 32;

/// Elements that are decided at once where nobody else needs the decisions.
const RUN: usize = 1024;

/// Inverted dropout of a tensor whose elements are numbered from its first on.
#[derive(Clone, Copy)]
pub(crate) struct Dropout {
    stream: Stream,
    /// The largest uniform number that drops an element, times 2^16.
    last: u16,
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
    pub(crate) const fn words(n: usize) -> usize {
        n.div_ceil(BITS) + 2
    }

    /// Bits in `memory`, which has [`Kept::words`] elements and is to be written by [`Dropout::decide`].
    pub(crate) fn new(memory: &mut [u32]) -> Kept {
        Kept(Shared::new(memory))
    }

    /// Where [`Kept::at`] reads.
    #[inline(always)]
    pub(crate) fn address(self, element: usize) -> *const u8 {
        // SAFETY: there are two words at least.
        unsafe { self.0.at(0) }.cast_const().cast::<u8>().wrapping_add(element / 8)
    }

    /// Bits of elements from one on, 57 at least, the first lowest; those beyond the last element have no meaning.
    ///
    /// # Safety
    /// The first element is one, and its bits have been written.
    #[inline(always)]
    pub(crate) unsafe fn at(self, element: usize) -> u64 {
        // SAFETY: by contract there are two words after that of the last element.
        let bytes = unsafe { self.address(element).cast::<u64>().read_unaligned() };
        u64::from_le(bytes) >> (element % 8)
    }
}

impl Dropout {
    /// Drops an element iff its uniform number is below `p`, which is above 0.
    pub(crate) fn new(stream: Stream, p: f64) -> Dropout {
        // Uniform numbers are multiples of 2^-16, so the next multiple decides as `p` does.
        let threshold = (p * 65_536.0).ceil() as u32;
        Dropout { stream, last: (threshold - 1) as u16, keep: (1.0 / (1.0 - p)) as f32, kept: None }
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
        decide(self.stream, start, self.last, unsafe { kept.0.slice(start / BITS, n.div_ceil(BITS)) });
    }

    /// Makes the decisions of elements `start..start + n`, run by run, and calls `f` with them: which elements a run has, counted
    /// from `start`, and the number of the first of them among these decisions.
    #[inline(always)]
    fn runs(&self, start: usize, n: usize, mut f: impl FnMut(Range<usize>, Kept, usize)) {
        let mut words = [0; Kept::words(RUN + BITS)];
        for first in (0..n).step_by(RUN) {
            let (run, skip) = (first..n.min(first + RUN), (start + first) % BITS);
            let needed = (skip + run.len()).div_ceil(BITS);
            decide(self.stream, start + first - skip, self.last, &mut words[..needed]);
            f(run, Kept::new(&mut words), skip);
        }
    }

    /// The decisions, if they have been made.
    pub(crate) fn kept(&self) -> Option<Kept> {
        self.kept
    }

    /// Applies it to `x`, which stands at elements `start..` of the tensor.
    pub(crate) fn apply(&self, start: usize, x: &mut [f32]) {
        match self.kept {
            // SAFETY: decisions have been made for all elements.
            Some(kept) => unsafe { select_floats(kept, start, self.keep, x) },
            // SAFETY: they have for these.
            None => self.runs(start, x.len(), |run, kept, first| unsafe {
                select_floats(kept, first, self.keep, &mut x[run]);
            }),
        }
    }

    /// Factor of elements that are kept.
    pub(crate) fn keep(&self) -> f32 {
        self.keep
    }

    /// Copies 16-bit floats that stand at elements `start..` of the tensor, with zeros for those that are dropped and without
    /// the factor of the others.
    pub(crate) fn copy_kept(&self, start: usize, x: &[bf16], out: &mut [bf16]) {
        self.runs(start, x.len(), |run, kept, first| {
            let (x, out) = (&x[run.clone()], &mut out[run]);
            // SAFETY: decisions have been made for these elements.
            unsafe { copy(kept, first, x, out) }
        });
    }
}

/// The decisions of elements from `start` on, a multiple of 8: a bit each.
fn decide(stream: Stream, start: usize, last: u16, out: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if level().has_avx512() {
        // SAFETY: the CPU has these instructions.
        return unsafe { avx512::decide(stream, start as u64 / 8, last, out) };
    }
    decide_by_halves(stream, start as u64, last, out);
}

/// `x` with zeros for elements that are dropped, the first of which has a number among the decisions.
///
/// # Safety
/// The decisions have been made.
unsafe fn copy(kept: Kept, first: usize, x: &[bf16], out: &mut [bf16]) {
    #[cfg(target_arch = "x86_64")]
    if level().has_avx512() {
        // SAFETY: by contract, and the CPU has these instructions.
        return unsafe { avx512::copy(kept, first, x, out) };
    }
    for (i, (x, out)) in x.chunks(BITS).zip(out.chunks_mut(BITS)).enumerate() {
        // SAFETY: by contract.
        let bits = unsafe { kept.at(first + i * BITS) } as u32;
        for (l, (x, out)) in x.iter().zip(out).enumerate() {
            *out = if bits >> l & 1 == 1 { *x } else { bf16::ZERO };
        }
    }
}

/// Applies dropout to `x`, the first element of which has a number among the decisions.
///
/// # Safety
/// The decisions have been made.
unsafe fn select_floats(kept: Kept, first: usize, keep: f32, x: &mut [f32]) {
    simd! {
        fn select(kept: Kept, first: usize, keep: f32, x: &mut [f32]) {
            for (i, x) in x.chunks_mut(BITS).enumerate() {
                // SAFETY: by the contract of the function around this one.
                let bits = unsafe { kept.at(first + i * BITS) } as u32;
                for (l, x) in (0..).zip(x) {
                    *x = if bits >> l & 1 == 1 { *x * keep } else { 0.0 };
                }
            }
        }
    }
    select(kept, first, keep, x);
}

simd! {
    fn decide_by_halves(stream: Stream, start: u64, last: u16, out: &mut [u32]) {
        runs(stream, start, out.len() * BITS, |done, halves| {
            for (out, halves) in out[done / BITS..].iter_mut().zip(halves.chunks_exact(BITS)) {
                *out = (0..).zip(halves).fold(0, |bits, (l, h)| bits | u32::from(*h > last) << l);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the instructions, decisions are those of the interpreter's numbers: at the start, where the low word of a counter
    /// ends, and for thresholds that drop hardly anything and everything.
    #[test]
    fn decisions_are_those_of_the_interpreter() {
        let stream = Stream::new(&[7, -9], 3);
        let numbers = |block: u64| kfc_graph::interp::uniform_block([7, -9i32 as u32], 3, block);
        for (start, words) in [(0, 1), (64, 8), (32, 19), ((1 << 35) - 64, 9)] {
            for last in [0, 1, 6553, 40_000, u16::MAX] {
                let want: Vec<u32> = (0..words)
                    .map(|w| {
                        let bits = (0..BITS).map(|l| {
                            let element = (start + w * BITS + l) as u64;
                            numbers(element / 8)[(element % 8) as usize] * 65_536.0 > f32::from(last)
                        });
                        bits.rev().fold(0, |word, bit| word << 1 | u32::from(bit))
                    })
                    .collect();
                let mut got = vec![0; words];
                decide(stream, start, last, &mut got);
                assert_eq!(got, want, "{start} {last}");
                decide_by_halves(stream, start as u64, last, &mut got);
                assert_eq!(got, want, "{start} {last}, loops");
            }
        }
    }

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
