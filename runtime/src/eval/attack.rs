//! Robustness: how often a right answer turns wrong when the question is put in other words that mean the same.
//!
//! An attack takes a row that was answered right and asks variants of its question, one after the other, until one is
//! answered wrong or the tries are used up. Each variant that the model is asked is a query. The attack success rate is
//! the share of attacked rows that fell. Rows are attacked together: the first variants of all of them are one batch.

use super::exam::Ask;
use super::perturb::{Lexicon, Perturbation};
use super::{Exam, Observer, RowResult};
use crate::error::Result;

/// How rows are attacked.
#[derive(Clone, Debug, PartialEq)]
pub struct AttackOptions {
    /// Variants of a question that are tried at most.
    pub tries: usize,
    /// Only the first rows that were answered right.
    pub rows: Option<usize>,
    /// Seed of the variants.
    pub seed: u64,
    /// Words for [`Perturbation::Synonym`].
    pub lexicon: Lexicon,
}

/// What became of one attacked row.
#[derive(Clone, Debug, PartialEq)]
pub struct Attacked {
    /// Its place in the data, from 1.
    pub row: usize,
    /// Variants that were asked.
    pub queries: usize,
    /// The variant that was answered wrong, if one was, with what came of it.
    pub fell: Option<(String, RowResult)>,
}

/// What one kind of perturbation did to a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Attack {
    /// The kind.
    pub kind: Perturbation,
    /// Rows that were attacked, in order.
    pub attacked: Vec<Attacked>,
    /// Rows that were answered right but have nothing that this kind can change.
    pub unchangeable: usize,
}

impl Attack {
    /// Rows that fell.
    pub fn fell(&self) -> usize {
        self.attacked.iter().filter(|a| a.fell.is_some()).count()
    }

    /// Queries of all rows.
    pub fn queries(&self) -> usize {
        self.attacked.iter().map(|a| a.queries).sum()
    }

    /// The attack success rate; NaN if nothing was attacked.
    pub fn rate(&self) -> f64 {
        self.fell() as f64 / self.attacked.len() as f64
    }
}

impl Exam<'_> {
    /// Attacks the rows that `rows`, what came of asking them as they stand, says were right.
    ///
    /// # Errors
    /// If a variant does not fit, or the model's numbers are not finite.
    pub fn attack(
        &mut self,
        rows: &[RowResult],
        kind: Perturbation,
        options: &AttackOptions,
        observer: &mut dyn Observer,
    ) -> Result<Attack> {
        let right = rows.iter().filter(|r| r.correct == Some(true)).map(|r| r.row - 1);
        let mut open: Vec<Target> = Vec::new();
        let mut unchangeable = 0;
        for row in right.take(options.rows.unwrap_or(usize::MAX)) {
            let variants = self.variants(row, kind, options);
            if variants.is_empty() {
                unchangeable += 1;
            } else {
                open.push(Target { variants, done: Attacked { row: row + 1, queries: 0, fell: None } });
            }
        }
        for variant in 0..options.tries {
            let standing: Vec<usize> = (0..open.len()).filter(|&i| open[i].next(variant).is_some()).collect();
            let asks: Vec<Ask> = standing
                .iter()
                .map(|&i| Ask { row: open[i].done.row - 1, question: open[i].next(variant).cloned() })
                .collect();
            if asks.is_empty() {
                break;
            }
            let (results, _) = self.ask(&asks, observer)?;
            for ((at, ask), result) in standing.into_iter().zip(asks).zip(results) {
                open[at].done.queries += 1;
                if result.correct == Some(false) {
                    open[at].done.fell = ask.question.map(|question| (question, result));
                }
            }
        }
        Ok(Attack { kind, attacked: open.into_iter().map(|target| target.done).collect(), unchangeable })
    }

    /// The variants of a row's question, each once.
    fn variants(&self, row: usize, kind: Perturbation, options: &AttackOptions) -> Vec<String> {
        let (question, keep) = (self.question(row), self.keeps(row));
        let mut variants = Vec::new();
        for variant in 0..options.tries {
            let made = kind.apply(question, &keep, &options.lexicon, options.seed, variant);
            variants.extend(made.filter(|made| !variants.contains(made)));
        }
        variants
    }
}

/// A row under attack.
struct Target {
    variants: Vec<String>,
    done: Attacked,
}

impl Target {
    /// The variant to ask, if the row still stands and has that many.
    fn next(&self, variant: usize) -> Option<&String> {
        self.variants.get(variant).filter(|_| self.done.fell.is_none())
    }
}
