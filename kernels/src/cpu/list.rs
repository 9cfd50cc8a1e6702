//! A list of tensors cut into tasks: many small ones keep all threads as busy as a large one does.

use crate::cpu::par;
use std::ops::Range;

/// Lengths of tensors, each cut into tasks of at most `grain` elements.
pub(crate) struct List {
    lengths: Vec<usize>,
    /// The first task of each tensor, and the number of all tasks.
    first: Vec<usize>,
    grain: usize,
}

impl List {
    pub(crate) fn new(lengths: Vec<usize>, grain: usize) -> List {
        let mut first = vec![0];
        lengths.iter().for_each(|n| first.push(first[first.len() - 1] + n.div_ceil(grain)));
        List { lengths, first, grain }
    }

    /// Number of tensors.
    pub(crate) fn len(&self) -> usize {
        self.lengths.len()
    }

    pub(crate) fn tasks(&self) -> usize {
        self.first[self.lengths.len()]
    }

    /// Calls `f(task, tensor, elements)` for every task.
    pub(crate) fn each(&self, f: impl Fn(usize, usize, Range<usize>) + Sync + Send) {
        par::tasks(self.tasks(), |task| {
            let tensor = self.first.partition_point(|&first| first <= task) - 1;
            let start = (task - self.first[tensor]) * self.grain;
            f(task, tensor, start..self.lengths[tensor].min(start + self.grain));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn every_element_is_in_one_task() {
        let list = List::new(vec![3, 10, 1, 4, 5], 4);
        let seen = Mutex::new(vec![]);
        list.each(|task, tensor, r| seen.lock().unwrap_or_else(|e| e.into_inner()).push((task, tensor, r)));
        let mut seen = seen.into_inner().unwrap_or_else(|e| e.into_inner());
        seen.sort_by_key(|s| s.0);
        let expected =
            [(0, 0..3), (1, 0..4), (1, 4..8), (1, 8..10), (2, 0..1), (3, 0..4), (4, 0..4), (4, 4..5)];
        let expected: Vec<_> = expected.into_iter().enumerate().map(|(i, (t, r))| (i, t, r)).collect();
        assert_eq!(seen, expected);
        assert_eq!(list.tasks(), 8);
    }
}
