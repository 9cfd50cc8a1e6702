//! What `kfc data filter` does with rows: a model scores each, and those that score too little go.
//!
//! A score is rounded to six digits after the point; what is compared is what is written.

mod judge;

use super::input::Item;
use super::job::{Sink, Work};
use super::row::{self, Fields, Rejected, Row};
use crate::args::{FilterArgs, Keep};
use crate::error::input_error;
use judge::{Judge, Judged};
use rayon::prelude::*;
use serde_json::{Value, json};

/// Rows of a block.
pub const BLOCK_ROWS: usize = 512;
/// Least score if nothing is said.
const THRESHOLD: f64 = 0.7;

/// A model and the limit that rows must meet.
pub struct Filter {
    fields: Fields,
    judge: Judge,
    limit: Limit,
    settings: Value,
}

/// Which rows stay.
#[derive(Clone, Copy, Debug)]
enum Limit {
    Least(f64),
    Most(f64),
    Share(f64),
}

impl Filter {
    /// Opens the model.
    ///
    /// # Errors
    /// If it cannot be opened, or label and limit do not fit it.
    pub fn open(args: &FilterArgs) -> anyhow::Result<Filter> {
        let judge = Judge::open(args)?;
        let limit = match args.keep {
            Keep::Share(share) => Limit::Share(share),
            Keep::Perplexity(most) => Limit::Most(most),
            Keep::Score(given) => Limit::Least(least(given, judge.is_probability())?),
        };
        let mut settings = judge.settings();
        let (name, value) = match limit {
            Limit::Least(x) => ("threshold", x),
            Limit::Most(x) => ("max_perplexity", x),
            Limit::Share(x) => ("keep_share", x),
        };
        settings[name] = value.into();
        settings["long"] = args.long_name().into();
        Ok(Filter { fields: args.rows.fields.clone(), judge, limit, settings })
    }

    /// What the result depends on.
    pub fn settings(&self) -> Value {
        self.settings.clone()
    }

    /// The model and the memory it takes, for people.
    pub fn describe(&self) -> String {
        self.judge.describe()
    }

    /// Why a row goes, given all scores of its block.
    fn verdicts(&self, scores: &[f64]) -> Vec<Option<Rejected>> {
        match self.limit {
            Limit::Least(least) => {
                let low = |x: &f64| Rejected::new("low_score", format!("{x} of at least {least}"));
                scores.iter().map(|x| (*x < least).then(|| low(x))).collect()
            }
            Limit::Most(most) => {
                let high = |x: &f64| Rejected::new("high_perplexity", format!("{x}, above {most}"));
                scores.iter().map(|x| (*x > most).then(|| high(x))).collect()
            }
            Limit::Share(share) => {
                let best = best(scores, share, self.judge.higher_is_better());
                let poor = |x: &f64| Rejected::new("not_among_best", format!("{x}"));
                scores.iter().zip(best).map(|(x, best)| (!best).then(|| poor(x))).collect()
            }
        }
    }
}

fn least(given: Option<f64>, probability: bool) -> anyhow::Result<f64> {
    match (given, probability) {
        (Some(x), true) if !(0.0..=1.0).contains(&x) => Err(input_error(format!(
            "--threshold {x} is out of range: the scores of this model are probabilities, from 0 to 1"
        ))),
        (Some(x), _) => Ok(x),
        (None, true) => Ok(THRESHOLD),
        (None, false) => Err(input_error(
            "the scores of this model are logits, of any size; say with --threshold which are good enough, or make them \
             probabilities with --score sigmoid",
        )),
    }
}

/// Which scores are among the best `share`, rounded up; of equal ones the earlier are.
fn best(scores: &[f64], share: f64, higher: bool) -> Vec<bool> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let key = |i: usize| if higher { -scores[i] } else { scores[i] };
    order.sort_by(|&a, &b| key(a).total_cmp(&key(b)).then(a.cmp(&b)));
    let mut among = vec![false; scores.len()];
    let keep = (scores.len() as f64 * share).ceil() as usize;
    order.into_iter().take(keep).for_each(|i| among[i] = true);
    among
}

impl Work for Filter {
    fn block(&mut self, items: Vec<Item>, sink: &mut Sink) -> anyhow::Result<()> {
        let rows: Vec<Result<Row, Rejected>> =
            items.par_iter().map(|item| row::parse(item, &self.fields)).collect();
        let texts: Vec<&str> = rows.iter().flatten().map(|row| row.text.as_str()).collect();
        let judged = self.judge.judge(&texts)?;
        let scores: Vec<f64> = judged.iter().filter_map(|j| j.score).collect();
        let mut verdicts = self.verdicts(&scores).into_iter();
        let mut judged = judged.into_iter();
        for (item, row) in items.iter().zip(rows) {
            let mut row = match row {
                Ok(row) => row,
                Err(rejected) => {
                    sink.drop_item(item, &rejected);
                    continue;
                }
            };
            let Judged { score, long } = judged.next().unwrap_or_default();
            sink.count(self.judge.name_of_long(), u64::from(long));
            let Some(score) = score else {
                let why = Rejected::new("not_scored", "fewer than two tokens have no perplexity");
                sink.drop(&item.place(), &why, &row.text);
                continue;
            };
            if let Some(band) = self.judge.band(score) {
                sink.count(&band, 1);
            }
            match verdicts.next().flatten() {
                Some(rejected) => sink.drop(&item.place(), &rejected, &row.text),
                None => {
                    row.metadata.insert(self.judge.name_of_score().into(), json!(score));
                    sink.keep(row);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_best_share() {
        let scores = [0.5, 0.9, 0.1, 0.9, 0.3];
        assert_eq!(best(&scores, 0.2, true), [false, true, false, false, false]);
        assert_eq!(best(&scores, 0.5, true), [true, true, false, true, false]);
        assert_eq!(best(&scores, 0.3, false), [false, false, true, false, true]);
        assert_eq!(best(&scores, 1.0, false), [true; 5]);
        assert_eq!(best(&[], 0.5, true), [false; 0]);
    }

    #[test]
    fn thresholds_fit_the_scores() {
        assert_eq!(least(None, true).unwrap(), 0.7);
        assert_eq!(least(Some(-3.5), false).unwrap(), -3.5);
        assert!(least(Some(1.5), true).unwrap_err().to_string().contains("from 0 to 1"));
        assert!(least(None, false).unwrap_err().to_string().contains("--threshold"));
    }
}
