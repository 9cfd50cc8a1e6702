//! From files to training rows: reading, tokenising, cutting what is too long, packing, and a report of it all.
//!
//! Rows are tokenised in parallel and taken in the order of the files. EOS ends each document where the tokenizer has one.
//! Rows longer than `seq_len`: plain text is cut into windows of `seq_len` tokens (each a document of its own, no token
//! lost); rows of which only a part is trained are truncated at the end. Both are counted.

use std::fs::{self, File};
use std::path::PathBuf;

use rayon::prelude::*;
use serde_json::Value;

use super::documents::{Documents, IGNORE, is_trainable};
use super::error::{DataError, Result};
use super::intake::{Intake, Tokenised, encode, tokenise};
use super::pack::RowSet;
use super::report::{DataReport, remember};
use super::rows::Row;
use super::source::{
    Format, JsonRows, LineBlocks, Placed, Source, begins_as_array, find, read_range, read_text,
};
use super::token_file::{Layout, map, read_token_file};
use super::token_shard::TokenShard;
use super::tokenizer::Tokenizer;
use super::webdataset::{NO_SAMPLES, blocks, samples};

/// Rows that are tokenised before the next are looked at, which bounds the memory in between.
const CHUNK: usize = 4096;

/// Bytes of lines or samples that are read at once.
const BLOCK: usize = 4 << 20;

/// What is done with rows longer than `seq_len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LongRows {
    /// The first is an error.
    Error,
    /// The first `seq_len` tokens are kept.
    Truncate,
    /// Cut into windows of `seq_len`; windows without a trained token are dropped.
    Split,
}

impl LongRows {
    /// The choice of this name, as `data.long_rows` has it.
    pub fn parse(name: &str) -> Result<LongRows> {
        match name {
            "error" => Ok(LongRows::Error),
            "truncate" => Ok(LongRows::Truncate),
            "split" => Ok(LongRows::Split),
            _ => Err(DataError::Config {
                setting: "data.long_rows",
                reason: format!("\"{name}\" is not known; use error, truncate or split"),
            }),
        }
    }
}

/// What is done with rows that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The first is an error.
    #[default]
    Stop,
    /// They are counted and left out.
    Skip,
}

impl OnError {
    /// The choice of this name, as `data.on_error` has it.
    pub fn parse(name: &str) -> Result<OnError> {
        match name {
            "error" | "stop" => Ok(OnError::Stop),
            "skip" => Ok(OnError::Skip),
            _ => Err(DataError::Config {
                setting: "data.on_error",
                reason: format!("\"{name}\" is not known; use error or skip"),
            }),
        }
    }
}

/// How a data set is read.
#[derive(Clone, Debug, PartialEq)]
pub struct DataConfig {
    /// The format of all files, or that which the extension of each stands for.
    pub format: Option<Format>,
    /// Tokens of a row; none takes that of a token file.
    pub seq_len: Option<usize>,
    /// Whether several documents share a row.
    pub packing: bool,
    /// What is done with rows that are too long; none is [`LongRows::Split`] for plain text and [`LongRows::Truncate`]
    /// for rows of which only a part is trained.
    pub long_rows: Option<LongRows>,
    /// What is done with rows that cannot be used.
    pub on_error: OnError,
    /// The size of the model's vocabulary: ids must be below it.
    pub vocab: usize,
}

impl DataConfig {
    /// The row length of text and token shards, which do not say one.
    pub(crate) fn row_length(&self) -> Result<usize> {
        let wrong = |reason: String| Err(DataError::Config { setting: "data.seq_len", reason });
        match self.seq_len {
            None => wrong("text needs a row length; set it".into()),
            Some(n) if n < 2 => wrong(format!("{n} is too short: a row needs a token and the one after it")),
            Some(n) => Ok(n),
        }
    }
}

/// Reads files and folders into training rows. Token files stand alone and need no tokenizer; everything else does.
pub fn load(
    paths: &[PathBuf],
    config: &DataConfig,
    tokenizer: Option<&Tokenizer>,
) -> Result<(RowSet, DataReport)> {
    let sources = find(paths, config.format)?;
    let of_tokens = sources.iter().filter(|s| s.format == Format::Tokens).count();
    if of_tokens == sources.len() {
        return match layout(&sources)? {
            Layout::Rows => load_rows(&sources, config),
            Layout::Documents => load_documents(&sources, config, tokenizer),
        };
    }
    if of_tokens > 0 {
        let reason = "token files and text files cannot be mixed; name one kind".into();
        return Err(DataError::Config { setting: "data.train", reason });
    }
    let Some(tokenizer) = tokenizer else {
        let reason =
            "text needs a tokenizer and the model folder has none; set it to a folder with a tokenizer.json";
        return Err(DataError::Config { setting: "data.tokenizer", reason: reason.into() });
    };
    let seq_len = config.row_length()?;
    let mut reader = Reader { tokenizer, intake: Intake::new(config, Some(tokenizer), seq_len) };
    reader.intake.report.files = sources.len();
    for source in &sources {
        reader.read(source)?;
    }
    let Intake { documents, report, .. } = reader.intake;
    finish(documents, report, config.packing, &sources)
}

/// The layout of token files, which must all have the same.
pub(crate) fn layout(sources: &[Source]) -> Result<Layout> {
    let mut first: Option<(Layout, &Source)> = None;
    for source in sources {
        let layout = Layout::of(&map(&source.path)?, &source.path)?;
        let (expected, at) = *first.get_or_insert((layout, source));
        if layout != expected {
            let reason = format!(
                "{} has {}, {} has {}; one data set has one kind of file, convert one of them with `kfc data shard`",
                at.path.display(),
                expected.words(),
                source.path.display(),
                layout.words()
            );
            return Err(DataError::Config { setting: "data.train", reason });
        }
    }
    Ok(first.map_or(Layout::Rows, |(layout, _)| layout))
}

/// Token shards: documents that are packed like those of text.
fn load_documents(
    sources: &[Source],
    config: &DataConfig,
    tokenizer: Option<&Tokenizer>,
) -> Result<(RowSet, DataReport)> {
    let mut intake = Intake::new(config, None, config.row_length()?);
    intake.report.files = sources.len();
    for source in sources {
        let bytes = map(&source.path)?;
        let shard = TokenShard::parse(&bytes, &source.path)?;
        shard.check_tokenizer(tokenizer)?;
        for document in 0..shard.len() {
            intake.admit(shard.tokenised(document)?)?;
            if document % CHUNK == CHUNK - 1 {
                bytes.let_go();
            }
        }
    }
    let Intake { documents, report, .. } = intake;
    finish(documents, report, config.packing, sources)
}

/// Token files whose rows are training rows already.
fn load_rows(sources: &[Source], config: &DataConfig) -> Result<(RowSet, DataReport)> {
    let mut documents = Documents::new();
    let mut seq_len = config.seq_len;
    for source in sources {
        let (_, columns) = read_token_file(&source.path, config.vocab, &mut documents)?;
        let expected = *seq_len.get_or_insert(columns);
        if expected != columns {
            let asked = if config.seq_len.is_some() { "data.seq_len is" } else { "the first file's are" };
            return Err(DataError::Tokens {
                path: source.path.clone(),
                reason: format!(
                    "its rows have {columns} tokens but {asked} {expected}; token files are taken as they are"
                ),
            });
        }
    }
    let mut report = DataReport { files: sources.len(), read: documents.len(), ..DataReport::default() };
    report.seq_len = seq_len.unwrap_or_default();
    for row in (0..documents.len()).filter(|&row| !is_trainable(documents.labels(row))) {
        report.unlabelled += 1;
        remember(&mut report.unlabelled_examples, format!("row {row}"));
    }
    if report.unlabelled == documents.len() {
        let reason = "no row has a label that is not -100; check labels".into();
        return Err(DataError::Empty { sources: names(sources), reason });
    }
    finish(documents, report, false, sources)
}

fn finish(
    documents: Documents,
    mut report: DataReport,
    packing: bool,
    sources: &[Source],
) -> Result<(RowSet, DataReport)> {
    if documents.is_empty() {
        return Err(DataError::Empty { sources: names(sources), reason: report.why_empty() });
    }
    report.documents = documents.len();
    report.tokens = documents.total_tokens();
    let trained = |d| documents.labels(d).iter().skip(1).filter(|&&l| l != IGNORE).count();
    report.trained_tokens = (0..documents.len()).map(trained).sum();
    let rows = RowSet::new(documents, report.seq_len, packing)?;
    report.rows = rows.len();
    Ok((rows, report))
}

fn names(sources: &[Source]) -> String {
    let mut names: Vec<String> = sources.iter().take(3).map(|s| s.path.display().to_string()).collect();
    if sources.len() > 3 {
        names.push(format!("{} more", sources.len() - 3));
    }
    names.join(", ")
}

/// Rows of all files, tokenised in parallel.
struct Reader<'a> {
    tokenizer: &'a Tokenizer,
    intake: Intake<'a>,
}

impl Reader<'_> {
    fn read(&mut self, source: &Source) -> Result<()> {
        let path = &source.path;
        match source.format {
            Format::Text => {
                let text = match read_text(path) {
                    Err(DataError::BadRow { place, reason }) => {
                        return self.intake.admit((place, Err(reason)));
                    }
                    other => other?,
                };
                let row = if text.trim().is_empty() {
                    Err("the file is empty; remove it from the data".to_owned())
                } else {
                    encode(self.tokenizer, &Row::plain(text))
                };
                self.intake.admit((path.display().to_string(), row))
            }
            Format::WebDataset => {
                let name = path.display().to_string();
                let blocks = blocks(path, BLOCK as u64)?;
                if blocks.is_empty() {
                    return self.intake.admit((name, Err(NO_SAMPLES.to_owned())));
                }
                for block in blocks {
                    let bytes = read_range(path, block.start, block.end).map_err(DataError::io(path))?;
                    let rows = samples(&bytes, &name)
                        .map_err(|reason| DataError::BadRow { place: name.clone(), reason })?;
                    self.read_rows(rows.len(), &|i| rows[i].clone())?;
                }
                Ok(())
            }
            Format::Jsonl | Format::Tokens => {
                let name = path.display().to_string();
                if begins_as_array(path)? {
                    let bytes = fs::read(path).map_err(DataError::io(path))?;
                    let rows = JsonRows::new(&bytes, &name);
                    return self.read_rows(rows.len(), &|i| rows.row(i));
                }
                let mut blocks = LineBlocks::new(File::open(path).map_err(DataError::io(path))?, BLOCK);
                while let Some((lines, first)) = blocks.next().map_err(DataError::io(path))? {
                    let rows = JsonRows::lines(lines, &name, first);
                    self.read_rows(rows.len(), &|i| rows.row(i))?;
                }
                Ok(())
            }
        }
    }

    fn read_rows(&mut self, count: usize, row: &(dyn Fn(usize) -> Placed<Value> + Sync)) -> Result<()> {
        for start in (0..count).step_by(CHUNK) {
            let tokenise = |i: usize| tokenise(self.tokenizer, row(i));
            let tokenised: Vec<Tokenised> =
                (start..count.min(start + CHUNK)).into_par_iter().map(tokenise).collect();
            for row in tokenised {
                self.intake.admit(row)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::intake::windows;
    use super::super::testing::{TempDir, real_data};
    use super::super::word_level::{save_word_level, words_of};
    use super::*;
    use proptest::prelude::*;

    /// A tokenizer of the words w0…w49 in ids 3…52.
    fn tokenizer(dir: &TempDir) -> Tokenizer {
        let words: Vec<String> =
            (0..50).map(|i| format!("w{i}")).chain(["Question", "Answer", ":"].map(String::from)).collect();
        save_word_level(&dir.path().join("tokenizer"), &words).unwrap()
    }

    fn config(seq_len: usize) -> DataConfig {
        let (long_rows, on_error) = (None, OnError::Stop);
        DataConfig { format: None, seq_len: Some(seq_len), packing: true, long_rows, on_error, vocab: 1000 }
    }

    fn documents(rows: &RowSet) -> Vec<Vec<i32>> {
        (0..rows.documents().len()).map(|d| rows.documents().tokens(d).to_vec()).collect()
    }

    #[test]
    fn plain_rows_are_split_and_completions_truncated() {
        let dir = TempDir::new("long");
        let t = tokenizer(&dir);
        let path = dir.file(
            "a.jsonl",
            r#"{"text": "w0 w1 w2 w3 w4 w5"}
               {"prompt": "w0 w1 w2", "completion": " w3 w4 w5"}
               {"prompt": "w0 w1 w2 w3", "completion": " w4"}"#,
        );
        let (rows, report) = load(std::slice::from_ref(&path), &config(4), Some(&t)).unwrap();
        assert_eq!(documents(&rows), [vec![3, 4, 5, 6], vec![7, 8, 2], vec![3, 4, 5, 6]]);
        assert_eq!(rows.documents().labels(2), [-100, -100, -100, 6]);
        assert_eq!((report.split, report.truncated, report.unlabelled, report.read), (1, 2, 1, 3));
        assert!(report.unlabelled_examples[0].ends_with("a.jsonl:3"), "{report}");
        assert_eq!((report.trained_tokens, report.tokens, report.rows), (3 + 2 + 1, 11, 3));
        let strict = DataConfig { long_rows: Some(LongRows::Error), ..config(4) };
        let error = load(std::slice::from_ref(&path), &strict, Some(&t)).unwrap_err().to_string();
        assert!(error.contains("a.jsonl:1: 7 tokens do not fit data.seq_len = 4"), "{error}");
        let split = DataConfig { long_rows: Some(LongRows::Split), packing: false, ..config(4) };
        let (rows, report) = load(&[path], &split, Some(&t)).unwrap();
        assert_eq!(documents(&rows)[2..], [vec![3, 4, 5, 6], vec![7, 8, 2], vec![7, 2]]);
        assert_eq!((report.split, report.unlabelled), (3, 1));
    }

    #[test]
    fn bad_rows_stop_or_are_counted() {
        let dir = TempDir::new("bad");
        let t = tokenizer(&dir);
        let good = dir.file("a.jsonl", "{\"text\": \"w1 w2\"}\n{\"txt\": 1}\n{\n");
        let error = load(std::slice::from_ref(&good), &config(8), Some(&t)).unwrap_err().to_string();
        assert!(error.contains("a.jsonl:2: no known form among the keys [txt]"), "{error}");
        let skip = DataConfig { on_error: OnError::Skip, ..config(8) };
        let (_, report) = load(&[good], &skip, Some(&t)).unwrap();
        assert_eq!((report.read, report.skipped, report.documents), (3, 2, 1));
        assert!(
            report.to_string().contains("2 rows skipped, first: ")
                && report.skipped_examples[1].contains("a.jsonl:3")
        );
        let none = dir.file("b.jsonl", "{}\n");
        let error = load(&[none], &skip, Some(&t)).unwrap_err().to_string();
        assert!(error.contains("no usable rows in") && error.contains("1 skipped"), "{error}");
        let empty = dir.file("c.jsonl", "\n");
        assert!(load(&[empty], &skip, Some(&t)).unwrap_err().to_string().contains("the files have no rows"));
        let blank = dir.file("d.txt", " \n");
        assert!(
            load(&[blank], &config(8), Some(&t))
                .unwrap_err()
                .to_string()
                .contains("d.txt: the file is empty")
        );
    }

    #[test]
    fn settings_that_cannot_work() {
        let dir = TempDir::new("settings");
        let t = tokenizer(&dir);
        let path = dir.file("a.txt", "w1 w2 w3");
        let error =
            |config: DataConfig, t| load(std::slice::from_ref(&path), &config, t).unwrap_err().to_string();
        assert!(error(config(8), None).starts_with("data.tokenizer: "));
        assert!(error(DataConfig { seq_len: None, ..config(8) }, Some(&t)).starts_with("data.seq_len: "));
        assert!(error(config(1), Some(&t)).contains("1 is too short"));
        assert!(
            error(DataConfig { vocab: 6, ..config(8) }, Some(&t)).contains("token 6 (\"w3\") is outside")
        );
        let mixed = [path.clone(), dir.file("t.safetensors", "")];
        assert!(load(&mixed, &config(8), Some(&t)).unwrap_err().to_string().contains("cannot be mixed"));
    }

    #[test]
    fn token_files_stand_as_they_are() {
        let dir = TempDir::new("tokens");
        let save = |name: &str, shape: [usize; 2]| {
            let data: Vec<u8> = (0..(shape[0] * shape[1]) as i64).flat_map(i64::to_le_bytes).collect();
            let view =
                safetensors::tensor::TensorView::new(safetensors::Dtype::I64, shape.to_vec(), &data).unwrap();
            dir.file(name, safetensors::serialize([("input_ids", view)], None).unwrap())
        };
        let (a, b) = (save("a.safetensors", [3, 4]), save("b.safetensors", [2, 5]));
        let open = DataConfig { seq_len: None, ..config(8) };
        let (rows, report) = load(std::slice::from_ref(&a), &open, None).unwrap();
        assert_eq!((rows.len(), rows.seq_len(), report.trained_tokens), (3, 4, 9));
        assert_eq!(documents(&rows)[1], [4, 5, 6, 7]);
        assert!(
            load(&[a.clone(), b], &open, None)
                .unwrap_err()
                .to_string()
                .contains("5 tokens but the first file's are 4")
        );
        assert!(
            load(&[a], &config(8), None).unwrap_err().to_string().contains("4 tokens but data.seq_len is 8")
        );
    }

    #[test]
    fn threads_change_nothing() {
        let dir = TempDir::new("threads");
        let t = tokenizer(&dir);
        let lines: Vec<String> =
            (0..9000).map(|i| format!("{{\"text\": \"w{} w{}\"}}", i % 50, i % 7)).collect();
        let path = dir.file("a.jsonl", lines.join("\n"));
        let print = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| load(std::slice::from_ref(&path), &config(16), Some(&t)).unwrap().0.fingerprint())
        };
        assert_eq!(print(1), print(4));
    }

    #[test]
    fn gsm8k_trains_on_answers() {
        let Some(path) = real_data("gsm8k/train.jsonl") else { return };
        let text = fs::read_to_string(&path).unwrap();
        let dir = TempDir::new("gsm8k");
        let t = save_word_level(dir.path(), &words_of(text.lines()).unwrap()).unwrap();
        let (rows, report) =
            load(&[path], &DataConfig { vocab: t.vocab_size(), ..config(1024) }, Some(&t)).unwrap();
        assert_eq!((report.read, report.documents, report.skipped, report.truncated), (7473, 7473, 0, 0));
        assert!(report.tokens as f64 > 0.97 * (rows.len() * 1024) as f64, "{report}");
        let labels = rows.documents().labels(0);
        let answer: Vec<i32> = labels.iter().copied().filter(|&l| l != IGNORE).collect();
        assert!(t.decode(&answer, true).unwrap().starts_with("Natalia sold 48 / 2 = "));
        assert_eq!(*answer.last().unwrap(), t.eos().unwrap() as i32);
    }

    #[test]
    fn tinyshakespeare_loses_no_token() {
        let Some(path) = real_data("tinyshakespeare/input.txt") else { return };
        let text = fs::read_to_string(&path).unwrap();
        let dir = TempDir::new("shakespeare");
        let t = save_word_level(dir.path(), &words_of([text.as_str()]).unwrap()).unwrap();
        let (rows, report) =
            load(&[path], &DataConfig { vocab: t.vocab_size(), ..config(128) }, Some(&t)).unwrap();
        let expected = t.encode(&text).unwrap().len() + 1;
        assert_eq!((report.tokens, rows.len()), (expected, expected.div_ceil(128)));
        assert_eq!((report.files, report.read, report.split), (1, 1, 1));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// Every token of every text is in the rows once, in order, whatever the row length.
        #[test]
        fn no_token_is_lost(texts in prop::collection::vec(prop::collection::vec(0usize..50, 1..40), 1..12), seq_len in 3usize..20) {
            let dir = TempDir::new("prop");
            let t = tokenizer(&dir);
            let lines: Vec<String> = texts.iter().map(|words| {
                let text: Vec<String> = words.iter().map(|w| format!("w{w}")).collect();
                format!("{{\"text\": \"{}\"}}", text.join(" "))
            }).collect();
            let path = dir.file("a.jsonl", lines.join("\n"));
            let (rows, report) = load(&[path], &config(seq_len), Some(&t)).unwrap();
            let expected: Vec<i32> = texts.iter().flat_map(|w| w.iter().map(|&w| w as i32 + 3).chain([2])).collect();
            prop_assert_eq!(documents(&rows).concat(), expected);
            prop_assert_eq!(report.unlabelled, 0);
        }

        #[test]
        fn windows_cover(n in 1usize..200, seq_len in 2usize..30) {
            let all = windows(n, seq_len);
            prop_assert_eq!(all.iter().cloned().flatten().collect::<Vec<_>>(), (0..n).collect::<Vec<_>>());
            prop_assert!(all.iter().all(|w| w.len() <= seq_len && (w.len() > 1 || n == 1 || seq_len == 2)));
        }
    }
}
