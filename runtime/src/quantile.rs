//! Exact quantiles of many non-negative floats without sorting or copying them.

/// The value below which a share `q` (0 to 1) of all elements lies: the element of rank `ceil(q·n) - 1` in ascending
/// order (at least the smallest). Elements must not be negative or NaN. `None` if there are none.
///
/// Non-negative floats order like their bits, so two histogram passes over the upper and the lower 16 bits find it.
pub fn quantile(parts: &[&[f32]], q: f64) -> Option<f32> {
    let n: usize = parts.iter().map(|p| p.len()).sum();
    if n == 0 {
        return None;
    }
    let rank = ((q * n as f64).ceil() as usize).clamp(1, n) - 1;
    let bits = || parts.iter().flat_map(|p| p.iter()).map(|v| v.max(0.0).to_bits());
    let mut upper = vec![0usize; 1 << 16];
    bits().for_each(|b| upper[(b >> 16) as usize] += 1);
    let (high, before) = locate(&upper, rank)?;
    let mut lower = vec![0usize; 1 << 16];
    bits().filter(|b| (b >> 16) as usize == high).for_each(|b| lower[(b & 0xffff) as usize] += 1);
    let (low, _) = locate(&lower, rank - before)?;
    Some(f32::from_bits(((high as u32) << 16) | low as u32))
}

/// The bin that holds the element of this rank, and how many elements lie in the bins before it.
fn locate(histogram: &[usize], rank: usize) -> Option<(usize, usize)> {
    let mut before = 0;
    for (bin, &count) in histogram.iter().enumerate() {
        if rank < before + count {
            return Some((bin, before));
        }
        before += count;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn agrees_with_sorting() {
        let values: Vec<f32> =
            (0..1000u32).map(|i| (i.wrapping_mul(2_654_435_761) % 1009) as f32 * 1e-4).collect();
        let mut sorted = values.clone();
        sorted.sort_by(f32::total_cmp);
        for q in [0.0, 0.001, 0.25, 0.5, 0.9, 0.99, 1.0] {
            let rank = ((q * 1000.0f64).ceil() as usize).clamp(1, 1000) - 1;
            assert_eq!(quantile(&[&values[..300], &values[300..]], q), Some(sorted[rank]), "q = {q}");
        }
        assert_eq!(quantile(&[], 0.5), None);
    }
}
