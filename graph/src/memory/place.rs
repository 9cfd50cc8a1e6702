//! Offsets for ranges with known life spans: greedy best-fit, in several orders.

use super::Span;

/// The time axis is cut into at most this many pieces, each with the list of ranges alive in it.
const BUCKETS: usize = 512;

/// Sets the offset of every span; `steps` bounds their times. Returns the size of the arena and its lower bound.
pub(super) fn place(spans: &mut [Span], steps: usize) -> (usize, usize) {
    let lower_bound = lower_bound(spans, steps);
    let length = |s: &Span| s.last - s.first + 1;
    // Ties go by index, so the result is deterministic.
    let mut orders: Vec<Vec<usize>> = vec![(0..spans.len()).collect(); 4];
    orders[0].sort_by_key(|&i| (std::cmp::Reverse(spans[i].slot.bytes), spans[i].first, i));
    orders[1]
        .sort_by_key(|&i| (std::cmp::Reverse(spans[i].slot.bytes as u128 * length(&spans[i]) as u128), i));
    orders[2]
        .sort_by_key(|&i| (std::cmp::Reverse(length(&spans[i])), std::cmp::Reverse(spans[i].slot.bytes), i));
    orders[3].sort_by_key(|&i| (spans[i].first, std::cmp::Reverse(spans[i].slot.bytes), i));

    let mut best: Option<(usize, Vec<usize>)> = None;
    for order in orders {
        let found = place_in_order(spans, &order, steps);
        if best.as_ref().is_none_or(|b| found.0 < b.0) {
            best = Some(found);
        }
        if best.as_ref().is_some_and(|b| b.0 == lower_bound) {
            break;
        }
    }
    let (arena, offsets) = best.unwrap_or_default();
    spans.iter_mut().zip(offsets).for_each(|(s, offset)| s.slot.offset = offset);
    (arena, lower_bound)
}

/// The most bytes alive at one time.
fn lower_bound(spans: &[Span], steps: usize) -> usize {
    let mut change = vec![0i128; steps + 1];
    for s in spans {
        change[s.first] += s.slot.bytes as i128;
        change[s.last + 1] -= s.slot.bytes as i128;
    }
    let mut live = 0;
    let peak = change.into_iter().map(|c| {
        live += c;
        live
    });
    peak.max().unwrap_or(0) as usize
}

/// Size of the arena and the offset of each span when spans are placed in this order.
fn place_in_order(spans: &[Span], order: &[usize], steps: usize) -> (usize, Vec<usize>) {
    let width = steps.div_ceil(BUCKETS).max(1);
    let mut alive: Vec<Vec<usize>> = vec![vec![]; steps.div_ceil(width)];
    let mut offsets = vec![0; spans.len()];
    let mut seen = vec![usize::MAX; spans.len()];
    let mut neighbours: Vec<(usize, usize)> = vec![];
    let mut arena = 0;
    for &i in order {
        let span = &spans[i];
        let buckets = span.first / width..=span.last / width;
        neighbours.clear();
        for &k in alive[buckets.clone()].iter().flatten() {
            let other = &spans[k];
            if seen[k] != i && other.first <= span.last && span.first <= other.last {
                seen[k] = i;
                neighbours.push((offsets[k], offsets[k] + other.slot.bytes));
            }
        }
        neighbours.sort_unstable();
        offsets[i] = best_gap(&neighbours, span.slot.bytes);
        arena = arena.max(offsets[i] + span.slot.bytes);
        alive[buckets].iter_mut().for_each(|b| b.push(i));
    }
    (arena, offsets)
}

/// The start of the smallest gap between taken ranges (sorted) that fits, or the end of the last.
fn best_gap(taken: &[(usize, usize)], bytes: usize) -> usize {
    let mut best: Option<(usize, usize)> = None;
    let mut end = 0;
    for &(from, to) in taken {
        if from >= end + bytes && best.is_none_or(|(size, _)| from - end < size) {
            best = Some((from - end, end));
        }
        end = end.max(to);
    }
    best.map_or(end, |(_, offset)| offset)
}
