//! Decoding with a cache against whole sequences, batches against single requests, and stopping.
#![allow(clippy::unwrap_used)]
use super::*;
use crate::inference::bind_one;
use crate::testing::{model_for, write_random_adapter};
use kfc_ops::step::logits::logits_graph;

const WORDS: &str = "a b c d e f g h i j k l m n o p q r s t u v w x y z";

/// Logits of the last of `tokens`, by a forward pass without a cache.
fn full_logits(served: &Served, tokens: &[i32]) -> Vec<f32> {
    let (config, t) = (&served.model.config, tokens.len());
    let mut store = served.store(t).unwrap();
    let graph = logits_graph(config, "student.", served.model.dtype, served.lora.as_ref(), 1, t).unwrap();
    let mut plan = bind_one(graph, &mut store).unwrap();
    let positions: Vec<i32> = (0..t as i32).collect();
    let data: [(&str, &[i32]); 3] =
        [("tokens", tokens), ("positions", &positions), ("segments", &vec![0; t])];
    for (name, values) in data {
        let slot = store.slot(name).unwrap();
        store.write(slot, values);
    }
    plan.run(&mut store);
    plan.output::<f32>(0)[(t - 1) * config.vocab_size..].to_vec()
}

/// Feeds all of `tokens` to row 0 of a decoder.
fn feed(decoder: &mut Decoder<'_>, tokens: &[i32]) {
    let (mut rest, mut taken) = (tokens, [0]);
    while !rest.is_empty() {
        decoder.step(&[rest], &mut taken).unwrap();
        rest = &rest[taken[0]..];
    }
}

fn prompt(n: usize, seed: i32) -> Vec<i32> {
    (0..n as i32).map(|i| 3 + (i * 7 + seed * 5 + i * i) % 26).collect()
}

fn keep_going() -> impl FnMut(usize, &[i32]) -> Result<ControlFlow<()>> {
    |_, _| Ok(ControlFlow::Continue(()))
}

#[test]
fn the_cache_changes_nothing() {
    let (dir, plain) = model_for(&[WORDS], 1);
    let adapter = dir.path().join("adapter");
    write_random_adapter(&adapter, &plain);
    let adapted = Served::open(&plain.model.path, Some(&adapter), None).unwrap();
    let mut answers = Vec::new();
    for served in [&plain, &adapted] {
        let mut decoder = Decoder::new(served, 100, 1).unwrap();
        // Pieces of 8, 64 and 1.
        let mut tokens = prompt(73, 0);
        feed(&mut decoder, &tokens);
        for _ in 0..20 {
            let (cached, full) = (decoder.logits(0).to_vec(), full_logits(served, &tokens));
            let worst = cached.iter().zip(&full).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{worst} after {} tokens", tokens.len());
            let next = argmax(&cached).unwrap();
            assert_eq!(Some(next), argmax(&full));
            tokens.push(next);
            feed(&mut decoder, &[next]);
        }
        answers.push(tokens);
    }
    assert_ne!(answers[0], answers[1]);
}

#[test]
fn truncation_forgets() {
    let (_dir, served) = model_for(&[WORDS], 2);
    let mut decoder = Decoder::new(&served, 32, 1).unwrap();
    feed(&mut decoder, &prompt(20, 1));
    decoder.truncate(0, 5);
    feed(&mut decoder, &prompt(9, 2));
    let tokens = [&prompt(20, 1)[..5], &prompt(9, 2)].concat();
    let full = full_logits(&served, &tokens);
    let worst = decoder.logits(0).iter().zip(&full).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "{worst}");
    assert_eq!(decoder.len(0), tokens.len());
}

#[test]
fn a_batch_answers_as_single_requests_do() {
    let (_dir, served) = model_for(&[WORDS], 3);
    let requests: Vec<Request> = [3usize, 17, 1, 40, 9, 2, 66]
        .iter()
        .enumerate()
        .map(|(i, n)| Request { prompt: prompt(*n, i as i32), max_new_tokens: 5 + 3 * i })
        .collect();
    for sampling in [Sampling::GREEDY, Sampling { temperature: 0.8, top_k: Some(9), top_p: 0.9, seed: 5 }] {
        let run = |batch: usize, requests: &[Request]| {
            let mut generator = Generator::new(&served, 128, batch).unwrap();
            let twice = generator.run(requests, &sampling, &[4, 11], &mut keep_going()).unwrap().0;
            let (answers, speed) = generator.run(requests, &sampling, &[4, 11], &mut keep_going()).unwrap();
            assert_eq!(answers, twice);
            assert_eq!(speed.prefill_tokens, requests.iter().map(|r| r.prompt.len()).sum::<usize>());
            assert!(speed.prefill_rate() > 0.0 && speed.decode_rate() > 0.0);
            answers
        };
        let one = run(1, &requests);
        assert_eq!(one, run(3, &requests));
        assert_eq!(one, run(8, &requests));
        assert_eq!(one[0], run(4, &requests[..1])[0]);
        for (answer, request) in one.iter().zip(&requests) {
            assert!(answer.tokens.iter().all(|t| ![4, 11].contains(t)));
            let full = answer.tokens.len() == request.max_new_tokens;
            assert_eq!(answer.stop, if full { StopReason::Length } else { StopReason::Eos });
        }
        assert!(
            one.iter().any(|a| a.stop == StopReason::Eos) && one.iter().any(|a| a.stop == StopReason::Length)
        );
    }
}

#[test]
fn callers_see_every_token_and_may_stop() {
    let (_dir, served) = model_for(&[WORDS], 4);
    let mut generator = Generator::new(&served, 64, 2).unwrap();
    let requests: Vec<Request> =
        (0..3).map(|i| Request { prompt: prompt(4, i), max_new_tokens: 6 }).collect();
    let mut seen = vec![Vec::new(); 3];
    let (answers, _) = generator
        .run(&requests, &Sampling::GREEDY, &[], &mut |request, answer| {
            seen[request].push(*answer.last().unwrap());
            Ok(if request == 1 && answer.len() == 2 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })
        .unwrap();
    assert_eq!(seen, answers.iter().map(|a| a.tokens.clone()).collect::<Vec<_>>());
    assert_eq!((answers[1].stop, answers[1].tokens.len()), (StopReason::Caller, 2));
    assert_eq!((answers[2].stop, answers[2].tokens.len()), (StopReason::Length, 6));
}

#[test]
fn bad_requests_are_refused() {
    let (_dir, served) = model_for(&[WORDS], 5);
    let mut generator = Generator::new(&served, 16, 1).unwrap();
    let mut error = |prompt: Vec<i32>, max_new_tokens| {
        let error = generator
            .run(&[Request { prompt, max_new_tokens }], &Sampling::GREEDY, &[], &mut keep_going())
            .unwrap_err();
        assert!(error.is_input(), "{error}");
        error.to_string()
    };
    assert!(error(vec![], 1).contains("prompt 1 has no tokens"));
    assert!(error(vec![3; 10], 7).contains("has 10 tokens, with 7 new ones 17, but there is room for 16"));
    assert!(error(vec![3, 1000], 1).contains("token 1000 is outside the model's vocabulary of 29"));
}
