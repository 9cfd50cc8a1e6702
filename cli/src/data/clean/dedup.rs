//! Copies and near copies of rows that were kept before.
//!
//! Two texts are near copies if the Jaccard similarity of their shingles reaches a threshold. Shingles are runs of
//! [`SHINGLE`] letters and digits, lower case, all else left out: characters and not words, so that Chinese needs no word
//! breaking. The similarity is estimated by MinHash (Broder, "On the resemblance and containment of documents", 1997) with
//! [`HASHES`] hash functions, of which 16 bits are kept (Li and König, "b-Bit minwise hashing", 2010): the standard error is
//! `sqrt(s (1 - s) / 128)`, 0.035 at 0.8. Candidates come from bands of equal hashes, chosen so that a pair at the threshold
//! is found with a probability of at least 0.99 ([`Bands`]). A kept row takes 256 bytes and 23 to 43
//! for each band, depending on how full the table is.

use kfc_runtime::files::xxh64;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Letters and digits of a shingle.
pub const SHINGLE: usize = 5;

/// Hash functions.
pub const HASHES: usize = 128;

/// Most rows with equal bands that a row is compared with, the newest first.
const CANDIDATES: usize = 256;

/// The MinHash of a text.
pub type Signature = [u16; HASHES];

/// Factors and summands of the hash functions: odd multiples of a shingle's hash, modulo 2^32.
const fn functions() -> ([u32; HASHES], [u32; HASHES]) {
    let (mut factors, mut summands) = ([0; HASHES], [0; HASHES]);
    let mut state = 0u64;
    let mut i = 0;
    while i < HASHES {
        let random = mix(state.wrapping_add(0x9E37_79B9_7F4A_7C15));
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        factors[i] = random as u32 | 1;
        summands[i] = (random >> 32) as u32;
        i += 1;
    }
    (factors, summands)
}

static FUNCTIONS: ([u32; HASHES], [u32; HASHES]) = functions();

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The MinHash of a text; `None` if it has no letters and digits.
pub fn signature(text: &str) -> Option<Signature> {
    let (factors, summands) = &FUNCTIONS;
    let mut least = [u32::MAX; HASHES];
    let mut add = |shingle: u64| {
        let hash = (mix(shingle) >> 32) as u32;
        for ((least, factor), summand) in least.iter_mut().zip(factors).zip(summands) {
            *least = (*least).min(hash.wrapping_mul(*factor).wrapping_add(*summand));
        }
    };
    // The last characters, as a polynomial from which the oldest can be taken away again.
    const BASE: u64 = 0x9E37_79B9_7F4A_7C15;
    let oldest = (0..SHINGLE).fold(1u64, |power, _| power.wrapping_mul(BASE));
    let (mut window, mut at, mut count, mut rolling) = ([0u64; SHINGLE], 0, 0usize, 0u64);
    for c in text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase) {
        let new = u64::from(c) + 1;
        rolling = rolling.wrapping_mul(BASE).wrapping_add(new).wrapping_sub(oldest.wrapping_mul(window[at]));
        window[at] = new;
        at = (at + 1) % SHINGLE;
        count += 1;
        if count >= SHINGLE {
            add(rolling);
        }
    }
    if count > 0 && count < SHINGLE {
        add(rolling);
    }
    (count > 0).then(|| least.map(|hash| (hash ^ (hash >> 16)) as u16))
}

/// The similarity that two signatures tell.
pub fn similarity(a: &Signature, b: &Signature) -> f64 {
    let equal = a.iter().zip(b).filter(|(a, b)| a == b).count();
    equal as f64 / HASHES as f64
}

/// How signatures are cut into bands: rows that agree in all hashes of one band are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bands {
    /// Bands of a signature.
    pub bands: usize,
    /// Hashes of a band.
    pub rows: usize,
}

impl Bands {
    /// The longest bands that find a pair at `threshold` with a probability of at least 0.99.
    pub fn at(threshold: f64) -> Bands {
        let all = (1..=HASHES).map(|rows| Bands { bands: HASHES / rows, rows });
        all.rev().find(|bands| bands.recall(threshold) >= 0.99).unwrap_or(Bands { bands: HASHES, rows: 1 })
    }

    /// The probability that a pair of this similarity is compared.
    pub fn recall(self, similarity: f64) -> f64 {
        1.0 - (1.0 - similarity.powi(self.rows as i32)).powi(self.bands as i32)
    }
}

/// Keys that are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh64(bytes);
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }

    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

type Keyed<K, V> = HashMap<K, V, BuildHasherDefault<Identity>>;

/// No row.
const NONE: u32 = u32::MAX;

/// What a row is a copy of: the number of a kept row, from 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CopyOf {
    /// The same text.
    Exact(u32),
    /// A text of this similarity.
    Near(u32, f64),
}

/// What a text is compared by.
#[derive(Clone, Debug)]
pub struct Print {
    exact: u128,
    signature: Option<Box<Signature>>,
}

/// The rows that were kept.
pub struct Kept {
    threshold: Option<f64>,
    bands: Bands,
    exact: Keyed<u128, u32>,
    signatures: Vec<Signature>,
    /// The row of each signature.
    numbers: Vec<u32>,
    /// By band and hash, the newest signature; and for each signature the one before it in each of its bands.
    newest: Keyed<u64, u32>,
    before: Vec<u32>,
    count: u32,
}

impl Kept {
    /// No rows yet. Without a threshold only exact copies are found.
    pub fn new(threshold: Option<f64>) -> Kept {
        Kept {
            threshold,
            bands: Bands::at(threshold.unwrap_or(1.0)),
            exact: Keyed::default(),
            signatures: Vec::new(),
            numbers: Vec::new(),
            newest: Keyed::default(),
            before: Vec::new(),
            count: 0,
        }
    }

    /// What [`Kept::add`] needs of a text.
    pub fn print(&self, text: &str) -> Print {
        let mut second = kfc_runtime::files::Xxh64::new();
        second.update(&[1]);
        second.update(text.as_bytes());
        let exact = u128::from(second.finish()) << 64 | u128::from(xxh64(text.as_bytes()));
        let signature = self.threshold.and_then(|_| signature(text)).map(Box::new);
        Print { exact, signature }
    }

    /// Keeps a row that is no copy, and else says of what.
    pub fn add(&mut self, print: &Print) -> Option<CopyOf> {
        if let Some(&number) = self.exact.get(&print.exact) {
            return Some(CopyOf::Exact(number));
        }
        if let Some(copy) = print.signature.as_deref().and_then(|signature| self.near(signature)) {
            return Some(copy);
        }
        self.insert(print);
        None
    }

    /// Keeps a row, whatever it is.
    pub fn insert(&mut self, print: &Print) {
        self.exact.entry(print.exact).or_insert(self.count);
        if let Some(signature) = print.signature.as_deref() {
            let own = self.signatures.len() as u32;
            for band in 0..self.bands.bands {
                let key = self.key(signature, band);
                self.before.push(self.newest.insert(key, own).unwrap_or(NONE));
            }
            self.signatures.push(*signature);
            self.numbers.push(self.count);
        }
        self.count += 1;
    }

    /// The most similar of the rows that share a band, if it reaches the threshold.
    fn near(&self, signature: &Signature) -> Option<CopyOf> {
        let threshold = self.threshold?;
        let mut best: Option<(u32, f64)> = None;
        for band in 0..self.bands.bands {
            let mut candidate = self.newest.get(&self.key(signature, band)).copied().unwrap_or(NONE);
            for _ in 0..CANDIDATES {
                let Some(other) = self.signatures.get(candidate as usize) else { break };
                let similar = similarity(signature, other);
                if similar >= threshold && best.is_none_or(|(_, most)| similar > most) {
                    best = Some((self.numbers[candidate as usize], similar));
                }
                candidate = self.before[candidate as usize * self.bands.bands + band];
            }
        }
        best.map(|(number, similar)| CopyOf::Near(number, similar))
    }

    fn key(&self, signature: &Signature, band: usize) -> u64 {
        let rows = &signature[band * self.bands.rows..(band + 1) * self.bands.rows];
        rows.iter().fold(mix(band as u64 + 1), |key, &hash| mix(key ^ u64::from(hash)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::HashSet;

    /// The similarity that signatures estimate.
    fn jaccard(a: &str, b: &str) -> f64 {
        let shingles = |text: &str| -> HashSet<Vec<char>> {
            let chars: Vec<char> =
                text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
            chars.windows(SHINGLE).map(<[char]>::to_vec).collect()
        };
        let (a, b) = (shingles(a), shingles(b));
        a.intersection(&b).count() as f64 / a.union(&b).count() as f64
    }

    /// Text `seed` of `length` random words of which the first `same` are those of text 0.
    fn text(seed: u64, same: usize, length: usize) -> String {
        like(0, seed, same, length)
    }

    /// Text `seed` of `length` random words of which the first `same` are those of text `other`.
    fn like(other: u64, seed: u64, same: usize, length: usize) -> String {
        let word = |i: usize| {
            let random = mix(i as u64 * 1000 + if i < same { other } else { seed });
            (0..4).map(|k| char::from(b'a' + ((random >> (8 * k)) % 26) as u8)).collect::<String>()
        };
        (0..length).map(word).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn estimates_are_within_their_error() {
        let mut off = Vec::new();
        for seed in 1..60 {
            // A pair of texts of its own each time, so that errors are independent.
            let other = 100 + seed;
            let (a, b) = (like(other, other, 0, 300), like(other, seed, 5 * seed as usize, 300));
            let true_value = jaccard(&a, &b);
            let error = similarity(&signature(&a).unwrap(), &signature(&b).unwrap()) - true_value;
            let sigma = (true_value * (1.0 - true_value) / HASHES as f64).sqrt();
            assert!(error.abs() < 4.0 * sigma + 0.01, "{true_value}: off by {error}");
            off.push(error);
        }
        let mean = off.iter().sum::<f64>() / off.len() as f64;
        assert!(mean.abs() < 0.015, "biased by {mean}");
    }

    #[test]
    fn bands_find_what_they_promise() {
        assert_eq!(Bands::at(0.8), Bands { bands: 21, rows: 6 });
        for threshold in [0.05, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0] {
            let bands = Bands::at(threshold);
            assert!(
                bands.recall(threshold) >= 0.99 && bands.bands * bands.rows <= HASHES,
                "{threshold}: {bands:?}"
            );
        }
    }

    #[test]
    fn copies() {
        let mut kept = Kept::new(Some(0.8));
        let base = text(0, 0, 200);
        let add = |kept: &mut Kept, text: &str| {
            let print = kept.print(text);
            kept.add(&print)
        };
        assert_eq!(add(&mut kept, "- - -"), None);
        assert_eq!(add(&mut kept, &base), None);
        assert_eq!(add(&mut kept, &base), Some(CopyOf::Exact(1)));
        assert_eq!(add(&mut kept, "- - -"), Some(CopyOf::Exact(0)));
        assert_eq!(add(&mut kept, &base.to_uppercase().replace(' ', ", ")), Some(CopyOf::Near(1, 1.0)));
        assert!(matches!(add(&mut kept, &text(7, 190, 200)), Some(CopyOf::Near(1, s)) if s > 0.8));
        assert_eq!(add(&mut kept, &text(7, 100, 200)), None);
        assert_eq!(add(&mut Kept::new(None), &base.to_uppercase()), None);
    }

    #[test]
    fn chinese_copies() {
        let mut kept = Kept::new(Some(0.8));
        let base = "缓存保存最近使用过的数据的副本，它的速度比内存快得多，但是容量要小得多，价格也更高，因此计算机同时使用两者。";
        for (text, copy) in [
            (base.to_owned(), false),
            (base.replace('，', ", "), true),
            (base.replace("因此计算机同时使用两者", "因此计算机同时用两者"), true),
            ("内存保存正在运行的程序，它断电以后就会丢失，所以重要的文件应当写到硬盘上，并且定期备份到别处。".to_owned(), false),
        ] {
            let print = kept.print(&text);
            assert_eq!(kept.add(&print).is_some(), copy, "{text}");
        }
    }
}
