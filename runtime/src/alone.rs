//! Kernels of a job's step, each timed alone.
//!
//! A kernel runs on the operands that it has in a training step, as often as the time allows: its operands are in the caches
//! as far as they fit, which in a step they may not be. Those that it writes over are what they were before each run: results
//! taken for operands again and again drift to numbers below normal ones, on which some kernels take several times as long.

use crate::exec::{BoundPlan, Kept};
use crate::profile::Kind;
use crate::train::Trainer;
use crate::{Result, RunError};
use kfc_kernels::cpu::choice::Choice;
use std::collections::BTreeMap;
use std::time::Duration;

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

/// A kernel that is run again and again.
pub struct Alone<'a> {
    plan: &'a mut BoundPlan,
    step: usize,
    /// Operands that it writes over.
    overwritten: Vec<Kept>,
}

impl<'a> Alone<'a> {
    /// A kernel under a choice, after a step of the whole job.
    ///
    /// # Errors
    /// As [`Trainer::step`]; and if the trainer runs on a GPU.
    pub fn new(trainer: &'a mut Trainer, group: &Group, choice: Choice) -> Result<Alone<'a>> {
        trainer.step()?;
        let (plan, step) = group.first;
        let Some((_, plan)) = trainer.plans_mut().into_iter().nth(plan) else {
            return Err(RunError::Input("only kernels of the CPU are timed alone".into()));
        };
        plan.choose(step, choice);
        plan.run_up_to(step);
        let overwritten = plan.overwritten(step);
        Ok(Alone { plan, step, overwritten })
    }

    /// Time of `n` runs.
    pub fn run(&mut self, n: u64) -> Duration {
        Duration::from_nanos(self.plan.run_again(self.step, n, &self.overwritten))
    }
}
