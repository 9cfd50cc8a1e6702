//! Streamed rows are the rows of the files, whoever reads them and wherever reading begins.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::load::{LongRows, OnError, load};
use super::super::loader::{Cursor, Loader, LoaderConfig, StepBatch};
use super::super::tar;
use super::super::testing::TempDir;
use super::super::token_shard::TokenShardWriter;
use super::super::word_level::save_word_level;
use super::*;

const WORDS: usize = 400;

fn tokenizer(dir: &TempDir) -> Arc<Tokenizer> {
    let words: Vec<String> = (0..WORDS).map(|i| format!("w{i}")).collect();
    Arc::new(save_word_level(&dir.path().join("tokenizer"), &words).unwrap())
}

/// Text of row `i`: its number in base `WORDS`, then up to 40 words.
fn text(i: usize) -> String {
    let more = (0..(i * 7919) % 40).map(|k| format!(" w{}", (i + k) % WORDS)).collect::<String>();
    format!("w{} w{}{more}", i / WORDS, i % WORDS)
}

fn config(workers: usize, shuffle: bool) -> StreamConfig {
    let data = DataConfig {
        format: None,
        seq_len: Some(48),
        packing: true,
        long_rows: None,
        on_error: OnError::Stop,
        vocab: 1000,
    };
    StreamConfig { data, shuffle, seed: 3, workers, prefetch: 2, rank: 0, world: 1 }
}

fn steps_config(c: &StreamConfig) -> LoaderConfig {
    let (rank, world) = (c.rank, c.world);
    LoaderConfig {
        batch: 4,
        accumulation: 2,
        shuffle: c.shuffle,
        seed: c.seed,
        general_fraction: 0.25,
        rank,
        world,
    }
}

fn open(paths: &[PathBuf], config: &StreamConfig, t: &Arc<Tokenizer>) -> Result<RowStream> {
    RowStream::open(paths, config.clone(), Some(Arc::clone(t)))
}

fn loader(paths: &[PathBuf], config: &StreamConfig, t: &Arc<Tokenizer>) -> Loader {
    Loader::streamed(open(paths, config, t).unwrap(), None, steps_config(config)).unwrap()
}

fn take(loader: &mut Loader, steps: usize) -> Vec<StepBatch> {
    (0..steps).map(|_| loader.next_step().unwrap()).collect()
}

/// Documents of one epoch of blocks, sorted.
fn documents(stream: &RowStream) -> Vec<Vec<i32>> {
    let mut all = Vec::new();
    for block in 0..stream.blocks() as u64 {
        let rows = stream.read(block).unwrap().rows;
        all.extend((0..rows.documents().len()).map(|d| rows.documents().tokens(d).to_vec()));
    }
    all.sort();
    all
}

/// Rows `0..n` as JSON lines, one archive and one token shard for each of `parts`.
fn write(dir: &TempDir, t: &Tokenizer, n: usize, parts: usize) -> [Vec<PathBuf>; 3] {
    let mut out = [vec![], vec![], vec![]];
    for part in 0..parts {
        let rows = part * n / parts..(part + 1) * n / parts;
        let lines: String = rows.clone().map(|i| format!("{{\"text\": \"{}\"}}\n", text(i))).collect();
        out[0].push(dir.file(&format!("{part}.jsonl"), lines));
        let members = rows.clone().flat_map(|i| tar::member(&format!("{i:06}.txt"), text(i).as_bytes()));
        out[1].push(dir.file(&format!("{part}.tar"), members.chain(tar::END).collect::<Vec<u8>>()));
        let mut shard = TokenShardWriter::new(t);
        for i in rows {
            shard.push(&t.encode_row(&crate::data::rows::Row::plain(text(i)).pieces, true).unwrap());
        }
        out[2].push(dir.path().join(format!("{part}.safetensors")));
        shard.write(&out[2][part]).unwrap();
    }
    out
}

#[test]
fn every_row_is_there_once_in_every_format() {
    let dir = TempDir::new("formats");
    let t = tokenizer(&dir);
    for paths in write(&dir, &t, 6000, 3) {
        let (held, _) = load(&paths, &config(1, false).data, Some(&t)).unwrap();
        let mut expected: Vec<_> = (0..6000).map(|d| held.documents().tokens(d).to_vec()).collect();
        expected.sort();
        let stream = open(&paths, &config(2, true), &t).unwrap();
        assert!(stream.blocks() > 4, "{stream}");
        assert!(documents(&stream) == expected, "{}", paths[0].display());
    }
}

#[test]
fn workers_change_nothing() {
    let dir = TempDir::new("workers");
    let t = tokenizer(&dir);
    for paths in write(&dir, &t, 5000, 2) {
        for shuffle in [false, true] {
            let expected = take(&mut loader(&paths, &config(1, shuffle), &t), 400);
            for workers in [2, 5] {
                let steps = take(&mut loader(&paths, &config(workers, shuffle), &t), 400);
                assert!(steps == expected, "{workers} workers, {}", paths[0].display());
            }
        }
    }
}

#[test]
fn an_epoch_has_every_row_once_but_for_its_tail() {
    let dir = TempDir::new("epoch");
    let t = tokenizer(&dir);
    let [paths, ..] = write(&dir, &t, 5000, 2);
    let rows: usize = {
        let stream = open(&paths, &config(1, true), &t).unwrap();
        (0..stream.blocks() as u64).map(|b| stream.read(b).unwrap().rows.len()).sum()
    };
    let mut loader = loader(&paths, &config(3, true), &t);
    let mut epochs = Vec::new();
    for _ in 0..2 {
        let epoch: Vec<u64> = take(&mut loader, rows / 8)
            .iter()
            .flat_map(|s| s.micro.iter().flat_map(|m| m.row_ids.clone()))
            .collect();
        assert_eq!(epoch.iter().collect::<BTreeSet<_>>().len(), rows / 8 * 8);
        epochs.push(epoch);
    }
    assert_ne!(epochs[0], epochs[1]);
    loader.next_step().unwrap();
    assert_eq!(loader.epoch(), 2);
    // Rows that stand together in the files do not in a step.
    let blocks: BTreeSet<u64> = epochs[0][..8].iter().map(|id| id >> 32).collect();
    assert!(blocks.len() > 3, "{blocks:?}");
}

#[test]
fn a_step_of_more_rows_than_there_are_is_padded() {
    let dir = TempDir::new("few");
    let t = tokenizer(&dir);
    let path = dir.file("a.jsonl", "{\"text\": \"w1 w2 w3\"}\n");
    let mut loader = loader(&[path], &config(2, true), &t);
    for epoch in 0..3 {
        assert_eq!(loader.epoch(), epoch);
        let step = loader.next_step().unwrap();
        assert_eq!((step.tokens, step.ce_tokens), (4, 3));
    }
}

#[test]
fn long_texts_lose_no_word() {
    let dir = TempDir::new("text");
    let t = tokenizer(&dir);
    let lines: Vec<String> = (0..6000).map(|i| text(i) + "\n").collect();
    let path = dir.file("a.txt", lines.concat());
    let stream = open(&[path], &config(2, false), &t).unwrap();
    assert!(stream.blocks() > 4);
    let mut tokens = Vec::new();
    for block in 0..stream.blocks() as u64 {
        let rows = stream.read(block).unwrap().rows;
        (0..rows.documents().len()).for_each(|d| tokens.extend_from_slice(rows.documents().tokens(d)));
    }
    let mut whole = t.encode(&lines.concat()).unwrap();
    whole.extend(t.eos().map(|id| id as i32));
    assert!(tokens == whole);
}

#[test]
fn errors_name_the_line_and_the_file() {
    let dir = TempDir::new("stream-errors");
    let t = tokenizer(&dir);
    let mut lines: Vec<String> = (0..8000).map(|i| format!("{{\"text\": \"{}\"}}\n", text(i))).collect();
    lines[7000] = "{\"txt\": 1}\n".into();
    let path = dir.file("a.jsonl", lines.concat());
    let mut stream = loader(std::slice::from_ref(&path), &config(2, false), &t);
    let error = (0..2000).find_map(|_| stream.next_step().err()).unwrap().to_string();
    assert!(error.contains("a.jsonl:7001: no known form among the keys [txt]"), "{error}");
    let mut strict = config(2, false);
    strict.data.long_rows = Some(LongRows::Error);
    lines[7000] = format!("{{\"text\": \"{}\"}}\n", "w1 ".repeat(60));
    dir.file("a.jsonl", lines.concat());
    let mut stream = loader(std::slice::from_ref(&path), &strict, &t);
    let error = (0..2000).find_map(|_| stream.next_step().err()).unwrap().to_string();
    assert!(error.contains("a.jsonl:7001: 61 tokens do not fit"), "{error}");
    let mut skip = config(2, false);
    skip.data.on_error = OnError::Skip;
    lines[7000] = "{\n".into();
    dir.file("a.jsonl", lines.concat());
    let mut stream = loader(std::slice::from_ref(&path), &skip, &t);
    while stream.epoch() == 0 {
        stream.next_step().unwrap();
    }
    let report = stream.streamed_report().unwrap();
    assert!(report.skipped >= 1 && report.skipped_examples[0].contains("a.jsonl:7001"), "{report}");

    let mut stream = loader(std::slice::from_ref(&path), &config(1, false), &t);
    stream.next_step().unwrap();
    dir.file("a.jsonl", &lines.concat()[..100_000]);
    let error = (0..2000).find_map(|_| stream.next_step().err()).unwrap().to_string();
    assert!(error.contains("when training began and has "), "{error}");

    let [_, tars, tokens] = write(&dir, &t, 100, 1);
    let error = |paths: &[PathBuf]| open(paths, &config(1, true), &t).unwrap_err().to_string();
    let bytes = std::fs::read(&tars[0]).unwrap();
    dir.file("cut.tar", &bytes[..bytes.len() / 2 + 600]);
    assert!(error(&[dir.path().join("cut.tar")]).contains("the archive ends inside"));
    let none = dir.file("none.tar", [tar::member("a.png", b"x"), tar::END.to_vec()].concat());
    assert!(error(&[none]).contains("no sample with a .json or .txt"));
    let empty = dir.file("empty.jsonl", "");
    assert!(error(&[empty]).contains("empty.jsonl: the file is empty"));
    assert!(error(&[tars[0].clone(), tokens[0].clone()]).contains("cannot be mixed"));
    let other = save_word_level(&dir.path().join("other"), &["x".to_owned()]).unwrap();
    let refused = RowStream::open(&tokens, config(1, true), Some(Arc::new(other))).unwrap_err().to_string();
    assert!(refused.contains("another tokenizer"), "{refused}");
    let shared = StreamConfig { world: 1000, ..config(1, true) };
    assert!(open(&tokens, &shared, &t).unwrap_err().to_string().contains("too few for 1000 ranks"));
}

#[test]
fn another_file_is_another_stream() {
    let dir = TempDir::new("prints");
    let t = tokenizer(&dir);
    let path = dir.file("a.jsonl", "{\"text\": \"w1 w2\"}\n");
    let print = || open(std::slice::from_ref(&path), &config(1, true), &t).unwrap().fingerprint();
    let before = print();
    assert_eq!(before, print());
    dir.file("a.jsonl", "{\"text\": \"w1 w3\"}\n");
    assert_ne!(before, print());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn resuming_anywhere_gives_the_same_stream(
        n in 1usize..4000, parts in 1usize..4, at in 0usize..120, shuffle: bool, kind in 0usize..3, workers in 1usize..4,
    ) {
        let dir = TempDir::new("resume");
        let t = tokenizer(&dir);
        let paths = &write(&dir, &t, n.max(parts), parts)[kind];
        let mut first = loader(paths, &config(workers, shuffle), &t);
        take(&mut first, at);
        let cursor = Cursor::from_json(&first.cursor().to_json()).unwrap();
        let expected = take(&mut first, 6);
        let mut second = loader(paths, &config(2, shuffle), &t);
        second.next_step().unwrap();
        second.seek(&cursor).unwrap();
        prop_assert!(take(&mut second, 6) == expected);
    }

    #[test]
    fn ranks_share_out_every_document(n in 200usize..4000, world in 1usize..5, shuffle: bool, kind in 0usize..3) {
        let dir = TempDir::new("ranks");
        let t = tokenizer(&dir);
        let paths = &write(&dir, &t, n, 4)[kind];
        let all = documents(&open(paths, &config(1, shuffle), &t).unwrap());
        let blocks = open(paths, &config(1, shuffle), &t).unwrap().blocks();
        prop_assume!(blocks >= world);
        let mut shared: Vec<Vec<i32>> = Vec::new();
        for rank in 0..world {
            let mine = StreamConfig { rank, world, ..config(2, shuffle) };
            shared.extend(documents(&open(paths, &mine, &t).unwrap()));
        }
        shared.sort();
        prop_assert!(shared == all);
    }
}
