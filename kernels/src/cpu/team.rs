//! Threads that stay awake for as long as a plan runs.
//!
//! A plan is hundreds of short loops. A pool's threads fall asleep between them and take about 100 µs to wake, which is longer than
//! many a loop lasts. So the thread that runs a plan leads a team: the other threads of the pool wait for its loops, spinning
//! at first, and then giving way to whoever else wants the core.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

/// How often a thread looks for work before it gives way each time; about 100 µs.
const SPINS: u32 = 10_000;

/// What a loop calls on each thread that takes part, with the thread's number.
type Loop<'a> = dyn Fn(usize) + Sync + 'a;

/// The same while a loop is open.
type Open = *const (dyn Fn(usize) + Sync);

/// In [`Team::state`]: whether threads may still enter the loop; below it, how many have, above it, the loop's number.
const OPEN: u64 = 1 << 31;

thread_local! {
    /// The team that this thread leads.
    static LED: Cell<*const Team> = const { Cell::new(ptr::null()) };
}

/// A leader and its helpers.
struct Team {
    state: AtomicU64,
    /// The loop, while one is open or somebody is in it.
    job: UnsafeCell<Option<Open>>,
    /// How many helpers have left the loop.
    left: AtomicU64,
    has_ended: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written by the leader while nobody is in a loop and none is open, and read by those who entered one.
unsafe impl Sync for Team {}

/// Runs `f` on a thread of the current pool, the others of which take part in its loops. Allocates nothing.
pub fn lead<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    let (f, result) = (Mutex::new(Some(f)), Mutex::new(None));
    let run = || {
        let f = f.lock().unwrap_or_else(PoisonError::into_inner).take();
        *result.lock().unwrap_or_else(PoisonError::into_inner) = f.map(|f| f());
    };
    rayon::scope(|_| {
        let threads = rayon::current_num_threads();
        if threads == 1 || !LED.get().is_null() {
            return run();
        }
        let team = Team {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            left: AtomicU64::new(0),
            has_ended: AtomicBool::new(false),
            panic: Mutex::new(None),
        };
        // The first is run where this is; the others by threads that look for work.
        (0..threads).into_par_iter().with_max_len(1).for_each(|i| {
            if i > 0 {
                return team.help(i);
            }
            let _end = OnDrop(|| {
                LED.set(ptr::null());
                team.has_ended.store(true, Ordering::Release);
            });
            LED.set(&raw const team);
            run();
        });
    });
    let result = result.into_inner().unwrap_or_else(PoisonError::into_inner);
    result.unwrap_or_else(|| unreachable!("the leader has run, or its panic goes on"))
}

/// Calls `f` with 0 on this thread, and, if it leads a team, with their numbers on those of the team that come before it is done
/// here. Returns false if it leads none.
pub(super) fn run(f: &Loop<'_>) -> bool {
    let team = LED.get();
    if team.is_null() {
        return false;
    }
    // A loop within a loop is not for the team.
    LED.set(ptr::null());
    let _back = OnDrop(|| LED.set(team));
    // SAFETY: a thread leads a team only for as long as there is one.
    unsafe { (*team).run(f) };
    true
}

impl Team {
    /// Runs a loop with those who come.
    fn run(&self, f: &Loop<'_>) {
        // SAFETY: nobody is in a loop. That the loop lives long enough is up to the end of this function, which waits for all
        // who entered.
        unsafe { *self.job.get() = Some(std::mem::transmute::<&Loop<'_>, Open>(f)) };
        self.left.store(0, Ordering::Relaxed);
        let number = (self.state.load(Ordering::Relaxed) >> 32) + 1;
        self.state.store(number << 32 | OPEN, Ordering::Release);
        let close = OnDrop(|| {
            let entered = self.state.fetch_and(!OPEN, Ordering::AcqRel) & (OPEN - 1);
            let mut spins = 0;
            while self.left.load(Ordering::Acquire) < entered {
                wait(&mut spins, || ());
            }
        });
        f(0);
        drop(close);
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            panic::resume_unwind(panic);
        }
    }

    /// Takes part in the leader's loops until it is done.
    fn help(&self, own: usize) {
        let (mut last, mut spins) = (0, 0);
        loop {
            let state = self.state.load(Ordering::Acquire);
            if state & OPEN != 0 && state >> 32 != last {
                let entered =
                    self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
                if entered.is_ok() {
                    (last, spins) = (state >> 32, 0);
                    // SAFETY: the loop was written before it was opened, and stays until all who entered have left.
                    let job = unsafe { (*self.job.get()).map(|job| &*job) };
                    if let Err(e) = panic::catch_unwind(AssertUnwindSafe(|| job.map(|job| job(own)))) {
                        *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                    }
                    self.left.fetch_add(1, Ordering::Release);
                }
                continue;
            }
            if self.has_ended.load(Ordering::Acquire) {
                return;
            }
            // Other work of the pool is not to wait for the end of the plan.
            wait(&mut spins, || {
                rayon::yield_now();
            });
        }
    }
}

/// Waits a moment, or does something else if it has been long.
fn wait(spins: &mut u32, otherwise: impl FnOnce()) {
    if *spins < SPINS {
        *spins += 1;
        std::hint::spin_loop();
    } else {
        otherwise();
        std::thread::yield_now();
    }
}

/// Calls a function when it goes, on unwinding too.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cpu::par;
    use std::sync::atomic::AtomicUsize;

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    fn add(count: &AtomicUsize) {
        count.fetch_add(1, Ordering::Relaxed);
    }

    #[test]
    fn every_task_of_every_loop_runs_once() {
        for threads in [1, 2, 5] {
            let counts: Vec<AtomicUsize> = (0..40).map(|_| AtomicUsize::new(0)).collect();
            let sum = pool(threads).install(|| {
                lead(|| {
                    for n in (0..40).cycle().take(2000) {
                        par::tasks(n, |i| {
                            counts[i].fetch_add(1, Ordering::Relaxed);
                        });
                    }
                    counts.iter().map(|c| c.load(Ordering::Relaxed)).sum::<usize>()
                })
            });
            assert_eq!(sum, 50 * 39 * 20);
            for (i, count) in counts.iter().enumerate() {
                assert_eq!(count.load(Ordering::Relaxed), 50 * (39 - i));
            }
        }
    }

    #[test]
    fn a_helper_takes_part() {
        let seen = Mutex::new(std::collections::BTreeSet::new());
        pool(2).install(|| {
            lead(|| {
                // A helper may come late; each task waits for it for a while.
                for _ in 0..1000 {
                    par::tasks(2, |_| {
                        seen.lock().unwrap().insert(rayon::current_thread_index());
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    });
                    if seen.lock().unwrap().len() == 2 {
                        break;
                    }
                }
            });
        });
        assert_eq!(seen.into_inner().unwrap().len(), 2);
    }

    #[test]
    fn loops_within_loops_and_teams_within_teams_run() {
        let count = AtomicUsize::new(0);
        pool(3).install(|| {
            lead(|| {
                par::tasks(4, |_| {
                    par::tasks(5, |_| add(&count));
                });
                lead(|| par::tasks(7, |_| add(&count)));
            });
        });
        assert_eq!(count.into_inner(), 27);
    }

    #[test]
    fn several_leaders_share_a_pool() {
        let pool = pool(2);
        let count = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..50 {
                        pool.install(|| lead(|| par::tasks(9, |_| add(&count))));
                    }
                });
            }
        });
        assert_eq!(count.into_inner(), 4 * 50 * 9);
    }

    #[test]
    fn a_panic_of_any_thread_goes_on_in_the_leader() {
        for bad in [0, 31] {
            let result = panic::catch_unwind(|| {
                pool(2).install(|| {
                    lead(|| {
                        par::tasks(32, |i| {
                            std::thread::sleep(std::time::Duration::from_micros(100));
                            assert_ne!(i, bad);
                        });
                    });
                });
            });
            assert!(result.is_err(), "task {bad}");
        }
    }
}
