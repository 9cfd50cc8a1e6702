//! What a job makes again in the backward pass, found by timing whole steps of plans that fit.
//!
//! The planner weighs plans with predicted times of kernels; here the plans that it expects to be among the fastest are
//! timed. No plan changes a bit of a result, and a plan is used only where its memory fits the budget to the byte.

use super::Tuning;
use super::search::choose;
use super::turns::{FASTER, LEAST_PAIRS, MOST_PAIRS, Turns, is_faster};
use crate::Result;
use crate::exec::Copies;
use crate::train::setup::Budgets;
use crate::train::{Recomputed, Trainer, Ways};
use kfc_graph::ValueId;
use kfc_graph::budget::{Choice, FREE};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Plans that are timed beside the planner's choice.
const PLANS: usize = 5;

/// Pairs of turns after which a plan that was no faster in the better one is out.
const FEW: usize = 2;

/// Share of the planner's step that a plan may be expected to take longer.
const LONGER: f64 = 0.05;

/// A plan that was tried.
#[derive(Clone, Debug, PartialEq)]
pub struct TriedPlan {
    /// What is made again; none for the planner's choice.
    pub name: Option<String>,
    /// The saved values that are.
    pub dropped: BTreeSet<ValueId>,
    /// Median milliseconds of a step; 0 if it was never run.
    pub ms: f64,
    /// Predicted peak and the arena in it, bytes.
    pub peak: u64,
    /// See there.
    pub arena: usize,
    /// Why it is out, if it is.
    pub out: Option<String>,
}

/// What was found for a job under a budget.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlanEntry {
    /// Which of them runs; none for the planner's choice.
    pub choice: Option<usize>,
    /// The one that is to run if it wins together with all that is found for kernels, too.
    pub leads: Option<usize>,
    /// Everything that was tried: the planner's choice, then others in order of predicted time.
    pub tried: Vec<TriedPlan>,
}

impl PlanEntry {
    /// The plan that runs instead of the planner's choice.
    pub fn chosen(&self) -> Option<&TriedPlan> {
        self.tried.get(self.choice?)
    }

    /// What a job is to make again.
    pub fn recomputed(&self) -> Recomputed {
        self.chosen().map_or(Recomputed::Planned, |plan| Recomputed::Values(plan.dropped.clone()))
    }

    /// What a job makes again while kernels are tried.
    pub fn leading(&self) -> Recomputed {
        PlanEntry { choice: self.leads.or(self.choice), ..self.clone() }.recomputed()
    }

    /// Chooses the one that leads.
    pub fn adopt(&mut self) {
        self.choice = self.leads.take().or(self.choice);
    }

    /// Stays with the planner's choice.
    fn refuse(&mut self, why: &str) {
        if let Some(plan) = self.leads.take().and_then(|i| self.tried.get_mut(i)) {
            plan.out = Some(why.into());
        }
    }
}

/// Builds a trainer at its first step, whose steps nobody keeps.
pub type Make<'a> = dyn FnMut(&Ways) -> Result<Trainer> + 'a;

/// What came of timing plans.
#[derive(Clone, Debug, PartialEq)]
pub enum Plans {
    /// They were timed.
    Timed(PlanEntry),
    /// They were not; why.
    Untimed(String),
}

/// Times plans of a job for about `time`. The fastest one leads.
///
/// # Errors
/// As [`Trainer::step`] and `make`; and if a plan changes a loss, which would be an error of a pass.
pub fn recompute(
    budgets: &Budgets,
    mem_budget: Option<u64>,
    make: &mut Make<'_>,
    time: Duration,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(&str),
) -> Result<Plans> {
    let goes_on = || !stop.load(Ordering::SeqCst);
    let start = Instant::now();
    // What says whether the job fits is its trainer.
    let Ok(planned) = budgets.planned(mem_budget) else {
        return Ok(Plans::Untimed("train.mem_budget leaves no room for any other".into()));
    };
    let ways = candidates(budgets, mem_budget, planned);
    if ways.len() == 1 {
        return Ok(Plans::Untimed("there is no other plan within the budget that may be as fast".into()));
    }
    let all_ways: Vec<Recomputed> = ways
        .iter()
        .map(|t| t.name.as_ref().map_or(Recomputed::Planned, |_| Recomputed::Values(t.dropped.clone())))
        .collect();
    let mut build = |way: usize| make(&Ways { recomputed: all_ways[way].clone(), ..Ways::default() });
    let mut turns = Turns::new(&mut build, ways.len());
    let mut tried = ways.clone();
    progress("timing plans");
    let step = Duration::from_secs_f64(turns.turn(0)? * 1e-3);
    let built = start.elapsed();
    let needed = (built + step * 2 * FEW as u32) * (tried.len() as u32 - 1) + step * 2 * LEAST_PAIRS as u32;
    if needed > time {
        return Ok(Plans::Untimed(format!(
            "that would take about {:.0} seconds more than there are for it",
            (needed - time).as_secs_f64().ceil()
        )));
    }
    let mut best: Option<(f64, usize)> = None;
    for (i, plan) in tried.iter_mut().enumerate().skip(1) {
        progress("timing plans");
        if let Some(why) = turns.attempt(i)? {
            plan.out = Some(why);
            continue;
        }
        let trainer = turns.trainer(i)?;
        let (arena, peak) = (trainer.train_arena(), trainer.account().total());
        if arena != plan.arena {
            // It did not fit beside what this process holds, and another one took its place.
            plan.out = Some("does not fit".into());
            turns.forget(i);
            continue;
        }
        plan.peak = peak;
        let mut ratio = f64::INFINITY;
        for _ in 0..FEW {
            if !goes_on() {
                return Ok(Plans::Untimed("the search was stopped".into()));
            }
            ratio = turns.pair(i)?.min(ratio);
        }
        turns.forget(i);
        if ratio >= FASTER {
            plan.out = Some("not faster".into());
        } else if best.is_none_or(|(least, _)| ratio < least) {
            best = Some((ratio, i));
        }
    }
    let mut leads = None;
    if let Some((_, i)) = best {
        let mut ratios = Vec::new();
        while ratios.len() < LEAST_PAIRS || (ratios.len() < MOST_PAIRS && start.elapsed() < time) {
            if !goes_on() {
                return Ok(Plans::Untimed("the search was stopped".into()));
            }
            progress("comparing plans");
            ratios.push(turns.pair(i)?);
        }
        if is_faster(&ratios, FASTER) {
            leads = Some(i);
        } else {
            tried[i].out = Some("not faster by more than the noise".into());
        }
    }
    tried[0].peak = turns.trainer(0)?.account().total();
    for (i, t) in tried.iter_mut().enumerate() {
        t.ms = turns.median(i);
        if i > 0 && leads != Some(i) {
            t.out.get_or_insert("slower than the best".into());
        }
    }
    Ok(Plans::Timed(PlanEntry { choice: None, leads, tried }))
}

/// Whether all that was found is faster together than nothing of it, in whole steps and by more than the noise: then the plan of
/// `entry` that leads is chosen, and else it goes. Returns the milliseconds of both. For about `time`; if `stop` is
/// set meanwhile, nothing is decided.
///
/// # Errors
/// As [`recompute`].
pub fn prove(
    entry: &mut PlanEntry,
    tuning: &Tuning,
    make: &mut Make<'_>,
    time: Duration,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(&str),
) -> Result<Option<[f64; 2]>> {
    let start = Instant::now();
    let nothing = Tuning::empty(tuning.machine.clone());
    let found = entry.leading();
    let mut build = |way: usize| {
        let (recomputed, tuning) =
            if way == 0 { (Recomputed::Planned, &nothing) } else { (found.clone(), tuning) };
        let mut trainer = make(&Ways { copies: Copies::All, recomputed })?;
        choose(&mut trainer, tuning);
        Ok(trainer)
    };
    let mut turns = Turns::new(&mut build, 2);
    let mut ratios = Vec::new();
    while ratios.len() < LEAST_PAIRS || (ratios.len() < MOST_PAIRS && start.elapsed() < time) {
        if stop.load(Ordering::SeqCst) {
            return Ok(None);
        }
        progress("checking all together");
        ratios.push(turns.pair(1)?);
    }
    match is_faster(&ratios, FASTER) {
        true => entry.adopt(),
        false => entry.refuse("not faster together with the kernels' choices"),
    }
    Ok(Some([0, 1].map(|way| turns.median(way))))
}

/// The planner's choice, and the plans within the budget that may be as fast, the fastest expected first.
fn candidates(budgets: &Budgets, mem_budget: Option<u64>, planned: &Choice) -> Vec<TriedPlan> {
    let frontier = &budgets.frontier;
    let limit = mem_budget.unwrap_or(u64::MAX);
    let longest = planned.extra_seconds + LONGER * frontier.free_seconds / FREE;
    let mut all: Vec<_> = frontier.choices.iter().chain(&frontier.named).collect();
    all.sort_by(|a, b| a.extra_seconds.total_cmp(&b.extra_seconds));
    let mut seen = BTreeSet::from([planned.dropped.clone()]);
    let fits = all.into_iter().filter(|c| budgets.peak(c) <= limit && c.extra_seconds <= longest);
    let new = fits.filter(|c| seen.insert(c.dropped.clone())).take(PLANS);
    let tried = |c: &Choice, name: Option<String>| TriedPlan {
        name,
        dropped: c.dropped.clone(),
        ms: 0.0,
        peak: budgets.peak(c),
        arena: c.arena_bytes,
        out: None,
    };
    std::iter::once(tried(planned, None)).chain(new.map(|c| tried(c, Some(c.name.clone())))).collect()
}

pub(super) fn to_json(e: &PlanEntry) -> Value {
    let tried = |t: &TriedPlan| {
        let dropped: Vec<u32> = t.dropped.iter().map(|v| v.0).collect();
        json!({"again": t.name, "values": dropped, "ms": t.ms, "peak": t.peak, "arena": t.arena, "out": t.out})
    };
    json!({"choice": e.choice, "leads": e.leads, "tried": e.tried.iter().map(tried).collect::<Vec<_>>()})
}

pub(super) fn from_json(v: &Value) -> Option<PlanEntry> {
    let name = |v: &Value| v.as_str().map(String::from);
    let value = |v: &Value| Some(ValueId(u32::try_from(v.as_u64()?).ok()?));
    let tried = |t: &Value| {
        Some(TriedPlan {
            name: name(&t["again"]),
            dropped: t["values"].as_array()?.iter().map(value).collect::<Option<_>>()?,
            ms: t["ms"].as_f64().filter(|x| x.is_finite() && *x >= 0.0)?,
            peak: t["peak"].as_u64()?,
            arena: t["arena"].as_u64()? as usize,
            out: name(&t["out"]),
        })
    };
    let tried: Vec<TriedPlan> = v["tried"].as_array()?.iter().map(tried).collect::<Option<_>>()?;
    let is_one = |n: usize| n > 0 && n < tried.len();
    let one = |v: &Value| match v {
        Value::Null => Some(None),
        v => v.as_u64().map(|n| n as usize).filter(|n| is_one(*n)).map(Some),
    };
    let (choice, leads) = (one(&v["choice"])?, one(&v["leads"])?);
    Some(PlanEntry { choice, leads, tried })
}
