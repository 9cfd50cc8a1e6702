//! Kernels of a job's step, each timed alone.
//!
//! A kernel runs on the operands that it has in a training step, as often as the time allows: its operands are in the caches
//! as far as they fit, which in a step they may not be.

use crate::Result;
use crate::calibration::median;
use crate::profile::Kind;
use crate::train::Trainer;
use kfc_kernels::cpu::choice::Choice;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Runs before the clock starts, and the fewest that are timed.
const WARM_UP: usize = 3;
const LEAST: usize = 5;

/// Runs between two looks at the time.
const BATCH: usize = 10;

/// A kernel of a step: launches that do the same work.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its operation, and a number among those of that operation, in order of their first launch.
    pub name: String,
    /// The work.
    pub kind: Kind,
    /// Launches a step.
    pub launches: usize,
    /// Plan and position of the first launch.
    first: (usize, usize),
}

/// Times of a kernel's runs, nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Runs.
    pub runs: usize,
    /// The fastest, the middle one, and the one that nine of ten are faster than.
    pub best: f64,
    /// See there.
    pub median: f64,
    /// See there.
    pub most: f64,
}

/// The kernels of a job.
pub fn groups(trainer: &mut Trainer) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let (mut known, mut numbers) = (BTreeMap::new(), BTreeMap::new());
    for (p, (profile, _)) in trainer.plans_mut().into_iter().enumerate() {
        for (i, launch) in profile.launches.iter().enumerate() {
            let kind = &profile.kinds[launch.kind];
            let next = groups.len();
            let at = *known.entry((p, kind.signature())).or_insert(next);
            if at == next {
                let number = numbers.entry(kind.op.clone()).or_insert(0usize);
                *number += 1;
                let name = format!("{}.{number}", kind.op);
                groups.push(Group { name, kind: kind.clone(), launches: 0, first: (p, i) });
            }
            groups[at].launches += profile.runs_per_step;
        }
    }
    groups
}

/// Times a kernel under a choice for about `budget`, after a step of the whole job.
///
/// # Errors
/// As [`Trainer::step`].
pub fn time(trainer: &mut Trainer, group: &Group, choice: Choice, budget: Duration) -> Result<Times> {
    trainer.step()?;
    let (plan, step) = group.first;
    let [micro, update] = trainer.plans_mut();
    let bound = if plan == 0 { micro.1 } else { update.1 };
    bound.choose(step, choice);
    bound.run_alone(step, &mut [0; WARM_UP]);
    let (start, mut all) = (Instant::now(), Vec::new());
    while all.len() < LEAST || start.elapsed() < budget {
        let mut times = [0; BATCH];
        let one = bound.last_times()[step].max(1);
        // Long kernels are not run more often than the time allows.
        let left = budget.saturating_sub(start.elapsed()).as_nanos() / u128::from(one);
        let count = usize::try_from(left).unwrap_or(BATCH).clamp(1, BATCH);
        bound.run_alone(step, &mut times[..count]);
        all.extend(times[..count].iter().map(|ns| *ns as f64));
    }
    let middle = median(&mut all).unwrap_or(0.0);
    Ok(Times { runs: all.len(), best: all[0], median: middle, most: all[(all.len() - 1) * 9 / 10] })
}
