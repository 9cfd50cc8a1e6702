//! Shards written and read back, whole and damaged.

#![allow(clippy::unwrap_used)]
use super::super::load::{DataConfig, load};
use super::super::testing::TempDir;
use super::super::word_level::save_word_level;
use super::*;

fn rows(dir: &TempDir, n: usize) -> PathBuf {
    let line = |i: usize| match i % 3 {
        0 => format!("{{\"text\":\"w{} w{}\"}}\n", i % 50, i % 7),
        1 => format!("{{\"completion\":\" w{}\",\"prompt\":\"w1 w2\"}}\n", i % 50),
        _ => format!("{{\"knowledge_id\":\"k{i}\",\"text\":\"{}\"}}\n", "w3 ".repeat(i % 40 + 1).trim()),
    };
    dir.file("rows.jsonl", (0..n).map(line).collect::<String>())
}

fn config<'a>(out: &Path, limit: Limit, format: ShardFormat<'a>) -> ShardConfig<'a> {
    let pattern = Pattern::parse(out).unwrap();
    ShardConfig { pattern, limit, format, on_error: OnError::Stop, resume: false }
}

fn run(paths: &[PathBuf], config: &ShardConfig<'_>) -> Result<Manifest> {
    write_shards(&RowSource::open(paths, None)?, config, &AtomicBool::new(false), &mut |_, _| ())
}

fn tokenizer(dir: &TempDir) -> Tokenizer {
    let words: Vec<String> = (0..50).map(|i| format!("w{i}")).collect();
    save_word_level(&dir.path().join("tokenizer"), &words).unwrap()
}

#[test]
fn every_format_holds_the_same_rows() {
    let dir = TempDir::new("shards");
    let t = tokenizer(&dir);
    let path = rows(&dir, 1000);
    let data = DataConfig {
        format: None,
        seq_len: Some(16),
        packing: true,
        long_rows: None,
        on_error: OnError::Stop,
        vocab: 100,
    };
    let expected = load(std::slice::from_ref(&path), &data, Some(&t)).unwrap().0.fingerprint();
    for (extension, format) in [
        ("tar", ShardFormat::WebDataset),
        ("jsonl", ShardFormat::Jsonl),
        ("safetensors", ShardFormat::Tokens(&t)),
    ] {
        for (name, limit) in [("{0..6}", Limit::Even), ("%03d", Limit::Rows(90)), ("%d", Limit::Bytes(9000))]
        {
            let out = dir.path().join(extension).join(format!("{limit:?}-{name}.{extension}"));
            let made = run(std::slice::from_ref(&path), &config(&out, limit, format)).unwrap();
            assert_eq!((made.rows(), made.complete), (1000, true));
            match limit {
                Limit::Even => assert!(
                    made.shards.len() == 7 && made.shards.iter().all(|s| (142..=143).contains(&s.rows))
                ),
                Limit::Rows(n) => {
                    assert!(made.shards.len() == 12 && made.shards[..11].iter().all(|s| s.rows == n))
                }
                Limit::Bytes(n) => {
                    assert!(made.shards.iter().all(|s| s.bytes <= n + 1024) && made.shards.len() > 1)
                }
            }
            let read = [config(&out, limit, format).pattern.of(made.shards.len()).unwrap()];
            let (held, report) = load(&read, &data, Some(&t)).unwrap();
            assert_eq!((held.fingerprint(), report.read), (expected, 1000), "{}", read[0].display());
        }
    }
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_bytes() {
    let dir = TempDir::new("shards-resume");
    let path = rows(&dir, 1000);
    let t = tokenizer(&dir);
    for (i, limit) in [Limit::Even, Limit::Rows(170), Limit::Bytes(20_000)].into_iter().enumerate() {
        for format in [ShardFormat::WebDataset, ShardFormat::Tokens(&t)] {
            let extension = if matches!(format, ShardFormat::WebDataset) { "tar" } else { "safetensors" };
            let out = |name: &str| dir.path().join(format!("{name}{i}-{{00..99}}.{extension}"));
            let limit = if limit == Limit::Even { Limit::Rows(10) } else { limit };
            let whole = run(std::slice::from_ref(&path), &config(&out("whole"), limit, format)).unwrap();
            let mut cut = config(&out("cut"), limit, format);
            run(std::slice::from_ref(&path), &cut).unwrap();
            // As it was after two shards.
            let manifest = cut.pattern.manifest();
            let mut state = read_json(&manifest).unwrap();
            let shards = state["shards"].as_array_mut().unwrap();
            for shard in shards.drain(2.min(shards.len())..) {
                std::fs::remove_file(shard["path"].as_str().unwrap()).unwrap();
            }
            state["complete"] = false.into();
            write_json(&manifest, &state).unwrap();
            assert!(
                run(std::slice::from_ref(&path), &cut).unwrap_err().to_string().contains("exists already")
            );
            cut.resume = true;
            let resumed = run(std::slice::from_ref(&path), &cut).unwrap();
            let bytes =
                |m: &Manifest| m.shards.iter().map(|s| std::fs::read(&s.path).unwrap()).collect::<Vec<_>>();
            assert!(bytes(&whole) == bytes(&resumed));
            assert_eq!((resumed.rows(), resumed.complete), (1000, true));
            let other = ShardConfig { limit: Limit::Rows(99), ..cut };
            assert!(
                run(std::slice::from_ref(&path), &other).unwrap_err().to_string().contains("other settings")
            );
        }
    }
}

#[test]
fn errors_say_what_to_do() {
    let dir = TempDir::new("shards-errors");
    let path = [rows(&dir, 30)];
    let error = |out: &str, limit| {
        run(&path, &config(&dir.path().join(out), limit, ShardFormat::Jsonl)).unwrap_err().to_string()
    };
    assert!(error("a-%d.jsonl", Limit::Even).contains("--rows or --size"));
    assert!(error("b-{0..1}.jsonl", Limit::Rows(10)).contains("names 2 shards, but there are rows for more"));
    let bad = [dir.file("bad.jsonl", "{\"text\": \"a\"}\n{\"x\": 1}\n")];
    let mut skip = config(&dir.path().join("c.jsonl"), Limit::Even, ShardFormat::Jsonl);
    let stopped = run(&bad, &skip).unwrap_err().to_string();
    assert!(stopped.contains("bad.jsonl:2: no known form"), "{stopped}");
    skip.on_error = OnError::Skip;
    let made = run(&bad, &skip).unwrap();
    assert_eq!((made.rows(), made.skipped), (1, 1));
    assert!(
        format_of(Path::new("a.bin"), None).is_err() && format_of(Path::new("a.safetensors"), None).is_err()
    );
}
