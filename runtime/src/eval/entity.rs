//! Entity recall: which of the entities that belong to a prompt its completion mentions.

use super::answers::mentions;
use super::completion::{Prompt, complete};
use super::{Measured, Observer, Options, data, limited};
use crate::data::eval_data::{EntityItem, read_entities};
use crate::error::Result;
use crate::inference::Served;

pub(super) fn measure(
    served: &Served,
    options: &Options,
    seq_len: usize,
    observer: &mut dyn Observer,
) -> Result<Measured> {
    let items = limited(read_entities(data(options)?)?, options.limit);
    let prompts: Vec<Prompt<'_>> =
        items.iter().map(|item| Prompt { text: &item.prompt, until: None }).collect();
    let (answers, tokens_per_s) = complete(served, &prompts, options, seq_len, observer)?;
    Ok(Measured { values: values(&items, &answers), tokens_per_s })
}

/// `entity_recall` (of all entities of all items), `entities`, `n`.
fn values(items: &[EntityItem], answers: &[String]) -> Vec<f64> {
    let entities: usize = items.iter().map(|i| i.entities.len()).sum();
    let found =
        |(item, answer): (&EntityItem, &String)| item.entities.iter().filter(|e| mentions(answer, e)).count();
    let found: usize = items.iter().zip(answers).map(found).sum();
    vec![found as f64 / entities as f64, entities as f64, items.len() as f64]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recall_is_over_all_entities() {
        let item = |entities: &[&str]| EntityItem {
            prompt: "p".into(),
            entities: entities.iter().map(|e| e.to_string()).collect(),
        };
        let items = [item(&["Bern", "Paris", "New York"]), item(&["Rome"])];
        let answers = ["from bern to New  York", "Romeo"].map(String::from);
        assert_eq!(values(&items, &answers), [0.5, 4.0, 2.0]);
    }
}
