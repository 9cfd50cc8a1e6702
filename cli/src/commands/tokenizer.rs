//! `kfc tokenizer`

use crate::args::{Global, TokenizerArgs};
use crate::error::Outcome;
use crate::output;
use kfc_runtime::RunError;
use kfc_runtime::data::train_byte_level;
use serde_json::json;

/// Runs `kfc tokenizer`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &TokenizerArgs, global: &Global) -> anyhow::Result<Outcome> {
    let tokenizer = train_byte_level(&args.files, args.vocab_size, &args.out).map_err(RunError::from)?;
    if global.json {
        output::json_line(&json!({"out": output::shown(&args.out), "vocab_size": tokenizer.vocab_size()}))?;
    } else {
        output::stdout_line(&format!("wrote {}: {} tokens", args.out.display(), tokenizer.vocab_size()))?;
    }
    Ok(Outcome::Done)
}
