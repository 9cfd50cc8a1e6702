//! Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

use crate::cpu::simd::simd;
use kfc_graph::interp::philox::{MULTIPLIER, ROUNDS, WEYL};

/// Counters computed side by side.
const LANES: usize = 16;

/// Words of as many counters, and the elements that these make.
const WORDS: usize = 4 * LANES;
const ELEMENTS: usize = 2 * WORDS;

/// A stream of uniform numbers: element `i` depends on the key, the stream and `i` only.
#[derive(Clone, Copy)]
pub(crate) struct Stream {
    pub(crate) key: [u32; 2],
    pub(crate) stream: u32,
}

impl Stream {
    pub(crate) fn new(seed: &[i32], stream: u32) -> Stream {
        Stream { key: [seed[0] as u32, seed[1] as u32], stream }
    }

    /// Uniform numbers in [0, 1) of elements `start..start + out.len()`.
    pub(crate) fn uniform(self, start: u64, out: &mut [f32]) {
        uniform(self, start, out);
    }
}

simd! {
    fn uniform(stream: Stream, start: u64, out: &mut [f32]) {
        runs(stream, start, out.len(), |done, halves| {
            out[done..].iter_mut().zip(halves).for_each(|(o, h)| *o = f32::from(*h) * (1.0 / 65_536.0));
        });
    }
}

/// Calls `f` with the halves of words of elements `start..start + n`, run by run: where a run begins, and its halves.
#[inline(always)]
pub(crate) fn runs(stream: Stream, start: u64, n: usize, mut f: impl FnMut(usize, &[u16])) {
    let mut pairs = [0; WORDS / 2];
    let mut done = 0;
    while done < n {
        let at = start + done as u64;
        block(stream, at / 8, &mut pairs);
        let halves: &[u16; ELEMENTS] = bytemuck::cast_ref(&pairs);
        let skip = (at % 8) as usize;
        let end = ELEMENTS.min(skip + n - done);
        // Runs of constant length become straight code.
        if (skip, end) == (0, ELEMENTS) {
            f(done, halves)
        } else {
            f(done, &halves[skip..end])
        }
        done += end - skip;
    }
}

/// The words of counters `base..base + LANES`, those of a counter one after the other, two by two.
///
/// A word stands in the low half of 64 bits, where products of 32 bits have their own low half; what is above is not read.
#[inline(always)]
fn block(stream: Stream, base: u64, pairs: &mut [u64; WORDS / 2]) {
    const LOW: u64 = 0xffff_ffff;
    let Stream { key, stream } = stream;
    let mut c0: [u64; LANES] = std::array::from_fn(|l| base.wrapping_add(l as u64));
    let mut c1 = c0.map(|c| c >> 32);
    let (mut c2, mut c3) = ([u64::from(stream); LANES], [0u64; LANES]);
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        for l in 0..LANES {
            let p0 = (c0[l] & LOW) * u64::from(MULTIPLIER[0]);
            let p1 = (c2[l] & LOW) * u64::from(MULTIPLIER[1]);
            c0[l] = (p1 >> 32) ^ c1[l] ^ u64::from(k0);
            c1[l] = p1;
            c2[l] = (p0 >> 32) ^ c3[l] ^ u64::from(k1);
            c3[l] = p0;
        }
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    for l in 0..LANES {
        pairs[2 * l] = (c0[l] & LOW) | c1[l] << 32;
        pairs[2 * l + 1] = (c2[l] & LOW) | c3[l] << 32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of Random123 (`kat_vectors`), with the counter words that a stream can produce.
    #[test]
    fn known_answers() {
        let mut pairs = [0; WORDS / 2];
        block(Stream { key: [0, 0], stream: 0 }, 0, &mut pairs);
        let words: &[u32; WORDS] = bytemuck::cast_ref(&pairs);
        assert_eq!(words[..4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    }

    #[test]
    fn any_start_gives_the_same_elements() {
        let s = Stream { key: [7, 9], stream: 3 };
        let mut all = vec![0.0; 1000];
        s.uniform(0, &mut all);
        assert!(all.iter().all(|u| (0.0..1.0).contains(u)));
        for (start, n) in [(1, 10), (3, 900), (64, 64), (130, 1)] {
            let mut part = vec![0.0; n];
            s.uniform(start as u64, &mut part);
            assert_eq!(part, all[start..start + n]);
        }
    }
}
