//! Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

use crate::cpu::simd::simd;
use half::bf16;

/// Counters computed side by side.
const LANES: usize = 16;

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
        uniform(self.key, self.stream, start, out);
    }
}

/// Inverted dropout of a tensor whose elements are numbered from its first on.
#[derive(Clone, Copy)]
pub(crate) struct Dropout {
    stream: Stream,
    /// The smallest uniform number that keeps an element.
    threshold: f32,
    /// Factor of a kept element.
    keep: f32,
}

impl Dropout {
    /// Drops an element iff its uniform number is below `p`.
    pub(crate) fn new(stream: Stream, p: f64) -> Dropout {
        // Uniform numbers are multiples of 2^-24, so the next multiple decides as `p` does and is exact.
        let threshold = ((p * 16_777_216.0).ceil() / 16_777_216.0) as f32;
        Dropout { stream, threshold, keep: (1.0 / (1.0 - p)) as f32 }
    }

    /// Applies it to `x`, which stands at elements `start..` of the tensor.
    pub(crate) fn apply(&self, start: usize, x: &mut [f32]) {
        let mut u = [0.0; 512];
        let mut at = start as u64;
        for part in x.chunks_mut(512) {
            let u = &mut u[..part.len()];
            self.stream.uniform(at, u);
            mask(self.threshold, self.keep, u, part);
            at += part.len() as u64;
        }
    }

    /// Factor of elements that are kept.
    pub(crate) fn keep(&self) -> f32 {
        self.keep
    }

    /// Copies 16-bit floats that stand at elements `start..` of the tensor, with zeros for those that are dropped and without
    /// the factor of the others.
    pub(crate) fn copy_kept(&self, start: usize, x: &[bf16], out: &mut [bf16]) {
        let mut u = [0.0; 512];
        for (i, (x, out)) in x.chunks(512).zip(out.chunks_mut(512)).enumerate() {
            let u = &mut u[..x.len()];
            self.stream.uniform((start + 512 * i) as u64, u);
            select(self.threshold, u, x, out);
        }
    }
}

simd! {
    fn select(threshold: f32, u: &[f32], x: &[bf16], out: &mut [bf16]) {
        for ((x, out), u) in x.iter().zip(out).zip(u) {
            *out = if *u >= threshold { *x } else { bf16::ZERO };
        }
    }

    fn mask(threshold: f32, keep: f32, u: &[f32], x: &mut [f32]) {
        for (x, u) in x.iter_mut().zip(u) {
            *x = if *u >= threshold { *x * keep } else { 0.0 };
        }
    }

    fn uniform(key: [u32; 2], stream: u32, start: u64, out: &mut [f32]) {
        let mut done = 0;
        let mut words = [[0u32; LANES]; 4];
        while done < out.len() {
            let at = start + done as u64;
            let base = at / 4;
            block(key, stream, base, &mut words);
            let skip = (at % 4) as usize;
            let n = (4 * LANES - skip).min(out.len() - done);
            if skip == 0 && n == 4 * LANES {
                let out = &mut out[done..done + 4 * LANES];
                for lane in 0..LANES {
                    for w in 0..4 {
                        out[4 * lane + w] = unit(words[w][lane]);
                    }
                }
            } else {
                for (i, o) in out[done..done + n].iter_mut().enumerate() {
                    let j = i + skip;
                    *o = unit(words[j % 4][j / 4]);
                }
            }
            done += n;
        }
    }
}

#[inline(always)]
fn unit(word: u32) -> f32 {
    (word >> 8) as i32 as f32 * (1.0 / 16_777_216.0)
}

/// The words of counters `base..base + LANES`.
#[inline(always)]
fn block(key: [u32; 2], stream: u32, base: u64, words: &mut [[u32; LANES]; 4]) {
    let [c0, c1, c2, c3] = words;
    for l in 0..LANES {
        let c = base.wrapping_add(l as u64);
        c0[l] = c as u32;
        c1[l] = (c >> 32) as u32;
        c2[l] = stream;
        c3[l] = 0;
    }
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        for l in 0..LANES {
            let p0 = u64::from(c0[l]) * 0xD251_1F53;
            let p1 = u64::from(c2[l]) * 0xCD9E_8D57;
            c0[l] = (p1 >> 32) as u32 ^ c1[l] ^ k0;
            c1[l] = p1 as u32;
            c2[l] = (p0 >> 32) as u32 ^ c3[l] ^ k1;
            c3[l] = p0 as u32;
        }
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of Random123 (`kat_vectors`), with the counter words that a stream can produce.
    #[test]
    fn known_answers() {
        let mut words = [[0; LANES]; 4];
        block([0, 0], 0, 0, &mut words);
        assert_eq!(
            [0, 1, 2, 3].map(|w: usize| words[w][0]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
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
