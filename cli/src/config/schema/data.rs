//! The keys of `[data]`.

use super::{DefaultValue, Field, Key, MANY, Section, kind_of};
use kfc_runtime::config::{DataSection, LongRows, OnError, Streaming};

/// `[data]` with no key given (`train` is required).
pub fn data_defaults() -> DataSection {
    DataSection {
        train: Vec::new(),
        format: None,
        seq_len: None,
        packing: true,
        shuffle: true,
        tokenizer: None,
        on_error: OnError::Fail,
        long_rows: LongRows::Split,
        streaming: Streaming::Auto,
        workers: 8,
        prefetch: 4,
        rank: 0,
        world: 1,
    }
}

pub(in crate::config) fn data() -> Section<DataSection> {
    type S = DataSection;
    Section {
        name: "data",
        doc: "What is learnt.",
        defaults: data_defaults,
        keys: vec![
            key!(S, train, "Files or folders; `{000..009}` stands for each number, `{a,b}` for each name.")
                .required()
                .must_be("at least one file", |s| !s.train.is_empty()),
            key!(S, format, "How the files are read.").otherwise("by the files' extension"),
            key!(S, seq_len, "Tokens of a row.")
                .otherwise("the row length of a tokens file, else the smaller of 1024 and the model's limit")
                .must_be("from 2 to 1048576", |s| s.seq_len.is_none_or(|n| (2..=MANY).contains(&n))),
            key!(S, packing, "Several documents a row, attention kept inside each."),
            key!(S, shuffle, "A new order every epoch, from `train.seed`."),
            key!(S, tokenizer, "A `tokenizer.json` or its folder.").otherwise("the model's"),
            key!(S, on_error, "Stop at a bad line, or count it and go on."),
            key!(S, long_rows, "Documents longer than `seq_len` are split, cut, or an error."),
            key!(
                S,
                streaming,
                "Read files while training runs, a block of about 64 rows at a time; `auto` does it above 64 MiB of \
                 files, if the length is in `steps` and the teacher is no cache."
            ),
            key!(S, workers, "Threads that read and tokenise streamed files; they change no row.")
                .must_be("from 1 to 256", |s| (1..=256).contains(&s.workers)),
            key!(S, prefetch, "Blocks that each of them reads ahead.")
                .must_be("from 1 to 1024", |s| (1..=1024).contains(&s.prefetch)),
            key!(S, rank, "Which share of the data this process takes, from 0."),
            key!(S, world, "Processes that share the data.")
                .must_be("from 1 to 65536", |s| (1..=65536).contains(&s.world)),
        ],
    }
}
