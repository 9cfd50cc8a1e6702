//! `kfc generate`

use crate::args::{GenerateArgs, Global};
use crate::error::{Outcome, input_error};
use crate::output;
use kfc_runtime::RunError;
use kfc_runtime::generate::{Completion, Generator, Request, Sampling, Speed, TextStream, stop_ids};
use kfc_runtime::inference::Served;
use serde_json::json;
use std::ops::ControlFlow;

/// Runs `kfc generate`.
///
/// # Errors
/// If the input is wrong or the work fails.
pub fn run(args: &GenerateArgs, global: &Global) -> anyhow::Result<Outcome> {
    let served = Served::open(&args.model, args.adapter.as_deref(), None)?;
    let tokenizer = served.tokenizer()?;
    let prompt = tokenizer.encode(&args.prompt).map_err(RunError::from)?;
    let positions = served.model.config.max_positions;
    if prompt.is_empty() {
        return Err(input_error("--prompt has no tokens; write something to go on from"));
    }
    if prompt.len() + args.max_new_tokens > positions {
        return Err(input_error(format!(
            "--prompt has {} tokens, with {} new ones more than the model's {positions} positions; shorten the prompt or \
             lower --max-new-tokens",
            prompt.len(),
            args.max_new_tokens
        )));
    }
    let sampling =
        Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed };
    let mut generator = Generator::new(&served, prompt.len() + args.max_new_tokens, 1)?;
    let mut stream = TextStream::new(&tokenizer, &prompt);
    let requests = [Request { prompt, max_new_tokens: args.max_new_tokens }];
    let mut text = String::new();
    let mut show = |piece: &str| {
        text.push_str(piece);
        if global.json { Ok(()) } else { output::write_stdout(piece) }
    };
    let mut unwritten = None;
    let (done, speed) =
        generator.run(&requests, &sampling, &stop_ids(&served, &tokenizer), &mut |_, answer| {
            let piece = stream.push(answer[answer.len() - 1])?;
            unwritten = show(&piece).err();
            Ok(if unwritten.is_none() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
    if let Some(error) = unwritten {
        return Err(error.into());
    }
    show(&stream.finish().map_err(RunError::from)?)?;
    for completion in &done {
        if global.json {
            output::json_line(&to_json(args, &text, completion, &speed))?;
        } else {
            output::stdout_line("")?;
        }
        if !global.quiet {
            output::stderr_line(&statistics(completion, &speed));
        }
    }
    Ok(Outcome::Done)
}

fn to_json(args: &GenerateArgs, text: &str, completion: &Completion, speed: &Speed) -> serde_json::Value {
    json!({
        "prompt": args.prompt,
        "text": text,
        "tokens": completion.tokens,
        "prefill_tokens_per_s": speed.prefill_rate(),
        "decode_tokens_per_s": speed.decode_rate(),
        "stop_reason": completion.stop.name(),
    })
}

fn statistics(completion: &Completion, speed: &Speed) -> String {
    let rate = |rate: f64| if rate.is_finite() { format!("{rate:.1} tok/s") } else { "n/a".into() };
    format!(
        "prompt {} tokens, {}; answer {} tokens, {}; stopped by {}",
        speed.prefill_tokens,
        rate(speed.prefill_rate()),
        completion.tokens.len(),
        rate(speed.decode_rate()),
        completion.stop.name()
    )
}
