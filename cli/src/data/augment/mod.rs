//! What `kfc data augment` does with rows: new rows that say the same in other words, each with where it comes from.
//!
//! A new row has the metadata of the row that it was made of, and `augmented`: `{"parent", "method", "variant"}` and what
//! changed. Texts that did not change, and texts that were written before, are not written.

pub mod clauses;
pub mod replace;
pub mod table;
pub mod translate;

use super::input::Item;
use super::job::{Sink, Work};
use super::row::{self, Fields, Rejected, Row, content_id};
use rayon::prelude::*;
use replace::{Draw, Replaced, Replacer};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::Duration;
use translate::{Chain, Step};

/// How rows are made.
pub struct Methods {
    /// Entities by their aliases.
    pub entities: Option<Replacer>,
    /// Sentences by themselves in another order.
    pub clauses: Option<Replacer>,
    /// Steps of a translation there and back; none for no translation.
    pub translation: Vec<Step>,
    /// Translations at a time.
    pub workers: usize,
    /// Longest wait for an answer.
    pub timeout: Duration,
}

/// How many and which.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// New rows of a row by each method but translation, which makes one.
    pub variants: usize,
    /// Share of entities that are replaced.
    pub share: f64,
    /// Seed of all choices.
    pub seed: u64,
    /// Write the rows that are read, too.
    pub keep_originals: bool,
}

/// The work of `kfc data augment`.
pub struct Augment {
    methods: Methods,
    settings: Settings,
    fields: Fields,
    written: HashSet<String>,
}

/// A row and what was made of it.
struct Made {
    row: Row,
    variants: Vec<Row>,
}

impl Augment {
    /// With these methods and settings, for rows of these fields.
    pub fn new(methods: Methods, settings: Settings, fields: Fields) -> Augment {
        Augment { methods, settings, fields, written: HashSet::new() }
    }

    /// The variants that need nobody's answer.
    fn replace(&self, item: &Item) -> Result<Made, Rejected> {
        let mut row = row::parse(item, &self.fields)?;
        row.identify();
        let mut variants = Vec::new();
        let methods = [
            ("entity", &self.methods.entities, self.settings.share),
            ("clause_order", &self.methods.clauses, 1.0),
        ];
        for (name, replacer, share) in methods {
            let Some(replacer) = replacer else { continue };
            for variant in 0..self.settings.variants {
                let draw = Draw { seed: self.settings.seed, row: &row.id, variant };
                if let Some(Replaced { text, changes }) = replacer.apply(&row.text, &draw, share) {
                    variants.push(descend(&row, text, name, variant, Some(changes.into())));
                }
            }
        }
        Ok(Made { row, variants })
    }

    /// Adds the translation of each row, `workers` at a time.
    fn translate(&self, made: &mut [Result<Made, Rejected>]) -> anyhow::Result<()> {
        let methods = &self.methods;
        if methods.translation.is_empty() {
            return Ok(());
        }
        let each = made.len().div_ceil(methods.workers).max(1);
        std::thread::scope(|scope| {
            let workers: Vec<_> = made
                .chunks_mut(each)
                .map(|rows| {
                    scope.spawn(|| -> anyhow::Result<()> {
                        let mut chain = Chain::new(&methods.translation, methods.timeout);
                        for made in rows.iter_mut().flatten() {
                            let text = chain.apply(&made.row.text)?;
                            made.variants.push(descend(&made.row, text, "back_translation", 0, None));
                        }
                        Ok(())
                    })
                })
                .collect();
            for worker in workers {
                // A worker does not panic; if it did, the run would end with its message.
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok(())
        })
    }
}

/// A row made of `parent`.
fn descend(parent: &Row, text: String, method: &str, variant: usize, changes: Option<Value>) -> Row {
    let mut metadata = parent.metadata.clone();
    let mut augmented = json!({"parent": parent.id, "method": method, "variant": variant});
    if let Some(changes) = changes {
        augmented["changes"] = changes;
    }
    metadata.insert("augmented".into(), augmented);
    Row { id: String::new(), text, metadata }
}

impl Work for Augment {
    fn replay(&mut self, rows: Vec<Row>) -> anyhow::Result<()> {
        self.written.extend(rows.into_iter().map(|row| content_id(&row.text)));
        Ok(())
    }

    fn block(&mut self, items: Vec<Item>, sink: &mut Sink) -> anyhow::Result<()> {
        let mut made: Vec<Result<Made, Rejected>> = items.par_iter().map(|item| self.replace(item)).collect();
        self.translate(&mut made)?;
        for (item, made) in items.iter().zip(made) {
            let Made { row, variants } = match made {
                Ok(made) => made,
                Err(rejected) => {
                    sink.drop_item(item, &rejected);
                    continue;
                }
            };
            let same = |text: &str| text.split_whitespace().eq(row.text.split_whitespace());
            let (place, mut some) = (item.place(), false);
            if self.settings.keep_originals {
                if self.written.insert(content_id(&row.text)) {
                    sink.count("originals", 1);
                    sink.keep(row.clone());
                } else {
                    sink.count("repeated_originals", 1);
                }
            }
            for variant in variants {
                let method = variant.metadata["augmented"]["method"].as_str().unwrap_or_default().to_owned();
                if variant.text.trim().is_empty() || same(&variant.text) {
                    sink.count("unchanged_variants", 1);
                } else if !self.written.insert(content_id(&variant.text)) {
                    sink.count("repeated_variants", 1);
                    some = true;
                } else {
                    sink.count(&method, 1);
                    sink.keep(variant);
                    some = true;
                }
            }
            if !some && !self.settings.keep_originals {
                sink.drop(&place, &Rejected::new("unchanged", "no method changed it"), &row.text);
            }
        }
        Ok(())
    }
}
