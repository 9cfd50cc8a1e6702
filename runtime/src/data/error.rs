//! The one error type of the data side. Every text says what is wrong, where, and what to do about it.

use std::path::PathBuf;

/// What can be wrong with data, tokenizers and the settings that read them.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file of a range of shards that is not there.
    #[error(
        "{path} is missing of {pattern}; fetch it, or name the shards that there are",
        path = path.display(), pattern = pattern.display()
    )]
    MissingShard {
        /// The file.
        path: PathBuf,
        /// The pattern that stands for it and others.
        pattern: PathBuf,
    },
    /// A file whose format cannot be told from its name.
    #[error(
        "{path}: cannot tell the format from the extension; set data.format to jsonl, text, tokens or webdataset, \
         or name a .jsonl, .json, .txt, .safetensors or .tar file",
        path = path.display()
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// A row (line, array element, archive member) that cannot be used.
    #[error("{place}: {reason}")]
    BadRow {
        /// `file:line`, or the file and the row in it.
        place: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A row that is longer than a training row, where the settings ask for an error.
    #[error(
        "{place}: {tokens} tokens do not fit data.seq_len = {seq_len}; raise it, shorten the row, or set \
         data.long_rows to \"split\" or \"truncate\""
    )]
    LongRow {
        /// `file:line`, or the file and the row in it.
        place: String,
        /// Tokens of the row.
        tokens: usize,
        /// Tokens that a row may have.
        seq_len: usize,
    },
    /// A token file that is not what it should be.
    #[error("{path}: {reason}", path = path.display())]
    Tokens {
        /// The safetensors file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A token id outside the model's vocabulary.
    #[error(
        "{path}: {tensor}[{row}, {column}] is {value}, outside the model's vocabulary of {vocab}; was the file made \
         with another tokenizer?",
        path = path.display()
    )]
    TokenRange {
        /// The safetensors file.
        path: PathBuf,
        /// `input_ids` or `labels`.
        tensor: &'static str,
        /// Row, from 0.
        row: usize,
        /// Column, from 0.
        column: usize,
        /// The value there.
        value: i64,
        /// The number of tokens the model knows.
        vocab: usize,
    },
    /// A tokenizer that cannot be loaded or used.
    #[error("{path}: {reason}", path = path.display())]
    Tokenizer {
        /// `tokenizer.json` or a file beside it.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Two tokenizers under which the same id is another token.
    #[error(
        "token {id} is {a_token:?} in {a} but {b_token:?} in {b}: a teacher and its student must share one \
         tokenizer; choose a teacher of the same family",
        a = a.display(), b = b.display()
    )]
    Vocabulary {
        /// The first id that differs.
        id: u32,
        /// The token in `a`.
        a_token: String,
        /// The token in `b`.
        b_token: String,
        /// The first tokenizer.
        a: PathBuf,
        /// The second tokenizer.
        b: PathBuf,
    },
    /// Nothing is left to train or evaluate on.
    #[error("no usable rows in {sources}: {reason}")]
    Empty {
        /// The files that were read.
        sources: String,
        /// Why nothing is left and what to do.
        reason: String,
    },
    /// A setting that cannot work.
    #[error("{setting}: {reason}")]
    Config {
        /// The setting, as the configuration names it.
        setting: &'static str,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A position in the data that does not belong to this data.
    #[error("cannot resume in the data: {reason}")]
    Cursor {
        /// What differs and what to do.
        reason: String,
    },
}

impl DataError {
    /// The same error of a row at another place.
    pub(crate) fn at(self, place: String) -> DataError {
        match self {
            DataError::BadRow { reason, .. } => DataError::BadRow { place, reason },
            DataError::LongRow { tokens, seq_len, .. } => DataError::LongRow { place, tokens, seq_len },
            other => other,
        }
    }

    /// An [`DataError::Io`] for `path`, to be used with `map_err`.
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> DataError + '_ {
        move |source| DataError::Io { path: path.to_path_buf(), source }
    }
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, DataError>;
