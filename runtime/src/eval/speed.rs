//! Speed of reading prompts and of making tokens.

use super::{Observer, Options};
use crate::data::{DataConfig, LongRows, OnError, load};
use crate::error::{Result, RunError};
use crate::generate::{Generator, Request, Sampling};
use crate::inference::Served;
use crate::random;
use std::ops::ControlFlow;

/// Tokens of a prompt that is made up, where the row length allows it.
const PROMPT: usize = 512;

/// Tokens a second of reading and of making.
pub(super) fn measure(
    served: &Served,
    options: &Options,
    seq_len: usize,
    observer: &mut dyn Observer,
) -> Result<(f64, f64)> {
    let max_new_tokens = options.answer_tokens(seq_len);
    let Some(room) = seq_len.checked_sub(max_new_tokens).filter(|room| *room > 0) else {
        return Err(RunError::Input(format!(
            "--max-new-tokens {max_new_tokens} leaves no room for a prompt in rows of {seq_len} tokens; ask for fewer"
        )));
    };
    let prompts = prompts(served, options, room.min(PROMPT))?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let requests: Vec<Request> =
        prompts.into_iter().map(|prompt| Request { prompt, max_new_tokens }).collect();
    let mut generator = Generator::new(served, longest + max_new_tokens, options.batch)?;
    let mut go_on = |_: usize, _: &[i32]| Ok(ControlFlow::Continue(()));
    // The first run compiles, and brings the weights into memory.
    let warm: Vec<Request> = requests
        .iter()
        .map(|r| Request { prompt: r.prompt.clone(), max_new_tokens: max_new_tokens.min(2) })
        .collect();
    observer.progress(0, 2);
    generator.run(&warm, &Sampling::GREEDY, &[], &mut go_on)?;
    observer.progress(1, 2);
    let (_, speed) = generator.run(&requests, &Sampling::GREEDY, &[], &mut go_on)?;
    observer.progress(2, 2);
    Ok((speed.prefill_rate(), speed.decode_rate()))
}

/// One prompt a row of the batch: the first rows of the data, or random tokens.
fn prompts(served: &Served, options: &Options, room: usize) -> Result<Vec<Vec<i32>>> {
    let vocab = served.model.config.vocab_size;
    let count = options.batch.min(options.limit.unwrap_or(usize::MAX));
    let Some(path) = &options.data else {
        let stream = random::stream_of("speed");
        let token = |i: u64| (random::uniform(options.seed, stream, i) * vocab as f64) as i32;
        let row = |row: usize| (0..room).map(|i| token((row * room + i) as u64)).collect();
        return Ok((0..count).map(row).collect());
    };
    let is_tokens = crate::data::source::Format::of(path) == Some(crate::data::Format::Tokens);
    let tokenizer = if is_tokens { None } else { Some(served.tokenizer()?) };
    let config = DataConfig {
        format: None,
        seq_len: (!is_tokens).then_some(room.max(2)),
        packing: false,
        long_rows: Some(LongRows::Split),
        on_error: OnError::Stop,
        vocab,
    };
    let (rows, _) = load(std::slice::from_ref(path), &config, tokenizer.as_ref())?;
    let documents = rows.documents();
    let cut = |d: usize| documents.tokens(d)[..documents.tokens(d).len().min(room)].to_vec();
    Ok((0..documents.len().min(count)).map(cut).collect())
}
