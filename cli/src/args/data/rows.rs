//! Arguments of every command that reads rows and writes rows.

use super::{all, flag, inputs, path, required};
use crate::args::parse;
use crate::data::input::{Format, Inputs, Split};
use crate::data::job::Job;
use crate::data::row::Fields;
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::Value;
use std::path::PathBuf;

/// What is read, how, and where rows go.
#[derive(Clone, Debug, PartialEq)]
pub struct RowArgs {
    /// Files, folders and patterns.
    pub inputs: Vec<PathBuf>,
    /// The rows.
    pub out: PathBuf,
    /// Rows left out.
    pub dropped: Option<PathBuf>,
    /// Go on with an interrupted run.
    pub resume: bool,
    /// Format of all files.
    pub format: Option<Format>,
    /// What of a text file is a row.
    pub split: Split,
    /// Longest row, in bytes.
    pub max_row_bytes: u64,
    /// Fields of JSON rows.
    pub fields: Fields,
}

impl RowArgs {
    /// The files.
    ///
    /// # Errors
    /// If a path names nothing or nothing that is known.
    pub fn inputs(&self) -> anyhow::Result<Inputs> {
        Inputs::find(&self.inputs, self.format, self.split, self.max_row_bytes)
    }

    /// The job of `command`; how rows are read is added to its settings as `rows`.
    pub fn job(&self, command: &'static str, mut settings: Value) -> Job {
        settings["rows"] = serde_json::json!({
            "format": self.format.map(Format::name),
            "split": self.split.name(),
            "max_row_bytes": self.max_row_bytes,
            "fields": self.fields.to_json(),
        });
        let job = Job::new(command, self.out.clone(), settings);
        Job { dropped: self.dropped.clone(), resume: self.resume, ..job }
    }
}

/// Where these arguments stand in the help: after the command's own.
const ORDER: usize = 50;

/// Adds the arguments to `command`.
pub(super) fn add(command: Command) -> Command {
    let named = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let choice = |names: Vec<&'static str>| PossibleValuesParser::new(names);
    let options = [
        path("dropped", "FILE", "Write the rows left out, with reasons, to this file"),
        flag("resume", "Go on with an interrupted run of the same settings and files"),
        named("format", "FORMAT", "How to read every file [default: by extension]")
            .value_parser(choice(Format::ALL.map(Format::name).to_vec())),
        named("split", "HOW", "What of a text file is a row")
            .value_parser(choice(Split::ALL.map(Split::name).to_vec()))
            .default_value(Split::Document.name()),
        named(
            "text-field",
            "NAME",
            "Field of JSON rows that is the text; several are joined by line breaks [default: text]",
        )
        .action(ArgAction::Append),
        named("id-field", "NAME", "Field of JSON rows that is the name").default_value("knowledge_id"),
        named("source", "NAME", "metadata.source of rows without one [default: the name of the file]"),
        named("domain", "NAME", "metadata.domain of rows without one"),
        named("max-row-bytes", "SIZE", "Longer rows are left out unread")
            .value_parser(parse::bytes)
            .default_value("16MiB"),
    ];
    let options = options.into_iter().enumerate().map(|(i, option)| option.display_order(ORDER + i));
    command
        .arg(inputs("Files (.jsonl, .json, .txt, .md, .html), folders or quoted patterns"))
        .arg(path("out", "FILE", "Knowledge rows to write, as .jsonl").required(true).display_order(0))
        .args(options)
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<RowArgs, clap::Error> {
    let name = |key: &str| matches.get_one::<String>(key).cloned();
    let mut text: Vec<String> = all(matches, "text-field");
    if text.is_empty() {
        text = Fields::default().text;
    }
    let format = name("format").and_then(|name| Format::ALL.into_iter().find(|f| f.name() == name));
    let split = name("split").and_then(|name| Split::ALL.into_iter().find(|s| s.name() == name));
    Ok(RowArgs {
        inputs: all(matches, "inputs"),
        out: required(matches, "out")?,
        dropped: matches.get_one("dropped").cloned(),
        resume: matches.get_flag("resume"),
        format,
        split: split.unwrap_or(Split::Document),
        max_row_bytes: required(matches, "max-row-bytes")?,
        fields: Fields {
            text,
            id: required(matches, "id-field")?,
            source: name("source"),
            domain: name("domain"),
        },
    })
}
