//! What `kfc data clean` does with rows.

use super::input::Item;
use super::job::{Sink, Work};
use super::row::{self, Fields, Rejected, Row};
use crate::args::CleanArgs;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::HashSet;

/// Rows that are long enough, each text once.
pub struct Clean {
    fields: Fields,
    min_chars: usize,
    seen: HashSet<String>,
}

impl Clean {
    /// With the settings of the command line.
    pub fn new(args: &CleanArgs) -> Clean {
        Clean { fields: args.rows.fields.clone(), min_chars: args.min_chars, seen: HashSet::new() }
    }

    /// What the result depends on.
    pub fn settings(&self) -> Value {
        json!({"min_chars": self.min_chars})
    }

    fn row(&self, item: &Item) -> Result<(Row, String), Rejected> {
        let row = row::parse(item, &self.fields)?;
        let chars = row.text.chars().filter(|c| c.is_alphanumeric()).count();
        if chars < self.min_chars {
            return Err(Rejected::new("too_short", format!("{chars} of at least {}", self.min_chars)));
        }
        let key = row::content_id(&row.text);
        Ok((row, key))
    }
}

impl Work for Clean {
    fn replay(&mut self, rows: Vec<Row>) -> anyhow::Result<()> {
        self.seen.extend(rows.into_iter().map(|row| row::content_id(&row.text)));
        Ok(())
    }

    fn block(&mut self, items: Vec<Item>, sink: &mut Sink) -> anyhow::Result<()> {
        let rows: Vec<_> = items.par_iter().map(|item| self.row(item)).collect();
        for (item, row) in items.iter().zip(rows) {
            match row {
                Ok((row, key)) => {
                    if self.seen.insert(key) {
                        sink.keep(row);
                    } else {
                        sink.drop(&item.place(), &Rejected::new("duplicate", ""), &row.text);
                    }
                }
                Err(rejected) => sink.drop_item(item, &rejected),
            }
        }
        Ok(())
    }
}
