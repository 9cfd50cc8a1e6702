//! Philox4x32-10, the counter-based random generator of the project.
//!
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), and Random123.
//! This is the only implementation; kernels on every device reproduce it bit for bit, with these constants.

/// Factors of the first and the third word of a counter in each round.
pub const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What the key grows by from round to round.
pub const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// Rounds.
pub const ROUNDS: usize = 10;

/// Ten rounds of Philox4x32: four random words for this counter and key.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let p0 = u64::from(MULTIPLIER[0]) * u64::from(counter[0]);
        let p1 = u64::from(MULTIPLIER[1]) * u64::from(counter[2]);
        counter = [
            (p1 >> 32) as u32 ^ counter[1] ^ key[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ counter[3] ^ key[1],
            p0 as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// The eight uniform values in `[0, 1)` of elements `8 * block .. 8 * block + 8` of a stream.
///
/// Element `i` of stream `s` under seed `(k0, k1)` is half `i % 2`, the lower one first, of word `i / 2 % 4` of the counter
/// `(i/8 low, i/8 high, s, 0)` with key `(k0, k1)`, times 2^-16. Dropout needs no finer numbers, and half a word an element
/// is half the work of a word.
pub fn uniform_block(seed: [u32; 2], stream: u32, block: u64) -> [f32; 8] {
    let words = philox4x32([block as u32, (block >> 32) as u32, stream, 0], seed);
    std::array::from_fn(|i| ((words[i / 2] >> (16 * (i % 2))) & 0xffff) as f32 * (1.0 / 65_536.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known-answer vectors of Random123 (`kat_vectors`, philox4x32 10).
    #[test]
    fn known_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32(counter, key), expected);
        }
    }

    #[test]
    fn uniform_numbers_are_the_halves_of_words() {
        let u = uniform_block([0, 0], 0, 0);
        let halves: [u16; 8] = [0xe8d5, 0x6627, 0xc58d, 0xe169, 0xac4c, 0xbc57, 0xdbd8, 0x9b00];
        assert_eq!(u, halves.map(|h| f32::from(h) / 65_536.0));
        assert_ne!(uniform_block([0, 0], 1, 0), u);
        assert_ne!(uniform_block([0, 0], 0, 1 << 32), u);
    }
}
