//! What a model says to a few prompts, the same way before and after training: greedy, one prompt at a time.

use crate::data::Tokenizer;
use crate::error::{Result, RunError};
use crate::generate::{Generator, Request, Sampling, TextStream, stop_ids};
use crate::inference::Served;
use std::ops::ControlFlow;

/// Goes on from each prompt with at most `max_new_tokens` tokens; fewer where the model's positions end.
///
/// # Errors
/// If a prompt has no tokens or fills all positions, a logit is not finite, or memory runs out.
pub fn answers(
    served: &Served,
    tokenizer: &Tokenizer,
    prompts: &[String],
    max_new_tokens: usize,
) -> Result<Vec<String>> {
    let positions = served.model.config.max_positions;
    let mut requests = Vec::with_capacity(prompts.len());
    for text in prompts {
        let prompt = tokenizer.encode(text)?;
        if prompt.is_empty() || prompt.len() >= positions {
            return Err(RunError::Input(format!(
                "the prompt {text:?} has {} tokens; from 1 to {} have room before an answer",
                prompt.len(),
                positions - 1
            )));
        }
        let max_new_tokens = max_new_tokens.min(positions - prompt.len());
        requests.push(Request { prompt, max_new_tokens });
    }
    let capacity = requests.iter().map(|r| r.prompt.len() + r.max_new_tokens).max().unwrap_or(1);
    let sampling = Sampling { temperature: 0.0, top_k: None, top_p: 1.0, seed: 0 };
    let (done, _) = Generator::new(served, capacity, 1)?.run(
        &requests,
        &sampling,
        &stop_ids(served, tokenizer),
        &mut |_, _| Ok(ControlFlow::Continue(())),
    )?;
    requests
        .iter()
        .zip(&done)
        .map(|(request, answer)| text(tokenizer, &request.prompt, &answer.tokens))
        .collect()
}

/// What the tokens of an answer add to its prompt.
fn text(tokenizer: &Tokenizer, prompt: &[i32], answer: &[i32]) -> Result<String> {
    let mut stream = TextStream::new(tokenizer, prompt);
    let mut text = String::new();
    for &token in answer {
        text.push_str(&stream.push(token)?);
    }
    text.push_str(&stream.finish()?);
    Ok(text)
}
