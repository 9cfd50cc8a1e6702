//! Data: reading and tokenising JSON rows, packing documents, and building the batches of a step.
#![allow(clippy::expect_used)]

use criterion::{BatchSize, Criterion, Throughput};
use kfc_benches::temp::TempFolder;
use kfc_runtime::data::{
    DataConfig, Documents, Loader, LoaderConfig, OnError, RowSet, load, save_word_level, words_of,
};
use kfc_runtime::random::uniform;
use std::fmt::Write;

const SEQ_LEN: usize = 1024;

fn main() {
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let mut group = criterion.benchmark_group("loader");

    let folder = TempFolder::new("loader").expect("a temporary folder");
    let (path, bytes) = write_rows(&folder);
    let tokenizer = save_word_level(folder.path(), &words_of([WORDS.join(" ").as_str()]).expect("words"));
    let tokenizer = tokenizer.expect("a tokenizer");
    let config = DataConfig {
        format: None,
        seq_len: Some(SEQ_LEN),
        packing: true,
        long_rows: None,
        on_error: OnError::Stop,
        vocab: tokenizer.vocab_size(),
    };
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function("read", |b| {
        b.iter(|| load(std::slice::from_ref(&path), &config, Some(&tokenizer)).expect("rows"));
    });

    let documents = documents(20_000);
    group.throughput(Throughput::Elements(documents.total_tokens() as u64));
    group.bench_function("pack", |b| {
        let pack = |d| RowSet::new(d, SEQ_LEN, true).expect("rows");
        b.iter_batched(|| documents.clone(), pack, BatchSize::LargeInput);
    });

    let rows = RowSet::new(documents, SEQ_LEN, true).expect("rows");
    let config = LoaderConfig { batch: 4, accumulation: 8, shuffle: true, seed: 0, general_fraction: 0.0 };
    group.throughput(Throughput::Elements((config.batch * config.accumulation * SEQ_LEN) as u64));
    let mut loader = Loader::new(rows, None, config).expect("a loader");
    group.bench_function("step", |b| b.iter(|| loader.next_step()));

    group.finish();
    criterion.final_summary();
}

const WORDS: [&str; 12] =
    ["the", "patient", "was", "given", "aspirin", "for", "pain", "in", "left", "knee", "and", "."];

/// JSON rows of a few sentences each, and their size in bytes.
fn write_rows(folder: &TempFolder) -> (std::path::PathBuf, usize) {
    let mut text = String::new();
    for row in 0..5_000 {
        let words = 20 + (uniform(0, 1, row) * 200.0) as u64;
        let sentence: Vec<&str> =
            (0..words).map(|i| WORDS[(uniform(row, 2, i) * WORDS.len() as f64) as usize]).collect();
        writeln!(text, "{{\"text\": \"{}\"}}", sentence.join(" ")).expect("a string grows");
    }
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, &text).expect("a file");
    (path, text.len())
}

/// Documents of 16 to 700 tokens.
fn documents(n: u64) -> Documents {
    let mut documents = Documents::new();
    for i in 0..n {
        let tokens: Vec<i32> = (0..16 + (uniform(0, 3, i) * 684.0) as i32).collect();
        documents.push(&tokens, &tokens);
    }
    documents
}
