//! The search: choices are tried where kernels run, in training steps.
//!
//! No choice changes a bit, so every launch of a step may try another one, with real operands and real caches. Three parts:
//! 1. a race: launches of equal work take turns with the choices that are left; what is clearly slower than the best is out;
//! 2. winners against the built-in choices, in steps that alternate; a winner that is not faster by more than the noise is out;
//! 3. the step with all winners against the built-in one, in steps that alternate: if it is not faster by more than the noise,
//!    nothing is chosen.
//!
//! What is out is kept while the search goes on, so that one that is killed does not begin anew. What runs is not changed by that:
//! it is chosen when all is compared, and the caller keeps it when losses have the bits that they should have.

use super::kept::Pace;
use super::turns::{self, LEAST_PAIRS, is_faster};
use super::{Entry, Tried, Tuning};
use crate::calibration::{Rates, median};
use crate::exec::BoundPlan;
use crate::profile::Kind;
use crate::train::Trainer;
use crate::{Result, RunError};
use kfc_kernels::cpu::choice::{Choice, candidates};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Steps before anything is timed, whose losses tell later whether bits changed.
const WARM_UP: usize = 3;

/// Launches of a choice after which it may be out by a wide and by a narrow margin, and after which it is settled.
const FEW: usize = 4;
const SOME: usize = 12;
const ENOUGH: usize = 32;

/// Times over the best time that put a choice out after few and after some launches.
const MUCH_SLOWER: f64 = 1.25;
const SLOWER: f64 = 1.06;

/// Time over the built-in choice's that a winner must stay below.
const FASTER: f64 = 0.98;

/// The same for a winner that costs memory: time over that of the best choice that costs none.
const WORTH_MEMORY: f64 = 0.95;

/// Pairs of steps that are compared at most.
const MOST_PAIRS: usize = 200;

/// Share of a step's time below which a kernel is not worth trying anything for.
const WORTH: f64 = 0.001;

/// What is said of a choice that another one has beaten.
const SLOWER_THAN_BEST: &str = "slower";

/// Shares of the time after which the race and the comparison of kernels end.
const RACE: f64 = 0.6;
const COMPARE: f64 = 0.8;

/// How far the search is.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// What is done now.
    pub part: &'static str,
    /// Time used.
    pub elapsed: Duration,
    /// Kernels, and those whose choices are timed often enough.
    pub kernels: [usize; 2],
}

/// What came of a search.
#[derive(Clone, Debug)]
pub struct Report {
    /// Steps taken.
    pub steps: usize,
    /// Kernels of the step, and those of them that have choices.
    pub kernels: usize,
    /// See there.
    pub with_choices: usize,
    /// Kernels that run otherwise than built in.
    pub changed: usize,
    /// Whether all that could be tried was timed often enough; else another search goes on.
    pub settled: bool,
    /// Milliseconds of a step as built in and with what was found, medians of alternating steps; none if nothing was faster.
    pub step_ms: Option<[f64; 2]>,
    /// Bytes of the copies of weights that the choices found read.
    pub transposed_bytes: u64,
    /// Bits of the first losses, as built in.
    pub losses: Vec<u64>,
}

/// Launches that do the same work.
struct Group {
    signature: String,
    kind: Kind,
    /// Plan and position.
    launches: Vec<(usize, usize)>,
    tries: Vec<Try>,
    settled: bool,
    /// What is left after the race, and after the comparisons.
    winner: Choice,
    /// What an earlier search found.
    known: Option<Entry>,
}

/// A choice, and the times of its launches in nanoseconds.
struct Try {
    choice: Choice,
    times: Vec<f64>,
    out: Option<String>,
    /// From an earlier search.
    before: Option<Tried>,
}

impl Try {
    fn median(&self) -> Option<f64> {
        median(&mut self.times.clone())
    }
}

/// Which choice each group of launches has in a step.
type Pick<'a> = &'a dyn Fn(&Group) -> Choice;

/// Tries choices for the kernels of a job for about `budget`; stops early when nothing is left to try or `stop` is set.
/// `trainer` is fresh, and its steps are of no further use. What is found goes into `tuning`; the trainer runs with it then.
/// What is out is kept in the tuning's file meanwhile.
///
/// # Errors
/// As [`Trainer::step`].
pub fn search(
    trainer: &mut Trainer,
    tuning: &mut Tuning,
    rates: Rates,
    budget: Duration,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(Status),
) -> Result<Report> {
    let groups = groups(trainer);
    let mut s =
        Search { start: Instant::now(), budget, stop, steps: 0, groups, known: tuning, pace: Pace::new() };
    let losses = s.warm_up(trainer)?;
    s.begin(rates);
    s.race(trainer, progress)?;
    s.groups.iter_mut().for_each(Group::choose);
    s.compare_kernels(trainer, progress)?;
    let step_ms = s.compare_steps(trainer, progress)?;
    s.set(trainer, &|g| g.winner);
    let transposed_bytes = s.transposed_bytes(trainer);
    let report = Report {
        steps: s.steps,
        kernels: s.groups.len(),
        with_choices: s.groups.iter().filter(|g| g.tries.len() > 1).count(),
        changed: s.groups.iter().filter(|g| g.winner != Choice::BUILT_IN).count(),
        settled: s.groups.iter().all(|g| g.settled),
        step_ms,
        transposed_bytes,
        losses,
    };
    for group in s.groups.iter().filter(|g| g.tries.len() > 1) {
        tuning.insert(group.signature.clone(), group.entry());
    }
    Ok(report)
}

/// Takes the first steps of a fresh trainer with all choices in place and compares their losses with those as built in.
///
/// # Errors
/// If a loss differs in a bit, which would be an error of a kernel; and as [`Trainer::step`].
pub fn verify(trainer: &mut Trainer, tuning: &Tuning, losses: &[u64]) -> Result<()> {
    choose(trainer, tuning);
    for (step, expected) in losses.iter().enumerate() {
        let loss = trainer.step()?.loss;
        if loss.to_bits() != *expected {
            return Err(RunError::Failed(format!(
                "the loss of step {} is {loss} with the choices found and {} as built in: a kernel's choice changes its \
                 result; none of them is used",
                step + 1,
                f64::from_bits(*expected)
            )));
        }
    }
    Ok(())
}

/// Makes every kernel run as a tuning says.
pub(super) fn choose(trainer: &mut Trainer, tuning: &Tuning) {
    for (profile, plan) in trainer.plans_mut() {
        for (i, launch) in profile.launches.iter().enumerate() {
            plan.choose(i, tuning.choice(&profile.kinds[launch.kind].signature()));
        }
    }
}

/// Launches of both plans by the work they do.
fn groups(trainer: &mut Trainer) -> Vec<Group> {
    let threads = rayon::current_num_threads();
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for (p, (profile, plan)) in trainer.plans_mut().into_iter().enumerate() {
        for (i, launch) in profile.launches.iter().enumerate() {
            let kind = &profile.kinds[launch.kind];
            let signature = kind.signature();
            let also = plan.also(i);
            let group = groups.entry(signature.clone()).or_insert_with(|| {
                let choices = candidates(&kind.op, kind.least_rows(), threads, also).into_iter();
                let tries = choices.map(|choice| Try { choice, times: vec![], out: None, before: None });
                Group {
                    signature,
                    kind: kind.clone(),
                    launches: vec![],
                    tries: tries.collect(),
                    settled: false,
                    winner: Choice::BUILT_IN,
                    known: None,
                }
            });
            if !also.transposed {
                // Whatever one launch cannot do none of them tries.
                group.tries.retain(|t| !t.choice.transposed);
            }
            group.launches.push((p, i));
        }
    }
    groups.into_values().collect()
}

struct Search<'a> {
    start: Instant,
    budget: Duration,
    stop: &'a AtomicBool,
    steps: usize,
    groups: Vec<Group>,
    known: &'a Tuning,
    pace: Pace,
}

impl Search<'_> {
    /// Keeps what is out.
    fn keep(&mut self) {
        let (known, groups) = (self.known, &self.groups);
        self.pace.save(|| {
            let mut so_far = known.clone();
            for group in groups.iter().filter(|g| g.tries.len() > 1) {
                if let Some(entry) = group.entry_so_far() {
                    so_far.insert(group.signature.clone(), entry);
                }
            }
            so_far.save()
        });
    }

    /// Whether there is time until this share of the budget.
    fn goes_on(&self, share: f64) -> bool {
        !self.stop.load(Ordering::SeqCst) && self.start.elapsed() < self.budget.mul_f64(share)
    }

    fn tell(&self, part: &'static str, progress: &mut dyn FnMut(Status)) {
        let settled = self.groups.iter().filter(|g| g.settled).count();
        progress(Status { part, elapsed: self.start.elapsed(), kernels: [self.groups.len(), settled] });
    }

    fn set(&self, trainer: &mut Trainer, pick: Pick<'_>) {
        let mut plans = trainer.plans_mut();
        for group in &self.groups {
            let choice = pick(group);
            group.launches.iter().for_each(|&(p, i)| plans[p].1.choose(i, choice));
        }
    }

    /// Size of the copies that winners read, each counted once.
    fn transposed_bytes(&self, trainer: &mut Trainer) -> u64 {
        let plans = trainer.plans_mut();
        let launches = self.groups.iter().filter(|g| g.winner.transposed).flat_map(|g| &g.launches);
        let copies: BTreeMap<_, _> =
            launches.filter_map(|&(p, i)| plans[p].1.transposed(i)).map(|b| (b.ptr, b.bytes)).collect();
        copies.values().map(|bytes| *bytes as u64).sum()
    }

    /// Steps as built in. Returns the bits of their losses; their last times are each group's first.
    fn warm_up(&mut self, trainer: &mut Trainer) -> Result<Vec<u64>> {
        self.set(trainer, &|_| Choice::BUILT_IN);
        let mut losses = Vec::new();
        for _ in 0..WARM_UP {
            losses.push(trainer.step()?.loss.to_bits());
        }
        self.steps += WARM_UP;
        let times = last_times(trainer);
        for group in &mut self.groups {
            group.tries[0].times.extend(group.launches.iter().map(|&(p, i)| times[p][i]));
        }
        Ok(losses)
    }

    /// Leaves out what an earlier search or the cost of the work rules out.
    fn begin(&mut self, rates: Rates) {
        let of_group = |g: &Group| g.tries[0].times.iter().sum::<f64>();
        let total: f64 = self.groups.iter().map(of_group).sum();
        for group in &mut self.groups {
            if let Some(entry) = self.known.entry(&group.signature) {
                group.go_on_from(entry);
            }
            group.prune_by_cost(rates);
            if of_group(group) < WORTH * total {
                group.tries.iter_mut().skip(1).for_each(|t| {
                    t.out.get_or_insert("takes too little of a step to matter".into());
                });
            }
            group.settle();
        }
    }

    fn race(&mut self, trainer: &mut Trainer, progress: &mut dyn FnMut(Status)) -> Result<()> {
        while self.goes_on(RACE) && self.groups.iter().any(|g| !g.settled) {
            let mut turns: Vec<Vec<usize>> = Vec::with_capacity(self.groups.len());
            {
                let mut plans = trainer.plans_mut();
                for group in &self.groups {
                    let turn = group.turns(self.steps);
                    for (&(p, i), &t) in group.launches.iter().zip(&turn) {
                        plans[p].1.choose(i, group.tries[t].choice);
                    }
                    turns.push(turn);
                }
            }
            trainer.step()?;
            self.steps += 1;
            let times = last_times(trainer);
            for (group, turn) in self.groups.iter_mut().zip(turns) {
                for (t, &(p, i)) in turn.into_iter().zip(&group.launches) {
                    group.tries[t].times.push(times[p][i]);
                }
                group.prune_by_time();
                group.settle();
            }
            self.keep();
            self.tell("trying", progress);
        }
        Ok(())
    }

    /// Steps as built in and steps with all winners in turn.
    fn pairs(
        &mut self,
        trainer: &mut Trainer,
        share: f64,
        part: &'static str,
        progress: &mut dyn FnMut(Status),
    ) -> Result<Pairs> {
        let mut all =
            Pairs { steps: Default::default(), groups: vec![Default::default(); self.groups.len()] };
        // The first pair warms caches up to what is new.
        for pair in 0..=MOST_PAIRS {
            let is_short = pair <= LEAST_PAIRS && !self.stop.load(Ordering::SeqCst);
            if !is_short && !self.goes_on(share) {
                break;
            }
            // Neither is always the one that comes second.
            let order = if pair % 2 == 0 { [0, 1] } else { [1, 0] };
            for side in order {
                let pick: Pick<'_> = if side == 0 { &|_| Choice::BUILT_IN } else { &|g| g.winner };
                self.set(trainer, pick);
                let step_ms = trainer.step()?.step_ms;
                self.steps += 1;
                if pair == 0 {
                    continue;
                }
                all.steps[side].push(step_ms);
                let times = last_times(trainer);
                for (group, all) in self.groups.iter().zip(&mut all.groups) {
                    all[side].push(group.launches.iter().map(|&(p, i)| times[p][i]).sum());
                }
            }
            self.keep();
            self.tell(part, progress);
        }
        Ok(all)
    }

    /// Puts winners out that are not faster by more than the noise.
    fn compare_kernels(&mut self, trainer: &mut Trainer, progress: &mut dyn FnMut(Status)) -> Result<()> {
        if self.groups.iter().all(|g| g.winner == Choice::BUILT_IN) {
            return Ok(());
        }
        let all = self.pairs(trainer, COMPARE, "comparing", progress)?;
        for (group, times) in self.groups.iter_mut().zip(all.groups) {
            let limit = if group.winner.transposed { WORTH_MEMORY } else { FASTER };
            if group.winner != Choice::BUILT_IN && !is_faster(&ratios(&times), limit) {
                group.drop_winner("not faster beside the built-in choice");
            }
        }
        Ok(())
    }

    /// Puts all winners out if the step is not faster with them. Returns its times in milliseconds.
    fn compare_steps(
        &mut self,
        trainer: &mut Trainer,
        progress: &mut dyn FnMut(Status),
    ) -> Result<Option<[f64; 2]>> {
        if self.groups.iter().all(|g| g.winner == Choice::BUILT_IN) {
            return Ok(None);
        }
        let steps = self.pairs(trainer, 1.0, "checking", progress)?.steps;
        if !is_faster(&ratios(&steps), turns::FASTER) {
            self.groups.iter_mut().for_each(|g| g.drop_winner("the whole step is not faster"));
            return Ok(None);
        }
        Ok(Some(steps.map(|mut t| median(&mut t).unwrap_or(0.0))))
    }
}

impl Group {
    /// Takes over what an earlier search put out, and all that it settled.
    fn go_on_from(&mut self, entry: &Entry) {
        for t in self.tries.iter_mut().skip(1) {
            let Some(before) = entry.tried(t.choice) else { continue };
            t.out = before.out.clone();
            if entry.settled && t.choice != entry.choice {
                t.out.get_or_insert(SLOWER_THAN_BEST.into());
            }
            t.before = Some(before.clone());
        }
        self.known = Some(entry.clone());
    }

    /// Leaves out fewer threads where even at the machine's best rate they take longer than all threads did. Only arithmetic
    /// counts: bytes may come from caches.
    fn prune_by_cost(&mut self, rates: Rates) {
        let Some(built_in) = self.tries[0].median() else { return };
        let rate = if self.kind.is_16_bit() { rates.flops_16 } else { rates.flops_f32 };
        let bound = self.kind.cost.flops as f64 / rate * 1e9;
        let all = rayon::current_num_threads() as f64;
        for t in self.tries.iter_mut().skip(1) {
            if t.choice.threads.is_some_and(|n| bound * all / f64::from(n) > built_in) {
                t.out.get_or_insert("too few threads for its arithmetic".into());
            }
        }
    }

    fn alive(&self) -> impl Iterator<Item = usize> {
        (0..self.tries.len()).filter(|&t| self.tries[t].out.is_none())
    }

    /// The choice that each launch tries next: those with the fewest times first.
    fn turns(&self, step: usize) -> Vec<usize> {
        let mut left: Vec<(usize, usize)> = self.alive().map(|t| (self.tries[t].times.len(), t)).collect();
        let mut turns = Vec::with_capacity(self.launches.len());
        for _ in &self.launches {
            left.sort();
            turns.push(left[0].1);
            left[0].0 += 1;
        }
        // Launches differ in what caches hold: in each step another one takes the first turn.
        let by = step % turns.len().max(1);
        turns.rotate_left(by);
        turns
    }

    fn prune_by_time(&mut self) {
        let timed = |t: &Try| t.median().filter(|_| t.times.len() >= FEW);
        let Some(best) = self.tries.iter().filter_map(timed).min_by(f64::total_cmp) else { return };
        for t in self.tries.iter_mut().skip(1).filter(|t| t.out.is_none()) {
            let limit = if t.times.len() >= SOME { SLOWER } else { MUCH_SLOWER };
            if timed(t).is_some_and(|ns| ns > limit * best) {
                t.out = Some(SLOWER_THAN_BEST.into());
            }
        }
    }

    fn settle(&mut self) {
        self.settled = self.alive().count() <= 1 || self.alive().all(|t| self.tries[t].times.len() >= ENOUGH);
    }

    /// The fastest choice that is not out, if it is faster than the built-in one. What an earlier search settled and is not
    /// timed again here is as fast as it was then.
    fn choose(&mut self) {
        let timed = |t: &Try| t.median().filter(|_| t.times.len() >= FEW);
        let Some(built_in) = self.tries[0].median() else { return };
        let best = |transposed: bool| {
            let rest =
                self.tries.iter().skip(1).filter(|t| t.out.is_none() && t.choice.transposed == transposed);
            rest.filter_map(|t| Some((timed(t)?, t.choice))).min_by(|a, b| a.0.total_cmp(&b.0))
        };
        let free = best(false).filter(|(ns, _)| *ns < FASTER * built_in);
        let limit = WORTH_MEMORY * free.map_or(built_in, |(ns, _)| ns);
        let copied = best(true).filter(|(ns, _)| *ns < limit);
        if let Some((_, choice)) = copied.or(free) {
            self.winner = choice;
        }
    }

    fn drop_winner(&mut self, why: &str) {
        for t in self.tries.iter_mut().filter(|t| t.choice == self.winner && t.choice != Choice::BUILT_IN) {
            t.out = Some(why.into());
        }
        self.winner = Choice::BUILT_IN;
    }

    /// What is kept of it while the search goes on, if there is anything new: what runs is what ran before, unless that has been
    /// found to gain nothing.
    fn entry_so_far(&self) -> Option<Entry> {
        if self.known.as_ref().is_some_and(|e| e.settled) {
            return None;
        }
        let mut entry = Entry { choice: Choice::BUILT_IN, settled: false, ..self.entry() };
        let before = self.known.as_ref().map_or(Choice::BUILT_IN, |e| e.choice);
        if let Some(t) = entry.tried.iter_mut().find(|t| t.choice == before) {
            // One that is slower than another choice may still be faster than the built-in one.
            t.out.take_if(|why| why == SLOWER_THAN_BEST);
            if t.out.is_none() {
                entry.choice = before;
            }
        }
        Some(entry)
    }

    /// What is kept of it.
    fn entry(&self) -> Entry {
        let tried = |t: &Try| match (&t.before, t.times.is_empty()) {
            (Some(before), true) => Tried { out: t.out.clone(), ..before.clone() },
            _ => Tried {
                choice: t.choice,
                ns: t.median().unwrap_or(0.0),
                samples: t.times.len(),
                out: t.out.clone(),
            },
        };
        let mut tried: Vec<Tried> = self.tries.iter().map(tried).collect();
        let never_last = |t: &Tried| if t.samples == 0 { f64::INFINITY } else { t.ns };
        tried.sort_by(|a, b| never_last(a).total_cmp(&never_last(b)));
        Entry { op: self.kind.op.clone(), choice: self.winner, settled: self.settled, tried }
    }
}

/// Times of steps as built in and with all winners, in the order taken.
struct Pairs {
    /// Of whole steps, milliseconds.
    steps: [Vec<f64>; 2],
    /// Of each group's launches, nanoseconds.
    groups: Vec<[Vec<f64>; 2]>,
}

/// Each second time over the first one.
fn ratios([before, after]: &[Vec<f64>; 2]) -> Vec<f64> {
    before.iter().zip(after).map(|(b, a)| a / b).collect()
}

/// Nanoseconds of every launch of both plans in their last runs.
fn last_times(trainer: &mut Trainer) -> Vec<Vec<f64>> {
    let times = |plan: &BoundPlan| plan.last_times().iter().map(|ns| *ns as f64).collect();
    trainer.plans_mut().into_iter().map(|(_, plan)| times(plan)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use kfc_graph::Cost;
    use kfc_kernels::cpu::choice::Also;

    fn group(flops: u64) -> Group {
        let kind = Kind {
            op: "linear".into(),
            prim: false,
            attrs: String::new(),
            inputs: vec!["f32[4,16]".into(), "f32[32,16]".into()],
            outputs: vec![],
            cost: Cost { flops, bytes: 8 },
        };
        let tries = candidates("linear", kind.least_rows(), 2, Also::default()).into_iter();
        let tries = tries.map(|choice| Try { choice, times: vec![], out: None, before: None }).collect();
        let (launches, winner) = (vec![(0, 0), (0, 1), (0, 2)], Choice::BUILT_IN);
        Group { signature: kind.signature(), kind, launches, tries, settled: false, winner, known: None }
    }

    #[test]
    fn launches_take_turns_and_slow_choices_go() {
        let mut g = group(0);
        let mut steps = 0;
        while !g.settled {
            let turns = g.turns(steps);
            assert_eq!(turns.len(), 3);
            for t in turns {
                // The third choice is the fastest, the fourth nearly, the others are much slower.
                let ns = [100.0, 200.0, 80.0, 82.0].get(t).copied().unwrap_or(300.0);
                g.tries[t].times.push(ns + steps as f64 % 3.0);
            }
            g.prune_by_time();
            g.settle();
            steps += 1;
        }
        assert_eq!(g.alive().collect::<Vec<_>>(), [0, 2, 3]);
        assert!(g.tries[5].times.len() < SOME && g.tries[2].times.len() >= ENOUGH);
        g.choose();
        assert_eq!(g.winner, g.tries[2].choice);
        let choice = g.winner;
        let so_far = g.entry_so_far().unwrap();
        let entry = g.entry();
        assert!(entry.settled && entry.choice == choice && entry.tried[0].choice == choice);
        // Another search only compares what is left.
        let mut again = group(0);
        again.go_on_from(&entry);
        assert_eq!(again.alive().count(), 2);
        again.drop_winner("");
        assert_eq!(again.winner, Choice::BUILT_IN);
        assert_eq!(again.entry_so_far(), None);
        // So does one after a search that was killed; until it ends, nothing is chosen.
        assert!(so_far.choice == Choice::BUILT_IN && !so_far.settled);
        let mut killed = group(0);
        killed.go_on_from(&so_far);
        assert_eq!(killed.alive().collect::<Vec<_>>(), [0, 2, 3]);
    }

    #[test]
    fn what_ran_before_runs_until_it_gains_nothing() {
        let mut g = group(0);
        let (before, best) = (g.tries[1].choice, g.tries[2].choice);
        let tried = Tried { choice: before, ns: 9.0, samples: 4, out: None };
        g.go_on_from(&Entry { op: "linear".into(), choice: before, settled: false, tried: vec![tried] });
        g.tries[1].out = Some(SLOWER_THAN_BEST.into());
        g.winner = best;
        let so_far = g.entry_so_far().unwrap();
        assert_eq!((so_far.choice, &so_far.tried(before).unwrap().out), (before, &None));
        g.tries[1].out = Some("not faster beside the built-in choice".into());
        assert_eq!(g.entry_so_far().unwrap().choice, Choice::BUILT_IN);
    }

    #[test]
    fn threads_that_cannot_do_the_arithmetic_are_not_tried() {
        let rates = Rates { flops_f32: 2e9, flops_16: 2e9, bytes: 1e9 };
        for (ns, is_out) in [(1_500.0, true), (2_500.0, false)] {
            let mut g = group(2_000);
            g.tries[0].times = vec![ns];
            g.prune_by_cost(rates);
            assert_eq!(g.tries[1].choice.threads, Some(1));
            assert_eq!(g.tries[1].out.is_some(), is_out, "{ns}");
            assert!(g.tries[2].out.is_none());
        }
    }
}
