//! A job as TOML: every key that has an explicit form, absolute paths, no comments.

use super::schema::{self, Section};
use kfc_runtime::config::JobConfig;
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
    text
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
