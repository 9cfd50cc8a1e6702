//! Parallel loops over fixed pieces.

use crate::cpu::{choice, team};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Elements of one task of an element-wise loop: large enough to hide the cost of a task, small enough for L2.
pub(crate) const GRAIN: usize = 16 * 1024;

/// Calls `f(i)` for each `i < tasks`, in parallel when there is more than one; tasks have the caller's [`Choice`], and
/// its number of threads.
///
/// A thread has a share of tasks that follow one another, the same in each loop of as many, so that it finds in its caches what
/// it wrote there in the loop before; when it has none left it takes the last of another's.
///
/// [`Choice`]: choice::Choice
pub(crate) fn tasks(tasks: usize, f: impl Fn(usize) + Sync + Send) {
    each_thread(tasks, |tasks| tasks.for_each(&f));
}

/// As [`tasks`], but `f` is called on each thread that takes part, with the tasks that are its, and can keep something from one
/// to the next.
pub(crate) fn each_thread(tasks: usize, f: impl Fn(&mut dyn Iterator<Item = usize>) + Sync + Send) {
    let choice = choice::current();
    let threads = threads().min(tasks);
    if threads <= 1 {
        return f(&mut (0..tasks));
    }
    let shares = Shares::new(tasks, threads);
    let run = |own: usize| choice::with(choice, || f(&mut std::iter::from_fn(|| shares.take(own))));
    if !team::run(&|own| {
        if own < threads {
            run(own)
        }
    }) {
        (0..threads).into_par_iter().with_max_len(1).for_each(run);
    }
}

/// Most shares of a loop; more threads have some in common.
const SHARES: usize = 32;

/// What is left of each thread's share of a loop: the first task and the one after the last, in the halves of a word.
struct Shares {
    left: [Line; SHARES],
    count: usize,
}

/// A word in a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Line(AtomicU64);

impl Shares {
    fn new(tasks: usize, threads: usize) -> Shares {
        let count = threads.min(SHARES);
        let at = |i: usize| (tasks * i / count) as u64;
        let left = std::array::from_fn(|i| {
            if i < count { Line(AtomicU64::new(at(i) << 32 | at(i + 1))) } else { Line::default() }
        });
        Shares { left, count }
    }

    /// The next task of a thread.
    fn take(&self, own: usize) -> Option<usize> {
        let own = own % self.count;
        let next = |left: u64, from_front: bool| {
            let (first, end) = (left >> 32, left & u64::from(u32::MAX));
            (first < end).then(|| if from_front { (first + 1) << 32 | end } else { first << 32 | (end - 1) })
        };
        let pop = |share: usize, from_front: bool| {
            let Line(left) = &self.left[share];
            let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |l| next(l, from_front));
            taken.ok().map(|l| if from_front { l >> 32 } else { (l & u64::from(u32::MAX)) - 1 } as usize)
        };
        pop(own, true).or_else(|| (1..self.count).find_map(|i| pop((own + i) % self.count, false)))
    }
}

/// Threads that the kernel may use.
pub(crate) fn threads() -> usize {
    let all = rayon::current_num_threads();
    choice::current().threads.map_or(all, |n| all.min(n.into()))
}

/// Cuts `0..n` into ranges of `grain` (the last may be shorter) and calls `f` for each.
pub(crate) fn ranges(n: usize, grain: usize, f: impl Fn(Range<usize>) + Sync + Send) {
    let grain = grain.max(1);
    tasks(n.div_ceil(grain), |i| f(i * grain..n.min((i + 1) * grain)));
}

/// Rows of a task when a row takes `work` element operations.
pub(crate) fn rows_grain(work: usize) -> usize {
    (GRAIN / work.max(1)).max(1)
}

/// Work in steps, each of tasks that prepare buffers and tasks that use them.
pub(crate) trait Pipeline: Sync {
    /// How many steps there are.
    fn steps(&self) -> usize;

    /// How many tasks of either kind a step has.
    fn counts(&self, step: usize) -> [usize; 2];

    /// Prepares a part of a step's buffers. Runs after all uses of the step before the last, so that two sets of buffers
    /// do for all steps.
    fn prepare(&self, step: usize, task: usize);

    /// Uses a step's buffers. Runs after the step's preparation and after all uses of the step before.
    fn work(&self, step: usize, task: usize);

    /// Runs a task of either kind.
    fn run(&self, step: usize, kind: usize, task: usize) {
        if kind == 0 { self.prepare(step, task) } else { self.work(step, task) }
    }
}

/// Tasks of one kind: how many, and what does one.
pub(crate) type Tasks<'a> = (usize, &'a (dyn Fn(usize) + Sync));

/// A step of a pipeline that is given by its tasks: what they prepare, and what they do with it.
pub(crate) struct Stage<'a>(pub(crate) Tasks<'a>, pub(crate) Tasks<'a>);

impl<const N: usize> Pipeline for [Stage<'_>; N] {
    fn steps(&self) -> usize {
        N
    }

    fn counts(&self, step: usize) -> [usize; 2] {
        [self[step].0.0, self[step].1.0]
    }

    fn prepare(&self, step: usize, task: usize) {
        (self[step].0.1)(task);
    }

    fn work(&self, step: usize, task: usize) {
        (self[step].1.1)(task);
    }
}

/// Steps of tasks, each of which begins when all tasks of the step before are done.
struct Phases<C, R> {
    steps: usize,
    count: C,
    run: R,
}

impl<C: Fn(usize) -> usize + Sync, R: Fn(usize, usize) + Sync> Pipeline for Phases<C, R> {
    fn steps(&self) -> usize {
        self.steps
    }

    fn counts(&self, step: usize) -> [usize; 2] {
        [0, (self.count)(step)]
    }

    fn prepare(&self, _: usize, _: usize) {}

    fn work(&self, step: usize, task: usize) {
        (self.run)(step, task);
    }
}

/// Calls `run(step, task)` for the `count(step)` tasks of each step, in parallel; a step begins when the one before is done.
/// As with [`run_steps`], threads meet once, and tasks must not start parallel work.
fn run_phases(steps: usize, count: impl Fn(usize) -> usize + Sync, run: impl Fn(usize, usize) + Sync) {
    run_steps(&Phases { steps, count, run });
}

/// Lanes a thread from which on threads take whole lanes: with fewer, one of them would wait too long for another.
const MANY_LANES: usize = 3;

/// A lane of [`run_lanes`], and the place for what its steps hand on to each other, one of as many as there are lanes.
#[derive(Clone, Copy)]
pub(crate) struct Lane {
    pub(crate) number: usize,
    pub(crate) place: usize,
}

/// Calls `run(step, lane, task)` for the `count(step)` tasks of each step of each lane, in parallel; a step of a lane begins when
/// the one before it is done. Where there are enough lanes, each is done by one thread, always in the same place, so that what
/// its steps hand on stays in that core's caches; else all lanes go through their steps together, as in [`run_phases`].
/// Tasks must not start parallel work.
pub(crate) fn run_lanes(
    lanes: usize,
    steps: usize,
    count: impl Fn(usize) -> usize + Sync,
    run: impl Fn(usize, Lane, usize) + Sync,
) {
    let threads = threads();
    if lanes >= MANY_LANES * threads || lanes.is_multiple_of(threads) {
        // A thread has a place of its own, unless there are more threads than lanes, of which `tasks` uses fewer.
        let is_own = rayon::current_num_threads() <= lanes;
        tasks(lanes, |number| {
            let place = if is_own { rayon::current_thread_index().unwrap_or(0) } else { number };
            let lane = Lane { number, place };
            (0..steps).for_each(|step| (0..count(step)).for_each(|task| run(step, lane, task)));
        });
    } else {
        let lane = |number| Lane { number, place: number };
        run_phases(steps, |step| lanes * count(step), |step, t| run(step, lane(t % lanes), t / lanes));
    }
}

/// Runs all steps on the calling thread.
fn run_alone(p: &impl Pipeline) {
    for step in 0..p.steps() {
        for (kind, count) in p.counts(step).into_iter().enumerate() {
            (0..count).for_each(|task| p.run(step, kind, task));
        }
    }
}

/// Runs all steps in parallel. Threads meet once, at the end: in between they take tasks in order and wait only for what a
/// task needs. Tasks must not start parallel work themselves: they could be handed a task that waits for them.
pub(crate) fn run_steps(p: &impl Pipeline) {
    let most = (0..p.steps()).map(|s| p.counts(s).iter().sum()).max().unwrap_or(0);
    let threads = threads().min(most);
    if threads <= 1 {
        return run_alone(p);
    }
    let progress = Progress::default();
    tasks(threads, |_| progress.take_part(p));
}

/// How far the threads of [`run_steps`] are.
#[derive(Default)]
struct Progress {
    /// Tasks taken.
    taken: AtomicUsize,
    /// Tasks done by kind, in steps of even and odd number.
    done: [[AtomicUsize; 2]; 2],
}

impl Progress {
    /// Takes tasks until there are none left.
    fn take_part(&self, p: &impl Pipeline) {
        let steps = p.steps();
        // The tasks of one kind in one step, the number of the first of them, and `done` as it will be after them.
        let (mut step, mut kind, mut start) = (0, 0, 0);
        let mut will_be = [[0; 2]; 2];
        loop {
            let taken = self.taken.fetch_add(1, Ordering::Relaxed);
            loop {
                if step == steps {
                    return;
                }
                let count = p.counts(step)[kind];
                if taken < start + count {
                    break;
                }
                start += count;
                will_be[kind][step % 2] += count;
                (step, kind) = (step + kind, 1 - kind);
            }
            let own = step % 2;
            if kind == 0 {
                self.wait(1, own, will_be[1][own]);
            } else {
                self.wait(0, own, will_be[0][own]);
                self.wait(1, 1 - own, will_be[1][1 - own]);
                // The step before may have been empty.
                self.wait(1, own, will_be[1][own]);
            }
            // Counted on unwinding too: the others shall end, so that the panic can go on.
            let _done = Done(&self.done[kind][own]);
            p.run(step, kind, taken - start);
        }
    }

    /// Waits until so many tasks are done. All of them are taken, by threads that do not wait for this one.
    fn wait(&self, kind: usize, parity: usize, count: usize) {
        let mut spins = 0u32;
        while self.done[kind][parity].load(Ordering::Acquire) < count {
            spins += 1;
            if spins < 4096 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

/// Counts a task as done when it goes.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// A pointer that tasks share. Each task must stay within its own part.
pub(crate) struct Shared<T>(*mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<T> {}

// SAFETY: tasks touch disjoint parts, which `slice` demands.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Shared(slice.as_mut_ptr())
    }

    /// The address of element `start`.
    ///
    /// # Safety
    /// In bounds.
    pub(crate) unsafe fn at(self, start: usize) -> *mut T {
        // SAFETY: by contract.
        unsafe { self.0.add(start) }
    }

    /// Elements `start..start + n`.
    ///
    /// # Safety
    /// In bounds, and no other live reference overlaps them.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice<'a>(self, start: usize, n: usize) -> &'a mut [T] {
        // SAFETY: by contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), n) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::Mutex;

    /// Steps of a few tasks of either kind, some of none; tasks record in what order they began and ended.
    struct Recorded(Mutex<Vec<(usize, usize, usize, bool)>>);

    impl Recorded {
        fn record(&self, step: usize, kind: usize, task: usize) {
            self.0.lock().unwrap().push((step, kind, task, false));
            (0..(step * 7 + task * 13) % 5).for_each(|_| std::thread::yield_now());
            self.0.lock().unwrap().push((step, kind, task, true));
        }
    }

    impl Pipeline for Recorded {
        fn steps(&self) -> usize {
            40
        }

        fn counts(&self, step: usize) -> [usize; 2] {
            [step % 4, 1 + step % 3]
        }

        fn prepare(&self, step: usize, task: usize) {
            self.record(step, 0, task);
        }

        fn work(&self, step: usize, task: usize) {
            self.record(step, 1, task);
        }
    }

    #[test]
    fn phases_wait_for_each_other() {
        let count = |step: usize| [5, 0, 1, 9][step % 4];
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let done: Vec<AtomicUsize> = (0..20).map(|_| AtomicUsize::new(0)).collect();
            let run = |step: usize, task: usize| {
                (0..task % 3).for_each(|_| std::thread::yield_now());
                let before = (0..step).all(|s| done[s].load(Ordering::SeqCst) == count(s));
                assert!(before, "step {step} begins when all before it are done");
                done[step].fetch_add(1, Ordering::SeqCst);
            };
            pool.install(|| run_phases(20, count, run));
            assert!((0..20).all(|s| done[s].load(Ordering::SeqCst) == count(s)));
        }
    }

    #[test]
    fn steps_of_a_lane_wait_for_each_other() {
        let count = |step: usize| [3, 0, 1, 4][step % 4];
        for (threads, lanes) in [(1, 1), (2, 3), (2, 4), (2, 7), (5, 2), (5, 15)] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let done: Vec<AtomicUsize> = (0..8 * lanes).map(|_| AtomicUsize::new(0)).collect();
            let done_in = |lane: usize, step: usize| done[8 * lane + step].load(Ordering::SeqCst);
            // Which lane each place has been given to, plus one.
            let places: Vec<AtomicUsize> = (0..lanes).map(|_| AtomicUsize::new(0)).collect();
            pool.install(|| {
                run_lanes(lanes, 8, count, |step, Lane { number, place }, t| {
                    let before = places[place].swap(number + 1, Ordering::SeqCst);
                    let is_free = |lane: usize| done_in(lane, 7) == count(7);
                    assert!(before == 0 || before == number + 1 || is_free(before - 1), "place {place}");
                    (0..t % 3).for_each(|_| std::thread::yield_now());
                    assert!((0..step).all(|s| done_in(number, s) == count(s)), "step {step} of {number}");
                    done[8 * number + step].fetch_add(1, Ordering::SeqCst);
                });
            });
            assert!((0..lanes).all(|l| (0..8).all(|s| done_in(l, s) == count(s))));
        }
    }

    #[test]
    fn tasks_of_a_pipeline_wait_for_what_they_need() {
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let steps = Recorded(Mutex::default());
            pool.install(|| run_steps(&steps));
            let events = steps.0.into_inner().unwrap();
            let all: usize = (0..40).map(|s| s % 4 + 1 + s % 3).sum();
            assert_eq!(events.len(), 2 * all, "each task once");
            for (i, &(step, kind, _, is_end)) in events.iter().enumerate() {
                let ends_later = |s: usize, k: usize| {
                    events[i..].iter().any(|&(es, ek, _, end)| (es, ek, end) == (s, k, true))
                };
                if is_end {
                    continue;
                }
                if kind == 1 {
                    assert!(!ends_later(step, 0), "step {step} is prepared");
                    assert!(step == 0 || !ends_later(step - 1, 1), "the work before step {step} is done");
                } else if step >= 2 {
                    assert!(!ends_later(step - 2, 1), "the buffers of step {step} are free");
                }
            }
        }
    }
}
