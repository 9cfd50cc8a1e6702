//! Training and evaluation data: files → rows of text → tokens → packed rows → the batches of a step.
//!
//! [`load::load`] reads files into a [`RowSet`], [`Loader`] hands out [`StepBatch`]es of it, and [`eval_data`] reads
//! evaluation sets. Invariants: everything but the order of a step's work is decided by the files and the settings, never
//! by threads; a token is in one row and at most once a target; labels of a [`MicroBatch`] are shifted already.

pub mod byte_level;
pub mod chat;
pub mod documents;
pub mod error;
pub mod eval_data;
mod intake;
pub mod load;
pub mod loader;
pub mod order;
pub mod pack;
pub mod report;
pub mod row_buffers;
pub mod rows;
pub mod shards;
pub mod source;
pub mod stream;
pub mod tar;
#[cfg(test)]
pub(crate) mod testing;
pub mod token_file;
pub mod token_shard;
pub mod tokenizer;
pub mod webdataset;
pub mod word_level;

pub use byte_level::train_byte_level;
pub use documents::{Documents, IGNORE};
pub use error::DataError;
pub use load::{DataConfig, LongRows, OnError, load};
pub use loader::{Cursor, Loader, LoaderConfig, MicroBatch, StepBatch, held_bytes};
pub use pack::RowSet;
pub use report::DataReport;
pub use row_buffers::RowBuffers;
pub use source::Format;
pub use stream::{RowStream, StreamConfig};
pub use tokenizer::Tokenizer;
pub use word_level::{save_word_level, words_of};
