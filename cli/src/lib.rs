//! The `kfc` command as a library: what `main` calls, and what tests and fuzz targets reach into.
//!
//! `args` turns the command line into plain data, `commands` does the work, `app` stands around both. `config` reads
//! jobs, `explain` says what a job costs and why, `inspect` what a model does inside, `doctor` what the machine has,
//! `evaluation` makes reports of models, `gate` checks results, `data` prepares rows, `progress`, `report` and `run_report`
//! show them, `run_dir` and `output` are where they go.

pub mod app;
pub mod args;
pub mod bench;
pub mod commands;
pub mod config;
pub mod data;
pub mod demo;
mod doctor;
pub mod error;
mod evaluation;
mod explain;
mod inspect;
pub use explain::{Part, Place};
pub mod gate;
pub mod output;
pub mod progress;
pub mod report;
pub mod run_dir;
mod run_report;
pub mod stop;
