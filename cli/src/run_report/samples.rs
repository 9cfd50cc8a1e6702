//! Answers to prompts, before training and after it.

use super::read_json;
use crate::error::input_error;
use crate::report::escape;
use crate::run_dir::{RunDir, write_atomically};
use kfc_runtime::config::JobConfig;
use kfc_runtime::data::Tokenizer;
use kfc_runtime::inference::Served;
use kfc_runtime::{RunError, samples};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;

/// One prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) prompt: String,
    pub(crate) before: String,
    pub(crate) after: String,
}

/// Asks what the run trained, and what it started from, and keeps the answers in the run's directory.
///
/// # Errors
/// If the model, the adapter or the tokenizer cannot be read, or a prompt is too long.
pub(crate) fn take(
    job: &JobConfig,
    run: &RunDir,
    trained: &Path,
    prompts: &[String],
    max_new_tokens: usize,
) -> anyhow::Result<Vec<Sample>> {
    let tokenizer =
        Tokenizer::load(job.data.tokenizer.as_deref().unwrap_or(&job.model.path)).map_err(RunError::from)?;
    let ask = |state: &Path| -> anyhow::Result<Vec<String>> {
        let (model, adapter) = match &job.lora {
            Some(_) => (job.model.path.as_path(), Some(state)),
            None => (state, None),
        };
        let served = Served::open(model, adapter, job.model.dtype)?;
        Ok(samples::answers(&served, &tokenizer, prompts, max_new_tokens)?)
    };
    let before = ask(&run.snapshot())?;
    let after = ask(trained)?;
    let answers = before.into_iter().zip(after);
    let taken: Vec<Sample> = prompts
        .iter()
        .zip(answers)
        .map(|(prompt, (before, after))| Sample { prompt: prompt.clone(), before, after })
        .collect();
    let rows = taken.iter().map(|s| json!({"prompt": s.prompt, "before": s.before, "after": s.after}));
    write_atomically(&run.samples(), Value::Array(rows.collect()).to_string().as_bytes())?;
    Ok(taken)
}

/// Reads what [`take`] kept; none if there is nothing.
///
/// # Errors
/// If the file is damaged.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Sample>> {
    let Some(json) = read_json(path)? else { return Ok(Vec::new()) };
    let text = |row: &Value, key: &str| Some(row.get(key)?.as_str()?.to_owned());
    let sample = |row: &Value| {
        Some(Sample {
            prompt: text(row, "prompt")?,
            before: text(row, "before")?,
            after: text(row, "after")?,
        })
    };
    let rows = json.as_array().and_then(|rows| rows.iter().map(sample).collect());
    rows.ok_or_else(|| {
        input_error(format!("{}: rows of prompt, before and after are needed; remove it", path.display()))
    })
}

/// The text with its line breaks to be seen, many in a row as one: small models make pages of them.
fn short_of_lines(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\n') {
        let breaks = rest[at..].chars().take_while(|c| *c == '\n').count();
        shown.push_str(&rest[..at]);
        shown.push('⏎');
        if breaks > 1 {
            shown.push_str(&format!("×{breaks}"));
        }
        shown.push('\n');
        rest = &rest[at + breaks..];
    }
    shown + rest
}

/// The samples as a part of the page.
pub(super) fn section(samples: &[Sample]) -> String {
    if samples.is_empty() {
        return String::new();
    }
    let mut html = String::from(
        "<section class=\"card\"><h2>Samples</h2>\n<p class=\"note\">What the model says to a prompt, always the likeliest \
         token, before training and after it.</p>\n<div class=\"scroll\"><table class=\"samples\">\n<thead><tr>\
         <th scope=\"col\">prompt</th><th scope=\"col\">before</th><th scope=\"col\">after</th></tr></thead>\n<tbody>\n",
    );
    for s in samples {
        let [prompt, before, after] =
            [&s.prompt, &s.before, &s.after].map(|text| escape(&short_of_lines(text)));
        let _ = writeln!(html, "<tr><th scope=\"row\">{prompt}</th><td>{before}</td><td>{after}</td></tr>");
    }
    html.push_str("</tbody></table></div></section>\n");
    html
}

#[cfg(test)]
mod tests {
    use super::short_of_lines;

    #[test]
    fn line_breaks_are_counted() {
        assert_eq!(short_of_lines("a\nb\n\n\n c"), "a⏎\nb⏎×3\n c");
        assert_eq!(short_of_lines("\n\n"), "⏎×2\n");
        assert_eq!(short_of_lines(""), "");
    }
}
