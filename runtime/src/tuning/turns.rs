//! Ways to run a job compared in whole steps, in turns.
//!
//! Each way is a trainer of its own. The first two that are compared stay in memory beside each other where there is room;
//! else each is built when its turn comes. All take the same steps, and every loss has to be the same in every bit.

use crate::calibration::median;
use crate::train::Trainer;
use crate::{Result, RunError};
use std::time::{Duration, Instant};

/// Time of a step in another way over that in the first one that it must stay below: what gains less is not worth a
/// difference.
pub(super) const FASTER: f64 = 0.99;

/// Pairs that are compared at least: all six have to be won then, seven of eight, 15 of 20.
pub(super) const LEAST_PAIRS: usize = 6;

/// Pairs of turns that are compared at most.
pub(super) const MOST_PAIRS: usize = 60;

/// How likely a way that is as fast as the other one may be taken for a faster one.
const CHANCE: f64 = 0.04;

/// Steps of a fresh trainer that are not timed, and of one that continues with short steps: caches fill.
const WARM_UP: usize = 2;
const REFILL: usize = 1;

/// How long the timed steps of a turn take at least.
const TURN: Duration = Duration::from_millis(100);

/// Whether times over the first way's have a median below `limit`, and are below 1 too often for chance (a sign test).
pub(super) fn is_faster(ratios: &[f64], limit: f64) -> bool {
    let won = ratios.iter().filter(|r| **r < 1.0).count();
    median(&mut ratios.to_vec()).is_some_and(|m| m < limit) && chance(ratios.len(), won) <= CHANCE
}

/// Chance that of `n` fair coins at least `k` show heads.
fn chance(n: usize, k: usize) -> f64 {
    let mut ways = 1.0;
    let mut sum = 0.0;
    for i in 0..=n {
        sum += if i >= k { ways } else { 0.0 };
        ways *= (n - i) as f64 / (i + 1) as f64;
    }
    sum / 2f64.powi(n as i32)
}

/// Builds the trainer of a way at its first step; its steps are of no further use.
pub(super) type Build<'a> = dyn FnMut(usize) -> Result<Trainer> + 'a;

/// Trainers that take turns.
pub(super) struct Turns<'a> {
    build: &'a mut Build<'a>,
    held: Vec<Option<Trainer>>,
    /// Bits of the loss of each step, whoever took it first.
    losses: Vec<u64>,
    /// Milliseconds of each way's turns.
    pub(super) times: Vec<Vec<f64>>,
}

impl<'a> Turns<'a> {
    /// For so many ways.
    pub(super) fn new(build: &'a mut Build<'a>, ways: usize) -> Turns<'a> {
        let held = (0..ways).map(|_| None).collect();
        Turns { build, held, losses: Vec::new(), times: vec![Vec::new(); ways] }
    }

    /// The trainer of a way; built if it is not there.
    pub(super) fn trainer(&mut self, way: usize) -> Result<&mut Trainer> {
        if self.held[way].is_none() {
            self.make_room();
            let trainer = (self.build)(way)?;
            self.hold(way, trainer)?;
        }
        self.held[way].as_mut().ok_or_else(|| RunError::Failed("a trainer is missing".into()))
    }

    /// Builds the trainer of a way that may be impossible to build: why.
    ///
    /// # Errors
    /// If it is built and fails.
    pub(super) fn attempt(&mut self, way: usize) -> Result<Option<String>> {
        if self.held[way].is_none() {
            self.make_room();
            match (self.build)(way) {
                Ok(trainer) => self.hold(way, trainer)?,
                Err(e) => return Ok(Some(e.to_string())),
            }
        }
        Ok(None)
    }

    /// Takes a fresh trainer in after its first steps.
    fn hold(&mut self, way: usize, mut trainer: Trainer) -> Result<()> {
        for _ in 0..WARM_UP {
            self.step(&mut trainer)?;
        }
        self.held[way] = Some(trainer);
        Ok(())
    }

    /// Leaves only what another one of its size fits beside.
    fn make_room(&mut self) {
        let largest = self.held.iter().flatten().map(|t| t.account().total()).max().unwrap_or(0);
        let room = self.held.iter().flatten().map(Trainer::room).min().unwrap_or(u64::MAX);
        if room / 4 * 3 < largest {
            self.held.iter_mut().for_each(|t| *t = None);
        }
    }

    /// Frees what a way holds.
    pub(super) fn forget(&mut self, way: usize) {
        self.held[way] = None;
    }

    /// Median milliseconds of a way's step in one turn.
    pub(super) fn turn(&mut self, way: usize) -> Result<f64> {
        let is_fresh = self.held[way].is_none();
        self.trainer(way)?;
        let Some(mut trainer) = self.held[way].take() else { return Ok(0.0) };
        let is_short = self.times[way].last().is_none_or(|ms| *ms < TURN.as_secs_f64() * 1e3);
        for _ in 0..if is_fresh || !is_short { 0 } else { REFILL } {
            self.step(&mut trainer)?;
        }
        let (start, mut times) = (Instant::now(), Vec::new());
        while times.is_empty() || start.elapsed() < TURN {
            times.push(self.step(&mut trainer)?);
        }
        self.held[way] = Some(trainer);
        let ms = median(&mut times).unwrap_or(0.0);
        self.times[way].push(ms);
        Ok(ms)
    }

    /// Time of a way over that of the first one, each in a turn; neither always comes second.
    pub(super) fn pair(&mut self, way: usize) -> Result<f64> {
        let order = if self.times[way].len().is_multiple_of(2) { [0, way] } else { [way, 0] };
        let mut ms = [0.0; 2];
        for w in order {
            ms[usize::from(w == way)] = self.turn(w)?;
        }
        Ok(ms[1] / ms[0])
    }

    /// Median milliseconds of all turns of a way; 0 if it had none.
    pub(super) fn median(&self, way: usize) -> f64 {
        median(&mut self.times[way].clone()).unwrap_or(0.0)
    }

    /// A step's milliseconds.
    fn step(&mut self, trainer: &mut Trainer) -> Result<f64> {
        let at = trainer.steps_done();
        let metrics = trainer.step()?;
        let loss = metrics.loss.to_bits();
        match self.losses.get(at) {
            Some(expected) if *expected != loss => Err(RunError::Failed(format!(
                "the loss of step {} is {} in one way to run the job and {} in another: a choice changes a result; none \
                 of them is used",
                at + 1,
                metrics.loss,
                f64::from_bits(*expected)
            ))),
            Some(_) => Ok(metrics.step_ms),
            None => {
                self.losses.push(loss);
                Ok(metrics.step_ms)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gain_counts_when_it_is_not_by_chance() {
        assert!((chance(8, 7) - 9.0 / 256.0).abs() < 1e-12 && chance(5, 0) == 1.0);
        let ratios = |won: usize, of: usize| [vec![0.9; won], vec![1.2; of - won]].concat();
        for (won, of, is_enough) in
            [(6, 6, true), (6, 7, false), (7, 8, true), (15, 20, true), (13, 20, false)]
        {
            assert_eq!(is_faster(&ratios(won, of), FASTER), is_enough, "{won} of {of}");
        }
        // Half a per cent is no gain, however often it shows, and a few large gains among losses are none.
        assert!(!is_faster(&vec![0.995; 60], FASTER));
        assert!(!is_faster(&[0.5, 0.5, 0.5, 1.01, 1.01, 1.01], FASTER));
        assert!(!is_faster(&[], FASTER) && !is_faster(&ratios(4, 4), FASTER));
    }
}
