//! The search on a GPU: kernels that are cut otherwise, or printed in the other language, are tried in training steps.
//!
//! 1. Kernels are taken in order of the time of the steps that they are in. Each has a shortlist of choices; those that do
//!    not compile, spill, or need more than there is are out before they are launched.
//! 2. In a step that waits after each launch, each kernel that is left runs on the operands of its launch, and its results are
//!    compared with the built-in one's: wrong ones are out. Then all take turns, timed by events; the step goes on as built
//!    in. One with other bits within the tolerance is timed, too, and may win if the user said so.
//! 3. Steps with all winners alternate with steps as built in: if they are not faster, nothing is chosen.
//!
//! What is found is kept kernel by kernel, so that a search that is killed does not begin anew; winners lead then, and runs go
//! on with what was chosen before.

use super::{DeviceTuning, Diary, Entry, OTHER_BITS, Settings, Tried, WHOLE_STEP, never_last};
use crate::calibration::median;
use crate::device::cuda::{
    Launchable, Outcomes, Site, Trial, Triton, Unfit, algorithms, compile_trial, load_trial,
};
use crate::train::Trainer;
use crate::tuning::kept::Pace;
use crate::tuning::{Report, Status};
use crate::{Result, RunError};
use kfc_kernels::cuda::Arch;
use kfc_kernels::tile::Choice;
use kfc_kernels::tile::header::Language;
use kfc_kernels::tile::shortlist::shortlist;
use kfc_kernels::tile::tiling::Shape;
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Steps before anything is timed, whose losses tell later whether bits changed.
const WARM_UP: usize = 3;

/// Share of a step's time below which a kernel is not worth trying anything for.
const WORTH: f64 = 0.001;

/// Share of the time after which no more kernels are tried.
pub(super) const RACE: f64 = 0.8;

/// Time over the built-in choice's that a winner must stay below.
pub(super) const FASTER: f64 = 0.98;

/// One of so many tilings is tried in Triton, too.
const TRITON: usize = 4;

/// How far losses of the first steps may be apart with other bits, relative to their size or 1.
const LOSS: f64 = 2e-2;

/// Pairs of steps that are compared at least and at most, and the share that must be faster.
const LEAST_PAIRS: usize = 5;
const MOST_PAIRS: usize = 50;
const PAIRS_WON: f64 = 0.7;

/// What is chosen for, and the launches that it concerns.
struct Subject {
    key: String,
    /// Plan, and the first launch there of a kernel that computes it.
    sites: Vec<(usize, Site)>,
    /// Nanoseconds of a step that the plan's steps of these launches take.
    ns: f64,
    tries: Vec<Try>,
    settled: bool,
    winner: Choice,
    /// The winner's kernels, by the position of what they stand in for.
    kernels: Vec<(usize, Arc<Launchable>)>,
}

/// A choice, and the times of its launches.
struct Try {
    tried: Tried,
    /// For each site its kernel, and the median time.
    sites: Vec<(Arc<Launchable>, f64)>,
}

/// Tries choices for the kernels of a job. `trainer` is fresh and runs as built in ([`Trainer::with_choices`]); its steps are
/// of no further use. What is found goes into `tuning`. Returns what came of it, and why there is no Triton if there is none.
///
/// # Errors
/// If the job does not run on a GPU, or a kernel breaks it: that is written down, and another search leaves it out. And as
/// [`Trainer::step`].
pub fn search(
    trainer: &mut Trainer,
    tuning: &mut DeviceTuning,
    settings: Settings<'_>,
    progress: &mut dyn FnMut(Status),
) -> Result<(Report, Option<String>)> {
    let file = tuning.place()?;
    tuning.refuse_what_broke(&file)?;
    let triton = Triton::new(&settings.python);
    let mut s = Search { run: BuiltInSteps::new(&settings), triton };
    let losses = s.run.warm_up(trainer)?;
    s.run.steps += 1;
    let mut subjects = subjects(trainer)?;
    let all = subjects.len();
    let mut settled = 0;
    let mut pace = Pace::new();
    for (i, subject) in subjects.iter_mut().enumerate() {
        s.take(trainer, tuning, &file, subject, all - i)?;
        settled += usize::from(subject.settled);
        if subject.tries.len() > 1 {
            tuning.insert(subject.key.clone(), subject.entry());
            pace.save(|| tuning.save_so_far());
        }
        progress(s.status("trying", [all, settled]));
    }
    progress(s.status("comparing", [all, settled]));
    let step_ms = s.compare(trainer, &mut subjects)?;
    let report = Report {
        steps: s.run.steps,
        kernels: all,
        with_choices: subjects.iter().filter(|p| p.tries.len() > 1).count(),
        changed: subjects.iter().filter(|p| p.winner != p.builtin()).count(),
        settled: subjects.iter().all(|p| p.settled),
        step_ms,
        transposed_bytes: 0,
        losses,
    };
    for subject in subjects.iter().filter(|p| p.tries.len() > 1) {
        tuning.insert(subject.key.clone(), subject.entry());
    }
    Ok((report, s.triton.missing()))
}

/// Takes the first steps of a fresh trainer that runs with what was found, and compares their losses with those as built in.
///
/// # Errors
/// If a loss differs in a bit, or is not even near where kernels with other bits were taken; and as [`Trainer::step`].
pub fn verify(trainer: &mut Trainer, losses: &[u64]) -> Result<()> {
    let is_exact = trainer.other_bits().is_empty();
    for (step, expected) in losses.iter().enumerate() {
        let loss = trainer.step()?.loss;
        let before = f64::from_bits(*expected);
        let is_near = (loss - before).abs() <= LOSS * before.abs().max(1.0);
        if loss.to_bits() != *expected && (is_exact || !is_near) {
            return Err(RunError::Failed(format!(
                "the loss of step {} is {loss} with the choices found and {before} as built in: a kernel changes its \
                 result; none of them is used",
                step + 1,
            )));
        }
    }
    Ok(())
}

/// The kernels of both plans, the most time first.
fn subjects(trainer: &mut Trainer) -> Result<Vec<Subject>> {
    trainer.forget_times();
    trainer.step()?;
    let plans = trainer.gpu_plans_mut();
    if plans.is_empty() {
        return Err(RunError::Input("these choices are tried on a GPU alone: use --device cuda".into()));
    }
    let mut all: BTreeMap<String, Subject> = BTreeMap::new();
    let mut total = 0.0;
    for (p, (_, plan)) in plans.into_iter().enumerate() {
        let times = plan.times();
        total += times.iter().sum::<u64>() as f64;
        for (keys, ns) in plan.programs().iter().zip(&times) {
            // Heads are searched before (`heads`).
            for key in keys.iter().filter(|key| Choice::builtin(key).chunk.is_none()) {
                all.entry(key.clone()).or_insert_with(|| Subject::new(key)).ns += *ns as f64;
            }
        }
        for site in plan.sites() {
            let subject = all.entry(site.key.clone()).or_insert_with(|| Subject::new(&site.key));
            subject.sites.push((p, site.clone()));
        }
    }
    let mut all: Vec<Subject> = all.into_values().filter(|p| p.ns >= WORTH * total).collect();
    all.sort_by(|a, b| b.ns.total_cmp(&a.ns));
    Ok(all)
}

/// Steps of a trainer that runs as built in, and how long they may go on.
pub(super) struct BuiltInSteps<'a> {
    start: Instant,
    pub(super) settings: &'a Settings<'a>,
    /// Steps taken.
    pub(super) steps: usize,
}

impl<'a> BuiltInSteps<'a> {
    /// The time runs from now on.
    pub(super) fn new(settings: &'a Settings<'a>) -> BuiltInSteps<'a> {
        BuiltInSteps { start: Instant::now(), settings, steps: 0 }
    }

    pub(super) fn goes_on(&self, share: f64) -> bool {
        !self.settings.stop.load(Ordering::SeqCst) && !self.left(share).is_zero()
    }

    /// What is left of this share of the time.
    pub(super) fn left(&self, share: f64) -> Duration {
        self.settings.budget.mul_f64(share).saturating_sub(self.start.elapsed())
    }

    /// The first steps. Returns the bits of their losses.
    pub(super) fn warm_up(&mut self, trainer: &mut Trainer) -> Result<Vec<u64>> {
        self.steps += WARM_UP;
        (0..WARM_UP).map(|_| Ok(trainer.step()?.loss.to_bits())).collect()
    }

    /// Steps with something else beside steps as built in; `turn` turns to it, or back. Returns the milliseconds of their kernels
    /// if it is faster.
    pub(super) fn compare(
        &mut self,
        trainer: &mut Trainer,
        turn: &mut dyn FnMut(&mut Trainer, bool),
    ) -> Result<Option<[f64; 2]>> {
        let mut times = [Vec::new(), Vec::new()];
        // The first pair warms up.
        for pair in 0..=MOST_PAIRS {
            let is_short = pair <= LEAST_PAIRS && !self.settings.stop.load(Ordering::SeqCst);
            if !is_short && !self.goes_on(1.0) {
                break;
            }
            let order = if pair % 2 == 0 { [0, 1] } else { [1, 0] };
            for side in order {
                turn(trainer, side == 1);
                let ns = self.timed_step(trainer)?;
                if pair > 0 {
                    times[side].push(ns);
                }
            }
        }
        turn(trainer, false);
        let won = times[0].iter().zip(&times[1]).filter(|(built_in, tuned)| tuned < built_in).count();
        let is_mostly = won as f64 >= PAIRS_WON * times[1].len() as f64;
        let [before, after] = times.map(|mut t| median(&mut t).unwrap_or(0.0));
        Ok((after < before && is_mostly).then_some([before * 1e-6, after * 1e-6]))
    }

    /// Nanoseconds of a step's kernels, by events.
    fn timed_step(&mut self, trainer: &mut Trainer) -> Result<f64> {
        trainer.forget_times();
        trainer.step()?;
        self.steps += 1;
        let plans = trainer.gpu_plans_mut();
        Ok(plans.iter().map(|(_, plan)| plan.times().iter().sum::<u64>() as f64).sum())
    }
}

struct Search<'a> {
    run: BuiltInSteps<'a>,
    triton: Triton,
}

impl Search<'_> {
    fn status(&self, part: &'static str, kernels: [usize; 2]) -> Status {
        Status { part, elapsed: self.run.start.elapsed(), kernels }
    }

    /// Tries one kernel, of so many that are left, unless an earlier search settled it.
    fn take(
        &mut self,
        trainer: &mut Trainer,
        tuning: &mut DeviceTuning,
        file: &Path,
        subject: &mut Subject,
        left: usize,
    ) -> Result<()> {
        let takes_other_bits = self.run.settings.takes_other_bits;
        if !takes_other_bits {
            tuning.hold_back(&subject.key);
        }
        let before = tuning.entry(&subject.key).cloned().map(Entry::leading);
        if let Some(entry) = before.as_ref().filter(|e| !e.is_open(takes_other_bits)) {
            return subject.go_on_from(trainer, entry, &self.triton);
        }
        if !self.run.goes_on(RACE) {
            // What was found before holds.
            return before.map_or(Ok(()), |entry| subject.go_on_from(trainer, &entry, &self.triton));
        }
        subject.compile(trainer, self.run.settings, before.as_ref(), &self.triton)?;
        let mut all_settled = true;
        for site in 0..subject.sites.len() {
            let share = self.run.left(RACE) / left.max(1) as u32;
            let deadline = Instant::now() + share / subject.sites.len() as u32;
            all_settled &= self.try_site(trainer, tuning, file, subject, site, deadline)?;
        }
        subject.settled = all_settled;
        subject.choose(takes_other_bits);
        Ok(())
    }

    /// One kernel of a subject, in a step. Returns whether all that are left were timed often enough.
    fn try_site(
        &mut self,
        trainer: &mut Trainer,
        tuning: &mut DeviceTuning,
        file: &Path,
        subject: &mut Subject,
        number: usize,
        deadline: Instant,
    ) -> Result<bool> {
        let others: Vec<usize> = subject.alive().filter(|t| *t > 0).collect();
        if others.is_empty() {
            return Ok(true);
        }
        let key = subject.key.clone();
        let choices: Vec<Choice> = others.iter().map(|t| subject.tries[*t].tried.choice).collect();
        let kernels = others.iter().map(|t| Arc::clone(&subject.tries[*t].sites[number].0)).collect();
        let (diary, asked) = (Diary::of(file), (key.clone(), choices.clone()));
        let journal =
            Box::new(move |i: Option<usize>| diary.write(i.map(|i| (asked.0.as_str(), asked.1[i]))));
        let (plan, site) = &subject.sites[number];
        let (trial, outcomes) =
            Trial::new(site, kernels, deadline, self.run.settings.takes_other_bits, journal);
        if let Some((_, plan)) = trainer.gpu_plans_mut().into_iter().nth(*plan) {
            plan.try_out(trial);
        }
        let step = trainer.step();
        self.run.steps += 1;
        let outcomes = std::mem::take(&mut *outcomes.lock().unwrap_or_else(PoisonError::into_inner));
        if let Err(error) = step {
            let Some(broke) = outcomes.broke else { return Err(error) };
            return Err(tuning.broke(file, &key, choices[broke], &error));
        }
        Ok(subject.learn(number, &others, outcomes))
    }

    /// Steps with all winners beside steps as built in. Returns the milliseconds of their kernels, if there are winners and
    /// they are faster; else there are none any more.
    fn compare(&mut self, trainer: &mut Trainer, subjects: &mut [Subject]) -> Result<Option<[f64; 2]>> {
        let instead: HashMap<usize, Arc<Launchable>> =
            subjects.iter().flat_map(|p| p.kernels.iter().cloned()).collect();
        if instead.is_empty() {
            return Ok(None);
        }
        let ms = self.run.compare(trainer, &mut |trainer, with| {
            for (_, plan) in trainer.gpu_plans_mut() {
                plan.run_instead(if with { instead.clone() } else { HashMap::new() });
            }
        })?;
        if ms.is_none() {
            subjects.iter_mut().for_each(Subject::drop_winner);
        }
        Ok(ms)
    }
}

impl Subject {
    fn new(key: &str) -> Subject {
        Subject {
            key: key.into(),
            sites: Vec::new(),
            ns: 0.0,
            tries: Vec::new(),
            settled: false,
            winner: Choice::builtin(key),
            kernels: Vec::new(),
        }
    }

    fn builtin(&self) -> Choice {
        Choice::builtin(&self.key)
    }

    /// What is tried at most, the built-in choice first.
    fn shortlist(&self, arch: Arch, processors: usize, tilings: usize) -> Vec<Choice> {
        let cuts = match Shape::named(&self.key) {
            Some(shape) => shortlist(&shape, arch, processors, tilings).into_iter().map(Some).collect(),
            None => vec![None],
        };
        let in_triton = &cuts[..cuts.len().min((tilings / TRITON).max(1))];
        let of = |language| {
            move |tiling: &Option<_>| Choice { tiling: *tiling, language, chunk: None, library: None }
        };
        let all = cuts.iter().map(of(Language::Cuda)).chain(in_triton.iter().map(of(Language::Triton)));
        all.collect()
    }

    /// Compiles and loads what is worth trying; what was out before stays out.
    fn compile(
        &mut self,
        trainer: &mut Trainer,
        settings: &Settings<'_>,
        before: Option<&Entry>,
        triton: &Triton,
    ) -> Result<()> {
        let Some((_, plan)) = trainer.gpu_plans_mut().into_iter().next() else { return Ok(()) };
        let gpu = Arc::clone(plan.memory().gpu());
        let mut list = self.shortlist(gpu.arch, gpu.info.processors.max(1) as usize, settings.tilings);
        // Where the library is missing, it is not tried: `kfc doctor` says so.
        if let Some(plain) = self.sites.first().and_then(|(_, site)| site.plain()) {
            list.extend(algorithms(&gpu, &plain).unwrap_or_default().into_iter().map(Choice::by_library));
        }
        let (sites, builtin) = (&self.sites, self.builtin());
        let stays_out = |t: &&Tried| {
            let is_held_back = settings.takes_other_bits && t.out.as_deref() == Some(OTHER_BITS);
            t.out.is_some() && t.choice != builtin && !is_held_back
        };
        let one = |choice: &Choice| -> Option<(Tried, Vec<_>)> {
            let new = Tried::new(*choice);
            if let Some(t) = before.and_then(|e| e.tried(*choice)).filter(stays_out) {
                return Some((t.clone(), Vec::new()));
            }
            let compiled = sites.iter().map(|(_, site)| compile_trial(&gpu, site, *choice, triton)).collect();
            match compiled {
                Ok(all) => Some((new, all)),
                Err(Unfit::Out(why)) => Some((Tried { out: Some(why), ..new }, Vec::new())),
                Err(Unfit::NoCompiler) => None,
            }
        };
        let compiled: Vec<(Tried, Vec<_>)> = list.par_iter().filter_map(one).collect();
        let mut binaries: Vec<Vec<u8>> = Vec::new();
        for (mut tried, all) in compiled {
            let binary: Vec<u8> = all.iter().flat_map(|(_, c)| c.binary()).collect();
            tried.uses =
                all.iter().fold(tried.uses, |[r, s], (_, c)| [r.max(c.registers), s.max(c.shared_bytes)]);
            let mut loaded = Vec::new();
            if tried.out.is_none() && binaries.contains(&binary) {
                tried.out = Some("the same machine code as another one".into());
            }
            if tried.out.is_none() {
                match all
                    .iter()
                    .map(|(kernel, c)| load_trial(&gpu, kernel, c))
                    .collect::<std::result::Result<_, _>>()
                {
                    Ok(kernels) => loaded = kernels,
                    Err(e) => tried.out = Some(e.to_string()),
                }
                binaries.push(binary);
            }
            let sites = loaded.into_iter().map(|kernel| (Arc::new(kernel), 0.0)).collect();
            self.tries.push(Try { tried, sites });
        }
        Ok(())
    }

    fn alive(&self) -> impl Iterator<Item = usize> {
        (0..self.tries.len()).filter(|t| self.tries[*t].tried.out.is_none())
    }

    /// Takes in what came of trying a site with these.
    fn learn(&mut self, site: usize, others: &[usize], outcomes: Outcomes) -> bool {
        if let Some(why) = outcomes.skipped {
            others.iter().for_each(|t| self.tries[*t].tried.out = Some(why.clone()));
            return true;
        }
        let tries = std::iter::once(&0).chain(others);
        for (t, outcome) in tries.zip(outcomes.all) {
            let t = &mut self.tries[*t];
            let mut times = outcome.times;
            t.tried.samples += times.len();
            if let Some(place) = t.sites.get_mut(site) {
                place.1 = median(&mut times).unwrap_or(0.0);
            }
            t.tried.other_bits |= outcome.other_bits;
            if let Some(why) = outcome.out {
                t.tried.out.get_or_insert(why);
            }
        }
        outcomes.settled
    }

    /// The fastest choice that is not out, if it is faster than the built-in one over all launches.
    fn choose(&mut self, takes_other_bits: bool) {
        let launches: Vec<f64> = self.sites.iter().map(|(_, s)| s.launches as f64).collect();
        for t in &mut self.tries {
            // What is out after one kernel was not timed in the others.
            let timed = t.sites.iter().zip(&launches).filter(|((_, ns), _)| *ns > 0.0);
            let add = |(sum, all): (f64, f64), ((_, ns), n): (&(_, f64), &f64)| (sum + ns * n, all + n);
            let (sum, all) = timed.fold((0.0, 0.0), add);
            t.tried.ns = if all > 0.0 { sum / all } else { 0.0 };
        }
        let Some(built_in) = self.tries.first().map(|t| t.tried.ns) else { return };
        if !takes_other_bits {
            let held_back = self.tries.iter_mut().filter(|t| t.tried.other_bits);
            held_back.for_each(|t| _ = t.tried.out.get_or_insert(OTHER_BITS.into()));
        }
        let left = self.tries.iter().skip(1).filter(|t| t.tried.out.is_none() && t.tried.samples > 0);
        let Some(best) = left.min_by(|a, b| a.tried.ns.total_cmp(&b.tried.ns)) else { return };
        if best.tried.ns < FASTER * built_in {
            self.winner = best.tried.choice;
            let kernels = best.sites.iter().map(|(kernel, _)| Arc::clone(kernel));
            self.kernels = self.sites.iter().map(|(_, s)| s.kernel).zip(kernels).collect();
        }
    }

    /// Takes over what an earlier search found.
    fn go_on_from(&mut self, trainer: &mut Trainer, entry: &Entry, triton: &Triton) -> Result<()> {
        self.settled = entry.settled;
        self.tries = entry.tried.iter().map(|t| Try { tried: t.clone(), sites: Vec::new() }).collect();
        if entry.choice == self.builtin() {
            return Ok(());
        }
        let Some((_, plan)) = trainer.gpu_plans_mut().into_iter().next() else { return Ok(()) };
        let gpu = Arc::clone(plan.memory().gpu());
        let made = self.sites.iter().map(|(_, site)| {
            let (kernel, compiled) = compile_trial(&gpu, site, entry.choice, triton)?;
            let kernel = load_trial(&gpu, &kernel, &compiled).map_err(|e| e.to_string())?;
            Ok((site.kernel, Arc::new(kernel)))
        });
        match made.collect::<std::result::Result<Vec<_>, Unfit>>() {
            Ok(kernels) => (self.kernels, self.winner) = (kernels, entry.choice),
            Err(Unfit::Out(why)) if entry.choice.library.is_none() => self.put_out(entry.choice, &why),
            // What was found holds where there is a compiler or library for it.
            Err(_) => self.tries.clear(),
        }
        Ok(())
    }

    fn put_out(&mut self, choice: Choice, why: &str) {
        let tries = self.tries.iter_mut().filter(|t| t.tried.choice == choice);
        tries.for_each(|t| t.tried.out = Some(why.into()));
    }

    fn drop_winner(&mut self) {
        let builtin = self.builtin();
        if self.winner != builtin {
            self.put_out(self.winner, WHOLE_STEP);
        }
        (self.winner, self.kernels) = (builtin, Vec::new());
    }

    /// What is kept of it.
    fn entry(&self) -> Entry {
        let mut tried: Vec<Tried> = self.tries.iter().map(|t| t.tried.clone()).collect();
        tried.sort_by(|a, b| never_last(a).total_cmp(&never_last(b)));
        Entry { choice: self.winner, leads: None, settled: self.settled, tried }
    }
}
