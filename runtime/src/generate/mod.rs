//! Text generation: prompts are read in pieces, then every row gets one token at a time.
//!
//! Invariants:
//! - the answer to a request depends on the request, the sampling and the model, never on what else is in the batch
//!   (up to the rounding of kernels, whose tiles depend on the shape of a run);
//! - the token loop looks nothing up by name and allocates nothing that grows with the vocabulary.

mod decoder;
mod sampling;
#[cfg(test)]
mod tests;
mod text;

pub use decoder::Decoder;
pub use sampling::{Sampler, Sampling, argmax};
pub use text::TextStream;

use crate::data::Tokenizer;
use crate::error::{Result, RunError};
use crate::inference::Served;
use std::ops::ControlFlow;
use std::time::Instant;

/// What is to be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<i32>,
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model gave a token that ends a text.
    Eos,
    /// The answer has as many tokens as were asked for.
    Length,
    /// The caller had enough.
    Caller,
}

impl StopReason {
    /// Its name in results.
    pub const fn name(self) -> &'static str {
        match self {
            StopReason::Eos => "eos",
            StopReason::Length => "length",
            StopReason::Caller => "caller",
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Token ids, without the one that ended the text.
    pub tokens: Vec<i32>,
    /// Why it ended.
    pub stop: StopReason,
}

/// How fast it went. A run that reads any prompt tokens counts as prefill, and the answer tokens that other rows get in it
/// count nowhere; every other run is decoding.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Speed {
    /// Prompt tokens read.
    pub prefill_tokens: usize,
    /// Time of reading them, compilation not included.
    pub prefill_seconds: f64,
    /// Tokens made while decoding.
    pub decode_tokens: usize,
    /// Time of making them.
    pub decode_seconds: f64,
}

impl Speed {
    /// Prompt tokens a second.
    pub fn prefill_rate(&self) -> f64 {
        rate(self.prefill_tokens, self.prefill_seconds)
    }

    /// Answer tokens a second, all rows together; NaN if none were made by decoding.
    pub fn decode_rate(&self) -> f64 {
        rate(self.decode_tokens, self.decode_seconds)
    }

    /// Adds what another run took.
    pub fn add(&mut self, other: &Speed) {
        self.prefill_tokens += other.prefill_tokens;
        self.prefill_seconds += other.prefill_seconds;
        self.decode_tokens += other.decode_tokens;
        self.decode_seconds += other.decode_seconds;
    }
}

fn rate(tokens: usize, seconds: f64) -> f64 {
    if tokens == 0 { f64::NAN } else { tokens as f64 / seconds.max(1e-9) }
}

/// What is told of every token: the request's index and its answer so far, the new token last. `Break` ends the answer.
pub type OnToken<'a> = dyn FnMut(usize, &[i32]) -> Result<ControlFlow<()>> + 'a;

/// Answers requests, `batch` at a time.
pub struct Generator<'a> {
    served: &'a Served,
    decoder: Decoder<'a>,
}

/// A request on its way.
struct Row {
    request: usize,
    /// Tokens of the prompt that were read.
    read: usize,
    answer: Vec<i32>,
}

impl<'a> Generator<'a> {
    /// A generator whose prompts and answers together have at most `capacity` tokens.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn new(served: &'a Served, capacity: usize, batch: usize) -> Result<Generator<'a>> {
        Ok(Generator { served, decoder: Decoder::new(served, capacity, batch)? })
    }

    /// Answers all requests, in order of the requests. `stops` end an answer. New requests start when half of the rows are
    /// free, so that their prompts are read together.
    ///
    /// # Errors
    /// If a request does not fit, the model's logits are not finite, or `on_token` fails.
    pub fn run(
        &mut self,
        requests: &[Request],
        sampling: &Sampling,
        stops: &[u32],
        on_token: &mut OnToken<'_>,
    ) -> Result<(Vec<Completion>, Speed)> {
        self.check(requests)?;
        let batch = self.decoder.batch();
        (0..batch).for_each(|row| self.decoder.truncate(row, 0));
        let mut rows: Vec<Option<Row>> = (0..batch).map(|_| None).collect();
        let mut done: Vec<Option<Completion>> = requests.iter().map(|_| None).collect();
        let (mut next, mut taken) = (0, vec![0; batch]);
        let mut sampler = Sampler::new(*sampling);
        let mut speed = Speed::default();
        loop {
            let free = rows.iter().filter(|r| r.is_none()).count();
            if next < requests.len() && free * 2 >= batch {
                for (row, slot) in rows.iter_mut().enumerate().filter(|(_, r)| r.is_none()) {
                    if next < requests.len() {
                        self.decoder.truncate(row, 0);
                        *slot = Some(Row { request: next, read: 0, answer: Vec::new() });
                        next += 1;
                    }
                }
            }
            if rows.iter().all(Option::is_none) {
                break;
            }
            let prompts = self.advance(requests, &mut rows, &mut taken, &mut speed)?;
            for (row, slot) in rows.iter_mut().enumerate() {
                let Some(at) = slot else { continue };
                let request = &requests[at.request];
                if at.read < request.prompt.len() {
                    continue;
                }
                let chosen = match request.max_new_tokens {
                    0 => None,
                    _ => Some(self.choose(&mut sampler, row, at)?),
                };
                speed.decode_tokens += usize::from(prompts == 0);
                if let Some(stop) = take(chosen, request, at, stops, on_token)? {
                    done[at.request] = Some(Completion { tokens: std::mem::take(&mut at.answer), stop });
                    *slot = None;
                }
            }
        }
        Ok((done.into_iter().flatten().collect(), speed))
    }

    /// One run over what the rows have pending; the prompt tokens it read.
    fn advance(
        &mut self,
        requests: &[Request],
        rows: &mut [Option<Row>],
        taken: &mut [usize],
        speed: &mut Speed,
    ) -> Result<usize> {
        let pending: Vec<&[i32]> = rows
            .iter()
            .map(|row| match row {
                None => &[][..],
                Some(at) if at.read < requests[at.request].prompt.len() => {
                    &requests[at.request].prompt[at.read..]
                }
                Some(at) => &at.answer[at.answer.len().saturating_sub(1)..],
            })
            .collect();
        self.decoder.ready(&pending)?;
        let started = Instant::now();
        self.decoder.step(&pending, taken)?;
        let seconds = started.elapsed().as_secs_f64();
        let mut prompts = 0;
        for (row, taken) in rows.iter_mut().zip(taken.iter()) {
            if let Some(at) = row
                && at.read < requests[at.request].prompt.len()
            {
                at.read += taken;
                prompts += taken;
            }
        }
        if prompts > 0 {
            speed.prefill_tokens += prompts;
            speed.prefill_seconds += seconds;
        } else {
            speed.decode_seconds += seconds;
        }
        Ok(prompts)
    }

    fn choose(&self, sampler: &mut Sampler, row: usize, at: &Row) -> Result<i32> {
        let chosen = sampler.choose(self.decoder.logits(row), at.request as u64, at.answer.len() as u64);
        chosen.ok_or_else(|| self.served.not_finite())
    }

    fn check(&self, requests: &[Request]) -> Result<()> {
        for (i, r) in requests.iter().enumerate() {
            if r.prompt.is_empty() {
                return Err(RunError::Input(format!(
                    "prompt {} has no tokens; write something to go on from",
                    i + 1
                )));
            }
            let needed = r.prompt.len() + r.max_new_tokens;
            if needed > self.decoder.capacity() {
                return Err(RunError::Input(format!(
                    "prompt {} has {} tokens, with {} new ones {needed}, but there is room for {}; shorten the prompt or \
                     ask for fewer",
                    i + 1,
                    r.prompt.len(),
                    r.max_new_tokens,
                    self.decoder.capacity()
                )));
            }
        }
        Ok(())
    }
}

/// Adds a chosen token to an answer; why the answer ends, if it does.
fn take(
    chosen: Option<i32>,
    request: &Request,
    at: &mut Row,
    stops: &[u32],
    on_token: &mut OnToken<'_>,
) -> Result<Option<StopReason>> {
    let Some(token) = chosen else { return Ok(Some(StopReason::Length)) };
    if stops.contains(&(token as u32)) {
        return Ok(Some(StopReason::Eos));
    }
    at.answer.push(token);
    if on_token(at.request, &at.answer)?.is_break() {
        return Ok(Some(StopReason::Caller));
    }
    Ok((at.answer.len() >= request.max_new_tokens).then_some(StopReason::Length))
}

/// The tokens that end an answer: those of the model's configuration and those of the tokenizer.
pub fn stop_ids(served: &Served, tokenizer: &Tokenizer) -> Vec<u32> {
    let mut ids = served.model.config.eos_token_ids.clone();
    ids.extend_from_slice(tokenizer.stop_ids());
    ids.sort_unstable();
    ids.dedup();
    ids
}
