//! What the tasks that generate share: prompts to tokens, answers to texts.

use super::{Observer, Options};
use crate::data::Tokenizer;
use crate::error::{Result, RunError};
use crate::generate::{Generator, Request, Sampling, TextStream, stop_ids};
use crate::inference::Served;
use std::ops::ControlFlow;

/// A prompt and the texts at which its answer ends, which are no part of the answer.
pub(super) struct Prompt<'a> {
    /// The row it is of, from 0.
    pub row: usize,
    pub text: &'a str,
    pub until: &'static [&'static str],
}

/// A model that answers prompts, with its caches from call to call.
pub(super) struct Answerer<'a> {
    served: &'a Served,
    options: &'a Options,
    seq_len: usize,
    generator: Option<(usize, Generator<'a>)>,
}

impl<'a> Answerer<'a> {
    /// Nothing is compiled or allocated yet.
    pub(super) fn new(served: &'a Served, options: &'a Options, seq_len: usize) -> Answerer<'a> {
        Answerer { served, options, seq_len, generator: None }
    }

    /// The greedy answers to prompts, in their order, and the tokens that were read and made.
    ///
    /// # Errors
    /// If a prompt has no tokens, answers leave no room for prompts, or the model's numbers are not finite.
    pub(super) fn complete(
        &mut self,
        tokenizer: &Tokenizer,
        prompts: &[Prompt<'_>],
        observer: &mut dyn Observer,
    ) -> Result<(Vec<String>, usize)> {
        let mut requests = requests(tokenizer, prompts, self.options, self.seq_len, observer)?;
        // Long prompts first: rows that are read together are of about the same length.
        requests.sort_by_key(|(i, r)| (std::cmp::Reverse(r.prompt.len()), *i));
        let (order, requests): (Vec<usize>, Vec<Request>) = requests.into_iter().unzip();
        let longest = requests.first().map_or(0, |r| r.prompt.len());
        let (stops, generator) = (stop_ids(self.served, tokenizer), self.generator(longest, requests.len())?);
        let mut streams: Vec<TextStream<'_>> =
            requests.iter().map(|r| TextStream::new(tokenizer, &r.prompt)).collect();
        let mut texts = vec![String::new(); requests.len()];
        let mut begun = 0;
        let (done, _) = generator.run(&requests, &Sampling::GREEDY, &stops, &mut |i, answer| {
            if answer.len() == 1 {
                observer.progress(begun, prompts.len());
                begun += 1;
            }
            texts[i].push_str(&streams[i].push(answer[answer.len() - 1])?);
            let ended = prompts[order[i]].until.iter().any(|until| texts[i].contains(until));
            Ok(if ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        observer.progress(prompts.len(), prompts.len());
        let mut answers = vec![String::new(); prompts.len()];
        for ((i, mut text), stream) in order.into_iter().zip(texts).zip(&mut streams) {
            text.push_str(&stream.finish()?);
            if let Some(at) = prompts[i].until.iter().filter_map(|until| text.find(until)).min() {
                text.truncate(at);
            }
            answers[i] = text;
        }
        let read: usize = requests.iter().map(|r| r.prompt.len()).sum();
        let made: usize = done.iter().map(|c| c.tokens.len()).sum();
        Ok((answers, read + made))
    }

    /// The generator, made anew where prompts are longer than before.
    fn generator(&mut self, longest: usize, count: usize) -> Result<&mut Generator<'a>> {
        let capacity = longest + self.options.answer_tokens(self.seq_len);
        let old = self.generator.take().filter(|(room, _)| *room >= capacity);
        let (room, generator) = match old {
            Some(generator) => generator,
            None => {
                let batch = self.options.batch.clamp(1, count.max(1));
                (capacity, Generator::new(self.served, capacity, batch)?)
            }
        };
        Ok(&mut self.generator.insert((room, generator)).1)
    }
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
            return Err(RunError::Input(format!("row {}: the prompt has no tokens", prompt.row + 1)));
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
