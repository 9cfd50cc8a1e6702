//! Threads that read blocks ahead of their use. Blocks come out in order, whoever read them first.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::super::error::{DataError, Result};
use super::RowStream;
use super::read::Block;

/// What the threads and the one who takes blocks share.
struct Shared {
    stream: Arc<RowStream>,
    state: Mutex<State>,
    /// A block is ready.
    ready: Condvar,
    /// There is room for another, or it is over.
    room: Condvar,
}

#[derive(Default)]
struct State {
    /// The next block that nobody reads yet.
    next: u64,
    /// The next block to be taken.
    wanted: u64,
    done: BTreeMap<u64, Result<Block>>,
    over: bool,
}

/// Blocks from one on, read by threads.
pub(crate) struct Ahead {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Ahead {
    /// Starts reading at block `first`, counted through all epochs.
    pub(crate) fn start(stream: &Arc<RowStream>, first: u64) -> Ahead {
        let state = Mutex::new(State { next: first, wanted: first, ..State::default() });
        let shared = Arc::new(Shared {
            stream: Arc::clone(stream),
            state,
            ready: Condvar::new(),
            room: Condvar::new(),
        });
        let spawn = |i: usize| {
            let shared = Arc::clone(&shared);
            let name = format!("kfc-data-{i}");
            std::thread::Builder::new().name(name).spawn(move || work(&shared)).ok()
        };
        // Threads that could not be started cost speed, not the run.
        let threads = (0..stream.config().workers).filter_map(spawn).collect();
        Ahead { shared, threads }
    }

    /// The next block.
    pub(crate) fn next(&mut self) -> Result<Block> {
        let mut state = self.shared.lock();
        let number = state.wanted;
        if state.next == number && self.threads.is_empty() {
            state.next += 1;
            state.wanted += 1;
            drop(state);
            return self.shared.stream.read(number);
        }
        loop {
            if let Some(block) = state.done.remove(&number) {
                state.wanted += 1;
                self.shared.room.notify_all();
                return block;
            }
            state = self.shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Ahead {
    /// Ends the threads, each behind the block that it reads.
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.room.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The block that a thread is to read, when there is room for it; none when it is over.
    fn claim(&self) -> Option<u64> {
        let window = self.stream.window() as u64;
        let mut state = self.lock();
        while !state.over && state.next >= state.wanted + window {
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.over {
            return None;
        }
        state.next += 1;
        Some(state.next - 1)
    }
}

fn work(shared: &Shared) {
    while let Some(number) = shared.claim() {
        let read = catch_unwind(AssertUnwindSafe(|| shared.stream.read(number)));
        let block = read.unwrap_or_else(|_| {
            let reason = format!("block {number} could not be read: a reader panicked; please report it");
            Err(DataError::Config { setting: "data.train", reason })
        });
        shared.lock().done.insert(number, block);
        shared.ready.notify_all();
    }
}
