//! Data: reading and tokenising JSON rows, packing documents, building the batches of a step, and streaming shards.
#![allow(clippy::expect_used)]

use criterion::{BatchSize, Criterion, Throughput};
use kfc_benches::temp::TempFolder;
use kfc_runtime::data::shards::{Limit, Pattern, RowSource, ShardConfig, ShardFormat, write_shards};
use kfc_runtime::data::{
    DataConfig, Documents, Loader, LoaderConfig, OnError, RowSet, RowStream, StreamConfig, Tokenizer, load,
    save_word_level, train_byte_level, words_of,
};
use kfc_runtime::random::uniform;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

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
    let config = LoaderConfig {
        batch: 4,
        accumulation: 8,
        shuffle: true,
        seed: 0,
        general_fraction: 0.0,
        rank: 0,
        world: 1,
    };
    group.throughput(Throughput::Elements((config.batch * config.accumulation * SEQ_LEN) as u64));
    let mut loader = Loader::new(rows, None, config.clone()).expect("a loader");
    group.bench_function("step", |b| b.iter(|| loader.next_step().expect("a step")));
    group.finish();

    // Steps as training takes them, as fast as they come: the rate is that of reading, tokenising and packing.
    let mut group = criterion.benchmark_group("stream");
    group.throughput(Throughput::Elements((config.batch * config.accumulation * SEQ_LEN) as u64));
    let tokenizer = train_byte_level(std::slice::from_ref(&path), 2048, &folder.path().join("bpe"));
    let tokenizer = Arc::new(tokenizer.expect("a tokenizer"));
    for (name, format) in [
        ("jsonl", ShardFormat::Jsonl),
        ("tar", ShardFormat::WebDataset),
        ("tokens", ShardFormat::Tokens(&tokenizer)),
    ] {
        let files = [write_as(&folder, &path, name, format)];
        let mut loader = streamed(&files, &tokenizer, config.clone());
        group.bench_function(name, |b| b.iter(|| loader.next_step().expect("a step")));
    }
    group.finish();
    criterion.final_summary();
}

/// The rows of a file in shards of a format: a pattern for them.
fn write_as(folder: &TempFolder, rows: &Path, name: &str, format: ShardFormat<'_>) -> PathBuf {
    let extension = if name == "tokens" { "safetensors" } else { name };
    let pattern = folder.path().join(format!("{{0..3}}.{extension}"));
    let shards = ShardConfig {
        pattern: Pattern::parse(&pattern).expect("a pattern"),
        limit: Limit::Even,
        format,
        on_error: OnError::Stop,
        resume: false,
    };
    let source = RowSource::open(&[rows.to_path_buf()], None).expect("rows");
    write_shards(&source, &shards, &AtomicBool::new(false), &mut |_, _| ()).expect("shards");
    pattern
}

/// A loader of files that are read as they are used, with the workers that training has by default.
fn streamed(files: &[PathBuf], tokenizer: &Arc<Tokenizer>, config: LoaderConfig) -> Loader {
    let data = DataConfig {
        format: None,
        seq_len: Some(SEQ_LEN),
        packing: true,
        long_rows: None,
        on_error: OnError::Stop,
        vocab: tokenizer.vocab_size(),
    };
    let stream = StreamConfig { data, shuffle: true, seed: 0, workers: 8, prefetch: 4, rank: 0, world: 1 };
    let stream = RowStream::open(files, stream, Some(Arc::clone(tokenizer))).expect("a stream");
    Loader::streamed(stream, None, config).expect("a loader")
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
