//! TOML as a tree in which every value remembers where it was written, and `--set` overrides of it.

use super::error::ConfigError;
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Line of the file, from 1.
    Line(usize),
    /// The whole `key=value` text of an override.
    Set(String),
}

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) at: Origin,
}

/// A TOML value. Integers are wide enough for both `i64` and `u64`.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Str(String),
    Int(i128),
    Float(f64),
    Bool(bool),
    Datetime(String),
    Array(Vec<Node>),
    Table(Vec<Entry>),
}

/// A key of a table and its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) at: Origin,
    pub(crate) node: Node,
}

impl Node {
    /// The entries of a table; none if it is something else.
    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Table(entries) => entries,
            _ => &[],
        }
    }

    /// The value of `key` in a table.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    /// Takes `section.key` away.
    pub(super) fn remove(&mut self, section: &str, key: &str) {
        let Value::Table(sections) = &mut self.value else { return };
        for entry in sections.iter_mut().filter(|entry| entry.key == section) {
            if let Value::Table(keys) = &mut entry.node.value {
                keys.retain(|entry| entry.key != key);
            }
        }
    }

    /// What it is, for "found ..." in an error: the type, and the value where that is short.
    pub(crate) fn describe(&self) -> String {
        match &self.value {
            Value::Str(text) => format!("the string \"{}\"", shorten(text)),
            Value::Int(value) => format!("the integer {value}"),
            Value::Float(value) => format!("the number {value:?}"),
            Value::Bool(value) => format!("{value}"),
            Value::Datetime(text) => format!("the date {text}"),
            Value::Array(items) => format!("a list of {}", items.len()),
            Value::Table(_) => "a table".to_owned(),
        }
    }
}

fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().count() > 60 {
        short.push('…');
    }
    short
}

/// Reads `text`; `path` names the file in errors.
pub(crate) fn from_toml(text: &str, path: &Path) -> Result<Node, ConfigError> {
    let lines = Lines { starts: text.match_indices('\n').map(|(at, _)| at + 1).collect() };
    let table = DeTable::parse(text).map_err(|error| {
        let line = lines.of(error.span().map_or(0, |span| span.start));
        let problem = format!("not valid TOML: {}", error.message());
        ConfigError::new(format!("{}:{line}", path.display()), None, problem)
    })?;
    Ok(convert_table(table.get_ref(), Origin::Line(1), &|offset| Origin::Line(lines.of(offset))))
}

/// Byte offsets to line numbers.
struct Lines {
    /// Where each line but the first starts, ascending.
    starts: Vec<usize>,
}

impl Lines {
    fn of(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset) + 1
    }
}

fn convert_table(table: &DeTable<'_>, at: Origin, origin: &dyn Fn(usize) -> Origin) -> Node {
    let mut entries: Vec<(usize, Entry)> = table
        .iter()
        .map(|(key, value)| {
            let start = key.span().start;
            let node = convert(value.get_ref(), origin(value.span().start), origin);
            (start, Entry { key: key.get_ref().to_string(), at: origin(start), node })
        })
        .collect();
    // The parser's map is alphabetical; errors should come in the order of the file.
    entries.sort_by_key(|(start, _)| *start);
    Node { value: Value::Table(entries.into_iter().map(|(_, entry)| entry).collect()), at }
}

/// Recursion is bounded by the parser, which refuses deep nesting.
fn convert(value: &DeValue<'_>, at: Origin, origin: &dyn Fn(usize) -> Origin) -> Node {
    let value = match value {
        DeValue::String(text) => Value::Str(text.to_string()),
        DeValue::Integer(integer) => match i128::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(value) => Value::Int(value),
            // Out of every range that a key has, and described as the large number it is.
            Err(_) => Value::Float(integer.as_str().parse().unwrap_or(f64::INFINITY)),
        },
        DeValue::Float(float) => Value::Float(float.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(date) => Value::Datetime(date.to_string()),
        DeValue::Array(items) => {
            let items = items.iter().map(|item| convert(item.get_ref(), origin(item.span().start), origin));
            Value::Array(items.collect())
        }
        DeValue::Table(table) => return convert_table(table, at, origin),
    };
    Node { value, at }
}

/// Applies one `section.key=value`. The value is TOML, or a bare string where it is not.
pub(super) fn apply_override(root: &mut Node, text: &str) -> Result<(), ConfigError> {
    let place = || format!("--set {text}");
    let Some((path, value)) = text.split_once('=') else {
        return Err(ConfigError::new(place(), None, "there is no `=`; write --set section.key=value"));
    };
    let segments: Vec<&str> = path.split('.').map(str::trim).collect();
    if segments.iter().any(|s| s.is_empty()) || segments.len() > 8 || segments[0].parse::<usize>().is_ok() {
        let problem =
            format!("`{path}` is not a key; write --set section.key=value, as in --set train.steps=100");
        return Err(ConfigError::new(place(), None, problem));
    }
    let origin = Origin::Set(text.to_owned());
    let value = override_value(value.trim(), &origin)
        .map_err(|problem| ConfigError::new(place(), Some(path.to_owned()), problem))?;
    insert(root, &segments, value, &origin)
        .map_err(|problem| ConfigError::new(place(), Some(path.to_owned()), problem))
}

fn override_value(text: &str, origin: &Origin) -> Result<Node, String> {
    match DeValue::parse(text) {
        // A date is never meant, but a folder may be named like one.
        Ok(value) if !value.get_ref().is_datetime() => {
            Ok(convert(value.get_ref(), origin.clone(), &|_| origin.clone()))
        }
        Err(error) if text.starts_with(['[', '{', '"', '\'']) => Err(format!(
            "`{text}` is not valid TOML: {}; quote the whole argument for the shell",
            error.message()
        )),
        _ => Ok(Node { value: Value::Str(text.to_owned()), at: origin.clone() }),
    }
}

/// Puts `value` at `path` under `node`, making tables on the way; a number indexes a list, one past its end appends.
fn insert(node: &mut Node, path: &[&str], value: Node, origin: &Origin) -> Result<(), String> {
    let Some((first, rest)) = path.split_first() else {
        *node = value;
        return Ok(());
    };
    let empty = || Node { value: Value::Table(Vec::new()), at: origin.clone() };
    if let (Value::Table(entries), Ok(0)) = (&node.value, first.parse::<usize>())
        && entries.is_empty()
    {
        // A list of tables that the file does not have yet.
        node.value = Value::Array(Vec::new());
    }
    match &mut node.value {
        Value::Table(entries) => {
            let index = entries.iter().position(|entry| entry.key == *first).unwrap_or_else(|| {
                entries.push(Entry { key: (*first).to_owned(), at: origin.clone(), node: empty() });
                entries.len() - 1
            });
            entries[index].at = origin.clone();
            insert(&mut entries[index].node, rest, value, origin)
        }
        Value::Array(items) => {
            let length = items.len();
            match first.parse::<usize>() {
                Ok(index) if index < length => insert(&mut items[index], rest, value, origin),
                Ok(index) if index == length => {
                    items.push(empty());
                    insert(&mut items[index], rest, value, origin)
                }
                _ => Err(format!("`{first}` is no index of a list of {length}; count from 0")),
            }
        }
        _ => Err(format!("`{first}` is looked up in {}, which has no keys", node.describe())),
    }
}
