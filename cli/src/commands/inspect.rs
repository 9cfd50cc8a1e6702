//! `kfc inspect`

use crate::args::{Global, InspectArgs};
use crate::error::{Outcome, input_error};
use crate::inspect::{self, Asked, Look};
use crate::output;
use crate::run_dir::write_atomically;
use kfc_runtime::RunError;
use kfc_runtime::data::{Documents, Tokenizer, token_file::read_token_file};
use kfc_runtime::inference::Served;
use kfc_runtime::inspect::{Of, Question, ask, moved, read_fisher};
use std::path::Path;

/// Runs `kfc inspect`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &InspectArgs, global: &Global) -> anyhow::Result<Outcome> {
    let served = Served::open(&args.model, args.adapter.as_deref(), args.dtype)?;
    let tokenizer = tokenizer(&served, args)?;
    let fisher = match &args.fisher {
        Some(path) => read_fisher(path, &served.model.config)?,
        None => Vec::new(),
    };
    let asked = match row(args, &served, tokenizer.as_ref())? {
        Some(tokens) => Some(answer(args, &served, tokenizer.as_ref(), tokens)?),
        None => None,
    };
    let look = Look {
        model: args.model.display().to_string(),
        adapter: args.adapter.as_ref().map(|a| a.display().to_string()),
        dtype: served.model.dtype,
        asked,
        moved: moved(&served)?,
        fisher,
    };
    if let Some(path) = &args.html {
        write_atomically(path, inspect::page(&look).as_bytes())?;
    }
    if global.json {
        output::json_line(&inspect::json(&look))?;
    } else {
        output::write_stdout(&inspect::text(&look))?;
    }
    Ok(Outcome::Done)
}

/// The model's tokenizer; rows of token ids do without one.
fn tokenizer(served: &Served, args: &InspectArgs) -> anyhow::Result<Option<Tokenizer>> {
    let needed = args.prompt.is_some() || args.target.is_some();
    let there = served.model.path.join("tokenizer.json").is_file();
    if needed || (there && args.tokens.is_some()) { Ok(Some(served.tokenizer()?)) } else { Ok(None) }
}

/// The tokens to look at, if a text was given.
fn row(
    args: &InspectArgs,
    served: &Served,
    tokenizer: Option<&Tokenizer>,
) -> anyhow::Result<Option<Vec<i32>>> {
    let tokens = match (&args.prompt, tokenizer, &args.tokens) {
        (Some(prompt), Some(tokenizer), _) => tokenizer.encode(prompt).map_err(RunError::from)?,
        (_, _, Some(path)) => row_of_file(path, args.row, served)?,
        _ => return Ok(None),
    };
    if tokens.is_empty() {
        return Err(input_error("--prompt has no tokens; write something to look at"));
    }
    if tokens.len() > args.max_tokens {
        return Err(input_error(format!(
            "the text has {} tokens, and --max-tokens is {}: attention maps grow with the square of it; shorten the text, or \
             raise --max-tokens",
            tokens.len(),
            args.max_tokens
        )));
    }
    let positions = served.model.config.max_positions;
    if tokens.len() > positions {
        return Err(input_error(format!(
            "the text has {} tokens, more than the model's {positions} positions; shorten it",
            tokens.len()
        )));
    }
    Ok(Some(tokens))
}

fn row_of_file(path: &Path, row: usize, served: &Served) -> anyhow::Result<Vec<i32>> {
    let mut rows = Documents::new();
    let (n, _) = read_token_file(path, served.model.config.vocab_size, &mut rows).map_err(RunError::from)?;
    if row >= n {
        return Err(input_error(format!("--row {row}: {} has {n} rows, counted from 0", path.display())));
    }
    Ok(rows.tokens(row).to_vec())
}

fn answer(
    args: &InspectArgs,
    served: &Served,
    tokenizer: Option<&Tokenizer>,
    tokens: Vec<i32>,
) -> anyhow::Result<Asked> {
    let target = match (&args.target, tokenizer) {
        (Some(text), Some(tokenizer)) => Some(single_token(text, tokenizer)?),
        _ => None,
    };
    if args.loss && tokens.len() < 2 {
        return Err(input_error("--loss needs two tokens or more: the first is not predicted"));
    }
    let position = args.position.unwrap_or(tokens.len() - 1);
    let of = if args.loss { Of::Loss } else { Of::Logit };
    let question = Question { tokens, position, target, of };
    let found = ask(served, &question)?;
    let text = |id: i32| -> anyhow::Result<String> {
        let Some(tokenizer) = tokenizer else { return Ok(format!("#{id}")) };
        let text = tokenizer.decode(&[id], false).map_err(RunError::from)?;
        // A part of a character decodes to nothing that can be shown.
        let unclear = text.is_empty() || text.contains(char::REPLACEMENT_CHARACTER);
        Ok(if unclear { tokenizer.token(id as u32).unwrap_or_else(|| format!("#{id}")) } else { text })
    };
    let texts = question.tokens.iter().map(|&id| text(id)).collect::<anyhow::Result<_>>()?;
    let target_text = text(found.target)?;
    let likeliest =
        found.likeliest.iter().map(|&(id, p)| Ok((id, text(id)?, p))).collect::<anyhow::Result<_>>()?;
    Ok(Asked { question, found, texts, target_text, likeliest })
}

fn single_token(text: &str, tokenizer: &Tokenizer) -> anyhow::Result<i32> {
    let (ids, _) = tokenizer.encode_with_offsets(text).map_err(RunError::from)?;
    match ids[..] {
        [id] => Ok(id),
        _ => {
            let pieces: Vec<String> = ids
                .iter()
                .map(|&id| format!("{:?}", tokenizer.token(id as u32).unwrap_or_default()))
                .collect();
            Err(input_error(format!(
                "--target {text:?} is {} tokens ({}), and must be one; a word inside a text often begins with a space",
                ids.len(),
                pieces.join(" ")
            )))
        }
    }
}
