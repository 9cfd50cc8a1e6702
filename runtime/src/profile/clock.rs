//! Where the time of a training step goes on this side of the kernels.
//!
//! Every lap goes to one part, so that parts follow each other without gaps. Steps of warm-up are forgotten when others
//! follow.

use std::time::{Duration, Instant};

/// Steps at the start of a run that are left out when there are more: memory and caches are cold in them.
pub(crate) const WARMUP: u64 = 2;

/// What the host does between kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Waiting for the loader.
    Data,
    /// Zeroing gradient accumulators.
    Clear,
    /// Writing tokens, weights of positions and scalars.
    Write,
    /// Running plans; what their kernels take is measured by themselves, the rest is waking threads and coming back.
    Plans,
    /// Reading losses, deciding whether the step counts.
    Read,
    /// Writing metrics, showing progress.
    Metrics,
    /// Writing checkpoints.
    Save,
    /// What happened between the end of a step and the start of the next, beside the above.
    Between,
}

impl Part {
    const ALL: [(Part, &'static str); 8] = [
        (Part::Data, "waiting for data"),
        (Part::Clear, "zeroing gradients"),
        (Part::Write, "writing step data"),
        (Part::Plans, "handing plans to the threads"),
        (Part::Read, "reading results"),
        (Part::Metrics, "metrics and progress"),
        (Part::Save, "checkpoints"),
        (Part::Between, "between steps"),
    ];
}

/// Adds up parts of steps.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    last: Instant,
    parts: [Duration; Part::ALL.len()],
    /// Steps since the last reset.
    pub(crate) steps: u64,
    /// Steps before the last reset.
    pub(crate) warmup: u64,
}

impl Clock {
    pub(crate) fn new() -> Clock {
        let now = Instant::now();
        Clock { started: now, last: now, parts: Default::default(), steps: 0, warmup: 0 }
    }

    /// A step begins. True if the steps so far were warm-up and are forgotten.
    pub(crate) fn begin(&mut self) -> bool {
        let forget = self.steps == 0 || (self.warmup == 0 && self.steps == WARMUP);
        if forget {
            let warmup = self.warmup + self.steps;
            *self = Clock { warmup, ..Clock::new() };
        }
        self.lap(Part::Between);
        forget
    }

    /// What passed since the last lap was `part`.
    pub(crate) fn lap(&mut self, part: Part) {
        let now = Instant::now();
        self.parts[part as usize] += now - self.last;
        self.last = now;
    }

    /// Nanoseconds from the first step that counts until now.
    pub(crate) fn wall_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// Nanoseconds in each part but [`Part::Between`], which nobody explains; `kernels` of those in [`Part::Plans`] are the
    /// kernels' own.
    pub(crate) fn host(&self, kernels: u64) -> Vec<(String, u64)> {
        let named = Part::ALL.iter().filter(|(part, _)| *part != Part::Between);
        let time = |part: Part| {
            let all = self.parts[part as usize].as_nanos() as u64;
            if part == Part::Plans { all.saturating_sub(kernels) } else { all }
        };
        named.map(|(part, name)| (name.to_string(), time(*part))).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn parts_have_their_positions_and_names() {
        for (i, (part, name)) in Part::ALL.iter().enumerate() {
            assert_eq!(*part as usize, i, "{name}");
        }
    }

    #[test]
    fn warm_up_is_left_out_when_more_follows() {
        let mut clock = Clock::new();
        let mut forgotten = Vec::new();
        for _ in 0..4 {
            forgotten.push(clock.begin());
            clock.lap(Part::Data);
            clock.steps += 1;
        }
        assert_eq!(forgotten, [true, false, true, false]);
        assert_eq!((clock.warmup, clock.steps), (2, 2));
        let host: u64 = clock.host(0).iter().map(|(_, ns)| ns).sum();
        assert!(host <= clock.wall_ns());
    }

    #[test]
    fn a_slow_loader_is_what_steps_wait_for() {
        let pause = Duration::from_millis(15);
        let (send, steps) = std::sync::mpsc::sync_channel(1);
        let loader = std::thread::spawn(move || {
            for step in 0..6 {
                std::thread::sleep(pause);
                if send.send(step).is_err() {
                    break;
                }
            }
        });
        let mut clock = Clock::new();
        for _ in 0..6 {
            clock.begin();
            steps.recv().unwrap();
            clock.lap(Part::Data);
            clock.steps += 1;
        }
        loader.join().unwrap();
        let host = clock.host(0);
        assert_eq!(host[0].0, "waiting for data");
        let rest: u64 = host[1..].iter().map(|(_, ns)| ns).sum();
        assert!(host[0].1 >= 2 * pause.as_nanos() as u64 && host[0].1 > 10 * rest, "{host:?}");
    }
}
