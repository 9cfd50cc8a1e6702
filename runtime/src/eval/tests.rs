//! Each task against what the logits say, and the errors of data that does not fit.
#![allow(clippy::unwrap_used)]
use super::*;
use crate::data::IGNORE;
use crate::generate::{Generator, Request, Sampling, stop_ids};
use crate::hf::{FileDType, TensorOut, TensorSpec, write_safetensors};
use crate::inference::bind_one;
use crate::testing::{model_for, write_random};
use kfc_ops::step::logits::logits_graph;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

const WORDS: &str = "a b c d e f g h i j k l m n o p q r s t u v w x y z . ? : Question Answer A B";

#[derive(Default)]
struct Notes(Vec<String>, Vec<(usize, usize)>);

impl Observer for Notes {
    fn progress(&mut self, done: usize, total: usize) {
        self.1.push((done, total));
    }
    fn note(&mut self, text: &str) {
        self.0.push(text.into());
    }
}

fn options(task: Task, data: Option<PathBuf>) -> Options {
    Options {
        task,
        data,
        shots: 0,
        shots_from: None,
        limit: None,
        batch: 3,
        seq_len: None,
        max_new_tokens: Some(8),
        seed: 0,
    }
}

fn run(served: &Served, options: &Options) -> BTreeMap<&'static str, f64> {
    let mut notes = Notes::default();
    let metrics = evaluate(served, options, &mut notes).unwrap().metrics;
    let names: Vec<&str> = metrics.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, options.task.metrics(options.data.as_deref()));
    let (done, total) = *notes.1.last().unwrap();
    assert_eq!(done, total);
    let metrics: BTreeMap<_, _> = metrics.into_iter().collect();
    assert!(metrics["tokens_per_s"] > 0.0 && metrics["seconds"] > 0.0, "{metrics:?}");
    metrics
}

fn error(served: &Served, options: &Options) -> RunError {
    evaluate(served, options, &mut Notes::default()).unwrap_err()
}

/// Log-probability of each token after the first, and whether it is the likeliest, from the logits of a forward pass.
fn direct(served: &Served, tokens: &[i32]) -> Vec<(f64, bool)> {
    let (config, t) = (&served.model.config, tokens.len());
    let mut store = served.store(t).unwrap();
    let graph = logits_graph(config, "student.", served.model.dtype, None, 1, t).unwrap();
    let mut plan = bind_one(graph, &mut store).unwrap();
    let positions: Vec<i32> = (0..t as i32).collect();
    let data: [(&str, &[i32]); 3] =
        [("tokens", tokens), ("positions", &positions), ("segments", &vec![0; t])];
    for (name, values) in data {
        let slot = store.slot(name).unwrap();
        store.write(slot, values);
    }
    plan.run(&mut store);
    let logits = plan.output::<f32>(0).chunks(config.vocab_size);
    let score = |(z, &label): (&[f32], &i32)| {
        let sum: f64 = z.iter().map(|z| f64::from(*z).exp()).sum();
        let mine = z[label as usize];
        (f64::from(mine) - sum.ln(), z.iter().all(|other| *other <= mine))
    };
    logits.zip(&tokens[1..]).map(score).collect()
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-4 * b.abs().max(1.0)
}

#[test]
fn perplexity_is_that_of_the_logits() {
    let (dir, served) = model_for(&[WORDS], 11);
    let t = served.tokenizer().unwrap();
    let data = dir.file(
        "rows.jsonl",
        "{\"text\": \"a b c d e f g h .\"}\n{\"prompt\": \"q r s\", \"completion\": \" t u\"}\n{\"text\": \"z\"}\n\
         {\"text\": \"a a b b c c d d e e f f g g h h i i j j k k l l m m n n o o p p q q r r s s\"}\n",
    );
    let metrics = run(&served, &options(Task::Perplexity, Some(data.clone())));
    // A text ends with EOS; of a row with a prompt the completion and its EOS count.
    let eos = t.eos().unwrap() as i32;
    let tokens = |text: &str| [t.encode(text).unwrap(), vec![eos]].concat();
    let mut scored = direct(&served, &tokens("a b c d e f g h ."));
    scored.extend(&direct(&served, &tokens("q r s t u"))[2..]);
    scored.extend(direct(&served, &tokens("z")));
    let long = "a a b b c c d d e e f f g g h h i i j j k k l l m m n n o o p p q q r r s s";
    scored.extend(direct(&served, &tokens(long)));
    let nll = -scored.iter().map(|s| s.0).sum::<f64>() / scored.len() as f64;
    let right = scored.iter().filter(|s| s.1).count() as f64 / scored.len() as f64;
    assert_eq!(metrics["tokens"], scored.len() as f64);
    assert!(near(metrics["nll"], nll) && near(metrics["ppl"], nll.exp()), "{metrics:?}, nll {nll}");
    assert_eq!(metrics["accuracy"], right);
    // Each text without its first word, the completion with its blank, and nothing of "z", which is context.
    let bytes = " b c d e f g h .".len() + " t u".len() + long.len() - 1;
    assert!(
        near(metrics["bits_per_byte"], nll * scored.len() as f64 / 2f64.ln() / bytes as f64),
        "{metrics:?}"
    );
    // The batch and the order of rows change nothing.
    let one = run(&served, &Options { batch: 1, ..options(Task::Perplexity, Some(data.clone())) });
    assert!(near(one["nll"], metrics["nll"]));
    let first = run(&served, &Options { limit: Some(1), ..options(Task::Perplexity, Some(data)) });
    assert_eq!(first["tokens"], 9.0);
}

#[test]
fn texts_and_token_files_are_cut_into_windows() {
    let (dir, served) = model_for(&[WORDS], 12);
    let t = served.tokenizer().unwrap();
    let text = "a b c d e f g h i j k l m n o p q r s t";
    let file = dir.file("x.txt", text);
    let metrics = run(&served, &Options { seq_len: Some(7), ..options(Task::Perplexity, Some(file)) });
    let tokens = [t.encode(text).unwrap(), vec![t.eos().unwrap() as i32]].concat();
    let scored: Vec<_> = tokens.chunks(7).filter(|w| w.len() > 1).flat_map(|w| direct(&served, w)).collect();
    assert_eq!(metrics["tokens"], scored.len() as f64);
    let nll = -scored.iter().map(|s| s.0).sum::<f64>() / scored.len() as f64;
    assert!(near(metrics["nll"], nll), "{metrics:?}, {nll}");

    let ids: Vec<i32> = (0..20).map(|i| 3 + i * 5 % 30).collect();
    let mut labels = ids.clone();
    labels[2] = IGNORE;
    let path = dir.path().join("rows.safetensors");
    let bytes = [&ids, &labels].map(|v| bytemuck::cast_slice::<i32, u8>(v).to_vec());
    let tensor = |name: &str, bytes: &Vec<u8>| {
        let bytes = bytes.clone();
        TensorOut::new(TensorSpec::new(name, FileDType::I32, [2, 10]), move |w| w.write_all(&bytes))
    };
    let tensors = vec![tensor("input_ids", &bytes[0]), tensor("labels", &bytes[1])];
    write_safetensors(&path, tensors, &BTreeMap::new()).unwrap();
    let mut scored = [direct(&served, &ids[..10]), direct(&served, &ids[10..])].concat();
    scored.remove(1);
    let nll = -scored.iter().map(|s| s.0).sum::<f64>() / scored.len() as f64;
    let whole = run(&served, &options(Task::Perplexity, Some(path.clone())));
    assert!(near(whole["nll"], nll) && whole["tokens"] == 17.0, "{whole:?}, {nll}");
    let cut = run(&served, &Options { seq_len: Some(4), ..options(Task::Perplexity, Some(path)) });
    assert_eq!(cut["tokens"], 17.0);
    assert!(!near(cut["nll"], nll));
}

#[test]
fn choices_are_scored_as_the_logits_say() {
    let (dir, served) = model_for(&[WORDS], 13);
    let t = served.tokenizer().unwrap();
    let items = [
        ("a b c ?", ["d", "e f g"]),
        ("x y", ["z z", "a"]),
        ("m n o p q r s t u v w x y z a b c d", ["e", "f"]),
    ];
    let mut rows = String::new();
    let mut expected = 0.0;
    for (i, (question, choices)) in items.iter().enumerate() {
        let logp = choices.map(|c| {
            let context = t.encode(&format!("Question: {question}\nAnswer:")).unwrap();
            let whole = t.encode(&format!("Question: {question}\nAnswer: {c}")).unwrap();
            direct(&served, &whole)[context.len() - 1..].iter().map(|s| s.0).sum::<f64>()
        });
        let likelier = usize::from(logp[1] > logp[0]);
        // The middle one is given a wrong answer.
        let gold = if i == 1 { 1 - likelier } else { likelier };
        expected += f64::from(u8::from(gold == likelier)) / 3.0;
        rows += &serde_json::json!({"question": question, "choices": choices, "answer": gold}).to_string();
        rows += "\n";
    }
    let data = dir.file("exam.jsonl", rows);
    let metrics = run(&served, &options(Task::Choice, Some(data.clone())));
    assert!(near(metrics["acc"], expected) && metrics["n"] == 3.0, "{metrics:?}");
    assert!(near(metrics["acc_stderr"], (2.0 / 9.0 / 2.0f64).sqrt()));
    let mut notes = Notes::default();
    evaluate(&served, &Options { seq_len: Some(12), ..options(Task::Choice, Some(data)) }, &mut notes)
        .unwrap();
    assert_eq!(notes.0, ["2 contexts lost their start to fit 12 tokens"]);
}

/// What the model answers to a prompt, as text.
fn answer(served: &Served, prompt: &str, max_new_tokens: usize) -> String {
    let t = served.tokenizer().unwrap();
    let prompt = t.encode(prompt).unwrap();
    let mut generator = Generator::new(served, prompt.len() + max_new_tokens, 1).unwrap();
    let requests = [Request { prompt, max_new_tokens }];
    let stops = stop_ids(served, &t);
    let go_on = &mut |_: usize, _: &[i32]| Ok(ControlFlow::Continue(()));
    let (done, _) = generator.run(&requests, &Sampling::GREEDY, &stops, go_on).unwrap();
    t.decode(&done[0].tokens, true).unwrap()
}

#[test]
fn answers_are_those_of_the_model() {
    let (dir, served) = model_for(&[WORDS], 14);
    let asked =
        ["a b", "c d e f g h i j k l m", "n", "o p q r", "s t u", "v", "w x", "y z a b c", "e g", "h"];
    let answered = |q: &str| answer(&served, &format!("Question: {q}\nAnswer:"), 8);
    // The model must say something, or there is nothing to be right about.
    let pairs = asked.iter().map(|q| (*q, answered(q))).filter(|(_, a)| !answers::normalise(a).is_empty());
    let mut rows = String::new();
    for (i, (question, right)) in pairs.take(5).enumerate() {
        let answers = if i == 3 { vec!["nothing".to_owned()] } else { vec!["nothing".into(), right] };
        rows += &format!("{}\n", serde_json::json!({"question": question, "answers": answers}));
    }
    let data = dir.file("questions.jsonl", rows);
    let metrics = run(&served, &options(Task::Qa, Some(data.clone())));
    assert_eq!((metrics["exact_match"], metrics["f1"], metrics["n"]), (0.8, 0.8, 5.0));
    let wide = run(&served, &Options { batch: 16, limit: Some(3), ..options(Task::Qa, Some(data)) });
    assert_eq!((wide["exact_match"], wide["n"]), (1.0, 3.0));
}

#[test]
fn entities_are_found_in_completions() {
    let (dir, served) = model_for(&[WORDS], 15);
    let made = answer(&served, "a b c", 8);
    let word = made.split(' ').next().unwrap();
    let row = serde_json::json!({"prompt": "a b c", "entities": [word, "nowhere", made]});
    let data = dir.file("entities.jsonl", format!("{row}\n"));
    let metrics = run(&served, &options(Task::Entity, Some(data)));
    assert!(near(metrics["entity_recall"], 2.0 / 3.0) && metrics["entities"] == 3.0, "{metrics:?}");
}

#[test]
fn speed_needs_no_data() {
    let (dir, served) = model_for(&[WORDS], 16);
    let metrics = run(&served, &options(Task::Speed, None));
    assert!(metrics["prefill_tokens_per_s"] > 0.0);
    let data = dir.file("rows.jsonl", "{\"text\": \"a b c d e\"}\n");
    assert!(run(&served, &options(Task::Speed, Some(data)))["prefill_tokens_per_s"] > 0.0);
}

#[test]
fn what_is_wrong_is_named() {
    let (dir, served) = model_for(&[WORDS], 17);
    let bad = dir.file("bad.jsonl", "{\"question\": \"a\", \"answer\": \"b\"}\n{\"question\": 3}\n");
    for task in [Task::Qa, Task::Perplexity, Task::Choice, Task::Entity] {
        let e = error(&served, &options(task, Some(bad.clone())));
        assert!(e.is_input() && e.to_string().contains("bad.jsonl:"), "{e}");
    }
    let empty = dir.file("empty.jsonl", "\n");
    for task in [Task::Qa, Task::Perplexity, Task::Choice, Task::Entity] {
        let e = error(&served, &options(task, Some(empty.clone())));
        assert!(e.is_input() && e.to_string().contains("no usable rows in"), "{e}");
        assert!(!e.to_string().contains("data."), "{e}");
    }
    let ok = dir.file("ok.jsonl", "{\"question\": \"a\", \"answer\": \"b\"}\n");
    let long = Options { seq_len: Some(257), ..options(Task::Qa, Some(ok.clone())) };
    assert!(error(&served, &long).to_string().contains("the model has 256 positions"));
    let short = Options { seq_len: Some(8), ..options(Task::Qa, Some(ok.clone())) };
    assert!(error(&served, &short).to_string().contains("leaves no room for a prompt"));
    std::fs::remove_file(served.model.path.join("tokenizer.json")).unwrap();
    let e = error(&served, &options(Task::Qa, Some(ok)));
    assert!(e.is_input() && e.to_string().contains("has no tokenizer.json"), "{e}");
}

#[test]
fn a_weight_that_is_not_a_number_is_named() {
    let (dir, served) = model_for(&[WORDS], 18);
    let folder = dir.path().join("broken");
    write_random(&folder, served.model.config.vocab_size, 18);
    let file = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let n = bytes.len();
    bytes[n - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(served.model.path.join(name), folder.join(name)).unwrap();
    }
    let broken = Served::open(&folder, None, None).unwrap();
    let data =
        dir.file("rows.jsonl", "{\"text\": \"a b c d e\"}\n{\"prompt\": \"a\", \"completion\": \" b\"}\n");
    let e = error(&broken, &options(Task::Perplexity, Some(data)));
    assert!(e.is_input() && e.to_string().contains("tensor `model.norm.weight` is not finite"), "{e}");
    let data = dir.file("questions.jsonl", "{\"question\": \"a b c d e\", \"answer\": \"b\"}\n");
    assert!(error(&broken, &options(Task::Qa, Some(data))).to_string().contains("`model.norm.weight`"));
}

/// Rows of questions about which the random model has an opinion, all answered right.
fn right_rows(served: &Served, count: usize) -> String {
    let questions =
        ["alpha beta ?", "gamma delta one ?", "three seven ?", "delta eight seven ?", "one one alpha ?"];
    let mut rows = String::new();
    for question in questions.iter().cycle().take(count) {
        let t = served.tokenizer().unwrap();
        let logp = ["A", "B"].map(|c| {
            let tokens = t.encode(&format!("Question: {question}\nA. x\nB. y\nAnswer: {c}")).unwrap();
            direct(served, &tokens).last().unwrap().0
        });
        let gold = if logp[0] >= logp[1] { "A" } else { "B" };
        let options = serde_json::json!({"A": "x", "B": "y"});
        rows += &serde_json::json!({"question": question, "options": options, "answer": gold}).to_string();
        rows += "\n";
    }
    rows
}

#[test]
fn attacks_count_what_falls_and_what_they_ask() {
    let words = "alpha beta gamma delta one three seven eight large huge big Question Answer A B x y . ? :";
    let (dir, served) = model_for(&[words], 21);
    let data = dir.file("exam.jsonl", right_rows(&served, 5));
    let options = options(Task::MedQa, Some(data));
    let mut exam = Exam::new(&served, &options).unwrap();
    let mut notes = Notes::default();
    let rows = exam.evaluate(&mut notes).unwrap().rows;
    assert!(rows.iter().all(|r| r.correct == Some(true)));
    let lexicon = perturb::Lexicon::of("alpha, beta, one\ndelta, seven, eight\n", "f").unwrap();
    let attack = AttackOptions { tries: 6, rows: None, seed: 0, lexicon };
    let mut seen = (0, 0);
    for kind in perturb::Perturbation::ALL {
        let done = exam.attack(&rows, kind, &attack, &mut notes).unwrap();
        assert_eq!(done.attacked.len() + done.unchangeable, 5);
        assert_eq!(done, exam.attack(&rows, kind, &attack, &mut notes).unwrap(), "an attack can be repeated");
        for row in &done.attacked {
            assert!((1..=6).contains(&row.queries), "{row:?}");
            let Some((question, result)) = &row.fell else { continue };
            assert_eq!((result.row, result.correct), (row.row, Some(false)));
            let prompt = result.detail["prompt"].as_str().unwrap();
            assert_eq!(prompt, format!("Question: {question}\nA. x\nB. y\nAnswer:"));
        }
        seen = (seen.0 + done.fell(), seen.1 + done.attacked.len());
    }
    assert!(seen.0 > 0 && seen.0 < seen.1, "some rows fall and some stand: {seen:?}");
    let few = AttackOptions { rows: Some(2), ..attack };
    let done = exam.attack(&rows, perturb::Perturbation::Distractor, &few, &mut notes).unwrap();
    assert_eq!(done.attacked.len(), 2);
}

#[test]
fn solved_rows_stand_before_the_question() {
    let (dir, served) = model_for(&[WORDS], 22);
    dir.file(
        "train.jsonl",
        "{\"question\": \"a b\", \"answer\": \"c\"}\n{\"question\": \"d\", \"answer\": \"e\"}\n",
    );
    let data = dir.file("test.jsonl", "{\"question\": \"f g\", \"answer\": \"h\"}\n");
    let with = |shots: usize| Options { shots, ..options(Task::Qa, Some(data.clone())) };
    let said = evaluate(&served, &with(2), &mut Notes::default()).unwrap().rows.remove(0);
    let prompt = "Question: a b\nAnswer: c\n\nQuestion: d\nAnswer: e\n\nQuestion: f g\nAnswer:";
    let expected = answer(&served, prompt, 8);
    let said_text = said.detail["answer"].as_str().unwrap();
    assert_eq!(said_text.trim_start(), expected.trim_start());
    assert_eq!(said.detail["prompt"], "Question: f g\nAnswer:");
    assert!(error(&served, &with(3)).to_string().contains("train.jsonl has only 2 rows"));
    let from = Options { shots_from: Some("none.jsonl".into()), ..with(1) };
    assert!(error(&served, &from).to_string().contains("none.jsonl, which is not there"));
}
