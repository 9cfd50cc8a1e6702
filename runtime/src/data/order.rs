//! The order of rows: a permutation that depends on (seed, stream, epoch, length) alone.
//!
//! The generator is SplitMix64 (Steele, Lea, Flood 2014) read as a counter: draw `k` is `mix(key + k·γ)` with
//! `key = mix(mix(mix(seed) ^ stream) ^ epoch)` and γ = 0x9E3779B97F4A7C15. The permutation is Fisher and Yates's: for
//! `i` from `n-1` down to 1, swap element `i` with element `⌊draw · (i+1) / 2⁶⁴⌋`.

const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// What SplitMix64 draws in state `value`.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(GAMMA);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Which rows a permutation orders: each stream has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The training rows.
    Main = 1,
    /// The rows of general text.
    General = 2,
    /// The blocks of streamed files.
    Blocks = 3,
    /// The rows of a group of blocks.
    Group = 4,
}

/// A permutation of `0..n`.
pub fn permutation(n: usize, seed: u64, stream: Stream, epoch: u64) -> Vec<u32> {
    let key = mix(mix(mix(seed) ^ stream as u64) ^ epoch);
    let mut order: Vec<u32> = (0..n as u32).collect();
    let mut counter = key;
    for i in (1..n).rev() {
        let j = (u128::from(mix(counter)) * (i as u128 + 1)) >> 64;
        counter = counter.wrapping_add(GAMMA);
        order.swap(i, j as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_split_mix() {
        let draws = [1_234_567, 1_234_567_u64.wrapping_add(GAMMA)].map(mix);
        assert_eq!(draws, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn a_permutation_and_no_other() {
        for n in [0, 1, 2, 17, 1000] {
            let mut order = permutation(n, 42, Stream::Main, 3);
            assert_eq!(order, permutation(n, 42, Stream::Main, 3));
            order.sort_unstable();
            assert_eq!(order, (0..n as u32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn seed_stream_and_epoch_matter() {
        let base = permutation(50, 1, Stream::Main, 0);
        for other in [(2, Stream::Main, 0), (1, Stream::General, 0), (1, Stream::Main, 1)] {
            assert_ne!(base, permutation(50, other.0, other.1, other.2));
        }
    }

    /// A resumed run must see the order of the run that it resumes, so the generator may not change unnoticed.
    #[test]
    fn the_order_is_pinned() {
        assert_eq!(permutation(10, 0, Stream::Main, 0), [3, 5, 9, 0, 7, 4, 1, 6, 2, 8]);
    }

    /// Each element stands at each place about equally often.
    #[test]
    fn no_place_is_preferred() {
        let mut counts = [[0u32; 5]; 5];
        for epoch in 0..5000 {
            for (place, &element) in permutation(5, 9, Stream::Main, epoch).iter().enumerate() {
                counts[place][element as usize] += 1;
            }
        }
        assert!(counts.iter().flatten().all(|&c| (850..1150).contains(&c)), "{counts:?}");
    }
}
