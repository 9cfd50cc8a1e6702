//! What scores texts: an encoder with a classification head, or a language model by its perplexity.

use crate::args::{self, FilterArgs};
use crate::config::format_bytes;
use crate::output;
use kfc_runtime::RunError;
use kfc_runtime::data::Tokenizer;
use kfc_runtime::data::chat::Piece;
use kfc_runtime::encoder::{Classifier, Kind, Long, Scoring, Texts};
use kfc_runtime::eval::scorer::{RowScore, ScoreRow, score};
use kfc_runtime::inference::Served;
use rayon::prelude::*;
use serde_json::{Value, json};

/// Rows of a batch of the language model.
const BATCH: usize = 64;
/// Longest text of a language model that could read longer ones.
const LONGEST: usize = 4096;

/// What was found of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Judged {
    /// The score, rounded; `None` if the text has none.
    pub(super) score: Option<f64>,
    /// It was longer than the model reads.
    pub(super) long: bool,
}

/// A model that scores texts.
pub(super) struct Judge {
    model: Model,
    long: Long,
}

enum Model {
    Encoder { classifier: Box<Classifier>, texts: Texts, scoring: Scoring },
    Language { served: Box<Served>, tokenizer: Tokenizer, seq_len: usize },
}

impl Judge {
    pub(super) fn open(args: &FilterArgs) -> anyhow::Result<Judge> {
        let model = match &args.judge {
            args::Judge::Classifier { model, label, kind } => {
                let classifier = Classifier::open(model, args.dtype, args.seq_len)?;
                let scoring = Scoring::choose(&classifier.config, label.as_deref(), *kind)?;
                let texts = Texts::open(model)?;
                texts.encode("", classifier.longest(), args.long)?;
                Model::Encoder { classifier: Box::new(classifier), texts, scoring }
            }
            args::Judge::Perplexity { model } => {
                let served = Served::open(model, None, args.dtype)?;
                let most = served.model.config.max_positions;
                let seq_len = args.seq_len.unwrap_or(LONGEST).min(most).max(2);
                Model::Language { tokenizer: served.tokenizer()?, served: Box::new(served), seq_len }
            }
        };
        Ok(Judge { model, long: args.long })
    }

    /// What the scores depend on.
    pub(super) fn settings(&self) -> Value {
        match &self.model {
            Model::Encoder { classifier, scoring, .. } => json!({
                "model": output::shown(&classifier.path),
                "label": classifier.config.labels[scoring.label],
                "score": scoring.kind.name(),
                "seq_len": classifier.longest(),
                "dtype": classifier.dtype.name(),
            }),
            Model::Language { served, seq_len, .. } => json!({
                "perplexity": output::shown(&served.model.path),
                "seq_len": seq_len,
                "dtype": served.model.dtype.name(),
            }),
        }
    }

    /// The model and the memory it takes.
    pub(super) fn describe(&self) -> String {
        match &self.model {
            Model::Encoder { classifier, scoring, .. } => {
                let c = &classifier.config;
                let bytes = |n: usize| format_bytes(n as u64);
                format!(
                    "{} layers of {}, {}, {} tokens at most; the score is the {} of `{}`; {} of weights, {} of activations",
                    c.layers,
                    c.hidden_size,
                    classifier.dtype.name(),
                    classifier.longest(),
                    scoring.kind.name(),
                    c.labels[scoring.label],
                    bytes(classifier.weight_bytes()),
                    bytes(classifier.arena_bytes()),
                )
            }
            Model::Language { served, seq_len, .. } => {
                let c = &served.model.config;
                let (layers, width) = (c.layers, c.hidden_size);
                format!(
                    "{layers} layers of {width}, {}, {seq_len} tokens at a time",
                    served.model.dtype.name()
                )
            }
        }
    }

    /// Whether scores are from 0 to 1.
    pub(super) fn is_probability(&self) -> bool {
        matches!(&self.model, Model::Encoder { scoring, .. } if scoring.kind != Kind::Raw)
    }

    pub(super) const fn higher_is_better(&self) -> bool {
        matches!(self.model, Model::Encoder { .. })
    }

    /// Where rows keep the score.
    pub(super) const fn name_of_score(&self) -> &'static str {
        match self.model {
            Model::Encoder { .. } => "quality",
            Model::Language { .. } => "perplexity",
        }
    }

    /// What the report calls texts that were longer than the model reads.
    pub(super) const fn name_of_long(&self) -> &'static str {
        match self.long {
            Long::Truncate => "texts cut to what the model reads",
            Long::Windows => "texts read in windows",
        }
    }

    /// The tenth that a probability lies in, for the report.
    pub(super) fn band(&self, score: f64) -> Option<String> {
        let tenth = (score * 10.0).floor().clamp(0.0, 9.0);
        self.is_probability().then(|| format!("score {:.1} to {:.1}", tenth / 10.0, (tenth + 1.0) / 10.0))
    }

    /// Scores texts; the results are in their order and do not depend on threads.
    pub(super) fn judge(&mut self, texts: &[&str]) -> anyhow::Result<Vec<Judged>> {
        match &mut self.model {
            Model::Encoder { classifier, texts: encoder, scoring } => {
                classify(classifier, encoder, *scoring, self.long, texts)
            }
            Model::Language { served, tokenizer, seq_len } => {
                perplexities(served, tokenizer, *seq_len, self.long, texts)
            }
        }
    }
}

fn rounded(x: f64) -> f64 {
    (x * 1e6).round() / 1e6
}

/// The score of a text in windows is the mean over these.
fn classify(
    classifier: &mut Classifier,
    encoder: &Texts,
    scoring: Scoring,
    long: Long,
    texts: &[&str],
) -> anyhow::Result<Vec<Judged>> {
    let longest = classifier.longest();
    let encoded: Vec<(Vec<Vec<i32>>, bool)> =
        texts.par_iter().map(|text| encoder.encode(text, longest, long)).collect::<Result<_, RunError>>()?;
    let pieces: Vec<&Vec<i32>> = encoded.iter().flat_map(|(pieces, _)| pieces).collect();
    let logits = classifier.classify(&pieces, &mut |_| ())?;
    let mut scores = logits.iter().map(|logits| scoring.score(logits));
    let mean = |(pieces, long): &(Vec<Vec<i32>>, bool)| {
        let sum: f64 = scores.by_ref().take(pieces.len()).sum();
        Judged { score: Some(rounded(sum / pieces.len() as f64)), long: *long }
    };
    Ok(encoded.iter().map(mean).collect())
}

/// Windows overlap by one token, so that every token but the first is scored once.
fn perplexities(
    served: &Served,
    tokenizer: &Tokenizer,
    seq_len: usize,
    long: Long,
    texts: &[&str],
) -> anyhow::Result<Vec<Judged>> {
    // As training and `kfc eval` read a row: with the end of the text, which is predicted too.
    let encode = |text: &&str| -> Result<Vec<i32>, RunError> {
        let piece = Piece { text: (*text).to_owned(), train: true };
        Ok(tokenizer.encode_row(&[piece], true)?.tokens)
    };
    let encoded: Vec<Vec<i32>> = texts.par_iter().map(encode).collect::<Result<_, _>>()?;
    let windows = |tokens: &[i32]| -> Vec<(usize, usize)> {
        let n = match long {
            Long::Truncate => tokens.len().min(seq_len),
            Long::Windows => tokens.len(),
        };
        (0..n.saturating_sub(1)).step_by(seq_len - 1).map(|at| (at, (at + seq_len).min(n))).collect()
    };
    let cut: Vec<Vec<(usize, usize)>> = encoded.iter().map(|tokens| windows(tokens)).collect();
    let rows: Vec<ScoreRow<'_>> = encoded
        .iter()
        .zip(&cut)
        .flat_map(|(tokens, cut)| cut.iter().map(move |&(from, to)| &tokens[from..to]))
        .map(|tokens| ScoreRow { tokens, labels: tokens })
        .collect();
    let mut scores = score(served, &rows, BATCH, &mut |_, _| ())?.into_iter();
    let perplexity = |(tokens, cut): (&Vec<i32>, &Vec<(usize, usize)>)| {
        let parts: Vec<RowScore> = scores.by_ref().take(cut.len()).collect();
        let (logp, n) = parts.iter().fold((0.0, 0), |(logp, n), s| (logp + s.logp, n + s.tokens));
        let score = (n > 0).then(|| rounded((-logp / n as f64).exp().min(f64::MAX / 1e7)));
        Judged { score, long: tokens.len() > seq_len }
    };
    Ok(encoded.iter().zip(&cut).map(perplexity).collect())
}
