//! Where the time from opening a job to the end of its first step goes.

use std::time::{Duration, Instant};

/// What happens before a run is under way, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Reading, tokenising and packing rows.
    Data,
    /// Opening models and adapters, and copying what is not used where it lies.
    Models,
    /// From graphs to plans.
    Compile,
    /// Bringing the arena and everything else into memory.
    Memory,
    /// The run folder: configuration, snapshot, metrics.
    Folder,
    /// The first step, which also brings mapped weights into memory.
    FirstStep,
}

impl Stage {
    const ALL: [(Stage, &'static str); 6] = [
        (Stage::Data, "reading data"),
        (Stage::Models, "opening models"),
        (Stage::Compile, "compiling"),
        (Stage::Memory, "allocating memory"),
        (Stage::Folder, "run folder"),
        (Stage::FirstStep, "first step"),
    ];
}

/// Adds up the stages.
#[derive(Clone, Debug)]
pub(crate) struct Startup {
    last: Instant,
    stages: [Duration; Stage::ALL.len()],
    done: bool,
}

impl Startup {
    /// Starts now, after `data` spent on rows.
    pub(crate) fn new(data: Duration) -> Startup {
        let mut stages = [Duration::ZERO; Stage::ALL.len()];
        stages[Stage::Data as usize] = data;
        Startup { last: Instant::now(), stages, done: false }
    }

    /// What passed since the last lap was `stage`; nothing counts after the first step.
    pub(crate) fn lap(&mut self, stage: Stage) {
        if self.done {
            return;
        }
        let now = Instant::now();
        self.stages[stage as usize] += now - self.last;
        self.last = now;
        self.done = stage == Stage::FirstStep;
    }

    /// Nanoseconds of each stage; empty before the first step is over.
    pub(crate) fn stages(&self) -> Vec<(String, u64)> {
        let all = Stage::ALL
            .iter()
            .map(|(stage, name)| (name.to_string(), self.stages[*stage as usize].as_nanos() as u64));
        if self.done { all.collect() } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_end_with_the_first_step() {
        for (i, (stage, name)) in Stage::ALL.iter().enumerate() {
            assert_eq!(*stage as usize, i, "{name}");
        }
        let started = Instant::now();
        let mut startup = Startup::new(Duration::from_millis(5));
        startup.lap(Stage::Models);
        assert!(startup.stages().is_empty());
        startup.lap(Stage::FirstStep);
        let stages = startup.stages();
        startup.lap(Stage::FirstStep);
        assert_eq!(startup.stages(), stages);
        assert_eq!(stages[0], ("reading data".to_string(), 5_000_000));
        let sum: u64 = stages.iter().map(|(_, ns)| ns).sum();
        assert!(sum <= 5_000_000 + started.elapsed().as_nanos() as u64);
    }
}
