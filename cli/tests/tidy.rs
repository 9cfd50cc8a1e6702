//! Rules about the repository itself: layers, licences, sizes of files, what must not be left in them, links.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crates from the top layer to the bottom one; a crate may use those after it.
const LAYERS: [&str; 5] = ["kfc", "kfc-runtime", "kfc-kernels", "kfc-ops", "kfc-graph"];

/// Crates that may use every layer and that nothing uses.
const OUTSIDE: [&str; 1] = ["kfc-benches"];

/// Licences that what is linked into the program may have, as SPDX identifiers; `deny.toml` has the same list.
const LICENCES: [&str; 8] =
    ["MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "ISC", "Unicode-3.0", "Zlib"];

/// Longest source file, in lines.
const MAX_LINES: usize = 1000;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Every file that git knows of, as a path from the root. None in an unpacked archive, where there is no git to ask.
fn files() -> Vec<PathBuf> {
    let output = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let Some(output) = output.ok().filter(|o| o.status.success()) else { return Vec::new() };
    let names = String::from_utf8(output.stdout).unwrap();
    let found: Vec<PathBuf> = names.split_terminator('\0').map(PathBuf::from).collect();
    assert!(found.len() > 100, "git knows only {} files", found.len());
    found
}

/// Files that are text, with their content.
fn texts() -> Vec<(PathBuf, String)> {
    let root = root();
    let read = |path: PathBuf| Some((path.clone(), std::fs::read_to_string(root.join(path)).ok()?));
    files().into_iter().filter_map(read).collect()
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e == extension)
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn fail(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn arrows_between_crates_point_down() {
    let text = cargo(&["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    let metadata: Value = serde_json::from_str(&text).unwrap();
    let layer = |name: &str| LAYERS.iter().position(|l| *l == name);
    let (mut wrong, mut seen) = (Vec::new(), BTreeSet::new());
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        seen.insert(name);
        if OUTSIDE.contains(&name) {
            continue;
        }
        let Some(own) = layer(name) else {
            wrong.push(format!("{name} is in no layer"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let to = dependency["name"].as_str().unwrap();
            let up = layer(to).is_some_and(|other| other <= own);
            if up || OUTSIDE.contains(&to) {
                wrong.push(format!("{name} -> {to}"));
            }
        }
    }
    fail("dependencies that point up", &wrong);
    assert_eq!(seen, LAYERS.into_iter().chain(OUTSIDE).collect::<BTreeSet<_>>());
}

#[test]
fn licences_are_allowed() {
    let arguments = [
        "tree",
        "--workspace",
        "--offline",
        "--locked",
        "-e",
        "normal,build,dev",
        "--prefix",
        "none",
        "--format",
    ];
    let text = cargo(&[&arguments[..], &["{p}|{l}"]].concat());
    let lines: BTreeSet<&str> =
        text.lines().map(|l| l.trim_end_matches(" (*)")).filter(|l| !l.is_empty()).collect();
    assert!(lines.len() > 20, "too few packages to be true:\n{text}");
    let refused = |line: &&str| {
        let (_, licence) = line.split_once('|').unwrap();
        !licence_allows(licence)
    };
    fail(
        "licences that are not on the list",
        &lines.into_iter().filter(refused).map(String::from).collect::<Vec<_>>(),
    );
}

/// Whether an SPDX expression can be met with [`LICENCES`]. `A/B` is an old way of writing `A OR B`; an exception
/// (`WITH`) only gives more rights.
fn licence_allows(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let met = any_of(&words, &mut at);
    met && at == words.len()
}

fn any_of(words: &[&str], at: &mut usize) -> bool {
    let mut met = all_of(words, at);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= all_of(words, at);
    }
    met
}

fn all_of(words: &[&str], at: &mut usize) -> bool {
    let mut met = one(words, at);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(words, at);
    }
    met
}

fn one(words: &[&str], at: &mut usize) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let met = any_of(words, at);
        *at += 1;
        return met;
    }
    if words.get(*at) == Some(&"WITH") {
        *at += 2;
    }
    LICENCES.contains(word)
}

#[test]
fn licence_expressions_are_understood() {
    for good in
        ["MIT", "GPL-3.0 OR MIT", "Apache-2.0/MIT", "(MIT OR GPL-3.0) AND Unicode-3.0", "MIT AND (Zlib OR X)"]
    {
        assert!(licence_allows(good), "{good}");
    }
    assert!(licence_allows("Apache-2.0 WITH LLVM-exception"));
    for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "GPL-3.0 OR (MIT AND X)", "MIT Zlib"] {
        assert!(!licence_allows(bad), "{bad}");
    }
}

#[test]
fn deny_toml_has_the_same_licences() {
    let text = std::fs::read_to_string(root().join("deny.toml")).unwrap();
    let parsed: toml::Table = text.parse().unwrap();
    let allowed = parsed["licenses"]["allow"].as_array().unwrap();
    let allowed: BTreeSet<&str> = allowed.iter().filter_map(|l| l.as_str()).collect();
    assert_eq!(allowed, LICENCES.into_iter().collect());
}

#[test]
fn source_files_have_one_subject() {
    let mut wrong = Vec::new();
    for (path, text) in texts().iter().filter(|(path, _)| has_extension(path, "rs")) {
        let lines = text.lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{}: {lines} lines, at most {MAX_LINES} are allowed", path.display()));
        }
        if !text.starts_with("//! ") {
            wrong.push(format!(
                "{}: the first line must be `//! ` and say what the file is for",
                path.display()
            ));
        }
    }
    fail("files to split or to describe", &wrong);
}

#[test]
fn nothing_unfinished_is_left() {
    // Spelt in pieces, so that this file passes too.
    let words = [
        ["to", "do!("],
        ["unimple", "mented!("],
        ["db", "g!("],
        ["#[ig", "nore"],
        ["TO", "DO"],
        ["FIX", "ME"],
    ];
    let words = words.map(|w| w.concat());
    let mut wrong = Vec::new();
    for (path, text) in texts().iter().filter(|(path, _)| has_extension(path, "rs")) {
        for (number, line) in (1..).zip(text.lines()) {
            if words.iter().any(|w| line.contains(w.as_str())) {
                wrong.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    fail("left unfinished", &wrong);
}

#[test]
fn no_path_of_somebodys_machine() {
    let places = ["home", "root", "Users", "work"].map(|p| format!("/{p}/"));
    let mut wrong = Vec::new();
    for (path, text) in texts() {
        for (number, line) in (1..).zip(text.lines()) {
            let starts_a_path =
                |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || ".-_~/".contains(c));
            if places.iter().any(|p| line.match_indices(p.as_str()).any(|(at, _)| starts_a_path(at))) {
                wrong.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    fail("absolute paths of a machine", &wrong);
}

#[test]
fn links_in_the_documentation_lead_somewhere() {
    let (root, mut wrong, mut count) = (root(), Vec::new(), 0);
    for (path, text) in texts().iter().filter(|(path, _)| has_extension(path, "md")) {
        for (at, _) in text.match_indices("](") {
            let rest = &text[at + 2..];
            let Some(end) = rest.find([')', ' ', '\n']) else { continue };
            let target = rest[..end].split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            count += 1;
            if !root.join(path.parent().unwrap()).join(target).exists() {
                wrong.push(format!("{}: {target}", path.display()));
            }
        }
    }
    fail("links to files that do not exist", &wrong);
    assert!(count > 0 || files().is_empty(), "no link was found, the search must be broken");
}

#[test]
fn fuzz_targets_are_declared_seeded_and_described() {
    let fuzz = root().join("fuzz");
    let names = |folder: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(fuzz.join(folder)).unwrap().map(|e| e.unwrap().path());
        entries.map(|p| p.file_stem().unwrap().to_str().unwrap().to_string()).collect()
    };
    let targets = names("fuzz_targets");
    assert_eq!(targets, names("seeds"), "a target has a folder of seeds, and a folder of seeds a target");
    let manifest: toml::Table = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap().parse().unwrap();
    let bins = manifest["bin"].as_array().unwrap().iter().map(|b| b["name"].as_str().unwrap().to_string());
    assert_eq!(targets, bins.collect());
    let readme = std::fs::read_to_string(fuzz.join("README.md")).unwrap();
    let missing: Vec<String> =
        targets.into_iter().filter(|t| !readme.contains(&format!("| `{t}` |"))).collect();
    fail("targets that fuzz/README.md does not describe", &missing);
}
