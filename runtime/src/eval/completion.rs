//! What the tasks that generate share: prompts to tokens, answers to texts.

use super::{Observer, Options};
use crate::data::Tokenizer;
use crate::error::{Result, RunError};
use crate::generate::{Generator, Request, Sampling, TextStream, stop_ids};
use crate::inference::Served;
use std::ops::ControlFlow;
use std::time::Instant;

/// A prompt and the text at which its answer ends, which is no part of the answer.
pub(super) struct Prompt<'a> {
    pub text: &'a str,
    pub until: Option<&'a str>,
}

/// The greedy answers to prompts, in their order, and the tokens a second that were read and made.
pub(super) fn complete(
    served: &Served,
    prompts: &[Prompt<'_>],
    options: &Options,
    seq_len: usize,
    observer: &mut dyn Observer,
) -> Result<(Vec<String>, f64)> {
    let tokenizer = served.tokenizer()?;
    let mut requests = requests(&tokenizer, prompts, options, seq_len, observer)?;
    // Long prompts first: rows that are read together are of about the same length.
    requests.sort_by_key(|(i, r)| (std::cmp::Reverse(r.prompt.len()), *i));
    let (order, requests): (Vec<usize>, Vec<Request>) = requests.into_iter().unzip();
    let longest = requests.first().map_or(0, |r| r.prompt.len());
    let batch = options.batch.clamp(1, requests.len().max(1));
    let started = Instant::now();
    let mut generator = Generator::new(served, longest + options.answer_tokens(seq_len), batch)?;
    let mut streams: Vec<TextStream<'_>> =
        requests.iter().map(|r| TextStream::new(&tokenizer, &r.prompt)).collect();
    let mut texts = vec![String::new(); requests.len()];
    let mut begun = 0;
    let (done, _) =
        generator.run(&requests, &Sampling::GREEDY, &stop_ids(served, &tokenizer), &mut |i, answer| {
            if answer.len() == 1 {
                observer.progress(begun, prompts.len());
                begun += 1;
            }
            texts[i].push_str(&streams[i].push(answer[answer.len() - 1])?);
            let ended = prompts[order[i]].until.is_some_and(|until| texts[i].contains(until));
            Ok(if ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
    let seconds = started.elapsed().as_secs_f64();
    observer.progress(prompts.len(), prompts.len());
    let mut answers = vec![String::new(); prompts.len()];
    for ((i, mut text), stream) in order.into_iter().zip(texts).zip(&mut streams) {
        text.push_str(&stream.finish()?);
        if let Some(at) = prompts[i].until.and_then(|until| text.find(until)) {
            text.truncate(at);
        }
        answers[i] = text;
    }
    let read: usize = requests.iter().map(|r| r.prompt.len()).sum();
    let made: usize = done.iter().map(|c| c.tokens.len()).sum();
    Ok((answers, (read + made) as f64 / seconds.max(1e-9)))
}

/// Prompts as tokens with their indices; those that leave no room for an answer lose their start.
fn requests(
    tokenizer: &Tokenizer,
    prompts: &[Prompt<'_>],
    options: &Options,
    seq_len: usize,
    observer: &mut dyn Observer,
) -> Result<Vec<(usize, Request)>> {
    let max_new_tokens = options.answer_tokens(seq_len);
    let Some(room) = seq_len.checked_sub(max_new_tokens).filter(|room| *room > 0) else {
        return Err(RunError::Input(format!(
            "--max-new-tokens {max_new_tokens} leaves no room for a prompt in rows of {seq_len} tokens; ask for fewer"
        )));
    };
    let mut cut = 0;
    let mut out = Vec::with_capacity(prompts.len());
    for (i, prompt) in prompts.iter().enumerate() {
        let mut tokens = tokenizer.encode(prompt.text)?;
        if tokens.is_empty() {
            return Err(RunError::Input(format!("row {}: the prompt has no tokens", i + 1)));
        }
        if tokens.len() > room {
            tokens.drain(..tokens.len() - room);
            cut += 1;
        }
        out.push((i, Request { prompt: tokens, max_new_tokens }));
    }
    if cut > 0 {
        observer.note(&format!("{cut} prompts lost their start to fit {room} tokens"));
    }
    Ok(out)
}
