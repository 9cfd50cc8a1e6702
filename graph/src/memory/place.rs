//! Offsets for ranges with known life spans: best-fit in order of time, then greedily in orders of size and duration,
//! then a bounded search that moves what lies on top of the arena forward in the order.

use super::Span;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// The time axis is cut into at most this many pieces, so that a range is compared with its neighbours only.
const BUCKETS: usize = 512;

/// Greedy placing looks at every pair of ranges that live together; above this many pairs only the sweep is tried.
const MAX_PAIRS: usize = 20_000_000;

/// Pairs that the search may look at, and rounds it may take.
const SEARCH_PAIRS: usize = 100_000_000;
const SEARCH_ROUNDS: usize = 60;

/// An arena this close to its lower bound (one part in so many) is not improved further.
const CLOSE: usize = 200;

/// A size of the arena and the offsets that give it.
type Placing = (usize, Vec<usize>);

/// Sets the offset of every span; `steps` bounds their times. Returns the size of the arena and its lower bound.
pub(super) fn place(spans: &mut [Span], steps: usize) -> (usize, usize) {
    let lower_bound = live_bytes(spans, steps);
    let enough = lower_bound + lower_bound / CLOSE;
    let mut best = sweep(spans);
    let pairs = spans.len() * peak(spans, steps, |_| 1);
    if best.0 > enough && pairs <= MAX_PAIRS {
        for order in orders(spans) {
            for fit in [Fit::Best, Fit::Lowest] {
                let found = place_in_order(spans, &order, steps, fit);
                if found.0 < best.0 {
                    best = found;
                }
            }
            if best.0 <= enough {
                break;
            }
        }
        let rounds = (SEARCH_PAIRS / pairs.max(1)).min(SEARCH_ROUNDS);
        best = search(spans, steps, best, enough, rounds);
    }
    let (arena, offsets) = best;
    spans.iter_mut().zip(offsets).for_each(|(s, offset)| s.slot.offset = offset);
    (arena, lower_bound)
}

/// The most bytes in use at one time.
pub(super) fn live_bytes(spans: &[Span], steps: usize) -> usize {
    peak(spans, steps, |s| s.slot.bytes)
}

/// Which gap a range is put into.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// The smallest that holds it.
    Best,
    /// The lowest that holds it. Placing the ranges of a plan in order of their offsets like this never raises one.
    Lowest,
}

/// Places again in order of offset, each time with the highest range of the last round moved halfway to the front.
fn search(spans: &[Span], steps: usize, start: Placing, enough: usize, rounds: usize) -> Placing {
    let mut best = start;
    let mut order: Vec<usize> = (0..spans.len()).collect();
    order.sort_by_key(|&i| (best.1[i], spans[i].first, i));
    for _ in 0..rounds {
        if best.0 <= enough {
            break;
        }
        let found = place_in_order(spans, &order, steps, Fit::Lowest);
        let end = |i: usize| found.1[i] + spans[i].slot.bytes;
        let Some(at) = (0..order.len()).rev().max_by_key(|&k| end(order[k])) else { break };
        order[at / 2..=at].rotate_right(1);
        if found.0 < best.0 {
            best = found;
        }
    }
    best
}

/// By size, by size times duration, by duration: the large or long ones first. Ties go by index, so the result is
/// deterministic.
fn orders(spans: &[Span]) -> [Vec<usize>; 3] {
    let length = |i: usize| spans[i].last - spans[i].first + 1;
    let bytes = |i: usize| spans[i].slot.bytes;
    let mut orders = [const { Vec::new() }; 3];
    orders.iter_mut().for_each(|o| *o = (0..spans.len()).collect());
    orders[0].sort_by_key(|&i| (Reverse(bytes(i)), spans[i].first, i));
    orders[1].sort_by_key(|&i| (Reverse(bytes(i) as u128 * length(i) as u128), i));
    orders[2].sort_by_key(|&i| (Reverse(length(i)), Reverse(bytes(i)), i));
    orders
}

/// Places spans in order of time, each into the smallest free block that fits.
fn sweep(spans: &[Span]) -> Placing {
    let mut starts: Vec<usize> = (0..spans.len()).collect();
    starts.sort_by_key(|&i| (spans[i].first, Reverse(spans[i].slot.bytes), i));
    let mut ends: Vec<usize> = (0..spans.len()).collect();
    ends.sort_by_key(|&i| (spans[i].last, i));
    let mut ends = ends.into_iter().peekable();
    let mut offsets = vec![0; spans.len()];
    let mut heap = Heap::default();
    for i in starts {
        while let Some(ended) = ends.next_if(|&k| spans[k].last < spans[i].first) {
            heap.free(offsets[ended], spans[ended].slot.bytes);
        }
        offsets[i] = heap.allocate(spans[i].slot.bytes);
    }
    (heap.end, offsets)
}

/// Free blocks below `end`, never adjacent to each other.
#[derive(Default)]
struct Heap {
    end: usize,
    by_offset: BTreeMap<usize, usize>,
    by_size: BTreeSet<(usize, usize)>,
}

impl Heap {
    fn allocate(&mut self, bytes: usize) -> usize {
        if let Some(&(size, offset)) = self.by_size.range((bytes, 0)..).next() {
            self.take(offset, size);
            if size > bytes {
                self.put(offset + bytes, size - bytes);
            }
            return offset;
        }
        // Grow, from the last block if that is free.
        let last = self.by_offset.last_key_value().map(|(&offset, &size)| (offset, size));
        let offset = match last {
            Some((offset, size)) if offset + size == self.end => {
                self.take(offset, size);
                offset
            }
            _ => self.end,
        };
        self.end = offset + bytes;
        offset
    }

    fn free(&mut self, mut offset: usize, mut bytes: usize) {
        if let Some(size) = self.by_offset.get(&(offset + bytes)).copied() {
            self.take(offset + bytes, size);
            bytes += size;
        }
        let before = self.by_offset.range(..offset).next_back().map(|(&o, &s)| (o, s));
        if let Some((start, size)) = before
            && start + size == offset
        {
            self.take(start, size);
            (offset, bytes) = (start, bytes + size);
        }
        self.put(offset, bytes);
    }

    fn take(&mut self, offset: usize, size: usize) {
        self.by_offset.remove(&offset);
        self.by_size.remove(&(size, offset));
    }

    fn put(&mut self, offset: usize, size: usize) {
        self.by_offset.insert(offset, size);
        self.by_size.insert((size, offset));
    }
}

/// The largest sum of `weight` over spans alive at one time.
fn peak(spans: &[Span], steps: usize, weight: impl Fn(&Span) -> usize) -> usize {
    let mut change = vec![0i128; steps + 1];
    for s in spans {
        change[s.first] += weight(s) as i128;
        change[s.last + 1] -= weight(s) as i128;
    }
    let mut live = 0;
    let peak = change.into_iter().map(|c| {
        live += c;
        live
    });
    peak.max().unwrap_or(0) as usize
}

/// Size of the arena and the offset of each span when spans are placed in this order.
fn place_in_order(spans: &[Span], order: &[usize], steps: usize, fit: Fit) -> Placing {
    let width = steps.div_ceil(BUCKETS).max(1);
    // What meets a span is alive in the bucket where it begins, or begins in a later one.
    let mut alive: Vec<Vec<usize>> = vec![vec![]; steps.div_ceil(width)];
    let mut beginning = alive.clone();
    let mut offsets = vec![0; spans.len()];
    let mut neighbours: Vec<(usize, usize)> = vec![];
    let mut arena = 0;
    for &i in order {
        let span = &spans[i];
        let (from, to) = (span.first / width, span.last / width);
        neighbours.clear();
        for &k in alive[from].iter().chain(beginning[from + 1..=to].iter().flatten()) {
            let other = &spans[k];
            if other.first <= span.last && span.first <= other.last {
                neighbours.push((offsets[k], offsets[k] + other.slot.bytes));
            }
        }
        neighbours.sort_unstable();
        offsets[i] = find_gap(&neighbours, span.slot.bytes, fit);
        arena = arena.max(offsets[i] + span.slot.bytes);
        alive[from..=to].iter_mut().for_each(|b| b.push(i));
        beginning[from].push(i);
    }
    (arena, offsets)
}

/// The start of the gap between taken ranges (sorted) that `fit` asks for, or the end of the last.
fn find_gap(taken: &[(usize, usize)], bytes: usize, fit: Fit) -> usize {
    let mut best: Option<(usize, usize)> = None;
    let mut end = 0;
    for &(from, to) in taken {
        if from >= end + bytes {
            if fit == Fit::Lowest {
                return end;
            }
            if best.is_none_or(|(size, _)| from - end < size) {
                best = Some((from - end, end));
            }
        }
        end = end.max(to);
    }
    best.map_or(end, |(_, offset)| offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Slot;

    /// Ranges of 1 to 20 units at random times.
    fn random_spans(seed: u64, n: usize, steps: usize) -> Vec<Span> {
        let mut state = seed.wrapping_mul(2).wrapping_add(1);
        let mut next = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let mut span = |_| {
            let (a, b) = (next(steps), next(steps));
            let slot = Slot { offset: 0, bytes: 64 * (1 + next(20)) };
            Span { slot, first: a.min(b), last: a.max(b).min(a.min(b) + steps / 4) }
        };
        (0..n).map(&mut span).collect()
    }

    #[test]
    fn the_search_helps_and_nothing_overlaps() {
        let (mut swept, mut greedy, mut placed, mut bound) = (0, 0, 0, 0);
        for seed in 0..60 {
            let (n, steps) = (60 + seed as usize, 40);
            let mut spans = random_spans(seed, n, steps);
            let orders = orders(&spans).map(|o| place_in_order(&spans, &o, steps, Fit::Best).0);
            let sweep = sweep(&spans).0;
            let (arena, lower) = place(&mut spans, steps);
            for (i, a) in spans.iter().enumerate() {
                assert!(a.slot.offset + a.slot.bytes <= arena);
                for b in &spans[..i] {
                    let together = a.first <= b.last && b.first <= a.last;
                    let apart = a.slot.offset + a.slot.bytes <= b.slot.offset
                        || b.slot.offset + b.slot.bytes <= a.slot.offset;
                    assert!(!together || apart, "{a:?} and {b:?} overlap");
                }
            }
            swept += sweep;
            greedy += orders.into_iter().fold(sweep, usize::min);
            placed += arena;
            bound += lower;
        }
        let over = |bytes: usize| 100.0 * (bytes as f64 / bound as f64 - 1.0);
        println!("above the bound: {:.2} %, {:.2} %, {:.2} %", over(swept), over(greedy), over(placed));
        assert!(placed < greedy && greedy < swept);
        assert!(over(placed) < 3.0, "{:.2} %", over(placed));
    }
}
