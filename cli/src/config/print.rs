//! A job as TOML: every key that has an explicit form, absolute paths, no comments.

use super::schema::{self, Section};
use kfc_runtime::config::JobConfig;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// The configuration that reads back as `job`. Keys that are left to be decided later (as `model.dtype`) are left out.
pub fn to_toml(job: &JobConfig) -> String {
    let mut text = String::new();
    print_section(&mut text, &schema::model(), &job.model);
    if let Some(lora) = &job.lora {
        print_section(&mut text, &schema::lora(), lora);
    }
    if let Some(distill) = &job.distill {
        print_section(&mut text, &schema::distill(), distill);
        for feature in &distill.features {
            text.push_str("\n[[distill.features]]\n");
            print_keys(&mut text, &schema::features(), feature);
        }
    }
    if let Some(ewc) = &job.ewc {
        print_section(&mut text, &schema::ewc(), ewc);
    }
    print_section(&mut text, &schema::data(), &job.data);
    print_section(&mut text, &schema::train(), &job.train);
    if let Some(report) = &job.report {
        print_section(&mut text, &schema::report(), report);
    }
    if let Some(kernels) = &job.kernels {
        print_section(&mut text, &schema::kernels(), kernels);
    }
    text
}

/// What differs between two jobs, key by key: `train.lr: 0.0001, was 3e-5`. Sections that only one of them has are named alone.
pub fn changes(before: &JobConfig, after: &JobConfig) -> Vec<String> {
    let (before, after) = (entries(before), entries(after));
    let section = |key: &str| key.split('.').next().unwrap_or_default().to_owned();
    let has = |entries: &BTreeMap<String, String>, name: &str| entries.keys().any(|k| section(k) == name);
    let mut changes: Vec<String> = Vec::new();
    for key in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
        let name = section(key);
        let change = match (has(&before, &name), has(&after, &name)) {
            (true, false) => format!("[{name}] is gone"),
            (false, true) => format!("[{name}] is new"),
            _ => {
                let value = |entries: &BTreeMap<String, String>| {
                    entries.get(key).cloned().unwrap_or_else(|| "left out".into())
                };
                let (was, is) = (value(&before), value(&after));
                if was == is {
                    continue;
                }
                format!("{key}: {is}, was {was}")
            }
        };
        if changes.last() != Some(&change) {
            changes.push(change);
        }
    }
    changes
}

/// The values of a job as they are printed, by section and key; features by their number, too.
fn entries(job: &JobConfig) -> BTreeMap<String, String> {
    let (mut section, mut features) = (String::new(), 0);
    let mut entries = BTreeMap::new();
    for line in to_toml(job).lines() {
        if line == "[[distill.features]]" {
            section = format!("distill.features.{features}");
            features += 1;
        } else if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name.to_owned();
        } else if let Some((key, value)) = line.split_once(" = ") {
            entries.insert(format!("{section}.{key}"), value.to_owned());
        }
    }
    entries
}

fn print_section<T>(text: &mut String, section: &Section<T>, values: &T) {
    let gap = if text.is_empty() { "" } else { "\n" };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{gap}[{}]", section.name);
    print_keys(text, section, values);
}

fn print_keys<T>(text: &mut String, section: &Section<T>, values: &T) {
    for key in &section.keys {
        if let Some(value) = (key.show)(values) {
            let _ = writeln!(text, "{} = {value}", key.name);
        }
    }
}
