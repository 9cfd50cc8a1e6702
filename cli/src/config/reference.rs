//! The reference of the configuration, made from the schema.

use super::schema::{self, DefaultValue, Key, Section};
use std::fmt::Write;

/// The reference as a Markdown page.
pub fn reference_markdown() -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         A job is one TOML file. Every key is listed here with what it accepts and what it is when left out; this page is\n\
         made from the program's own table (`kfc train --help-config` prints it). Relative paths start from the file's folder.\n\n\
         `--set section.key=value` overrides a key from the command line, as often as needed. The value is TOML, or a bare\n\
         string: `--set train.steps=10`, `--set data.train=new.jsonl`, `--set 'lora.targets=[\"q_proj\", \"v_proj\"]'`,\n\
         `--set distill.features.0.weight=0.5` (lists count from 0). Relative paths in an override start from the current\n\
         folder. Overriding one of `train.steps` and `train.epochs` drops the other.\n\n\
         A run writes the configuration it used, with every default filled in, to `config.toml` in its folder.\n",
    );
    markdown_section(&mut page, &schema::model(), "Required.");
    markdown_section(&mut page, &schema::lora(), "");
    markdown_section(&mut page, &schema::distill(), "");
    markdown_section(&mut page, &schema::features(), "May be repeated.");
    markdown_section(&mut page, &schema::ewc(), "");
    markdown_section(&mut page, &schema::data(), "Required.");
    markdown_section(&mut page, &schema::train(), "Required.");
    markdown_section(&mut page, &schema::report(), "");
    markdown_section(&mut page, &schema::kernels(), "");
    page
}

fn markdown_section<T>(page: &mut String, section: &Section<T>, note: &str) {
    let _ = writeln!(page, "\n## {}\n\n{}\n", header(section), format!("{} {note}", section.doc).trim_end());
    page.push_str("| key | accepts | default | |\n|---|---|---|---|\n");
    let defaults = (section.defaults)();
    for key in &section.keys {
        let default = match default(key, &defaults) {
            (value, true) => format!("`{value}`"),
            (words, false) => words,
        };
        let _ = writeln!(page, "| `{}` | {} | {default} | {} |", key.name, accepts(key), key.doc);
    }
}

/// The reference as plain text, for a terminal.
pub fn reference_text() -> String {
    let mut text = String::new();
    text_section(&mut text, &schema::model());
    text_section(&mut text, &schema::lora());
    text_section(&mut text, &schema::distill());
    text_section(&mut text, &schema::features());
    text_section(&mut text, &schema::ewc());
    text_section(&mut text, &schema::data());
    text_section(&mut text, &schema::train());
    text_section(&mut text, &schema::report());
    text_section(&mut text, &schema::kernels());
    text
}

fn text_section<T>(text: &mut String, section: &Section<T>) {
    let gap = if text.is_empty() { "" } else { "\n" };
    let _ = writeln!(text, "{gap}{}  {}", header(section), section.doc);
    let defaults = (section.defaults)();
    for key in &section.keys {
        let _ = writeln!(text, "  {:<17} {}", key.name, key.doc.replace('`', ""));
        let (value, _) = default(key, &defaults);
        let _ = writeln!(text, "  {:<17} {} [{}]", "", accepts(key), value.replace('`', ""));
    }
}

fn header<T>(section: &Section<T>) -> String {
    if section.name.contains('.') { format!("[[{}]]", section.name) } else { format!("[{}]", section.name) }
}

/// What happens when `key` is left out, and whether that is a value (else it is words).
fn default<T>(key: &Key<T>, defaults: &T) -> (String, bool) {
    match key.default {
        DefaultValue::Required => ("required".into(), false),
        DefaultValue::Words(words) => (words.into(), false),
        DefaultValue::Stated => ((key.show)(defaults).unwrap_or_default(), true),
    }
}

fn accepts<T>(key: &Key<T>) -> String {
    match &key.rule {
        Some(rule) => format!("{}: {}", key.kind, rule.words),
        None => key.kind.clone(),
    }
}
