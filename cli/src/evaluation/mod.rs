//! Reports of a model: several tasks, how sure their numbers are, what perturbed questions do to them, what changed from
//! another model, and the gates on all that.
//!
//! `suite` is what is asked for, `suite_file` reads it from TOML, `run` asks the models, `report` puts the results
//! together, `text` and `page` show them, `files` writes them.

mod files;
mod gates;
mod page;
mod report;
mod run;
mod suite;
mod suite_file;
mod text;

pub(crate) use files::{prepare, write};
pub(crate) use report::Report;
pub(crate) use run::{Display, measure};
pub(crate) use suite::Suite;
pub(crate) use text::{number, render};
