//! What may stand for what: entities and their aliases, from a table or a knowledge graph.
//!
//! | file | holds |
//! |---|---|
//! | `.json` | `{"CPU": ["中央处理器", "processor"]}` or `[{"entity": "CPU", "aliases": ["中央处理器"]}]` |
//! | others | a line an entity: `CPU<TAB>中央处理器<TAB>processor`; lines that begin with `#` are comments |
//! | a graph | a line a triple: `head<TAB>relation<TAB>tail`; `_` in names is a space |

use crate::error::input_error;
use anyhow::Context;
use kfc_runtime::files::read_limited;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Largest table, in bytes.
const MAX_BYTES: u64 = 1 << 30;

/// By what may be replaced, all that may replace it; both sorted and without repetition.
pub type Replacements = BTreeMap<String, BTreeSet<String>>;

/// Reads a table of aliases into `all`. With `both_ways` the aliases of an entity stand for it and for each other too.
///
/// # Errors
/// If the file cannot be read, or a line or entry is of another form.
pub fn read_aliases(path: &Path, both_ways: bool, all: &mut Replacements) -> anyhow::Result<()> {
    let text = read_text(path)?;
    let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let groups = if is_json { json_groups(&text) } else { line_groups(&text) };
    let groups = groups.map_err(|why| input_error(format!("{}{why}", path.display())))?;
    for group in groups {
        for (index, from) in group.iter().enumerate() {
            if index == 0 || both_ways {
                group.iter().filter(|to| *to != from).for_each(|to| insert(all, from, to));
            }
        }
    }
    Ok(())
}

/// Reads a graph into `all`: the head of each triple with one of `relations` is replaced by its tail, `both_ways` the other
/// way round too.
///
/// # Errors
/// If the file cannot be read, a line is no triple, or there is no such relation.
pub fn read_graph(
    path: &Path,
    relations: &[String],
    both_ways: bool,
    all: &mut Replacements,
) -> anyhow::Result<()> {
    let text = read_text(path)?;
    let (mut there, mut used) = (BTreeSet::new(), BTreeSet::new());
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !is_comment(line)) {
        let &[head, relation, tail] = line.split('\t').collect::<Vec<_>>().as_slice() else {
            let place = format!("{}:{number}", path.display());
            return Err(input_error(format!("{place}: a line must be head<TAB>relation<TAB>tail")));
        };
        let relation = relation.trim();
        there.insert(relation);
        if relations.iter().any(|wanted| wanted == relation) {
            used.insert(relation);
            let (head, tail) = (head.replace('_', " "), tail.replace('_', " "));
            insert(all, &head, &tail);
            if both_ways {
                insert(all, &tail, &head);
            }
        }
    }
    if let Some(missing) = relations.iter().find(|wanted| !used.contains(wanted.as_str())) {
        let some: Vec<&str> = there.into_iter().take(20).collect();
        return Err(input_error(format!(
            "{}: there is no relation `{missing}`; some that there are: {}",
            path.display(),
            some.join(", ")
        )));
    }
    Ok(())
}

fn insert(all: &mut Replacements, from: &str, to: &str) {
    let (from, to) = (from.trim(), to.trim());
    if !from.is_empty() && !to.is_empty() && from != to {
        all.entry(from.to_owned()).or_default().insert(to.to_owned());
    }
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    let bytes =
        read_limited(path, MAX_BYTES).with_context(|| format!("{} cannot be used", path.display()))?;
    let text = String::from_utf8(bytes);
    let text = text.map_err(|_| input_error(format!("{} is not UTF-8; save it as UTF-8", path.display())))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

fn is_comment(line: &str) -> bool {
    line.trim().is_empty() || line.starts_with('#')
}

fn line_groups(text: &str) -> Result<Vec<Vec<String>>, String> {
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !is_comment(line));
    lines
        .map(|(number, line)| {
            let group: Vec<String> = line.split('\t').map(str::to_owned).collect();
            if group.len() < 2 {
                return Err(format!(
                    ":{number}: a line must be an entity and its aliases with tabs between them"
                ));
            }
            Ok(group)
        })
        .collect()
}

fn json_groups(text: &str) -> Result<Vec<Vec<String>>, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| format!(": not valid JSON: {e}"))?;
    let group = |entity: &Value, aliases: &Value| -> Option<Vec<String>> {
        let mut group = vec![entity.as_str()?.to_owned()];
        match aliases {
            Value::String(alias) => group.push(alias.clone()),
            Value::Array(aliases) => {
                for alias in aliases {
                    group.push(alias.as_str()?.to_owned());
                }
            }
            _ => return None,
        }
        Some(group)
    };
    let groups: Option<Vec<_>> = match &value {
        Value::Object(all) => {
            all.iter().map(|(entity, aliases)| group(&Value::from(entity.as_str()), aliases)).collect()
        }
        Value::Array(all) => all.iter().map(|one| group(&one["entity"], &one["aliases"])).collect(),
        _ => None,
    };
    groups.ok_or_else(|| {
        ": must be {\"entity\": [\"alias\", ...]} or [{\"entity\": \"...\", \"aliases\": [...]}]".into()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::super::tests::Folder;
    use super::*;

    fn shown(all: &Replacements) -> Vec<String> {
        all.iter()
            .map(|(from, to)| format!("{from}={}", to.iter().cloned().collect::<Vec<_>>().join("|")))
            .collect()
    }

    fn aliases(name: &str, text: &str, both_ways: bool) -> Result<Vec<String>, String> {
        let folder = Folder::new();
        let mut all = Replacements::new();
        let path = folder.file(name, text);
        read_aliases(&path, both_ways, &mut all).map(|()| shown(&all)).map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn tables() {
        let tsv = "\u{feff}# comment\nCPU\t中央处理器\tprocessor\r\n\nCPU\tCPU\n";
        assert_eq!(aliases("a.tsv", tsv, false).unwrap(), ["CPU=processor|中央处理器"]);
        assert_eq!(
            aliases("a.tsv", tsv, true).unwrap(),
            ["CPU=processor|中央处理器", "processor=CPU|中央处理器", "中央处理器=CPU|processor"]
        );
        for json in [
            r#"{"CPU": ["中央处理器"], "a": "b"}"#,
            r#"[{"entity":"CPU","aliases":["中央处理器"]},{"entity":"a","aliases":"b"}]"#,
        ] {
            assert_eq!(aliases("a.json", json, false).unwrap(), ["CPU=中央处理器", "a=b"]);
        }
        assert!(aliases("a.tsv", "CPU\tx\nalone\n", false).unwrap_err().contains("a.tsv:2: a line must be"));
        assert!(aliases("a.json", "[1]", false).unwrap_err().contains("must be {"));
        assert!(aliases("a.json", "{", false).unwrap_err().contains("not valid JSON"));
    }

    #[test]
    fn graphs() {
        let folder = Folder::new();
        let path = folder.file("kg.tsv", "heart_attack\tsame_as\tmyocardial_infarction\nheart\tisa\torgan\n");
        let read = |relation: &str, both_ways| {
            let mut all = Replacements::new();
            read_graph(&path, &[relation.into()], both_ways, &mut all)
                .map(|()| shown(&all))
                .map_err(|e| e.to_string())
        };
        assert_eq!(read("isa", false).unwrap(), ["heart=organ"]);
        assert_eq!(
            read("same_as", true).unwrap(),
            ["heart attack=myocardial infarction", "myocardial infarction=heart attack"]
        );
        assert!(
            read("part_of", false)
                .unwrap_err()
                .contains("no relation `part_of`; some that there are: isa, same_as")
        );
        let bad = folder.file("bad.tsv", "a\tb\n");
        let error = read_graph(&bad, &[], false, &mut Replacements::new()).unwrap_err().to_string();
        assert!(error.contains("bad.tsv:1: a line must be head"), "{error}");
    }
}
