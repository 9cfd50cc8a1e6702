//! The `kfc` command as a library: what `main` calls, and what tests and fuzz targets reach into.
//!
//! `args` turns the command line into plain data, `commands` does the work, `app` stands around both. `config` reads
//! jobs, `data` makes rows of knowledge, `explain` says what a job costs and why, `doctor` what the machine has, `gate`
//! checks results, `progress` and `report` show them, `run_dir` and `output` are where they go.

pub mod app;
pub mod args;
pub mod bench;
pub mod commands;
pub mod config;
pub mod data;
pub mod demo;
mod doctor;
pub mod error;
mod explain;
pub use explain::{Part, Place};
pub mod gate;
pub mod output;
pub mod progress;
pub mod report;
pub mod run_dir;
pub mod stop;
