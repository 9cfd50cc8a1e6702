//! How texts are put together: rows of one padded length, a power of two of them at a time.

/// Padded tokens of a batch: enough for matrix products to be fast, few enough to stay near the caches.
const MAX_TOKENS: usize = 2048;

/// A batch: its shape, and which texts are in it, by position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) seq: usize,
    pub(super) rows: usize,
    pub(super) members: Vec<usize>,
}

/// The padded length of a text: steps of 16, from 128 on of 32, from 256 on of 64; at most `longest`, which holds every text.
pub(super) fn padded(tokens: usize, longest: usize) -> usize {
    let step = match tokens {
        0..=128 => 16,
        129..=256 => 32,
        _ => 64,
    };
    tokens.max(1).next_multiple_of(step).min(longest)
}

/// The lengths that texts of at most `longest` tokens are padded to.
pub(super) fn lengths(longest: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (1..=longest).map(|n| padded(n, longest)).collect();
    all.dedup();
    all
}

/// Most rows of a batch of this length.
pub(super) fn most_rows(seq: usize) -> usize {
    let most = (MAX_TOKENS / seq).max(1);
    // The largest power of two that is not above it.
    1 << most.ilog2()
}

/// Batches of texts of these lengths, longest first; what is left of a length goes into the smallest batch that holds it.
pub(super) fn batches(lengths: &[usize], longest: usize) -> Vec<Batch> {
    let mut order: Vec<(usize, usize)> =
        lengths.iter().enumerate().map(|(i, &n)| (padded(n, longest), i)).collect();
    order.sort_by_key(|&(seq, i)| (std::cmp::Reverse(seq), i));
    let mut batches = Vec::new();
    for group in order.chunk_by(|a, b| a.0 == b.0) {
        let seq = group[0].0;
        for members in group.chunks(most_rows(seq)) {
            let rows = members.len().next_power_of_two();
            batches.push(Batch { seq, rows, members: members.iter().map(|&(_, i)| i).collect() });
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_in_one_batch_that_holds_it() {
        let lengths: Vec<usize> = (0..700).map(|i| 1 + i * 7919 % 512).collect();
        let batches = batches(&lengths, 512);
        let mut seen: Vec<usize> = batches.iter().flat_map(|b| b.members.clone()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..700).collect::<Vec<_>>());
        for b in &batches {
            assert!(b.members.iter().all(|&i| lengths[i] <= b.seq), "{b:?}");
            assert!(b.members.len() <= b.rows && b.rows <= most_rows(b.seq) && b.rows * b.seq <= MAX_TOKENS);
        }
        assert!(batches.windows(2).all(|w| w[0].seq >= w[1].seq));
    }

    #[test]
    fn lengths_are_few() {
        assert_eq!(lengths(512).len(), 16);
        assert_eq!(lengths(40), [16, 32, 40]);
        assert_eq!([1, 16, 17, 129, 257, 500].map(|n| padded(n, 512)), [16, 16, 32, 160, 320, 512]);
        assert_eq!(padded(5, 10), 10);
        assert_eq!([16, 48, 512, 4096].map(most_rows), [128, 32, 4, 1]);
    }
}
