//! The search for how many tokens heads take at once on a GPU, before that for their kernels: other tokens make other products.
//!
//! All launches of a head are tried in a step as those of a kernel are (`search`), on what the step has there. What wins alone
//! has to win in whole steps that alternate, too.

use super::search::{BuiltInSteps, FASTER, RACE};
use super::{DeviceTuning, Diary, Entry, OTHER_BITS, Settings, Tried, never_last};
use crate::calibration::median;
use crate::device::cuda::{Calls, Trial};
use crate::train::Trainer;
use crate::tuning::kept::Pace;
use crate::{Result, RunError};
use kfc_kernels::tile::Choice;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// What came of a search for heads.
#[derive(Clone, Debug, Default)]
pub struct Heads {
    /// Optimiser steps taken.
    pub steps: usize,
    /// Bits of the losses of the first steps, as built in; nothing if there was nothing to try.
    pub losses: Vec<u64>,
    /// Whether everything was tried often enough.
    pub settled: bool,
    /// By key, what runs in another way, and milliseconds of kernels in a step before and after, if it was found now.
    pub changed: Vec<(String, Choice, Option<[f64; 2]>)>,
}

/// A plan and a step of it.
type Place = (usize, usize);

/// Tries other numbers of tokens for the heads of a job. `trainer` is fresh and runs as built in; if steps were taken, it is of
/// no further use.
///
/// # Errors
/// As [`super::search`].
pub fn search_heads(
    trainer: &mut Trainer,
    tuning: &mut DeviceTuning,
    settings: &Settings<'_>,
    progress: &mut dyn FnMut(&str),
) -> Result<Heads> {
    let file = tuning.place()?;
    tuning.refuse_what_broke(&file)?;
    let mut found = Heads { settled: true, ..Heads::default() };
    let mut keys: BTreeMap<String, Vec<Place>> = BTreeMap::new();
    for (p, (_, plan)) in trainer.gpu_plans_mut().into_iter().enumerate() {
        plan.heads().iter().for_each(|h| keys.entry(h.key.clone()).or_default().push((p, h.step)));
    }
    let mut run = BuiltInSteps::new(settings);
    let mut pace = Pace::new();
    for (key, places) in keys {
        if !settings.takes_other_bits {
            tuning.hold_back(&key);
        }
        let before = tuning.entry(&key).cloned().map(Entry::leading);
        let is_known = before.as_ref().is_some_and(|e| !e.is_open(settings.takes_other_bits));
        if !is_known && run.goes_on(RACE) {
            progress("trying  tokens at once in the head");
            if found.losses.is_empty() {
                found.losses = run.warm_up(trainer)?;
            }
            let (entry, ms) = one(trainer, tuning, &file, (&key, &places), before.as_ref(), &mut run)?;
            found.settled &= entry.settled;
            if entry.choice != Choice::builtin(&key) {
                found.changed.push((key.clone(), entry.choice, ms));
            }
            tuning.insert(key, entry);
            pace.save(|| tuning.save_so_far());
        } else {
            found.settled &= is_known;
            if let Some(entry) = &before {
                tuning.insert(key.clone(), entry.clone());
            }
            let choice = before.map(|e| e.choice).filter(|c| *c != Choice::builtin(&key));
            found.changed.extend(choice.map(|c| (key, c, None)));
        }
    }
    found.steps = run.steps;
    Ok(found)
}

/// Tries the heads of one key. Returns what was found, and the times of steps with and without it if it is another choice.
fn one(
    trainer: &mut Trainer,
    tuning: &mut DeviceTuning,
    file: &Path,
    (key, places): (&str, &[Place]),
    before: Option<&Entry>,
    run: &mut BuiltInSteps<'_>,
) -> Result<(Entry, Option<[f64; 2]>)> {
    let (built_in, takes_other_bits) = (Choice::builtin(key), run.settings.takes_other_bits);
    let mut tried = vec![Tried::new(built_in)];
    let mut others: Vec<(usize, Vec<Arc<Calls>>)> = Vec::new();
    let (mut heads, mut gpu) = (Vec::new(), None);
    for (p, (_, plan)) in trainer.gpu_plans_mut().into_iter().enumerate() {
        gpu = Some(Arc::clone(plan.memory().gpu()));
        heads.extend(plan.heads().iter().filter(|h| places.contains(&(p, h.step))).cloned());
    }
    let (Some(gpu), Some(first)) = (gpu, heads.first().cloned()) else {
        return Ok((Entry { choice: built_in, leads: None, settled: true, tried }, None));
    };
    for choice in first.others() {
        let held_back = |t: &Tried| takes_other_bits && t.out.as_deref() == Some(OTHER_BITS);
        let known = before.and_then(|e| e.tried(choice)).filter(|t| t.out.is_some() && !held_back(t));
        let mut new = known.cloned().unwrap_or_else(|| Tried::new(choice));
        if new.out.is_none() {
            let calls = heads
                .iter()
                .map(|h| h.calls(&gpu, choice).map(Arc::new))
                .collect::<std::result::Result<_, _>>();
            match calls {
                Ok(calls) => others.push((tried.len(), calls)),
                Err(why) => new.out = Some(why),
            }
        }
        tried.push(new);
    }
    let mut settled = true;
    if !others.is_empty() {
        let choices: Vec<Choice> = others.iter().map(|(t, _)| tried[*t].choice).collect();
        let (diary, asked) = (Diary::of(file), (key.to_string(), choices.clone()));
        let journal =
            Box::new(move |i: Option<usize>| diary.write(i.map(|i| (asked.0.as_str(), asked.1[i]))));
        let deadline = Instant::now() + run.left(RACE).min(Duration::from_secs(20)) / 2;
        let contenders = others.iter().map(|(_, calls)| Arc::clone(&calls[0])).collect();
        let (trial, outcomes) = Trial::of_head(&first, contenders, deadline, takes_other_bits, journal);
        if let Some((_, plan)) = trainer.gpu_plans_mut().into_iter().nth(places[0].0) {
            plan.try_out(trial);
        }
        let step = trainer.step();
        run.steps += 1;
        let outcomes = std::mem::take(&mut *outcomes.lock().unwrap_or_else(PoisonError::into_inner));
        if let Err(error) = step {
            let Some(broke) = outcomes.broke else { return Err(error) };
            return Err(tuning.broke(file, key, choices[broke], &error));
        }
        settled = outcomes.settled;
        if let Some(why) = outcomes.skipped {
            tried.iter_mut().skip(1).for_each(|t| _ = t.out.get_or_insert_with(|| why.clone()));
            settled = true;
        } else {
            let places = std::iter::once(0).chain(others.iter().map(|(t, _)| *t));
            for (t, mut outcome) in places.zip(outcomes.all) {
                let t = &mut tried[t];
                (t.samples, t.ns) = (outcome.times.len(), median(&mut outcome.times).unwrap_or(0.0));
                t.other_bits |= outcome.other_bits;
                t.out = t.out.take().or(outcome.out);
                if t.other_bits && !takes_other_bits {
                    t.out.get_or_insert_with(|| OTHER_BITS.into());
                }
            }
        }
    }
    let fast = |(t, _): &&(usize, Vec<Arc<Calls>>)| {
        let t = &tried[*t];
        t.out.is_none() && t.samples > 0 && t.ns < FASTER * tried[0].ns
    };
    let best = others.iter().filter(fast).min_by(|a, b| tried[a.0].ns.total_cmp(&tried[b.0].ns));
    let mut choice = built_in;
    let mut ms = None;
    if let Some((best, calls)) = best {
        let instead = |p: usize| -> HashMap<usize, Arc<Calls>> {
            let of = places.iter().zip(calls).filter(|((q, _), _)| *q == p);
            of.map(|((_, step), calls)| (*step, Arc::clone(calls))).collect()
        };
        ms = run.compare(trainer, &mut |trainer, with| {
            for (p, (_, plan)) in trainer.gpu_plans_mut().into_iter().enumerate() {
                plan.run_steps_instead(if with { instead(p) } else { HashMap::new() });
            }
        })?;
        match ms {
            Some(_) => choice = tried[*best].choice,
            None => tried[*best].out = Some(super::WHOLE_STEP.into()),
        }
    }
    tried.sort_by(|a, b| never_last(a).total_cmp(&never_last(b)));
    Ok((Entry { choice, leads: None, settled, tried }, ms))
}

impl DeviceTuning {
    /// Writes down what ran when an earlier process was ended.
    pub(super) fn refuse_what_broke(&mut self, file: &Path) -> Result<()> {
        let Some((key, choice)) = Diary::of(file).take() else { return Ok(()) };
        self.refuse(&key, choice);
        self.save_so_far().map(|_| ())
    }

    /// Writes down that a choice broke the device; what is to be said.
    pub(super) fn broke(&mut self, file: &Path, key: &str, choice: Choice, error: &RunError) -> RunError {
        self.refuse(key, choice);
        let saved = self.save_so_far();
        Diary::of(file).write(None);
        match saved {
            Ok(_) => RunError::Failed(format!(
                "{error}; {key} ran as {choice}, which is written down and not tried again: give the same command to go on"
            )),
            Err(unsaved) => RunError::Failed(format!(
                "{error}; {key} ran as {choice}, which cannot be written down: {unsaved}"
            )),
        }
    }
}
